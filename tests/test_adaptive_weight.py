"""Weights that follow gradients: the formula, parts and processes of a batch, resume, validation, refusals."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latelier.blocks import (
    DiTBlockConfig,
    Draws,
    GradientRatioConfig,
    HOGConfig,
    NoisyLatentHeadConfig,
    ObjectiveConfig,
    PartError,
    SkipDecoderConfig,
    StackEncoderConfig,
    encode,
)
from latelier.families import DiffAEConfig, read_tensors
from latelier.training import (
    AdamWConfig,
    AdaptiveWeights,
    AlignmentConfig,
    Checkpoints,
    FolderDataConfig,
    LatentScaleConfig,
    Objective,
    PatchCosineConfig,
    Position,
    Recipe,
    Records,
    StageConfig,
    Trainer,
    VFConfig,
    VPReconstructionConfig,
    read_records,
    train,
)

TEACHER = HOGConfig(patch=8)
MODEL = DiffAEConfig(
    patch=8,
    width=16,
    latent=4,
    encoder=StackEncoderConfig(depth=1),
    decoder=SkipDecoderConfig(start=1, middle=1, end=1, rank=4),
)
ANCHOR = "encoder.to_bottleneck.weight"
VF = VFConfig(cosine_margin=0.0, distance_margin=0.0)
"""With gradients everywhere: the default margins leave little of untrained latents on tiny pictures."""


def objective_of(*terms: ObjectiveConfig) -> Objective:
    torch.manual_seed(1)
    return Objective(MODEL.build(), terms, config=MODEL, teacher=TEACHER, latents="encoder")


def batch_of(images: int) -> tuple[Tensor, Any, Draws]:
    generator = torch.Generator().manual_seed(3)
    pictures = torch.rand(images, 3, 16, 16, generator=generator) * 2 - 1
    return pictures, TEACHER.build()((pictures + 1) / 2), Draws(0, 5, first=0, batch=images)


def alone(gradient: Tensor) -> Tensor:
    return gradient


# --- the formula --------------------------------------------------------------------------------------------------


def test_the_weight_is_the_ratio_of_gradient_norms_at_the_anchor_times_the_terms_own() -> None:
    objective = objective_of(VPReconstructionConfig(weight=7.0, path_drop=0.0), VF, LatentScaleConfig())
    values, _ = objective(*batch_of(4))
    anchor = objective.model.get_parameter(ANCHOR)
    norms = [torch.autograd.grad(v, anchor, retain_graph=True)[0].double().norm().item() for v in values[:2]]
    expected = 0.1 * 7.0 * norms[0] / (norms[1] + 1e-4)
    objective.adaptive.settle([objective.anchor_gradients()], alone)
    assert objective.adaptive.effective() == {"vf": pytest.approx(expected, rel=1e-5)}
    total = 7.0 * values[0] + expected * values[1] + 1e-4 * values[2]
    torch.testing.assert_close(objective.total(values), total)
    assert norms[0] > 0 and norms[1] > 0


def test_the_term_then_pulls_on_the_anchor_a_tenth_as_hard_as_its_reference() -> None:
    objective = objective_of(VPReconstructionConfig(weight=300.0, path_drop=0.0), VF)
    values, _ = objective(*batch_of(4))
    objective.adaptive.settle([objective.anchor_gradients()], alone)
    weights = (300.0, objective.adaptive.effective()["vf"])
    anchor = objective.model.get_parameter(ANCHOR)
    pulls = [
        torch.autograd.grad(w * v, anchor, retain_graph=True)[0].norm().item()
        for w, v in zip(weights, values, strict=True)
    ]
    assert pulls[1] == pytest.approx(0.1 * pulls[0], rel=2e-3)


def test_several_references_count_by_the_gradient_of_their_weighted_sum() -> None:
    rule = GradientRatioConfig(reference=("vp_reconstruction", "latent_scale"))
    scale = LatentScaleConfig(weight=0.5)
    objective = objective_of(VPReconstructionConfig(path_drop=0.0), scale, replace(VF, adaptive=rule))
    values, _ = objective(*batch_of(4))
    anchor = objective.model.get_parameter(ANCHOR)
    followed = torch.autograd.grad(values[0] + 0.5 * values[1], anchor, retain_graph=True)[0].norm()
    own = torch.autograd.grad(values[2], anchor, retain_graph=True)[0].norm()
    objective.adaptive.settle([objective.anchor_gradients()], alone)
    assert objective.adaptive.effective()["vf"] == pytest.approx(0.1 * (followed / (own + 1e-4)).item(), rel=1e-5)


def test_two_terms_may_follow_one_reference_at_anchors_of_their_own() -> None:
    other = PatchCosineConfig(weight=1.0, adaptive=GradientRatioConfig(anchor="encoder.patchify.proj.bias", eps=1.0))
    objective = objective_of(VPReconstructionConfig(path_drop=0.0), VF, other)
    values, _ = objective(*batch_of(4))
    anchor = objective.model.get_parameter("encoder.patchify.proj.bias")
    followed, own = (torch.autograd.grad(values[i], anchor, retain_graph=True)[0].norm() for i in (0, 2))
    objective.adaptive.settle([objective.anchor_gradients()], alone)
    assert objective.adaptive.concerned == ["vp_reconstruction", "vf", "patch_cosine"]
    assert objective.adaptive.effective()["patch_cosine"] == pytest.approx((followed / (own + 1)).item(), rel=1e-5)


def test_a_weight_has_a_ceiling_and_no_gradient() -> None:
    rule = GradientRatioConfig(clamp=3.0)
    assert rule.ratio(torch.tensor([30.0, 40.0]), torch.tensor([1.0])).item() == 3.0
    assert rule.ratio(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])).item() == pytest.approx(5 / 2.0001)
    assert GradientRatioConfig().ratio(torch.ones(4), torch.zeros(4)).item() == pytest.approx(2e4)
    objective = objective_of(VPReconstructionConfig(), VF)
    objective(*batch_of(2))
    objective.adaptive.settle([objective.anchor_gradients()], alone)
    assert not objective.adaptive.factors.requires_grad


def test_taking_gradients_leaves_none_behind_and_the_step_as_it_was() -> None:
    found = []
    for adapt in (False, True):
        objective = objective_of(VPReconstructionConfig(), VF)
        values, _ = objective(*batch_of(4))
        if adapt:
            objective.anchor_gradients()
            assert all(parameter.grad is None for parameter in objective.parameters())
        objective.total(values).backward()
        found.append([p.grad for p in objective.parameters()])
    for plain, adapted in zip(*found, strict=True):
        assert (plain is None) == (adapted is None)
        assert plain is None or torch.equal(plain, adapted)


def test_gradients_are_float32_after_a_forward_in_bfloat16() -> None:
    objective = objective_of(VPReconstructionConfig(path_drop=0.0), VF)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        objective(*batch_of(4))
    gradients = objective.anchor_gradients()
    assert gradients["vf"].dtype == torch.float32
    objective.adaptive.settle([gradients], alone)
    low = objective.adaptive.effective()["vf"]
    objective(*batch_of(4))
    objective.adaptive.settle([objective.anchor_gradients()], alone)
    assert low == pytest.approx(objective.adaptive.effective()["vf"], rel=0.05)


def test_parts_of_a_batch_give_the_weight_of_the_whole() -> None:
    objective = objective_of(VPReconstructionConfig(path_drop=0.0), VF)
    images, _, _ = batch_of(6)
    objective(*batch_of(6))
    objective.adaptive.settle([objective.anchor_gradients()], alone)
    whole = objective.adaptive.effective()["vf"]
    parts = []
    for first in (0, 2, 4):
        given = images[first : first + 2]
        features, draws = TEACHER.build()((given + 1) / 2), Draws(0, 5, first=first, batch=2)
        values, _ = objective.values_of(objective.adaptive.concerned, given, features, draws)
        parts.append(objective.adaptive.gradients(values, objective.model))
    objective.adaptive.settle(parts, alone)
    assert objective.adaptive.effective()["vf"] == pytest.approx(whole, rel=1e-5)
    objective.adaptive.settle(parts[:1], alone)
    assert objective.adaptive.effective()["vf"] != pytest.approx(whole, rel=1e-2)  # parts differ from their whole


def test_a_fixed_weight_is_what_it_was_before_there_were_adaptive_ones() -> None:
    objective = objective_of(VPReconstructionConfig(), replace(VF, adaptive=None))
    values = torch.tensor([2.0, 3.0])
    assert not objective.adaptive and objective.adaptive.kept() == {}
    assert objective.total(values).item() == (values @ torch.tensor([1.0, 0.1])).item()


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (
            [VPReconstructionConfig(), VFConfig(adaptive=GradientRatioConfig(anchor="encoder.to_bottlneck.weight"))],
            "objective: 'objective/vf' has the anchor 'encoder.to_bottlneck.weight', and the model has no such "
            "parameter; the closest name is 'encoder.to_bottleneck.weight'",
        ),
        (
            [VPReconstructionConfig(), VFConfig(adaptive=GradientRatioConfig(reference=("vp_reconstructon",)))],
            "objective: 'objective/vf' follows 'vp_reconstructon', which is no term of the stage; "
            "did you mean 'vp_reconstruction'?",
        ),
        (
            [VPReconstructionConfig(), VFConfig(adaptive=GradientRatioConfig(reference=("l1",)))],
            "objective: 'objective/vf' follows 'l1', which is no term of the stage; there are: 'vp_reconstruction'",
        ),
        (
            [VPReconstructionConfig(weight=0.0), VFConfig()],
            "objective: 'objective/vf' follows 'vp_reconstruction', which is no term of the stage; there are: none",
        ),
        (
            [VPReconstructionConfig(), VFConfig(adaptive=GradientRatioConfig(reference=("vf",)))],
            "objective: 'objective/vf' follows its own gradient; name another term in 'reference'",
        ),
        (
            [
                VPReconstructionConfig(),
                VFConfig(),
                PatchCosineConfig(adaptive=GradientRatioConfig(reference=("vf",))),
            ],
            "objective: 'objective/patch_cosine' follows 'vf', whose weight adapts too; name one of fixed weight",
        ),
    ],
    ids=["anchor", "misspelt", "unknown", "weight zero", "itself", "adaptive"],
)
def test_a_rule_that_names_what_is_not_there_is_refused(terms: list[Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        AdaptiveWeights([term for term in terms if term.weight], MODEL.build())
    assert str(caught.value) == message


def test_numbers_that_make_no_rule_are_refused() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"eps": 0.0}, "config.eps: must be positive, got 0.0"),
        ({"clamp": -1.0}, "config.clamp: must be positive, got -1.0"),
        ({"reference": ()}, "config.reference: is empty; name a term to follow, such as 'vp_reconstruction'"),
    ]
    for change, message in cases:
        with pytest.raises(PartError) as caught:
            GradientRatioConfig(**change)
        assert str(caught.value) == message


def test_an_anchor_that_a_loss_does_not_reach_is_refused() -> None:
    objective = objective_of(
        VPReconstructionConfig(), VFConfig(adaptive=GradientRatioConfig(anchor="decoder.fuse_in.weight"))
    )
    objective(*batch_of(2))
    with pytest.raises(ValueError) as caught:
        objective.anchor_gradients()
    assert str(caught.value) == (
        "objective: the weight of 'vf' follows gradients at 'decoder.fuse_in.weight', and 'vf' has none there; "
        "name an anchor that both reach"
    )


# --- whole runs ---------------------------------------------------------------------------------------------------


def recipe_of(pictures: Path, **changes: Any) -> Recipe:
    head = NoisyLatentHeadConfig(width=16, block=DiTBlockConfig(head_width=8))
    stage = StageConfig(
        steps=6,
        batch=4,
        resolution=32,
        objective=(
            VPReconstructionConfig(),
            VF,
            AlignmentConfig(head=head, adaptive=GradientRatioConfig(clamp=10.0)),
            LatentScaleConfig(),
        ),
        optimiser=AdamWConfig(rate=1e-3),
        ema=0.9,
        recalibrate=2,
        checkpoint_every=2,
        validate_every=3,
        validate_images=2,
        log_every=1,
        precision="float32",
    )
    data = FolderDataConfig(path=str(pictures))
    return Recipe(name="small", model=MODEL, teacher=TEACHER, data=data, stages=(replace(stage, **changes),))


def test_records_hold_the_weight_in_force_and_the_loss_under_it(pictures: Path, tmp_path: Path) -> None:
    train(recipe_of(pictures), tmp_path)
    lines = read_records(tmp_path / "metrics.jsonl")
    for line in lines:
        total = line["vp_reconstruction"] + line["vf_weight"] * line["vf"] + 1e-4 * line["latent_scale"]
        assert line["loss"] == pytest.approx(total + line["alignment_weight"] * line["alignment"], rel=1e-4, abs=1e-6)
    assert all(line["vf_weight"] > 0 for line in lines)
    assert len({line["vf_weight"] for line in lines}) == 6


def test_a_batch_in_parts_trains_as_one_in_one_part(pictures: Path, tmp_path: Path) -> None:
    curves = []
    for parts in (1, 2, 4):
        train(recipe_of(pictures, accumulate=parts), tmp_path / str(parts))
        curves.append(read_records(tmp_path / str(parts) / "metrics.jsonl"))
    for curve in curves[1:]:
        for line, other in zip(curve, curves[0], strict=True):
            for name in line.keys() - {"step", "stage"}:
                assert line[name] == pytest.approx(other[name], rel=1e-4, abs=1e-7), (line["step"], name)


def test_validation_uses_the_factors_of_the_last_step_and_never_adapts(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, dict[str, float]]] = []
    forward = Objective.forward

    def listen(self: Objective, *given: Any) -> Any:
        seen.append((self.training, self.adaptive.effective()))
        return forward(self, *given)

    monkeypatch.setattr(Objective, "forward", listen)
    train(recipe_of(pictures, steps=3), tmp_path)
    recorded = read_records(tmp_path / "metrics.jsonl")[-1]
    validated = [weights for training, weights in seen if not training]
    assert validated and all(weights["vf"] == recorded["vf_weight"] for weights in validated)


def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(pictures: Path, tmp_path: Path) -> None:
    recipe = recipe_of(pictures, accumulate=2)
    train(recipe, tmp_path / "whole", keep=10)
    for stopped_at in (2, 6):  # after the last step only the end of the run is left to do
        folder = tmp_path / f"stopped{stopped_at}"
        shutil.copytree(tmp_path / "whole", folder)
        for path in (folder / "checkpoints").iterdir():
            if not path.name.startswith("step-") or int(path.stem.partition("-")[2]) > stopped_at:
                path.unlink()
        shutil.rmtree(folder / "model")
        train(recipe, folder, keep=10, resume=True)
        for name in ("model/model.safetensors", "objective.safetensors", "checkpoints/step-00000006.safetensors"):
            whole, resumed = (read_tensors(run / name)[0] for run in (tmp_path / "whole", folder))
            assert whole.keys() == resumed.keys()
            assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items()), name
        assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_a_checkpoint_holds_the_factors_of_its_step_and_a_resumed_run_begins_with_them(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(pictures)
    train(recipe, tmp_path)
    checkpoint = Checkpoints(tmp_path / "checkpoints", recipe).latest()
    assert checkpoint is not None
    kept, last = checkpoint.group("adaptive"), read_records(tmp_path / "metrics.jsonl")[-1]
    assert kept.keys() == {"vf", "alignment"}
    assert 0.1 * kept["vf"].item() == pytest.approx(last["vf_weight"])
    seen: list[dict[str, float]] = []

    def listen(self: Trainer, stage: StageConfig, position: Position, records: Records | None) -> Position:
        seen.append(self.objective.adaptive.effective())
        return position

    monkeypatch.setattr(Trainer, "_run_stage", listen)
    train(recipe, tmp_path, resume=True)
    assert [found["vf"] for found in seen] == [last["vf_weight"]]
    assert [found["alignment"] for found in seen] == [last["alignment_weight"]]


def test_a_frozen_anchor_is_refused_before_any_stage_runs(pictures: Path, tmp_path: Path) -> None:
    recipe = recipe_of(pictures)
    frozen = replace(recipe.stages[0], name="second", frozen=("encoder.*",))
    with pytest.raises(ValueError) as caught:
        train(replace(recipe, stages=(recipe.stages[0], frozen)), tmp_path)
    assert str(caught.value) == (
        "stage 'second': the weight of 'vf' follows gradients at 'encoder.to_bottleneck.weight', which is frozen; "
        "let it learn, name another anchor, or set 'adaptive' of the term to null"
    )
    assert not (tmp_path / "metrics.jsonl").exists()


def test_two_processes_have_the_weights_of_one_with_batches_in_one_part_and_in_two(
    pictures: Path, tmp_path: Path
) -> None:
    alone = recipe_of(pictures, batch=8, steps=3)
    alone = replace(alone, stages=(alone.stages[0], replace(alone.stages[0], name="second")))
    both = replace(alone, stages=(alone.stages[0], replace(alone.stages[1], accumulate=2)))
    (tmp_path / "recipe.json").write_text(json.dumps(encode(both)))
    train(alone, tmp_path / "alone", device="cpu")
    (tmp_path / "both.py").write_text(
        "import json, pathlib\nfrom latelier.blocks import decode\nfrom latelier.training import Recipe, train\n"
        "recipe = decode(json.loads(pathlib.Path('recipe.json').read_text()), Recipe)\n"
        "train(recipe, 'both', device='cpu')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "both.py"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (read_records(tmp_path / run / "metrics.jsonl") for run in ("alone", "both"))
    assert len(one) == 6
    for line, other in zip(one, two, strict=True):
        assert line.keys() == other.keys()
        for name in line.keys() - {"step", "stage"}:
            assert other[name] == pytest.approx(line[name], rel=1e-4, abs=1e-7), (line["step"], name)
    final = [read_tensors(tmp_path / run / "model" / "model.safetensors")[0] for run in ("alone", "both")]
    for name, tensor in final[0].items():
        torch.testing.assert_close(final[1][name], tensor, rtol=1e-3, atol=1e-5, msg=name)
