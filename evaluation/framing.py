"""How a picture becomes the square (or whole) that a protocol measures: ADM's crop, Resize + CenterCrop, native size.

The three give other pixels of the same file, and with them other numbers:

- ADM (guided-diffusion): halve by BOX while the short side is at least twice the target, then BICUBIC to the target,
  then the centre, ``(side - size) // 2`` from the top and the left. Pictures stay 8-bit between the steps.
- Resize + CenterCrop (torchvision): the short side to the target, the other to ``int(target · long / short)``; the
  centre is ``round((side - size) / 2)`` away. On tensors, after ToTensor, values between bytes are kept; on pictures
  (PIL) filters always look at all pixels.
- native: no resampling, the centre of sides that divide by the model's stride.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import PIL.Image
import torch.nn.functional as F
from PIL.Image import Resampling

from ..blocks.registry import Part, part
from ..blocks.shapes import Image
from ..families.images import resized, to_pixels, to_signed

FILTERS = {
    "box": Resampling.BOX,
    "bilinear": Resampling.BILINEAR,
    "bicubic": Resampling.BICUBIC,
    "lanczos": Resampling.LANCZOS,
}


class FramingConfig(Part, ABC):
    """From a picture of mode RGB to ``[1, 3, H, W]`` float32 in [-1, 1]."""

    slot: ClassVar[str] = "framing"

    @abstractmethod
    def prepare(self, image: PIL.Image.Image, *, stride: int) -> Image:
        """Raises ``ValueError`` for a picture that is too small, or where the size does not divide by ``stride``."""


def _check_rgb(image: PIL.Image.Image) -> None:
    if image.mode != "RGB":
        raise ValueError(f'mode: takes RGB pictures, got {image.mode}; use image.convert("RGB")')


def _check_size(size: int, stride: int) -> None:
    if size % stride:
        near = max(round(size / stride), 1) * stride
        raise ValueError(f"size: {size} does not divide by the model's stride {stride}; take {near}")


def _positive(config: Part, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}: must be at least 1, got {value}")


@part("framing/adm")
class ADMFramingConfig(FramingConfig):
    """ADM's crop to ``size`` x ``size``; smaller pictures are enlarged."""

    shorthand = "size"

    size: int = 256

    def __post_init__(self) -> None:
        _positive(self, "size")

    def prepare(self, image: PIL.Image.Image, *, stride: int) -> Image:
        _check_rgb(image)
        _check_size(self.size, stride)
        while min(image.size) >= 2 * self.size:
            image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
        scale = self.size / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Resampling.BICUBIC)
        left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
        return to_signed(to_pixels([image.crop((left, top, left + self.size, top + self.size))]))


@part("framing/resize_center")
class ResizeCenterFramingConfig(FramingConfig):
    """The short side to ``size``, then the centre.

    Attributes:
        size: of the square.
        filter: of resampling; tensors know bilinear and bicubic.
        antialias: whether the filter looks at all pixels when it reduces; pictures know no other way.
        on: "tensor" as torchvision after ToTensor, between whose values there are no bytes; "picture" as before it.
    """

    shorthand = "size"

    size: int = 256
    filter: Literal["bilinear", "bicubic", "box", "lanczos"] = "bilinear"
    antialias: bool = True
    on: Literal["tensor", "picture"] = "tensor"

    def __post_init__(self) -> None:
        _positive(self, "size")
        if self.on == "tensor" and self.filter not in ("bilinear", "bicubic"):
            raise ValueError(f"filter: tensors are resampled by 'bilinear' or 'bicubic', got {self.filter!r}")
        if self.on == "picture" and not self.antialias:
            raise ValueError("antialias: pictures are always antialiased; take on='tensor' to leave it out")

    def prepare(self, image: PIL.Image.Image, *, stride: int) -> Image:
        _check_rgb(image)
        _check_size(self.size, stride)
        short = min(image.size)
        width, height = (self.size if s == short else int(self.size * s / short) for s in image.size)
        left, top = (round((side - self.size) / 2) for side in (width, height))
        if self.on == "picture":
            image = image.resize((width, height), FILTERS[self.filter])
            return to_signed(to_pixels([image.crop((left, top, left + self.size, top + self.size))]))
        x = to_signed(to_pixels([image]))
        if (width, height) != image.size:
            x = F.interpolate(x, (height, width), mode=self.filter, antialias=self.antialias, align_corners=False)
        return x[:, :, top : top + self.size, left : left + self.size].clamp(-1, 1).contiguous()


@part("framing/native")
class NativeFramingConfig(FramingConfig):
    """The centre of the picture, of sides that divide by the model's stride and by ``multiple``.

    ``longer_side`` first reduces larger pictures to it, bicubically; None keeps native size.
    """

    multiple: int = 1
    longer_side: int | None = None

    def __post_init__(self) -> None:
        _positive(self, "multiple", "longer_side")

    def prepare(self, image: PIL.Image.Image, *, stride: int) -> Image:
        _check_rgb(image)
        if self.longer_side is not None and max(image.size) > self.longer_side:
            factor = self.longer_side / max(image.size)
            image = resized(image, *(max(round(side * factor), 1) for side in (image.height, image.width)))
        unit = math.lcm(stride, self.multiple)
        width, height = (side // unit * unit for side in image.size)
        if not (width and height):
            raise ValueError(
                f"size: must be at least {unit}x{unit}, got {image.height}x{image.width}; leave the picture out"
            )
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return to_signed(to_pixels([image.crop((left, top, left + width, top + height))]))


@part("framing/as_is")
class AsIsFramingConfig(FramingConfig):
    """The picture as it is, for samples that a generator wrote; ``size`` None takes any."""

    shorthand = "size"

    size: int | None = None

    def __post_init__(self) -> None:
        _positive(self, "size")

    def prepare(self, image: PIL.Image.Image, *, stride: int) -> Image:
        _check_rgb(image)
        if self.size is not None and image.size != (self.size, self.size):
            raise ValueError(f"size: must be {self.size}x{self.size}, got {image.height}x{image.width}")
        if image.width % stride or image.height % stride:
            raise ValueError(
                f"size: {image.height}x{image.width} does not divide by the model's stride {stride}; "
                "take 'framing/native'"
            )
        return to_signed(to_pixels([image]))
