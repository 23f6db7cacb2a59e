"""Objectives as functions of tensors; each returns one number, the mean over the batch, in float32."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .shapes import Image, Latent, Times, Tokens

Scalar = Float[Tensor, ""]


def weighted_square_error(x0: Image, target: Image, weight: Times) -> Scalar:
    """Mean squared error per image, times the weight of its noise level, averaged (SiD2, arXiv 2410.19324)."""
    error = (x0.float() - target.float()).square().mean(dim=(1, 2, 3))
    return (weight * error).mean()


def variance_expansion(logsnr: Latent) -> Scalar:
    """mean softplus(lambda) = mean(-log sigma²): the variance half of a KL divergence; falls as noise grows.

    Where lambda is infinite there is no variance to expand, and the term is 0: a deterministic encoder trains.
    """
    logsnr = logsnr.float()
    return F.softplus(torch.where(logsnr == torch.inf, -torch.inf, logsnr)).mean()


def inverse_variance(logsnr: Latent, *, delta: float = 1e-6) -> Scalar:
    """mean 1/(sigma² + delta), the variance expansion of arXiv 2603.21085, with sigma² = sigmoid(-lambda)."""
    return (torch.sigmoid(-logsnr.float()) + delta).reciprocal().mean()


def latent_scale(mean: Latent) -> Scalar:
    """Mean over images and channels of (RMS over space - 1)²: keeps mu from outgrowing the noise."""
    rms = (mean.float().square().mean(dim=(2, 3)) + 1e-12).sqrt()  # a map of zeros must have a gradient
    return (rms - 1).square().mean()


def latent_energy(mean: Latent) -> Scalar:
    """mean(mu²)/2: the mean half of a KL divergence."""
    return mean.float().square().mean() / 2


def negative_cosine(prediction: Tokens, target: Tokens) -> Scalar:
    """Minus the cosine of each predicted token with its target, averaged over tokens and batch; in [-1, 1]."""
    return -F.cosine_similarity(prediction.float(), target.float(), dim=-1).mean()


def smooth_l1(prediction: Tokens, target: Tokens) -> Scalar:
    """Huber loss with threshold 1, averaged over everything."""
    return F.smooth_l1_loss(prediction.float(), target.float())
