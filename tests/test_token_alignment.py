"""Terms that train a model's own token head, corrupted latents in a step, and where the log-SNR starts."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latelier.blocks import (
    DINOTokenHeadConfig,
    DiTBlockConfig,
    Draws,
    FrechetLoss,
    HOGConfig,
    NoisyLatentHeadConfig,
    ObjectiveConfig,
    PartError,
    PointPosteriorConfig,
    RandomTokenLogSNRConfig,
    SkipDecoderConfig,
    StackEncoderConfig,
    StepState,
    TeacherOutput,
    encode,
    frechet_distance,
    moments,
)
from latelier.families import DiffAEConfig, DinacAEConfig, read_tensors
from latelier.training import (
    AdamWConfig,
    AlignmentConfig,
    ClassAlignmentConfig,
    FolderDataConfig,
    FrechetConfig,
    LatentScaleConfig,
    LogSNRStartConfig,
    Objective,
    PatchAlignmentConfig,
    Recipe,
    StageConfig,
    VarianceExpansionConfig,
    VPReconstructionConfig,
    load_run,
    read_records,
    train,
)

TEACHER = HOGConfig(patch=8)
MODEL = DinacAEConfig(
    patch=8,
    width=16,
    latent=4,
    encoder=StackEncoderConfig(block=DiTBlockConfig(head_width=8), depth=1),
    decoder=SkipDecoderConfig(start=1, middle=1, end=1, rank=4),
    token_head=DINOTokenHeadConfig(features=36, head_width=12),
)
CORRUPTION = RandomTokenLogSNRConfig(probability=1.0, most_tokens=1.0)
TERMS = (PatchAlignmentConfig(), ClassAlignmentConfig(), FrechetConfig())
every_term = pytest.mark.parametrize("term", TERMS, ids=lambda term: term.kind)


def state_of(batch: int = 3) -> StepState:
    torch.manual_seed(1)
    model = MODEL.build()
    images = torch.rand(batch, 3, 16, 24) * 2 - 1
    posterior = model.posterior(images)
    latent = posterior.at(torch.randn_like(posterior.mean))
    return StepState(
        model, images, posterior, latent, Draws(0, 0, first=0, batch=batch), TEACHER.build()((images + 1) / 2)
    )


# --- the terms ----------------------------------------------------------------------------------------------------


def test_alignment_is_minus_the_cosine_of_the_heads_tokens_on_the_clean_mode() -> None:
    state = state_of()
    assert state.features is not None and state.features.cls is not None and state.posterior is not None
    read = state.model.token_head(state.posterior.alpha * state.posterior.mean)
    patches = -F.cosine_similarity(read.patches, state.features.patches, dim=-1).mean()
    cls = -F.cosine_similarity(read.cls, state.features.cls, dim=-1).mean()
    torch.testing.assert_close(PatchAlignmentConfig().build(MODEL, TEACHER)(state), patches)
    torch.testing.assert_close(ClassAlignmentConfig().build(MODEL, TEACHER)(state), cls)


def test_both_alignments_run_the_head_once_a_step() -> None:
    state, calls = state_of(), []
    state.model.token_head.register_forward_hook(lambda *_: calls.append(1))
    for config in (PatchAlignmentConfig(), ClassAlignmentConfig()):
        config.build(MODEL, TEACHER)(state)
    assert len(calls) == 1


def test_the_frechet_term_compares_class_tokens_of_the_sampled_latents_at_rms_one() -> None:
    state = state_of(batch=6)
    assert state.features is not None and state.features.cls is not None
    term = FrechetConfig(size=10).build(MODEL, TEACHER)
    ours = moments(state.model.token_head(state.latent).cls)
    theirs = moments(state.features.cls / state.features.cls.square().mean(dim=1, keepdim=True).sqrt())
    expected = frechet_distance(ours.mean, ours.cov, theirs.mean, theirs.cov).float()
    torch.testing.assert_close(term(state), expected, rtol=1e-3, atol=1e-3)


@every_term
def test_gradients_reach_the_encoder_and_the_head(term: ObjectiveConfig) -> None:
    state = state_of()
    value = term.build(MODEL, TEACHER)(state)
    assert value.shape == ()
    value.backward()
    for name in ("encoder.patchify.proj.weight", "token_head.in_proj.weight"):
        gradient = state.model.get_parameter(name).grad
        assert gradient is not None
        assert gradient.isfinite().all() and gradient.any(), name


@every_term
def test_terms_read_a_teachers_own_latents_where_there_is_no_posterior(term: ObjectiveConfig) -> None:
    state = replace(state_of(), posterior=None)
    clean = replace(state_of(), latent=state.latent)
    clean.prediction = clean.model.token_head(clean.latent)
    assert torch.equal(term.build(MODEL, TEACHER)(state), term.build(MODEL, TEACHER)(clean))


@every_term
def test_a_term_without_a_head_or_a_teacher_that_fits_is_refused(term: ObjectiveConfig) -> None:
    plain = DiffAEConfig(patch=8, width=16, latent=4)
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: term.build(MODEL, None), f"objective: {term.kind!r} needs a teacher, and the recipe has none"),
        (
            lambda: term.build(plain, TEACHER),
            f"objective: {term.kind!r} needs a model with a token head, and 'family/semdisdiffae' has none; "
            "take 'family/dinac_ae', or 'objective/alignment', which has a head of its own",
        ),
        (
            lambda: term.build(MODEL, HOGConfig(patch=8, orientations=6)),
            f"objective: {term.kind!r} needs a teacher of 36 features, the width of the model's token head, got 24; "
            "set model.token_head.features to 24, or choose another teacher",
        ),
    ]
    for build, message in cases:
        with pytest.raises(ValueError) as caught:
            build()
        assert str(caught.value) == message


@pytest.mark.parametrize("term", [ClassAlignmentConfig(), FrechetConfig(size=4)], ids=lambda term: term.kind)
def test_a_teacher_without_a_class_token_is_refused(term: ObjectiveConfig) -> None:
    state = state_of()
    assert state.features is not None
    state = replace(state, features=replace(state.features, cls=None))
    with pytest.raises(ValueError) as caught:
        term.build(MODEL, TEACHER)(state)
    assert str(caught.value) == (
        f"{term.kind}: the teacher gives no class token; choose one that does, or leave the term out"
    )


def test_patch_tokens_on_another_grid_are_refused() -> None:
    state = replace(state_of(), features=TeacherOutput(torch.zeros(3, 1, 36), (1, 1), torch.zeros(3, 36)))
    with pytest.raises(ValueError) as caught:
        PatchAlignmentConfig().build(MODEL, TEACHER)(state)
    assert str(caught.value) == (
        "objective/patch_alignment: the teacher's grid is (1, 1), the latent's (2, 3); "
        "choose a teacher whose patch equals the model's stride, or resample with the grid rule 'grid/resample'"
    )


def test_a_queue_of_no_size_is_refused() -> None:
    with pytest.raises(PartError) as caught:
        FrechetConfig(size=0)
    assert str(caught.value) == "config.size: must be at least 1, got 0"


def test_latents_descend_to_a_population_through_predict_class() -> None:
    """The loop of a user who trains a generator of latents: nothing is decoded."""
    torch.manual_seed(0)
    model = MODEL.build().requires_grad_(False)
    target = moments(model.predict_class(2 * torch.randn(256, 4, 2, 2) + 1))
    loss = FrechetLoss(36, size=48, reference=target)
    latents = torch.randn(48, 4, 2, 2, requires_grad=True)
    optimiser = torch.optim.Adam([latents], lr=0.1)
    values = []
    for _ in range(40):
        for first in range(0, 48, 16):
            value = loss(model.predict_class(latents[first : first + 16]))
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            values.append(value.item())
    assert sum(values[-3:]) < 0.3 * sum(values[:3])


# --- corrupted latents --------------------------------------------------------------------------------------------


def seen_by_the_decoder(
    corruption: RandomTokenLogSNRConfig | None, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Tensor, Tensor]:
    """The latents of a step, the moments and the value of a term of the posterior."""
    torch.manual_seed(1)
    model, seen = MODEL.build(), []
    predict = model.predict
    monkeypatch.setattr(model, "predict", lambda x, t, z, **rest: seen.append(z.detach()) or predict(x, t, z, **rest))
    objective = Objective(
        model,
        (VPReconstructionConfig(), VarianceExpansionConfig()),
        config=MODEL,
        teacher=None,
        latents="encoder",
        corruption=corruption,
    )
    values, found = objective(torch.rand(4, 3, 16, 16) * 2 - 1, None, Draws(3, 5, first=0, batch=4))
    return seen[0], found, values[1]


def test_the_decoder_sees_corrupted_latents_and_everything_else_clean_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    clean, clean_moments, clean_value = seen_by_the_decoder(None, monkeypatch)
    latents, found, value = seen_by_the_decoder(CORRUPTION, monkeypatch)
    assert torch.equal(found, clean_moments)
    assert torch.equal(value, clean_value)
    torch.manual_seed(1)
    posterior = MODEL.build().posterior(torch.rand(4, 3, 16, 16) * 2 - 1)
    draws = Draws(3, 5, first=0, batch=4)
    noise = draws.normal("posterior", 4, 2, 2)
    torch.testing.assert_close(clean, posterior.at(noise))
    torch.testing.assert_close(latents, CORRUPTION.apply(posterior, draws).at(noise))
    assert not torch.equal(latents, clean)


def test_a_corruption_of_nothing_changes_no_bit_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = seen_by_the_decoder(None, monkeypatch)
    for ours, theirs in zip(seen_by_the_decoder(replace(CORRUPTION, probability=0.0), monkeypatch), clean, strict=True):
        assert torch.equal(ours, theirs)


def test_a_stage_on_a_teachers_latents_has_nothing_to_corrupt() -> None:
    with pytest.raises(PartError) as caught:
        StageConfig(objective=(VPReconstructionConfig(),), latents="teacher", corruption=CORRUPTION)
    assert str(caught.value) == (
        "config.corruption: needs an encoder's posterior; a stage on the teacher's latents has none"
    )


# --- whole runs ---------------------------------------------------------------------------------------------------


def recipe_of(pictures: Path, **changes: Any) -> Recipe:
    stage = StageConfig(
        steps=6,
        batch=4,
        resolution=16,
        objective=(
            VPReconstructionConfig(path_drop=0.0),
            PatchAlignmentConfig(),
            ClassAlignmentConfig(),
            FrechetConfig(weight=1e-3, size=10),
            LatentScaleConfig(),
        ),
        corruption=RandomTokenLogSNRConfig(),
        optimiser=AdamWConfig(rate=1e-3),
        ema=0.9,
        recalibrate=2,
        checkpoint_every=2,
        validate_every=3,
        log_every=1,
        precision="float32",
    )
    return Recipe(
        name="small",
        model=MODEL,
        teacher=TEACHER,
        data=FolderDataConfig(path=str(pictures)),
        stages=(replace(stage, **changes),),
        start=LogSNRStartConfig(),
    )


def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped_queues_included(pictures: Path, tmp_path: Path) -> None:
    recipe = recipe_of(pictures, accumulate=2)
    train(recipe, tmp_path / "whole", keep=10)
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    for path in (tmp_path / "stopped" / "checkpoints").iterdir():
        if path.name != "step-00000002.safetensors":
            path.unlink()
    shutil.rmtree(tmp_path / "stopped" / "model")
    train(recipe, tmp_path / "stopped", keep=10, resume=True)
    last = "checkpoints/step-00000006.safetensors"
    for name in ("model/model.safetensors", "objective.safetensors", last):
        whole, resumed = (read_tensors(tmp_path / run / name)[0] for run in ("whole", "stopped"))
        assert whole.keys() == resumed.keys()
        for key, tensor in whole.items():
            assert torch.equal(tensor, resumed[key]), (name, key)
    assert int(read_tensors(tmp_path / "stopped" / last)[0]["terms/frechet.loss.queue.pushed"]) == 24
    curves = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in ("whole", "stopped")]
    assert curves[0] == curves[1]


def test_a_run_predicts_tokens_with_the_models_own_head(pictures: Path, tmp_path: Path) -> None:
    train(recipe_of(pictures, steps=1), tmp_path / "own")
    run = load_run(tmp_path / "own")
    latents = run.model.encode(torch.zeros(2, 3, 16, 24))
    assert run.predict_tokens is not None
    assert torch.equal(run.predict_tokens(latents), run.model.predict_features(latents).patches)
    noisy = AlignmentConfig(head=NoisyLatentHeadConfig(width=16, block=DiTBlockConfig(head_width=8)))
    train(recipe_of(pictures, steps=1, objective=(VPReconstructionConfig(), noisy)), tmp_path / "both")
    run = load_run(tmp_path / "both")
    assert run.predict_tokens is not None
    latents = run.model.encode(torch.zeros(2, 3, 16, 24))
    assert not torch.equal(run.predict_tokens(latents), run.model.predict_features(latents).patches)


def test_two_processes_train_a_token_head_as_one(pictures: Path, tmp_path: Path) -> None:
    recipe = recipe_of(pictures, batch=8, steps=4)
    (tmp_path / "recipe.json").write_text(json.dumps(encode(recipe)))
    train(recipe, tmp_path / "alone", device="cpu")
    torchrun = ["torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m"]
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, "latelier", "train", "recipe.json", "--out", "both", "--device", "cpu"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    curves = [read_records(tmp_path / out / "metrics.jsonl") for out in ("alone", "both")]
    for alone, both in zip(*curves, strict=True):
        for name in alone.keys() - {"step", "stage"}:
            assert both[name] == pytest.approx(alone[name], rel=1e-3), (alone["step"], name)
    one, two = (read_tensors(tmp_path / out / "objective.safetensors")[0] for out in ("alone", "both"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-3, msg=name)


# --- the start of the log-SNR -------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [DiTBlockConfig(head_width=8), None], ids=["dit", "fcdm"])
def test_the_logsnr_starts_where_it_is_told_and_nothing_else_changes(block: DiTBlockConfig | None) -> None:
    encoder = StackEncoderConfig(depth=1) if block is None else StackEncoderConfig(block=block, depth=1)
    torch.manual_seed(0)
    model = replace(MODEL, encoder=encoder).build()
    images = torch.rand(2, 3, 16, 16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    was = model.posterior(images)
    LogSNRStartConfig(logsnr=6.0).apply(model, [])
    found = model.posterior(images)
    assert torch.equal(found.mean, was.mean)
    bias = before["encoder.to_bottleneck.bias"][4:]
    torch.testing.assert_close(found.logsnr, was.logsnr - bias[:, None, None] + 6)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"encoder.to_bottleneck.bias"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"posterior": PointPosteriorConfig()},
            "start/logsnr: 'posterior/point' has no log-SNR; take 'posterior/vp', or leave the start out",
        ),
        (
            {"encoder": None},
            "start/logsnr: needs an encoder that ends in a convolution 'to_bottleneck' with a bias; "
            "leave the start out",
        ),
    ],
)
def test_a_model_without_a_logsnr_to_start_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        LogSNRStartConfig().apply(replace(MODEL, **change).build(), [])
    assert str(caught.value) == message
