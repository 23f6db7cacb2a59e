"""Distances between populations of features: Fréchet, kernel (KID), precision and recall, and the Inception Score.

All arithmetic is float64. Moments come from :class:`GaussianSums`, which add over parts of a set.

Fréchet distance (Heusel et al. 2017): |mu - mu'|² + tr S + tr S' - 2 tr (S^½ S' S^½)^½. The roots are symmetric
eigenvalue forms with eigenvalues clamped at 0. The last trace is computed as the sum of the singular values of
S^½ S'^½, the same number: square roots of eigenvalues of the product would turn rounding of 1e-16 into 1e-8, for each
feature that a small set leaves without variance.

KID (arXiv 1801.01401): the unbiased estimate of MMD² with the kernel (x·y/f + 1)³, mean over subsets.
Precision and recall (arXiv 1904.06991): the share of one set within the k-NN balls of the other; density and coverage
(arXiv 2002.09797): how many balls of the reference hold a sample, over k; the share of balls that hold one.
Inception Score (arXiv 1606.03498): exp of the mean KL(p(y|x) | p(y)), over parts of the set.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..blocks.draws import address
from ..blocks.frechet import Moments
from .latents import Sum, Sums

Rows = Float[Tensor, "n f"]
References = Float[Tensor, "m f"]
CHUNK = 1024
"""Rows that are compared with all others at a time."""


@dataclass
class GaussianSums(Sums):
    """Count, sum and sum of outer products of rows, float64."""

    count: int = 0
    total: Sum = 0
    outer: Sum = 0

    def update(self, rows: Rows) -> None:
        x = rows.detach().cpu().double()
        self.count += len(x)
        self.total = self.total + x.sum(dim=0)
        self.outer = self.outer + x.T @ x

    def moments(self) -> Moments:
        """Mean and unbiased covariance; raises ``ValueError`` for fewer than two rows."""
        if self.count < 2 or isinstance(self.total, int) or isinstance(self.outer, int):
            raise ValueError(f"moments: takes at least 2 rows of features, got {self.count}")
        mean = self.total / self.count
        return Moments(mean, (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1))


# --- Fréchet distance ---------------------------------------------------------------------------------------------


def frechet(ours: Moments, theirs: Moments) -> float:
    """Squared Fréchet distance of two Gaussians; the same both ways round.

    Raises:
        ValueError: of different widths, or moments that are not finite.
    """
    if ours.mean.shape != theirs.mean.shape:
        raise ValueError(f"frechet: moments of {len(ours.mean)} and of {len(theirs.mean)} features do not compare")
    for side in (ours, theirs):
        if not (side.mean.isfinite().all() and side.cov.isfinite().all()):
            raise ValueError("frechet: moments are not finite; some image gave features that are not")
    (root_a, trace_a), (root_b, trace_b) = _root(ours.cov), _root(theirs.cov)
    overlap = torch.linalg.svdvals(root_a @ root_b).sum()
    distance = (ours.mean.double() - theirs.mean.double()).square().sum() + trace_a + trace_b - 2 * overlap
    return max(distance.item(), 0.0)  # rounding alone makes it negative


def _root(cov: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric root of a covariance, and the trace that belongs to it."""
    cov = cov.double()
    values, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    values = values.clamp_min(0)
    return (vectors * values.sqrt()) @ vectors.T, values.sum()


# --- kernel distance ----------------------------------------------------------------------------------------------


