"""Norms over channels and over space.

- RMSNorm: x / sqrt(mean_c x² + eps) (Zhang and Sennrich, arXiv 1910.07467, eq. 4).
- Per pixel, with weight and bias (DC-AE, arXiv 2410.10733): w·x / sqrt(mean_c x² + eps) + b.
- GRN: gamma·(x·N) + beta + x with N = G / (mean_c G + eps), G = L2 norm over space (ConvNeXt V2, arXiv 2301.00808,
  alg. 1).

Means of squares, norms and their quotients are float32; the result has the dtype of the input.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .shapes import Map


class RMSNorm(nn.Module):
    """RMSNorm over the last axis; ``affine`` adds a weight for each channel, rounded to the dtype of the input."""

    def __init__(self, width: int, *, eps: float = 1e-6, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None

    def forward(self, x: Float[Tensor, "*axes c"]) -> Float[Tensor, "*axes c"]:
        if x.dtype == torch.float32 and x.device.type == "cpu" and not torch.compiler.is_compiling():
            return self._in_two_passes(x)
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, x.shape[-1:], weight, self.eps)

    def _in_two_passes(self, x: Float[Tensor, "*axes c"]) -> Float[Tensor, "*axes c"]:
        """The same without a map of squares, which torch's own makes on a CPU."""
        strength = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        y = x * torch.rsqrt(strength.square() / x.shape[-1] + self.eps)
        if self.weight is None:
            return y
        weight = self.weight.to(x.dtype)
        return y * weight if torch.is_grad_enabled() else y.mul_(weight)


def channel_rms_norm(x: Map, *, eps: float = 1e-6) -> Map:
    """Divide each position by the root mean square of its channels.

    The square is taken in the input's dtype, its mean in float32, and the reciprocal root is cast back, which is how
    the published models were trained.
    """
    mean_square = x.square().mean(dim=1, keepdim=True, dtype=torch.float32)
    return x * torch.rsqrt(mean_square + eps).to(x.dtype)


class ChannelRMSNorm(nn.Module):
    """RMSNorm over the channels of a map; ``affine`` adds a weight and a bias for each channel."""

    def __init__(self, width: int, *, eps: float = 1e-6, affine: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None

    def forward(self, x: Map) -> Map:
        y = channel_rms_norm(x, eps=self.eps)
        if self.weight is not None and self.bias is not None:
            y = y * self.weight.to(y.dtype)[:, None, None] + self.bias.to(y.dtype)[:, None, None]
        return y


class PixelRMSNorm(nn.Module):
    """RMSNorm of each position over its channels, with a weight and a bias; the square is float32 as well.

    ``inplace`` writes the result over the input. A norm undoes a factor: one ``[b, 1, h, w]`` that was put into the
    input, lest it overflow, is given as ``factor``, for the sake of ``eps``.
    """

    def __init__(self, width: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Map, *, inplace: bool = False, factor: Tensor | None = None) -> Map:
        wide = torch.promote_types(x.dtype, torch.float32)
        strength = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=wide)
        eps = self.eps if factor is None else self.eps * factor.square()
        scale = torch.rsqrt(strength.square() / x.shape[1] + eps)
        weight, bias = self.weight[:, None, None], self.bias[:, None, None]
        if inplace:
            # mixed dtypes go through copies; a small scale has no place in float16
            scale = scale.to(x.dtype) if x.dtype == torch.bfloat16 else scale
            return x.mul_(scale).mul_(weight).add_(bias)
        return torch.addcmul(bias.to(wide), x * scale, weight.to(wide)).to(x.dtype)


class PixelBatchNorm(nn.BatchNorm2d):
    """Batch normalisation with torch's defaults; ``inplace`` writes the result over the input, out of training."""

    def forward(self, input: Map, *, inplace: bool = False) -> Map:
        if not inplace or self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        scale = self.weight.float() * torch.rsqrt(self.running_var.float() + self.eps)
        shift = self.bias.float() - self.running_mean.float() * scale
        return input.mul_(scale.to(input.dtype)[:, None, None]).add_(shift.to(input.dtype)[:, None, None])


def response_norm(x: Map, *, eps: float = 1e-6) -> Tensor:
    """Return N ``[b, c, 1, 1]``, at least float32: how strong each channel is over the map, relative to the others."""
    # not the root of a sum of squares: that makes a squared copy, and no gradient where a channel is dead
    wide = torch.promote_types(x.dtype, torch.float32)
    strength = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True, dtype=wide)
    return strength / (strength.mean(dim=1, keepdim=True) + eps)


class GRN(nn.Module):
    """Global response normalisation, born as the identity. Its statistics see the whole map: crops change results.

    ``inplace`` writes the result over the input.
    """

    def __init__(self, width: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, x: Map, *, inplace: bool = False) -> Map:
        scale = (1 + self.gamma * response_norm(x, eps=self.eps)).to(x.dtype)
        beta = self.beta.to(x.dtype)
        return x.mul_(scale).add_(beta) if inplace else x * scale + beta
