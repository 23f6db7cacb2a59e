"""Dropout by address: the same masks for the same samples, however they are divided and whenever they are drawn."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latelier.blocks import Draws, Dropout, addressed


def draws(first: int, batch: int, *, step: int = 3, seed: int = 1, whole: int = 6) -> Draws:
    return Draws(seed, step, first=first, batch=batch, whole=whole)


@given(cut=st.integers(1, 5), step=st.integers(0, 99), p=st.floats(0.05, 0.9))
def test_parts_of_a_batch_lose_what_the_whole_loses(cut: int, step: int, p: float) -> None:
    layer, x = Dropout(p), torch.randn(6, 3, 5)

    def dropped(first: int, batch: int) -> torch.Tensor:
        with addressed(draws(first, batch, step=step)):
            return torch.stack([layer(x[first : first + batch]), layer(x[first : first + batch])])

    whole = dropped(0, 6)
    assert torch.equal(torch.cat([dropped(0, cut), dropped(cut, 6 - cut)], dim=1), whole)
    assert torch.equal(dropped(0, 6), whole)
    kept = whole != 0
    torch.testing.assert_close(whole[kept], (x.expand(2, -1, -1, -1) / (1 - p))[kept])


def test_each_layer_step_and_seed_has_masks_of_its_own_and_shares_are_as_asked() -> None:
    layer, x = Dropout(0.25), torch.ones(6, 100, 100)
    with addressed(draws(0, 6)):
        masks = [layer(x), layer(x)]
    for changed in ({"step": 4}, {"seed": 2}):
        with addressed(draws(0, 6, **changed)):
            masks.append(layer(x))
    for i, mask in enumerate(masks):
        assert (mask == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
        assert mask.mean().item() == pytest.approx(1, abs=0.02)
        assert all(not torch.equal(mask, other) for other in masks[:i])
    assert not torch.equal(masks[0][0], masks[0][1])


def test_torchs_own_generator_is_left_alone_inside_and_asked_outside() -> None:
    layer, x = Dropout(0.5), torch.ones(6, 8)
    before = torch.get_rng_state()
    with addressed(draws(0, 6)):
        layer(x)
    assert torch.equal(torch.get_rng_state(), before)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    torch.set_rng_state(before)
    assert torch.equal(layer(x), first)


def test_nothing_is_dropped_in_evaluation_or_with_probability_zero() -> None:
    x = torch.randn(6, 8)
    with addressed(draws(0, 6)):
        assert layer_is_identity(Dropout(0.5).eval(), x) and layer_is_identity(Dropout(0.0), x)
    with pytest.raises(ValueError) as caught:
        Dropout(1.0)
    assert str(caught.value) == "dropout: must be in [0, 1), got 1.0"


def layer_is_identity(layer: Dropout, x: torch.Tensor) -> bool:
    return torch.equal(layer(x), x)


def test_half_precision_stays_half_precision_and_gradients_follow_the_mask() -> None:
    x = torch.randn(6, 8, dtype=torch.bfloat16, requires_grad=True)
    with addressed(draws(0, 6)):
        y = Dropout(0.5)(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad != 0, y != 0)
