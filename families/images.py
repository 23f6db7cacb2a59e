"""Pictures from files to tensors: decoding to 8-bit RGB, central crops, and the range [-1, 1].

Whatever Pillow reads is taken. EXIF orientation is applied. Transparent pixels are composited over white, as on a
page. Of 16-bit samples the high byte is kept, which is exact for pictures that once were 8-bit. Colour profiles are not
applied. Of an animation the first frame counts.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import PIL.Image
import torch
from jaxtyping import UInt8
from PIL.Image import Resampling, Transpose
from torch import Tensor

from ..blocks.shapes import Image

SUFFIXES = (".avif", ".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Names that end so, in small letters or capitals, are pictures where a whole folder is read."""

Pixels = UInt8[Tensor, "b 3 H W"]

_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {  # what turns a picture of that orientation upright
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_LYING = (5, 6, 7, 8)


class ImageReadError(ValueError):
    """A file cannot be read as a picture; ``skippable`` where the settings allow readers to pass over it."""

    def __init__(
        self, path: str, reason: str, advice: str = "restore it or leave it out", *, skippable: bool = False
    ) -> None:
        super().__init__(f"{path}: cannot be read as an image ({reason}); {advice}")
        self.path, self.reason, self.advice, self.skippable = path, reason, advice, skippable

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, self.reason, self.advice), {"skippable": self.skippable}


def open_image(path: str | os.PathLike[str]) -> PIL.Image.Image:
    """Decode a file to an upright picture of mode RGB.

    Raises:
        ImageReadError: the file is missing, damaged, cut short, no picture, or past Pillow's guard against
            decompression bombs.
    """
    with _opened(path) as image:
        image.load()  # first, because some formats state the orientation behind the pixels
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
        rgb = _to_rgb(image)
        return rgb if turn is None else rgb.transpose(turn)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) of the upright picture; raises as :func:`open_image`.

    The head of the file tells it, except for a PNG that has text or EXIF behind its pixels, which is decoded.
    """
    with _opened(path) as image:
        if image.format == "PNG" and image.width != image.height and _says_more_behind_its_pixels(path):
            image.load()
        # Pillow's own getexif would decode any PNG to look behind its pixels, and it turns the size of a TIFF itself.
        orientation = PIL.Image.Image.getexif(image).get(_ORIENTATION, 1)
        lying = orientation in _LYING and image.format != "TIFF"
        return (image.width, image.height) if lying else (image.height, image.width)


def _says_more_behind_its_pixels(path: str | os.PathLike[str]) -> bool:
    """Whether a PNG has chunks behind its pixels that may state an orientation; its pixels are passed over."""
    pixels_seen = False
    with open(path, "rb") as file:
        file.seek(8)  # the signature
        while len(head := file.read(8)) == 8:
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            pixels_seen = pixels_seen or kind == b"IDAT"
            if pixels_seen and kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
                return True
            file.seek(length + 4, os.SEEK_CUR)  # and the checksum
    return False


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[PIL.Image.Image]:
    try:
        with PIL.Image.open(path) as image:
            yield image
    except Exception as error:  # for damaged files Pillow and its codecs raise a dozen kinds
        raise ImageReadError(os.fspath(path), _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, PIL.UnidentifiedImageError):
        return "no known image format"
    if isinstance(error, PIL.Image.DecompressionBombError):
        return f"more than {2 * (PIL.Image.MAX_IMAGE_PIXELS or 0):,} pixels, which may be a decompression bomb"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.rstrip(".") or type(error).__name__


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # convert("L") would clip
        return PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("pixels of 32 bit have no fixed range")
    if image.has_transparency_data:
        page = PIL.Image.new("RGBA", image.size, "white")
        return PIL.Image.alpha_composite(page, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


# --- crops --------------------------------------------------------------------------------------------------------


def resized(
    image: PIL.Image.Image,
    height: int,
    width: int,
    *,
    box: tuple[float, float, float, float] | None = None,
    reducing_gap: float | None = None,
) -> PIL.Image.Image:
    """Resample a picture, or its part ``box`` = (left, top, right, bottom), bicubically with antialiasing.

    With ``reducing_gap``, pixels are first averaged in whole blocks, down to so many times the size: faster by as much
    as five times where photographs are reduced, and hardly different from 3 on.
    """
    if box is not None:  # a rounding error beyond the margin is no reason to fail
        box = max(box[0], 0), max(box[1], 0), min(box[2], image.width), min(box[3], image.height)
    return image.resize((width, height), Resampling.BICUBIC, box=box, reducing_gap=reducing_gap)


def central_crop(image: PIL.Image.Image, height: int, width: int) -> PIL.Image.Image:
    """The largest central part of that shape, reduced or enlarged to ``height`` x ``width``."""
    factor = min(image.height / height, image.width / width)
    top, left = (image.height - factor * height) / 2, (image.width - factor * width) / 2
    return resized(image, height, width, box=(left, top, image.width - left, image.height - top))


def fit_to_multiple(image: PIL.Image.Image, multiple: int, *, shorter_side: int | None = None) -> PIL.Image.Image:
    """Cut the margins, evenly, to sides that divide by ``multiple``; the pixels between stay as they are.

    With ``shorter_side`` the picture is first reduced or enlarged to it; one that is smaller than ``multiple`` is
    enlarged to that.
    """
    shorter = min(image.size)
    target = max(shorter_side or shorter, multiple)
    if target != shorter:
        image = resized(image, *(round(side * target / shorter) for side in (image.height, image.width)))
    width, height = (side // multiple * multiple for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


# --- tensors ------------------------------------------------------------------------------------------------------


def to_pixels(images: Sequence[PIL.Image.Image]) -> Pixels:
    """Pictures of mode RGB and one size as bytes."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).contiguous()


def to_signed(pixels: Pixels) -> Image:
    """Bytes as float32 in [-1, 1]: 0 is -1, 255 is 1."""
    return pixels.float().div_(127.5).sub_(1)
