"""Likeness of representations: definitions by plain loops, invariances, planted structure, and refusals."""

import itertools
import math
import re
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from latelier.evaluation import (
    CKASums,
    cknna,
    decay_slope,
    linear_cka,
    local_distant_similarity,
    mutual_knn,
    rms_contrast,
    selfsim_error,
    similarity_by_distance,
)


def two(n: int = 12, *, f: int = 5, g: int = 4, shared: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two representations of n items with something in common."""
    x = torch.randn(n, f, dtype=torch.float64)
    return x + 0.3, shared * x @ torch.randn(f, g, dtype=torch.float64) + torch.randn(n, g, dtype=torch.float64)


# --- the definitions, read plainly ----------------------------------------------------------------------------------


def kernel(x: torch.Tensor) -> list[list[float]]:
    return [[float(a @ b) for b in x] for a in x]


def hsic_biased(k: list[list[float]], m: list[list[float]]) -> float:
    n = len(k)
    centring = torch.eye(n, dtype=torch.float64) - 1 / n
    return (
        float(
            torch.trace(
                torch.tensor(k, dtype=torch.float64) @ centring @ torch.tensor(m, dtype=torch.float64) @ centring
            )
        )
        / (n - 1) ** 2
    )


def hsic_unbiased(k: list[list[float]], m: list[list[float]]) -> float:
    """The sum over distinct indices of Song et al., eq. 4: what the closed form must equal for symmetric kernels."""
    n = len(k)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    first = sum(k[i][j] * m[i][j] for i, j in pairs) / (n * (n - 1))
    triples = [(i, j, q) for i, j in pairs for q in range(n) if q not in (i, j)]
    third = sum(k[i][j] * m[j][q] for i, j, q in triples) / (n * (n - 1) * (n - 2))
    quads = [(i, j, q, r) for i, j, q in triples for r in range(n) if r not in (i, j, q)]
    second = sum(k[i][j] * m[q][r] for i, j, q, r in quads) / (n * (n - 1) * (n - 2) * (n - 3))
    return first + second - 2 * third


def hsic_closed(k: list[list[float]], m: list[list[float]]) -> float:
    """Song et al., eq. 5, with sums written out; kernels need not be symmetric."""
    n, every = len(k), range(len(k))
    trace = sum(k[i][j] * m[j][i] for i in every for j in every if i != j)
    total = sum(k[i][j] for i in every for j in every if i != j) * sum(m[i][j] for i in every for j in every if i != j)
    through = sum(k[i][j] * m[j][q] for i in every for j in every for q in every if i != j and j != q)
    return (trace + total / ((n - 1) * (n - 2)) - 2 * through / (n - 2)) / (n * (n - 3))


def by_loops(hsic: Any, k: list[list[float]], m: list[list[float]]) -> float:
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def neighbours_by_loops(x: torch.Tensor, k: int) -> list[list[int]]:
    unit = x / x.norm(dim=1, keepdim=True)
    found = []
    for i in range(len(x)):
        others = sorted((-float(unit[i] @ unit[j]), j) for j in range(len(x)) if j != i)
        found.append([j for _, j in others[:k]])
    return found


def cknna_by_loops(x: torch.Tensor, y: torch.Tensor, k: int) -> float:
    kernels = [kernel(z / z.norm(dim=1, keepdim=True)) for z in (x, y)]
    near = [neighbours_by_loops(z, k) for z in (x, y)]

    def align(a: int, b: int) -> float:
        n = len(x)
        keep = [[j in near[a][i] and j in near[b][i] for j in range(n)] for i in range(n)]
        masked = [[[kernels[c][i][j] * keep[i][j] for j in range(n)] for i in range(n)] for c in (a, b)]
        return hsic_closed(*masked)

    return align(0, 1) / math.sqrt(align(0, 0) * align(1, 1))


@given(n=st.integers(4, 7), f=st.integers(1, 6), g=st.integers(1, 6))
@settings(max_examples=10)
def test_cka_is_its_definition(n: int, f: int, g: int) -> None:
    x, y = two(n, f=f, g=g)
    k, m = kernel(x), kernel(y)
    assert linear_cka(x, y) == pytest.approx(by_loops(hsic_biased, k, m))
    own = hsic_unbiased(k, k) * hsic_unbiased(m, m)
    assert hsic_unbiased(k, m) == pytest.approx(hsic_closed(k, m))
    sums = CKASums()
    sums.update(x, y)
    assert sums.xy.hsic(unbiased=True) == pytest.approx(hsic_unbiased(k, m), rel=1e-9, abs=1e-12)
    if own > 1e-9:
        assert linear_cka(x, y, unbiased=True) == pytest.approx(hsic_unbiased(k, m) / math.sqrt(own))


@pytest.mark.parametrize("k", [2, 3, 6])
def test_cknna_is_its_definition(k: int) -> None:
    x, y = two(13)
    assert cknna(x, y, k) == pytest.approx(cknna_by_loops(x, y, k))


def test_mutual_neighbours_are_counted() -> None:
    x, y = two(15)
    for k in (1, 4, 14):
        near = [neighbours_by_loops(z, k) for z in (x, y)]
        overlap = [len({*a} & {*b}) / k for a, b in zip(*near, strict=True)]
        assert mutual_knn(x, y, k) == pytest.approx(sum(overlap) / len(overlap))
    assert mutual_knn(x, y, 14) == 1


# --- what must hold -------------------------------------------------------------------------------------------------


@given(scale=st.floats(0.01, 100), n=st.integers(6, 30))
@settings(max_examples=10)
def test_cka_sees_no_rotation_scale_or_shift(scale: float, n: int) -> None:
    x, y = two(n)
    turned = scale * x @ torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q + torch.randn(5)
    for unbiased in (False, True):
        assert linear_cka(turned, y, unbiased=unbiased) == pytest.approx(linear_cka(x, y, unbiased=unbiased))
        assert linear_cka(turned, x, unbiased=unbiased) == pytest.approx(1)
        assert linear_cka(y, x, unbiased=unbiased) == pytest.approx(linear_cka(x, y, unbiased=unbiased))


def test_the_same_features_are_alike_in_every_measure() -> None:
    x, _ = two(40)
    assert [linear_cka(x, x), linear_cka(x, x, unbiased=True)] == pytest.approx([1, 1])
    assert [cknna(x, x, 5), mutual_knn(x, x, 5)] == pytest.approx([1, 1])
    rotated = x @ torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    assert [cknna(3 * rotated, x, 5), mutual_knn(3 * rotated, x, 5)] == pytest.approx([1, 1])


def test_independent_features_are_as_alike_as_chance_makes_them() -> None:
    unbiased, biased, near, mutual = [], [], [], []
    for _ in range(40):
        x, y = torch.randn(60, 30), torch.randn(60, 30)
        unbiased.append(linear_cka(x, y, unbiased=True))
        biased.append(linear_cka(x, y))
        near.append(cknna(x, y, 10))
        mutual.append(mutual_knn(x, y, 10))
    assert abs(sum(unbiased) / 40) < 0.03
    assert sum(biased) / 40 > 0.3
    assert sum(near) / 40 == pytest.approx(10 / 59, abs=0.02)  # by chance, as mutual k-NN
    assert sum(mutual) / 40 == pytest.approx(10 / 59, abs=0.02)


def test_with_all_pairs_cknna_is_unbiased_cka_of_unit_rows() -> None:
    x, y = two(14)
    unit = [z / z.norm(dim=1, keepdim=True) for z in (x, y)]
    assert cknna(x, y, 13) == pytest.approx(linear_cka(*unit, unbiased=True))


@given(cuts=st.lists(st.integers(0, 30), max_size=3), offset=st.sampled_from([0.0, 5.0]))
@settings(max_examples=15)
def test_sums_over_parts_are_those_of_the_whole(cuts: list[int], offset: float) -> None:
    x, y = two(30)
    whole, edges = CKASums(), [0, *sorted(cuts), 30]
    for a, b in itertools.pairwise(edges):
        part = CKASums()
        part.update(x[a:b] + offset, y[a:b] - offset)
        whole = part.merge(whole)
    assert whole.cka() == pytest.approx(linear_cka(x, y), abs=1e-9)
    assert whole.cka(unbiased=True) == pytest.approx(linear_cka(x, y, unbiased=True), abs=1e-9)


def test_a_constant_representation_is_like_nothing() -> None:
    x, _ = two(37)
    for same in torch.rand(10, 1, 3, dtype=torch.float64).expand(10, 37, 3):
        for unbiased in (False, True):
            assert math.isnan(linear_cka(x, same, unbiased=unbiased))
            sums = CKASums()
            sums.update(same, x)
            assert math.isnan(sums.cka(unbiased=unbiased))  # where rounding leaves something


def test_half_precision_features_are_summed_in_float64() -> None:
    x, y = two(50)
    half = x.bfloat16(), y.bfloat16()
    assert linear_cka(*half) == linear_cka(*(z.double() for z in half))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: cknna(x, x, 1), "k: must be at least 2 and below the number of items, 6, got 1"),
        (lambda x: cknna(x, x, 6), "k: must be at least 2 and below the number of items, 6, got 6"),
        (lambda x: cknna(x[:3], x[:3], 2), "items: unbiased HSIC takes at least 4, got 3"),
        (lambda x: linear_cka(x[:3], x[:3], unbiased=True), "items: unbiased HSIC takes at least 4, got 3"),
        (lambda x: linear_cka(x[:1], x[:1]), "items: HSIC takes at least 2, got 1"),
        (lambda x: CKASums().cka(), "items: HSIC takes at least 2, got 0"),
        (lambda x: mutual_knn(x, x, 6), "k: must be from 1 to 5, the number of candidates, got 6"),
    ],
)
def test_too_few_items_or_neighbours_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(torch.randn(6, 3))


# --- within one map -------------------------------------------------------------------------------------------------


def pairs_by_loops(tokens: torch.Tensor) -> list[tuple[int, float]]:
    """(Manhattan distance, cosine) of every pair of tokens of a map [c, h, w]."""
    unit = tokens / tokens.norm(dim=0, keepdim=True).clamp_min(1e-30)
    places = [(i, j) for i in range(tokens.shape[1]) for j in range(tokens.shape[2])]
    return [
        (abs(a[0] - b[0]) + abs(a[1] - b[1]), float(unit[:, a[0], a[1]] @ unit[:, b[0], b[1]]))
        for n, a in enumerate(places)
        for b in places[n + 1 :]
    ]


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


@given(h=st.integers(1, 6), w=st.integers(1, 6), c=st.integers(1, 4), far=st.integers(2, 6), most=st.integers(2, 9))
@settings(max_examples=25)
def test_spatial_measures_are_their_definitions(h: int, w: int, c: int, far: int, most: int) -> None:
    maps = torch.randn(2, c, h, w, dtype=torch.float64)
    if h + w - 2 < max(far, 2):
        return
    for i in range(2):
        pairs = pairs_by_loops(maps[i])
        lds = mean([s for d, s in pairs if d == 1]) - mean([s for d, s in pairs if d >= far])
        assert local_distant_similarity(maps, far=far)[i].item() == pytest.approx(lds, abs=1e-9)
        distances = [d for d in range(1, most + 1) if any(e == d for e, _ in pairs)]
        means = [mean([s for e, s in pairs if e == d]) for d in distances]
        middle, level = mean([float(d) for d in distances]), mean(means)
        slope = sum((d - middle) * (m - level) for d, m in zip(distances, means, strict=True))
        slope /= sum((d - middle) ** 2 for d in distances)
        assert decay_slope(maps, most=most)[i].item() == pytest.approx(-slope, abs=1e-9)
        sums, counts = similarity_by_distance(maps, most)
        assert counts.tolist() == [sum(e == d for e, _ in pairs) for d in range(most + 1)]
        assert sums[i].tolist() == pytest.approx([math.fsum(s for e, s in pairs if e == d) for d in range(most + 1)])
        tokens = [maps[i, :, y, x] / maps[i, :, y, x].norm() for y in range(h) for x in range(w)]
        centre = sum(tokens) / len(tokens)
        spread = mean([float((t - centre).square().sum()) for t in tokens])
        assert rms_contrast(maps)[i].item() == pytest.approx(math.sqrt(spread))


def test_self_similarity_error_is_a_mean_over_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    p, t = torch.randn(2, 4, 3, 5), torch.randn(2, 7, 3, 5)
    for i in range(2):
        gaps = [abs(a - b) for (_, a), (_, b) in zip(pairs_by_loops(p[i]), pairs_by_loops(t[i]), strict=True)]
        assert selfsim_error(p, t)[i].item() == pytest.approx(mean(gaps))
    assert selfsim_error(p, 4 * p).tolist() == pytest.approx([0, 0], abs=1e-12)
    whole = selfsim_error(p, t)
    monkeypatch.setattr("latelier.evaluation.self_similarity.CHUNK", 4)
    torch.testing.assert_close(selfsim_error(p, t), whole)


def test_smooth_maps_are_locally_alike_and_shuffled_ones_are_not() -> None:
    ramp = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 8), indexing="ij"))[None]
    shuffled = ramp.flatten(2)[:, :, torch.randperm(64)].reshape(1, 2, 8, 8)
    assert local_distant_similarity(ramp).item() > 1
    assert abs(local_distant_similarity(shuffled).item()) < 0.3
    assert decay_slope(ramp).item() > 5 * abs(decay_slope(shuffled).item())
    assert rms_contrast(ramp).item() == pytest.approx(rms_contrast(shuffled).item())
    flat = torch.ones(1, 3, 8, 8)
    assert [m(flat).item() for m in (local_distant_similarity, decay_slope, rms_contrast)] == pytest.approx([0, 0, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: local_distant_similarity(torch.randn(1, 3, 3, 4)),
            "far: must be from 2 to 5 on a grid of 3x4, got 6; a larger image has more tokens",
        ),
        (
            lambda: decay_slope(torch.randn(1, 3, 1, 2)),
            "grid: must have pairs at two distances, got 1x2 within a distance of 8",
        ),
        (lambda: selfsim_error(*torch.randn(2, 1, 3, 1, 1)), "grid: must have at least 2 tokens, got 1"),
    ],
)
def test_small_grids_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()
