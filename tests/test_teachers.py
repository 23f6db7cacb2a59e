"""The HOG teacher against loops written from the paper, against scikit-image, and against what a teacher promises."""

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from latelier.blocks import HOGConfig, PartError, TeacherOutput, decode, encode


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def hog_by_loops(image: np.ndarray, *, patch: int, cells: int, orientations: int, soft: bool) -> np.ndarray:
    """[rows, columns, cells, cells, orientations] of an image [H, W, C], pixel by pixel in float64."""
    height, width, channels = image.shape
    side = patch // cells
    histogram = np.zeros((height // side, width // side, orientations))
    for y in range(height):
        for x in range(width):
            best = (-1.0, 0.0, 0.0)
            for c in range(channels):
                gx = image[y, min(x + 1, width - 1), c] - image[y, max(x - 1, 0), c]
                gy = image[min(y + 1, height - 1), x, c] - image[max(y - 1, 0), x, c]
                best = max(best, (math.hypot(gx, gy), gx, gy), key=lambda found: found[0])
            length, gx, gy = best
            place = (math.degrees(math.atan2(gy, gx)) % 180) / (180 / orientations)
            votes = {int(place) % orientations: 1.0}
            if soft:
                lower, share = math.floor(place - 0.5), (place - 0.5) % 1
                votes = {lower % orientations: 1 - share, (lower + 1) % orientations: share}
            for k, share in votes.items():
                histogram[y // side, x // side, k] += share * length / side**2
    rows, columns = height // patch, width // patch
    blocks = histogram.reshape(rows, cells, columns, cells, orientations).transpose(0, 2, 1, 3, 4).copy()
    for block in blocks.reshape(rows * columns, -1):
        for clip in (0.2, math.inf):
            block /= math.sqrt((block**2).sum() + 1e-5**2)
            np.minimum(block, clip, out=block)
    return blocks


@given(
    cells=st.sampled_from([1, 2, 3]),
    side=st.integers(1, 4),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    orientations=st.integers(2, 12),
    seed=st.integers(0, 99),
)
def test_hog_equals_loops_over_pixels(
    cells: int, side: int, rows: int, columns: int, orientations: int, seed: int
) -> None:
    patch = cells * side
    config = HOGConfig(patch=patch, cells=cells, orientations=orientations)
    image = noise(1, 3, rows * patch, columns * patch, seed=seed)
    out = config.build()(image)
    loops = hog_by_loops(
        image[0].permute(1, 2, 0).double().numpy(), patch=patch, cells=cells, orientations=orientations, soft=True
    )
    assert out.grid == (rows, columns)
    torch.testing.assert_close(
        out.patches[0].double(), torch.from_numpy(loops).reshape(rows * columns, -1), atol=2e-5, rtol=0
    )


def test_the_loops_with_whole_votes_equal_scikit_image() -> None:
    hog = pytest.importorskip("skimage.feature").hog
    image = noise(48, 64, 3, seed=3).double().numpy()
    ours = hog_by_loops(image, patch=8, cells=2, orientations=9, soft=False)
    theirs = hog(
        image, orientations=9, pixels_per_cell=(4, 4), cells_per_block=(2, 2), feature_vector=False, channel_axis=2
    )
    inner = slice(1, -1)  # scikit-image calls the gradient at the border zero, we repeat the edge
    np.testing.assert_allclose(ours[inner, inner], theirs[::2, ::2][inner, inner], atol=1e-12)


def test_hog_equals_scikit_image_where_votes_need_no_splitting() -> None:
    hog = pytest.importorskip("skimage.feature").hog
    y, x = np.mgrid[:32, :32]
    angle = math.radians(50)  # the centre of the third of nine orientations
    ramp = 0.3 + 0.01 * (x * math.cos(angle) + y * math.sin(angle))
    theirs = hog(ramp, pixels_per_cell=(4, 4), cells_per_block=(2, 2), feature_vector=False)[::2, ::2]
    images = torch.tensor(ramp, dtype=torch.float32).expand(1, 3, 32, 32)
    ours = HOGConfig(patch=8).build()(images).patches.reshape(4, 4, 2, 2, 9)
    np.testing.assert_allclose(ours[1:-1, 1:-1].numpy(), theirs[1:-1, 1:-1], atol=1e-4)


def test_a_token_is_as_wide_as_the_config_says() -> None:
    config = HOGConfig(patch=16, cells=4, orientations=6)
    out = config.build()(noise(2, 3, 32, 48))
    assert isinstance(out, TeacherOutput)
    assert out.patches.shape == (2, 6, config.features) == (2, 6, 96)
    assert out.grid == (2, 3)
    assert out.cls is not None
    torch.testing.assert_close(out.cls, out.patches.mean(dim=1))


def test_a_token_does_not_depend_on_the_batch_or_on_far_pixels() -> None:
    hog = HOGConfig(patch=8).build()
    images = noise(3, 3, 24, 24)
    alone = torch.cat([hog(image[None]).patches for image in images])
    torch.testing.assert_close(hog(images).patches, alone, rtol=0, atol=0)
    changed = images.clone()
    changed[:, :, :, 9:] = noise(3, 3, 24, 15, seed=1)
    assert torch.equal(hog(changed).patches[:, ::3], alone[:, ::3])


def test_brightness_contrast_and_sign_leave_tokens_as_they_are() -> None:
    hog = HOGConfig(patch=8).build()
    images = noise(1, 3, 16, 16)
    for changed in (0.5 * images, 0.5 * images + 0.25, 1 - images):
        torch.testing.assert_close(hog(changed).patches, hog(images).patches, atol=2e-4, rtol=0)


def test_a_mirrored_image_has_mirrored_tokens() -> None:
    hog = HOGConfig(patch=8).build()
    images = noise(1, 3, 16, 24)
    tokens = hog(images).patches.reshape(1, 2, 3, 2, 2, 9)
    mirrored = hog(images.flip(-1)).patches.reshape(1, 2, 3, 2, 2, 9)
    torch.testing.assert_close(mirrored, tokens.flip(2, 4, 5), atol=1e-5, rtol=0)


def test_an_empty_image_has_zero_tokens() -> None:
    assert torch.equal(HOGConfig(patch=8).build()(torch.ones(1, 3, 16, 16)).patches, torch.zeros(1, 4, 36))


def test_hog_is_float32_without_gradient_or_weights() -> None:
    hog = HOGConfig(patch=8).build()
    images = noise(1, 3, 16, 16).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = hog(images)
    assert out.patches.dtype == torch.float32
    assert not out.patches.requires_grad
    torch.testing.assert_close(out.patches, hog(images.detach().float()).patches, rtol=0, atol=0)
    assert not hog.state_dict()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            torch.linspace(-1, 1, 768).reshape(1, 3, 16, 16),
            "HOG: takes images in [0, 1], got values from -1 to 1; map them with (x + 1) / 2",
        ),
        (
            torch.full((1, 3, 16, 16), torch.nan),
            "HOG: takes images in [0, 1], got values from nan to nan; map them with (x + 1) / 2",
        ),
        (torch.zeros(1, 3, 40, 100), "HOG: takes sizes divisible by 16, got 40x100; 32x96 would do"),
        (torch.zeros(1, 3, 10, 32), "HOG: takes sizes divisible by 16, got 10x32; 16x32 would do"),
    ],
)
def test_hog_refuses_what_it_cannot_describe(images: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError) as error:
        HOGConfig().build()(images)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cells": 3}, "config.cells: must divide the patch of 16 pixels, got 3"),
        ({"orientations": 1}, "config.orientations: must be at least 2, got 1"),
        ({"clip": 0.0}, "config.clip: must be positive, got 0.0"),
    ],
)
def test_hog_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PartError) as error:
        HOGConfig(**settings)
    assert str(error.value) == message


def test_hog_survives_json() -> None:
    config = HOGConfig(patch=8, orientations=6)
    assert decode(encode(config)) == config
