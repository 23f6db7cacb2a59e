"""Maps computed tile by tile and blended, so that memory is bounded by the tile.

    out(y, x) = sum_k w_k(y, x) tile_k(y, x) / sum_k w_k(y, x),   w_k(y, x) = u_k(y) v_k(x)

Where two tiles overlap, each fades linearly into the other over the whole overlap; every tile enters with its own
values, never with those that another one was blended into. The last tile of a row or a column is moved back to end at
the edge, so all tiles of a map have one size. The mean is kept as a running one,

    out <- out + w_k / (w_1 + ... + w_k) (tile_k - out),

which needs one tile beside the output, and is exact where tiles agree.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Side = int | tuple[int, int]
"""Height and width; one number is both."""


@dataclass(frozen=True)
class Window:
    """Where one tile lies on an axis, its share of each position, and what the tiles before it had of them together."""

    start: int
    share: Float[Tensor, " n"]
    before: Float[Tensor, " n"]


def tile_starts(size: int, tile: int, stride: int) -> list[int]:
    """Where tiles begin that cover ``size`` positions; one that is larger than ``size`` begins at 0."""
    if not 0 < stride <= tile:
        raise ValueError(f"stride: must be at least 1 and at most the tile of {tile}, or gaps remain; got {stride}")
    last = max(size - tile, 0)
    return [*range(0, last, stride), last]


def windows(size: int, tile: int, stride: int) -> list[Window]:
    """The tiles of one axis, float64; their shares are positive and add up to 1 at each position."""
    starts, tile = tile_starts(size, tile, stride), min(tile, size)
    total = torch.zeros(size, device="cpu", dtype=torch.float64)
    weights = []
    for i, start in enumerate(starts):
        weight = torch.ones(tile, device="cpu", dtype=torch.float64)
        if i > 0:
            weight = torch.minimum(weight, _ramp(tile, starts[i - 1] + tile - start))
        if i + 1 < len(starts):
            weight = torch.minimum(weight, _ramp(tile, start + tile - starts[i + 1]).flip(0))
        weights.append(weight)
        total[start : start + tile] += weight
    found, before = [], torch.zeros(size, device="cpu", dtype=torch.float64)
    for start, weight in zip(starts, weights, strict=True):
        place = slice(start, start + tile)
        share = weight / total[place]
        found.append(Window(start, share, before[place].clone()))
        before[place] += share
    return found


def _ramp(tile: int, overlap: int) -> Float[Tensor, " n"]:
    """Rising linearly within the overlap, never 0, and more than 1 behind it."""
    return torch.arange(1, tile + 1, device="cpu", dtype=torch.float64) / (max(overlap, 0) + 1)


def blend(
    compute: Callable[[slice, slice, slice], Tensor],
    size: Sequence[int],
    tile: Sequence[int],
    stride: Sequence[int],
    *,
    batch: int,
    at_once: int = 1,
    device: torch.device | None = None,
) -> Tensor:
    """Compute maps ``[batch, c, height, width]`` of ``size`` = (height, width), with gradients.

    ``compute(images, rows, columns)`` gives the tile of those ``at_once`` images at those positions. The maps have
    the tiles' dtype, and lie on ``device``, by default the tiles' own.
    """
    if batch < 1:
        raise ValueError(f"batch: must hold at least one image to be cut into tiles, got {batch}")
    (height, width), (tall, wide) = size, (min(t, s) for t, s in zip(tile, size, strict=True))
    down, across = (windows(s, t, step) for s, t, step in zip(size, tile, stride, strict=True))
    out: Tensor | None = None
    for first in range(0, batch, at_once):
        images = slice(first, min(first + at_once, batch))
        for row in down:
            rows = slice(row.start, row.start + tall)
            for column in across:
                columns = slice(column.start, column.start + wide)
                part = compute(images, rows, columns)
                if tuple(part.shape[2:]) != (tall, wide):
                    raise ValueError(f"tile: must have {tall}x{wide} positions, got {list(part.shape)}")
                part = part.to(device or part.device)
                if out is None:
                    out = part.new_zeros(batch, part.shape[1], height, width)
                fraction = _fraction(row, column).to(out.device, out.dtype)
                out[images, :, rows, columns] = torch.lerp(out[images, :, rows, columns], part, fraction)
                del part  # before the next one is computed
    assert out is not None
    return out


def _fraction(row: Window, column: Window) -> Float[Tensor, "n m"]:
    """The weight of a tile over that of itself and all before it: rows above, whose shares add up to 1, and its row."""
    share = row.share[:, None] * column.share
    return share / (row.before[:, None] + row.share[:, None] * (column.before + column.share))
