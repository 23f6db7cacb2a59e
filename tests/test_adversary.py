"""A model and a discriminator learn beside each other: formulas, whose gradient goes where, resume, freezing."""

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from children import in_a_child, killed

from latelier.blocks import (
    LPIPS,
    HingeLossConfig,
    NonSaturatingLossConfig,
    PatchGANConfig,
    PyramidDecoderConfig,
    PyramidEncoderConfig,
    RandomPyramid,
    ResBlockConfig,
    feature_distance,
)
from latelier.families import CheckpointError, DCAEConfig, DiffAEConfig, read_tensors, write_tensors
from latelier.recipes import dc_ae, demo, report_phases
from latelier.training import (
    AdamWConfig,
    AdversarialConfig,
    AdversarialStageConfig,
    AdversaryConfig,
    Checkpoints,
    FolderDataConfig,
    L1Config,
    L2Config,
    LPIPSConfig,
    PerceptualSubstituteConfig,
    Recipe,
    StageConfig,
    Watcher,
    read_records,
    train,
)

BLOCK = ResBlockConfig()
STAGES: dict[str, Any] = {"widths": (8, 16), "depths": (1, 1), "blocks": (BLOCK, BLOCK)}
MODEL = DCAEConfig(latent=4, encoder=PyramidEncoderConfig(**STAGES), decoder=PyramidDecoderConfig(**STAGES))
BATCH_NORM = ResBlockConfig(norm="batch", activation="relu")


class Said(Watcher):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def recipe_of(pictures: Path, *, model: DCAEConfig = MODEL, adversary: Any = None, **stage: Any) -> Recipe:
    """The three phases, in a few steps."""
    adversary = adversary or AdversaryConfig(
        discriminator=PatchGANConfig(width=8, layers=1),
        optimiser=AdamWConfig(rate=1e-3, beta1=0.5, beta2=0.9),
        start=1,
        alone=1,
    )
    base = dc_ae.dc_ae(
        model,
        data=FolderDataConfig(path=str(pictures)),
        perceptual=PerceptualSubstituteConfig(widths=(4, 8)),
        adversary=adversary,
    )
    settings: dict[str, Any] = {
        "steps": 4,
        "batch": 4,
        "resolution": 16,
        "checkpoint_every": 1,
        "log_every": 1,
        "validate_every": 0,
        "ema": 0.5,
    }
    stages = (replace(part, **(settings | stage)) for part in base.stages)
    return replace(base, stages=tuple(stages))


# --- formulas -----------------------------------------------------------------------------------------------------


def test_hinge_losses_are_those_of_planted_numbers() -> None:
    real, fake = torch.tensor([[2.0], [0.0]]), torch.tensor([[-3.0], [0.5]])
    assert HingeLossConfig().of_discriminator(real, fake).item() == pytest.approx((0.5 + 0.75) / 2)
    assert HingeLossConfig().of_generator(fake).item() == pytest.approx(1.25)


def test_non_saturating_losses_are_those_of_planted_numbers() -> None:
    real, fake = torch.tensor([[2.0], [0.0]]), torch.tensor([[-3.0], [0.5]])
    soft = [math.log1p(math.exp(x)) for x in (-2.0, 0.0, -3.0, 0.5, 3.0, -0.5)]
    expected = (sum(soft[:2]) / 2 + sum(soft[2:4]) / 2) / 2
    assert NonSaturatingLossConfig().of_discriminator(real, fake).item() == pytest.approx(expected, rel=1e-6)
    assert NonSaturatingLossConfig().of_generator(fake).item() == pytest.approx(sum(soft[4:]) / 2, rel=1e-6)


def test_patchgan_of_three_layers_sees_70_pixels_and_has_the_published_size() -> None:
    net = PatchGANConfig(norm="batch").build(channels=3)
    assert sum(p.numel() for p in net.parameters()) == 2_765_633
    image = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = net.eval()(image)
    assert logits.shape == (1, 1, 14, 14)
    logits[0, 0, 7, 7].backward()
    assert image.grad is not None
    seen = image.grad.abs().sum(dim=(0, 1)).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [70, 70]


