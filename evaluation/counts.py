"""Exact counts of a model: parameters by module, floating-point operations, latent shape. Nothing is computed."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..blocks.slots import FamilyConfig


@dataclass(frozen=True)
class Counts:
    """``flops`` count a multiplication and an addition as two; they are None for a direction that a model lacks."""

    parameters: dict[str, int]
    latent: tuple[int, int, int]
    compression: float
    encode_flops: int | None
    decode_flops: int | None

    @property
    def total(self) -> int:
        return sum(self.parameters.values())


def count(config: FamilyConfig, *, resolution: int = 256) -> Counts:
    """Count what a model of ``config`` holds, and what it computes for one square image.

    Raises:
        ValueError: the resolution does not divide by the model's stride.
    """
    if resolution < 1 or resolution % config.stride:
        raise ValueError(f"resolution: must be divisible by the model's stride {config.stride}, got {resolution}")
    with torch.device("meta"):
        model: Any = config.build().eval()
        side = resolution // config.stride
        latents = torch.zeros(1, config.latent_channels, side, side)
        images = torch.zeros(1, config.channels, resolution, resolution)
    parameters = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    parameters = {name: number for name, number in parameters.items() if number}
    flops: dict[str, int | None] = {"encode": None, "decode": None}
    if getattr(model, "encoder", None) is not None:
        with FlopCounterMode(display=False) as counter:
            model.encode(images)
        flops["encode"] = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        model.decode(latents, resolution, resolution)
    flops["decode"] = counter.get_total_flops()
    return Counts(
        parameters=parameters,
        latent=(config.latent_channels, side, side),
        compression=config.channels * config.stride**2 / config.latent_channels,
        encode_flops=flops["encode"],
        decode_flops=flops["decode"],
    )
