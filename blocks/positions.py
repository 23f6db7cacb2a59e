"""Position tables on other grids than their own: the step at which libraries disagree about one network.

A learned table of 37 x 37 positions becomes one of 16 x 16 by bicubic resampling. Meta's models without registers
sample without antialias and with a scale factor (side + 0.1)/37 instead of side/37 (``interpolate_offset``), timm
antialiases, transformers does neither: their patch tokens differ by a tenth (dinov2#378, refiners#343). The
resampling is therefore named here, done here, and recorded in the spec of a teacher.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Resampling = Literal["bicubic_antialias", "bicubic", "bicubic_offset"]
"""timm's (and Meta's for DINOv2 with registers), that of transformers, and Meta's for DINOv2 without registers."""

META_OFFSET = 0.1
"""Added by Meta's code to the sides of the grid before it divides them by the table's."""


def resample_table(
    table: Float[Tensor, "c h w"], grid: tuple[int, int], resampling: Resampling
) -> Float[Tensor, "c H W"]:
    """The table on a grid of (rows, columns), computed in float32; on its own grid it is as it was."""
    old = (table.shape[1], table.shape[2])
    if grid == old:
        return table
    x = table.detach().float()[None]
    if resampling == "bicubic_offset":
        scale = tuple((new + META_OFFSET) / was for new, was in zip(grid, old, strict=True))
        new = F.interpolate(x, scale_factor=scale, mode="bicubic", align_corners=False)[0]
        assert tuple(new.shape[1:]) == grid
    else:
        antialias = resampling == "bicubic_antialias"
        new = F.interpolate(x, grid, mode="bicubic", align_corners=False, antialias=antialias)[0]
    return new.to(table.dtype)


def resample_rows(
    rows: Float[Tensor, "p c"], grid: tuple[int, int], old: tuple[int, int], resampling: Resampling
) -> Float[Tensor, "q c"]:
    """The same for a table of rows in raster order, after rows for a prefix, which stay as they are."""
    prefix = len(rows) - old[0] * old[1]
    table = rows[prefix:].T.reshape(-1, *old)
    new = resample_table(table, grid, resampling).flatten(1).T
    return torch.cat([rows[:prefix], new])


@contextmanager
def with_parameter(module: nn.Module, name: str, value: Tensor) -> Iterator[None]:
    """A module has another parameter while the block runs."""
    before = module._parameters[name]
    module._parameters[name] = nn.Parameter(value, requires_grad=False)
    try:
        yield
    finally:
        module._parameters[name] = before


@contextmanager
def with_attribute(thing: object, name: str, value: object) -> Iterator[None]:
    """An object has an attribute (a method, say) of its own while the block runs."""
    had, before = name in vars(thing), vars(thing).get(name)
    vars(thing)[name] = value
    try:
        yield
    finally:
        if had:
            vars(thing)[name] = before
        else:
            del vars(thing)[name]