@pytest.mark.parametrize("norm", ["batch", "group", "spectral", "none"])
def test_a_discriminator_of_any_norm_learns_to_tell_noise_from_grey(norm: Any) -> None:
    torch.manual_seed(0)
    net, loss = PatchGANConfig(width=8, layers=1, norm=norm).build(channels=3), HingeLossConfig()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    values = []
    for _ in range(30):
        real, fake = net(torch.cat([torch.randn(4, 3, 16, 16), torch.zeros(4, 3, 16, 16)])).chunk(2)
        value = loss.of_discriminator(real, fake)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < 0.5 * values[0]


def test_the_substitute_is_the_same_for_a_seed_and_grows_with_damage() -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    one, other = (RandomPyramid((8, 8), channels=3, seed=1) for _ in range(2))
    for a, b in zip(one(image), other(image), strict=True):
        assert torch.equal(a, b)
    noise = torch.randn_like(image)
    distances = [
        feature_distance(one(image), one(image + s * noise), [None, None]).mean().item() for s in (0.0, 0.1, 0.5)
    ]
    assert distances[0] == 0 and distances[1] < distances[2]
    assert not list(one.state_dict())


def test_lpips_is_that_of_torchmetrics(tmp_path: Path) -> None:
    import torchvision
    from torchmetrics.functional.image import lpips

    torch.manual_seed(0)
    network = torchvision.models.alexnet(weights=None)
    path = tmp_path / "alexnet.pth"
    torch.save(network.state_dict(), path)
    reference = lpips._LPIPS(net="alex", pnet_rand=True)
    theirs = network.features.state_dict()
    for name, parameter in reference.net.named_parameters():
        parameter.data.copy_(theirs[name.partition(".")[2]])
    a, b = torch.rand(2, 3, 64, 80) * 2 - 1, torch.rand(2, 3, 64, 80) * 2 - 1
    ours = LPIPS("alex", str(path))(a, b)
    torch.testing.assert_close(ours, reference(a, b).flatten(), rtol=1e-4, atol=1e-6)


# --- one run in three phases --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe, list[str]]:
    folder, said = tmp_path_factory.mktemp("adversary") / "run", Said()
    decoder = replace(MODEL.decoder, blocks=(BATCH_NORM, BATCH_NORM))
    recipe = recipe_of(pictures, model=replace(MODEL, decoder=decoder))
    train(recipe, folder, keep=20, watcher=said)
    return folder, recipe, said.said


def test_what_a_phase_freezes_keeps_its_bits(run: tuple[Path, Recipe, list[str]]) -> None:
    folder, recipe, _ = run
    checkpoints = Checkpoints(folder / "checkpoints", recipe)
    after = [checkpoints.read(checkpoints.path(total)).group("model") for total in (4, 8, 12)]
    learned = [{n.rpartition(".")[0] for n in b if not torch.equal(a[n], b[n])} for a, b in pairwise(after)]
    middle = ("encoder.conv_out", "encoder.down_blocks.1", "decoder.conv_in", "decoder.up_blocks.1")
    head = ("decoder.norm_out", "decoder.conv_out", "decoder.up_blocks.0")
    for names, allowed in zip(learned, (middle, head), strict=True):
        assert names and all(name.startswith(allowed) for name in names), names
        assert all(any(name.startswith(part) for name in names) for part in allowed)


def test_the_adversary_begins_when_it_should(run: tuple[Path, Recipe, list[str]]) -> None:
    folder, _, said = run
    lines = [line for line in read_records(folder / "metrics.jsonl") if line["stage"] == "refinement"]
    assert ["discriminator" in line for line in lines] == [False, True, True, True]
    assert [line["adversarial"] != 0 for line in lines] == [False, False, True, True]
    assert [line["adversarial_weight"] != 0 for line in lines] == [False, False, True, True]
    assert said == ["stage 'refinement': a new discriminator begins"]


def test_the_discriminator_is_saved_beside_the_model(run: tuple[Path, Recipe, list[str]]) -> None:
    folder, recipe, _ = run
    checkpoint = Checkpoints(folder / "checkpoints", recipe).latest()
    assert checkpoint is not None
    saved, _ = read_tensors(folder / "discriminator.safetensors")
    kept = checkpoint.group("adversary")
    assert saved.keys() == kept.keys() and all(torch.equal(saved[name], kept[name]) for name in kept)
    assert {name.rpartition("/")[0] for name in checkpoint.group("adversary_optimiser")} == set(kept)


