"""The published models: every number of ``conformance/``, and the names, shapes and counts of their tensors.

The weights follow the rule of ``conformance/README.md``. They are written as a published folder (flat config.json,
published names) and read by ``from_pretrained``, so that the loader is under test as well.
"""

import json
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latelier.blocks import NoNormConfig, StackEncoderConfig
from latelier.families import DiffAEConfig, FlatDiffAE, InferenceConfig, SemDisDiffAE

DATA = Path(__file__).parent / "conformance"
CASES = ("semdisdiffae_tiny", "semdisdiffae")


def outputs(name: str) -> list[str]:
    with safe_open(DATA / f"{name}.safetensors", framework="pt") as file:
        return sorted(file.keys())


def draw(salt: str, key: str, shape: list[int]) -> Tensor:
    generator = np.random.default_rng(zlib.crc32(f"{salt}:{key}".encode()))
    return torch.from_numpy(generator.standard_normal(size=shape, dtype=np.float32))


def weight(salt: str, key: str, shape: list[int]) -> Tensor:
    x = draw(salt, key, shape)
    if key.endswith("freqs"):  # a constant of the architecture
        return torch.exp(-math.log(10_000) * torch.arange(shape[0]) / (shape[0] - 1))
    if key == "latent_norm_running_var":
        return torch.exp(0.3 * x)
    if key == "latent_norm_running_mean":
        return 0.2 * x
    if "norm" in key and key.endswith(".weight"):
        return 1 + 0.1 * x
    if key.endswith(("layer_scale", "grn.gamma", "grn.beta", "path_drop_mask_feature")):
        return 0.1 * x
    if key.endswith(".bias"):
        return 0.05 * x
    return x / math.sqrt(math.prod(shape[1:]))


@dataclass(frozen=True)
class Case:
    """One pair of files, and the model that they describe."""

    spec: dict[str, Any]
    expected: dict[str, Tensor]
    model: SemDisDiffAE

    def compute(self, output: str) -> Tensor:
        images = torch.tanh(draw(self.spec["salt"], "image", self.spec["image_shape"]))
        height, width = images.shape[2:]
        kind, _, name = output.partition(".")
        if kind == "latents":
            return self.model.encode(images)
        if kind == "posterior":
            value = getattr(self.model.encode_posterior(images), name)
            return value() if name == "mode" else value
        latents = self.expected["latents"]
        if kind == "decode":
            return self.model.decode(latents, height, width, InferenceConfig(**self.spec["decode_runs"][name]))
        noisy = torch.tanh(draw(f"{self.spec['salt']}:xt", "image", self.spec["image_shape"]))
        with torch.no_grad():
            return self.model.predict(
                noisy,
                torch.full((len(noisy),), 0.37),
                self.model.dewhiten(latents),
                drop_middle_blocks={"x0": False, "x0.dropped": True}[name],
            )


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Open a case by name; its weights are made once, and let go after this file's tests."""

    @cache
    def open_case(name: str) -> Case:
        spec = json.loads((DATA / f"{name}.json").read_text())
        folder = tmp_path_factory.mktemp(name)
        (folder / "config.json").write_text(json.dumps(spec["config"]))
        weights = {key: weight(spec["salt"], key, shape) for key, shape in spec["state_dict"].items()}
        save_file(weights, folder / "model.safetensors")
        model = SemDisDiffAE.from_pretrained(folder)
        (folder / "model.safetensors").unlink()  # 355 MB at full size
        return Case(spec, load_file(DATA / f"{name}.safetensors"), model)

    return open_case


@pytest.mark.parametrize(("name", "output"), [(name, output) for name in CASES for output in outputs(name)])
def test_a_published_folder_gives_the_published_numbers(case: Callable[[str], Case], name: str, output: str) -> None:
    opened = case(name)
    expected = opened.expected[output]
    error = (opened.compute(output) - expected).norm() / expected.norm()
    assert error < 1e-4  # 2e-6 at worst when this was written


@pytest.mark.parametrize("name", CASES)
def test_names_and_shapes_of_tensors_are_the_published_ones(name: str) -> None:
    spec = json.loads((DATA / f"{name}.json").read_text())
    config = FlatDiffAE(**spec["config"]).ours(has_encoder=True, has_statistics=True)
    shapes = {key: list(value.shape) for key, value in on_meta(config).state_dict().items()}
    assert shapes == spec["state_dict"]


# --- counts of models too large to compute with here -----------------------------------------------------------------


def on_meta(config: DiffAEConfig) -> SemDisDiffAE:
    with torch.device("meta"):
        return config.build()


def parameters(module: nn.Module | None) -> int:
    assert module is not None
    return sum(p.numel() for p in module.parameters())


def test_the_defaults_are_the_published_semdisdiffae() -> None:
    model = on_meta(DiffAEConfig())
    assert parameters(model) == 88_771_328
    assert parameters(model.encoder) == 26_838_144
    assert parameters(model.decoder) == 61_933_184
    tensors = model.state_dict()
    assert (len(tensors), sum(t.numel() for t in tensors.values())) == (140, 88_771_712)
    assert sum(name.startswith("decoder.") for name in tensors) == 98
    assert sum(name.startswith("encoder.") for name in tensors) == 40


def test_p32_v2_has_the_published_counts() -> None:
    model = on_meta(DiffAEConfig(patch=32, width=1024, latent=384, encoder=StackEncoderConfig(depth=8)))
    assert parameters(model) == 156_636_928
    assert parameters(model.encoder) == 71_567_104
    assert parameters(model.decoder) == 85_069_824
    tensors = model.state_dict()
    assert (len(tensors), sum(t.numel() for t in tensors.values())) == (176, 156_637_824)
    assert (model.stride, model.latent_channels) == (32, 384)


def test_p32_packs_latents_and_has_statistics_of_512_channels() -> None:
    model = on_meta(DiffAEConfig(latent_patch=2))
    assert (model.stride, model.latent_channels) == (32, 512)
    assert {name: list(value.shape) for name, value in model.latent_statistics.items()} == {
        "running_mean": [512],
        "running_var": [512],
    }
    assert parameters(model) == 88_771_328


def test_a_decoder_for_latents_of_flux2_has_no_encoder_and_no_statistics() -> None:
    model = on_meta(DiffAEConfig(encoder=None, latent_norm=NoNormConfig()))
    assert parameters(model) == 61_933_184
    assert all(name.startswith("decoder.") for name in model.state_dict())
