"""How a picture of any size becomes the input of a network, by named rules: the rules differ by more than a tenth of a
teacher's tokens (REPA, RAE, VA-VAE, dgm-eval and EDM2 each have another), so that each is a part that a spec records.

A rule says which size the network sees, how pixels are resampled, and whether that happens before or after the
normalisation. Sizes are (height, width). A token of the network covers ``patch`` pixels of its input.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from .registry import Part, part

Size = tuple[int, int]


class SizeError(ValueError):
    """An image has a size that a teacher does not take; says which would do."""


class ResizeConfig(Part, ABC):
    """Which size a network sees, and how its pixels are made.

    Attributes:
        mode, antialias: of the resampling (``torch.nn.functional.interpolate``).
        order: "resize_first", then normalise; or "normalise_first" as REPA does. The two differ by rounding.
    """

    slot: ClassVar[str] = "resize"
    mode: Literal["bicubic", "bilinear"]
    antialias: bool
    order: Literal["resize_first", "normalise_first"]

    @abstractmethod
    def input_size(self, size: Size, patch: int) -> Size:
        """The size that the network sees of an image; raises :class:`SizeError` where the rule has none."""

    def apply(self, images: Tensor, patch: int) -> Tensor:
        """Images ``[b, c, H, W]``, float32, at the size that the network sees."""
        height, width = images.shape[2:]
        size = self.input_size((height, width), patch)
        if size == (height, width):
            return images
        return F.interpolate(images, size, mode=self.mode, align_corners=False, antialias=self.antialias)


def check_divides(size: Size, unit: int, *, hint: str = "") -> None:
    """Raise :class:`SizeError` where a side is no positive multiple of ``unit``."""
    height, width = size
    if height % unit or width % unit or not (height and width):
        fit = "x".join(str(max(side // unit, 1) * unit) for side in size)
        raise SizeError(f"takes sizes divisible by {unit}, got {height}x{width}; {fit} would do{hint}")


@part("resize/none")
class NoResizeConfig(ResizeConfig):
    """The network sees the image as it is, whose sides must be multiples of the patch."""

    mode: Literal["bicubic", "bilinear"] = "bicubic"
    antialias: bool = True
    order: Literal["resize_first", "normalise_first"] = "resize_first"

    def input_size(self, size: Size, patch: int) -> Size:
        check_divides(size, patch, hint=", and so would another 'resize'")
        return size


@part("resize/stride")
class StrideResizeConfig(ResizeConfig):
    """Each square of ``stride`` pixels becomes one patch: the tokens lie on the grid of latents of that stride.

    With a patch of 14 and a stride of 16, 256 x 384 pixels become 224 x 336, and 16 x 24 tokens. Sides must be
    multiples of the stride.
    """

    stride: int = 16
    mode: Literal["bicubic", "bilinear"] = "bicubic"
    antialias: bool = True
    order: Literal["resize_first", "normalise_first"] = "resize_first"

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"stride: must be at least 1, got {self.stride}")

    def input_size(self, size: Size, patch: int) -> Size:
        check_divides(size, self.stride)
        return size[0] // self.stride * patch, size[1] // self.stride * patch


@part("resize/fixed")
class FixedResizeConfig(ResizeConfig):
    """Every image becomes ``height`` x ``width`` pixels, whatever its own form: multiples of the patch."""

    height: int = 224
    width: int = 224
    mode: Literal["bicubic", "bilinear"] = "bicubic"
    antialias: bool = True
    order: Literal["resize_first", "normalise_first"] = "resize_first"

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")

    def input_size(self, size: Size, patch: int) -> Size:
        check_divides((self.height, self.width), patch, hint=" in its 'resize'")
        return self.height, self.width


@part("resize/nearest")
class NearestResizeConfig(ResizeConfig):
    """Each side becomes the nearest multiple of the patch, at least one: for pictures of any size."""

    mode: Literal["bicubic", "bilinear"] = "bicubic"
    antialias: bool = True
    order: Literal["resize_first", "normalise_first"] = "resize_first"

    def input_size(self, size: Size, patch: int) -> Size:
        height, width = (max(round(side / patch), 1) * patch for side in size)
        return height, width
