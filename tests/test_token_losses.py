"""Losses of tokens against loops over positions, by hand, and their invariances."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latelier.blocks import (
    gram_error,
    marginal_cosine,
    marginal_distances,
    negative_cosine,
    self_similarity,
    similarity_distance,
    square_error,
)

RELATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "marginal_distances": lambda p, t: marginal_distances(p, t, margin=0.1),
    "gram_error": gram_error,
    "similarity_distance": similarity_distance,
}
POINTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "negative_cosine": negative_cosine,
    "marginal_cosine": lambda p, t: marginal_cosine(p, t, margin=0.2),
    "square_error": square_error,
}
every_loss = pytest.mark.parametrize("loss", [*RELATIONS.values(), *POINTS.values()], ids=[*RELATIONS, *POINTS])
every_relation = pytest.mark.parametrize("loss", RELATIONS.values(), ids=RELATIONS)
few = settings(max_examples=8)


def tokens(seed: int, b: int = 2, n: int = 6, c: int = 5, f: int = 5) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(b, n, c), torch.randn(b, n, f) + 0.5


def cosine(x: Tensor, y: Tensor) -> float:
    x, y = x.double(), y.double()
    return (x @ y / (x.norm() * y.norm())).item()


# --- against loops ------------------------------------------------------------------------------------------------


def test_marginal_cosine_is_a_loop_over_positions() -> None:
    p, t = tokens(0)
    terms = [max(0.0, 1 - 0.3 - cosine(x, y)) for a, b in zip(p, t, strict=True) for x, y in zip(a, b, strict=True)]
    assert marginal_cosine(p, t, margin=0.3).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_marginal_distances_and_gram_error_are_loops_over_all_pairs() -> None:
    p, t = tokens(1, c=3, f=7)
    marginal, gram = [], []
    for a, b in zip(p, t, strict=True):
        for i in range(len(a)):
            for j in range(len(a)):
                gap = cosine(a[i], a[j]) - cosine(b[i], b[j])
                marginal.append(max(0.0, abs(gap) - 0.25))
                gram.append(gap**2)
    assert len(marginal) == 2 * 6 * 6
    assert marginal_distances(p, t, margin=0.25).item() == pytest.approx(sum(marginal) / len(marginal), rel=1e-5)
    assert gram_error(p, t).item() == pytest.approx(sum(gram) / len(gram), rel=1e-5)


def test_similarity_distance_is_one_minus_the_correlation_of_pairs() -> None:
    p, t = tokens(2, c=3, f=7)
    found = []
    for a, b in zip(p, t, strict=True):
        pairs = [(i, j) for i in range(len(a)) for j in range(i + 1, len(a))]
        both = torch.tensor([[cosine(x[i], x[j]) for i, j in pairs] for x in (a, b)])
        found.append(1 - torch.corrcoef(both)[0, 1].item())
    assert similarity_distance(p, t).item() == pytest.approx(sum(found) / 2, rel=1e-4)


def test_square_error_is_the_mean_over_everything() -> None:
    p, t = tokens(3)
    assert square_error(p, t).item() == pytest.approx(((p - t) ** 2).sum().item() / p.numel(), rel=1e-6)


def test_the_vf_loss_worked_by_hand() -> None:
    """Two positions. Predicted directions at 0° and 90°, the teacher's at 60° and 120°.

    Cosines to the teacher: cos 60° = 0.5 and cos 30° = 0.8660, so that of 1 - 0.5 - cos only ReLU(0) and ReLU(-0.37)
    are left: 0; with no margin 0.5 and 0.1340, in the mean 0.3170. Cosines among the two: 0 and 0.5, so that two of
    four pairs differ by 0.5, less the margin 0.25: the mean is 0.125, and 0.25 with no margin.
    """
    p = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    t = torch.tensor([[[0.5, math.sqrt(0.75)], [-0.5, math.sqrt(0.75)]]])
    assert marginal_cosine(p, t, margin=0.5).item() == pytest.approx(0.0, abs=1e-7)
    assert marginal_cosine(p, t, margin=0.0).item() == pytest.approx((0.5 + 1 - math.sqrt(0.75)) / 2, rel=1e-6)
    assert marginal_distances(p, t, margin=0.25).item() == pytest.approx(0.125, rel=1e-6)
    assert marginal_distances(p, t, margin=0.0).item() == pytest.approx(0.25, rel=1e-6)
    assert gram_error(p, t).item() == pytest.approx(0.125, rel=1e-6)


# --- invariances --------------------------------------------------------------------------------------------------


@every_relation
@given(seed=st.integers(0, 1000))
@few
def test_relations_are_blind_to_rotations_and_lengths_of_either_side(
    loss: Callable[[Tensor, Tensor], Tensor], seed: int
) -> None:
    p, t = tokens(seed, c=4, f=7)
    turn_p, turn_t = (torch.linalg.qr(torch.randn(k, k)).Q for k in (4, 7))
    lengths = torch.rand(2, 6, 1) + 0.1
    torch.testing.assert_close(loss(p @ turn_p * lengths, t @ turn_t), loss(p, t), rtol=1e-3, atol=1e-5)


@every_relation
def test_relations_follow_a_common_order_of_positions_and_see_another(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    p, t = tokens(5, n=9)
    order = torch.randperm(9)
    torch.testing.assert_close(loss(p[:, order], t[:, order]), loss(p, t))
    assert not torch.isclose(loss(p[:, order], t), loss(p, t))


@given(seed=st.integers(0, 1000))
@few
def test_equal_tokens_have_the_least_of_every_loss(seed: int) -> None:
    p, _ = tokens(seed)
    assert negative_cosine(p, p).item() == pytest.approx(-1, abs=1e-6)
    for loss, least in ((square_error, 0), (gram_error, 0), (similarity_distance, 0)):
        assert loss(p, p).item() == pytest.approx(least, abs=1e-5)
    assert marginal_cosine(p, p, margin=1e-3).item() == 0
    assert marginal_distances(p, p, margin=1e-3).item() == 0


def test_similarity_distance_minds_the_pattern_not_level_or_spread_of_cosines() -> None:
    torch.manual_seed(0)
    p = torch.randn(2, 12, 40)
    shared = torch.nn.functional.normalize(torch.randn(40), dim=0) * 4
    p = p - (p @ shared)[..., None] * shared / 16  # so that the shared part adds to all cosines alike
    p = torch.nn.functional.normalize(p, dim=-1)
    assert similarity_distance(p, p + shared).item() < 1e-3
    assert gram_error(p, p + shared).item() > 0.5


@every_loss
def test_images_do_not_see_each_other(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    p, t = tokens(7, b=4)
    alone = torch.stack([loss(p[i : i + 1], t[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(loss(p, t), alone.mean())


# --- numerics -----------------------------------------------------------------------------------------------------


@every_loss
def test_gradients_are_finite_also_for_tokens_of_zeros_and_equal_tokens(
    loss: Callable[[Tensor, Tensor], Tensor],
) -> None:
    p, t = tokens(8)
    for change in (p.clone(), torch.zeros_like(p), torch.ones_like(p), t.clone()):
        for target in (t, torch.zeros_like(t), torch.ones_like(t)):
            prediction = change.clone().requires_grad_()
            value = loss(prediction, target)
            value.backward()
            assert value.isfinite()
            assert prediction.grad is not None and prediction.grad.isfinite().all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_goes_in_and_float32_comes_out(
    loss: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype
) -> None:
    p, t = (x.to(dtype) for x in tokens(9, n=20))
    value = loss(p, t)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(p.float(), t.float()))


@every_loss
def test_autocast_does_not_touch_a_loss(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    p, t = tokens(10, n=20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(p, t)
    assert torch.equal(inside, loss(p, t))


def test_a_token_of_zeros_is_like_nothing() -> None:
    x = torch.tensor([[[0.0, 0.0], [3.0, 0.0]]])
    assert self_similarity(x)[0].tolist() == [[0, 0], [0, 1]]


def test_two_tokens_have_no_relations_to_correlate() -> None:
    with pytest.raises(ValueError) as caught:
        similarity_distance(torch.randn(1, 2, 3), torch.randn(1, 2, 3))
    assert str(caught.value) == ("similarity_distance: needs three tokens an image at least, got 2; take larger images")