def kid(
    ours: Rows, theirs: References, *, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> dict[str, float]:
    """``mean`` and ``std`` over random subsets of both sets; subsets that are drawn depend on ``seed`` alone.

    Raises:
        ValueError: either set is smaller than a subset, or a subset smaller than 2.
    """
    _same_width("kid", ours, theirs)
    if not 2 <= subset_size <= min(len(ours), len(theirs)):
        raise ValueError(
            f"kid: subset_size must be from 2 to {min(len(ours), len(theirs))}, the rows of the smaller set, "
            f"got {subset_size}"
        )
    if subsets < 1:
        raise ValueError(f"kid: subsets must be at least 1, got {subsets}")
    generator = torch.Generator().manual_seed(address(seed, "kid"))
    values = []
    for _ in range(subsets):
        x, y = (rows[torch.randperm(len(rows), generator=generator)[:subset_size]].double() for rows in (ours, theirs))
        within = sum(_kernel(z, z).sum() - _kernel_with_itself(z).sum() for z in (x, y)) / (len(x) * (len(x) - 1))
        values.append((within - 2 * _kernel(x, y).mean()).item())
    found = torch.tensor(values, dtype=torch.float64)
    return {"mean": found.mean().item(), "std": found.std(correction=0).item()}


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _kernel_with_itself(x: Tensor) -> Tensor:
    return (x.square().sum(dim=1) / x.shape[1] + 1) ** 3


# --- precision, recall, density, coverage -------------------------------------------------------------------------


def prdc(ours: Rows, theirs: References, *, k: int = 3) -> dict[str, float]:
    """``precision``, ``recall``, ``density``, ``coverage`` of our rows to the reference's.

    A ball reaches to the k-th nearest other row of its own set; a row on its edge is in it.

    Raises:
        ValueError: either set has no more than k rows.
    """
    _same_width("prdc", ours, theirs)
    if not 1 <= k < min(len(ours), len(theirs)):
        raise ValueError(
            f"prdc: k must be from 1 to {min(len(ours), len(theirs)) - 1}, below the rows of the smaller set, got {k}"
        )
    ours, theirs = ours.double(), theirs.double()
    our_radii, their_radii = (_radii(rows, k) for rows in (ours, theirs))
    covered_by_ours = torch.zeros(len(theirs), dtype=torch.bool)
    holds_ours = torch.zeros(len(theirs), dtype=torch.bool)
    balls = precise = 0
    for start in range(0, len(ours), CHUNK):
        distance = _distances(ours[start : start + CHUNK], theirs)
        inside = distance <= their_radii
        precise += int(inside.any(dim=1).sum())
        balls += int(inside.sum())
        covered_by_ours |= (distance <= our_radii[start : start + CHUNK, None]).any(dim=0)
        holds_ours |= inside.any(dim=0)
    return {
        "precision": precise / len(ours),
        "recall": covered_by_ours.double().mean().item(),
        "density": balls / (k * len(ours)),
        "coverage": holds_ours.double().mean().item(),
    }


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(rows: Tensor, k: int) -> Tensor:
    """Distance of each row to its k-th nearest other row."""
    return torch.cat(
        [
            _distances(rows[start : start + CHUNK], rows).kthvalue(k + 1, dim=1).values
            for start in range(0, len(rows), CHUNK)
        ]
    )


def _same_width(name: str, ours: Tensor, theirs: Tensor) -> None:
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(f"{name}: rows of {ours.shape[1]} and of {theirs.shape[1]} features do not compare")


# --- Inception Score ----------------------------------------------------------------------------------------------


def inception_score(logits: Rows, *, splits: int = 10, shuffle_seed: int | None = 2020) -> dict[str, float]:
    """``mean`` and ``std`` over ``splits`` parts of the set, in its order, or shuffled by a seed (None: not).

    torch-fidelity and DC-AE shuffle with the seed 2020 of numpy's generator, as is done here; ADM does not shuffle.

    Raises:
        ValueError: fewer rows than parts.
    """
    if not 1 <= splits <= len(logits):
        raise ValueError(f"inception_score: splits must be from 1 to {len(logits)}, the rows, got {splits}")
    if shuffle_seed is not None:
        order = np.random.RandomState(shuffle_seed).permutation(len(logits))
        logits = logits[torch.from_numpy(order)]
    scores = []
    for part in range(splits):
        log_p = logits[part * len(logits) // splits : (part + 1) * len(logits) // splits].double().log_softmax(dim=1)
        log_mean = log_p.logsumexp(dim=0) - math.log(len(log_p))  # finite where every probability underflows
        divergence = (log_p.exp() * (log_p - log_mean)).sum(dim=1)
        scores.append(divergence.mean().exp().item())
    found = torch.tensor(scores, dtype=torch.float64)
    return {"mean": found.mean().item(), "std": found.std(correction=0).item()}
