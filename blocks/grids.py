"""Tokens on grids of different size, compared by a named rule.

A teacher of patch 14 and latents of stride 16 agree at 256 pixels only if the teacher resizes (``blocks/resize.py``),
which is the better way. Where it cannot, features are interpolated: a choice that changes targets, so that it is never
made silently (dinov3#78, #79, dinov2#466).
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .registry import Part, part
from .shapes import Tokens
from .slots import TeacherOutput

Pair = tuple[Float[Tensor, "b n c"], Float[Tensor, "b n f"]]
"""Tokens on one grid, of whatever width."""


class GridConfig(Part, ABC):
    """Brings the patch tokens of two descriptions of an image onto one grid."""

    slot: ClassVar[str] = "grid"

    @abstractmethod
    def match(self, latents: TeacherOutput, teacher: TeacherOutput, *, where: str) -> Pair:
        """Patch tokens of both, position by position.

        Args:
            latents: what lies on the latent's grid: the latents themselves, or what is predicted from them.
            where: begins the message of an error.
        """


@part("grid/strict")
class StrictGridConfig(GridConfig):
    """Both grids must be the same."""

    def match(self, latents: TeacherOutput, teacher: TeacherOutput, *, where: str) -> Pair:
        if latents.grid != teacher.grid:
            raise ValueError(
                f"{where}: the teacher's grid is {teacher.grid}, the latent's {latents.grid}; choose a teacher whose "
                "patch equals the model's stride, or resample with the grid rule 'grid/resample'"
            )
        return latents.patches, teacher.patches


@part("grid/resample")
class ResampleGridConfig(GridConfig):
    """One side is interpolated to the grid of the other; equal grids are left as they are.

    Attributes:
        mode: "nearest" takes the token whose square holds the position's centre, "area" averages the squares that a
            position touches.
        antialias: widen the kernel where the grid shrinks; for "bilinear" and "bicubic".
        resampled: "teacher" brings the teacher's tokens to the latent's grid, "prediction" what is predicted from the
            latent to the teacher's, which leaves targets as they are.
    """

    mode: Literal["bilinear", "bicubic", "nearest", "area"] = "bilinear"
    antialias: bool = False
    resampled: Literal["teacher", "prediction"] = "teacher"

    def __post_init__(self) -> None:
        if self.antialias and self.mode in ("nearest", "area"):
            raise ValueError(
                f"antialias: {self.mode!r} has no kernel to widen; set it to false, or take 'bilinear' or 'bicubic'"
            )

    def match(self, latents: TeacherOutput, teacher: TeacherOutput, *, where: str) -> Pair:
        if latents.grid == teacher.grid:
            return latents.patches, teacher.patches
        if self.resampled == "teacher":
            return latents.patches, self.resample(teacher.patches, teacher.grid, latents.grid)
        return self.resample(latents.patches, latents.grid, teacher.grid), teacher.patches

    def resample(self, tokens: Tokens, grid: tuple[int, int], to: tuple[int, int]) -> Float[Tensor, "b m c"]:
        """Tokens of ``grid`` on the grid ``to``; float32 inside, the dtype of the tokens outside."""
        maps = rearrange(tokens, "b (h w) c -> b c h w", h=grid[0], w=grid[1]).float()
        if self.mode in ("bilinear", "bicubic"):
            maps = F.interpolate(maps, to, mode=self.mode, align_corners=False, antialias=self.antialias)
        else:
            maps = F.interpolate(maps, to, mode="nearest-exact" if self.mode == "nearest" else "area")
        return rearrange(maps, "b c h w -> b (h w) c").to(tokens.dtype)
