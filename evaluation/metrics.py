"""PSNR and SSIM of single images, and what a set of them amounts to.

PSNR = 10 log10(range² / MSE), the MSE over height, width and RGB of one image, in float64. A set has the mean of its
per-image values and, as another number, the *pooled* PSNR, that of the MSE over all pixels; the two differ by
decibels. torchmetrics computes both measures; what is here keeps them from being asked the wrong question.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..blocks.shapes import Image

RANGES = {1.0: (0.0, 1.0), 2.0: (-1.0, 1.0), 255.0: (0.0, 255.0)}
"""Where images live for each ``data_range``: 2 belongs to [-1, 1]."""

SSIM_WINDOW = 11


def psnr(reconstruction: Image, original: Image, *, data_range: float | int, clamp: bool = True) -> Float[Tensor, " b"]:
    """Decibels of each image, float64; the reconstruction is clamped to the range, and inf means that it is perfect.

    Raises:
        ValueError: ``data_range`` is not the range of the original.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio  # late: it takes seconds

    low, high = _bounds(original, data_range, where="psnr")
    reconstruction = reconstruction.double()
    return peak_signal_noise_ratio(
        reconstruction.clamp(low, high) if clamp else reconstruction,
        original.double(),
        data_range=float(data_range),
        dim=(1, 2, 3),
        reduction="none",
    )


def ssim(reconstruction: Image, original: Image, *, data_range: float | int) -> Float[Tensor, " b"]:
    """Structural similarity of each image (Gaussian window of 11, sigma 1.5), float32; errors as :func:`psnr`.

    The mean is over the whole image, mirrored at its edges, as torchmetrics has it; scikit-image leaves five pixels
    out at each edge.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    low, high = _bounds(original, data_range, where="ssim")
    if min(original.shape[2:]) < SSIM_WINDOW:
        size = "x".join(map(str, original.shape[2:]))
        raise ValueError(f"ssim: takes images of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, got {size}")
    values = structural_similarity_index_measure(
        reconstruction.float().clamp(low, high), original.float(), data_range=float(data_range), reduction="none"
    )
    assert isinstance(values, Tensor)
    return values.reshape(len(original))


def squared_error(reconstruction: Image, original: Image) -> Float[Tensor, " b"]:
    """Mean squared error of each image, float64."""
    return (reconstruction.double() - original.double()).square().mean(dim=(1, 2, 3))


def _bounds(original: Image, data_range: float | int, *, where: str) -> tuple[float, float]:
    if data_range not in RANGES:
        raise ValueError(f"{where}: takes data_range 1, 2 or 255, got {data_range:g}; for images in [-1, 1] it is 2")
    low, high = RANGES[data_range]
    least, most = (x.item() for x in original.aminmax())
    if not (low <= least and most <= high):
        fitting = next((r for r, (a, b) in RANGES.items() if a <= least and most <= b), None)
        hint = f"for those it is {fitting:g}" if fitting else "bring them into a known range first"
        raise ValueError(
            f"{where}: data_range {data_range:g} means images in [{low:g}, {high:g}], "
            f"got values from {least:.4g} to {most:.4g}; {hint}"
        )
    return low, high


def summary(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, standard deviation over the set, median, percentiles and extremes.

    None stands for infinity (a perfect reconstruction): it is counted in ``infinite`` and kept out of the rest.
    """
    finite = np.array([v for v in values if v is not None], dtype=np.float64)
    result: dict[str, Any] = {"n": len(values), "infinite": len(values) - len(finite)}
    if not len(finite):
        return result | dict.fromkeys(("mean", "std", "median", "p5", "p95", "min", "max"))
    p5, median, p95 = np.percentile(finite, [5, 50, 95]).tolist()
    return result | {
        "mean": math.fsum(finite) / len(finite),
        "std": float(finite.std()),
        "median": median,
        "p5": p5,
        "p95": p95,
        "min": float(finite.min()),
        "max": float(finite.max()),
    }


def pooled_psnr(rows: Sequence[Mapping[str, Any]], *, data_range: float | int) -> float | None:
    """PSNR of the mean squared error over all pixels of rows that have ``mse``, ``height`` and ``width``."""
    pixels = [row["height"] * row["width"] for row in rows]
    error = math.fsum(row["mse"] * n for row, n in zip(rows, pixels, strict=True))
    return 10 * math.log10(data_range**2 * sum(pixels) / error) if error else None
