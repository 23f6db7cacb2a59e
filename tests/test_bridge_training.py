"""Bridges learn from pairs: recorded, resumed, shared among processes, frozen in parts, refused where they must be."""

import json
import os
import shutil
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from children import in_a_child, killed
from torch import Tensor

import latelier
from latelier.blocks import (
    DataConfig,
    Draws,
    GradientRatioConfig,
    HOGConfig,
    LatentSpaceConfig,
    LatentSpec,
    LinearNoiseConfig,
    PartError,
    RandomTokenLogSNRConfig,
    SkipDecoderConfig,
    StackEncoderConfig,
    StridedConvStemConfig,
    TeacherOutput,
    TeacherSpec,
    TokensHeadConfig,
    TransformerBodyConfig,
    bridge_loss,
    encode,
    part,
)
from latelier.families import (
    CheckpointError,
    DiffAEConfig,
    LatentBridge,
    LatentBridgeConfig,
    ModelSpaceConfig,
    PairFolder,
    read_tensors,
    write_tensors,
)
from latelier.training import (
    AdamWConfig,
    BridgeClassConfig,
    BridgeCosineConfig,
    BridgeMSEStandardisedConfig,
    BridgePartsConfig,
    BridgeRelationalConfig,
    Checkpoints,
    FolderDataConfig,
    GradientShares,
    LatentScaleConfig,
    NpyPairsConfig,
    Objective,
    PairLoader,
    PairsConfig,
    Precision,
    Recipe,
    StageConfig,
    TrainingError,
    bridge_objective,
    load_run,
    pack,
    read_records,
    train,
)

SIDE, GRID, FEATURES = 32, 4, 9
TEACHER = HOGConfig(patch=8, cells=1)


@part("latent_space/planted")
class PlantedSpaceConfig(LatentSpaceConfig):
    """A space that nobody encodes into."""

    name: str = "one"
    deep: int = 4
    unread: bool = False
    """Whether its statistics stand in weights."""

    @property
    def spec(self) -> LatentSpec:
        normalisation = "unknown" if self.unread else "none"
        return LatentSpec(source=f"planted/{self.name}", channels=self.deep, stride=4, normalisation=normalisation)

    def build(self) -> Any:
        raise AssertionError("no autoencoder is needed to train on pairs")


SPACE = PlantedSpaceConfig()


class PlantedPairs:
    """Pairs of which the features are a fixed linear map of squares of latents, and a little noise."""

    def __init__(self, config: "PlantedConfig", rows: range) -> None:
        self.config, self.rows = config, rows

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return f"{self.rows[index]}.png:central"

    @property
    def latent_spec(self) -> LatentSpec:
        return replace(self.config.space.spec, normalisation=self.config.statistics)

    @property
    def teacher_spec(self) -> TeacherSpec | None:
        return self.config.teacher.build().spec

    @property
    def resolution(self) -> int:
        return SIDE

    @property
    def grid(self) -> tuple[int, int]:
        return GRID, GRID

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.config.space.channels, 2 * GRID, 2 * GRID

    @property
    def features(self) -> int:
        return FEATURES

    @property
    def has_cls(self) -> bool:
        return self.config.cls

    @cached_property
    def _map(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(4 * self.config.space.channels, FEATURES, generator=generator) / 4

    def read(self, indices: Sequence[int]) -> tuple[Tensor, TeacherOutput]:
        rows = [self.rows[index] for index in indices]
        made = [torch.randn(self.latent_shape, generator=torch.Generator().manual_seed(row)) for row in rows]
        latents = torch.stack(made)
        squares = torch.nn.functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)
        patches = (squares @ self._map + 0.5) * self.config.scale
        if self.config.broken:
            patches[0, 0, 0] = torch.nan
        return latents, TeacherOutput(patches, self.grid, patches.mean(dim=1) if self.config.cls else None)

    def thumbnail(self, index: int) -> Tensor | None:
        return None


