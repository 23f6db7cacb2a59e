"""In which precision a stage computes, and the scaled loss that float16 needs.

Gradients of a float16 network fall below the smallest of its numbers. The loss is multiplied by a scale before they are
taken, which the gradients are divided by afterwards; a step whose gradients overflow is left out and the scale halved
(Micikevicius et al. 2018, arXiv 1710.03740). Weights, and what is divided, stay float32.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

PrecisionName = Literal["auto", "float32", "bfloat16", "float16"]

SMALLEST_SCALE = 1.0
"""Below it an overflow is no longer the scale's fault."""


class Precision:
    """Autocast and loss scaling of a stage; without float16, the latter does nothing."""

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        self.device = device
        self.dtype = torch.float16 if name == "float16" else torch.bfloat16
        self.low = name in ("bfloat16", "float16") or (name == "auto" and device.type == "cuda")
        self._scaler = torch.amp.GradScaler(device.type, enabled=name == "float16")

    @staticmethod
    def check(name: PrecisionName, device: torch.device, *, where: str) -> None:
        """Raise ``ValueError`` for float16 on a device other than CUDA, where nothing is gained by it."""
        if name == "float16" and device.type != "cuda":
            raise ValueError(
                f"{where}: precision: 'float16' trains on CUDA alone, and this run is on the {device.type.upper()}; "
                "take 'auto', which is bfloat16 on CUDA and float32 elsewhere"
            )

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.low)

    def backward(self, loss: Tensor) -> None:
        self._scaler.scale(loss).backward()

    def unscale(self, optimiser: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale, where there is one."""
        self._scaler.unscale_(optimiser)

    def step(self, optimiser: torch.optim.Optimizer) -> None:
        """Take the step, or leave it out where gradients overflowed; follow with the scale."""
        self._scaler.step(optimiser)
        self._scaler.update()

    @property
    def forgives(self) -> bool:
        """Whether an overflow of gradients may go away with a smaller scale."""
        return self._scaler.is_enabled() and self._scaler.get_scale() > SMALLEST_SCALE

    def recorded(self) -> dict[str, float]:
        return {"loss_scale": self._scaler.get_scale()} if self._scaler.is_enabled() else {}

    def kept(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        state = self._scaler.state_dict()
        return {name: torch.tensor(state[name]) for name in ("scale", "_growth_tracker") if name in state}

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Undo :meth:`kept`."""
        if kept:
            self._scaler.load_state_dict(self._scaler.state_dict() | {name: t.item() for name, t in kept.items()})
