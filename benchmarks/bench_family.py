"""SemDisDiffAE and DINAC-AE at their published sizes, on one thread.

Their parameters, operations and peak memory are counted exactly, SemDisDiffAE's without computing. DINAC-AE has the
same decoder.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from measuring import DEVICE, DTYPE, Table, assert_agrees, flops, interleaved, peak_bytes

from latelier.blocks import use_attention
from latelier.families import DiffAEConfig, DinacAE, DinacAEConfig, SemDisDiffAE

PIXELS, WIDTH, HIDDEN, LATENT, RANK = 3 * 16**2, 896, 4 * 896, 128, 128
BLOCK = WIDTH * 7**2 + 2 * WIDTH * HIDDEN
FEATURES, EXTRA = 768, 5  # the token head's width; its class token and registers

SIZES = pytest.mark.parametrize(("side", "batch"), [(256, 1), (256, 4), (512, 1)])


@pytest.fixture(scope="module")
def semdisdiffae() -> SemDisDiffAE:
    return DiffAEConfig().build().eval().to(DEVICE, DTYPE)


@pytest.fixture(scope="module")
def dinac_ae() -> DinacAE:
    return DinacAEConfig().build().eval().to(DEVICE, DTYPE)


def bench_parameters_are_the_published_ones(semdisdiffae: SemDisDiffAE, dinac_ae: DinacAE) -> None:
    assert sum(p.numel() for p in semdisdiffae.parameters()) == 88_771_328
    assert sum(p.numel() for p in dinac_ae.parameters()) == 134_941_184


# --- counts ---------------------------------------------------------------------------------------------------


def encode_flops(positions: int) -> int:
    return 2 * positions * (PIXELS * WIDTH + 4 * BLOCK + WIDTH * 2 * LATENT)


def decode_flops(positions: int, images: int) -> int:
    fusions = 2 * (2 * WIDTH * WIDTH)
    maps = PIXELS * WIDTH + LATENT * WIDTH + fusions + 8 * BLOCK + WIDTH * PIXELS
    condition = 2 * 128 * WIDTH + WIDTH * WIDTH + WIDTH * 2 * WIDTH + 8 * RANK * (WIDTH + 2 * WIDTH)
    return 2 * (positions * maps + images * condition)


def attention_flops(queries: int, keys: int, width: int) -> int:
    """Products of queries and keys, and of their weights and values, all heads of one image together."""
    return 2 * (2 * queries * keys * width)


def transformer_flops(tokens: int, width: int) -> int:
    """One image: queries, keys, values and output, an MLP four times as wide, and attention."""
    return 2 * tokens * (3 + 1 + 2 * 4) * width**2 + attention_flops(tokens, tokens, width)


def dinac_encode_flops(tokens: int, images: int) -> int:
    ends = 2 * tokens * (PIXELS * WIDTH + WIDTH * 2 * LATENT)
    return images * (ends + 6 * transformer_flops(tokens, WIDTH))


def features_flops(tokens: int, images: int) -> int:
    """A projection, a block over tokens and extra tokens, and a readout by the class token of all others."""
    context = tokens + EXTRA - 1
    readout = 2 * (1 + 1 + 2 * 4 + 2 * context) * FEATURES**2 + attention_flops(1, context, FEATURES)
    return images * (2 * tokens * LATENT * FEATURES + transformer_flops(tokens + EXTRA, FEATURES) + readout)


def encode_peak(positions: int) -> int:
    """Six maps in float32: a block's input, its hidden map of four times the width, its output."""
    return 4 * positions * (WIDTH + HIDDEN + WIDTH)


def decode_peak(positions: int, images: int) -> int:
    """Beside a block's six maps those before and after the skip's fusion, and the modulations of eight blocks."""
    return encode_peak(positions) + 4 * (2 * positions * WIDTH + images * 8 * 2 * WIDTH)


def transformer_peak(tokens: int, images: int) -> int:
    """Nine maps, where keys are turned: a block's input, its norm, q, k and v, q and k normalised, and both turned.

    Beside them the angles of the grid, and the complex numbers that they are.
    """
    return 4 * (9 * images * tokens * WIDTH + tokens * (32 + 2 * 32))


