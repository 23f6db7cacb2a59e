"""A teacher without weights: histograms of oriented gradients (Dalal & Triggs, CVPR 2005), one descriptor a patch.

Per pixel the gradient is I(x+1) - I(x-1) and I(y+1) - I(y-1), taken from the colour channel where it is longest
(sec. 6.2). Its length votes, split linearly between the two nearest of K unsigned orientations (k + 1/2)·180°/K
(sec. 6.3), into the histogram of its cell, a mean over pixels. The cells of a patch form the block that is normalised
by L2-Hys: v/sqrt(|v|² + eps²), clipped at 0.2, and normalised again (sec. 6.4).

Blocks do not overlap and votes stay in their cell, so that a token depends on its own patch and a rim of one pixel.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from .registry import part
from .resize import check_divides
from .shapes import Image
from .slots import TeacherConfig, TeacherOutput
from .teacher_spec import TeacherSpec
from .teachers import Teacher

EPSILON = 1e-5
VERSION = "1"
"""Of the definition; another one would give other numbers."""


def gradients(images: Float[Tensor, "b c H W"]) -> tuple[Float[Tensor, "b H W"], Float[Tensor, "b H W"]]:
    """Centred differences along columns and rows, from the channel where they are longest; edges are repeated."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    across = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    longest = (across.square() + down.square()).argmax(dim=1, keepdim=True)
    return across.gather(1, longest).squeeze(1), down.gather(1, longest).squeeze(1)


def orientation_votes(
    across: Float[Tensor, "b H W"], down: Float[Tensor, "b H W"], orientations: int
) -> Float[Tensor, "b k H W"]:
    """The length of each gradient, split between the two orientations nearest to its own."""
    angle = torch.atan2(down, across) / math.pi * orientations - 0.5
    bins = torch.arange(orientations, device=angle.device)[:, None, None]
    distance = (angle[:, None] - bins + orientations / 2) % orientations - orientations / 2
    return torch.hypot(across, down)[:, None] * (1 - distance.abs()).clamp_min(0)


class HOG(Teacher):
    """Histograms of oriented gradients, one token of ``cells² · orientations`` numbers a patch; no weights.

    A token holds the cells of its patch in row-major order, ``orientations`` numbers each. The size of an image must
    be divisible by the patch: tokens are never resampled. ``cls`` is the mean of the tokens.
    """

    def __init__(self, *, patch: int, cells: int, orientations: int, clip: float) -> None:
        super().__init__("HOG")
        self.patch, self.cells, self.orientations, self.clip = patch, cells, orientations, clip
        self.spec = TeacherSpec(
            library="latelier",
            version=VERSION,
            model=f"hog(cells={cells}, orientations={orientations}, clip={clip:g})",
            weights="none",
            licence="none needed",
            cls="mean",
            patch=patch,
            features=cells**2 * orientations,
        )

    def extra_repr(self) -> str:
        return f"patch={self.patch}, cells={self.cells}, orientations={self.orientations}, clip={self.clip}"

    def describe(self, images: Image) -> TeacherOutput:
        height, width = images.shape[2:]
        check_divides((height, width), self.patch)
        votes = orientation_votes(*gradients(images), self.orientations)
        side = self.patch // self.cells
        cells = reduce(votes, "b k (h y) (w x) -> b k h w", "mean", y=side, x=side)
        tokens = rearrange(cells, "b k (h y) (w x) -> b (h w) (y x k)", y=self.cells, x=self.cells)
        tokens = _normalised(_normalised(tokens).clamp_max(self.clip))
        return TeacherOutput(patches=tokens, grid=(height // self.patch, width // self.patch), cls=tokens.mean(dim=1))


def _normalised(tokens: Float[Tensor, "b n f"]) -> Float[Tensor, "b n f"]:
    return tokens / (tokens.square().sum(dim=-1, keepdim=True) + EPSILON**2).sqrt()


@part("teacher/hog")
class HOGConfig(TeacherConfig):
    """Histograms of oriented gradients, a token a patch, without weights.

    Attributes:
        cells: a side, in a patch of ``patch`` pixels.
        orientations: bins of half a turn.
        clip: of a normalised value, before the second normalisation.
    """

    patch: int = 16
    cells: int = 2
    orientations: int = 9
    clip: float = 0.2

    def __post_init__(self) -> None:
        if self.patch < 1 or self.cells < 1 or self.patch % self.cells:
            raise ValueError(f"cells: must divide the patch of {self.patch} pixels, got {self.cells}")
        if self.orientations < 2:
            raise ValueError(f"orientations: must be at least 2, got {self.orientations}")
        if not self.clip > 0:
            raise ValueError(f"clip: must be positive, got {self.clip}")

    @property
    def features(self) -> int:
        return self.cells**2 * self.orientations

    def for_stride(self, stride: int) -> "HOGConfig":
        """With patches of ``stride`` pixels, which ``cells`` must divide."""
        return replace(self, patch=stride)

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        check_divides(size, self.patch)
        return size[0] // self.patch, size[1] // self.patch

    def build(self) -> HOG:
        return HOG(patch=self.patch, cells=self.cells, orientations=self.orientations, clip=self.clip)
