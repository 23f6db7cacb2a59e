"""Objectives against plain formulas, in any dtype, with finite gradients at their edges."""

import math
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor

from latelier.blocks import (
    inverse_variance,
    latent_energy,
    latent_scale,
    negative_cosine,
    smooth_l1,
    variance_expansion,
    weighted_square_error,
)

LOSSES: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "weighted_square_error": (weighted_square_error, (torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4), torch.ones(2))),
    "variance_expansion": (variance_expansion, (torch.full((2, 3, 4, 4), 1e4),)),
    "inverse_variance": (inverse_variance, (torch.full((2, 3, 4, 4), 1e4),)),
    "latent_scale": (latent_scale, (torch.zeros(2, 3, 4, 4),)),
    "latent_energy": (latent_energy, (torch.zeros(2, 3, 4, 4),)),
    "negative_cosine": (negative_cosine, (torch.zeros(2, 5, 6), torch.ones(2, 5, 6))),
    "smooth_l1": (smooth_l1, (torch.zeros(2, 5, 6), torch.ones(2, 5, 6))),
}
every_loss = pytest.mark.parametrize(("loss", "edge"), LOSSES.values(), ids=LOSSES)
batches, channels, sides = st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)


@every_loss
def test_a_loss_is_one_float32_number_whatever_comes_in(loss: Callable[..., Tensor], edge: tuple[Tensor, ...]) -> None:
    inputs = [torch.randn(v.shape).bfloat16() for v in edge]
    value = loss(*inputs)
    assert (value.shape, value.dtype) == ((), torch.float32)
    assert torch.equal(value, loss(*(v.float() for v in inputs)))


@every_loss
def test_a_loss_and_its_gradient_are_finite_at_the_edge(loss: Callable[..., Tensor], edge: tuple[Tensor, ...]) -> None:
    first = edge[0].clone().requires_grad_()
    value = loss(first, *edge[1:])
    value.backward()
    assert value.isfinite()
    assert first.grad is not None
    assert first.grad.isfinite().all()


@given(b=batches, h=sides, w=sides)
def test_square_error_is_a_mean_per_image_times_its_weight(b: int, h: int, w: int) -> None:
    x0, target, weight = torch.randn(b, 3, h, w), torch.randn(b, 3, h, w), torch.rand(b)
    expected = sum(weight[i] * ((x0[i] - target[i]) ** 2).mean() for i in range(b)) / b
    torch.testing.assert_close(weighted_square_error(x0, target, weight), torch.as_tensor(expected))


@given(b=batches, z=channels, h=sides, w=sides)
def test_variance_expansion_is_minus_the_mean_log_variance(b: int, z: int, h: int, w: int) -> None:
    logsnr = 3 * torch.randn(b, z, h, w)
    torch.testing.assert_close(variance_expansion(logsnr), -torch.sigmoid(-logsnr).log().mean(), rtol=1e-4, atol=1e-5)
    expected = (1 / (torch.sigmoid(-logsnr) + 1e-6)).mean()
    torch.testing.assert_close(inverse_variance(logsnr), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("loss", [variance_expansion, inverse_variance])
def test_both_readings_of_variance_expansion_reward_noise(loss: Callable[[Tensor], Tensor]) -> None:
    values = [loss(torch.full((1, 1, 1, 1), logsnr)).item() for logsnr in (-4.0, 0.0, 4.0, 8.0)]
    assert values == sorted(values)
    assert len(set(values)) == 4


def test_the_inverse_variance_is_bounded_by_its_delta() -> None:
    certain = torch.full((1, 1, 1, 1), math.inf)
    assert math.isclose(inverse_variance(certain, delta=1e-3).item(), 1e3, rel_tol=1e-5)


@given(b=batches, z=channels, h=sides, w=sides)
def test_latent_scale_and_energy_equal_their_formulas(b: int, z: int, h: int, w: int) -> None:
    mean = 2 * torch.randn(b, z, h, w)
    rms = mean.square().mean(dim=(2, 3)).sqrt()
    torch.testing.assert_close(latent_scale(mean), ((rms - 1) ** 2).mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(latent_energy(mean), (mean**2).mean() / 2)


def test_latent_scale_is_zero_for_channels_of_unit_rms() -> None:
    signs = torch.randn(2, 3, 4, 4).sign()
    assert latent_scale(signs).item() < 1e-10
    torch.testing.assert_close(latent_energy(signs), torch.tensor(0.5))


@given(b=batches, n=st.integers(1, 6), f=st.integers(2, 8), scale=st.floats(0.1, 10))
def test_negative_cosine_ignores_length_and_lies_between_minus_one_and_one(
    b: int, n: int, f: int, scale: float
) -> None:
    prediction, target = torch.randn(b, n, f), torch.randn(b, n, f)
    expected = -((prediction * target).sum(-1) / prediction.norm(dim=-1) / target.norm(dim=-1)).mean()
    torch.testing.assert_close(negative_cosine(prediction, target), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(negative_cosine(scale * target, target), torch.tensor(-1.0))
    torch.testing.assert_close(negative_cosine(-scale * target, target), torch.tensor(1.0))


def test_smooth_l1_is_half_a_square_up_to_one_and_linear_beyond() -> None:
    prediction = torch.tensor([[[0.5, -3.0]]])
    torch.testing.assert_close(smooth_l1(prediction, torch.zeros(1, 1, 2)), torch.tensor((0.125 + 2.5) / 2))


def test_a_deterministic_encoder_has_no_variance_to_expand() -> None:
    assert variance_expansion(torch.full((2, 3, 4, 4), torch.inf)) == 0
    mixed = torch.tensor([1.0, torch.inf]).reshape(1, 2, 1, 1)
    torch.testing.assert_close(variance_expansion(mixed), F.softplus(torch.tensor(1.0)) / 2)
