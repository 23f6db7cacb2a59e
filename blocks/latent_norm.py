"""Latent normalisers: what stands between raw latents and the space that ``encode`` returns.

Whitening is per channel: whiten(z) = (z - m) / sqrt(v + eps), in float32, with running statistics m and v.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from .registry import part
from .shapes import Latent
from .slots import LatentNormConfig, Statistics


def _column(x: Float[Tensor, " z"]) -> Float[Tensor, "z 1 1"]:
    return x.float()[:, None, None]


def whiten(z: Latent, mean: Float[Tensor, " z"], var: Float[Tensor, " z"], *, eps: float = 1e-4) -> Latent:
    """(z - mean) / sqrt(var + eps) per channel; float32 arithmetic, the dtype of ``z``."""
    return ((z.float() - _column(mean)) * torch.rsqrt(_column(var) + eps)).to(z.dtype)


def dewhiten(z: Latent, mean: Float[Tensor, " z"], var: Float[Tensor, " z"], *, eps: float = 1e-4) -> Latent:
    """z·sqrt(var + eps) + mean per channel: undoes :func:`whiten`; float32 arithmetic, the dtype of ``z``."""
    return (z.float() * torch.sqrt(_column(var) + eps) + _column(mean)).to(z.dtype)


@part("latent_norm/whitening")
class WhiteningConfig(LatentNormConfig):
    """Zero mean and unit variance per channel by running statistics (eps as in FLUX.2's batch norm)."""

    eps: float = 1e-4

    def __post_init__(self) -> None:
        if self.eps <= 0:
            raise ValueError(f"eps: must be positive, got {self.eps}")

    def statistics(self, latent: int) -> Statistics:
        return {"running_mean": torch.zeros(latent), "running_var": torch.ones(latent)}

    def normalise(self, z: Latent, statistics: Statistics) -> Latent:
        return whiten(z, statistics["running_mean"], statistics["running_var"], eps=self.eps)

    def denormalise(self, z: Latent, statistics: Statistics) -> Latent:
        return dewhiten(z, statistics["running_mean"], statistics["running_var"], eps=self.eps)

    def observe(self, z: Latent) -> Float[Tensor, "two z"]:
        z = z.detach().double()
        return torch.stack([z.mean(dim=(0, 2, 3)), z.square().mean(dim=(0, 2, 3))])

    def fit(self, statistics: Statistics, moments: Float[Tensor, "two z"], *, momentum: float) -> None:
        mean, square = moments
        for name, target in (("running_mean", mean), ("running_var", (square - mean.square()).clamp_min(0))):
            statistics[name].lerp_(target.to(statistics[name].dtype), momentum)


@part("latent_norm/none")
class NoNormConfig(LatentNormConfig):
    """Latents as the encoder gives them."""

    def statistics(self, latent: int) -> Statistics:
        return {}

    def normalise(self, z: Latent, statistics: Statistics) -> Latent:
        return z

    def denormalise(self, z: Latent, statistics: Statistics) -> Latent:
        return z

    def observe(self, z: Latent) -> Float[Tensor, "zero z"]:
        return z.new_zeros(0, z.shape[1])

    def fit(self, statistics: Statistics, moments: Float[Tensor, "zero z"], *, momentum: float) -> None:
        return
