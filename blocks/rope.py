"""Axial two-dimensional rotary positions as pure functions of a grid (RoFormer, arXiv 2104.09864, eq. 34).

The first half of a head turns with the row, the second with the column. Within a half the adjacent pair
(2j, 2j + 1) turns by coordinate / 10000^(2j / half). Coordinates are plain patch indices, with no 2π.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def rope_periods(head_width: int, *, base: float = 10_000.0, device: torch.device | None = None) -> Float[Tensor, " p"]:
    """Periods of one axis, ``[head_width / 4]``, float32."""
    if head_width % 4:
        raise ValueError(f"head width: must be divisible by 4 (two axes of pairs), got {head_width}")
    pairs = head_width // 4
    return base ** (torch.arange(pairs, dtype=torch.float32, device=device) / pairs)


def rope_angles(grid: tuple[int, int], periods: Float[Tensor, " p"]) -> Float[Tensor, "n two_p"]:
    """Angle of each pair at each position of ``grid`` (rows, columns), row-major; rows first within a position."""
    rows, columns = (torch.arange(side, dtype=torch.float32, device=periods.device) for side in grid)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.cat([y.flatten()[:, None] / periods, x.flatten()[:, None] / periods], dim=1)


def rotate(
    x: Float[Tensor, "b g n d"], angles: Float[Tensor, "m half"], *, prefix: int = 0
) -> Float[Tensor, "b g n d"]:
    """Turn adjacent pairs of the last axis by ``angles``, in float32; the first ``prefix`` tokens stay as they are."""
    pairs = x[:, :, prefix:].float().unflatten(-1, (-1, 2))
    a, b = pairs.unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)
    return turned if prefix == 0 else torch.cat([x[:, :, :prefix], turned], dim=2)
