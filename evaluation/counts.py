"""Exact counts of a model: parameters by module, floating-point operations, latent shape. Nothing is computed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..blocks.slots import FamilyConfig
from ..families.bridge import LatentBridge


@dataclass(frozen=True)
class Counts:
    """``flops`` count a multiplication and an addition as two; they are None for what a model does not do."""

    parameters: dict[str, int]
    latent: tuple[int, int, int]
    compression: float
    encode_flops: int | None
    decode_flops: int | None
    predict_flops: int | None = None
    """From latents to a teacher's tokens, of a bridge."""

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
    calls: dict[str, Callable[[], Any]] = {}
    if isinstance(model, LatentBridge):
        calls["predict"] = lambda: model(latents)
    else:
        if getattr(model, "encoder", None) is not None:
            calls["encode"] = lambda: model.encode(images)
        calls["decode"] = lambda: model.decode(latents, resolution, resolution)
    flops: dict[str, int] = {}
    for name, call in calls.items():
        with FlopCounterMode(display=False) as counter:
            call()
        flops[name] = counter.get_total_flops()
    return Counts(
        parameters=parameters,
        latent=(config.latent_channels, side, side),
        compression=config.channels * config.stride**2 / config.latent_channels,
        encode_flops=flops.get("encode"),
        decode_flops=flops.get("decode"),
        predict_flops=flops.get("predict"),
    )