@part("data/planted_pairs")
class PlantedConfig(DataConfig):
    space: LatentSpaceConfig = PlantedSpaceConfig()
    teacher: HOGConfig = TEACHER
    statistics: str = "none"
    cls: bool = False
    scale: float = 1.0
    broken: bool = False

    def training(self) -> Any:
        return PlantedPairs(self, range(40))

    def held_out(self) -> Any:
        return PlantedPairs(self, range(40, 50))


MODEL = LatentBridgeConfig(
    space=PlantedSpaceConfig(),
    teacher=TEACHER,
    stem=StridedConvStemConfig(mid=8, depth=1),
    body=TransformerBodyConfig(width=16, depth=1, heads=2, dropout=0.1, table=GRID),
    image=SIDE,
)
STAGE = StageConfig(
    steps=8,
    batch=8,
    resolution=SIDE,
    latents="data",
    objective=bridge_objective(),
    optimiser=AdamWConfig(rate=3e-3),
    ema=0.9,
    precision="float32",
    checkpoint_every=2,
    validate_every=4,
    log_every=1,
)


def recipe_of(*stages: StageConfig, **changes: Any) -> Recipe:
    settings: dict[str, Any] = {"name": "bridge", "model": MODEL, "data": PlantedConfig(), "teacher": TEACHER}
    return Recipe(stages=stages or (STAGE,), **settings | changes)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return read_records(folder / "metrics.jsonl")


def assert_close(line: dict[str, Any], other: dict[str, Any], *, rel: float) -> None:
    assert line.keys() == other.keys()
    for name in line.keys() - {"stage"}:
        assert line[name] == pytest.approx(other[name], rel=rel, abs=1e-6), (line["step"], name)


def what_a_run_left(folder: Path) -> dict[str, object]:
    left: dict[str, object] = {"metrics": (folder / "metrics.jsonl").read_bytes()}
    for path in sorted(folder.rglob("*.safetensors")):
        tensors, header = read_tensors(path)
        left[str(path.relative_to(folder))] = {key: tensor.numpy().tobytes() for key, tensor in tensors.items()}, header
    return left


def weights(folder: Path) -> dict[str, Tensor]:
    return read_tensors(folder / "model" / "model.safetensors")[0]


