"""SemDisDiffAE against FLUX.2's autoencoder, in one process and in turn; on two threads where there is no GPU.

MiB is the highest memory of one call beside weights and input (on a CPU: of a fresh process, scratch included).

Guards: on a CPU (two threads, float32) ours is at least 16 times faster, in either direction, at 256 and 512 px. On a
GPU (bfloat16, 128 images of 256 px) its encoder is at least 9 times faster at a tenth of the memory. Where other
processes use the cores as well, two threads measure those: then the benchmark fails and says so.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import peers
import pytest
import torch
from measuring import DEVICE, Crowd, Table, interleaved, threads
from peers import PEERS, Peer
from torch import Tensor

THREADS = 2

CPU = [
    pytest.param(direction, side, batch, 16.0, id=f"{direction}-{side}px-{batch}")
    for side, batch in ((256, 1), (512, 1), (256, 4))
    for direction in ("encode", "decode")
]
CUDA = [  # as in the model cards of full_capacitor and capacitor_decoder
    pytest.param("encode", 256, 128, 9.0, id="encode-256px-128"),
    pytest.param("encode", 512, 32, None, id="encode-512px-32"),
    *(pytest.param("decode", side, 1, None, id=f"decode-{side}px-1") for side in (512, 1024, 2048)),
]


@pytest.fixture(scope="module")
def models() -> dict[str, Peer]:
    return {name: make() for name, make in PEERS.items()}


def bench_the_models_are_the_published_ones(models: dict[str, Peer]) -> None:
    assert {name: model.parameters for name, model in models.items()} == {
        "SemDisDiffAE": 88_771_328,
        "FLUX.2": 84_046_115,
    }


@pytest.mark.parametrize(("direction", "side", "batch", "at_least"), CUDA if DEVICE == "cuda" else CPU)
def bench_ours_against_flux2(
    direction: str, side: int, batch: int, at_least: float | None, models: dict[str, Peer], table: Table
) -> None:
    inputs = {name: model.inputs(direction, side, batch) for name, model in models.items()}
    outputs: dict[str, Tensor] = {}

    def call(name: str) -> None:
        outputs[name] = getattr(models[name], direction)(inputs[name])

    calls = {name: partial(call, name) for name in models}
    mebibytes = {name: round(_activations(name, direction, side, batch, calls[name]) / 2**20) for name in models}
    with threads(THREADS), Crowd() as crowd:
        if DEVICE == "cuda":
            times = interleaved(calls, rounds=20, warm_up=5, sample=0)
        else:
            times = interleaved(calls, rounds=7 if batch * side == 256 else 3, warm_up=1, sample=0.5)
    for name, model in models.items():
        back = "decode" if direction == "encode" else "encode"
        assert outputs[name].shape == model.inputs(back, side, batch).shape
        assert outputs[name].isfinite().all()
    faster = times["FLUX.2"].over(times["SemDisDiffAE"])
    table.add(
        direction=direction,
        pixels=f"{side} x {side}",
        batch=batch,
        ours=times["SemDisDiffAE"],
        FLUX_2=times["FLUX.2"],
        times_faster=faster,
        MiB_ours=mebibytes["SemDisDiffAE"],
        MiB_FLUX_2=mebibytes["FLUX.2"],
        cores_taken_by_others=crowd.cores,
    )
    if DEVICE == "cpu" and crowd.cores > (os.cpu_count() or THREADS) - THREADS + 0.2:
        pytest.fail(f"other processes kept {crowd.cores:.1f} cores busy, and the times are theirs; measure again alone")
    if at_least is not None:
        assert faster.median >= at_least, f"{direction}: {faster.median:.1f} times faster, not {at_least}"
        if DEVICE == "cuda":
            ours, theirs = (mebibytes[name] + models[name].weight_bytes / 2**20 for name in models)
            assert ours <= 0.1 * theirs, f"{direction}: {ours:.0f} MiB with weights, of {theirs:.0f}"


def _activations(name: str, direction: str, side: int, batch: int, call: Callable[[], None]) -> int:
    """Bytes that one call needs beside weights and input, at their highest."""
    if DEVICE == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    command = [sys.executable, peers.__file__, name, direction, str(side), str(batch)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
