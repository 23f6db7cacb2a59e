"""Posteriors over latents.

The variance-preserving posterior has alpha² + sigma² = 1: z = alpha·mu + sigma·eps with log-SNR
lambda = log(alpha²/sigma²), so that alpha = sqrt(sigmoid(lambda)), sigma = sqrt(sigmoid(-lambda)), element by element
(SemDisDiffAE technical report, sec. 2). All of it is float32.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .norm import ChannelRMSNorm
from .registry import part
from .shapes import Latent, Map
from .slots import PosteriorConfig, PosteriorHead


def alpha_sigma(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """Return (alpha, sigma) in float32, safe for any log-SNR, infinite ones included."""
    logsnr = logsnr.float()
    return torch.exp(0.5 * F.logsigmoid(logsnr)), torch.exp(0.5 * F.logsigmoid(-logsnr))


@dataclass(frozen=True)
class EncoderPosterior:
    """A variance-preserving diagonal Gaussian: ``mean`` is mu, ``logsnr`` is lambda; both raw, not whitened."""

    mean: Latent
    logsnr: Latent

    @property
    def alpha(self) -> Latent:
        return alpha_sigma(self.logsnr)[0]

    @property
    def sigma(self) -> Latent:
        return alpha_sigma(self.logsnr)[1]

    def mode(self) -> Latent:
        """alpha·mu, in the dtype of the mean."""
        return (self.alpha * self.mean.float()).to(self.mean.dtype)

    def sample(self, *, generator: torch.Generator | None = None) -> Latent:
        """alpha·mu + sigma·eps, in the dtype of the mean; ``generator`` lives on the device of the mean."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device)
        return self.at(noise)

    def at(self, noise: Latent) -> Latent:
        """alpha·mu + sigma·noise, in the dtype of the mean."""
        alpha, sigma = alpha_sigma(self.logsnr)
        return (alpha * self.mean.float() + sigma * noise).to(self.mean.dtype)


def _mean_norm(latent: int, kind: str) -> nn.Module:
    return ChannelRMSNorm(latent) if kind == "channel_wise" else nn.Identity()


class VPPosteriorHead(PosteriorHead):
    """The first half of the channels is the mean, the second the log-SNR, which is not clamped."""

    def __init__(self, latent: int, *, mean_norm: str = "disabled") -> None:
        super().__init__()
        self.channels = 2 * latent
        self.norm_out = _mean_norm(latent, mean_norm)

    def forward(self, moments: Map) -> EncoderPosterior:
        mean, logsnr = moments.chunk(2, dim=1)
        return EncoderPosterior(self.norm_out(mean), logsnr)


class PointPosteriorHead(PosteriorHead):
    """No uncertainty: the log-SNR is infinite, so that every sample equals the mean."""

    def __init__(self, latent: int, *, mean_norm: str = "disabled") -> None:
        super().__init__()
        self.channels = latent
        self.norm_out = _mean_norm(latent, mean_norm)

    def forward(self, moments: Map) -> EncoderPosterior:
        return EncoderPosterior(self.norm_out(moments), torch.full_like(moments, torch.inf))


@part("posterior/vp")
class VPPosteriorConfig(PosteriorConfig):
    """Variance-preserving diagonal Gaussian; ``mean_norm`` is "disabled" in every published model."""

    mean_norm: Literal["disabled", "channel_wise"] = "disabled"

    def build(self, latent: int) -> VPPosteriorHead:
        return VPPosteriorHead(latent, mean_norm=self.mean_norm)


@part("posterior/point")
class PointPosteriorConfig(PosteriorConfig):
    """A deterministic encoder."""

    mean_norm: Literal["disabled", "channel_wise"] = "disabled"

    def build(self, latent: int) -> PointPosteriorHead:
        return PointPosteriorHead(latent, mean_norm=self.mean_norm)
