"""Nearest neighbours by cosine: k-NN classification, self-kNN, and retrieval@k with its control.

Rows are L2-normalised first; all arithmetic is float64. Equal similarities are ordered by index, so that a number
is the same on every machine. k-NN as DINO's (arXiv 2104.14294, appendix F.1) and, on latents, DC-Gen's: the k
nearest vote with weights softmax(cosine / T), T = 0.07; ``self_knn_accuracy`` leaves each item out of its own vote.
Every query counts by itself: over parts of the queries, with all candidates, hits add.

Retrieval@k (bridge.md, section 9): the share of predictions whose own target is among the k candidates of the highest
cosine. Candidates that tie with the target are ordered at random, of which the expectation is taken: a predictor that
says the same of every image has exactly k/N.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..blocks.draws import address

TEMPERATURE = 0.07
GRAIN = 2.0**-40
"""Cosines are rounded to multiples of it, 1e-12: equal candidates tie, whatever the order of a machine's sums."""

CHUNK = 1024
"""Queries that are compared with all candidates at a time."""


def unit_rows(x: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
    """Each row over its length, float64; a row of zeros stays."""
    return F.normalize(x.detach().cpu().double(), dim=1, eps=1e-300)


def _similarities(
    queries: Float[Tensor, "q f"], candidates: Float[Tensor, "n f"]
) -> Iterator[tuple[slice, Float[Tensor, "_ n"]]]:
    candidates = unit_rows(candidates)
    for start in range(0, len(queries), CHUNK):
        rows = slice(start, min(start + CHUNK, len(queries)))
        yield rows, ((unit_rows(queries[rows]) @ candidates.T) / GRAIN).round() * GRAIN


def nearest(
    queries: Float[Tensor, "q f"], candidates: Float[Tensor, "n f"], k: int, *, leave_out_self: bool = False
) -> tuple[Int[Tensor, "q k"], Float[Tensor, "q k"]]:
    """Indices and cosines of the k nearest candidates of each query, nearest first.

    With ``leave_out_self`` the queries are the candidates, and none is its own neighbour.

    Raises:
        ValueError: there are fewer than k candidates.
    """
    available = len(candidates) - leave_out_self
    if not 1 <= k <= available:
        raise ValueError(f"k: must be from 1 to {available}, the number of candidates, got {k}")
    indices, cosines = [], []
    for rows, similarity in _similarities(queries, candidates):
        if leave_out_self:
            similarity[torch.arange(len(similarity)), torch.arange(rows.start, rows.stop)] = -torch.inf
        ordered = similarity.sort(dim=1, descending=True, stable=True)
        indices.append(ordered.indices[:, :k].clone())
        cosines.append(ordered.values[:, :k].clone())
    return torch.cat(indices), torch.cat(cosines)


# --- classification -------------------------------------------------------------------------------------------------


def votes(
    labels: Int[Tensor, "q k"], cosines: Float[Tensor, "q k"], *, classes: int, temperature: float | None
) -> Float[Tensor, "q classes"]:
    """What neighbours of those labels vote for; without a temperature they all count alike."""
    weights = torch.ones_like(cosines) if temperature is None else (cosines / temperature).softmax(dim=1)
    return torch.zeros(len(labels), classes, dtype=torch.float64).scatter_add_(1, labels, weights)


def knn_accuracy(
    train: Float[Tensor, "n f"],
    train_labels: Int[Tensor, " n"],
    test: Float[Tensor, "q f"],
    test_labels: Int[Tensor, " q"],
    *,
    ks: Sequence[int] = (1, 5, 10, 20),
    temperature: float | None = TEMPERATURE,
) -> dict[int, float]:
    """Share of test items, for each k, whose label wins the vote of their k nearest training items.

    Of labels with equal votes the smallest wins. Raises ``ValueError`` where there are fewer than k training items.
    """
    return _accuracies(nearest(test, train, max(ks)), train_labels, test_labels, ks, temperature)


def self_knn_accuracy(
    features: Float[Tensor, "n f"],
    labels: Int[Tensor, " n"],
    *,
    ks: Sequence[int] = (1, 5, 10, 20),
    temperature: float | None = TEMPERATURE,
) -> dict[int, float]:
    """The same within one set, every item classified by the others."""
    return _accuracies(nearest(features, features, max(ks), leave_out_self=True), labels, labels, ks, temperature)


def _accuracies(
    found: tuple[Tensor, Tensor], known: Tensor, wanted: Tensor, ks: Sequence[int], temperature: float | None
) -> dict[int, float]:
    indices, cosines = found
    classes = int(torch.cat([known, wanted]).max()) + 1
    accuracies = {}
    for k in ks:
        poll = votes(known[indices[:, :k]], cosines[:, :k], classes=classes, temperature=temperature)
        accuracies[k] = (poll.argmax(dim=1) == wanted).double().mean().item()
    return accuracies


# --- retrieval ------------------------------------------------------------------------------------------------------


def retrieval_hits(
    queries: Float[Tensor, "q f"],
    candidates: Float[Tensor, "n f"],
    own: Int[Tensor, " q"],
    *,
    ks: Sequence[int] = (1, 5, 10),
) -> Float[Tensor, "q ks"]:
    """Whether candidate ``own[i]`` is among the k nearest of query i: 1, 0, or the chance that a tie leaves it."""
    return _hits(queries, candidates, [own], ks)[0]


def _hits(queries: Tensor, candidates: Tensor, owns: Sequence[Tensor], ks: Sequence[int]) -> list[Tensor]:
    """The hits of several assignments, for which similarities are computed once."""
    hits: list[list[Tensor]] = [[] for _ in owns]
    for rows, similarity in _similarities(queries, candidates):
        for own, found in zip(owns, hits, strict=True):
            target = similarity.gather(1, own[rows, None])
            nearer = (similarity > target).sum(dim=1)
            equal = (similarity == target).sum(dim=1)
            found.append(torch.stack([((k - nearer).double() / equal).clamp(0, 1) for k in ks], dim=1))
    return [torch.cat(found) for found in hits]


def retrieval(
    predictions: Float[Tensor, "n f"],
    targets: Float[Tensor, "n f"],
    *,
    pooling: str,
    ks: Sequence[int] = (1, 5, 10),
    seed: int = 0,
) -> dict[str, float]:
    """``r@k_<pooling>_N<n>``, and the control ``..._shuffled`` where targets belong to other images at random.

    ``pooling`` says how a row was made of an image's tokens: "flatten", "meanpool" or "cls". A k that is not below N
    is left out, since it could not miss.

    Raises:
        ValueError: not as many predictions as targets, or fewer than two.
    """
    n = len(targets)
    if len(predictions) != n:
        raise ValueError(f"retrieval: takes a prediction for each target, got {len(predictions)} for {n}")
    if n < 2:
        raise ValueError(f"retrieval: takes at least 2 images to choose among, got {n}")
    ks = [k for k in ks if k < n]
    permutation = torch.randperm(n, generator=torch.Generator().manual_seed(address(seed, "retrieval", n)))
    found = {}
    hits = _hits(predictions, targets, [torch.arange(n), permutation], ks)
    for suffix, found_hits in zip(("", "_shuffled"), hits, strict=True):
        shares = found_hits.mean(dim=0).tolist()
        found |= {f"r@{k}_{pooling}_N{n}{suffix}": share for k, share in zip(ks, shares, strict=True)}
    return found