def message(error: type[Exception], work: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        work()
    return str(caught.value)


# --- learning -----------------------------------------------------------------------------------------------------


def test_a_bridge_learns_what_its_teacher_says_of_latents(tmp_path: Path) -> None:
    folder = train(recipe_of(replace(STAGE, steps=300, log_every=20, validate_every=100)), tmp_path)
    lines = metrics(tmp_path)
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert lines[-1]["validation_loss"] < 0.6 * lines[4]["loss"]
    model = latelier.load(folder)
    assert isinstance(model, LatentBridge)
    latents, said = PlantedConfig().held_out().read(range(10))
    total, _ = bridge_loss(model(latents), said)
    assert total.item() == pytest.approx(lines[-1]["validation_loss"], rel=1e-4)


def test_each_line_has_the_terms_their_weighted_sum_and_shares_that_add_up(tmp_path: Path) -> None:
    train(recipe_of(), tmp_path)
    for line in metrics(tmp_path):
        terms = ("bridge_cosine", "bridge_mse_unit", "bridge_mse_raw")
        total = sum(weight * line[name] for name, weight in zip(terms, (1.0, 0.25, 0.05), strict=True))
        assert line["loss"] == pytest.approx(total, rel=1e-5)
        assert line["bridge_mse_unit"] == pytest.approx(2 * line["bridge_cosine"], rel=1e-5)
        assert sum(line[f"{name}_share"] for name in terms) == pytest.approx(1)
        assert line["bridge_mse_unit_share"] == pytest.approx(0.5 * line["bridge_cosine_share"], rel=1e-4)


def test_shares_are_norms_of_weighted_gradients_at_the_prediction_of_the_whole_batch() -> None:
    terms = (*bridge_objective("card"), BridgeRelationalConfig(weight=0.3), BridgeClassConfig(weight=2.0))
    model = replace(MODEL, head=TokensHeadConfig(head_width=8), body=replace(MODEL.body, dropout=0.0))
    torch.manual_seed(0)
    objective = Objective(model.build(), terms, config=model, teacher=TEACHER, latents="data")
    objective.recording = True
    latents, said = PlantedConfig(cls=True).training().read(range(8))
    draws = Draws(0, 0, first=0, batch=8)
    values, moments = objective(latents, said, draws)
    assert moments is None and said.cls is not None
    prediction = objective.prediction
    assert prediction is not None and prediction.cls is not None
    norms = []
    for term, value in zip(terms, values, strict=True):
        both = torch.autograd.grad(
            term.weight * value, (prediction.patches, prediction.cls), retain_graph=True, allow_unused=True
        )
        norms.append(torch.cat([g.flatten() for g in both if g is not None]).norm().item())
    shares = GradientShares()
    for part_of in (slice(0, 4), slice(4, 8)):
        some = TeacherOutput(said.patches[part_of], said.grid, said.cls[part_of])
        objective(latents[part_of], some, Draws(0, 0, first=0, batch=4))
        assert objective.prediction is not None
        shares.take(objective.latest, objective.prediction)
    found = shares.of(objective.weights, lambda squares: squares)
    assert list(found.values()) == pytest.approx([norm / sum(norms) for norm in norms], rel=1e-4)
    assert all(parameter.grad is None for parameter in objective.parameters())
    objective.recording = False
    objective(latents, said, draws)
    assert not objective.latest and objective.prediction is None


def test_how_often_is_recorded_changes_nothing_that_is_learned(tmp_path: Path) -> None:
    one, ten = (replace(STAGE, accumulate=2, log_every=every) for every in (1, 10))
    train(recipe_of(one), tmp_path / "one")
    train(recipe_of(ten), tmp_path / "ten")
    assert [line["step"] for line in metrics(tmp_path / "ten")] == [4, 8]
    assert [line["step"] for line in metrics(tmp_path / "one")] == list(range(1, 9))
    assert "bridge_cosine_share" not in metrics(tmp_path / "ten")[0]
    assert metrics(tmp_path / "ten")[-1] == metrics(tmp_path / "one")[-1]
    theirs = weights(tmp_path / "ten")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights(tmp_path / "one").items())


def test_parts_of_a_batch_and_workers_change_rounding_only_and_dropout_not_at_all(tmp_path: Path) -> None:
    train(recipe_of(), tmp_path / "whole")
    train(recipe_of(replace(STAGE, accumulate=4)), tmp_path / "parts")
    for line, other in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "parts"), strict=True):
        assert_close(line, other, rel=1e-4)


@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning", "ignore:This DataLoader will create:UserWarning"
)
def test_workers_read_the_same_pairs() -> None:
    source = PlantedConfig(cls=True).training()

    def batches(workers: int, rank: int, world: int) -> list[Any]:
        loader = PairLoader(source, batch=8, seed=3, workers=workers, rank=rank, world=world)
        with loader.iterate(2, 9) as loaded:
            return [
                (
                    b.names,
                    b.latents.tolist(),
                    b.features.patches.tolist(),
                    b.features.cls is not None and b.features.cls.tolist(),
                )
                for _, b in loaded
            ]

    alone = batches(0, 0, 1)
    assert batches(2, 0, 1) == alone
    halves = [batches(0, rank, 2) for rank in range(2)]
    assert [(a[0] + b[0], a[1] + b[1]) for a, b in zip(*halves, strict=True)] == [(one[0], one[1]) for one in alone]


def test_every_epoch_has_every_pair_once() -> None:
    loader = PairLoader(PlantedConfig().training(), batch=8, seed=0)
    with loader.iterate(0, 10) as loaded:
        names = [name for _, batch in loaded for name in batch.names]
    assert sorted(names[:40]) == sorted(names[40:]) and len(set(names[:40])) == 40 and names[:40] != names[40:]


