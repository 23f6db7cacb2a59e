"""Labelled images that need no download: the handwritten digits that scikit-learn brings along."""

import functools
from typing import Any

import numpy as np
import PIL.Image

from ..blocks.registry import part
from ..blocks.slots import LabelledSource, LabelsConfig
from ..families.images import resized

TRAINING = 1437
"""The first pictures of the set train; the last 360 are held out, most of them by other hands."""


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError('labels/digits: needs scikit-learn; pip install "latelier[probes]"') from None
    data: Any = load_digits()
    return np.rint(data.images * 255 / 16).astype(np.uint8), data.target


class DigitSource(LabelledSource):
    """Pictures ``first`` .. ``stop - 1`` of the set, grey, ``side`` pixels square."""

    classes = tuple("0123456789")

    def __init__(self, first: int, stop: int, *, side: int) -> None:
        self.first, self.stop, self.side = first, stop, side

    def __len__(self) -> int:
        return self.stop - self.first

    def name(self, index: int) -> str:
        return f"digits/{self.first + index:04d}"

    def size(self, index: int) -> tuple[int, int]:
        return self.side, self.side

    def read(self, index: int) -> PIL.Image.Image:
        small = PIL.Image.fromarray(_digits()[0][self.first + index])
        return resized(small, self.side, self.side).convert("RGB")

    def label(self, index: int) -> int:
        return int(_digits()[1][self.first + index])


@part("labels/digits")
class DigitsConfig(LabelsConfig):
    """scikit-learn's 1,797 digits of 8 x 8 pixels, in their order: the first 1,437 for training, 360 held out.

    Attributes:
        side: to which they are enlarged, bicubically; a multiple of the model's stride loses no margin.
    """

    shorthand = "side"

    side: int = 64

    def __post_init__(self) -> None:
        if self.side < 8:
            raise ValueError(f"side: must be at least 8, got {self.side}")

    def training(self) -> DigitSource:
        return DigitSource(0, TRAINING, side=self.side)

    def held_out(self) -> DigitSource:
        return DigitSource(TRAINING, len(_digits()[1]), side=self.side)
