"""Noise on the latents that a bridge is trained on, so that it reads noisy or predicted latents too.

- linear: z_tau = (1 - tau)·z + tau·eps, the path of SemDisDiffAE's alignment (technical report, sec. 4.3);
- sigma: z + most·tau·eps, the noise that RAE's decoder is trained on (arXiv 2510.11690), which does not shrink latents.

In both tau in [0, 1] is what the bridge is told, 0 is clean, and eps ~ N(0, 1). Latents are in model space, whose
channels have a standard deviation near 1.
"""

from torch import Tensor

from .registry import part
from .shapes import Latent, Times
from .slots import BridgeNoiseConfig, TimesConfig
from .vp import Beta22TimesConfig, UniformTimesConfig


def _spread(tau: Times) -> Tensor:
    return tau.float()[:, None, None, None]


@part("bridge_noise/linear")
class LinearNoiseConfig(BridgeNoiseConfig):
    """(1 - tau)·z + tau·eps; ``times`` is the distribution of tau."""

    times: TimesConfig = Beta22TimesConfig()

    def add(self, latents: Latent, tau: Times, noise: Latent) -> Latent:
        return ((1 - _spread(tau)) * latents.float() + _spread(tau) * noise).to(latents.dtype)


@part("bridge_noise/sigma")
class SigmaNoiseConfig(BridgeNoiseConfig):
    """z + sigma·eps with sigma = most·tau; ``times`` is the distribution of tau."""

    most: float = 0.8
    times: TimesConfig = UniformTimesConfig()

    def __post_init__(self) -> None:
        if not self.most > 0:
            raise ValueError(f"most: must be positive, got {self.most}")

    def add(self, latents: Latent, tau: Times, noise: Latent) -> Latent:
        return (latents.float() + self.most * _spread(tau) * noise).to(latents.dtype)