def test_a_phase_alone_starts_from_weights_with_or_without_a_discriminator(
    run: tuple[Path, Recipe, list[str]], tmp_path: Path
) -> None:
    folder, recipe, _ = run
    alone = dc_ae.one_phase(recipe, "refinement", weights=str(folder / "model"))
    (stage,) = alone.stages
    assert isinstance(stage, AdversarialStageConfig)
    without = folder / "checkpoints" / "step-00000008.safetensors"
    for number, (file, words) in enumerate(
        [
            ("", ["stage 'refinement': a new discriminator begins"]),
            (without, [f"stage 'refinement': {without} has no discriminator; a new one begins"]),
            (folder / "checkpoints" / "step-00000012.safetensors", []),
            (folder / "discriminator.safetensors", []),
        ]
    ):
        changed = replace(stage, adversary=replace(stage.adversary, weights=str(file)))
        said = Said()
        train(replace(alone, stages=(changed,)), tmp_path / str(number), watcher=said)
        assert said.said == words
    first = [read_tensors(tmp_path / f"{i}" / "discriminator.safetensors")[0]["net.0.weight"] for i in range(4)]
    assert torch.equal(first[0], first[1]) and torch.equal(first[2], first[3]) and not torch.equal(first[1], first[2])


def test_a_discriminator_of_another_form_is_refused(run: tuple[Path, Recipe, list[str]], tmp_path: Path) -> None:
    folder, recipe, _ = run
    alone = dc_ae.one_phase(recipe, "refinement", weights=str(folder / "model"))
    (stage,) = alone.stages
    assert isinstance(stage, AdversarialStageConfig)
    path = folder / "discriminator.safetensors"
    wider = replace(stage.adversary, discriminator=PatchGANConfig(width=16, layers=1), weights=str(path))
    with pytest.raises(CheckpointError) as caught:
        train(replace(alone, stages=(replace(stage, adversary=wider),)), tmp_path / "run")
    assert str(caught.value) == (
        f"{path}: holds a discriminator of another form than 'discriminator/patch' of the recipe; "
        "'net.0.bias' does not fit"
    )


def test_a_checkpoint_that_lost_its_discriminator_resumes_with_a_new_one(pictures: Path, tmp_path: Path) -> None:
    recipe = recipe_of(pictures)
    train(recipe, tmp_path)
    path = tmp_path / "checkpoints" / "step-00000011.safetensors"
    tensors, header = read_tensors(path)
    write_tensors(path, {name: t for name, t in tensors.items() if not name.startswith("adversary")}, header)
    for gone in (tmp_path / "checkpoints" / "step-00000012.safetensors", tmp_path / "checkpoints/best.safetensors"):
        gone.unlink()
    said = Said()
    train(recipe, tmp_path, resume=True, watcher=said)
    assert said.said == [f"stage 'refinement': {path} has no discriminator; a new one begins"]


def test_gradients_of_one_side_never_reach_the_other(pictures: Path, tmp_path: Path) -> None:
    from latelier.training import Average, Trainer, join

    recipe = recipe_of(pictures)
    recipe = replace(recipe, stages=recipe.stages[2:])
    with join("cpu") as world:
        trainer = Trainer(recipe, tmp_path, world, Checkpoints(tmp_path, recipe), workers=0, watcher=Watcher())
        trainer.average = Average(trainer.model, decay=0.0)
        trainer._enter(recipe.stages[0], {}, None)
        adversary, model = trainer.adversary, trainer.model
        assert adversary is not None
        adversary.begin(3)
        images = torch.rand(2, 3, 16, 16) * 2 - 1
        fake = model.render(model.posterior(images).mean)
        adversary.judge(fake).backward()
        assert all(p.grad is None for p in adversary.network.parameters())
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
        assert all(p.requires_grad for p in adversary.network.parameters()) and adversary.network.training
        model.zero_grad(set_to_none=True)
        adversary.watch(images, model.render(model.posterior(images).mean))
        adversary.learn(lambda values, what: None)
        assert all(p.grad is None for p in model.parameters())
        assert all(p.grad is not None for p in adversary.network.parameters())
        assert not trainer.objective.get_submodule("terms.adversarial").state_dict()
        assert not any("network" in name for name, _ in trainer.objective.named_parameters())


