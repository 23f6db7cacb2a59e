"""Axial rotary positions: periods, layout, and the law that queries and keys see offsets only."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from latelier.blocks import rope_angles, rope_periods, rotate

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


@given(d=head_widths, h=st.integers(2, 6), w=st.integers(2, 6), dy=st.integers(0, 50), dx=st.integers(0, 50))
def test_products_of_queries_and_keys_see_offsets_only(d: int, h: int, w: int, dy: int, dx: int) -> None:
    q, k = torch.randn(1, 1, 1, d), torch.randn(1, 1, 1, d)
    angles = rope_angles((h + dy, w + dx), rope_periods(d)).unflatten(0, (h + dy, w + dx))

    def product(y: int, x: int) -> torch.Tensor:
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
