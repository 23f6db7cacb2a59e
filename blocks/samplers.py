"""Samplers for x-prediction networks under a variance-preserving schedule, and path-drop guidance.

- DDIM: eps = (x - alpha·x0)/sigma, x' = alpha'·x0 + sigma'·eps (arXiv 2010.02502, eq. 12 without noise).
- DPM-Solver++(2M) in data prediction (arXiv 2211.01095, alg. 2).

The time grid ends at t = 0 inclusive: there sigma is not zero, so that the last step leaves residual noise, as in the
published models. State and schedule are float32; the network sees whatever dtype it casts to.
"""

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from .posterior import alpha_sigma
from .shapes import Image, Times
from .vp import VPSchedule

Denoiser = Callable[[Image, Times], Image]
"""(x_t, t) to an estimate of x0."""


def linear_grid(steps: int, *, device: torch.device | str = "cpu") -> Float[Tensor, " n"]:
    """``steps + 1`` evenly spaced times from 1 down to 0."""
    return torch.linspace(1, 0, steps + 1, device=device)


def cosine_grid(steps: int, *, device: torch.device | str = "cpu") -> Float[Tensor, " n"]:
    """``steps + 1`` times from 1 down to 0, dense at both ends: (1 - cos(pi·u))/2 over evenly spaced u."""
    return 0.5 * (1 - torch.cos(math.pi * linear_grid(steps, device=device)))


GRIDS: dict[str, Callable[..., Float[Tensor, " n"]]] = {"linear": linear_grid, "cosine": cosine_grid}


class Sampler(Protocol):
    def __call__(self, denoise: Denoiser, x: Image, grid: Float[Tensor, " n"], schedule: VPSchedule) -> Image: ...


def ddim(denoise: Denoiser, x: Image, grid: Float[Tensor, " n"], schedule: VPSchedule) -> Image:
    """Integrate from ``grid[0]`` to ``grid[-1]``; one network evaluation an interval."""
    for t, lam, lam_next in _intervals(grid, schedule):
        (alpha, sigma), (alpha_next, sigma_next) = alpha_sigma(lam), alpha_sigma(lam_next)
        x0 = denoise(x, t.expand(len(x))).float()
        x = alpha_next * x0 + sigma_next * ((x - alpha * x0) / sigma)
    return x


def dpmpp_2m(denoise: Denoiser, x: Image, grid: Float[Tensor, " n"], schedule: VPSchedule) -> Image:
    """Second-order multistep integration; equals :func:`ddim` for a single interval."""
    before: tuple[Tensor, Tensor] | None = None  # half log-SNR and prediction of the interval before
    for t, lam, lam_next in _intervals(grid, schedule):
        sigma, (alpha_next, sigma_next) = alpha_sigma(lam)[1], alpha_sigma(lam_next)
        x0 = denoise(x, t.expand(len(x))).float()
        step = (lam_next - lam) / 2
        slope = x0
        if before is not None:
            ratio = (lam / 2 - before[0]) / step
            slope = x0 + 0.5 * (x0 - before[1]) / ratio
        x = (sigma_next / sigma) * x - alpha_next * torch.expm1(-step) * slope
        before = (lam / 2, x0)
    return x


SAMPLERS: dict[str, Sampler] = {"ddim": ddim, "dpmpp_2m": dpmpp_2m}


def _intervals(grid: Float[Tensor, " n"], schedule: VPSchedule) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    logsnr = schedule.logsnr(grid)
    for i in range(len(grid) - 1):
        yield grid[i], logsnr[i], logsnr[i + 1]


def path_drop_guidance(full: Image, dropped: Image, strength: float) -> Image:
    """Extrapolate from the prediction without the middle blocks through the full one (SPRINT, arXiv 2510.21986).

    dropped + strength·(full - dropped); strength 1 is no guidance.
    """
    return dropped + strength * (full - dropped)
