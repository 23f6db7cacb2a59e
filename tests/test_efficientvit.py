"""DC-AE's blocks: attention against its definition, its head layout, its two forms, and its half precision."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from latelier.blocks import (
    EfficientViTBlockConfig,
    GLUMBConv,
    LiteMLA,
    PartError,
    PixelBatchNorm,
    PixelRMSNorm,
    ResBlockConfig,
    linear_attention,
    quadratic_attention,
)

seeds = st.integers(0, 2**31)
precisions = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def relative_error(value: Tensor, reference: Tensor) -> float:
    return ((value.double() - reference.double()).norm() / reference.double().norm()).item()


def qkv(positions: int, heads: int = 2, width: int = 8, *, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    q, k, v = torch.randn(3, 2, positions, heads, width)
    return [q.relu(), k.relu(), v]


# --- attention --------------------------------------------------------------------------------------------------------


@given(positions=st.integers(1, 40), seed=seeds)
def test_the_linear_form_is_the_quadratic_form(positions: int, seed: int) -> None:
    q, k, v = qkv(positions, seed=seed)
    torch.testing.assert_close(linear_attention(q, k, v), quadratic_attention(q, k, v), rtol=1e-4, atol=1e-5)


def test_a_value_is_the_mean_of_values_by_the_products_of_queries_and_keys() -> None:
    q, k, v = (x.double() for x in qkv(7))
    found = quadratic_attention(q, k, v)
    for n in range(7):
        weights = torch.stack([(q[0, n, 1] * k[0, m, 1]).sum() for m in range(7)])
        expected = (weights[:, None] * v[0, :, 1]).sum(dim=0) / weights.sum()
        torch.testing.assert_close(found[0, n, 1], expected)


def by_hand(attention: LiteMLA, x: Tensor, *, interleaved: bool) -> Tensor:
    """LiteMLA with one scale, written out; ``interleaved`` False is the ordinary split that must not be."""
    _, c, h, w = x.shape
    d = attention.head_width
    weight = torch.cat([attention.to_q.weight, attention.to_k.weight, attention.to_v.weight])
    fused = torch.einsum("oc,bchw->bohw", weight, x).flatten(2)
    if interleaved:
        q, k, v = fused.unflatten(1, (c // d, 3, d)).unbind(2)
    else:
        q, k, v = fused.unflatten(1, (3, c // d, d)).unbind(1)
    scores = torch.einsum("bgdn,bgdm->bgnm", q.relu(), k.relu())
    mixed = torch.einsum("bgnm,bgdm->bgdn", scores / (scores.sum(dim=-1, keepdim=True) + 1e-15), v)
    out = torch.einsum("oc,bcn->bon", attention.to_out.weight, mixed.flatten(1, 2)).unflatten(2, (h, w))
    return out / (out.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("side", [3, 5], ids=["quadratic", "linear"])
def test_queries_keys_and_values_are_interleaved_head_by_head(side: int) -> None:
    attention, x = LiteMLA(32, head_width=16), torch.randn(2, 32, side, side)
    found = attention(x)
    assert relative_error(found, by_hand(attention, x, interleaved=True)) < 1e-5
    assert relative_error(found, by_hand(attention, x, interleaved=False)) > 0.1


def test_kernels_add_heads_that_look_at_neighbourhoods() -> None:
    attention = LiteMLA(32, head_width=16, kernels=(3, 5))
    assert attention.to_out.weight.shape == (32, 96)
    assert [tuple(p.shape) for p in attention.to_qkv_multiscale[1].parameters()] == [(96, 1, 5, 5), (96, 16, 1, 1)]
    x = torch.randn(1, 32, 6, 6)
    alone = LiteMLA(32, head_width=16)
    alone.load_state_dict(attention.state_dict() | {"to_out.weight": attention.to_out.weight[:, :32]}, strict=False)
    with torch.no_grad():
        attention.to_out.weight[:, 32:] = 0  # the heads of the first scale come first
    torch.testing.assert_close(attention(x), alone(x))


def test_a_hook_or_another_module_in_the_place_of_a_projection_is_asked() -> None:
    attention, x = LiteMLA(32, head_width=16), torch.randn(1, 32, 6, 6)
    expected = attention(x)
    asked: list[bool] = []
    attention.to_q.register_forward_hook(lambda *_: asked.append(True))
    changed: Any = attention
    changed.to_out = nn.Sequential(attention.to_out)
    torch.testing.assert_close(attention(x), expected)
    assert asked


def test_attention_sums_in_float32_under_autocast_and_in_half_precision() -> None:
    attention, x = LiteMLA(32, head_width=16), torch.randn(1, 32, 24, 24)
    seen: list[torch.dtype] = []
    original = torch.einsum

    def spy(equation: str, *operands: Tensor) -> Tensor:
        seen.extend(operand.dtype for operand in operands)
        return original(equation, *operands)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "einsum", spy)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            attention(x)
        attention.bfloat16()(x.bfloat16())
    assert set(seen) == {torch.float32}
    assert len(seen) >= 12


# --- half precision ---------------------------------------------------------------------------------------------------


@precisions
@settings(max_examples=12)
@given(power=st.floats(0, 4), side=st.sampled_from([2, 5, 12]), seed=seeds)
def test_large_activations_stay_finite_and_true_in_half_precision(
    dtype: torch.dtype, power: float, side: int, seed: int
) -> None:
    """Activations up to 40,000 where float16 ends at 65,504, and a gated product far past it."""
    torch.manual_seed(seed)
    block = EfficientViTBlockConfig(kernels=(5,)).build(64)
    x = (10**power * torch.randn(1, 64, side, side).clamp(-4, 4)).to(dtype)
    branches = [(block.attn, x), (block.conv_out, x)]
    for branch, large in branches:
        expected = branch.float()(large.float())
        for learning in (False, True):
            with torch.set_grad_enabled(learning):
                found = branch.to(dtype)(large)
            assert found.isfinite().all()
            assert relative_error(found, expected) < 0.05


def test_the_gated_product_overflows_float16_where_it_is_not_kept_within_range() -> None:
    conv, x = GLUMBConv(64), 3e3 * torch.randn(1, 64, 4, 4)
    hidden = conv.conv_depth(F.silu(conv.conv_inverted(x)))
    value, gate = hidden.chunk(2, dim=1)
    assert (value * F.silu(gate)).abs().max() > torch.finfo(torch.float16).max  # or the law above shows nothing
    assert relative_error(conv.half()(x.half()).float(), conv.float()(x)) < 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@given(scale=st.floats(1e-2, 1e4), seed=seeds)
def test_the_norm_of_pixels_equals_its_formula_in_place_and_not(dtype: torch.dtype, scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    norm, x = PixelRMSNorm(6), (scale * torch.randn(2, 6, 3, 4)).to(dtype)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    wide = x.double()
    expected = wide / (wide.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
    expected = expected * norm.weight[:, None, None] + norm.bias[:, None, None]
    tolerance = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    found = norm(x)
    assert found.dtype == dtype
    assert relative_error(found, expected) < tolerance
    half = torch.full((2, 1, 3, 4), 0.5)
    assert relative_error(norm(x * 0.5, factor=half), expected) < tolerance
    with torch.no_grad():
        assert norm(x, inplace=True).data_ptr() == x.data_ptr()
    assert relative_error(x, expected) < tolerance


@given(seed=seeds)
def test_batch_norm_in_place_is_batch_norm(seed: int) -> None:
    torch.manual_seed(seed)
    norm, x = PixelBatchNorm(5), torch.randn(2, 5, 3, 4)
    norm(x)  # statistics
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
        norm.eval()
        expected = norm(x)
        torch.testing.assert_close(norm(x.clone(), inplace=True), expected)
        norm.train()
        assert norm(x, inplace=True) is not x  # learning needs its input


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["rms", "batch"])
@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_a_res_block_is_two_convolutions_and_a_norm(norm: Any, activation: Any) -> None:
    block = ResBlockConfig(norm=norm, activation=activation).build(8).eval()
    x = torch.randn(2, 8, 4, 5)
    act = {"silu": F.silu, "relu": F.relu}[activation]
    y = block.conv2(act(block.conv1(x)))
    expected = x + (
        y / (y.square().mean(dim=1, keepdim=True) + 1e-5).sqrt() if norm == "rms" else y * (1 + 1e-5) ** -0.5
    )
    torch.testing.assert_close(block(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected.detach())


def test_wrong_settings_are_told() -> None:
    make: Any = EfficientViTBlockConfig
    cases: tuple[tuple[Any, str], ...] = (
        ({"head_width": 0}, "config.head_width: must be at least 1, got 0"),
        ({"kernels": (4,)}, "config.kernels: must be odd and positive, got [4]"),
        ({"expand": 0.0}, "config.expand: must be positive, got 0.0"),
    )
    for settings_, message in cases:
        with pytest.raises(PartError) as error:
            make(**settings_)
        assert str(error.value) == message
    with pytest.raises(ValueError, match="head_width: must divide the width 48 of the block, got 32"):
        EfficientViTBlockConfig().build(48)