def test_a_noised_bridge_is_told_how_noisy_its_latents_are() -> None:
    model = replace(MODEL, noise=LinearNoiseConfig(), body=replace(MODEL.body, dropout=0.0))
    objective = Objective(model.build(), bridge_objective(), config=model, teacher=TEACHER, latents="data")
    latents, said = PlantedConfig().training().read(range(4))
    draws = Draws(1, 2, first=0, batch=4)
    noised, tau = LinearNoiseConfig().apply(latents, draws)
    values, _ = objective(latents, said, draws)
    bridge: Any = objective.model
    _, expected = bridge_loss(bridge(noised, tau), said)
    assert values.tolist() == pytest.approx([value.item() for value in expected.values()])
    asked: list[Any] = []
    bridge.register_forward_hook(lambda module, given, out: asked.append(given))
    objective(latents, said, draws)
    assert len(asked) == 1


def test_standardised_errors_are_in_units_of_the_deviations_of_training_features(tmp_path: Path) -> None:
    stage = replace(STAGE, steps=2, objective=(BridgeMSEStandardisedConfig(weight=1.0, batches=5),))
    second = replace(stage, name="second")
    train(recipe_of(stage, second), tmp_path / "run")
    train(recipe_of(stage, data=PlantedConfig(scale=10.0)), tmp_path / "large")
    std = read_tensors(tmp_path / "run" / "objective.safetensors")[0]["bridge_mse_standardised.std"]
    _, said = PlantedConfig().training().read(range(40))  # five batches of eight are all of them
    torch.testing.assert_close(std, said.patches.std(dim=(0, 1), correction=0), rtol=1e-4, atol=1e-5)
    few = replace(stage, objective=(BridgeMSEStandardisedConfig(weight=1.0, batches=1),))
    train(recipe_of(few), tmp_path / "few")
    train(recipe_of(few, replace(few, name="second")), tmp_path / "twice")
    one, two = (read_tensors(tmp_path / run / "objective.safetensors")[0] for run in ("few", "twice"))
    assert torch.equal(*(found["bridge_mse_standardised.std"] for found in (one, two)))
    large = read_tensors(tmp_path / "large" / "objective.safetensors")[0]["bridge_mse_standardised.std"]
    torch.testing.assert_close(large, 10 * std, rtol=1e-4, atol=1e-4)


def test_a_weight_may_follow_gradients_at_the_head(tmp_path: Path) -> None:
    rule = GradientRatioConfig(anchor="head.proj.weight", reference=("bridge_cosine",))
    objective = (BridgeCosineConfig(), BridgeRelationalConfig(weight=0.5, adaptive=rule))
    train(recipe_of(replace(STAGE, objective=objective)), tmp_path / "one")
    train(recipe_of(replace(STAGE, objective=objective, accumulate=2)), tmp_path / "two")
    for line, other in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        total = line["bridge_cosine"] + line["bridge_relational_weight"] * line["bridge_relational"]
        assert line["loss"] == pytest.approx(total, rel=1e-5)
        assert line["bridge_relational_share"] + line["bridge_cosine_share"] == pytest.approx(1)
        assert_close(line, other, rel=1e-3)


def test_half_precision_trains_float32_weights(tmp_path: Path) -> None:
    folder = train(recipe_of(replace(STAGE, precision="bfloat16")), tmp_path)
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32}
    assert isinstance(latelier.load(folder), LatentBridge)
    shares = [v for name, v in metrics(tmp_path)[0].items() if name.endswith("_share")]
    assert sum(shares) == pytest.approx(1)


# --- resume and processes -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert not killed(in_a_child(lambda: train(resumable(), folder)))
    return what_a_run_left(folder)


def resumable() -> Recipe:
    """With dropout, noise, measured deviations, and a border between stages."""
    objective = (*bridge_objective(), BridgeMSEStandardisedConfig(batches=2))
    first = replace(STAGE, steps=4, objective=objective)
    second = replace(first, name="second", accumulate=2)
    return recipe_of(first, second, model=replace(MODEL, noise=LinearNoiseConfig()))


