"""The losses of bridges: the card's arithmetic, what each term is, and what is refused."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latelier.blocks import BRIDGE_WEIGHTS, TeacherOutput, bridge_loss, cosine_distance, unit_square_error

ENERGY = 0.8319
EPOCHS = [
    (0.401512, 0.624136, 0.610722),
    (0.335588, 0.686514, 0.526457),
    (0.303365, 0.716936, 0.483648),
    (0.282880, 0.736246, 0.455694),
    (0.268303, 0.749953, 0.434974),
    (0.258487, 0.759174, 0.420825),
]
"""Loss, cosine and NMSE of the card's six epochs."""


def planted(
    cosine: float, nmse: float, *, images: int = 4, tokens: int = 64, width: int = 768
) -> tuple[Tensor, Tensor]:
    """Predictions and targets of energy 0.8319 whose mean cosine and NMSE are exactly these, float64.

    Half of the tokens have a cosine above the mean and half below, by d, since the card's NMSE in places is smaller
    than any length of tokens of *one* cosine allows. A token of length T(cos + s) adds s² to the least NMSE,
    1 - mean cos².
    """
    generator = torch.Generator().manual_seed(0)
    t, other = torch.randn(2, images, tokens, width, generator=generator, dtype=torch.float64)
    unit = t / t.norm(dim=-1, keepdim=True)
    across = other - (other * unit).sum(dim=-1, keepdim=True) * unit
    across = across / across.norm(dim=-1, keepdim=True)
    spread = 0.1
    each = torch.full((tokens, 1), cosine, dtype=torch.float64)
    each[::2] += spread
    each[1::2] -= spread
    longer = math.sqrt(nmse - 1 + cosine**2 + spread**2)
    length = math.sqrt(ENERGY * width)
    direction = each * unit + (1 - each.square()).sqrt() * across
    return length * (each + longer) * direction, length * unit


@pytest.mark.parametrize(("loss", "cosine", "nmse"), EPOCHS)
def test_the_cards_six_losses_follow_from_cosine_and_nmse(loss: float, cosine: float, nmse: float) -> None:
    prediction, target = planted(cosine, nmse)
    assert 1 - cosine_distance(prediction, target).item() == pytest.approx(cosine, abs=1e-6)
    error, energy = (prediction - target).square().sum().item(), target.square().sum().item()
    assert error / energy == pytest.approx(nmse, abs=1e-9)
    total, values = bridge_loss(prediction.float(), target.float(), preset="card")
    assert values.keys() == {"cosine", "mse_unit", "mse_raw"}
    assert total.item() == pytest.approx(loss, abs=1e-6)
    by_hand = (1 - cosine) + 0.25 * 2 * (1 - cosine) / 768 + 0.05 * nmse * ENERGY
    assert by_hand == pytest.approx(loss, abs=1e-6)
    summed, _ = bridge_loss(prediction.float(), target.float())
    assert summed.item() - total.item() == pytest.approx(0.25 * 2 * (1 - cosine) * 767 / 768, abs=1e-5)


@given(seed=st.integers(0, 999), width=st.integers(2, 40), scale=st.floats(0.01, 100.0))
def test_the_summed_square_error_of_unit_tokens_is_twice_the_cosine_distance(
    seed: int, width: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    p, t = torch.randn(2, 3, 5, width, generator=generator)
    distance = cosine_distance(scale * p, t).item()
    assert unit_square_error(scale * p, t).item() == pytest.approx(2 * distance, abs=1e-6)
    assert unit_square_error(scale * p, t, reduction="mean").item() == pytest.approx(2 * distance / width, abs=1e-6)


def both(*, cls: bool = False, seed: int = 0) -> tuple[TeacherOutput, TeacherOutput]:
    generator = torch.Generator().manual_seed(seed)
    p, t = torch.randn(2, 2, 6, 4, generator=generator)
    q, u = torch.randn(2, 2, 4, generator=generator)
    return TeacherOutput(p, (2, 3), q if cls else None), TeacherOutput(t, (2, 3), u if cls else None)


def test_the_total_is_the_weighted_sum_and_terms_of_weight_zero_are_not_computed() -> None:
    p, t = both(cls=True)
    std = torch.tensor([1.0, 2.0, 0.5, 4.0])
    weights: Any = {"cosine": 0.5, "mse_unit": 0.0, "mse_raw": 2.0, "mse_standardised": 3.0}
    weights |= {"relational": 1.5, "cls": 0.7}
    total, values = bridge_loss(p, t, **weights, std=std, margin=0.2)
    assert values.keys() == weights.keys() - {"mse_unit"}
    assert total.item() == pytest.approx(sum(weights[name] * value.item() for name, value in values.items()))
    assert values["mse_standardised"].item() == pytest.approx(((p.patches - t.patches) / std).square().mean().item())
    s, r = (x / x.norm(dim=-1, keepdim=True) for x in (p.patches, t.patches))
    gaps = (s @ s.transpose(1, 2) - r @ r.transpose(1, 2)).abs() - 0.2
    assert values["relational"].item() == pytest.approx(gaps.clamp_min(0).mean().item(), abs=1e-6)
    assert p.cls is not None and t.cls is not None
    expected = 1 - torch.cosine_similarity(p.cls, t.cls).mean().item()
    assert values["cls"].item() == pytest.approx(expected, abs=1e-6)


def test_a_perfect_prediction_loses_nothing() -> None:
    _, t = both(cls=True)
    total, values = bridge_loss(t, t, relational=1.0, cls=1.0, mse_standardised=1.0, std=torch.ones(4))
    assert values.keys() == BRIDGE_WEIGHTS["default"].keys()
    assert total.item() == pytest.approx(0.0, abs=1e-6)


def test_losses_are_float32_under_autocast_and_for_half_precision() -> None:
    p, t = (TeacherOutput(x.patches.bfloat16(), x.grid) for x in both())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, values = bridge_loss(p, t, relational=1.0)
    assert {total.dtype} | {value.dtype for value in values.values()} == {torch.float32}
    expected, _ = bridge_loss(p.patches.float(), t.patches.float(), relational=1.0)
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (
            lambda p, t: bridge_loss(p, TeacherOutput(t.patches, (3, 2))),
            "bridge_loss: the prediction lies on a grid of (2, 3), the target on (3, 2); "
            "choose a teacher whose grid is the bridge's",
        ),
        (
            lambda p, t: bridge_loss(p.patches, t.patches[:, :4]),
            "bridge_loss: the prediction is [2, 6, 4] and the target [2, 4, 4]; both are [b, n, f]",
        ),
        (
            lambda p, t: bridge_loss(p, t, mse_standardised=1.0),
            "mse_standardised: needs std, the deviation of each of the teacher's channels",
        ),
        (
            lambda p, t: bridge_loss(p, t, mse_standardised=1.0, std=torch.ones(3)),
            "std: needs one number for each of 4 features, got 3",
        ),
        (
            lambda p, t: bridge_loss(p, t, cls=1.0),
            "cls: the bridge predicts no class token; take 'feature_head/tokens', or leave the term out",
        ),
        (
            lambda p, t: bridge_loss(p.patches, t.patches, cosine=0.0, mse_unit=0.0, mse_raw=0.0),
            "bridge_loss: every weight is 0; give one term a weight",
        ),
    ],
)
@pytest.mark.usefixtures("as_users_run_it")
def test_what_does_not_fit_is_refused(work: object, message: str) -> None:
    assert callable(work)
    with pytest.raises(ValueError) as caught:
        work(*both())
    assert str(caught.value) == message