def left(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"metrics": (folder / "metrics.jsonl").read_bytes()}
    for path in sorted(folder.rglob("*.safetensors")):
        tensors, _ = read_tensors(path)
        found[path.name] = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    return found


@pytest.mark.usefixtures("run")  # what is imported late, children inherit
def test_a_run_with_an_adversary_that_is_killed_ends_with_the_same_bits(pictures: Path, tmp_path: Path) -> None:
    recipe = recipe_of(pictures, accumulate=2)
    assert not killed(in_a_child(lambda: train(recipe, tmp_path / "whole")))

    def deadly(step: int) -> None:
        real = os.replace

        def replace_or_die(source: Any, target: Any) -> None:
            if Path(target).name == f"step-{step:08d}.safetensors":
                os.kill(os.getpid(), signal.SIGKILL)
            real(source, target)

        os.replace = replace_or_die
        train(recipe, tmp_path / "run", resume=True)

    for step in (6, 9, 11, 12):  # in the second phase, on its border, and as the discriminator learns
        assert killed(in_a_child(lambda step=step: deadly(step)))
    assert not killed(in_a_child(lambda: train(recipe, tmp_path / "run", resume=True)))
    assert left(tmp_path / "run") == left(tmp_path / "whole")


RECIPE = """
from dataclasses import replace
from latelier.blocks import *
from latelier.families import DCAEConfig
from latelier.recipes import dc_ae, demo, report_phases
from latelier.training import *

BLOCK = ResBlockConfig()
STAGES = dict(widths=(8, 16), depths=(1, 1), blocks=(BLOCK, BLOCK))


def small():
    base = dc_ae.dc_ae(
        DCAEConfig(latent=4, encoder=PyramidEncoderConfig(**STAGES), decoder=PyramidDecoderConfig(**STAGES)),
        data=FolderDataConfig(path=PICTURES), perceptual=PerceptualSubstituteConfig(widths=(4, 8)),
        adversary=AdversaryConfig(discriminator=PatchGANConfig(width=8, layers=1), optimiser=AdamWConfig(rate=1e-3),
                                  loss=NonSaturatingLossConfig()),  # hinge leaves the last bias no gradient at birth
    )
    stage = replace(base.stages[2], steps=6, batch=8, accumulate=ACCUMULATE, resolution=16, log_every=1,
                    validate_every=0, precision="float32")
    return replace(base, stages=(stage,))
"""


def test_two_processes_play_as_one(pictures: Path, tmp_path: Path) -> None:
    """The discriminator's gradients are those of the whole batch, however it is divided."""
    curves, weights = [], []
    for processes, parts in ((1, 1), (2, 2)):
        text = RECIPE.replace("PICTURES", repr(str(pictures))).replace("ACCUMULATE", str(parts))
        (tmp_path / f"recipe{processes}.py").write_text(text)
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
        out = tmp_path / str(processes)
        command += ["-m", "latelier", "train", f"recipe{processes}.py:small", "--out", str(out), "--device", "cpu"]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        curves.append(read_records(out / "metrics.jsonl"))
        weights.append(read_tensors(out / "discriminator.safetensors")[0])
    for one, two in zip(*curves, strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - {"stage"}:
            assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4, msg=name)


