"""Statistics of a latent space, as float64 sums that add: over batches, and over parts of a set.

Latents come as ``encode`` gives them. Kurtosis is E(z - m)⁴/var², 3 for a Gaussian. Effective rank is the exponential
of the entropy of the eigenvalues of the covariance over channels (Roy & Vetterli, EUSIPCO 2007). The variation of
norms is their standard deviation over their mean, for tokens and for whole images (per root of the number of values).

Of a diagonal Gaussian posterior N(m, s²), ``bits_per_value`` is E[½ log2(var/s²)] with var the variance of samples per
channel: the mean divergence from the best Gaussian per channel, an upper bound on what a value tells of the image,
whatever the scale of the latents. ``kl_bits_per_value`` is the divergence from N(0, 1), which depends on that scale.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..blocks.shapes import Latent

Sum = Tensor | int
S = TypeVar("S", bound="Sums")


@dataclass
class Sums:
    """Sums over items, of which those of two parts add up to those of the whole."""

    def merge(self: S, other: S) -> S:
        """The sums of both parts together."""
        return type(self)(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass
class LatentStatistics(Sums):
    """Moments per channel, covariance of channels, variation of norms."""

    positions: int = 0
    images: int = 0
    powers: Sum = 0
    products: Sum = 0
    token_norms: Sum = 0
    image_norms: Sum = 0

    def update(self, latents: Latent) -> None:
        z = rearrange(latents.detach().cpu().double(), "b z h w -> z (b h w)")
        self.positions += z.shape[1]
        self.images += len(latents)
        self.powers = self.powers + torch.stack([(z**k).sum(dim=1) for k in (1, 2, 3, 4)])
        self.products = self.products + z @ z.T
        squares = rearrange(z.square().sum(dim=0), "(b n) -> b n", b=len(latents))
        self.token_norms = self.token_norms + _count_sum_square(squares.sqrt())
        self.image_norms = self.image_norms + _count_sum_square((squares.sum(dim=1) / z.shape[0]).sqrt())

    def report(self) -> dict[str, Any]:
        """Numbers and lists as JSON holds them; ``variance_fractions[k]`` is the share of the first k components."""
        if isinstance(self.powers, int) or isinstance(self.products, int):
            raise ValueError("latents: none were seen; update first")
        m1, m2, m3, m4 = self.powers / self.positions
        variance = (m2 - m1**2).clamp_min(0)
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        covariance = self.products / self.positions - torch.outer(m1, m1)
        spectrum = torch.linalg.eigvalsh(covariance).flip(0).clamp_min(0)
        shares = spectrum / spectrum.sum() if spectrum.sum() > 0 else spectrum
        channels = len(m1)
        steps = [k for k in (2**i for i in range(channels.bit_length())) if k < channels] + [channels]
        return {
            "channels": channels,
            "images": self.images,
            "positions": self.positions,
            "mean": m1.tolist(),
            "std": variance.sqrt().tolist(),
            "kurtosis": [(f / v**2).item() if v > 1e-12 else None for f, v in zip(fourth, variance, strict=True)],
            "norm_variation": {"token": _variation(self.token_norms), "image": _variation(self.image_norms)},
            "effective_rank": torch.exp(torch.special.entr(shares).sum()).item(),
            "variance_fractions": {str(k): shares[:k].sum().item() for k in steps},
            "spectrum": shares.tolist(),
        }


@dataclass
class PosteriorStatistics(Sums):
    """How much a diagonal Gaussian posterior can tell: divergences in bits."""

    positions: int = 0
    sums: Sum = 0

    def update(self, mode: Latent, sigma: Latent) -> None:
        """``mode`` and ``sigma`` are mean and standard deviation of the raw latents."""
        m, s = (rearrange(x.detach().cpu().double(), "b z h w -> z (b h w)") for x in (mode, sigma))
        self.positions += m.shape[1]
        self.sums = self.sums + torch.stack([x.sum(dim=1) for x in (m, m**2, s**2, s.log2())])

    def report(self, *, values_per_pixel: float) -> dict[str, Any]:
        """Bits a value and a pixel; None for a deterministic posterior, whose information has no bound."""
        if isinstance(self.sums, int):
            raise ValueError("posteriors: none were seen; update first")
        mean, mean_square, noise, log2_sigma = self.sums / self.positions
        variance = mean_square - mean**2 + noise
        bits = (0.5 * variance.log2() - log2_sigma).mean().item()
        divergence = (0.5 * (mean_square + noise - 1) / math.log(2) - log2_sigma).mean().item()
        known = math.isfinite(bits)
        return {
            "bits_per_value": bits if known else None,
            "bits_per_pixel": bits * values_per_pixel if known else None,
            "kl_bits_per_value": divergence if known else None,
            "sigma": noise.mean().sqrt().item(),
        }


def _count_sum_square(x: Tensor) -> Float[Tensor, " three"]:
    return torch.stack([torch.tensor(x.numel(), dtype=x.dtype), x.sum(), x.square().sum()])


def _variation(sums: Sum) -> float | None:
    assert isinstance(sums, Tensor)
    count, total, square = sums.tolist()
    mean = total / count
    return math.sqrt(max(square / count - mean**2, 0)) / mean if mean else None


def evenly_spaced(total: int, most: int) -> Iterable[int]:
    """At most ``most`` indices, spread over ``range(total)``."""
    count = min(total, most)
    return (i * total // count for i in range(count))
