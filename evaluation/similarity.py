"""How alike two representations of the same items are: linear CKA, CKNNA and mutual k-NN.

With kernels K = X Xᵀ and L = Y Yᵀ over n items, CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) (Kornblith et al.,
arXiv 1905.00414, eq. 1 and 3). Biased: HSIC = tr(K H L H) / (n - 1)², H the centring matrix. Unbiased (Song et al.,
JMLR 13, 2012, eq. 5), with K̃ and L̃ the kernels with zero diagonals and n > 3:

    HSIC = (tr(K̃ L̃) + 1ᵀK̃1 · 1ᵀL̃1 / ((n - 1)(n - 2)) - 2 · 1ᵀK̃ L̃1 / (n - 2)) / (n (n - 3))

For linear kernels both follow from sums over single items, which add over batches and parts (:class:`HSICSums`).

CKNNA (Huh et al., arXiv 2405.07987, appendix A) is the unbiased ratio with each kernel masked to the pairs (i, j)
where j is among the k nearest of i under *both* kernels; for HSIC(K, K) both are K. Mutual k-NN is the mean overlap
of the two sets of k nearest. Both look at all items at once and do not add over parts. They L2-normalise rows
first, which the reference implementation leaves to its callers.

By chance, between independent representations, unbiased CKA is 0, biased CKA grows with features over items, and both
CKNNA and mutual k-NN are about k/(n - 1): give them with the same number for shuffled items beside them.

A ratio whose denominator is not positive, as of a constant representation, is nan.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from .latents import Sum, Sums
from .neighbours import nearest

NEGLIGIBLE = {False: 1e-24, True: 1e-13}
"""HSIC(K, K) relative to its uncentred size, below which it is rounding: of the biased form, and of the unbiased."""


@dataclass
class HSICSums(Sums):
    """Sums from which HSIC of two linear kernels follows, biased or not."""

    count: int = 0
    products: Sum = 0
    x: Sum = 0
    y: Sum = 0
    x_by_y: Sum = 0
    y_by_x: Sum = 0
    norms: Sum = 0

    def update(self, x: Float[Tensor, "n f"], y: Float[Tensor, "n g"]) -> None:
        """Take in ``x[i]`` and ``y[i]``, two descriptions of one item."""
        x, y = x.detach().cpu().double(), y.detach().cpu().double()
        xx, yy = x.square().sum(dim=1), y.square().sum(dim=1)
        self.count += len(x)
        self.products = self.products + x.T @ y
        self.x, self.y = self.x + x.sum(dim=0), self.y + y.sum(dim=0)
        self.x_by_y, self.y_by_x = self.x_by_y + yy @ x, self.y_by_x + xx @ y
        self.norms = self.norms + torch.stack([xx.sum(), yy.sum(), xx @ yy])

    def hsic(self, *, unbiased: bool) -> float:
        """Raises ``ValueError`` where too few items were seen: two at least, four for the unbiased form."""
        n = self.count
        _check_count(n, unbiased=unbiased)
        products, x, y, x_by_y, y_by_x, norms = (
            torch.as_tensor(s) for s in (self.products, self.x, self.y, self.x_by_y, self.y_by_x, self.norms)
        )
        if not unbiased:
            return (products - torch.outer(x, y) / n).square().sum().item() / (n - 1) ** 2
        xx, yy, both = norms
        trace = products.square().sum() - both
        total = (x @ x - xx) * (y @ y - yy)
        rows = x @ products @ y - x @ x_by_y - y @ y_by_x + both  # the i-th row of K̃ sums to x_i·Σx - |x_i|²
        return ((trace + total / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)) / (n * (n - 3))).item()

    def is_negligible(self, value: float, *, unbiased: bool) -> bool:
        size = torch.as_tensor(self.norms)[:2].prod().item() / self.count**2
        return value <= NEGLIGIBLE[unbiased] * size


@dataclass
class CKASums:
    """Sums for linear CKA between two representations, over any parts of a set."""

    xx: HSICSums = field(default_factory=HSICSums)
    yy: HSICSums = field(default_factory=HSICSums)
    xy: HSICSums = field(default_factory=HSICSums)

    def update(self, x: Float[Tensor, "n f"], y: Float[Tensor, "n g"]) -> None:
        self.xx.update(x, x)
        self.yy.update(y, y)
        self.xy.update(x, y)

    def merge(self, other: "CKASums") -> "CKASums":
        """The sums of both parts together."""
        return CKASums(self.xx.merge(other.xx), self.yy.merge(other.yy), self.xy.merge(other.xy))

    def cka(self, *, unbiased: bool = False) -> float:
        xx, yy = (sums.hsic(unbiased=unbiased) for sums in (self.xx, self.yy))
        if self.xx.is_negligible(xx, unbiased=unbiased) or self.yy.is_negligible(yy, unbiased=unbiased):
            return math.nan
        return self.xy.hsic(unbiased=unbiased) / math.sqrt(xx * yy)


def linear_cka(x: Float[Tensor, "n f"], y: Float[Tensor, "n g"], *, unbiased: bool = False) -> float:
    """Linear CKA between two representations of n items; at least 2, and 4 for the unbiased form."""
    _check_count(len(x), unbiased=unbiased)
    sums = CKASums()
    sums.update(*(z - z.mean(dim=0) for z in (x.detach().cpu().double(), y.detach().cpu().double())))
    return sums.cka(unbiased=unbiased)


def cknna(x: Float[Tensor, "n f"], y: Float[Tensor, "n g"], k: int) -> float:
    """Unbiased CKA of the pairs that are k-nearest under both; ``k = n - 1`` is that of all pairs.

    Raises:
        ValueError: k below 2 or not below n, or fewer than 4 items.
    """
    n = len(x)
    _check_count(n, unbiased=True)
    if not 2 <= k < n:
        raise ValueError(f"k: must be at least 2 and below the number of items, {n}, got {k}")
    xs, ys = _masked(x, k), _masked(y, k)
    denominator = _masked_hsic(xs, xs, n) * _masked_hsic(ys, ys, n)
    return _masked_hsic(xs, ys, n) / math.sqrt(denominator) if denominator > 0 else math.nan


def mutual_knn(x: Float[Tensor, "n f"], y: Float[Tensor, "n g"], k: int) -> float:
    """Mean share of an item's k nearest that are the same in both; by chance it is k/(n - 1)."""
    (a, _), (b, _) = (nearest(z, z, k, leave_out_self=True) for z in (x, y))
    return (a[:, :, None] == b[:, None, :]).any(dim=2).double().mean().item()


