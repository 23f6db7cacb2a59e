"""Tokens on grids of different size: refused, or resampled by the rule that a term names."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latelier.blocks import (
    DINOTokenHeadConfig,
    DiTBlockConfig,
    GridConfig,
    HOGConfig,
    NoisyLatentHeadConfig,
    ObjectiveConfig,
    PartError,
    ResampleGridConfig,
    SkipDecoderConfig,
    SpatialZScoreConfig,
    StackEncoderConfig,
    StrictGridConfig,
    TeacherOutput,
)
from latelier.evaluation import ArchetypePSNRConfig, evaluate, results_table
from latelier.families import DiffAEConfig, DinacAEConfig
from latelier.training import (
    AdamWConfig,
    AlignmentConfig,
    FeatureMSEConfig,
    FolderDataConfig,
    GramConfig,
    PatchAlignmentConfig,
    PatchCosineConfig,
    Recipe,
    SelfSimilarityConfig,
    StageConfig,
    VFConfig,
    VPReconstructionConfig,
    load_run,
    train,
)

MODEL = DiffAEConfig(
    patch=8,
    width=16,
    latent=4,
    encoder=StackEncoderConfig(depth=1),
    decoder=SkipDecoderConfig(start=1, middle=1, end=1, rank=4),
)
DINAC = DinacAEConfig(
    patch=8,
    width=16,
    latent=4,
    encoder=MODEL.encoder,
    decoder=MODEL.decoder,
    token_head=DINOTokenHeadConfig(features=36, head_width=12),
)
HEAD = NoisyLatentHeadConfig(width=16, block=DiTBlockConfig(head_width=8))


def grid_of(rows: int, columns: int, *, width: int = 2, batch: int = 2) -> TeacherOutput:
    torch.manual_seed(rows * columns)
    return TeacherOutput(torch.randn(batch, rows * columns, width), (rows, columns))


def as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, grid)


# --- the rules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [StrictGridConfig(), ResampleGridConfig()], ids=lambda rule: rule.kind)
def test_equal_grids_are_left_as_they_are(rule: GridConfig) -> None:
    latents, teacher = grid_of(2, 3), grid_of(2, 3, width=5)
    ours, theirs = rule.match(latents, teacher, where="here")
    assert ours is latents.patches and theirs is teacher.patches


def test_the_strict_rule_refuses_and_says_what_would_do() -> None:
    with pytest.raises(ValueError) as caught:
        StrictGridConfig().match(grid_of(2, 3), grid_of(3, 2), where="objective/vf")
    assert str(caught.value) == (
        "objective/vf: the teacher's grid is (3, 2), the latent's (2, 3); choose a teacher whose patch equals the "
        "model's stride, or resample with the grid rule 'grid/resample'"
    )


@pytest.mark.parametrize("resampled", ["teacher", "prediction"])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest", "area"])
def test_one_side_goes_to_the_grid_of_the_other_which_is_not_touched(mode: Any, resampled: Any) -> None:
    latents, teacher = grid_of(4, 6), grid_of(3, 5, width=7)
    rule = ResampleGridConfig(mode=mode, resampled=resampled)
    ours, theirs = rule.match(latents, teacher, where="here")
    if resampled == "teacher":
        assert ours is latents.patches and theirs.shape == (2, 24, 7)
    else:
        assert theirs is teacher.patches and ours.shape == (2, 15, 2)


def test_area_averages_and_nearest_takes_the_token_at_the_centre() -> None:
    teacher = grid_of(6, 9)
    maps = as_map(teacher.patches, (6, 9))
    blocks = maps.unfold(2, 3, 3).unfold(3, 3, 3)
    cases: list[tuple[Any, Tensor]] = [("area", blocks.mean(dim=(-2, -1))), ("nearest", blocks[..., 1, 1])]
    for mode, expected in cases:
        found = ResampleGridConfig(mode=mode).resample(teacher.patches, (6, 9), (2, 3))
        torch.testing.assert_close(as_map(found, (2, 3)), expected)


def test_bilinear_is_linear_interpolation_between_centres() -> None:
    ramp = torch.arange(4.0).reshape(1, 4, 1)
    found = ResampleGridConfig().resample(ramp, (1, 4), (1, 8)).flatten().tolist()
    assert found == [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_antialias_widens_the_kernel_where_a_grid_shrinks(mode: Any) -> None:
    stripes = torch.tensor([0.0, 1.0] * 8).reshape(1, 16, 1)
    soft = ResampleGridConfig(mode=mode, antialias=True).resample(stripes, (1, 16), (1, 5)).flatten()
    hard = ResampleGridConfig(mode=mode).resample(stripes, (1, 16), (1, 5)).flatten()
    assert (soft - 0.5).abs().max() < 0.2 < (hard - 0.5).abs().max()


def test_tokens_that_are_all_equal_stay_so_under_every_mode() -> None:
    cases: list[tuple[Any, bool]] = [("bilinear", True), ("bicubic", True), ("bicubic", False), ("nearest", False)]
    for mode, antialias in cases:
        rule = ResampleGridConfig(mode=mode, antialias=antialias)
        torch.testing.assert_close(rule.resample(torch.ones(1, 6, 3), (2, 3), (5, 4)), torch.ones(1, 20, 3))


def test_half_precision_stays_half_precision() -> None:
    found = ResampleGridConfig().resample(torch.randn(1, 6, 3).bfloat16(), (2, 3), (4, 4))
    assert found.dtype == torch.bfloat16


@pytest.mark.parametrize("mode", ["nearest", "area"])
def test_antialias_is_refused_where_it_would_do_nothing(mode: Any) -> None:
    with pytest.raises(PartError) as caught:
        ResampleGridConfig(mode=mode, antialias=True)
    assert str(caught.value) == (
        f"config.antialias: {mode!r} has no kernel to widen; set it to false, or take 'bilinear' or 'bicubic'"
    )


# --- in training and evaluation -----------------------------------------------------------------------------------


def recipe_of(pictures: Path, *terms: ObjectiveConfig, model: DiffAEConfig = MODEL, patch: int = 4) -> Recipe:
    stage = StageConfig(
        steps=2,
        batch=4,
        resolution=32,
        objective=(VPReconstructionConfig(), *terms),
        optimiser=AdamWConfig(rate=1e-3),
        recalibrate=1,
        log_every=1,
        validate_images=2,
    )
    data = FolderDataConfig(path=str(pictures))
    return Recipe(name="small", model=model, data=data, stages=(stage,), teacher=HOGConfig(patch=patch))


TERMS: list[Any] = [
    AlignmentConfig(head=HEAD),
    PatchCosineConfig(),
    FeatureMSEConfig(),
    VFConfig(),
    GramConfig(),
    SelfSimilarityConfig(),
    PatchAlignmentConfig(),
]


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.kind)
def test_a_term_refuses_another_grid_and_trains_under_a_rule(term: Any, pictures: Path, tmp_path: Path) -> None:
    model = DINAC if isinstance(term, PatchAlignmentConfig) else MODEL
    with pytest.raises(ValueError) as caught:
        train(recipe_of(pictures, term, model=model), tmp_path / "strict")
    assert str(caught.value).startswith(f"{term.kind}: the teacher's grid is (8, 8), the latent's (4, 4); ")
    resampling = replace(term, grid=ResampleGridConfig(mode="bicubic", resampled="prediction"))
    train(recipe_of(pictures, resampling, model=model), tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.grid == resampling.grid and run.standardise is None


@pytest.mark.parametrize("resampled", ["teacher", "prediction"])
def test_a_run_that_resampled_is_measured_by_its_rule(resampled: Any, pictures: Path, tmp_path: Path) -> None:
    rule = ResampleGridConfig(mode="area", resampled=resampled)
    term = PatchCosineConfig(grid=rule, standardise=SpatialZScoreConfig())
    train(recipe_of(pictures, term), tmp_path / "run")
    run = load_run(tmp_path / "run")
    data = run.recipe.data
    assert run.predict_tokens is not None
    settings: dict[str, Any] = {"teacher": run.recipe.teacher, "predict_tokens": run.predict_tokens}
    settings |= {"training": data.training(), "fit_images": 4}
    with pytest.raises(ValueError, match=r"^alignment with 'teacher/hog': the teacher's grid is "):
        evaluate(run.model, data.held_out(), **settings)
    result = evaluate(run.model, data.held_out(), grid=run.grid, standardise=run.standardise, **settings)
    alignment = json.loads(json.dumps(result))["alignment"]
    assert alignment["grid"] == {"kind": "grid/resample", "mode": "area", "antialias": False, "resampled": resampled}
    assert alignment["standardise"] == {"kind": "standardise/spatial", "gamma": 1.0, "eps": 1e-6}
    assert alignment["resampled"] is True
    assert abs(alignment["mean_token_cosine"]) < 0.05 < alignment["ridge_cosine"]  # no shared direction is left
    assert "Cosine, alignment head (resampled tokens, standardised tokens)" in results_table([result]).columns[0].cells


def test_head_cosine_is_that_of_the_resampled_prediction_on_the_teachers_grid(pictures: Path, tmp_path: Path) -> None:
    rule = ResampleGridConfig(resampled="prediction")
    train(recipe_of(pictures, PatchCosineConfig(grid=rule)), tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.recipe.teacher is not None and run.predict_tokens is not None
    teacher, source, found = run.recipe.teacher.build(), run.recipe.data.held_out(), []
    settings: dict[str, Any] = {"teacher": run.recipe.teacher, "predict_tokens": run.predict_tokens}
    result = evaluate(run.model, source, grid=run.grid, **settings)
    for index in range(len(source)):
        image = ArchetypePSNRConfig().prepare(source.read(index), stride=8)
        latent, tokens = run.model.encode(image), teacher((image + 1) / 2)
        maps = as_map(run.predict_tokens(latent), (latent.shape[2], latent.shape[3]))
        there = torch.nn.functional.interpolate(maps, tokens.grid, mode="bilinear", align_corners=False)
        cosines = torch.nn.functional.cosine_similarity(there.flatten(2).transpose(1, 2), tokens.patches, dim=-1)
        found.append(cosines[tokens.patches.abs().amax(dim=-1) > 0].mean().item())
    assert result["alignment"]["head_cosine"] == pytest.approx(sum(found) / len(found), abs=1e-5)


def test_a_strict_run_is_measured_as_before_and_says_so(pictures: Path, tmp_path: Path) -> None:
    train(recipe_of(pictures, AlignmentConfig(head=HEAD), patch=8), tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.grid == StrictGridConfig() and run.standardise is None
    result = evaluate(
        run.model, run.recipe.data.held_out(), teacher=run.recipe.teacher, predict_tokens=run.predict_tokens
    )
    assert result["alignment"]["grid"] == {"kind": "grid/strict"}
    assert result["alignment"]["resampled"] is False and "standardise" not in result["alignment"]
