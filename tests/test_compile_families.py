"""Whole models compute the same eagerly, in channels_last, and compiled as one graph with code generated for it.

This runs in a process of its own: the shape checks of tests are on in this one, and break graphs.
"""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys

import torch
from torch._inductor.compile_fx import compile_fx

from latelier.blocks import DINOTokenHeadConfig, DiTBlockConfig, SkipDecoderConfig, StackEncoderConfig
from latelier.families import DiffAEConfig, DinacAEConfig, InferenceConfig

DECODER = SkipDecoderConfig(start=1, middle=1, end=1, rank=4)
CONFIGS = {
    "semdisdiffae": DiffAEConfig(
        patch=8, width=64, latent=8, encoder=StackEncoderConfig(depth=1), decoder=DECODER
    ),
    "dinac_ae": DinacAEConfig(
        patch=8,
        width=64,
        latent=8,
        encoder=StackEncoderConfig(block=DiTBlockConfig(head_width=32), depth=2),
        decoder=DECODER,
        token_head=DINOTokenHeadConfig(features=64, head_width=32),
    ),
}
graphs = []


def counting(graph, inputs):
    graphs.append(graph)
    return compile_fx(graph, inputs)


def check(name, function, *args):
    eager = function(*args)
    before = len(graphs)
    fused = torch.compile(function, fullgraph=True, backend=counting)(*args)
    assert len(graphs) == before + 1, f"{name}: {len(graphs) - before} graphs"
    torch.testing.assert_close(fused, eager, rtol=1e-5, atol=1e-5, msg=lambda text: f"{name}: {text}")


device = sys.argv[2]
torch.manual_seed(0)
model = CONFIGS[sys.argv[1]].build().eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    model.latent_norm_running_mean.normal_()
model.to(device)
images = (torch.rand(2, 3, 32, 48) * 2 - 1).to(device)
latents = model.encode(images)
check("encode", model.encode, images)
check("decode", model.decode, latents, 32, 48, InferenceConfig(seed=1))
check("steps", model.decode, latents, 32, 48, InferenceConfig(num_steps=2, sampler="dpmpp_2m", pdg=True, seed=2))
if hasattr(model, "predict_features"):
    with torch.no_grad():
        check("features", lambda z: model.predict_features(z).patches, latents)

unseeded = torch.compile(lambda z: model.decode(z, 32, 48), fullgraph=True, backend=counting)
assert not torch.equal(unseeded(latents), unseeded(latents)), "two draws without a seed are one"

plain = [latents, model.decode(latents, 32, 48, InferenceConfig(seed=1))]
model.to(memory_format=torch.channels_last)
images = images.to(memory_format=torch.channels_last)
last = [model.encode(images), model.decode(latents, 32, 48, InferenceConfig(seed=1))]
for a, b in zip(last, plain, strict=True):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
check("encode in channels_last", model.encode, images)
print("equal")
"""

DEVICES = """
import torch
print("cpu", *(["cuda"] if torch.cuda.is_available() else []))
"""


def run(program: str, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=os.environ | {"JAXTYPING_DISABLE": "1"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("name", ["semdisdiffae", "dinac_ae"])
def test_eager_channels_last_and_compiled_are_equal(name: str) -> None:
    for device in run(DEVICES).split():
        assert run(PROGRAM, name, device).endswith("equal\n")
