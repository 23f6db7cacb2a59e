"""Rules of resizing: which size a network sees, how its pixels are made, and what does not fit."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given

from latelier.blocks import (
    FixedResizeConfig,
    NearestResizeConfig,
    NoResizeConfig,
    PartError,
    ResizeConfig,
    SizeError,
    StrideResizeConfig,
    decode,
    encode,
    parts,
)

ALL: list[ResizeConfig] = [decode(cls.kind, ResizeConfig) for cls in parts(ResizeConfig)]
side = st.integers(1, 200)


@given(height=side, width=side, patch=st.sampled_from([1, 14, 16, 32]), rule=st.sampled_from(ALL))
def test_the_network_sees_multiples_of_its_patch_or_the_rule_refuses(
    height: int, width: int, patch: int, rule: ResizeConfig
) -> None:
    try:
        seen = rule.input_size((height, width), patch)
    except SizeError:
        return
    assert all(side > 0 and side % patch == 0 for side in seen)


@given(rows=st.integers(1, 20), columns=st.integers(1, 20), patch=st.integers(1, 32), stride=st.integers(1, 32))
def test_a_stride_puts_tokens_on_the_grid_of_latents(rows: int, columns: int, patch: int, stride: int) -> None:
    seen = StrideResizeConfig(stride=stride).input_size((rows * stride, columns * stride), patch)
    assert seen == (rows * patch, columns * patch)


@given(height=side, width=side, patch=st.integers(1, 40))
def test_nearest_takes_every_size_and_moves_no_side_by_more_than_half_a_patch(
    height: int, width: int, patch: int
) -> None:
    for before, after in zip((height, width), NearestResizeConfig().input_size((height, width), patch), strict=True):
        assert after % patch == 0
        assert abs(after - before) <= max(patch / 2, patch - before)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("antialias", [True, False])
def test_pixels_are_those_of_torch_under_the_named_rule(mode: Any, antialias: bool) -> None:
    images = torch.rand(2, 3, 40, 50)
    rule = FixedResizeConfig(height=28, width=14, mode=mode, antialias=antialias)
    expected = F.interpolate(images, (28, 14), mode=mode, align_corners=False, antialias=antialias)
    assert torch.equal(rule.apply(images, 14), expected)


def test_an_image_of_the_right_size_is_not_touched() -> None:
    images = torch.rand(1, 3, 28, 42)
    for rule in (NoResizeConfig(), StrideResizeConfig(stride=14), FixedResizeConfig(height=28, width=42)):
        assert rule.apply(images, 14) is images


@pytest.mark.parametrize(
    ("rule", "size", "message"),
    [
        (
            NoResizeConfig(),
            (30, 28),
            "takes sizes divisible by 14, got 30x28; 28x28 would do, and so would another 'resize'",
        ),
        (
            NoResizeConfig(),
            (5, 28),
            "takes sizes divisible by 14, got 5x28; 14x28 would do, and so would another 'resize'",
        ),
        (StrideResizeConfig(stride=16), (32, 40), "takes sizes divisible by 16, got 32x40; 32x32 would do"),
        (
            FixedResizeConfig(height=224, width=225),
            (9, 9),
            "takes sizes divisible by 14, got 224x225; 224x224 would do in its 'resize'",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_told(rule: ResizeConfig, size: tuple[int, int], message: str) -> None:
    with pytest.raises(SizeError) as error:
        rule.input_size(size, 14)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StrideResizeConfig(stride=0), "config.stride: must be at least 1, got 0"),
        (lambda: FixedResizeConfig(height=0), "config.height: must be at least 1, got 0"),
        (lambda: FixedResizeConfig(width=-3), "config.width: must be at least 1, got -3"),
    ],
)
def test_settings_of_rules_are_checked(make: Any, message: str) -> None:
    with pytest.raises(PartError) as error:
        make()
    assert str(error.value) == message


@pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.kind)
def test_rules_survive_json(rule: ResizeConfig) -> None:
    assert decode(encode(rule), ResizeConfig) == rule
