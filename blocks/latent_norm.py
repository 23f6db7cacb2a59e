"""Latent normalisers: what stands between raw latents and the space that ``encode`` returns.

Whitening is per channel: whiten(z) = (z - m) / sqrt(v + eps), in float32, with running statistics m and v. Other
people's latents are multiplied by one number, (z - shift)·scale (SD, SD3, FLUX.1, DC-AE), normalised per channel,
(z - mean)·scale/std (VA-VAE, SDXL with statistics), or per position, (z - mean) / sqrt(var + eps) (RAE). All of it is
float32 arithmetic.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .latent_space import UNKNOWN, fingerprint
from .registry import part
from .shapes import Latent
from .slots import LatentNormConfig, Statistics

SMALLEST = 1e-12
"""A variance below this is taken for this, where it is divided by without an eps."""


def norm_fingerprint(norm: LatentNormConfig, statistics: Statistics) -> str:
    """Fingerprint of statistics, and of those settings of a normaliser that change what they do."""
    return fingerprint(statistics | {name: torch.tensor(value) for name, value in norm.constants.items()})


def known_normalisation(norm: LatentNormConfig, channels: int) -> str:
    """What a spec says of a normaliser before anything is read: its fingerprint, or ``UNKNOWN`` without statistics."""
    if not norm.fixed:
        return UNKNOWN
    with torch.device("cpu"):  # the numbers are needed where a model is planned on meta, too
        return norm_fingerprint(norm, norm.statistics(channels))


def _moments(z: Latent) -> Float[Tensor, "two z"]:
    z = z.detach().double()
    return torch.stack([z.mean(dim=(0, 2, 3)), z.square().mean(dim=(0, 2, 3))])


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

    @property
    def constants(self) -> Mapping[str, float]:
        return {} if self.eps == 1e-4 else {"eps": self.eps}

    def statistics(self, latent: int) -> Statistics:
        return {"running_mean": torch.zeros(latent), "running_var": torch.ones(latent)}

    def normalise(self, z: Latent, statistics: Statistics) -> Latent:
        return whiten(z, statistics["running_mean"], statistics["running_var"], eps=self.eps)

    def denormalise(self, z: Latent, statistics: Statistics) -> Latent:
        return dewhiten(z, statistics["running_mean"], statistics["running_var"], eps=self.eps)

    def observe(self, z: Latent) -> Float[Tensor, "two z"]:
        return _moments(z)

    def fit(self, statistics: Statistics, moments: Float[Tensor, "two z"], *, momentum: float) -> None:
        mean, square = moments
        for name, target in (("running_mean", mean), ("running_var", (square - mean.square()).clamp_min(0))):
            statistics[name].lerp_(target.to(statistics[name].dtype), momentum)


@part("latent_norm/scale_shift")
class ScaleShiftConfig(LatentNormConfig):
    """(z - shift)·scale, two numbers for all channels; back it is z/scale + shift."""

    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale: must be positive, got {self.scale}")

    @property
    def fixed(self) -> bool:
        return True

    def statistics(self, latent: int) -> Statistics:
        return {"scale": torch.tensor(self.scale), "shift": torch.tensor(self.shift)}

    def normalise(self, z: Latent, statistics: Statistics) -> Latent:
        return ((z.float() - statistics["shift"]) * statistics["scale"]).to(z.dtype)

    def denormalise(self, z: Latent, statistics: Statistics) -> Latent:
        return (z.float() / statistics["scale"] + statistics["shift"]).to(z.dtype)

    def observe(self, z: Latent) -> Float[Tensor, "two z"]:
        return _moments(z)

    def fit(self, statistics: Statistics, moments: Float[Tensor, "two z"], *, momentum: float) -> None:
        mean, square = moments.mean(dim=1)
        scale = (square - mean.square()).clamp_min(SMALLEST).rsqrt()
        for name, target in (("scale", scale), ("shift", mean)):
            statistics[name].lerp_(target.to(statistics[name].dtype), momentum)


@part("latent_norm/channels")
class ChannelNormConfig(LatentNormConfig):
    """(z - mean)·scale/std per channel; back it is z·std/scale + mean. The order is that of SDXL's pipeline.

    Attributes:
        scale: multiplies what has unit variance.
        mean, std: of each channel, where they are known beforehand.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale: must be positive, got {self.scale}")
        if len(self.mean) != len(self.std):
            raise ValueError(f"std: must have as many numbers as mean, {len(self.mean)}, got {len(self.std)}")
        if any(value <= 0 for value in self.std):
            raise ValueError(f"std: must be positive, got {min(self.std)}")

    @property
    def fixed(self) -> bool:
        return bool(self.mean)

    @property
    def constants(self) -> Mapping[str, float]:
        return {} if self.scale == 1 else {"scale": self.scale}

    def statistics(self, latent: int) -> Statistics:
        if self.mean and len(self.mean) != latent:
            raise ValueError(f"{self.kind}: has statistics of {len(self.mean)} channels, where latents have {latent}")
        if self.mean:
            return {"mean": torch.tensor(self.mean), "std": torch.tensor(self.std)}
        return {"mean": torch.zeros(latent), "std": torch.ones(latent)}

    def normalise(self, z: Latent, statistics: Statistics) -> Latent:
        return ((z.float() - _column(statistics["mean"])) * self.scale / _column(statistics["std"])).to(z.dtype)

    def denormalise(self, z: Latent, statistics: Statistics) -> Latent:
        return (z.float() * _column(statistics["std"]) / self.scale + _column(statistics["mean"])).to(z.dtype)

    def observe(self, z: Latent) -> Float[Tensor, "two z"]:
        return _moments(z)

    def fit(self, statistics: Statistics, moments: Float[Tensor, "two z"], *, momentum: float) -> None:
        mean, square = moments
        std = (square - mean.square()).clamp_min(SMALLEST).sqrt()
        for name, target in (("mean", mean), ("std", std)):
            statistics[name].lerp_(target.to(statistics[name].dtype), momentum)


