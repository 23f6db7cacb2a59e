"""Pixels to patches and back.

``pixel_unshuffle`` orders channels c·p² + i·p + j, which is also how the kernel of a strided convolution flattens:
the convolution ``[D, c, p, p]`` equals pixel-unshuffle followed by the 1x1 convolution ``[D, c·p², 1, 1]``.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .precision import without_autocast
from .shapes import Map


def patchify(x: Map, patch: int) -> Float[Tensor, "b c_pp h_p w_p"]:
    """Move each ``patch`` x ``patch`` square into channels, ordered c·p² + i·p + j."""
    if not x.numel():  # torch 2.15 gives an empty batch back as it is
        b, c, h, w = x.shape
        return x.new_empty(b, c * patch**2, h // patch, w // patch)
    return F.pixel_unshuffle(x, patch)


def unpatchify(x: Map, patch: int) -> Float[Tensor, "b c_pp h_p w_p"]:
    """Undo :func:`patchify`."""
    if not x.numel():
        b, c, h, w = x.shape
        return x.new_empty(b, c // patch**2, h * patch, w * patch)
    return F.pixel_shuffle(x, patch)


class Patchify(nn.Module):
    """Linear embedding of patches: a convolution whose kernel equals its stride. No norm, no positions.

    It is computed as pixel-unshuffle and a 1x1 convolution: oneDNN's strided convolution in bfloat16 reads memory that
    nobody wrote on CPUs with AMX (torch 2.15, small grids), and gives NaN.
    """

    def __init__(self, channels: int, width: int, *, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Map) -> Float[Tensor, "b c_out h_p w_p"]:
        weight = self.proj.weight
        return F.conv2d(patchify(x, weight.shape[-1]), weight.flatten(1)[:, :, None, None], self.proj.bias)


class Unpatchify(nn.Conv2d):
    """Linear read-out of patches: a 1x1 convolution, then pixel-shuffle; nothing is clamped.

    It computes in the dtype of its weights, under autocast as well: what pixels are read with may be a float32 island.
    """

    def __init__(self, width: int, channels: int, *, patch: int) -> None:
        super().__init__(width, channels * patch**2, 1)
        self.patch = patch

    def forward(self, input: Map) -> Float[Tensor, "b c_out h_p w_p"]:
        with without_autocast(input.device):
            return unpatchify(super().forward(input.to(self.weight.dtype)), self.patch)
