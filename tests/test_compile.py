"""Every declared block, stack and head, and CPU noise, compile as one graph and compute what they compute eagerly.

This runs in a process of its own: the shape checks of tests are on in this one, and break graphs. The backend only
records the graph, which is what is asked here; code generation would take minutes.
"""

import os
import subprocess
import sys

PROGRAM = """
import torch
from latelier.blocks import (
    BlockConfig, DecoderConfig, DiTBlockConfig, EncoderConfig, HeadConfig, TokenHeadConfig, cpu_normal, parts
)


class Flat(torch.nn.Module):
    # both outputs of a token head as one tensor

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, latent):
        out = self.head(latent)
        assert out.grid == (4, 5)
        return torch.cat([out.patches, out.cls[:, None]], dim=1)


def check(name, module, *inputs):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    results = []
    for run in (module, compiled):
        module.zero_grad()
        out = run(*inputs)
        out.square().mean().backward()
        with torch.no_grad():
            results.append([out.detach(), run(*inputs), *(p.grad for p in module.parameters() if p.grad is not None)])
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()
    print(name)


torch.manual_seed(0)
x, cond, images = torch.randn(2, 64, 4, 5), torch.randn(2, 8), torch.randn(2, 3, 16, 20)
times, latent = torch.rand(2), torch.randn(2, 5, 4, 5)
for cls in parts(BlockConfig):
    check(f"{cls.kind} plain", cls().build(64), x)
    check(f"{cls.kind} conditioned", cls().build(64, cond=8), x, cond)
for cls in parts(EncoderConfig):
    check(cls.kind, cls().build(channels=3, patch=4, width=64, out=5), images)
for cls in parts(DecoderConfig):
    decoder = cls().build(channels=3, patch=4, width=64, latent=5)
    check(cls.kind, decoder, images, times, latent, torch.tensor([True, False]))
for cls in parts(HeadConfig):
    check(cls.kind, cls().build(latent=5, features=64), latent, times)
for cls in parts(TokenHeadConfig):
    check(cls.kind, Flat(cls(features=64).build(latent=5)), latent)
for activation, rope in (("silu", "indices"), ("relu", "normalised"), ("swiglu", "normalised")):
    config = DiTBlockConfig(head_width=16, activation=activation, rope=rope)
    check(f"{activation} {rope} plain", config.build(64), x)
    check(f"{activation} {rope} conditioned", config.build(64, cond=8), x, cond)

draw = torch.compile(lambda x, seed: x + cpu_normal(x.shape, seed), fullgraph=True, backend="eager")
for seed in (0, 2**40 + 1, 2**63 - 1):
    assert torch.equal(draw(x, seed), x + cpu_normal(x.shape, seed))
torch.manual_seed(1)
first = x + cpu_normal(x.shape, None)
torch.manual_seed(1)
assert torch.equal(draw(x, None), first)
assert not torch.equal(draw(x, None), first)
print("noise")
"""


def test_every_block_stack_and_head_is_one_graph() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=os.environ | {"JAXTYPING_DISABLE": "1"},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert {
        "block/fcdm plain",
        "block/dit conditioned",
        "block/sequence conditioned",
        "encoder/stack",
        "decoder/skip",
        "head/noisy_latent",
        "token_head/dino",
        "swiglu normalised plain",
        "noise",
    } <= set(run.stdout.splitlines())
