"""Latent stems: the convolutions by which a bridge reads the latents of one autoencoder, on the grid of its body.

==================== ============================================================================================
stem/residual        3x3 to ``mid`` channels, residual stages to ``out``, 1x1 to the body's width (default)
stem/strided_conv    3x3 convolutions, SiLU between them, 1x1 to the body's width
stem/patchify        squares of positions moved into channels, and 1x1
==================== ============================================================================================

The sizes 256 and 512 and the depth of 2 are those of the model card kingsidharth/sd_vae_2_dino_v2_bridge, whose layers
are not published; these are ours. A stage of the residual stem is S(x) + conv3x3(SiLU(norm(x))) with S that has no
weights: squares of positions become channels as in ``patch.py``, and channels are averaged in groups, or repeated, to
their new number (the residual down-sampling of DC-AE, arXiv 2410.10733, sec. 3.1).
"""

import torch.nn.functional as F
from einops import reduce, repeat
from jaxtyping import Float
from torch import Tensor, nn

from .norm import ChannelRMSNorm
from .patch import Patchify, patchify
from .registry import part
from .shapes import Latent, Map
from .slots import LatentStemConfig

Coarse = Float[Tensor, "b c_out h_p w_p"]
"""A map on the same grid or a coarser one."""


def halvings(stride: int) -> int:
    """How often a side is halved for a stride, which must be a power of 2.

    Raises:
        ValueError: it is none.
    """
    count = stride.bit_length() - 1
    if stride != 2**count:
        raise ValueError(f"stride: convolutions make powers of 2, got {stride}; 'stem/patchify' makes any stride")
    return count


def refold(x: Map, out: int, stride: int) -> Coarse:
    """A map on a grid ``stride`` times as coarse, in ``out`` channels: means of groups of its numbers, or copies.

    ``out`` divides the ``c·stride²`` numbers of a square of positions, or is a multiple of them.
    """
    x = patchify(x, stride) if stride > 1 else x
    if x.shape[1] >= out:
        return reduce(x, "b (c group) h w -> b c h w", "mean", c=out)
    return repeat(x, "b c h w -> b (c copies) h w", copies=out // x.shape[1])


class ResidualStage(nn.Module):
    """S(x) + conv3x3(SiLU(norm(x))); see the module's text."""

    def __init__(self, channels: int, out: int, *, stride: int) -> None:
        super().__init__()
        self.out, self.stride = out, stride
        self.norm = ChannelRMSNorm(channels, affine=True)
        self.conv = nn.Conv2d(channels, out, 3, stride=stride, padding=1)

    def forward(self, x: Map) -> Coarse:
        return refold(x, self.out, self.stride) + self.conv(F.silu(self.norm(x)))


class ResidualStem(nn.Module):
    """3x3 convolution, residual stages of which the first ones halve the grid, 1x1 convolution."""

    def __init__(self, *, channels: int, width: int, mid: int, out: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, mid, 3, padding=1)
        sizes = [mid, *[out] * len(strides)]
        self.stages = nn.ModuleList(
            ResidualStage(size, out, stride=stride) for size, stride in zip(sizes, strides, strict=False)
        )
        self.proj = nn.Conv2d(sizes[-1], width, 1)

    def forward(self, latent: Latent) -> Coarse:
        x = self.conv_in(latent)
        for stage in self.stages:
            x = stage(x)
        return self.proj(x)


@part("stem/residual")
class ResidualStemConfig(LatentStemConfig):
    """3x3 convolution to ``mid`` channels, ``depth`` residual stages to ``out``, 1x1 to the body's width.

    The first stages halve the grid as often as the stride asks for; the others keep it.

    Attributes:
        stride: latent positions a side that become one token, or None for what the teacher's grid asks for.
    """

    mid: int = 256
    out: int = 512
    depth: int = 2
    stride: int | None = None

    def __post_init__(self) -> None:
        _at_least_one(self, "mid", "out", "stride")
        if self.depth < 0:
            raise ValueError(f"depth: must not be negative, got {self.depth}")
        for count in {self.mid, 4 * self.mid, 4 * self.out} if self.depth else ():
            if count % self.out and self.out % count:
                raise ValueError(f"out: must divide {count} or be divisible by it, for the residual, got {self.out}")
        if self.stride is not None:
            self._strides(self.stride)

    def _strides(self, stride: int) -> tuple[int, ...]:
        steps = halvings(stride)
        if steps > self.depth:
            raise ValueError(
                f"depth: a stride of {stride} halves the grid {steps} times, one in a stage; take a depth of {steps}, "
                f"got {self.depth}"
            )
        return (2,) * steps + (1,) * (self.depth - steps)

    def build(self, *, channels: int, width: int, stride: int) -> ResidualStem:
        return ResidualStem(channels=channels, width=width, mid=self.mid, out=self.out, strides=self._strides(stride))


class StridedConvStem(nn.Module):
    """3x3 convolutions with SiLU between them, 1x1 convolution."""

    def __init__(self, *, channels: int, width: int, sizes: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        before = (channels, *sizes)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=stride, padding=1) for a, b, stride in zip(before, sizes, strides, strict=False)
        )
        self.proj = nn.Conv2d(before[len(strides)], width, 1)

    def forward(self, latent: Latent) -> Coarse:
        x = latent
        for conv in self.convs:
            x = F.silu(conv(x))
        return self.proj(x)


@part("stem/strided_conv")
class StridedConvStemConfig(LatentStemConfig):
    """``depth`` 3x3 convolutions, the first to ``mid`` channels and the others to ``out``, 1x1 to the body's width.

    The first ones halve the grid as often as the stride asks for; the others keep it.

    Attributes:
        stride: latent positions a side that become one token, or None for what the teacher's grid asks for.
    """

    mid: int = 256
    out: int = 512
    depth: int = 2
    stride: int | None = None

    def __post_init__(self) -> None:
        _at_least_one(self, "mid", "out", "depth", "stride")
        if self.stride is not None:
            self._strides(self.stride)

    def _strides(self, stride: int) -> tuple[int, ...]:
        steps = halvings(stride)
        if steps > self.depth:
            raise ValueError(
                f"depth: a stride of {stride} halves the grid {steps} times, once in a convolution; "
                f"take a depth of {steps}, got {self.depth}"
            )
        return (2,) * steps + (1,) * (self.depth - steps)

    def build(self, *, channels: int, width: int, stride: int) -> StridedConvStem:
        sizes = (self.mid, *[self.out] * (self.depth - 1))
        return StridedConvStem(channels=channels, width=width, sizes=sizes, strides=self._strides(stride))


@part("stem/patchify")
class PatchifyStemConfig(LatentStemConfig):
    """Squares of positions, each by one linear map; with a stride of 1, a 1x1 convolution: without depth or context.

    Attributes:
        stride: latent positions a side that become one token, or None for what the teacher's grid asks for.
    """

    stride: int | None = None

    def __post_init__(self) -> None:
        _at_least_one(self, "stride")

    def build(self, *, channels: int, width: int, stride: int) -> Patchify:
        return Patchify(channels, width, patch=stride)


def _at_least_one(config: LatentStemConfig, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}: must be at least 1, got {value}")
