"""Fast paths against their plain references, in one process and in turn, on one thread.

Each is right, and pays: in time, or at much the same time in memory.
"""

import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from measuring import DEVICE, Table, assert_agrees, awake, draw, interleaved, peak_bytes
from torch import Tensor

from latelier.blocks import (
    MLP,
    FCDMBlock,
    FeatureQueue,
    RMSNorm,
    channel_rms_norm,
    moments,
    response_norm,
    rope_angles,
    rope_periods,
    rotate,
)

WIDTH, SIDE, BATCH = 896, 16, 4  # the published width, on 256 px

Pair = tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]


def plain_response_norm(x: Tensor) -> Tensor:
    strength = x.float().square().sum(dim=(2, 3), keepdim=True).sqrt()
    return strength / (strength.mean(dim=1, keepdim=True) + 1e-6)


def plain_fcdm(block: FCDMBlock, x: Tensor, scale: Tensor | float, gate: Tensor) -> Tensor:
    y = channel_rms_norm(block.dwconv(x)) * (1 + scale)
    y = F.gelu(block.pwconv1(y))
    y = block.grn.gamma * (y * plain_response_norm(y).to(y.dtype)) + block.grn.beta + y
    return x + gate * block.pwconv2(y)


def plain_rotate(x: Tensor, angles: Tensor) -> Tensor:
    a, b = x.float()[..., 0::2], x.float()[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)


def _response_norm() -> Pair:
    """One reduction against a squared copy and its sum."""
    return plain_response_norm, response_norm, (draw(BATCH, 4 * WIDTH, SIDE, SIDE),)


def _plain_block() -> Pair:
    """The hidden map overwritten against three of them."""
    block = awake(FCDMBlock(WIDTH))
    gate = block.layer_scale[:, None, None]
    return lambda x: plain_fcdm(block, x, 0.0, gate), block, (draw(BATCH, WIDTH, SIDE, SIDE),)


def _conditioned_block() -> Pair:
    block = awake(FCDMBlock(WIDTH, cond=WIDTH))
    modulate = block.modulate
    assert modulate is not None

    def plain(x: Tensor, cond: Tensor) -> Tensor:
        scale, gate = (v[:, :, None, None] for v in modulate(cond).chunk(2, dim=1))
        return plain_fcdm(block, x, scale, gate)

    return plain, block, (draw(BATCH, WIDTH, SIDE, SIDE), draw(BATCH, WIDTH))


def _feature_queue() -> Pair:
    """Sums that follow what enters and leaves against a covariance of the whole queue."""
    batch = draw(64, 384)
    queue = FeatureQueue(384, size=4096).to(batch.device)
    queue.push(draw(4096, 384))
    return (
        lambda rows: moments(torch.cat([queue.contents(), rows.float()])).cov.float(),
        lambda rows: queue.moments(rows).cov.float(),
        (batch,),
    )


def _rotate() -> Pair:
    """Complex products against the pairs of RoPE one member at a time; 14 heads of 64, on 512 px."""
    angles = rope_angles((32, 32), rope_periods(64, device=torch.device(DEVICE)))
    return plain_rotate, rotate, (draw(1, 14, 32 * 32, 64), angles)


def _rms_norm() -> Pair:
    """Two passes against torch's own, on the queries of 512 px as the fused projection leaves them."""
    norm = awake(RMSNorm(64)).to(DEVICE)
    queries = draw(1, 32 * 32, 3, 14, 64)[:, :, 0].transpose(1, 2)
    return lambda x: F.rms_norm(x, (64,), norm.weight, norm.eps), norm, (queries,)


def _hidden_map() -> Pair:
    """The hidden map of a transformer's MLP overwritten by its activation, against a second one."""
    mlp = awake(MLP(WIDTH, 4 * WIDTH)).to(DEVICE)
    return lambda x: mlp.down(F.gelu(mlp.up(x))), mlp, (draw(1, 32 * 32, WIDTH),)


PAIRS: dict[str, Callable[[], Pair]] = {
    "response norm": _response_norm,
    "FCDM block": _plain_block,
    "FCDM block, conditioned": _conditioned_block,
    "moments of a feature queue": _feature_queue,
    "rotation of RoPE": _rotate,
    "RMSNorm of queries": _rms_norm,
    "MLP of a transformer": _hidden_map,
}


@pytest.mark.parametrize("name", PAIRS)
@torch.no_grad()
def bench_fast_path_pays(name: str, table: Table) -> None:
    reference, fast, inputs = PAIRS[name]()
    assert_agrees(fast(*inputs), reference(*inputs))
    runs = {"plain": lambda: reference(*inputs), "fast": lambda: fast(*inputs)}
    times = interleaved(runs, rounds=30, sample=0.02, clock=time.process_time)  # blind to a busy machine
    share = times["fast"].over(times["plain"])
    memory = {path: peak_bytes(run) for path, run in runs.items()}
    table.add(
        path=name,
        plain=times["plain"],
        fast=times["fast"],
        fast_over_plain=share,
        plain_bytes=memory["plain"],
        fast_bytes=memory["fast"],
    )
    assert memory["fast"] <= memory["plain"]
    allowed = 1.05 if memory["fast"] <= 2 / 3 * memory["plain"] else 1  # a path may pay in memory alone
    assert share.median <= allowed, f"{name}: {share.median:.2f} times as long as the plain version"
