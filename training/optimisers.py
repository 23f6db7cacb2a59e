"""Optimisers and learning rates over a stage."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from ..blocks.registry import part
from ..blocks.slots import OptimiserConfig, RateConfig


@part("optimiser/adamw")
class AdamWConfig(OptimiserConfig):
    """AdamW (arXiv 1711.05101).

    Matrices and kernels decay; biases, gains, tables of positions and learned queries do not.
    """

    rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"rate: must be positive, got {self.rate}")

    def build(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        named = list(parameters)
        groups = [
            {"params": [(n, p) for n, p in named if _decays(n, p)], "weight_decay": self.weight_decay},
            {"params": [(n, p) for n, p in named if not _decays(n, p)], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.rate,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
        )


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return sum(side > 1 for side in parameter.shape) >= 2 and not name.endswith(("positions", "queries"))


def _warmed(step: int, warm_up: int) -> float:
    return min(1.0, (step + 1) / warm_up) if warm_up else 1.0


@part("rate/constant")
class ConstantRateConfig(RateConfig):
    """Linear warm-up over ``warm_up`` steps, then constant."""

    warm_up: int = 0

    def factor(self, step: int, steps: int) -> float:
        return _warmed(step, self.warm_up)


@part("rate/cosine")
class CosineRateConfig(RateConfig):
    """Linear warm-up, then half a cosine down to ``final`` of the rate at the end of the stage."""

    warm_up: int = 0
    final: float = 0.0

    def factor(self, step: int, steps: int) -> float:
        progress = min(1.0, max(0, step - self.warm_up) / max(1, steps - self.warm_up))
        decay = self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
        return _warmed(step, self.warm_up) * decay


@part("rate/trapezoid")
class TrapezoidRateConfig(RateConfig):
    """Linear warm-up, constant, then linear decay to zero over the last ``decay`` share of the steps."""

    warm_up: int = 0
    decay: float = 0.3

    def factor(self, step: int, steps: int) -> float:
        left = (steps - step) / max(1.0, self.decay * steps)
        return min(_warmed(step, self.warm_up), 1.0, left)
