"""Variance-preserving diffusion with the cosine-interpolated log-SNR of SiD2 (arXiv 2410.19324).

x_t = alpha_t·x0 + sigma_t·eps with eps ~ N(0, s²), alpha² + sigma² = 1 and
lambda(t) = -2 ln tan(a·t + b), b = atan(exp(-lambda_max/2)), a = atan(exp(-lambda_min/2)) - b,
so that lambda runs from lambda_max at t = 0 (clean) to lambda_min at t = 1 (noise). Everything is float32.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .draws import Draws
from .posterior import alpha_sigma
from .registry import part
from .shapes import Image, Times
from .slots import ScheduleConfig, TimesConfig


@dataclass(frozen=True)
class VPSchedule:
    """Log-SNR as a function of time. ``noise_std`` is s; ``shift_high``, ``shift_low`` are SiD2's resolution shift,
    lambda(t) + (1-t)·shift_high + t·shift_low."""

    logsnr_max: float = 10.0
    logsnr_min: float = -10.0
    noise_std: float = 0.558
    shift_high: float = 0.0
    shift_low: float = 0.0

    @property
    def offset(self) -> float:
        """b of the module's formula."""
        return math.atan(math.exp(-self.logsnr_max / 2))

    @property
    def slope(self) -> float:
        """a of the module's formula."""
        return math.atan(math.exp(-self.logsnr_min / 2)) - self.offset

    def logsnr(self, t: Tensor) -> Tensor:
        t = t.float()
        base = -2 * torch.log(torch.tan(self.slope * t + self.offset))
        return base + (1 - t) * self.shift_high + t * self.shift_low

    def logsnr_slope(self, t: Tensor) -> Tensor:
        """d lambda / dt, which is negative."""
        base = -4 * self.slope / torch.sin(2 * (self.slope * t.float() + self.offset))
        return base + (self.shift_low - self.shift_high)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return alpha_sigma(self.logsnr(t))

    def corrupt(self, x0: Image, t: Times, noise: Image) -> Image:
        """x_t for unit Gaussian ``noise``, which is scaled by s here."""
        alpha, sigma = (v[:, None, None, None] for v in self.alpha_sigma(t))
        return alpha * x0.float() + sigma * (self.noise_std * noise)


def sid2_weight(schedule: VPSchedule, t: Times, *, bias: float = -2.0) -> Times:
    """Weight of the squared x-prediction error at times ``t``.

    -1/2·(dlambda/dt)·e^b·sigmoid(lambda - b): SiD2's sigmoid weight of the noise-prediction loss (arXiv 2410.19324,
    eq. 10 there) written for x-prediction. For lambda in ±10 and b = -2: 31.28 at t = 0, 0.3713 at 0.5, 0.01049 at 1.
    """
    return -0.5 * schedule.logsnr_slope(t) * math.exp(bias) * torch.sigmoid(schedule.logsnr(t) - bias)


@part("schedule/vp")
class VPScheduleConfig(ScheduleConfig):
    """Cosine-interpolated log-SNR between two ends.

    ``noise_std`` is s, the images' standard deviation; the two shifts are SiD2's for other resolutions, 0 in every
    release.
    """

    logsnr_max: float = 10.0
    logsnr_min: float = -10.0
    noise_std: float = 0.558
    shift_high: float = 0.0
    shift_low: float = 0.0

    def __post_init__(self) -> None:
        if self.logsnr_max <= self.logsnr_min:
            raise ValueError(f"logsnr_max: must exceed logsnr_min, got {self.logsnr_max} and {self.logsnr_min}")
        if self.noise_std <= 0:
            raise ValueError(f"noise_std: must be positive, got {self.noise_std}")

    def build(self) -> VPSchedule:
        return VPSchedule(
            logsnr_max=self.logsnr_max,
            logsnr_min=self.logsnr_min,
            noise_std=self.noise_std,
            shift_high=self.shift_high,
            shift_low=self.shift_low,
        )


@part("times/uniform")
class UniformTimesConfig(TimesConfig):
    """t ~ U(0, 1)."""

    def sample(self, draws: Draws, stream: str) -> Times:
        return draws.uniform(stream)


@part("times/beta_2_2")
class Beta22TimesConfig(TimesConfig):
    """t ~ Beta(2, 2): the middle one of three uniform numbers."""

    def sample(self, draws: Draws, stream: str) -> Times:
        return draws.uniform(stream, 3).median(dim=1).values


@part("times/with_pure_noise")
class WithPureNoiseConfig(TimesConfig):
    """t = 1 for a ``share`` of the samples, U(0, 1) for the rest: one-step decoding starts at t = 1."""

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share: must be in [0, 1], got {self.share}")

    def sample(self, draws: Draws, stream: str) -> Times:
        t, u = draws.uniform(stream, 2).unbind(dim=1)
        return torch.where(u < self.share, torch.ones_like(t), t)
