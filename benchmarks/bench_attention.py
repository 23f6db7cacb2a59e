"""Every attention backend that can run here, at the sizes of DINAC-AE's encoder, on one thread.

Each agrees with the formula, ``math``; the default, ``sdpa``, must not be slower than that. Flex is compiled on a GPU
only, and its bytes cannot be counted; a backend without a row cannot run, and ``why_not`` says why.
"""

import time

import pytest
import torch
from measuring import Table, assert_agrees, draw, interleaved, peak_bytes

from latelier.blocks import BACKENDS, attend, why_not

HEADS, HEAD_WIDTH = 14, 64


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("side", [256, 512])
@torch.no_grad()
def bench_attention(side: int, batch: int, table: Table) -> None:
    shape = (batch, HEADS, (side // 16) ** 2, HEAD_WIDTH)
    q, k, v = (draw(*shape) for _ in range(3))
    able = [name for name in BACKENDS if why_not(name, q, k, v) is None]
    expected = attend(q, k, v, backend="math")
    runs = {name: lambda name=name: attend(q, k, v, backend=name) for name in able}
    for run in runs.values():
        assert_agrees(run(), expected)
    times = interleaved(runs, rounds=10, sample=0.02, clock=time.process_time)  # blind to a busy machine
    for name in able:
        table.add(
            backend=name,
            pixels=f"{side} x {side}",
            queries=" x ".join(map(str, shape)),
            time=times[name],
            times_as_long_as_sdpa=times[name].over(times["sdpa"]),
            bytes=None if name == "flex" else peak_bytes(runs[name]),
        )
    share = times["sdpa"].over(times["math"]).median
    assert share <= 1, f"sdpa: {share:.2f} times as long as the formula"
