"""FLUX.2's latents equal those of diffusers' pipeline, and the capacitor recipes train against them."""

import ast
import importlib.util
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from latelier.blocks import Flux2LatentsConfig, SkipDecoderConfig, StackEncoderConfig
from latelier.families import read_tensors
from latelier.recipes import Recipe, capacitor_decoder, full_capacitor
from latelier.training import CosineRateConfig, FolderDataConfig, load_run, read_records, train

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow autoencoder of FLUX.2's kind, with statistics that are not trivial."""
    from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2

    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKLFlux2(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1)
        vae.bn.load_state_dict({"running_mean": torch.randn(128), "running_var": 0.5 + torch.rand(128)}, strict=False)
    folder = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(3):
        small = PIL.Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
        small.resize((48, 40), PIL.Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def peer(vae: Any) -> Any:
    """Those methods of diffusers' pipeline that make latents; the whole of it would want transformers."""
    spec = importlib.util.find_spec("diffusers")
    assert spec is not None and spec.origin is not None
    source = (Path(spec.origin).parent / "pipelines/flux2/pipeline_flux2.py").read_text()
    wanted = {"retrieve_latents", "_patchify_latents", "_pack_latents", "_encode_vae_image"}
    found: list[ast.stmt] = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef) and node.name in wanted
    ]
    assert len(found) == len(wanted)
    names: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module(found, type_ignores=[]), "pipeline_flux2", "exec"), names)
    pipeline = types.SimpleNamespace(vae=vae)
    for name in wanted - {"retrieve_latents"}:
        method = names[name]  # static methods come wrapped
        bound = method if isinstance(method, staticmethod) else types.MethodType(method, pipeline)
        setattr(pipeline, name, bound)
    return pipeline


def test_latents_equal_those_of_the_pipeline(vae_folder: Path) -> None:
    teacher = Flux2LatentsConfig(weights=str(vae_folder), subfolder="").build()
    images = torch.rand(2, 3, 32, 48)
    ours = teacher(images)
    pipeline = peer(teacher.vae)
    with torch.no_grad():
        latents = pipeline._encode_vae_image(2 * images - 1, None)
    assert latents.shape == (2, 128, 2, 3)
    assert ours.grid == (2, 3)
    torch.testing.assert_close(ours.patches, pipeline._pack_latents(latents), rtol=1e-6, atol=1e-6)


def test_the_teacher_is_frozen_and_as_wide_as_it_says(vae_folder: Path) -> None:
    config = Flux2LatentsConfig(weights=str(vae_folder), subfolder="")
    teacher = config.build()
    images = torch.rand(1, 3, 16, 16, requires_grad=True)
    patches = teacher(images).patches
    assert patches.shape[2] == config.features
    assert not patches.requires_grad
    assert not teacher.vae.training and not any(p.requires_grad for p in teacher.parameters())


def test_images_that_do_not_divide_are_refused(vae_folder: Path) -> None:
    teacher = Flux2LatentsConfig(weights=str(vae_folder), subfolder="").build()
    with pytest.raises(ValueError) as caught:
        teacher(torch.rand(1, 3, 32, 40))
    assert str(caught.value) == "teacher/flux2_latents: image sides must be divisible by 16, got 32x40"


# --- recipes ------------------------------------------------------------------------------------------------------


def small(recipe: Recipe, vae: Path, pictures: Path) -> Recipe:
    """The recipe with a narrow model and teacher, and two steps a stage."""
    model: Any = recipe.model
    encoder = None if model.encoder is None else StackEncoderConfig(depth=1)
    decoder = SkipDecoderConfig(start=1, middle=1, end=1, rank=4)
    settings = {"steps": 2, "batch": 2, "resolution": 32, "recalibrate": 1, "checkpoint_every": 1, "log_every": 1}
    return replace(
        recipe,
        model=replace(model, width=16, encoder=encoder, decoder=decoder),
        teacher=Flux2LatentsConfig(weights=str(vae), subfolder=""),
        data=FolderDataConfig(path=str(pictures)),
        stages=tuple(replace(stage, rate=CosineRateConfig(warm_up=0), **settings) for stage in recipe.stages),
    )


def test_full_capacitor_trains_the_decoder_and_then_the_encoder(
    vae_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    train(small(full_capacitor(), vae_folder, pictures), tmp_path, keep=9)
    steps = [read_tensors(path)[0] for path in sorted((tmp_path / "checkpoints").glob("step-*"))]
    assert len(steps) == 4

    def moved(part: str, first: int, last: int) -> bool:
        names = [name for name in steps[0] if name.startswith(f"model/{part}.")]
        assert names
        return not all(torch.equal(steps[first][name], steps[last][name]) for name in names)

    assert moved("decoder", 0, 1) and not moved("encoder", 0, 1)
    assert moved("encoder", 1, 3) and not moved("decoder", 1, 3)
    records = read_records(tmp_path / "metrics.jsonl")
    assert [line["stage"] for line in records] == ["decoder"] * 2 + ["encoder"] * 2
    assert {"vp_reconstruction", "latent_regression", "variance_expansion"} <= records[-1].keys()
    assert load_run(tmp_path).model.encode(torch.zeros(1, 3, 32, 32)).shape == (1, 128, 2, 2)


def test_capacitor_decoder_decodes_the_latents_of_the_teacher(vae_folder: Path, pictures: Path, tmp_path: Path) -> None:
    recipe = small(capacitor_decoder(), vae_folder, pictures)
    train(recipe, tmp_path)
    model = load_run(tmp_path).model
    assert recipe.teacher is not None
    latents = recipe.teacher.build()(torch.rand(1, 3, 32, 48))
    z = latents.patches.mT.unflatten(2, latents.grid)
    torch.testing.assert_close(model.dewhiten(z), z, rtol=0, atol=0)
    assert model.decode(z, 32, 48).isfinite().all()
    with pytest.raises(ValueError) as caught:
        model.encode(torch.zeros(1, 3, 32, 32))
    assert str(caught.value) == ("encode: this model has a decoder only; its latents come from another model's encoder")
