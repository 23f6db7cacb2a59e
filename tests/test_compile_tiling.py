"""Views of models that work in tiles compile as one graph, with gradients.

This runs in a process of its own: the shape checks of tests are on in this one, and break graphs.
"""

import os
import subprocess
import sys

PROGRAM = """
import warnings

import torch

from latelier.blocks import PyramidDecoderConfig, PyramidEncoderConfig, ResBlockConfig
from latelier.blocks import SkipDecoderConfig, StackEncoderConfig
from latelier.families import DCAEConfig, DiffAEConfig, GlobalContextWarning, InferenceConfig

halves = {"widths": (12, 12, 24), "depths": (1, 1, 1), "blocks": 3 * (ResBlockConfig(),)}
MODELS = [
    DCAEConfig(latent=4, encoder=PyramidEncoderConfig(**halves), decoder=PyramidDecoderConfig(**halves)),
    DiffAEConfig(
        patch=4,
        width=16,
        latent=4,
        encoder=StackEncoderConfig(depth=1),
        decoder=SkipDecoderConfig(start=1, middle=1, end=1, rank=2),
    ),
]
warnings.simplefilter("ignore", GlobalContextWarning)
torch.manual_seed(0)

for config in MODELS:
    model = config.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    view = model.tiled(16, 8)
    images, settings = torch.rand(1, 3, 16, 24) * 2 - 1, InferenceConfig(seed=1)
    latents = view.encode(images)
    encode = torch.compile(view.encode, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(encode(images), latents, rtol=1e-4, atol=1e-5)

    def paint(z):
        return view.decode(z, 16, 24, settings)

    latents = latents.detach().clone().requires_grad_()
    eager, compiled = paint(latents), torch.compile(paint, fullgraph=True, backend="aot_eager")(latents)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(image.square().sum(), latents)[0] for image in (compiled, eager)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
print("equal")
"""


def test_tiles_compile_as_one_graph() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=os.environ | {"JAXTYPING_DISABLE": "1"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "equal\n"
