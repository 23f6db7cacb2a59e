"""Frozen teachers behind one protocol: images in [0, 1] in, :class:`TeacherOutput` out.

A :class:`Teacher` owns everything between a picture and a token: resize, normalisation, position table, choice of
layers, final norm, what becomes of class and register tokens. Its :class:`TeacherSpec` says what it does. Callers
give images in [0, 1], never normalised ones, which are refused.

``hog.py`` has a fixed function, ``backbones.py`` what networks have in common, ``tiny_vit.py`` a small one of our own.
"""

from abc import ABC, abstractmethod
from contextlib import nullcontext

import torch
from torch import nn

from .precision import without_autocast
from .resize import SizeError
from .shapes import Image
from .slots import TeacherOutput
from .teacher_spec import TeacherSpec

RANGE_SLACK = 1e-3
"""How far beyond [0, 1] rounding may carry an image."""


class Teacher(nn.Module, ABC):
    """Base of all teachers: checks images, stays in evaluation, gives no gradient to its weights."""

    spec: TeacherSpec

    def __init__(self, name: str) -> None:
        """``name`` is what messages call it."""
        super().__init__()
        self.name = name
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """A teacher is always in evaluation: DINOv3, for one, jitters its positions in training."""
        return super().train(False)

    def forward(self, images: Image, *, differentiable: bool = False) -> TeacherOutput:
        """Describe images in [0, 1], ``[b, 3, H, W]``; all tokens are float32.

        ``differentiable`` gives gradients to the images, for losses in feature space; weights never have any.

        Raises:
            ValueError: values out of range, no batch, or a size that the teacher does not take.
        """
        self._check_range(images)
        try:
            with nullcontext() if differentiable else torch.no_grad(), without_autocast(images.device):
                return self.describe(images.float())
        except SizeError as error:
            raise ValueError(f"{self.name}: {error}") from None

    @abstractmethod
    def describe(self, images: Image) -> TeacherOutput:
        """Tokens of checked float32 images; a size that does not fit is a :class:`SizeError`."""

    def _check_range(self, images: Image) -> None:
        if images.ndim != 4:
            raise ValueError(f"{self.name}: takes images [b, 3, H, W], got {list(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(f"{self.name}: takes images in [0, 1], got {images.dtype}; map bytes with x / 255")
        if not images.numel():
            return
        low, high = (x.item() for x in images.detach().aminmax())
        if not (low >= -RANGE_SLACK and high <= 1 + RANGE_SLACK):
            hint = "map bytes with x / 255" if low >= -RANGE_SLACK else "map them with (x + 1) / 2"
            raise ValueError(f"{self.name}: takes images in [0, 1], got values from {low:.4g} to {high:.4g}; {hint}")
