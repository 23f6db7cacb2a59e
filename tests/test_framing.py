"""What becomes of a picture before it is measured equals the projects' own code."""

import re

import hypothesis.strategies as st
import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings

from latelier.evaluation import (
    ADMFramingConfig,
    ArchetypePSNRConfig,
    AsIsFramingConfig,
    NativeFramingConfig,
    NoQuantiseConfig,
    PNGConfig,
    ResizeCenterFramingConfig,
    RoundConfig,
)


def picture(height: int, width: int, seed: int = 0) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def signed(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]


def adm_center_crop(image: PIL.Image.Image, size: int) -> np.ndarray:
    """The rule of guided-diffusion, on arrays: BOX halves, one BICUBIC step, the centre by indices."""
    while min(*image.size) >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), resample=PIL.Image.Resampling.BOX)
    scale = size / min(*image.size)
    image = image.resize(tuple(round(side * scale) for side in image.size), resample=PIL.Image.Resampling.BICUBIC)
    array = np.array(image)
    y, x = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[y : y + size, x : x + size]


@given(height=st.integers(5, 90), width=st.integers(5, 90), seed=st.integers(0, 9))
def test_the_adm_crop_equals_a_reference_on_odd_sizes(height: int, width: int, seed: int) -> None:
    image = picture(height, width, seed)
    found = ADMFramingConfig(size=16).prepare(image, stride=8)
    torch.testing.assert_close(found, signed(adm_center_crop(image, 16)), rtol=0, atol=1e-6)


@settings(max_examples=15)
@given(
    height=st.integers(9, 70),
    width=st.integers(9, 70),
    filter=st.sampled_from(["bilinear", "bicubic"]),
    antialias=st.booleans(),
    on=st.sampled_from(["tensor", "picture"]),
)
def test_resize_and_centre_crop_equal_torchvision(
    height: int, width: int, filter: str, antialias: bool, on: str
) -> None:
    transforms = pytest.importorskip("torchvision.transforms.v2.functional")
    antialias = antialias or on == "picture"
    image = picture(height, width)
    config = ResizeCenterFramingConfig(size=16, filter=filter, antialias=antialias, on=on)
    source = image if on == "picture" else torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    resized = transforms.resize(source, [16], interpolation=filter, antialias=antialias)
    expected = transforms.center_crop(resized, [16, 16])
    if on == "picture":
        expected = torch.from_numpy(np.array(expected)).permute(2, 0, 1)[None].float() / 255
    torch.testing.assert_close(config.prepare(image, stride=1), (2 * expected - 1).clamp(-1, 1), rtol=0, atol=1e-5)


def test_adm_and_resize_give_other_pixels() -> None:
    image = picture(70, 55)
    adm, resized = (c.prepare(image, stride=1) for c in (ADMFramingConfig(size=16), ResizeCenterFramingConfig(size=16)))
    assert (adm - resized).abs().max() > 0.01


@given(height=st.integers(8, 60), width=st.integers(8, 60), side=st.sampled_from([None, 24]))
def test_native_framing_is_that_of_archetype_psnr(height: int, width: int, side: int | None) -> None:
    image = picture(height, width)
    ours, theirs = NativeFramingConfig(multiple=4, longer_side=side), ArchetypePSNRConfig(multiple=4, longer_side=side)
    try:
        expected = theirs.prepare(image, stride=2)
    except ValueError as error:
        with pytest.raises(ValueError, match=f"^{re.escape(str(error))}$"):
            ours.prepare(image, stride=2)
    else:
        torch.testing.assert_close(ours.prepare(image, stride=2), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("config", "stride", "message"),
    [
        (ADMFramingConfig(size=20), 8, "size: 20 does not divide by the model's stride 8; take 16"),
        (NativeFramingConfig(), 64, "size: must be at least 64x64, got 30x20; leave the picture out"),
        (AsIsFramingConfig(size=32), 1, "size: must be 32x32, got 30x20"),
        (
            AsIsFramingConfig(),
            8,
            "size: 30x20 does not divide by the model's stride 8; take 'framing/native'",
        ),
    ],
)
def test_a_size_that_does_not_fit_is_refused(config: ADMFramingConfig, stride: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        config.prepare(picture(30, 20), stride=stride)


def test_grey_pictures_are_refused() -> None:
    for config in (ADMFramingConfig(), ResizeCenterFramingConfig(), NativeFramingConfig(), AsIsFramingConfig()):
        with pytest.raises(ValueError, match=r'^mode: takes RGB pictures, got L; use image.convert\("RGB"\)$'):
            config.prepare(picture(8, 8).convert("L"), stride=1)


def test_tensors_know_two_filters_and_pictures_no_aliasing() -> None:
    with pytest.raises(ValueError, match=r"filter: tensors are resampled by 'bilinear' or 'bicubic', got 'box'$"):
        ResizeCenterFramingConfig(filter="box")
    with pytest.raises(ValueError, match="antialias: pictures are always antialiased; take on='tensor' to leave it"):
        ResizeCenterFramingConfig(on="picture", antialias=False)


def test_rounding_png_and_the_floor_of_va_vae_are_the_same() -> None:
    images = 2.4 * torch.rand(2, 3, 9, 7) - 1.2
    rounded = RoundConfig().apply(images)
    assert torch.equal(rounded, PNGConfig().apply(images))
    floored = torch.from_numpy(np.floor(127.5 * images.numpy() + 128).clip(0, 255).astype(np.uint8))
    assert torch.equal(rounded, floored.float() / 127.5 - 1)
    assert torch.equal(RoundConfig().apply(rounded), rounded)
    assert torch.equal(NoQuantiseConfig().apply(images), images)
    assert (rounded - images.clamp(-1, 1)).abs().max() <= 1 / 255 + 1e-6
