"""Distances between populations equal scipy, scikit-learn, torchmetrics and closed forms."""

import math
import re
from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from latelier.blocks import Moments, frechet_distance, moments
from latelier.evaluation import GaussianSums, frechet, inception_score, kid, prdc


def rows(n: int, f: int, *, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    mixing = torch.randn(f, f, generator=torch.Generator().manual_seed(99))
    return scale * torch.randn(n, f, generator=torch.Generator().manual_seed(seed)) @ mixing + shift


def summed(*parts: torch.Tensor) -> Moments:
    total = GaussianSums()
    for part in parts:
        one = GaussianSums()
        one.update(part)
        total = total.merge(one)
    return total.moments()


@settings(max_examples=10)
@given(f=st.integers(1, 12), seed=st.integers(0, 99), shift=st.sampled_from([0.0, 3.0]))
def test_frechet_equals_scipys_matrix_square_root(f: int, seed: int, shift: float) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a, b = rows(40, f, seed=seed), rows(50, f, seed=seed + 1000, scale=1.5, shift=shift)
    cov_a, cov_b = (np.cov(x.double().numpy(), rowvar=False).reshape(f, f) for x in (a, b))
    difference = a.double().numpy().mean(0) - b.double().numpy().mean(0)
    root = linalg.sqrtm(cov_a @ cov_b)
    expected = difference @ difference + np.trace(cov_a + cov_b - 2 * root.real)
    assert frechet(summed(a), summed(b)) == pytest.approx(expected, rel=1e-7, abs=1e-7)


def test_frechet_of_known_gaussians_is_the_closed_form() -> None:
    a = Moments(torch.tensor([1.0, 2.0]).double(), torch.diag(torch.tensor([4.0, 9.0])).double())
    b = Moments(torch.tensor([0.0, 0.0]).double(), torch.diag(torch.tensor([1.0, 1.0])).double())
    assert frechet(a, b) == pytest.approx(1 + 4 + (2 - 1) ** 2 + (3 - 1) ** 2, abs=1e-12)
    assert frechet(a, b) == pytest.approx(frechet(b, a), abs=1e-12)


@pytest.mark.parametrize("n", [5, 40])
def test_a_set_is_at_no_distance_from_itself(n: int) -> None:
    assert frechet(summed(rows(n, 16)), summed(rows(n, 16))) == pytest.approx(0, abs=1e-10)


def test_frechet_agrees_with_the_loss() -> None:
    a, b = moments(rows(40, 6)), moments(rows(40, 6, seed=1))
    expected = frechet_distance(a.mean, a.cov, b.mean, b.cov).item()
    assert frechet(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [7, 60])  # fewer rows than features too: the covariance is singular
@pytest.mark.parametrize("parts", [2, 3])
def test_parts_of_a_set_give_its_distance_to_1e_9(n: int, parts: int) -> None:
    a, b = rows(n, 24, shift=50.0), rows(n, 24, seed=1, shift=50.0)
    whole = frechet(summed(a), summed(b))
    assert frechet(summed(*a.tensor_split(parts)), summed(*b.tensor_split(parts))) == pytest.approx(whole, abs=1e-9)


def test_sums_are_float64_where_float32_would_be_wrong() -> None:
    a = rows(4000, 3, scale=0.01, shift=100.0)
    expected = torch.cov(a.double().T)
    torch.testing.assert_close(summed(a).cov, expected, rtol=1e-4, atol=1e-9)
    mean = a.sum(0) / len(a)
    in_float32 = (a.T @ a - len(a) * torch.outer(mean, mean)) / (len(a) - 1)
    assert (in_float32 - expected).abs().max() > 10 * expected.abs().max()


@pytest.mark.parametrize("subset_size", [10, 30])
def test_kid_equals_torchmetrics(subset_size: int) -> None:
    from torchmetrics.image.kid import poly_mmd

    a, b = rows(30, 8).double(), rows(30, 8, seed=1, shift=0.3).double()
    if subset_size == 30:  # the subset is the set, in another order
        found = kid(a.float(), b.float(), subsets=2, subset_size=30)
        assert found["mean"] == pytest.approx(poly_mmd(a.float().double(), b.float().double()).item(), rel=1e-9)
        assert found["std"] == pytest.approx(0, abs=1e-12)
    else:
        found = kid(a.float(), b.float(), subsets=400, subset_size=10)
        whole = poly_mmd(a, b).item()
        assert abs(found["mean"] - whole) < 4 * found["std"] / math.sqrt(400) + 0.1 * abs(whole)


def test_kid_is_unbiased_and_repeats() -> None:
    a, b = torch.randn(2000, 4), torch.randn(2000, 4)
    found = kid(a, b, subsets=200, subset_size=40)
    assert abs(found["mean"]) < 5 * found["std"] / math.sqrt(200)
    assert kid(a, b, subsets=5, subset_size=40) == kid(a, b, subsets=5, subset_size=40)
    assert kid(a, b, subsets=5, subset_size=40, seed=1) != kid(a, b, subsets=5, subset_size=40)


@settings(max_examples=10)
@given(n=st.integers(6, 40), m=st.integers(6, 40), k=st.integers(1, 5), shift=st.sampled_from([0.0, 2.0]))
def test_precision_and_recall_equal_scikit_learns_neighbours(n: int, m: int, k: int, shift: float) -> None:
    neighbours = pytest.importorskip("sklearn.neighbors").NearestNeighbors
    pairwise = pytest.importorskip("sklearn.metrics").pairwise_distances
    ours, theirs = rows(n, 3).double(), rows(m, 3, seed=1, shift=shift).double()
    radii = [
        neighbours(n_neighbors=k, algorithm="brute").fit(x.numpy()).kneighbors(return_distance=True)[0][:, -1]
        for x in (ours, theirs)
    ]
    distance = pairwise(ours.numpy(), theirs.numpy())
    inside = distance <= radii[1]
    expected = {
        "precision": inside.any(1).mean(),
        "recall": (distance <= radii[0][:, None]).any(0).mean(),
        "density": inside.sum() / (k * n),
        "coverage": inside.any(0).mean(),
    }
    assert prdc(ours, theirs, k=k) == pytest.approx(expected, abs=1e-12)


def test_precision_of_a_set_with_itself_is_whole_and_of_a_far_one_nothing() -> None:
    a = rows(30, 4)
    assert prdc(a, a)["precision"] == prdc(a, a)["recall"] == prdc(a, a)["coverage"] == 1
    assert prdc(a, a + 1000) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_the_inception_score_equals_its_formula() -> None:
    logits = 3 * torch.randn(53, 7)
    order = np.random.RandomState(2020).permutation(53)
    p = np.exp(logits.double().numpy()) / np.exp(logits.double().numpy()).sum(1, keepdims=True)
    for seed, shuffled in ((2020, p[order]), (None, p)):
        scores = []
        for i in range(10):
            chunk = shuffled[i * 53 // 10 : (i + 1) * 53 // 10]
            scores.append(np.exp((chunk * (np.log(chunk) - np.log(chunk.mean(0)))).sum(1).mean()))
        expected = {"mean": np.mean(scores), "std": np.std(scores)}
        assert inception_score(logits, shuffle_seed=seed) == pytest.approx(expected, rel=1e-12)


def test_the_inception_score_of_sure_and_even_classes_is_their_number() -> None:
    logits = 2000.0 * torch.eye(4).repeat(5, 1)  # all but one probability underflow
    assert inception_score(logits, splits=1)["mean"] == pytest.approx(4)
    assert inception_score(torch.zeros(8, 4), splits=2) == pytest.approx({"mean": 1, "std": 0})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GaussianSums().moments(), "moments: takes at least 2 rows of features, got 0"),
        (
            lambda: frechet(summed(rows(5, 2)), summed(rows(5, 3))),
            "frechet: moments of 2 and of 3 features do not compare",
        ),
        (
            lambda: frechet(summed(rows(5, 2)), summed(rows(5, 2) * math.nan)),
            "frechet: moments are not finite; some image gave features that are not",
        ),
        (
            lambda: kid(rows(9, 2), rows(5, 2), subset_size=6),
            "kid: subset_size must be from 2 to 5, the rows of the smaller set, got 6",
        ),
        (lambda: kid(rows(9, 2), rows(5, 3)), "kid: rows of 2 and of 3 features do not compare"),
        (
            lambda: prdc(rows(9, 2), rows(5, 2), k=5),
            "prdc: k must be from 1 to 4, below the rows of the smaller set, got 5",
        ),
        (
            lambda: inception_score(rows(5, 2)),
            "inception_score: splits must be from 1 to 5, the rows, got 10",
        ),
    ],
)
@pytest.mark.usefixtures("as_users_run_it")
def test_what_cannot_be_computed_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()
