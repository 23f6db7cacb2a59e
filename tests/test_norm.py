"""RMSNorm over the last axis and over channels, and GRN, against their formulas in float64."""

import hypothesis.strategies as st
import torch
from hypothesis import given
from torch import Tensor

from latelier.blocks import GRN, ChannelRMSNorm, RMSNorm, channel_rms_norm, response_norm

batches, widths, sides = st.integers(1, 3), st.integers(1, 9), st.integers(1, 6)


def rms(x: Tensor) -> Tensor:
    return x.float().square().mean(dim=1).sqrt()


# --- over the last axis -----------------------------------------------------------------------------------------------


@given(axes=st.lists(st.integers(1, 4), max_size=3), c=widths, scale=st.floats(1e-3, 1e3), seed=st.integers(0, 2**31))
def test_rms_norm_equals_its_formula(axes: list[int], c: int, scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    x, norm = scale * torch.randn(*axes, c), RMSNorm(c)
    expected = x.double() / (x.double().square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    assert torch.equal(norm(x), RMSNorm(c, affine=False)(x))  # its weight is born as one
    torch.testing.assert_close(norm(x).double(), expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert norm.weight is not None
        norm.weight.normal_()
    torch.testing.assert_close(norm(x).double(), expected * norm.weight.double(), rtol=1e-5, atol=1e-6)


def test_the_epsilon_of_rms_norm_stands_inside_the_root() -> None:
    for eps in (1e-6, 0.5):
        y = RMSNorm(4, eps=eps, affine=False)(torch.full((1, 4), 2.0))
        torch.testing.assert_close(y, torch.full((1, 4), 2 / (4 + eps) ** 0.5))


@given(c=st.sampled_from([8, 64, 768]), seed=st.integers(0, 2**31))
def test_rms_norm_of_bfloat16_is_that_of_float32_rounded_and_its_weight_is_rounded_first(c: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, norm = (10 * torch.randn(4, c)).bfloat16(), RMSNorm(c)
    assert norm.weight is not None
    with torch.no_grad():
        norm.weight.normal_()
    y = norm(x)
    assert y.dtype == torch.bfloat16
    exact = x.double() / (x.double().square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    rounded = norm.weight.bfloat16()
    once, twice = (exact * rounded.double()).bfloat16(), exact.bfloat16() * rounded
    assert ((y == once) | (y == twice)).float().mean() > 0.98
    assert torch.equal(norm.bfloat16()(x), y)  # a float32 island gives what the rounded weight gives


def test_rms_norm_without_weight_has_no_parameters_and_zeros_have_a_gradient() -> None:
    norm, x = RMSNorm(4, affine=False), torch.zeros(2, 4, requires_grad=True)
    assert not list(norm.parameters())
    assert not norm.state_dict()
    norm(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


# --- over channels ----------------------------------------------------------------------------------------------------


@given(b=batches, c=widths, h=sides, w=sides, scale=st.floats(1e-3, 1e3))
def test_channel_rms_norm_equals_its_formula(b: int, c: int, h: int, w: int, scale: float) -> None:
    x = scale * torch.randn(b, c, h, w)
    expected = x.double() / (x.double().square().mean(dim=1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(channel_rms_norm(x).double(), expected, rtol=1e-5, atol=1e-6)


@given(b=batches, c=st.integers(4, 32), h=sides, w=sides)
def test_channels_have_unit_rms_after_the_norm(b: int, c: int, h: int, w: int) -> None:
    x = 3 * torch.randn(b, c, h, w)
    torch.testing.assert_close(rms(channel_rms_norm(x)), torch.ones(b, h, w), atol=1e-4, rtol=0)


def test_a_position_of_zeros_stays_zero_and_has_a_gradient() -> None:
    x = torch.zeros(1, 4, 2, 2, requires_grad=True)
    y = channel_rms_norm(x)
    y.sum().backward()
    assert not y.any()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_the_mean_square_of_bfloat16_is_float32() -> None:
    x = torch.randn(4, 256, 8, 8).bfloat16()
    mean_square = x.square().float().mean(dim=1, keepdim=True)
    expected = x * (mean_square + 1e-6).rsqrt().bfloat16()
    y = channel_rms_norm(x)
    assert y.dtype == torch.bfloat16
    assert (y != expected).float().mean() < 0.01  # a mean rounded to bfloat16 changes a tenth of them


def test_an_affine_rms_norm_has_a_weight_and_a_bias_for_each_channel() -> None:
    norm = ChannelRMSNorm(6, affine=True)
    x = torch.randn(2, 6, 3, 4)
    assert torch.equal(norm(x), channel_rms_norm(x))
    assert norm.weight is not None
    assert norm.bias is not None
    with torch.no_grad():
        norm.weight.copy_(torch.arange(6.0))
        norm.bias.fill_(0.5)
    assert torch.equal(norm(x), channel_rms_norm(x) * torch.arange(6.0)[:, None, None] + 0.5)
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    assert not list(ChannelRMSNorm(6).parameters())


# --- GRN --------------------------------------------------------------------------------------------------------------


@given(b=batches, c=widths, h=sides, w=sides, seed=st.integers(0, 2**31))
def test_grn_equals_its_formula(b: int, c: int, h: int, w: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, grn = torch.randn(b, c, h, w), GRN(c)
    with torch.no_grad():
        grn.gamma.normal_()
        grn.beta.normal_()
    strength = torch.linalg.vector_norm(x.double(), dim=(2, 3), keepdim=True)
    normalised = strength / (strength.mean(dim=1, keepdim=True) + 1e-6)
    torch.testing.assert_close(response_norm(x).double(), normalised, rtol=1e-5, atol=1e-6)
    expected = grn.gamma.double() * (x.double() * normalised) + grn.beta.double() + x.double()
    torch.testing.assert_close(grn(x).double(), expected, rtol=1e-5, atol=1e-5)


@given(b=batches, c=widths, h=sides, w=sides)
def test_grn_is_born_as_the_identity(b: int, c: int, h: int, w: int) -> None:
    x = torch.randn(b, c, h, w)
    assert torch.equal(GRN(c)(x), x)


def test_the_statistics_of_grn_are_float32_and_its_result_is_not() -> None:
    x = torch.full((1, 2, 256, 256), 1.0, dtype=torch.bfloat16)  # a sum of squares in bfloat16 stops at 256
    assert response_norm(x).dtype == torch.float32
    torch.testing.assert_close(response_norm(x), torch.ones(1, 2, 1, 1))
    assert GRN(2).bfloat16()(x).dtype == torch.bfloat16


def test_grn_in_place_writes_the_same_result_over_its_input() -> None:
    grn, x = GRN(3), torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        grn.gamma.normal_()
        grn.beta.normal_()
        expected = grn(x.clone())
        assert grn(x, inplace=True) is x
    torch.testing.assert_close(x, expected)


def test_a_dead_channel_or_map_has_a_finite_gradient_in_grn() -> None:
    """GELU gives exact zeros far below zero, and the square root has an infinite slope there."""
    for dead in (slice(1, 2), slice(None)):
        x = torch.randn(2, 3, 4, 4)
        x[:, dead] = 0
        x.requires_grad_()
        grn = GRN(3)
        with torch.no_grad():
            grn.gamma.fill_(1)
        grn(x).square().sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert grn.gamma.grad is not None
        assert grn.gamma.grad.isfinite().all()
