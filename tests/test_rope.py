"""Axial rotary positions: periods, layout, both conventions against loops, and that products see offsets only."""

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from latelier.blocks import AxialRoPE, rope_angles, rope_periods, rotate

sides, head_widths = st.integers(1, 6), st.sampled_from([4, 8, 64])


def test_periods_grow_from_one_to_the_base() -> None:
    expected = torch.tensor([10_000 ** (j / 16) for j in range(16)])
    torch.testing.assert_close(rope_periods(64), expected, rtol=1e-6, atol=0)
    assert rope_periods(64).dtype == torch.float32


@given(h=sides, w=sides)
def test_the_first_angles_turn_with_the_row_and_the_others_with_the_column(h: int, w: int) -> None:
    periods = rope_periods(16)
    angles = rope_angles((h, w), periods)
    assert angles.shape == (h * w, 8)
    for y in range(h):
        for x in range(w):
            torch.testing.assert_close(angles[y * w + x], torch.cat([y / periods, x / periods]))


@given(d=head_widths, h=sides, w=sides)
def test_adjacent_pairs_turn_as_complex_numbers(d: int, h: int, w: int) -> None:
    x, angles = torch.randn(2, 3, h * w, d), rope_angles((h, w), rope_periods(d))
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(rotate(x, angles), torch.view_as_real(turned).flatten(-2))
    a, b = x[..., 0::2], x[..., 1::2]
    torch.testing.assert_close(rotate(x, angles)[..., 0::2], a * angles.cos() - b * angles.sin())
    torch.testing.assert_close(rotate(x, angles)[..., 1::2], b * angles.cos() + a * angles.sin())


@given(d=head_widths, h=st.integers(2, 6), w=st.integers(2, 6), dy=st.integers(0, 50), dx=st.integers(0, 50))
def test_products_of_queries_and_keys_see_offsets_only(d: int, h: int, w: int, dy: int, dx: int) -> None:
    q, k = torch.randn(1, 1, 1, d), torch.randn(1, 1, 1, d)
    angles = rope_angles((h + dy, w + dx), rope_periods(d)).unflatten(0, (h + dy, w + dx))

    def product(y: int, x: int) -> Tensor:
        here, there = angles[y, x][None], angles[y + h - 1, x + w - 1][None]
        return (rotate(q, here) * rotate(k, there)).sum()

    torch.testing.assert_close(product(dy, dx), product(0, 0), rtol=1e-3, atol=1e-3)


def test_turning_keeps_lengths_and_the_origin() -> None:
    x = torch.randn(2, 3, 12, 8)
    turned = rotate(x, rope_angles((3, 4), rope_periods(8)))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])


@given(prefix=st.integers(0, 5))
def test_prefix_tokens_are_not_turned(prefix: int) -> None:
    x, angles = torch.randn(2, 3, prefix + 6, 8), rope_angles((2, 3), rope_periods(8))
    turned = rotate(x, angles, prefix=prefix)
    assert torch.equal(turned[:, :, :prefix], x[:, :, :prefix])
    assert torch.equal(turned[:, :, prefix:], rotate(x[:, :, prefix:], angles))


def test_half_precision_is_turned_in_float32_and_cast_back() -> None:
    x, angles = torch.randn(1, 2, 64 * 64, 8).bfloat16(), rope_angles((64, 64), rope_periods(8))
    assert angles.dtype == torch.float32
    assert torch.equal(rotate(x, angles), rotate(x.float(), angles).bfloat16())


def test_a_position_that_bfloat16_cannot_count_to_has_its_own_angle() -> None:
    last = rope_angles((1, 1000), rope_periods(4))[-1, 1]
    assert math.isclose(last.item(), 999)


def test_a_head_must_divide_into_pairs_on_two_axes() -> None:
    with pytest.raises(ValueError, match=r"^head width: must be divisible by 4 \(two axes of pairs\), got 6$"):
        rope_periods(6)


# --- as DINOv3 has it -------------------------------------------------------------------------------------------------