def features_peak(tokens: int, images: int) -> int:
    """The same nine maps, with class token and registers, and the turned part of the keys that joins them.

    Beside them raw latents, what they were projected to, class token and registers, and the angles.
    """
    before = images * tokens * (LATENT + FEATURES) + EXTRA * FEATURES
    return 4 * (before + 9 * images * (tokens + EXTRA) * FEATURES + images * tokens * FEATURES + tokens * 32)


@SIZES
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


@SIZES
@torch.no_grad()
def bench_counts_of_dinac_ae_are_exact(side: int, batch: int) -> None:
    model = DinacAEConfig().build()  # on a CPU; without a device, attention is the plain formula, which needs memory
    grid = side // model.stride
    images, z, t = torch.zeros(batch, 3, side, side), torch.zeros(batch, LATENT, grid, grid), torch.zeros(batch)
    assert flops(lambda: model.encode(images)) == dinac_encode_flops(grid**2, batch)
    assert flops(lambda: model.predict_features(z)) == features_flops(grid**2, batch)
    assert flops(lambda: model.predict_class(z)) == features_flops(grid**2, batch)
    assert peak_bytes(lambda: model.encode(images)) == transformer_peak(grid**2, batch)
    assert peak_bytes(lambda: model.predict_features(z)) == features_peak(grid**2, batch)
    model = model.to("meta")
    images, z, t = (x.to("meta") for x in (images, z, t))
    assert flops(lambda: model.predict(images, t, z)) == decode_flops(batch * grid**2, batch)
    assert peak_bytes(lambda: model.predict(images, t, z)) == decode_peak(batch * grid**2, batch)


# --- times ----------------------------------------------------------------------------------------------------


@SIZES
def bench_semdisdiffae(side: int, batch: int, semdisdiffae: SemDisDiffAE, table: Table) -> None:
    model, grid = semdisdiffae, side // semdisdiffae.stride
    images = torch.rand(batch, 3, side, side, device=DEVICE) * 2 - 1
    latents = model.encode(images)
    assert latents.shape == (batch, LATENT, grid, grid)
    with torch.enable_grad():  # the plain path
        expected = model.whiten(model.posterior(images).mode()).detach()
    assert_agrees(latents, expected)
    decoded = model.decode(latents, side, side)
    assert decoded.shape == images.shape
    assert decoded.isfinite().all()
    calls = {"encode": lambda: model.encode(images), "decode": lambda: model.decode(latents, side, side)}
    operations = {"encode": encode_flops(batch * grid**2), "decode": decode_flops(batch * grid**2, batch)}
    _add_times("SemDisDiffAE", side, batch, calls, operations, table)


@SIZES
@torch.no_grad()
def bench_dinac_ae(side: int, batch: int, dinac_ae: DinacAE, table: Table) -> None:
    model, grid = dinac_ae, side // dinac_ae.stride
    images = torch.rand(batch, 3, side, side, device=DEVICE) * 2 - 1
    latents = model.encode(images)
    assert latents.shape == (batch, LATENT, grid, grid)
    with use_attention("math"):
        assert_agrees(latents.to(DTYPE), model.encode(images).to(DTYPE))
    features = model.predict_features(latents)
    assert features.cls is not None
    assert_agrees(model.predict_class(latents).bfloat16(), features.cls.bfloat16())
    decoded = model.decode(latents, side, side)
    assert decoded.shape == images.shape
    assert decoded.isfinite().all()
    calls = {
        "encode": lambda: model.encode(images),
        "predict_class": lambda: model.predict_class(latents),
        "decode": lambda: model.decode(latents, side, side),
    }
    operations = {
        "encode": dinac_encode_flops(grid**2, batch),
        "predict_class": features_flops(grid**2, batch),
        "decode": decode_flops(batch * grid**2, batch),
    }
    _add_times("DINAC-AE", side, batch, calls, operations, table)


def _add_times(
    model: str, side: int, batch: int, calls: dict[str, Callable[[], Any]], operations: dict[str, int], table: Table
) -> None:
    for call, times in interleaved(calls, rounds=7).items():
        table.add(
            model=model,
            call=call,
            pixels=f"{side} x {side}",
            batch=batch,
            time=times,
            FLOPs=operations[call],
            GFLOP_a_second=operations[call] / times.median / 1e9,
        )
