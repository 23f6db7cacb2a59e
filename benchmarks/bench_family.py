"""Encode and decode of SemDisDiffAE at its published size, on one thread.

Its parameters, operations and peak memory are counted exactly, without computing.
"""

import pytest
import torch
from measuring import DEVICE, DTYPE, Table, assert_agrees, flops, interleaved, peak_bytes

from latelier.families import DiffAEConfig, SemDisDiffAE

PIXELS, WIDTH, HIDDEN, LATENT, RANK = 3 * 16**2, 896, 4 * 896, 128, 128
BLOCK = WIDTH * 7**2 + 2 * WIDTH * HIDDEN


@pytest.fixture(scope="module")
def model() -> SemDisDiffAE:
    return DiffAEConfig().build().eval().to(DEVICE, DTYPE)


def bench_parameters_are_the_published_ones(model: SemDisDiffAE) -> None:
    assert sum(p.numel() for p in model.parameters()) == 88_771_328


def encode_flops(positions: int) -> int:
    return 2 * positions * (PIXELS * WIDTH + 4 * BLOCK + WIDTH * 2 * LATENT)


def decode_flops(positions: int, images: int) -> int:
    fusions = 2 * (2 * WIDTH * WIDTH)
    maps = PIXELS * WIDTH + LATENT * WIDTH + fusions + 8 * BLOCK + WIDTH * PIXELS
    condition = 2 * 128 * WIDTH + WIDTH * WIDTH + WIDTH * 2 * WIDTH + 8 * RANK * (WIDTH + 2 * WIDTH)
    return 2 * (positions * maps + images * condition)


def encode_peak(positions: int) -> int:
    """Six maps in float32: a block's input, its hidden map of four times the width, its output."""
    return 4 * positions * (WIDTH + HIDDEN + WIDTH)


def decode_peak(positions: int, images: int) -> int:
    """Beside a block's six maps those before and after the skip's fusion, and the modulations of eight blocks."""
    return encode_peak(positions) + 4 * (2 * positions * WIDTH + images * 8 * 2 * WIDTH)


@pytest.mark.parametrize(("side", "batch"), [(256, 1), (256, 4), (512, 1)])
@torch.no_grad()
def bench_counts_are_exact(side: int, batch: int) -> None:
    model = DiffAEConfig().build().to("meta")
    grid = side // model.stride
    images, z = (torch.empty(batch, c, s, s, device="meta") for c, s in ((3, side), (LATENT, grid)))
    t, positions = torch.empty(batch, device="meta"), batch * grid**2
    assert flops(lambda: model.encode(images)) == encode_flops(positions)
    assert flops(lambda: model.predict(images, t, z)) == decode_flops(positions, batch)
    assert peak_bytes(lambda: model.encode(images)) == encode_peak(positions)
    assert peak_bytes(lambda: model.predict(images, t, z)) == decode_peak(positions, batch)


@pytest.mark.parametrize(("side", "batch"), [(256, 1), (256, 4), (512, 1)])
def bench_encode_and_decode(side: int, batch: int, model: SemDisDiffAE, table: Table) -> None:
    grid = side // model.stride
    images = torch.rand(batch, 3, side, side, device=DEVICE) * 2 - 1
    latents = model.encode(images)
    assert latents.shape == (batch, LATENT, grid, grid)
    with torch.enable_grad():  # the plain path
        expected = model.whiten(model.posterior(images).mode()).detach()
    assert_agrees(latents, expected)
    decoded = model.decode(latents, side, side)
    assert decoded.shape == images.shape
    assert decoded.isfinite().all()
    directions = {"encode": lambda: model.encode(images), "decode": lambda: model.decode(latents, side, side)}
    operations = {"encode": encode_flops(batch * grid**2), "decode": decode_flops(batch * grid**2, batch)}
    for direction, times in interleaved(directions, rounds=7).items():
        table.add(
            direction=direction,
            pixels=f"{side} x {side}",
            batch=batch,
            time=times,
            FLOPs=operations[direction],
            GFLOP_a_second=operations[direction] / times.median / 1e9,
        )
