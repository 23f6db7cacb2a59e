"""Training crops: which pictures share batches, and what is cut from each.

A crop is drawn from a ``random.Random`` that belongs to the seed, the step and the position in the global batch.
"""

import math
import random
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import PIL.Image
from PIL.Image import Transpose

from ..blocks.registry import Part, part
from ..blocks.slots import ImageSource
from ..families.feature_shards import VIEWS
from ..families.images import ImageReadError, central_crop, resized
from .order import Group

Range = tuple[float, float]
Shape = tuple[int, int]


class CropConfig(Part, ABC):
    """What of a picture is trained on."""

    slot: ClassVar[str] = "crop"
    flip: bool

    def groups(self, source: ImageSource, *, resolution: int, stride: int, batch: int) -> list[Group]:
        """Divide the pictures among shapes of crops; every batch comes from one group."""
        return [Group(np.arange(len(source)), (resolution, resolution))]

    @abstractmethod
    def extent(self, image: PIL.Image.Image, shape: Shape, rng: random.Random) -> tuple[float, float]:
        """Draw the (height, width), in pixels of the picture, of the part that becomes a crop of ``shape``."""

    def cut(self, image: PIL.Image.Image, shape: Shape, rng: random.Random) -> PIL.Image.Image:
        """Draw a crop: a part of the picture at a random place, resampled to ``shape`` and, half the time, mirrored."""
        height, width = self.extent(image, shape, rng)
        top = float(int(rng.random() * (int(image.height - height) + 1)))
        left = float(int(rng.random() * (int(image.width - width) + 1)))
        crop = resized(image, *shape, box=(left, top, left + width, top + height), reducing_gap=3.0)
        return crop.transpose(Transpose.FLIP_LEFT_RIGHT) if self.flip and rng.random() < 0.5 else crop

    def views(self) -> tuple[str, ...]:
        """Names of all crops of a picture that may be drawn, where they are few and always the same; else none."""
        return ()

    def cut_view(self, image: PIL.Image.Image, shape: Shape, rng: random.Random) -> tuple[PIL.Image.Image, str]:
        """As :meth:`cut`, with the name of the view that was drawn, or "" where views have no names."""
        return self.cut(image, shape, rng), ""


@part("crop/central")
class CentralCropConfig(CropConfig):
    """The largest central square, always, and half the time its mirror image: what a cache of features holds.

    Held-out pictures are seen so in any case.
    """

    flip: bool = True

    def views(self) -> tuple[str, ...]:
        return VIEWS if self.flip else VIEWS[:1]

    def extent(self, image: PIL.Image.Image, shape: Shape, rng: random.Random) -> tuple[float, float]:
        factor = _largest_factor(image, shape)
        return factor * shape[0], factor * shape[1]

    def cut(self, image: PIL.Image.Image, shape: Shape, rng: random.Random) -> PIL.Image.Image:
        return self.cut_view(image, shape, rng)[0]

    def cut_view(self, image: PIL.Image.Image, shape: Shape, rng: random.Random) -> tuple[PIL.Image.Image, str]:
        view = VIEWS[1] if self.flip and rng.random() < 0.5 else VIEWS[0]
        return central_view(image, shape, view), view


def central_view(image: PIL.Image.Image, shape: Shape, view: str) -> PIL.Image.Image:
    """One of ``VIEWS`` of a picture: the central part as evaluation sees it, or its mirror image."""
    crop = central_crop(image, *shape)
    return crop.transpose(Transpose.FLIP_LEFT_RIGHT) if view == "mirrored" else crop


