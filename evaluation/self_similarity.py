"""Spatial self-similarity of token maps: what iREPA (arXiv 2512.10794) found to predict generation quality.

With u the tokens of one image over their lengths, d the Manhattan distance of two tokens on the grid, and c(d) the
mean of u_i·u_j over pairs at distance d:

    LDS  = c(1) - mean of u_i·u_j over pairs with d >= 6      local-versus-distant similarity
    CDS  = -slope of the least-squares line through c(1) .. c(8)   correlation-decay slope
    RMSC = sqrt(mean_i |u_i - mean_j u_j|²)                   root mean square contrast

The paper names the first; exact forms and the numbers 6 and 8 are those of public code that implements its metrics
(LDS, CDS, SRSS, RMSC) for 16x16 grids. SRSS needs masks of regions and is not here. All are float64, and of single
images: over parts of a set, lists of them join. ``selfsim_error`` compares two maps (bridge.md, section 9).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..blocks.shapes import Map

FAR, MOST = 6, 8
CHUNK = 512
"""Tokens that are compared with all others at a time."""


def unit_tokens(maps: Map) -> Map:
    return F.normalize(maps.detach().cpu().double(), dim=1, eps=1e-300)


def similarity_by_distance(maps: Map, most: int) -> tuple[Float[Tensor, "b d"], Int[Tensor, " d"]]:
    """Sums of cosines over the pairs of tokens at each Manhattan distance 0 .. ``most``, and the numbers of pairs.

    A pair counts once, and at distance 0 are no pairs. It takes as many steps as there are shifts within ``most``, and
    never makes the matrix of all pairs.
    """
    u = unit_tokens(maps)
    height, width = u.shape[2:]
    sums, counts = torch.zeros(len(u), most + 1, dtype=torch.float64), torch.zeros(most + 1, dtype=torch.int64)
    for down in range(min(most, height - 1) + 1):
        reach = most - down
        for across in range(-reach if down else 1, reach + 1):
            if abs(across) >= width:
                continue
            left, right = max(-across, 0), max(across, 0)
            one = u[:, :, : height - down, left : width - right]
            other = u[:, :, down:, right : width - left]
            sums[:, down + abs(across)] += (one * other).sum(dim=(1, 2, 3))
            counts[down + abs(across)] += one.shape[2] * one.shape[3]
    return sums, counts


def local_distant_similarity(maps: Map, *, far: int = FAR) -> Float[Tensor, " b"]:
    """LDS of each image: mean cosine of direct neighbours less that of pairs at least ``far`` apart.

    Raises:
        ValueError: no two tokens of the grid are so far apart.
    """
    height, width = maps.shape[2:]
    if not 2 <= far <= height + width - 2:
        raise ValueError(
            f"far: must be from 2 to {height + width - 2} on a grid of {height}x{width}, got {far}; "
            "a larger image has more tokens"
        )
    sums, counts = similarity_by_distance(maps, far - 1)
    u = unit_tokens(maps)
    every = (u.sum(dim=(2, 3)).square().sum(dim=1) - u.square().sum(dim=(1, 2, 3))) / 2
    n = height * width
    distant = (every - sums.sum(dim=1)) / (n * (n - 1) // 2 - int(counts.sum()))
    return sums[:, 1] / counts[1] - distant


def decay_slope(maps: Map, *, most: int = MOST) -> Float[Tensor, " b"]:
    """CDS of each image: by how much the mean cosine falls with a step of distance, over distances 1 .. ``most``.

    A grid that is smaller has fewer distances; raises ``ValueError`` where it has no two.
    """
    sums, counts = similarity_by_distance(maps, most)
    seen = counts.nonzero().flatten()
    if len(seen) < 2:
        height, width = maps.shape[2:]
        raise ValueError(f"grid: must have pairs at two distances, got {height}x{width} within a distance of {most}")
    x, y = seen.double(), sums[:, seen] / counts[seen]
    centred = x - x.mean()
    return -(y @ centred) / (centred @ centred)


def rms_contrast(maps: Map) -> Float[Tensor, " b"]:
    """RMSC of each image: 0 where all tokens have one direction, 1 where they cancel."""
    u = unit_tokens(maps)
    return (u - u.mean(dim=(2, 3), keepdim=True)).square().sum(dim=1).mean(dim=(1, 2)).sqrt()


def selfsim_error(maps: Map, others: Float[Tensor, "b f h w"]) -> Float[Tensor, " b"]:
    """Mean |cos(p_i, p_j) - cos(t_i, t_j)| over pairs i ≠ j of tokens of each image; both maps have one grid.

    Raises:
        ValueError: a single token, which has no pairs.
    """
    p, t = (rearrange(unit_tokens(m), "b c h w -> b (h w) c") for m in (maps, others))
    n = p.shape[1]
    if n < 2:
        raise ValueError("grid: must have at least 2 tokens, got 1")
    total = torch.zeros(len(p), dtype=torch.float64)
    for start in range(0, n, CHUNK):
        rows = slice(start, start + CHUNK)
        gap = p[:, rows] @ p.mT - t[:, rows] @ t.mT
        gap.diagonal(offset=start, dim1=1, dim2=2).zero_()
        total += gap.abs().sum(dim=(1, 2))
    return total / (n * (n - 1))