# --- words --------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_told(pictures: Path, tmp_path: Path) -> None:
    objective = (L1Config(), AdversarialConfig(adaptive=None))
    with pytest.raises(ValueError) as caught:
        StageConfig(objective=objective)
    assert str(caught.value) == (
        "config.objective: 'objective/adversarial' needs an adversary, and 'stage/joint' has none; "
        "take 'stage/adversarial'"
    )
    with pytest.raises(ValueError) as caught:
        AdversarialStageConfig(objective=(L2Config(),))
    assert str(caught.value) == (
        "config.objective: has no 'objective/adversarial', so that nothing learns from the adversary"
    )
    with pytest.raises(ValueError) as caught:
        AdversarialStageConfig(objective=objective, steps=10, adversary=AdversaryConfig(start=4, alone=6))
    assert str(caught.value) == (
        "config.adversary: begins to count at step 10 (start + alone) of a stage of 10 steps; begin earlier"
    )
    with pytest.raises(ValueError) as caught:
        AdversaryConfig(updates=0)
    assert str(caught.value) == "config.updates: must be at least 1, got 0"
    with pytest.raises(ValueError) as caught:
        PatchGANConfig().build(channels=3)(torch.zeros(1, 3, 16, 16))
    assert str(caught.value) == (
        "discriminator/patch: takes images of at least 24 pixels a side, got 16x16; take fewer layers"
    )
    with pytest.raises(ValueError) as caught:
        dc_ae.one_phase(recipe_of(pictures), "polish", weights="x")
    assert str(caught.value) == ("phase: the recipe 'dc_ae' has 'full', 'adaptation', 'refinement', got 'polish'")


def test_lpips_without_weights_is_told_before_the_first_step(pictures: Path, tmp_path: Path) -> None:
    for weights, error, words in [
        (
            "",
            ValueError,
            "objective/lpips: needs the weights of torchvision's vgg16, which are never downloaded; name a local file "
            "in 'weights' (vgg16-397923af.pth), or take 'objective/perceptual_substitute'",
        ),
        (
            "/no/vgg.pth",
            FileNotFoundError,
            "objective/lpips: /no/vgg.pth: no such file; it should be torchvision's vgg16-397923af.pth",
        ),
    ]:
        stage = StageConfig(objective=(L1Config(), LPIPSConfig(weights=weights)), batch=4, resolution=16)
        recipe = Recipe(name="x", model=MODEL, data=FolderDataConfig(path=str(pictures)), stages=(stage,))
        with pytest.raises(error) as caught:
            train(recipe, tmp_path / "run")
        assert str(caught.value) == words


def test_lpips_of_a_file_of_another_network_is_told(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError) as caught:
        LPIPS("alex", str(path), where="objective/lpips")
    assert str(caught.value) == (
        f"objective/lpips: {path} holds other weights than torchvision's alexnet; '0.bias' does not fit"
    )


def test_a_model_that_does_not_decode_in_one_pass_is_told(pictures: Path, tmp_path: Path) -> None:
    stage = StageConfig(objective=(L1Config(),), batch=4, resolution=16)
    recipe = Recipe(name="x", model=DiffAEConfig(), data=FolderDataConfig(path=str(pictures)), stages=(stage,))
    with pytest.raises(ValueError) as caught:
        train(recipe, tmp_path / "run")
    assert str(caught.value) == (
        "objective/l1: needs a model that decodes in one pass, and 'family/semdisdiffae' does not; take a term of "
        "diffusion, such as 'objective/vp_reconstruction'"
    )


# --- what the demo reports ----------------------------------------------------------------------------------------


def test_each_phase_is_measured_at_both_resolutions(run: tuple[Path, Recipe, list[str]]) -> None:
    folder, recipe, _ = run
    page, phases = report_phases(folder)
    assert [(p.name, list(p.psnr)) for p in phases] == [
        (f"{i} {stage.name}", [16]) for i, stage in enumerate(recipe.stages, 1)
    ]
    text = page.read_text()
    assert all(f"{phase.sharpness:.3f}" in text and f"{phase.psnr[16]:.2f} dB" in text for phase in phases)


def test_a_phase_whose_checkpoint_is_gone_is_told(pictures: Path, tmp_path: Path) -> None:
    train(recipe_of(pictures), tmp_path, keep=2)
    with pytest.raises(FileNotFoundError) as caught:
        report_phases(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: the checkpoint at the end of the stage 'full', step-00000004.safetensors, was not kept; "
        "train with more checkpoints to keep"
    )


def test_the_demo_has_three_phases_for_three_purposes() -> None:
    full, adaptation, refinement = demo.dc_ae().stages
    assert (full.trainable, full.resolution) == (("*",), 64)
    assert adaptation.resolution > full.resolution and not adaptation.has_adversary
    assert isinstance(refinement, AdversarialStageConfig) and refinement.resolution == full.resolution