def plain_dinov3(x: Tensor, grid: tuple[int, int], *, base: float = 100.0) -> Tensor:
    """DINOv3's rotary embedding of ``[b, g, n, d]`` in float64, number by number."""
    h, w = grid
    d = x.shape[-1]
    out = x.double().clone()
    for i in range(h):
        for j in range(w):
            place = ((i + 0.5) / h * 2 - 1, (j + 0.5) / w * 2 - 1)
            for pair in range(d // 2):
                axis, k = divmod(pair, d // 4)
                angle = 2 * math.pi * place[axis] / base ** (2 * k / (d / 2))
                a, b = x[:, :, i * w + j, pair].double(), x[:, :, i * w + j, pair + d // 2].double()
                out[:, :, i * w + j, pair] = a * math.cos(angle) - b * math.sin(angle)
                out[:, :, i * w + j, pair + d // 2] = b * math.cos(angle) + a * math.sin(angle)
    return out


@given(d=st.sampled_from([4, 8, 16]), h=st.integers(1, 4), w=st.integers(1, 4))
def test_the_normalised_convention_is_that_of_dinov3(d: int, h: int, w: int) -> None:
    q, k = torch.randn(2, 2, h * w, d), torch.randn(2, 2, h * w, d)
    for turned, x in zip(AxialRoPE(d, convention="normalised")(q, k, (h, w)), (q, k), strict=True):
        torch.testing.assert_close(turned.double(), plain_dinov3(x, (h, w)), rtol=1e-4, atol=1e-5)


@given(h=sides, w=sides, scale=st.integers(2, 5))
def test_normalised_angles_do_not_depend_on_the_resolution(h: int, w: int, scale: int) -> None:
    """A coarse position turns by the mean of the fine positions inside it; only half-pixels differ."""
    periods = rope_periods(16, base=100.0)
    coarse = rope_angles((h, w), periods, convention="normalised")
    fine = rope_angles((scale * h, scale * w), periods, convention="normalised")
    fine = fine.reshape(h, scale, w, scale, -1).mean(dim=(1, 3)).flatten(0, 1)
    torch.testing.assert_close(fine, coarse, rtol=1e-4, atol=1e-4)


def test_normalised_angles_run_from_corner_to_corner_and_indices_from_zero_up() -> None:
    periods = rope_periods(4, base=100.0)
    for side in (1, 4, 50):
        angles = rope_angles((side, side), periods, convention="normalised")
        edge = 2 * math.pi * (1 - 1 / side)
        torch.testing.assert_close(angles[0], torch.tensor([-edge, -edge]), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(angles[-1], torch.tensor([edge, edge]), rtol=1e-5, atol=1e-5)
        assert rope_angles((side, side), periods)[-1].tolist() == [side - 1, side - 1]


# --- the module -------------------------------------------------------------------------------------------------------

conventions = pytest.mark.parametrize("convention", ["indices", "normalised"])


@conventions
def test_rope_keeps_its_periods_in_float32_and_in_its_files(convention: Any) -> None:
    rope = AxialRoPE(64, convention=convention)
    expected = rope_periods(64, base={"indices": 10_000.0, "normalised": 100.0}[convention])
    for change in (rope.to, rope.type):
        for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float32):
            assert torch.equal(change(dtype).periods, expected)
            assert rope.periods.dtype == torch.float32
    assert torch.equal(rope.half().state_dict()["periods"], expected)
    assert not list(rope.parameters())


@conventions
def test_half_precision_is_turned_as_by_float32_under_a_half_module(convention: Any) -> None:
    q, k = (torch.randn(2, 3, 100 * 2, 16).bfloat16() for _ in range(2))
    rope = AxialRoPE(16, convention=convention)
    expected = [y.bfloat16() for y in rope(q.float(), k.float(), (100, 2))]
    for y, reference in zip(rope.bfloat16()(q, k, (100, 2)), expected, strict=True):
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, reference)


@conventions
@given(prefix=st.integers(1, 5), h=st.integers(1, 3), w=st.integers(1, 3))
def test_rope_leaves_tokens_before_the_grid_alone(convention: Any, prefix: int, h: int, w: int) -> None:
    rope, q, k = AxialRoPE(8, convention=convention), *torch.randn(2, 2, 3, prefix + h * w, 8)
    turned = rope(q, k, (h, w), prefix=prefix)
    for y, x, alone in zip(turned, (q, k), rope(q[:, :, prefix:], k[:, :, prefix:], (h, w)), strict=True):
        assert torch.equal(y[:, :, :prefix], x[:, :, :prefix])
        torch.testing.assert_close(y[:, :, prefix:], alone)


@conventions
def test_the_gradient_of_a_turn_is_the_turn_back(convention: Any) -> None:
    x, weight = torch.randn(2, 3, 6, 8, requires_grad=True), torch.randn(2, 3, 6, 8)
    angles = rope_angles((2, 3), rope_periods(8), convention=convention)
    (rotate(x, angles, convention=convention) * weight).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, rotate(weight, -angles, convention=convention))


@conventions
def test_views_are_turned_as_copies_are(convention: Any) -> None:
    """Wherever they start in memory, and in whatever order it holds them."""
    angles = rope_angles((2, 3), rope_periods(8), convention=convention)
    odd = torch.randn(1 + 6 * 8)[1:].view(1, 1, 6, 8)
    strided = torch.randn(2, 6, 3, 8).transpose(1, 2)
    backwards = torch.randn(2, 3, 8, 6).mT
    for x in (odd, strided, backwards):
        copy = x.clone(memory_format=torch.contiguous_format)
        torch.testing.assert_close(
            rotate(x, angles, convention=convention), rotate(copy, angles, convention=convention)
        )
