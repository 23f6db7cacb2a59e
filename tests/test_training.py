"""The loop: what a stage trains and leaves alone, averages, records, refuses; and what recipes refuse."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import latelier
from latelier.blocks import (
    DiTBlockConfig,
    Draws,
    HOGConfig,
    NoisyLatentHeadConfig,
    NoNormConfig,
    PartError,
    SkipDecoderConfig,
    StackEncoderConfig,
    StepState,
    TeacherOutput,
    UniformTimesConfig,
    WithPureNoiseConfig,
    sid2_weight,
)
from latelier.families import CheckpointError, DiffAEConfig, InferenceConfig, read_tensors
from latelier.training import (
    AdamWConfig,
    AlignmentConfig,
    Average,
    ConstantRateConfig,
    CosineRateConfig,
    FolderDataConfig,
    LatentEnergyConfig,
    LatentRegressionConfig,
    LatentScaleConfig,
    NativeCropConfig,
    PCAStartConfig,
    Recipe,
    Records,
    StageConfig,
    TrainingError,
    TrapezoidRateConfig,
    VPReconstructionConfig,
    Watcher,
    WeightsConfig,
    held_out_crops,
    load_run,
    read_records,
    train,
)

MODEL = DiffAEConfig(
    patch=8,
    width=16,
    latent=4,
    encoder=StackEncoderConfig(depth=1),
    decoder=SkipDecoderConfig(start=1, middle=1, end=1, rank=4),
)
STAGE = StageConfig(
    steps=3,
    batch=4,
    resolution=16,
    objective=(VPReconstructionConfig(),),
    optimiser=AdamWConfig(rate=1e-3),
    recalibrate=2,
    log_every=1,
)
HEAD = NoisyLatentHeadConfig(width=16, block=DiTBlockConfig(head_width=8))


def recipe_of(pictures: Path, *stages: StageConfig, **changes: Any) -> Recipe:
    settings: dict[str, Any] = {"name": "test", "model": MODEL, "data": FolderDataConfig(path=str(pictures))}
    return Recipe(stages=stages, **settings | changes)


def metrics(folder: Path) -> list[dict[str, float]]:
    return read_records(folder / "metrics.jsonl")


# --- stages -------------------------------------------------------------------------------------------------------


def test_frozen_parameters_keep_their_bits_and_others_learn(pictures: Path, tmp_path: Path) -> None:
    train(recipe_of(pictures, replace(STAGE, steps=1, trainable=("encoder.patchify.proj.bias",))), tmp_path / "a")
    train(recipe_of(pictures, replace(STAGE, frozen=("decoder.*",))), tmp_path / "b")
    before, after = (read_tensors(tmp_path / run / "model" / "model.safetensors")[0] for run in "ab")
    for name, tensor in before.items():
        if name.startswith("decoder."):
            assert torch.equal(tensor, after[name]), name
    assert not torch.equal(before["encoder.to_bottleneck.weight"], after["encoder.to_bottleneck.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frozen": ("decodr.*",)}, "stage 'main': frozen pattern 'decodr.*' matches no parameter"),
        ({"trainable": ("head*",)}, "stage 'main': trainable pattern 'head*' matches no parameter"),
        ({"frozen": ("*",)}, "stage 'main': every parameter is frozen; nothing is left to learn"),
        (
            {"accumulate": 3},
            "stage 'main': a batch of 4 does not divide into 3 parts on each of 1 processes",
        ),
    ],
)
def test_a_stage_that_cannot_be_run_is_refused(
    change: dict[str, Any], message: str, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as caught:
        train(recipe_of(pictures, replace(STAGE, **change)), tmp_path / "run")
    assert str(caught.value) == message


def test_a_head_that_learned_in_one_stage_goes_on_in_the_next(pictures: Path, tmp_path: Path) -> None:
    aligned = replace(STAGE, objective=(VPReconstructionConfig(), AlignmentConfig(head=HEAD)))
    frozen = replace(aligned, name="second", optimiser=AdamWConfig(rate=1e-30))
    teacher = HOGConfig(patch=8)
    train(recipe_of(pictures, aligned, teacher=teacher), tmp_path / "one")
    train(recipe_of(pictures, aligned, frozen, teacher=teacher), tmp_path / "two")
    one, two = (read_tensors(tmp_path / run / "objective.safetensors")[0] for run in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, msg=name)


def test_a_decoder_learns_the_latents_of_its_teacher(pictures: Path, tmp_path: Path) -> None:
    teacher = HOGConfig(patch=8, cells=1, orientations=4)
    model = replace(MODEL, encoder=None, latent_norm=NoNormConfig())
    objective = (VPReconstructionConfig(times=WithPureNoiseConfig(share=1.0)),)
    stage = replace(STAGE, latents="teacher", steps=40, objective=objective, optimiser=AdamWConfig(rate=1e-2))
    folder = train(recipe_of(pictures, stage, model=model, teacher=teacher), tmp_path / "run")
    losses = [line["loss"] for line in metrics(tmp_path / "run")]
    assert np.mean(losses[-8:]) < 0.95 * np.mean(losses[:8])  # gradients of an image say little of its colours
    with pytest.raises(ValueError, match="this model has a decoder only"):
        latelier.load(folder).encode(torch.zeros(1, 3, 16, 16))


def test_an_encoder_learns_its_teachers_latents_by_regression(pictures: Path, tmp_path: Path) -> None:
    teacher = HOGConfig(patch=8, cells=1, orientations=4)
    stage = replace(
        STAGE,
        objective=(LatentRegressionConfig(),),
        trainable=("encoder.*",),
        steps=40,
        optimiser=AdamWConfig(rate=1e-2),
    )
    train(recipe_of(pictures, stage, teacher=teacher), tmp_path / "run")
    losses = [line["loss"] for line in metrics(tmp_path / "run")]
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])


def test_terms_of_weight_zero_are_not_computed(pictures: Path, tmp_path: Path) -> None:
    stage = replace(STAGE, objective=(VPReconstructionConfig(), LatentScaleConfig(weight=0.0)))
    train(recipe_of(pictures, stage), tmp_path / "run")
    assert set(metrics(tmp_path / "run")[0]) == {
        "step", "stage", "loss", "vp_reconstruction", "gradient_norm", "rate",
    }  # fmt: skip


def test_the_loss_is_the_weighted_sum_of_the_terms(pictures: Path, tmp_path: Path) -> None:
    stage = replace(STAGE, objective=(VPReconstructionConfig(weight=2.0), LatentEnergyConfig(weight=0.5)))
    train(recipe_of(pictures, stage), tmp_path / "run")
    for line in metrics(tmp_path / "run"):
        assert line["loss"] == pytest.approx(2 * line["vp_reconstruction"] + 0.5 * line["latent_energy"], rel=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_with_step_term_and_checkpoint(pictures: Path, tmp_path: Path) -> None:
    stage = replace(STAGE, steps=50, checkpoint_every=1, optimiser=AdamWConfig(rate=1e30), clip=None)
    with pytest.raises(TrainingError) as caught:
        train(recipe_of(pictures, stage), tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step-00000001.safetensors"
    assert str(caught.value) == (
        f"step 2: the loss of 'vp_reconstruction' is not finite; the last good checkpoint is {path}. "
        "Lower the rate, clip harder, or train in float32"
    )
    assert path.is_file() and not (tmp_path / "run" / "model").exists()


def test_the_first_step_may_fail_without_a_checkpoint(pictures: Path, tmp_path: Path) -> None:
    stage = replace(STAGE, objective=(VPReconstructionConfig(weight=1e38), LatentEnergyConfig(weight=1e38)))
    with pytest.raises(TrainingError, match=r"^step 1: the gradient norm is not finite; there is no checkpoint yet\."):
        train(recipe_of(pictures, stage), tmp_path / "run")


def test_bfloat16_training_keeps_float32_weights(pictures: Path, tmp_path: Path) -> None:
    folder = train(recipe_of(pictures, replace(STAGE, precision="bfloat16")), tmp_path / "run")
    tensors, _ = read_tensors(folder / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert all(math.isfinite(line["loss"]) for line in metrics(tmp_path / "run"))


def test_statistics_are_recalibrated_so_that_latents_are_white(pictures: Path, tmp_path: Path) -> None:
    stage = replace(STAGE, resolution=32, recalibrate=8, batch=4)
    recipe = recipe_of(pictures, stage)
    model = latelier.load(train(recipe, tmp_path / "run"))
    posterior = [
        model.encode_posterior(image) for image in held_out_crops(recipe.data.training(), resolution=32, batch=1)
    ]
    torch.manual_seed(0)
    z = torch.cat([model.whiten(p.sample()) for p in posterior * 8])
    assert z.mean(dim=(0, 2, 3)).abs().max() < 0.25
    assert (z.std(dim=(0, 2, 3)) - 1).abs().max() < 0.25


# --- pieces -------------------------------------------------------------------------------------------------------


def test_averaging_follows_its_formula() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    average = Average(model, decay=0.5)
    expected = model.weight.detach().clone()
    for step in range(1, 30):
        with torch.no_grad():
            model.weight += torch.randn_like(model.weight)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        average.update(model, step=step)
    torch.testing.assert_close(average.model.weight, expected)


def test_rates_warm_up_and_decay() -> None:
    assert [ConstantRateConfig(warm_up=4).factor(i, 100) for i in (0, 1, 3, 50)] == [0.25, 0.5, 1, 1]
    cosine = CosineRateConfig(warm_up=2, final=0.1)
    assert cosine.factor(2, 102) == 1
    assert cosine.factor(52, 102) == pytest.approx(0.55)
    assert cosine.factor(102, 102) == pytest.approx(0.1)
    trapezoid = TrapezoidRateConfig(decay=0.5)
    assert [trapezoid.factor(i, 100) for i in (0, 49, 75, 100)] == [1, 1, 0.5, 0]


def test_only_matrices_decay() -> None:
    model = MODEL.build()
    groups = AdamWConfig(weight_decay=0.1).build(model.named_parameters()).param_groups
    decayed = {n for group in groups if group["weight_decay"] for n in group["param_names"]}
    assert "encoder.to_bottleneck.weight" in decayed and "encoder.blocks.0.dwconv.weight" in decayed
    assert not any(n.endswith(("bias", "gamma", "beta", "layer_scale", "path_drop_mask_feature")) for n in decayed)


def test_pca_start_reconstructs_as_well_as_pca(pictures: Path, tmp_path: Path) -> None:
    model = replace(MODEL, patch=4, width=24, latent=12)
    frozen = replace(STAGE, steps=1, resolution=32, crop=NativeCropConfig(), optimiser=AdamWConfig(rate=1e-30))
    start = PCAStartConfig(batches=32)
    recipe = recipe_of(pictures, frozen, model=model, start=start)
    loaded = latelier.load(train(recipe, tmp_path / "run"))
    image = next(held_out_crops(recipe.data.training(), resolution=32, batch=1))
    rows = torch.nn.functional.pixel_unshuffle(image, 4)[0].flatten(1).T.double()
    everything = torch.cat(
        [
            torch.nn.functional.pixel_unshuffle(x, 4)[0].flatten(1).T.double()
            for x in held_out_crops(recipe.data.training(), resolution=32, batch=1)
        ]
    )
    mean = everything.mean(0)
    axes = torch.linalg.svd(everything - mean, full_matrices=False)[2][:12].T
    best = ((rows - mean) @ axes @ axes.T + mean - rows).square().mean()
    ours = (loaded.reconstruct(image, InferenceConfig(seed=0)) - image).square().mean()
    assert ours < 1.2 * best + 1e-4  # its components are those of crops, and decoding leaves residual noise


def test_weights_start_takes_over_a_trained_model(pictures: Path, tmp_path: Path) -> None:
    folder = train(recipe_of(pictures, STAGE), tmp_path / "first")
    frozen = replace(STAGE, steps=1, optimiser=AdamWConfig(rate=1e-30), recalibrate=0, momentum=0.0)
    again = train(recipe_of(pictures, frozen, start=WeightsConfig(path=str(folder))), tmp_path / "second")
    one, two = (read_tensors(f / "model.safetensors")[0] for f in (folder, again))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, msg=name)
    other = recipe_of(pictures, STAGE, model=replace(MODEL, width=24), start=WeightsConfig(path=str(folder)))
    with pytest.raises(CheckpointError, match="holds a model of another config than the recipe's; start from its own"):
        train(other, tmp_path / "third")


def test_reconstruction_weighs_noise_levels_as_sid2_does() -> None:
    torch.manual_seed(0)
    model = MODEL.build()
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    posterior = model.posterior(images)
    draws = Draws(1, 2, first=0, batch=3)
    state = StepState(model, images, posterior, posterior.mode(), draws, None)
    value = VPReconstructionConfig(path_drop=0.0).build(MODEL, None)(state)
    t = UniformTimesConfig().sample(draws, "time")
    x_t = model.noise_schedule.corrupt(images, t, draws.normal("pixel noise", 3, 16, 16))
    x0 = model.predict(x_t, t, posterior.mode())
    expected = (sid2_weight(model.noise_schedule, t) * (x0 - images).square().mean(dim=(1, 2, 3))).mean()
    torch.testing.assert_close(value, expected)


def test_an_alignment_target_on_another_grid_is_refused() -> None:
    model = MODEL.build()
    images = torch.zeros(1, 3, 16, 16)
    posterior = model.posterior(images)
    features = TeacherOutput(torch.zeros(1, 1, 36), (1, 1))
    state = StepState(model, images, posterior, posterior.mode(), Draws(0, 0, first=0, batch=1), features)
    with pytest.raises(ValueError) as caught:
        AlignmentConfig(head=HEAD).build(MODEL, HOGConfig())(state)
    assert str(caught.value) == (
        "objective/alignment: the teacher's grid is (1, 1), the latent's (2, 2); "
        "choose a teacher whose patch equals the model's stride, or resample with the grid rule 'grid/resample'"
    )


def test_alignment_without_a_teacher_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        AlignmentConfig().build(MODEL, None)
    assert str(caught.value) == "objective: 'objective/alignment' needs a teacher, and the recipe has none"


def test_regression_to_a_teacher_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        LatentRegressionConfig().build(MODEL, HOGConfig())
    assert str(caught.value) == (
        "objective: 'objective/latent_regression' needs a teacher of 4 features, the model's latent channels, got 36"
    )


# --- records and runs ---------------------------------------------------------------------------------------------


def test_records_drop_lines_past_a_checkpoint_and_half_a_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    Records(tmp_path, step=2).metrics(3, "main", {"loss": 0.5})
    assert (
        tmp_path / "metrics.jsonl"
    ).read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "stage": "main", "loss": 0.5}\n'


def test_tensorboard_mirrors_the_metrics(pictures: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(recipe_of(pictures, STAGE), tmp_path, tensorboard=True)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = [event.value for event in board.Scalars("loss")]
    assert shown == pytest.approx([line["loss"] for line in metrics(tmp_path)])


def test_a_watcher_hears_every_step_and_of_skipped_files(pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in pictures.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    heard: list[object] = []

    class Listener(Watcher):
        def step(self, total: int, values: object) -> None:
            heard.append(total)

        def say(self, text: str) -> None:
            heard.append(text)

    data = FolderDataConfig(path=str(folder), on_error="skip")
    broken = data.training().names[0]
    (folder / broken).write_bytes(b"no picture")
    train(recipe_of(pictures, STAGE, data=data), tmp_path / "run", watcher=Listener())
    assert [item for item in heard if isinstance(item, int)] == [1, 2, 3]
    said = [item for item in heard if isinstance(item, str)]
    assert len(said) == 1 and said[0].startswith(f"skipped {broken}: ")


def test_a_run_is_loaded_with_its_recipe_and_head(pictures: Path, tmp_path: Path) -> None:
    stage = replace(STAGE, objective=(VPReconstructionConfig(), AlignmentConfig(head=HEAD)))
    recipe = recipe_of(pictures, stage, teacher=HOGConfig(patch=8))
    train(recipe, tmp_path)
    run = load_run(tmp_path)
    assert run.recipe == recipe
    assert run.predict_tokens is not None
    assert run.predict_tokens(run.model.encode(torch.zeros(2, 3, 16, 24))).shape == (2, 6, 36)
    header = read_tensors(tmp_path / "model" / "model.safetensors")[1]
    assert header["latelier.recipe_id"] == recipe.id
    assert json.loads(header["latelier.recipe"])["name"] == "test"


def test_an_unfinished_run_says_how_to_go_on(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load_run(tmp_path)
    assert str(caught.value) == f"{tmp_path}: holds no run; a run folder has recipe.json"
    train(recipe_of(pictures, STAGE), tmp_path)
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "config.json").unlink()
    (tmp_path / "model").rmdir()
    with pytest.raises(FileNotFoundError) as caught:
        load_run(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: has not finished; go on with latelier train {tmp_path / 'recipe.json'} --resume --out {tmp_path}"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "config.steps: must be at least 1, got 0"),
        ({"ema": 1.5}, "config.ema: must be in [0, 1], got 1.5"),
        ({"objective": ()}, "config.objective: is empty; a stage needs a term to learn from"),
        (
            {"objective": (LatentScaleConfig(), LatentScaleConfig(weight=1.0))},
            "config.objective: has 'objective/latent_scale' twice; give each term once",
        ),
    ],
)
def test_a_stage_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PartError) as caught:
        replace(STAGE, **change)
    assert str(caught.value) == message


def test_a_recipe_refuses_sizes_that_the_stride_does_not_divide(pictures: Path) -> None:
    with pytest.raises(PartError) as caught:
        recipe_of(pictures, replace(STAGE, resolution=20))
    assert str(caught.value) == "config.stages.0.resolution: must be divisible by the model's stride 8, got 20"
    with pytest.raises(PartError) as caught:
        recipe_of(pictures, STAGE, STAGE)
    assert str(caught.value) == "config.stages: have the names ['main', 'main']; each needs its own"


def test_latents_of_a_teacher_need_one_that_fits(pictures: Path) -> None:
    with pytest.raises(PartError) as caught:
        recipe_of(pictures, replace(STAGE, latents="teacher"))
    assert str(caught.value) == (
        "config.stages.0.latents: 'teacher' needs a teacher of 4 features, the model's latent channels, got none"
    )


def test_pure_noise_share_of_one_trains_the_one_step_decoder_only() -> None:
    t = WithPureNoiseConfig(share=1.0).sample(Draws(0, 0, first=0, batch=64), "time")
    assert (t == 1).all()
