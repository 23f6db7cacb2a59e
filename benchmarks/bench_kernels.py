"""The small functions, each checked against its formula in float64, on one thread."""

from collections.abc import Callable

import pytest
import torch
from measuring import DTYPE, Spread, Table, assert_agrees, awake, draw, settled
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from latelier.blocks import (
    GRN,
    AdaLN,
    EncoderPosterior,
    LowRankDelta,
    channel_rms_norm,
    dewhiten,
    patchify,
    unpatchify,
    whiten,
)

WIDTH, LATENT, PATCH, SIDE, BATCH = 896, 128, 16, 16, 4  # the published model at 256 px

Case = tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]


def _grn(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    strength = x.square().sum(dim=(2, 3), keepdim=True).sqrt()
    return gamma * (x * strength / (strength.mean(dim=1, keepdim=True) + 1e-6)) + beta + x


def _unshuffled(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    squares = x.reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH)
    return squares.permute(0, 1, 3, 5, 2, 4).reshape(b, c * PATCH**2, h // PATCH, w // PATCH)


def _shuffled(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    squares = x.reshape(b, c // PATCH**2, PATCH, PATCH, h, w)
    return squares.permute(0, 1, 4, 2, 5, 3).reshape(b, c // PATCH**2, h * PATCH, w * PATCH)


def _modulation(cond: Tensor, weight: Tensor, bias: Tensor, down: Tensor, up: Tensor) -> Tensor:
    a = cond * torch.sigmoid(cond)
    return a @ weight.T + bias + a @ down.T @ up.T


def _cases() -> dict[str, Case]:
    x, hidden = draw(BATCH, WIDTH, SIDE, SIDE), draw(BATCH, 4 * WIDTH, SIDE, SIDE)
    z, logsnr, noise = (draw(BATCH, LATENT, SIDE, SIDE) for _ in range(3))
    mean, var = draw(LATENT).float(), draw(LATENT).float().exp()
    grn, adaln = awake(GRN(4 * WIDTH)), awake(AdaLN(WIDTH, 2 * WIDTH))
    delta = awake(LowRankDelta(WIDTH, 2 * WIDTH, rank=128))
    column = (slice(None), None, None)
    return {
        "channel_rms_norm": (
            channel_rms_norm,
            lambda x: x / (x.square().mean(dim=1, keepdim=True) + 1e-6).sqrt(),
            (x,),
        ),
        "GRN": (lambda x, *_: grn(x), _grn, (hidden, *grn.parameters())),
        "AdaLN and LowRankDelta": (
            lambda c, *_: adaln(c) + delta(c),
            _modulation,
            (draw(BATCH, WIDTH), *adaln.parameters(), *delta.parameters()),
        ),
        "patchify": (lambda x: patchify(x, PATCH), _unshuffled, (draw(BATCH, 3, SIDE * PATCH, SIDE * PATCH),)),
        "unpatchify": (lambda x: unpatchify(x, PATCH), _shuffled, (draw(BATCH, 3 * PATCH**2, SIDE, SIDE),)),
        "posterior mode": (
            lambda m, s: EncoderPosterior(m, s).mode(),
            lambda m, s: torch.sigmoid(s).sqrt() * m,
            (z, logsnr),
        ),
        "posterior sample": (
            lambda m, s, e: EncoderPosterior(m, s).at(e),
            lambda m, s, e: torch.sigmoid(s).sqrt() * m + torch.sigmoid(-s).sqrt() * e,
            (z, logsnr, noise),
        ),
        "whiten": (whiten, lambda z, m, v: (z - m[column]) / (v[column] + 1e-4).sqrt(), (z, mean, var)),
        "dewhiten": (dewhiten, lambda z, m, v: z * (v[column] + 1e-4).sqrt() + m[column], (z, mean, var)),
    }


@pytest.mark.parametrize("name", list(_cases()))
@torch.no_grad()
def bench_kernel(name: str, table: Table, benchmark: BenchmarkFixture) -> None:
    kernel, formula, inputs = _cases()[name]
    expected = formula(*(x.double() for x in inputs)).to(DTYPE)
    assert_agrees(kernel(*inputs), expected)
    benchmark.pedantic(settled(kernel), inputs, rounds=20, iterations=10, warmup_rounds=2)
    assert benchmark.stats is not None
    shape = " x ".join(map(str, inputs[0].shape))
    table.add(kernel=name, input=shape, time=Spread(tuple(benchmark.stats.stats.data)))