Masked = tuple[Tensor, Tensor]
"""Entries of a kernel that are not masked: their places i·n + j, rising, and values."""


def _masked(x: Tensor, k: int) -> Masked:
    indices, cosines = nearest(x, x, k, leave_out_self=True)
    places = torch.arange(len(x))[:, None] * len(x) + indices
    order = places.flatten().sort()
    return order.values, cosines.flatten()[order.indices]


def _masked_hsic(first: Masked, second: Masked, n: int) -> float:
    places, values, others = _shared(*first, *second)
    rows, columns = places // n, places % n
    _, ours, theirs = _shared(places, values, *_sorted(columns * n + rows, others))
    row_sums = torch.zeros(n, dtype=torch.float64).index_add_(0, rows, others)
    column_sums = torch.zeros(n, dtype=torch.float64).index_add_(0, columns, values)
    trace = (ours * theirs).sum()
    total = values.sum() * others.sum()
    through = column_sums @ row_sums
    return ((trace + total / ((n - 1) * (n - 2)) - 2 * through / (n - 2)) / (n * (n - 3))).item()


def _shared(places: Tensor, values: Tensor, others: Tensor, their_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Places in both, and the values there of each; both lists of places rise."""
    at = torch.searchsorted(others, places).clamp_max(max(len(others) - 1, 0))
    both = others[at] == places if len(others) else torch.zeros(len(places), dtype=torch.bool)
    return places[both], values[both], their_values[at[both]]


def _sorted(places: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    order = places.sort()
    return order.values, values[order.indices]


def _check_count(n: int, *, unbiased: bool) -> None:
    least = 4 if unbiased else 2
    if n < least:
        form = "unbiased HSIC" if unbiased else "HSIC"
        raise ValueError(f"items: {form} takes at least {least}, got {n}")
