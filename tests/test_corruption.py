"""Corruptions of posteriors: what they change, what they leave, and where their random numbers come from."""

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from latelier.blocks import (
    CorruptionConfig,
    Draws,
    EncoderPosterior,
    PartError,
    RandomTokenLogSNRConfig,
    decode,
    parts,
)

CORRUPTIONS = [decode(cls.kind, CorruptionConfig) for cls in parts(CorruptionConfig)]
every_corruption = pytest.mark.parametrize("config", CORRUPTIONS, ids=lambda config: config.kind)


def posterior_of(b: int, h: int = 4, w: int = 5, *, channels: int = 3, dtype: torch.dtype = torch.float32) -> Any:
    return EncoderPosterior(*(torch.randn(b, channels, h, w).to(dtype) for _ in range(2)))


def offsets(config: CorruptionConfig, b: int, h: int = 4, w: int = 5, *, seed: int = 0) -> torch.Tensor:
    """Nats that are lost, ``[b, h, w]``."""
    clean = EncoderPosterior(torch.zeros(b, 1, h, w), torch.zeros(b, 1, h, w))
    return -config.apply(clean, Draws(seed, 0, first=0, batch=b)).logsnr[:, 0]


# --- laws of every corruption -------------------------------------------------------------------------------------


@every_corruption
@given(b=st.integers(1, 4), h=st.integers(1, 5), w=st.integers(1, 5))
def test_a_corruption_makes_nothing_more_certain_and_keeps_the_mean(
    config: CorruptionConfig, b: int, h: int, w: int
) -> None:
    clean = posterior_of(b, h, w)
    found = config.apply(clean, Draws(1, 2, first=0, batch=b))
    assert torch.equal(found.mean, clean.mean)
    assert (found.logsnr <= clean.logsnr).all()


@every_corruption
@given(cut=st.integers(1, 4), seed=st.integers(0, 1000))
def test_a_split_batch_is_corrupted_as_the_whole_batch_is(config: CorruptionConfig, cut: int, seed: int) -> None:
    clean = posterior_of(5)
    whole = config.apply(clean, Draws(seed, 3, first=0, batch=5)).logsnr
    parts = [
        config.apply(EncoderPosterior(clean.mean[a:b], clean.logsnr[a:b]), Draws(seed, 3, first=a, batch=b - a)).logsnr
        for a, b in ((0, cut), (cut, 5))
    ]
    assert torch.equal(torch.cat(parts), whole)


@every_corruption
def test_a_corruption_leaves_the_global_generator_alone(config: CorruptionConfig) -> None:
    clean = posterior_of(3)
    before = torch.get_rng_state()
    first = config.apply(clean, Draws(0, 0, first=0, batch=3)).logsnr
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(config.apply(clean, Draws(0, 0, first=0, batch=3)).logsnr, first)


@every_corruption
def test_gradients_pass_through_a_corruption(config: CorruptionConfig) -> None:
    clean = posterior_of(3)
    for leaf in (clean.mean, clean.logsnr):
        leaf.requires_grad_()
    config.apply(clean, Draws(0, 0, first=0, batch=3)).at(torch.randn(3, 3, 4, 5)).square().sum().backward()
    for leaf in (clean.mean, clean.logsnr):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all() and leaf.grad.any()


# --- random tokens ------------------------------------------------------------------------------------------------


def test_the_channels_of_a_token_lose_the_same_nats() -> None:
    clean = posterior_of(8)
    lost = clean.logsnr - RandomTokenLogSNRConfig(probability=1.0).apply(clean, Draws(0, 0, first=0, batch=8)).logsnr
    torch.testing.assert_close(lost, lost[:, :1].expand_as(lost))
    assert len(lost[:, 0].flatten().round(decimals=4).unique()) > 10


def test_images_shares_and_offsets_follow_their_distributions() -> None:
    lost = offsets(RandomTokenLogSNRConfig(), 2000, 10, 10)
    share = (lost > 0).float().mean(dim=(1, 2))
    corrupted = share > 0
    assert corrupted.float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert share.max() <= 0.5
    assert share[corrupted].mean().item() == pytest.approx(0.25, abs=0.02)
    nats = lost[lost > 0]
    assert nats.max() < 6
    assert nats.mean().item() == pytest.approx(3, abs=0.05)
    assert nats.var().item() == pytest.approx(36 / 12, abs=0.1)
    places = (lost > 0).float().mean(dim=0)
    assert (places - places.mean()).abs().max() < 0.05  # no place of the grid is preferred


@pytest.mark.parametrize("change", [{"probability": 0.0}, {"most_tokens": 0.0}, {"most_offset": 0.0}])
def test_a_corruption_of_nothing_keeps_every_bit(change: dict[str, float]) -> None:
    clean = posterior_of(6)
    found = RandomTokenLogSNRConfig(**change).apply(clean, Draws(0, 0, first=0, batch=6))
    assert torch.equal(found.logsnr, clean.logsnr)


def test_every_token_can_be_corrupted() -> None:
    lost = offsets(RandomTokenLogSNRConfig(probability=1.0, most_tokens=1.0), 300, 2, 2)
    assert (lost > 0).all(dim=2).all(dim=1).any()


def test_a_point_stays_a_point() -> None:
    point = EncoderPosterior(torch.randn(4, 3, 2, 2), torch.full((4, 3, 2, 2), math.inf))
    found = RandomTokenLogSNRConfig(probability=1.0).apply(point, Draws(0, 0, first=0, batch=4))
    assert torch.equal(found.at(torch.randn(4, 3, 2, 2)), point.mean)


def test_offsets_of_a_bfloat16_posterior_are_not_rounded() -> None:
    clean = posterior_of(4, dtype=torch.bfloat16)
    config, draws = RandomTokenLogSNRConfig(probability=1.0), Draws(0, 0, first=0, batch=4)
    full = config.apply(EncoderPosterior(clean.mean.float(), clean.logsnr.float()), draws)
    assert torch.equal(config.apply(clean, draws).logsnr, full.logsnr)
    assert config.apply(clean, draws).at(torch.randn(4, 3, 4, 5)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probability": 1.5}, "config.probability: must be in [0, 1], got 1.5"),
        ({"most_tokens": -0.1}, "config.most_tokens: must be in [0, 1], got -0.1"),
        ({"most_offset": -1.0}, "config.most_offset: must not be negative, got -1.0"),
        ({"most_offset": math.inf}, "config.most_offset: takes a finite number, got inf"),
    ],
)
def test_numbers_that_make_no_corruption_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(PartError) as caught:
        RandomTokenLogSNRConfig(**change)
    assert str(caught.value) == message
