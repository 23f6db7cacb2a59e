"""PSNR and SSIM mean what their names say, and refuse data of another range."""

import math
import re
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torchmetrics.functional.image import peak_signal_noise_ratio

from latelier.evaluation import metrics, protocols, psnr, ssim


def images(b: int, h: int, w: int, *, seed: int = 0) -> torch.Tensor:
    return 2 * torch.rand(b, 3, h, w, generator=torch.Generator().manual_seed(seed)) - 1


def rows(reconstruction: torch.Tensor, original: torch.Tensor) -> list[dict[str, Any]]:
    values = psnr(reconstruction, original, data_range=2).tolist()
    errors = metrics.squared_error(reconstruction, original).tolist()
    height, width = original.shape[2:]
    return [
        {"name": f"{i}", "height": height, "width": width, "psnr": v, "ssim": 0.5, "mse": e}
        for i, (v, e) in enumerate(zip(values, errors, strict=True))
    ]


@given(b=st.integers(1, 3), h=st.integers(1, 20), w=st.integers(1, 20), seed=st.integers(0, 99))
def test_psnr_is_that_of_each_image(b: int, h: int, w: int, seed: int) -> None:
    original, reconstruction = images(b, h, w, seed=seed), images(b, h, w, seed=seed + 1000)
    error = (original - reconstruction).double().numpy() ** 2
    expected = 10 * np.log10(4 / error.mean(axis=(1, 2, 3)))
    np.testing.assert_allclose(psnr(reconstruction, original, data_range=2).numpy(), expected, atol=1e-6)


def test_psnr_clamps_the_reconstruction() -> None:
    original = torch.ones(1, 3, 4, 4)
    assert psnr(original + 5, original, data_range=2).item() == math.inf


def test_the_pooled_psnr_differs_from_the_mean_by_a_known_amount() -> None:
    original = torch.zeros(2, 3, 16, 16)
    reconstruction = original + torch.tensor([0.2, 0.02])[:, None, None, None]  # 20 and 40 dB
    found = protocols.totals(rows(reconstruction, original))["psnr"]
    assert found["mean"] == pytest.approx(30, abs=1e-5)
    assert found["pooled"] == pytest.approx(10 * math.log10(4 / ((0.04 + 0.0004) / 2)), abs=1e-5)
    whole_set = peak_signal_noise_ratio(reconstruction, original, data_range=2.0).item()
    assert found["pooled"] == pytest.approx(whole_set, abs=1e-4)


def test_the_pooled_psnr_weighs_images_by_their_pixels() -> None:
    small = {"mse": 0.04, "height": 1, "width": 2}
    large = {"mse": 0.01, "height": 4, "width": 2}
    assert metrics.pooled_psnr([small, large], data_range=2) == pytest.approx(10 * math.log10(4 / ((0.08 + 0.08) / 10)))


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_parts_of_a_set_in_any_order_give_the_numbers_of_the_whole(parts: int) -> None:
    original, reconstruction = images(7, 12, 12), images(7, 12, 12, seed=1)
    all_rows = rows(reconstruction, original)
    gathered = [row for part in reversed(range(parts)) for row in all_rows[part::parts]]
    assert protocols.totals(gathered) == protocols.totals(all_rows)


def test_perfect_reconstructions_are_counted_and_kept_out_of_the_mean() -> None:
    found = metrics.summary([30.0, None, 32.0])
    assert found["infinite"] == 1
    assert found["n"] == 3
    assert found["mean"] == 31.0
    assert metrics.summary([None]) == {"n": 1, "infinite": 1} | dict.fromkeys(
        ("mean", "std", "median", "p5", "p95", "min", "max")
    )


def test_a_summary_is_that_of_numpy() -> None:
    values = images(1, 5, 5).flatten().tolist()
    found = metrics.summary(values)
    for key, expected in (
        ("mean", np.mean(values)),
        ("std", np.std(values)),
        ("median", np.median(values)),
        ("p5", np.percentile(values, 5)),
        ("p95", np.percentile(values, 95)),
        ("min", min(values)),
        ("max", max(values)),
    ):
        assert found[key] == pytest.approx(expected, abs=1e-12)


def test_ssim_equals_scikit_image_on_a_mirrored_margin() -> None:
    reference = pytest.importorskip("skimage.metrics").structural_similarity
    margin = ((0, 0), (5, 5), (5, 5))  # which scikit-image leaves out
    original = images(2, 40, 32)
    reconstruction = (original + 0.3 * images(2, 40, 32, seed=1)).clamp(-1, 1)
    for found, a, b in zip(ssim(reconstruction, original, data_range=2), reconstruction, original, strict=True):
        expected = reference(
            np.pad(a.double().numpy(), margin, mode="reflect"),
            np.pad(b.double().numpy(), margin, mode="reflect"),
            channel_axis=0,
            data_range=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert found.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("low", "high", "data_range", "message"),
    [
        (-1, 1, 1, "data_range 1 means images in [0, 1], got values from -1 to 1; for those it is 2"),
        (0, 255, 2, "data_range 2 means images in [-1, 1], got values from 0 to 255; for those it is 255"),
        (
            -3,
            3,
            2,
            "data_range 2 means images in [-1, 1], got values from -3 to 3; bring them into a known range first",
        ),
        (0, 1, 3, "takes data_range 1, 2 or 255, got 3; for images in [-1, 1] it is 2"),
    ],
)
def test_another_range_is_refused(low: float, high: float, data_range: float, message: str) -> None:
    original = torch.linspace(low, high, 12 * 12 * 3).reshape(1, 3, 12, 12)
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match=f"^{measure.__name__}: {re.escape(message)}$"):
            measure(original, original, data_range=data_range)


def test_ssim_says_how_large_images_must_be() -> None:
    message = "ssim: takes images of at least 11x11 pixels, got 8x16"
    with pytest.raises(ValueError, match=f"^{message}$"):
        ssim(images(1, 8, 16), images(1, 8, 16), data_range=2)
