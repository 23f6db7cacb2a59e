"""Residual downs and ups against the formulas of DC-AE written out, and their fast paths against their plain ones."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from latelier.blocks import (
    DownConfig,
    NearestUpConfig,
    ShuffleUpConfig,
    StridedDownConfig,
    UnshuffleDownConfig,
    UpConfig,
    average_channels,
    repeat_channels,
)

DOWNS: list[DownConfig] = [StridedDownConfig(), UnshuffleDownConfig()]
UPS: list[UpConfig] = [NearestUpConfig(), ShuffleUpConfig()]
sides, seeds = st.integers(1, 5), st.integers(0, 2**31)
layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
every_down = pytest.mark.parametrize("config", DOWNS, ids=lambda config: config.kind)
every_up = pytest.mark.parametrize("config", UPS, ids=lambda config: config.kind)


def plain_down(module: nn.Module, x: Tensor, out: int, *, unshuffle: bool, shortcut: bool = True) -> Tensor:
    conv: Any = module.get_submodule("conv")
    y = F.conv2d(x, conv.weight, conv.bias, stride=1 if unshuffle else 2, padding=1)
    y = F.pixel_unshuffle(y, 2) if unshuffle else y
    if not shortcut:
        return y
    return y + F.pixel_unshuffle(x, 2).unflatten(1, (out, -1)).mean(dim=2)


def plain_up(module: nn.Module, x: Tensor, out: int, *, shuffle: bool, shortcut: bool = True) -> Tensor:
    conv: Any = module.get_submodule("conv")
    big = x if shuffle else F.interpolate(x, scale_factor=2.0, mode="nearest")
    y = F.conv2d(big, conv.weight, conv.bias, padding=1)
    y = F.pixel_shuffle(y, 2) if shuffle else y
    if not shortcut:
        return y
    return y + F.pixel_shuffle(x.repeat_interleave(4 * out // x.shape[1], dim=1), 2)


@every_down
@layouts
@settings(max_examples=15)
@given(widths=st.sampled_from([(4, 4), (4, 8), (4, 16), (8, 4), (12, 16)]), h=sides, w=sides, seed=seeds)
def test_a_down_is_its_convolution_and_the_means_of_groups(
    config: DownConfig, layout: torch.memory_format, widths: tuple[int, int], h: int, w: int, seed: int
) -> None:
    torch.manual_seed(seed)
    module, x = config.build(*widths), torch.randn(2, widths[0], 2 * h, 2 * w).contiguous(memory_format=layout)
    expected = plain_down(module, x, widths[1], unshuffle=isinstance(config, UnshuffleDownConfig))
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected.detach(), rtol=1e-5, atol=1e-5)


@every_up
@layouts
@settings(max_examples=15)
@given(widths=st.sampled_from([(4, 4), (8, 4), (4, 8), (16, 4), (12, 3)]), h=sides, w=sides, seed=seeds)
def test_an_up_is_its_convolution_and_copies_of_channels(
    config: UpConfig, layout: torch.memory_format, widths: tuple[int, int], h: int, w: int, seed: int
) -> None:
    torch.manual_seed(seed)
    module, x = config.build(*widths), torch.randn(2, widths[0], h, w).contiguous(memory_format=layout)
    kept = x.clone()
    expected = plain_up(module, x, widths[1], shuffle=isinstance(config, ShuffleUpConfig))
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(x, kept)


@layouts
@pytest.mark.parametrize("widths", [(4, 4), (8, 4), (4, 8), (16, 4)], ids=str)
@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_large_map_goes_through_four_small_kernels_and_is_the_same(
    layout: torch.memory_format, widths: tuple[int, int], shortcut: bool, dtype: torch.dtype
) -> None:
    module = NearestUpConfig().build(*widths, shortcut=shortcut)
    x = torch.randn(2, widths[0], 32, 34).contiguous(memory_format=layout)
    expected = plain_up(module, x, widths[1], shuffle=False, shortcut=shortcut).detach()
    with torch.no_grad():
        found = module.to(dtype)(x.to(dtype)).float()
    error = ((found - expected).norm() / expected.norm()).item()
    assert error < (1e-6 if dtype == torch.float32 else 0.01)


@given(few=st.integers(1, 4), times=st.integers(1, 4), seed=seeds)
def test_averaging_undoes_repeating(few: int, times: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(2, few, 2, 3)
    torch.testing.assert_close(average_channels(repeat_channels(x, few * times), few), x)
    assert torch.equal(repeat_channels(x, few * times)[:, times - 1], x[:, 0])  # copies are neighbours


@pytest.mark.parametrize("widths", [(4, 4), (4, 8), (8, 8)], ids=str)
def test_down_then_up_keeps_the_mean_of_a_square_where_the_convolutions_are_zero(widths: tuple[int, int]) -> None:
    fine, coarse = widths
    down, up = StridedDownConfig().build(fine, coarse), NearestUpConfig().build(coarse, fine)
    for module in (down, up):
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
    x = torch.randn(1, fine, 4, 6)
    torch.testing.assert_close(F.avg_pool2d(up(down(x)), 2), F.avg_pool2d(x, 2))


def test_channels_that_cannot_be_shared_equally_are_told() -> None:
    message = "shortcut: 12 channels cannot be shared equally among 8; take a multiple, or none"
    with pytest.raises(ValueError, match=message):
        StridedDownConfig().build(3, 8)
    with pytest.raises(ValueError, match=message):
        NearestUpConfig().build(8, 3)
    with pytest.raises(ValueError, match="out: must be divisible by 4, the positions of a square, got 6"):
        UnshuffleDownConfig().build(3, 6)
    assert NearestUpConfig().build(8, 3, shortcut=False)(torch.zeros(1, 8, 2, 2)).shape == (1, 3, 4, 4)
