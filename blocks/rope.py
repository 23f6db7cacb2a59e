"""Axial two-dimensional rotary positions as pure functions of a grid (RoFormer, arXiv 2104.09864, eq. 34).

Half of the pairs of a head turn with the row, the other half with the column, pair j of an axis by
coordinate / period_j with period_j = base^(j / pairs). Two conventions:

- "indices": coordinates are plain patch indices, base 10000, pairs are neighbours (2i, 2i + 1) (DINAC-AE);
- "normalised": coordinates are 2·(i + 1/2)/side - 1 and turn by 2π of them, base 100, pairs are (i, i + d/2) (DINOv3,
  arXiv 2508.10104; the reference code's ``RopePositionEmbedding`` with separate normalisation of the two axes).
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .precision import Float32Buffers

Convention = Literal["indices", "normalised"]


def rope_periods(head_width: int, *, base: float = 10_000.0, device: torch.device | None = None) -> Float[Tensor, " p"]:
    """Periods of one axis, ``[head_width / 4]``, float32."""
    if head_width % 4:
        raise ValueError(f"head width: must be divisible by 4 (two axes of pairs), got {head_width}")
    pairs = head_width // 4
    return base ** (torch.arange(pairs, dtype=torch.float32, device=device) / pairs)


def rope_angles(
    grid: tuple[int, int], periods: Float[Tensor, " p"], *, convention: Convention = "indices"
) -> Float[Tensor, "n two_p"]:
    """Angle of each pair at each position of ``grid`` (rows, columns), row-major; rows first within a position."""
    rows, columns = (torch.arange(side, dtype=torch.float32, device=periods.device) for side in grid)
    if convention == "normalised":
        rows, columns = (2 * math.pi * (2 * (i + 0.5) / len(i) - 1) for i in (rows, columns))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.cat([y.flatten()[:, None] / periods, x.flatten()[:, None] / periods], dim=1)


def rotate(
    x: Float[Tensor, "b g n d"], angles: Float[Tensor, "m half"], *, prefix: int = 0, convention: Convention = "indices"
) -> Float[Tensor, "b g n d"]:
    """Turn the pairs of the last axis by ``angles``, in float32; the first ``prefix`` tokens stay as they are."""
    y = x[:, :, prefix:].float()
    if convention == "normalised":
        a, b = y.chunk(2, dim=-1)
        turned = torch.cat(turned_pairs(a, b, angles), dim=-1)
    elif torch.compiler.is_compiling():  # which has no complex numbers, and needs none to be fast
        a, b = y.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack(turned_pairs(a, b, angles), dim=-1).flatten(-2)
    else:
        if y.stride(-1) != 1 or any(place % 2 for place in (y.storage_offset(), *y.stride()[:-1])):
            y = y.clone(memory_format=torch.contiguous_format)  # complex numbers must begin at even places
        pairs = torch.view_as_complex(y.unflatten(-1, (-1, 2)))
        turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    turned = turned.to(x.dtype)
    return turned if prefix == 0 else torch.cat([x[:, :, :prefix], turned], dim=2)


def turned_pairs(a: Tensor, b: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    """(a·cos - b·sin, b·cos + a·sin): the pairs (a, b), turned."""
    cos, sin = angles.cos(), angles.sin()
    return a * cos - b * sin, b * cos + a * sin


class AxialRoPE(Float32Buffers):
    """Turns queries and keys by their place on a grid; the periods are a persistent float32 buffer."""

    periods: Tensor

    def __init__(self, head_width: int, *, convention: Convention = "indices") -> None:
        super().__init__()
        self.convention: Convention = convention
        base = {"indices": 10_000.0, "normalised": 100.0}[convention]
        self.register_buffer("periods", rope_periods(head_width, base=base))

    def forward(
        self, q: Float[Tensor, "b g n d"], k: Float[Tensor, "b g n d"], grid: tuple[int, int], *, prefix: int = 0
    ) -> tuple[Float[Tensor, "b g n d"], Float[Tensor, "b g n d"]]:
        angles = rope_angles(grid, self.periods, convention=self.convention)
        q, k = (rotate(x, angles, prefix=prefix, convention=self.convention) for x in (q, k))
        return q, k
