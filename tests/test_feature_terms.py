"""Terms that hold latents to a teacher: their parts put together, trained, loaded and refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from latelier.blocks import (
    ChannelZScoreConfig,
    ConvProjectorConfig,
    Draws,
    HOGConfig,
    LinearProjectorConfig,
    MLPProjectorConfig,
    ModeReadingConfig,
    NoisedReadingConfig,
    NoProjectorConfig,
    ObjectiveConfig,
    PartError,
    ReverseProjectorConfig,
    SampleReadingConfig,
    SkipDecoderConfig,
    SpatialZScoreConfig,
    StackEncoderConfig,
    StepState,
    decode,
    encode,
    gram_error,
    marginal_cosine,
    marginal_distances,
    override,
    similarity_distance,
)
from latelier.families import DiffAEConfig, read_tensors
from latelier.training import (
    AdamWConfig,
    ClassCosineConfig,
    FeatureMSEConfig,
    FeatureObjectiveConfig,
    FolderDataConfig,
    GramConfig,
    Objective,
    PatchCosineConfig,
    Recipe,
    SelfSimilarityConfig,
    StageConfig,
    VFConfig,
    VPReconstructionConfig,
    load_run,
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
TERMS: tuple[Any, ...] = (
    PatchCosineConfig(),
    FeatureMSEConfig(),
    ClassCosineConfig(projector=MLPProjectorConfig(hidden=8)),
    VFConfig(),
    GramConfig(),
    SelfSimilarityConfig(),
)
every_term = pytest.mark.parametrize("term", TERMS, ids=lambda term: term.kind)
every_projected_term = pytest.mark.parametrize("term", TERMS[:4], ids=lambda term: term.kind)


def state_of(batch: int = 3) -> StepState:
    torch.manual_seed(1)
    model = MODEL.build()
    model.fit_latent_norm(torch.tensor([[0.3] * 4, [0.8] * 4]), momentum=1.0)
    images = torch.rand(batch, 3, 16, 24) * 2 - 1
    posterior = model.posterior(images)
    latent = posterior.at(torch.randn_like(posterior.mean))
    draws = Draws(0, 0, first=0, batch=batch)
    return StepState(model, images, posterior, latent, draws, TEACHER.build()((images + 1) / 2))


# --- what each term computes --------------------------------------------------------------------------------------


def test_patch_cosine_compares_projected_latents_with_standardised_tokens() -> None:
    state = state_of()
    config = PatchCosineConfig(projector=ConvProjectorConfig(), standardise=SpatialZScoreConfig())
    term = config.build(MODEL, TEACHER)
    assert state.features is not None
    z = state.model.whiten(state.latent)
    predicted = term.get_submodule("projector.layers")(z).flatten(2).transpose(1, 2)
    x = state.features.patches
    target = (x - x.mean(dim=1, keepdim=True)) / (x.std(dim=1, keepdim=True, correction=0) + 1e-6)
    torch.testing.assert_close(term(state), -F.cosine_similarity(predicted, target, dim=-1).mean())


def test_noised_latents_go_into_the_projector_where_the_reading_says_so() -> None:
    state, reading = state_of(), NoisedReadingConfig()
    term = PatchCosineConfig(reading=reading).build(MODEL, TEACHER)
    assert state.features is not None
    predicted = term.get_submodule("projector")(reading.read(state, "patch_cosine"))
    expected = -F.cosine_similarity(predicted, state.features.patches, dim=-1).mean()
    torch.testing.assert_close(term(state), expected)
    assert torch.equal(term(state), term(state))  # noise is addressed


def test_class_cosine_compares_the_mean_prediction_with_the_class_token() -> None:
    state = state_of()
    term = ClassCosineConfig(reading=ModeReadingConfig()).build(MODEL, TEACHER)
    assert state.features is not None and state.features.cls is not None and state.posterior is not None
    votes = term.get_submodule("projector")(state.model.whiten(state.posterior.mode()))
    expected = -F.cosine_similarity(votes.mean(dim=1), state.features.cls, dim=-1).mean()
    torch.testing.assert_close(term(state), expected)


def test_feature_mse_is_the_mean_squared_difference() -> None:
    state = state_of()
    term = FeatureMSEConfig().build(MODEL, TEACHER)
    assert state.features is not None
    predicted = term.get_submodule("projector")(state.model.whiten(state.latent))
    torch.testing.assert_close(term(state), (predicted - state.features.patches).square().mean())


def test_vf_is_both_marginal_losses_of_the_projected_raw_sample() -> None:
    state = state_of()
    term = VFConfig().build(MODEL, TEACHER)
    assert state.features is not None
    weight = term.get_parameter("projector.layers.weight")
    assert weight.shape == (36, 4, 1, 1) and len(list(term.parameters())) == 1  # W has no bias
    wz = torch.einsum("bzhw,fz->bhwf", state.latent, weight[:, :, 0, 0]).flatten(1, 2)
    f = state.features.patches
    expected = marginal_cosine(wz, f, margin=0.5) + marginal_distances(wz, f, margin=0.25)
    torch.testing.assert_close(term(state), expected)
    wide = VFConfig(cosine_margin=1.99, distance_margin=1.99).build(MODEL, TEACHER)
    assert wide(state).item() == 0


def test_vf_in_reverse_compares_in_the_latents_own_space() -> None:
    state = state_of()
    term = VFConfig(projector=ReverseProjectorConfig()).build(MODEL, TEACHER)
    assert state.features is not None
    assert term.get_parameter("projector.layers.weight").shape == (4, 36)
    z = state.latent.flatten(2).transpose(1, 2)
    f = term.get_submodule("projector.layers")(state.features.patches)
    torch.testing.assert_close(term(state), marginal_cosine(z, f, margin=0.5) + marginal_distances(z, f, margin=0.25))


@pytest.mark.parametrize(
    ("config", "loss"), [(GramConfig(), gram_error), (SelfSimilarityConfig(), similarity_distance)]
)
def test_relations_are_those_of_the_latents_themselves(config: Any, loss: Callable[..., torch.Tensor]) -> None:
    state = state_of()
    term = config.build(MODEL, TEACHER)
    assert state.features is not None
    assert not list(term.parameters())
    z = state.model.whiten(state.latent).flatten(2).transpose(1, 2)
    torch.testing.assert_close(term(state), loss(z, state.features.patches))


@every_term
def test_a_term_gives_finite_gradients_to_the_encoder_and_its_projector_under_autocast(term: Any) -> None:
    for low in (False, True):
        state = state_of()
        built = term.build(MODEL, TEACHER)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            value = built(state)
        assert value.dtype == torch.float32 and value.shape == ()
        value.backward()
        parameters = [state.model.get_parameter("encoder.to_bottleneck.weight"), *built.parameters()]
        for parameter in parameters:
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any()


@every_term
def test_flat_pictures_whose_tokens_are_zeros_do_no_harm(term: Any) -> None:
    state = state_of()
    images = torch.zeros_like(state.images)
    features = TEACHER.build()((images + 1) / 2)
    assert not features.patches.any()
    value = term.build(MODEL, TEACHER)(replace(state, images=images, features=features))
    value.backward()
    gradient = state.model.get_parameter("encoder.to_bottleneck.weight").grad
    assert value.isfinite() and gradient is not None and gradient.isfinite().all()


def test_published_numbers_are_the_defaults() -> None:
    vf = VFConfig()
    assert (vf.weight, vf.cosine_margin, vf.distance_margin) == (0.1, 0.5, 0.25)
    assert vf.projector == LinearProjectorConfig(bias=False) and vf.reading == SampleReadingConfig(whitened=False)
    assert vf.adaptive is not None
    assert (vf.adaptive.anchor, vf.adaptive.eps, vf.adaptive.clamp) == ("encoder.to_bottleneck.weight", 1e-4, 1e8)
    assert all(term.adaptive is None for term in TERMS if term is not TERMS[3])
    for term in TERMS:
        assert decode(encode(term), ObjectiveConfig) == term


# --- what is refused ----------------------------------------------------------------------------------------------


@every_term
def test_a_term_without_a_teacher_is_refused(term: Any) -> None:
    with pytest.raises(ValueError) as caught:
        term.build(MODEL, None)
    assert str(caught.value) == f"objective: {term.kind!r} needs a teacher, and the recipe has none"


@every_projected_term
def test_tokens_of_another_width_cannot_be_compared_one_by_one(term: Any) -> None:
    with pytest.raises(ValueError) as caught:
        replace(term, projector=NoProjectorConfig()).build(MODEL, TEACHER)
    assert str(caught.value) == (
        f"objective: {term.kind!r} compares token by token, and 'projector/none' gives 4 features where the teacher "
        "has 36; take 'projector/linear', or a loss of relations such as 'objective/gram'"
    )


def test_a_teacher_without_a_class_token_is_refused() -> None:
    state = state_of()
    assert state.features is not None
    with pytest.raises(ValueError) as caught:
        ClassCosineConfig().build(MODEL, TEACHER)(replace(state, features=replace(state.features, cls=None)))
    assert str(caught.value) == (
        "objective/class_cosine: the teacher gives no class token; choose one that does, or leave the term out"
    )


def test_margins_beyond_what_cosines_differ_by_are_refused() -> None:
    cases: list[dict[str, Any]] = [{"cosine_margin": -0.1}, {"distance_margin": 2.0}]
    for change in cases:
        (name, value), *_ = change.items()
        with pytest.raises(PartError) as caught:
            VFConfig(**change)
        assert str(caught.value) == f"config.{name}: must be in [0, 2), where cosines differ, got {value}"


# --- runs ---------------------------------------------------------------------------------------------------------


def recipe_of(pictures: Path, *terms: ObjectiveConfig, **changes: Any) -> Recipe:
    stage = StageConfig(
        steps=2,
        batch=4,
        resolution=16,
        objective=(VPReconstructionConfig(), *terms),
        optimiser=AdamWConfig(rate=1e-3),
        recalibrate=1,
        log_every=1,
        validate_images=2,
    )
    data = FolderDataConfig(path=str(pictures))
    return Recipe(name="small", model=MODEL, data=data, stages=(replace(stage, **changes),), teacher=TEACHER)


@every_term
def test_every_term_trains(term: Any, pictures: Path, tmp_path: Path) -> None:
    train(recipe_of(pictures, term), tmp_path)
    lines = read_records(tmp_path / "metrics.jsonl")
    name = term.kind.partition("/")[2]
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        weight = line[f"{name}_weight"] if term.adaptive is not None else term.weight
        assert (f"{name}_weight" in line) == (term.adaptive is not None)
        assert line["loss"] == pytest.approx(line["vp_reconstruction"] + weight * line[name], rel=1e-5)


def test_all_terms_train_together_and_their_projectors_learn(pictures: Path, tmp_path: Path) -> None:
    train(recipe_of(pictures, *TERMS, accumulate=2), tmp_path / "run")
    train(recipe_of(pictures, *TERMS, accumulate=2, steps=1), tmp_path / "shorter")
    after, before = (read_tensors(tmp_path / run / "objective.safetensors")[0] for run in ("run", "shorter"))
    assert after.keys() == before.keys()
    assert "vf.projector.layers.weight" in after and "class_cosine.projector.layers.0.bias" in after
    for name, tensor in after.items():
        assert not torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("term", [PatchCosineConfig(), VFConfig(), FeatureMSEConfig()], ids=lambda term: term.kind)
def test_a_run_predicts_tokens_with_the_projector_in_the_space_that_it_learned(
    term: FeatureObjectiveConfig, pictures: Path, tmp_path: Path
) -> None:
    train(recipe_of(pictures, term), tmp_path)
    run = load_run(tmp_path)
    latents = run.model.encode(torch.rand(2, 3, 16, 24) * 2 - 1)
    assert run.predict_tokens is not None
    tensors, name = read_tensors(tmp_path / "objective.safetensors")[0], term.kind.partition("/")[2]
    z = run.model.dewhiten(latents) if isinstance(term, VFConfig) else latents
    weight, bias = (tensors.get(f"{name}.projector.layers.{key}") for key in ("weight", "bias"))
    assert weight is not None
    expected = F.conv2d(z, weight, bias).flatten(2).transpose(1, 2)
    torch.testing.assert_close(run.predict_tokens(latents), expected)


def test_statistics_of_a_standardisation_come_back_with_the_run(pictures: Path, tmp_path: Path) -> None:
    standardise = ChannelZScoreConfig(mean=(0.1,) * 36, variance=(0.04,) * 36)
    train(recipe_of(pictures, FeatureMSEConfig(standardise=standardise)), tmp_path)
    run = load_run(tmp_path)
    assert run.standardise == standardise
    assert "feature_mse.standardise.mean" in read_tensors(tmp_path / "objective.safetensors")[0]


def test_a_run_whose_terms_predict_nothing_has_no_prediction(pictures: Path, tmp_path: Path) -> None:
    train(recipe_of(pictures, GramConfig(), VFConfig(projector=ReverseProjectorConfig())), tmp_path)
    assert load_run(tmp_path).predict_tokens is None


def test_a_term_of_weight_zero_is_not_computed() -> None:
    state = state_of()
    off = VFConfig(weight=0.0)
    objective = Objective(
        state.model, (VPReconstructionConfig(), off), config=MODEL, teacher=TEACHER, latents="encoder"
    )
    values, _ = objective(state.images, state.features, state.draws)
    assert values.shape == (1,) and not objective.adaptive and list(objective.terms) == ["vp_reconstruction"]


def test_a_better_fit_of_the_teacher_lowers_every_term(pictures: Path) -> None:
    """Descent on the latents alone: each term can be brought down, and no further than its floor."""
    for term in TERMS:
        state = state_of()
        built = term.build(MODEL, TEACHER)
        latent = state.latent.detach().clone().requires_grad_()
        optimiser = torch.optim.Adam([latent, *built.parameters()], lr=0.05)
        values = []
        for _ in range(40):
            value = built(replace(state, latent=latent))
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            values.append(value.item())
        floor = -1.0 if term.kind.endswith("cosine") else 0.0
        assert floor <= values[-1] + 1e-6 and values[-1] - floor < 0.9 * (values[0] - floor), term.kind


def test_terms_are_changed_from_the_command_line_by_name(pictures: Path) -> None:
    recipe = recipe_of(pictures, VFConfig(), PatchCosineConfig())
    changed = override(
        recipe,
        [
            "stages.main.objective.vf.adaptive=null",
            "stages.main.objective.patch_cosine.projector=mlp",
            "stages.main.objective.patch_cosine.standardise=spatial",
            "stages.main.objective.patch_cosine.grid=resample",
        ],
    )
    vf, patches = changed.stages[0].objective[1:]
    assert vf.adaptive is None
    assert isinstance(patches, PatchCosineConfig)
    assert patches.projector == MLPProjectorConfig() and patches.standardise == SpatialZScoreConfig()
    assert patches.grid.kind == "grid/resample"
