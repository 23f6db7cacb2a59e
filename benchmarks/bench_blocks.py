"""Forward and backward of every registered block, on one thread."""

import pytest
import torch
from measuring import Table, assert_agrees, awake, draw, flops, interleaved
from torch import Tensor

from latelier.blocks import BlockConfig, decode, parts

WIDTH, COND, BATCH, SIDE = 384, 64, 2, 16


@pytest.mark.parametrize(
    "config", [decode(cls.kind, BlockConfig) for cls in parts(BlockConfig)], ids=lambda config: config.kind
)
@pytest.mark.parametrize("cond", [None, COND], ids=["plain", "conditioned"])
def bench_block(config: BlockConfig, cond: int | None, table: Table) -> None:
    block = awake(config.build(WIDTH, cond=cond))
    shapes = [(BATCH, WIDTH, SIDE, SIDE)] + ([(BATCH, cond)] if cond else [])
    inputs = [draw(*shape) for shape in shapes]

    def forward() -> Tensor:
        with torch.no_grad():
            return block(*inputs)

    def training() -> Tensor:
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = block(*leaves)
        torch.autograd.grad(out, [*leaves, *block.parameters()], torch.ones_like(out))
        return out

    assert_agrees(forward(), training().detach())
    times = interleaved({"forward": forward, "training": training})
    table.add(
        block=config.kind,
        condition="none" if cond is None else f"{cond} numbers",
        map=f"{BATCH} x {WIDTH} x {SIDE} x {SIDE}",
        parameters=sum(p.numel() for p in block.parameters()),
        FLOPs_forward=flops(forward),
        forward=times["forward"],
        forward_and_backward=times["training"],
    )