@pytest.mark.parametrize(
    ("call", "count"), [("fsync", 3), ("fsync", 6), ("replace", 4), ("replace", 7), ("link", 2), ("unlink", 3)]
)
def test_a_bridge_that_was_killed_while_it_wrote_loads_its_last_checkpoint_and_ends_with_the_same_bits(
    call: str, count: int, tmp_path: Path, never_killed: dict[str, object]
) -> None:
    def work() -> None:
        real, calls = getattr(os, call), 0

        def deadly(*args: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        setattr(os, call, deadly)
        train(resumable(), tmp_path / "run", resume=True)

    assert killed(in_a_child(work))
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", resumable())
    for path in checkpoints.all():
        assert checkpoints.read(path).group("model").keys() >= {"head.proj.weight"}
    assert not killed(in_a_child(lambda: train(resumable(), tmp_path / "run", resume=True)))
    assert what_a_run_left(tmp_path / "run") == never_killed


def one_of_two(rank: int, port: int, work: Callable[[], object]) -> int:
    """Fork the process ``rank`` of a group of two, in the place of torchrun, which takes longer to start."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads, which sleep here
        child = os.fork()
    if child:
        return child
    try:
        warnings.simplefilter("ignore")  # under the command line, too, warnings of torch end nothing
        jaxtyping.config.update("jaxtyping_disable", True)
        group = {"WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in group.items()}
        work()
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        os._exit(1)
    os._exit(0)


def test_two_processes_train_as_one_with_dropout_and_noise_and_report_the_same_shares(tmp_path: Path) -> None:
    first, second = resumable().stages
    alone = replace(resumable(), stages=(first, replace(second, accumulate=1)))
    train(alone, tmp_path / "alone")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [one_of_two(rank, port, lambda: train(resumable(), tmp_path / "both", device="cpu")) for rank in (0, 1)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    lines, others = metrics(tmp_path / "alone"), metrics(tmp_path / "both")
    assert len(lines) == 8
    for line, other in zip(lines, others, strict=True):
        assert_close(line, other, rel=1e-4)
    theirs = weights(tmp_path / "both")
    for name, tensor in weights(tmp_path / "alone").items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_term(tmp_path: Path) -> None:
    text = message(TrainingError, lambda: train(recipe_of(data=PlantedConfig(broken=True)), tmp_path))
    assert text == (
        "step 1: the loss of 'bridge_cosine' and 'bridge_mse_unit' and 'bridge_mse_raw' is not finite; there is no "
        "checkpoint yet. Lower the rate, clip harder, or train in float32"
    )


# --- what a run leaves --------------------------------------------------------------------------------------------


def test_a_trained_bridge_carries_the_specs_of_its_data(tmp_path: Path) -> None:
    data = PlantedConfig(space=replace(SPACE, unread=True), statistics="abc")
    model = replace(MODEL, space=data.space)
    train(recipe_of(data=data, model=model), tmp_path)
    run = load_run(tmp_path)
    assert run.predict_tokens is None
    assert run.teacher == TEACHER and run.teacher_spec == TEACHER.build().spec
    for bridge in (run.model, latelier.load(tmp_path / "model")):
        assert bridge.latent_spec == data.training().latent_spec
        assert bridge.latent_spec.normalisation == "abc"
        assert bridge.teacher_spec == TEACHER.build().spec
    shutil.rmtree(tmp_path / "model")
    other = replace(data, statistics="xyz")
    checkpoint = sorted((tmp_path / "checkpoints").glob("step-*"))[-1]
    pretend(tmp_path, recipe_of(data=data, model=model), recipe_of(data=other, model=model))
    assert message(CheckpointError, lambda: train(recipe_of(data=other, model=model), tmp_path, resume=True)) == (
        f"{checkpoint}: these latents are of another space (normalisation: 'xyz', not 'abc'); use the model that "
        "encoded them; the run goes on with the pairs that it began with"
    )


def pretend(folder: Path, ours: Recipe, theirs: Recipe) -> None:
    """Let the checkpoints of a run say that another recipe wrote them, as when files are exchanged under one path."""
    for path in (folder / "checkpoints").iterdir():
        tensors, header = read_tensors(path)
        assert header["latelier.recipe"] == json.dumps(encode(ours))
        write_tensors(path, tensors, header | {"latelier.recipe": json.dumps(encode(theirs))})


def test_a_new_stem_learns_while_body_and_head_keep_their_bits(tmp_path: Path) -> None:
    train(recipe_of(), tmp_path / "first")
    deep = PlantedSpaceConfig(name="two", deep=8)
    stage = replace(STAGE, frozen=("body.*", "head.*"))
    start = BridgePartsConfig(path=str(tmp_path / "first"))
    second = recipe_of(stage, data=PlantedConfig(space=deep), model=replace(MODEL, space=deep), start=start)
    train(second, tmp_path / "second")
    first, after = weights(tmp_path / "first"), weights(tmp_path / "second")
    kept = [name for name in after if name.startswith(("body.", "head."))]
    assert kept and all(torch.equal(after[name], first[name]) for name in kept)
    assert after["stem.convs.0.weight"].shape[1] == 8
    checkpoint = Checkpoints(tmp_path / "second" / "checkpoints", second).latest()
    assert checkpoint is not None
    for group in ("model", "average"):
        assert all(torch.equal(checkpoint.group(group)[name], first[name]) for name in kept)
    birth = Checkpoints(tmp_path / "second" / "checkpoints", second).all()[0]
    assert not torch.equal(read_tensors(birth)[0]["model/stem.convs.0.weight"], after["stem.convs.0.weight"])
    assert metrics(tmp_path / "second")[-1]["loss"] < metrics(tmp_path / "second")[0]["loss"]


def test_a_start_takes_a_model_folder_too_and_refuses_what_is_no_bridge(tmp_path: Path) -> None:
    folder = train(recipe_of(replace(STAGE, steps=2)), tmp_path / "first")
    still = replace(STAGE, steps=1, optimiser=AdamWConfig(rate=1e-30))
    train(recipe_of(still, start=BridgePartsConfig(path=str(folder), parts=("stem", "head"))), tmp_path / "second")
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    same = {name.partition(".")[0] for name in first if torch.equal(first[name], second[name]) and first[name].ndim > 1}
    assert same == {"stem", "head"}
    assert message(PartError, lambda: BridgePartsConfig(path="x", parts=())) == (
        "config.parts: names each of 'stem', 'body' and 'head' at most once, and one, got ()"
    )


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"latents": "encoder"},
            "config.objective: 'objective/bridge_cosine' is a term of bridges, which learn from pairs; set latents to "
            "'data', got 'encoder'",
        ),
        (
            {"objective": (LatentScaleConfig(),)},
            "config.objective: 'objective/latent_scale' needs images, and a stage whose latents are 'data' has pairs "
            "of latents and features alone; take terms of bridges, such as 'objective/bridge_cosine'",
        ),
        (
            {"corruption": RandomTokenLogSNRConfig()},
            "config.corruption: needs an encoder's posterior; pairs have none, but a bridge may have a noise",
        ),
    ],
)
def test_a_stage_that_makes_no_sense_is_refused(change: dict[str, Any], problem: str) -> None:
    assert message(PartError, lambda: replace(STAGE, **change)) == problem


def test_bridges_learn_from_pairs_and_nothing_else_does() -> None:
    images = replace(STAGE, latents="teacher", objective=(LatentScaleConfig(),))
    assert message(PartError, lambda: recipe_of(images)) == (
        "config.stages.0.latents: must be 'data' for 'family/latent_bridge', which learns from pairs, got 'teacher'"
    )
    assert message(PartError, lambda: recipe_of(model=DiffAEConfig(patch=8), teacher=None)) == (
        "config.stages.0.latents: 'data' needs a bridge, and 'family/semdisdiffae' learns from images; take "
        "'family/latent_bridge', or 'encoder'"
    )


def test_positions_and_queries_do_not_decay() -> None:
    model = replace(MODEL, head=TokensHeadConfig(head_width=8, registers=2)).build()
    plain = AdamWConfig(weight_decay=0.1).build(model.named_parameters()).param_groups[1]
    assert plain["weight_decay"] == 0 and {"body.positions", "head.queries"} <= set(plain["param_names"])
    assert all(name.endswith(("bias", "weight", "positions", "queries")) for name in plain["param_names"])


def test_a_stage_of_another_resolution_is_refused(tmp_path: Path) -> None:
    text = message(ValueError, lambda: train(recipe_of(replace(STAGE, resolution=64)), tmp_path))
    assert text == (
        "stage 'main': resolution: must be 32, that of the pairs, got 64; or pack anew with --resolution 64"
    )
    assert not (tmp_path / "metrics.jsonl").exists()


def test_pairs_for_a_stage_on_images_and_images_for_one_on_pairs_are_refused(pictures: Path, tmp_path: Path) -> None:
    text = message(ValueError, lambda: train(recipe_of(data=FolderDataConfig(path=str(pictures))), tmp_path / "a"))
    assert text == (
        "stage 'main': latents: 'data' needs pairs of latents and features, and 'data/folder' gives images; take "
        "'data/pairs', which `latelier pack` makes"
    )


def test_latents_of_another_space_are_refused(tmp_path: Path) -> None:
    data = PlantedConfig(space=PlantedSpaceConfig(name="two"))
    text = message(ValueError, lambda: train(recipe_of(data=data), tmp_path))
    assert text == (
        "LatentBridge: these latents are of another space (source: 'planted/two', not 'planted/one'); use the model "
        "that encoded them"
    )
    assert not (tmp_path / "metrics.jsonl").exists()


def test_features_of_another_teacher_are_refused(tmp_path: Path) -> None:
    other = replace(TEACHER, clip=0.3)
    text = message(ValueError, lambda: train(recipe_of(data=PlantedConfig(teacher=other)), tmp_path / "a"))
    assert text == (
        "data/planted_pairs: is of another teacher (model: 'hog(cells=1, orientations=9, clip=0.3)', not "
        "'hog(cells=1, orientations=9, clip=0.2)'); take the teacher that it was made with, or make it anew"
    )
    accepted = recipe_of(replace(STAGE, steps=1), data=PlantedConfig(teacher=other))
    train(accepted, tmp_path / "b", accept=("model",))
    assert message(PartError, lambda: recipe_of(teacher=other)) == (
        "config.teacher: must be the one whose features the bridge predicts (model.teacher.clip: 0.2, not 0.3)"
    )


def test_a_class_term_needs_class_tokens_on_both_sides(tmp_path: Path) -> None:
    stage = replace(STAGE, objective=(BridgeClassConfig(),))
    text = message(
        ValueError, lambda: train(recipe_of(stage, model=replace(MODEL, head=TokensHeadConfig(head_width=8))), tmp_path)
    )
    assert text == (
        "stage 'main': objective: 'objective/bridge_class' needs class tokens, and the pairs have none; pack them with "
        "a teacher that gives some, or leave the term out"
    )
    text = message(ValueError, lambda: train(recipe_of(stage, data=PlantedConfig(cls=True)), tmp_path))
    assert text == (
        "objective: 'objective/bridge_class' needs a head that predicts a class token, and 'feature_head/linear' "
        "predicts none; take 'feature_head/tokens', or leave the term out"
    )


def test_float16_is_refused_on_the_cpu(tmp_path: Path) -> None:
    text = message(ValueError, lambda: train(recipe_of(replace(STAGE, precision="float16")), tmp_path, device="cpu"))
    assert text == (
        "stage 'main': precision: 'float16' trains on CUDA alone, and this run is on the CPU; take 'auto', which is "
        "bfloat16 on CUDA and float32 elsewhere"
    )


# --- float16, with its check for CUDA out of the way ---------------------------------------------------------------


@pytest.fixture
def float16_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Precision, "check", staticmethod(lambda name, device, where: None))


@pytest.mark.usefixtures("float16_anywhere")
def test_float16_learns_what_float32_does_and_is_resumed_with_its_scale(tmp_path: Path) -> None:
    stage = replace(STAGE, steps=12, precision="float16", checkpoint_every=4)
    recipe = recipe_of(stage)
    train(recipe, tmp_path / "whole", keep=9)
    train(recipe_of(replace(stage, precision="float32")), tmp_path / "wide")
    for line, other in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "wide"), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=2e-2)
        assert line["bridge_cosine_share"] == pytest.approx(other["bridge_cosine_share"], rel=2e-2)
        assert line["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=5e-2)
        assert line["loss_scale"] == 2**16 and "loss_scale" not in other
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "model")
    for path in (tmp_path / "half" / "checkpoints").iterdir():
        if path.name != "step-00000004.safetensors":
            path.unlink()
    kept = Checkpoints(tmp_path / "half" / "checkpoints", recipe).latest()
    assert kept is not None and kept.group("precision")["_growth_tracker"].item() == 4
    train(recipe, tmp_path / "half", keep=9, resume=True)
    assert (tmp_path / "half" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    last = Checkpoints(tmp_path / "half" / "checkpoints", recipe).latest()
    assert last is not None and last.group("precision")["_growth_tracker"].item() == 12
    theirs = weights(tmp_path / "half")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights(tmp_path / "whole").items())
    assert {tensor.dtype for tensor in theirs.values()} == {torch.float32}


@pytest.mark.usefixtures("float16_anywhere")
def test_steps_whose_gradients_overflow_in_float16_are_left_out_until_the_scale_fits(tmp_path: Path) -> None:
    heavy = replace(STAGE, steps=12, precision="float16", objective=(BridgeCosineConfig(weight=50.0),), clip=None)
    train(recipe_of(heavy), tmp_path / "run", keep=99)
    lines = metrics(tmp_path / "run")
    scales = [line["loss_scale"] for line in lines]
    lost = ["gradient_norm" not in line for line in lines]
    assert lost[0] and not lost[-1]
    assert scales == [2.0 ** (16 - sum(lost[: i + 1])) for i in range(len(lost))]
    hopeless = replace(heavy, steps=99, objective=(BridgeCosineConfig(weight=1e30),), log_every=99)
    text = message(TrainingError, lambda: train(recipe_of(hopeless), tmp_path / "hopeless"))
    assert text.startswith("step 17: the gradient norm is not finite; the last good checkpoint is ")


# --- from pictures ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::latelier.blocks.LatentScaleWarning")  # nothing has trained this autoencoder
def test_a_pack_of_pictures_trains_a_bridge_and_so_do_npy_files_of_its_rows(pictures: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = StackEncoderConfig(depth=1)
    decoder = SkipDecoderConfig(start=1, middle=1, end=1, rank=4)
    DiffAEConfig(patch=4, width=8, latent=4, encoder=encoder, decoder=decoder).build().save_pretrained(tmp_path / "ae")
    space = ModelSpaceConfig(path=str(tmp_path / "ae"))
    packed = PairsConfig(path=str(tmp_path / "pack"), held_out_share=0.2)
    pack(space, TEACHER, FolderDataConfig(path=str(pictures)).training(), packed.path, resolution=SIDE, flips=True)
    model = replace(MODEL, space=space)
    recipe = recipe_of(replace(STAGE, batch=4), data=packed, model=model)
    train(recipe, tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.model.latent_spec == PairFolder(packed.path).latent_spec
    assert run.model.latent_spec.normalisation not in ("none", "unknown")
    assert run.model.teacher_spec == run.teacher_spec == TEACHER.build().spec
    everything = packed.everything()
    latents, said = everything.read(range(len(everything)))
    np.save(tmp_path / "latents.npy", latents.numpy())
    np.save(tmp_path / "features.npy", said.patches.numpy())
    files = NpyPairsConfig(
        latents=str(tmp_path / "latents.npy"),
        features=str(tmp_path / "features.npy"),
        space=space,
        stored="normalised",
        resolution=SIDE,
        held_out_share=0.2,
    )
    train(recipe_of(replace(STAGE, batch=4), data=files, model=model), tmp_path / "npy")
    assert latelier.load(tmp_path / "npy" / "model").teacher_spec is None
    assert message(ValueError, lambda: train(replace(recipe, model=MODEL), tmp_path / "other")).startswith(
        "LatentBridge: these latents are of another space ("
    )
