"""What is done to a teacher's tokens before anybody compares with them: named parts that a spec records."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import nn

from .registry import Part, part
from .shapes import Tokens


class StandardiseConfig(Part, ABC):
    """A map of patch tokens ``[b, n, f]``; class and register tokens stay as they are."""

    slot: ClassVar[str] = "standardise"

    @abstractmethod
    def build(self, features: int) -> nn.Module:
        """Build ``forward(tokens: Tokens) -> Tokens``."""


class SpatialZScore(nn.Module):
    """(x - gamma·mean over tokens) / (standard deviation over tokens + eps), for each image and feature, float32."""

    def __init__(self, *, gamma: float, eps: float) -> None:
        super().__init__()
        self.gamma, self.eps = gamma, eps

    def forward(self, tokens: Tokens) -> Tokens:
        x = tokens.float()
        deviation = x.std(dim=1, keepdim=True, correction=0)
        return ((x - self.gamma * x.mean(dim=1, keepdim=True)) / (deviation + self.eps)).to(tokens.dtype)


@part("standardise/spatial")
class SpatialZScoreConfig(StandardiseConfig):
    """The spatial normalisation of iREPA (arXiv 2512.10794): what all tokens of an image share goes, its layout stays.

    The deviation is that of the population (division by n); which one iREPA takes is our reading.

    Attributes:
        gamma: share of the mean that is taken away; 1 takes all of it.
        eps: added to the deviation.
    """

    gamma: float = 1.0
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.eps <= 0:
            raise ValueError(f"eps: must be positive, got {self.eps}")

    def build(self, features: int) -> SpatialZScore:
        return SpatialZScore(gamma=self.gamma, eps=self.eps)


class ChannelZScore(nn.Module):
    """(x - mean) / sqrt(variance + eps) with given statistics of each feature."""

    def __init__(self, mean: torch.Tensor, variance: torch.Tensor, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("mean", mean)
        self.register_buffer("variance", variance)
        self.mean: torch.Tensor
        self.variance: torch.Tensor

    def forward(self, tokens: Tokens) -> Tokens:
        return ((tokens.float() - self.mean) / (self.variance + self.eps).sqrt()).to(tokens.dtype)


@part("standardise/channels")
class ChannelZScoreConfig(StandardiseConfig):
    """Standardisation by the mean and variance of each feature over a data set, written out (RAE, DINO-SAE).

    :func:`fit_channels` measures them.

    Attributes:
        mean, variance: one number a feature.
        eps: added to the variance; RAE takes 1e-5.
    """

    mean: tuple[float, ...]
    variance: tuple[float, ...]
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.variance):
            raise ValueError(f"variance: has {len(self.variance)} numbers where the mean has {len(self.mean)}")
        if any(value < 0 for value in self.variance):
            raise ValueError(f"variance: must not be negative, got {min(self.variance)}")

    def build(self, features: int) -> ChannelZScore:
        if len(self.mean) != features:
            raise ValueError(
                f"standardise.mean: needs one number for each of {features} features, got {len(self.mean)}"
            )
        return ChannelZScore(torch.tensor(self.mean), torch.tensor(self.variance), eps=self.eps)


def fit_channels(batches: Iterable[torch.Tensor], *, eps: float = 1e-5) -> ChannelZScoreConfig:
    """The standardisation of such tokens, ``[b, n, f]`` in each batch: float64 sums over all positions."""
    count, total, square = 0, torch.zeros(()), torch.zeros(())
    for tokens in batches:
        x = tokens.detach().cpu().double().flatten(0, 1)
        count, total, square = count + len(x), total + x.sum(dim=0), square + x.square().sum(dim=0)
    if not count:
        raise ValueError("fit_channels: got no tokens; give at least one batch")
    mean = total / count
    variance = (square / count - mean.square()).clamp_min(0)
    return ChannelZScoreConfig(mean=tuple(mean.tolist()), variance=tuple(variance.tolist()), eps=eps)