@part("latent_norm/positions")
class PositionNormConfig(LatentNormConfig):
    """(z - mean)·scale / sqrt(var + eps) with statistics ``[z, h, w]``, which bind the resolution (RAE).

    Attributes:
        grid: rows and columns that the statistics are of; (1, 1) has the same ones everywhere, for every size.
        form: "official" divides by sqrt(var + eps), "diffusers" by sqrt(var + eps) + eps: a relative difference of
            about eps/std.
        elsewhere: at another resolution, "refuse", or take the statistics of each "channel" over all positions.
    """

    grid: tuple[int, int] = (1, 1)
    eps: float = 1e-5
    scale: float = 1.0
    form: Literal["official", "diffusers"] = "official"
    elsewhere: Literal["refuse", "channel"] = "refuse"

    def __post_init__(self) -> None:
        if min(self.grid) < 1:
            raise ValueError(f"grid: must be at least 1x1, got {self.grid[0]}x{self.grid[1]}")
        for name in ("eps", "scale"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: must be positive, got {getattr(self, name)}")

    @property
    def by_position(self) -> bool:
        return self.grid != (1, 1)

    @property
    def constants(self) -> Mapping[str, float]:
        usual = {"eps": 1e-5, "scale": 1.0}
        ours = {name: getattr(self, name) for name, value in usual.items() if getattr(self, name) != value}
        return ours if self.form == "official" else ours | {"added_eps": self.eps}

    def statistics(self, latent: int) -> Statistics:
        return {"mean": torch.zeros(latent, *self.grid), "var": torch.ones(latent, *self.grid)}

    def normalise(self, z: Latent, statistics: Statistics) -> Latent:
        mean, std = self._at(z, statistics)
        return ((z.float() - mean) / std * self.scale).to(z.dtype)

    def denormalise(self, z: Latent, statistics: Statistics) -> Latent:
        mean, std = self._at(z, statistics)
        return (z.float() / self.scale * std + mean).to(z.dtype)

    def _at(self, z: Latent, statistics: Statistics) -> tuple[Float[Tensor, "z i j"], Float[Tensor, "z i j"]]:
        mean, var = statistics["mean"].float(), statistics["var"].float()
        if self.grid != (1, 1) and tuple(z.shape[2:]) != self.grid:
            if self.elsewhere == "refuse":
                raise ValueError(self._refusal(z))
            inside = mean.mean(dim=(1, 2), keepdim=True)  # the variance of all positions together
            var = (var + (mean - inside).square()).mean(dim=(1, 2), keepdim=True)
            mean = inside
        std = torch.sqrt(var + self.eps)
        return mean, std + self.eps if self.form == "diffusers" else std

    def _refusal(self, z: Latent) -> str:
        return (
            f"latent_norm/positions: has statistics of a {self.grid[0]}x{self.grid[1]} grid, and these latents are "
            f"{z.shape[2]}x{z.shape[3]}; take images of the resolution that they were fitted on, fit anew, or choose "
            "elsewhere='channel' to reduce them to one mean and variance a channel"
        )

    def observe(self, z: Latent) -> Float[Tensor, "two z i j"]:
        if self.grid != (1, 1):
            if tuple(z.shape[2:]) != self.grid:
                raise ValueError(self._refusal(z))
            z = z.detach().double()
            return torch.stack([z.mean(dim=0), z.square().mean(dim=0)])
        return _moments(z)[:, :, None, None]

    def fit(self, statistics: Statistics, moments: Float[Tensor, "two z i j"], *, momentum: float) -> None:
        mean, square = moments
        for name, target in (("mean", mean), ("var", (square - mean.square()).clamp_min(0))):
            statistics[name].lerp_(target.to(statistics[name].dtype), momentum)


@part("latent_norm/none")
class NoNormConfig(LatentNormConfig):
    """Latents as the encoder gives them."""

    @property
    def fixed(self) -> bool:
        return True

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