@part("crop/random")
class RandomCropConfig(CropConfig):
    """A part of random area and form, resampled to a square.

    Attributes:
        scale: range of its area as a share of the picture's; a share that does not fit is reduced until it does.
        ratio: range of its width through its height, drawn evenly on a logarithmic scale.
    """

    scale: Range = (0.5, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    flip: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale: takes shares 0 < low <= high <= 1, got {self.scale}")
        _check_factors("ratio", self.ratio)

    def extent(self, image: PIL.Image.Image, shape: Shape, rng: random.Random) -> tuple[float, float]:
        area = rng.uniform(*self.scale) * image.width * image.height
        ratio = _log_uniform(self.ratio, rng)
        height, width = math.sqrt(area / ratio), math.sqrt(area * ratio)
        factor = min(1.0, image.height / height, image.width / width)
        return factor * height, factor * width


@part("crop/native")
class NativeCropConfig(CropConfig):
    """A square of the picture's own pixels, as evaluation at native size sees them.

    Attributes:
        reduce: range of pixels of the picture, a side, that become one; drawn evenly on a logarithmic scale. A picture
            too small for what is drawn gives its largest square, enlarged if need be.
    """

    reduce: Range = (1.0, 1.0)
    flip: bool = True

    def __post_init__(self) -> None:
        _check_factors("reduce", self.reduce)

    def extent(self, image: PIL.Image.Image, shape: Shape, rng: random.Random) -> tuple[float, float]:
        factor = min(_log_uniform(self.reduce, rng), _largest_factor(image, shape))
        return factor * shape[0], factor * shape[1]


@part("crop/buckets")
class BucketCropConfig(CropConfig):
    """Aspect-ratio buckets: each picture is cut as little as possible, to the nearest of several shapes.

    A bucket with fewer pictures than a batch is closed and its pictures go to the next nearest, so that no batch holds
    a picture twice.

    Attributes:
        shapes: (height, width) in pixels; if there are none, :func:`bucket_shapes` gives them.
        largest_ratio: of the longer side to the shorter, in the shapes that are derived.
    """

    shapes: tuple[Shape, ...] = ()
    largest_ratio: float = 2.0
    flip: bool = True

    def __post_init__(self) -> None:
        if any(side < 1 for shape in self.shapes for side in shape):
            raise ValueError(f"shapes: takes (height, width) of at least 1, got {self.shapes}")
        if self.largest_ratio < 1:
            raise ValueError(f"largest_ratio: must be at least 1, got {self.largest_ratio}")

    def groups(self, source: ImageSource, *, resolution: int, stride: int, batch: int) -> list[Group]:
        for height, width in self.shapes:
            if height % stride or width % stride:
                raise ValueError(
                    f"crop.shapes: {height}x{width} does not divide by the model's stride {stride}; "
                    f"take {_nearest(height, stride)}x{_nearest(width, stride)}"
                )
        shapes = self.shapes or bucket_shapes(resolution, stride, self.largest_ratio)
        heights, widths = np.array([_size(source, index) for index in range(len(source))]).T
        ratios = np.log([height / width for height, width in shapes])
        distance = np.abs(np.log(heights / widths)[:, None] - ratios)
        opened = list(range(len(shapes)))
        while True:
            nearest = distance[:, opened].argmin(1)
            counts = np.bincount(nearest, minlength=len(opened))
            if len(opened) == 1 or counts.min() >= batch:
                return [Group(np.flatnonzero(nearest == k), shapes[j]) for k, j in enumerate(opened)]
            del opened[int(counts.argmin())]

    def extent(self, image: PIL.Image.Image, shape: Shape, rng: random.Random) -> tuple[float, float]:
        factor = _largest_factor(image, shape)
        return factor * shape[0], factor * shape[1]


def bucket_shapes(resolution: int, stride: int, largest_ratio: float) -> tuple[Shape, ...]:
    """Shapes (height, width) of at most ``resolution``² pixels, from the widest to the tallest.

    Sides are multiples of the stride and, where the resolution allows it, of about a sixteenth of the resolution.
    """
    units = range(stride, max(resolution // 16, stride) + 1, stride)
    unit = max(unit for unit in units if resolution % unit == 0)
    longest = {}  # of the shapes with one shorter side
    for longer in range(resolution, int(resolution * math.sqrt(largest_ratio)) + unit, unit):
        shorter = resolution**2 // longer // unit * unit
        if shorter and longer / shorter <= largest_ratio:
            longest[shorter] = longer
    wide = sorted(longest.items())
    return (*wide, *((longer, shorter) for shorter, longer in reversed(wide) if longer != shorter))


def _largest_factor(image: PIL.Image.Image, shape: Shape) -> float:
    """Pixels of the picture, a side, for one of the largest crop of that shape."""
    return min(image.height / shape[0], image.width / shape[1])


def _log_uniform(bounds: Range, rng: random.Random) -> float:
    return bounds[0] * (bounds[1] / bounds[0]) ** rng.random()


def _check_factors(name: str, bounds: Range) -> None:
    if not 0 < bounds[0] <= bounds[1]:
        raise ValueError(f"{name}: takes factors 0 < low <= high, got {bounds}")


def _nearest(side: int, stride: int) -> int:
    return max(round(side / stride), 1) * stride


def _size(source: ImageSource, index: int) -> Shape:
    try:
        return source.size(index)
    except ImageReadError as error:
        if not error.skippable:
            raise
        return 1, 1  # wherever it stands, reading it will fail and be reported
