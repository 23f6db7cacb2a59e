"""Neighbours and linear probes: against scikit-learn and plain loops, on planted classes, and what they refuse."""

import itertools
import math
import re
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from latelier.evaluation import (
    FeatureSums,
    knn_accuracy,
    nearest,
    retrieval,
    retrieval_hits,
    ridge,
    self_knn_accuracy,
    sgd,
    top_k_accuracy,
)


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(pixels), torch.from_numpy(labels)
    return x[:1000], y[:1000], x[1000:], y[1000:]


def classes(n: int, *, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes along three axes, whose items are spread around them."""
    labels = torch.arange(n) % 3
    return torch.eye(3, 4)[labels] + spread * torch.randn(n, 4), labels


# --- neighbours -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.07, None])
def test_digits_are_classified_as_scikit_learn_does(temperature: float | None) -> None:
    x, y, test_x, test_y = digits()
    found = knn_accuracy(x, y, test_x, test_y, ks=(1, 5, 20), temperature=temperature)
    for k, share in found.items():
        weights: Any = "uniform" if temperature is None else lambda d: np.exp((1 - d) / 0.07)
        theirs = KNeighborsClassifier(k, metric="cosine", weights=weights).fit(x.numpy(), y.numpy())
        assert share == pytest.approx(theirs.score(test_x.numpy(), test_y.numpy()), abs=1e-12), k
        assert share > 0.93


@given(n=st.integers(5, 20), k=st.integers(1, 4), temperature=st.sampled_from([0.07, 1.0, None]))
@settings(max_examples=15)
def test_each_item_is_classified_by_all_others(n: int, k: int, temperature: float | None) -> None:
    features, labels = classes(n, spread=0.7)
    hits = 0
    for i in range(n):
        others = [j for j in range(n) if j != i]
        cosines = torch.cosine_similarity(features[i][None].double(), features[others].double())
        order = cosines.argsort(descending=True, stable=True)[:k]
        poll = [0.0, 0.0, 0.0]
        for j in order.tolist():
            poll[labels[others[j]]] += 1 if temperature is None else math.exp(cosines[j].item() / temperature)
        hits += max(range(3), key=lambda c: (poll[c], -c)) == labels[i]
    found = self_knn_accuracy(features, labels, ks=(k,), temperature=temperature)
    assert found == {k: pytest.approx(hits / n)}


def test_no_item_votes_for_itself() -> None:
    features, labels = torch.eye(6), torch.arange(6)
    assert self_knn_accuracy(features, labels, ks=(1, 5)) == {1: 0.0, 5: 0.0}
    assert knn_accuracy(features, labels, features, labels, ks=(1,)) == {1: 1.0}


def test_equal_similarities_are_ordered_by_index_and_length_does_not_count() -> None:
    candidates = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.5, 0.0], [9.0, 0.0]])
    indices, cosines = nearest(torch.tensor([[7.0, 0.0]]), candidates, 4)
    assert indices.tolist() == [[0, 2, 3, 1]]
    assert cosines.tolist() == [[1.0, 1.0, 1.0, 0.0]]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(23, 5)
    whole = nearest(x, x, 4, leave_out_self=True)
    targets = x + torch.randn(23, 5)
    hits = retrieval_hits(x, targets, torch.arange(23))
    monkeypatch.setattr("latelier.evaluation.neighbours.CHUNK", 7)
    assert torch.equal(nearest(x, x, 4, leave_out_self=True)[0], whole[0])
    torch.testing.assert_close(retrieval_hits(x, targets, torch.arange(23)), hits)


def test_hits_of_parts_of_the_queries_join() -> None:
    queries, candidates, own = torch.randn(30, 6), torch.randn(30, 6), torch.arange(30)
    parts = [retrieval_hits(queries[a:b], candidates, own[a:b]) for a, b in ((0, 11), (11, 30))]
    torch.testing.assert_close(torch.cat(parts), retrieval_hits(queries, candidates, own))


# --- retrieval ------------------------------------------------------------------------------------------------------


def test_ranks_are_counted_by_loops() -> None:
    targets = torch.randn(40, 6)
    predictions = targets + 1.5 * torch.randn(40, 6)
    found = retrieval(predictions, targets, pooling="meanpool")
    for k in (1, 5, 10):
        hits = 0
        for i in range(40):
            cosines = torch.cosine_similarity(predictions[i][None].double(), targets.double())
            hits += int((cosines > cosines[i]).sum()) < k
        assert found[f"r@{k}_meanpool_N40"] == pytest.approx(hits / 40)


def test_a_perfect_predictor_retrieves_all_and_the_control_does_not() -> None:
    targets = torch.randn(64, 16)
    found = retrieval(3 * targets, targets, pooling="flatten")
    assert list(found) == [f"r@{k}_flatten_N64{s}" for s in ("", "_shuffled") for k in (1, 5, 10)]
    assert [found[f"r@{k}_flatten_N64"] for k in (1, 5, 10)] == [1, 1, 1]
    shuffled = [
        [retrieval(targets, targets, pooling="flatten", seed=s)[f"r@{k}_flatten_N64_shuffled"] for s in range(60)]
        for k in (1, 5, 10)
    ]
    for k, shares in zip((1, 5, 10), shuffled, strict=True):
        assert sum(shares) / 60 == pytest.approx(k / 64, abs=0.012)


def test_a_predictor_that_always_says_the_same_has_exactly_chance() -> None:
    for predictions, targets in ((torch.ones(20, 3), torch.randn(20, 3)), (torch.randn(20, 3), torch.ones(20, 3))):
        found = retrieval(predictions, targets, pooling="meanpool")
        assert [found[f"r@{k}_meanpool_N20"] for k in (1, 5, 10)] == pytest.approx([1 / 20, 5 / 20, 10 / 20])


def test_a_k_that_cannot_miss_is_left_out() -> None:
    assert list(retrieval(torch.eye(5), torch.eye(5), pooling="cls")) == ["r@1_cls_N5", "r@1_cls_N5_shuffled"]


# --- linear probes --------------------------------------------------------------------------------------------------


def test_the_ridge_probe_is_that_of_scikit_learn() -> None:
    x, y, test_x, test_y = digits()
    sums = FeatureSums()
    sums.update(x, y, classes=10)
    scores = ridge(sums, penalty=0.02)(test_x)
    scaler = StandardScaler().fit(x.numpy())
    theirs = Ridge(alpha=0.02 * len(x)).fit(scaler.transform(x.numpy()), np.eye(10)[y])
    np.testing.assert_allclose(scores.numpy(), theirs.predict(scaler.transform(test_x.numpy())), atol=1e-9)
    found = top_k_accuracy(scores, test_y)
    assert 0.85 < found[1] < found[5] < 1


@given(cuts=st.lists(st.integers(0, 40), max_size=3))
@settings(max_examples=10)
def test_the_ridge_probe_adds_over_parts(cuts: list[int]) -> None:
    features, labels = classes(40, spread=0.5)
    whole, merged = FeatureSums(), FeatureSums()
    whole.update(features, labels, classes=3)
    edges = [0, *sorted(cuts), 40]
    for a, b in itertools.pairwise(edges):
        part = FeatureSums()
        part.update(features[a:b], labels[a:b], classes=3)
        merged = part.merge(merged)
    torch.testing.assert_close(ridge(merged)(features), ridge(whole)(features), rtol=1e-9, atol=1e-9)


def test_gradient_descent_comes_to_logistic_regression() -> None:
    features, labels = classes(300, spread=0.8)
    ours = sgd(features, labels, classes=3, epochs=400, batch=300)
    scaled = StandardScaler().fit_transform(features.numpy())
    theirs = LogisticRegression(C=1e6, max_iter=1000).fit(scaled, labels.numpy())
    np.testing.assert_allclose(ours(features).softmax(dim=1).numpy(), theirs.predict_proba(scaled), atol=2e-3)


def test_gradient_descent_takes_the_steps_of_torch_at_a_rate_that_falls_as_a_cosine() -> None:
    features, labels = classes(30, spread=0.8)
    x = torch.from_numpy(StandardScaler().fit_transform(features.double().numpy()))
    theirs = torch.nn.Linear(4, 3, dtype=torch.float64)
    torch.nn.init.zeros_(theirs.weight)
    torch.nn.init.zeros_(theirs.bias)
    optimiser = torch.optim.SGD(theirs.parameters(), lr=0.5, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=7)
    for _ in range(7):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(theirs(x), labels).backward()
        optimiser.step()
        schedule.step()
    ours = sgd(features, labels, classes=3, epochs=7, batch=30, rate=0.5)
    torch.testing.assert_close(ours(features), theirs(x).detach())


def test_gradient_descent_of_the_named_variant_classifies_digits() -> None:
    x, y, test_x, test_y = digits()
    first, second = (top_k_accuracy(sgd(x, y, classes=10)(test_x), test_y) for _ in range(2))
    assert first == second
    assert first[1] > 0.88
    assert first[5] > 0.98


def test_constant_features_are_ignored() -> None:
    features, labels = classes(60, spread=0.3)
    wider = torch.cat([features, torch.full((60, 2), 0.1)], dim=1)
    sums, with_constants = FeatureSums(), FeatureSums()
    sums.update(features, labels, classes=3)
    with_constants.update(wider, labels, classes=3)
    moved = wider.clone()
    moved[:, 4:] = 99.0
    torch.testing.assert_close(ridge(with_constants)(moved), ridge(sums)(features))
    torch.testing.assert_close(sgd(wider, labels, classes=3)(moved), sgd(features, labels, classes=3)(features))


def test_the_label_among_the_first_k_scores_counts() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 2.0]])
    found = top_k_accuracy(scores, torch.tensor([1, 1, 0]), ks=(1, 2, 3))
    assert found == {1: 0.0, 2: pytest.approx(2 / 3), 3: 1.0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: nearest(x, x, 0), "k: must be from 1 to 5, the number of candidates, got 0"),
        (lambda x, y: self_knn_accuracy(x, y, ks=(5,)), "k: must be from 1 to 4, the number of candidates, got 5"),
        (
            lambda x, y: retrieval(x[:4], x, pooling="cls"),
            "retrieval: takes a prediction for each target, got 4 for 5",
        ),
        (
            lambda x, y: retrieval(x[:1], x[:1], pooling="cls"),
            "retrieval: takes at least 2 images to choose among, got 1",
        ),
    ],
)
def test_too_few_items_are_refused(call: Any, message: str, as_users_run_it: None) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(torch.randn(5, 3), torch.arange(5))
