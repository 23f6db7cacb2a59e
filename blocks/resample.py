"""Halving and doubling a map, with shortcuts that have no parameters (DC-AE, arXiv 2410.10733, sec. 3.2).

Down: conv(x) + the mean over groups of consecutive channels of pixel_unshuffle(x). Up: conv(x) + pixel_shuffle(x with
each channel repeated). A mean of the four positions of a square, of two neighbours in a row, and copies of those are
what these shortcuts come to at the usual widths; so they are computed, where the rearranged maps would be written and
read again.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .mlp import may_overwrite
from .registry import part
from .shapes import Map
from .slots import DownConfig, UpConfig

Resized = Float[Tensor, "b o i j"]
"""A map of another size or width than the one beside it."""


def average_channels(x: Map, out: int) -> Resized:
    """Means of groups of consecutive channels, as many as there shall be; raises ``ValueError`` if none fit."""
    check_groups(x.shape[1], out)
    return x if x.shape[1] == out else x.unflatten(1, (out, -1)).mean(dim=2)


def repeat_channels(x: Map, out: int) -> Resized:
    """Each channel as often in a row as it takes to have ``out``; raises ``ValueError`` if that is no whole number."""
    check_groups(out, x.shape[1])
    return x if x.shape[1] == out else x.repeat_interleave(out // x.shape[1], dim=1)


def check_groups(many: int, few: int) -> None:
    if many % few:
        raise ValueError(f"shortcut: {many} channels cannot be shared equally among {few}; take a multiple, or none")


def halved(x: Map, out: int) -> Resized:
    """``average_channels(pixel_unshuffle(x, 2), out)``."""
    check_groups(4 * x.shape[1], out)
    group = 4 * x.shape[1] // out
    if group % 4 == 0:
        return average_channels(F.avg_pool2d(x, 2), out)
    if group == 2:
        return rearrange(F.avg_pool2d(x, (1, 2)), "b c (h i) w -> b (c i) h w", i=2)
    return average_channels(F.pixel_unshuffle(x, 2), out)


def add_doubled(y: Resized, x: Map, *, inplace: bool = False) -> Resized:
    """``y + pixel_shuffle(repeat_channels(x, 4 * out), 2)`` with the ``out`` channels of ``y``."""
    b, out, height, width = y.shape
    check_groups(4 * out, x.shape[1])
    repeats = 4 * out // x.shape[1]
    if repeats % 4 == 0:  # a square has one value
        copies = repeat_channels(x, out)[:, :, :, None, :, None]
    elif repeats == 2:  # a row of a square has one
        copies = rearrange(x, "b (c i) h w -> b c h i w 1", i=2)
    else:
        doubled = F.pixel_shuffle(repeat_channels(x, 4 * out), 2)
        return y.add_(doubled) if inplace else y + doubled
    if inplace:
        y.view(b, out, height // 2, 2, width // 2, 2).add_(copies)
        return y
    return y + copies.expand(b, out, height // 2, 2, width // 2, 2).reshape(y.shape)


ENOUGH = 4096
"""Positions of an output from which on kernels for its phases are cheaper to add up than to do without."""


def phase_kernel(weight: Tensor, down: int, right: int) -> Tensor:
    """The 2x2 kernel that does at one of the four positions of a square what 3x3 does there to a map of copies.

    Of the three rows under the upper position, the first lies in the square above and two in this one; under the lower
    position it is two in this one and one in that below. The same holds of columns.
    """
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    for dim, late in ((2, down), (3, right)):
        a, b, c = weight.unbind(dim)
        weight = torch.stack([a + b, c] if late else [a, b + c], dim=dim)
    return weight


def nearest_then_convolved(x: Map, conv: nn.Conv2d, *, shortcut: bool) -> Resized:
    """``add_doubled(conv(nearest(x)), x)`` by four convolutions of 2x2 of the small map: 4 products where 9 were."""
    b, _, height, width = x.shape
    out = conv.out_channels
    copies = repeat_channels(x, max(out, x.shape[1])) if shortcut else x
    y = x.new_empty(b, 2 * height, 2 * width, out).permute(0, 3, 1, 2)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        phase = F.conv2d(x, phase_kernel(conv.weight, down, right).to(x.dtype), conv.bias, padding=1)
        phase = phase[:, :, down : down + height, right : right + width]
        target = y[:, :, down::2, right::2]
        if shortcut:
            torch.add(phase, copies if copies.shape[1] == out else copies[:, down::2], out=target)
        else:
            target.copy_(phase)
    return y


class ResidualDown(nn.Module):
    """Convolution of 3x3 to half the size, strided or with its channels gathered from squares, and the shortcut."""

    def __init__(self, width: int, out: int, *, by: Literal["stride", "unshuffle"], shortcut: bool = True) -> None:
        super().__init__()
        self.out, self.unshuffle, self.shortcut = out, by == "unshuffle", shortcut
        if self.unshuffle and out % 4:
            raise ValueError(f"out: must be divisible by 4, the positions of a square, got {out}")
        if shortcut:
            check_groups(4 * width, out)
        self.conv = nn.Conv2d(width, out // 4 if self.unshuffle else out, 3, 1 if self.unshuffle else 2, padding=1)

    def forward(self, x: Map) -> Resized:
        y = self.conv(x)
        if self.unshuffle:
            y = F.pixel_unshuffle(y, 2)
        if not self.shortcut:
            return y
        short = halved(x, self.out)
        return y.add_(short) if may_overwrite(self.conv) and y.dtype == short.dtype else y + short


class ResidualUp(nn.Module):
    """Twice the size, by copies of positions before a convolution of 3x3 or by squares after it, and the shortcut."""

    def __init__(self, width: int, out: int, *, by: Literal["nearest", "shuffle"], shortcut: bool = True) -> None:
        super().__init__()
        self.shuffle, self.shortcut = by == "shuffle", shortcut
        if shortcut:
            check_groups(4 * out, width)
        self.conv = nn.Conv2d(width, 4 * out if self.shuffle else out, 3, padding=1)

    def forward(self, x: Map) -> Resized:
        device = x.device.type
        cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # not of meta
        free = may_overwrite(self.conv) and not cast
        if free and not self.shuffle and 4 * x.shape[2] * x.shape[3] >= ENOUGH and self._fits(x):
            return nearest_then_convolved(x, self.conv, shortcut=self.shortcut)
        if self.shuffle:
            y = F.pixel_shuffle(self.conv(x), 2)
        else:
            y = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        if not self.shortcut:
            return y
        return add_doubled(y, x, inplace=free)

    def _fits(self, x: Map) -> bool:
        """Whether all positions of a square, or of a row of one, have the same values of the shortcut."""
        repeats = 4 * self.conv.out_channels // x.shape[1]
        return not self.shortcut or repeats == 2 or repeats % 4 == 0


@part("down/strided")
class StridedDownConfig(DownConfig):
    """A convolution of stride 2 (the models sana)."""

    def build(self, width: int, out: int, *, shortcut: bool = True) -> ResidualDown:
        return ResidualDown(width, out, by="stride", shortcut=shortcut)


@part("down/unshuffle")
class UnshuffleDownConfig(DownConfig):
    """A convolution, whose squares of four positions become channels (the models in and mix)."""

    def build(self, width: int, out: int, *, shortcut: bool = True) -> ResidualDown:
        return ResidualDown(width, out, by="unshuffle", shortcut=shortcut)


@part("up/nearest")
class NearestUpConfig(UpConfig):
    """Every position four times, then a convolution (the models sana)."""

    def build(self, width: int, out: int, *, shortcut: bool = True) -> ResidualUp:
        return ResidualUp(width, out, by="nearest", shortcut=shortcut)


@part("up/shuffle")
class ShuffleUpConfig(UpConfig):
    """A convolution, whose channels become squares of four positions (the models in, mix and lite)."""

    def build(self, width: int, out: int, *, shortcut: bool = True) -> ResidualUp:
        return ResidualUp(width, out, by="shuffle", shortcut=shortcut)
