"""A run that is killed and resumed ends with the bits of one that was not, whenever it was killed."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from children import in_a_child, killed

from latelier.blocks import DiTBlockConfig, HOGConfig, NoisyLatentHeadConfig, SkipDecoderConfig, StackEncoderConfig
from latelier.families import CheckpointError, DiffAEConfig, read_tensors
from latelier.training import (
    AdamWConfig,
    AlignmentConfig,
    Checkpoints,
    CosineRateConfig,
    FolderDataConfig,
    LatentScaleConfig,
    Recipe,
    StageConfig,
    VarianceExpansionConfig,
    VPReconstructionConfig,
    train,
)


def small_recipe(pictures: Path, *, steps: int = 12, **stage: Any) -> Recipe:
    """Two stages, so that a kill may fall on the border between them."""
    head = NoisyLatentHeadConfig(width=16, block=DiTBlockConfig(head_width=8))
    objective = (
        VPReconstructionConfig(),
        AlignmentConfig(head=head),
        VarianceExpansionConfig(),
        LatentScaleConfig(),
    )
    settings = {
        "batch": 4,
        "resolution": 16,
        "objective": objective,
        "optimiser": AdamWConfig(rate=1e-3),
        "rate": CosineRateConfig(warm_up=2),
        "ema": 0.9,
        "recalibrate": 2,
        "checkpoint_every": 2,
        "validate_every": 3,
        "log_every": 1,
    }
    first: dict[str, Any] = {"name": "first", "steps": steps, **settings, **stage}
    second: dict[str, Any] = first | {"name": "second", "steps": steps // 2, "accumulate": 2}
    return Recipe(
        name="small",
        model=DiffAEConfig(
            patch=8,
            width=16,
            latent=4,
            encoder=StackEncoderConfig(depth=1),
            decoder=SkipDecoderConfig(start=1, middle=1, end=1, rank=4),
        ),
        teacher=HOGConfig(patch=8),
        data=FolderDataConfig(path=str(pictures)),
        stages=(StageConfig(**first), StageConfig(**second)),
    )


def what_a_run_left(folder: Path) -> dict[str, object]:
    left: dict[str, object] = {"metrics": (folder / "metrics.jsonl").read_bytes()}
    for path in sorted(folder.rglob("*.safetensors")):
        tensors, header = read_tensors(path)
        name = str(path.relative_to(folder))
        left[name] = {key: (tensor.dtype, tensor.numpy().tobytes()) for key, tensor in tensors.items()}
        left[f"{name} header"] = header
    left["files"] = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.name != "timing.jsonl")
    return left


@pytest.fixture(scope="module")
def never_killed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], float]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(small_recipe(pictures, steps=2), folder.with_name("warm-up"))  # what is imported late, children inherit
    start = time.perf_counter()
    assert not killed(in_a_child(lambda: train(small_recipe(pictures), folder)))
    return what_a_run_left(folder), time.perf_counter() - start


def test_a_run_killed_at_random_moments_ends_with_the_same_bits(
    pictures: Path, tmp_path: Path, never_killed: tuple[dict[str, object], float]
) -> None:
    expected, seconds = never_killed
    rng, kills, runs = random.Random(0), 0, 0
    while kills < 20:
        folder = tmp_path / f"run{runs}"
        runs += 1
        running = True
        while running:
            child = in_a_child(lambda folder=folder: train(small_recipe(pictures), folder, resume=True))
            if kills < 20:
                time.sleep(rng.uniform(0, 0.6 * seconds))
                os.kill(child, signal.SIGKILL)
            running = killed(child)
            kills += running
        assert what_a_run_left(folder) == expected


@pytest.mark.parametrize(
    ("call", "count"),
    [
        ("fsync", 1),
        ("fsync", 6),
        ("replace", 2),
        ("replace", 9),
        ("link", 1),
        ("link", 2),
        ("unlink", 1),
        ("unlink", 5),
    ],
)
def test_a_run_killed_while_it_writes_ends_with_the_same_bits(
    call: str, count: int, pictures: Path, tmp_path: Path, never_killed: tuple[dict[str, object], float]
) -> None:
    """Killed just before the ``count``-th system call of a kind: with half-written, unnamed and superfluous files."""

    def work() -> None:
        real, calls = getattr(os, call), 0

        def deadly(*args: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        setattr(os, call, deadly)
        train(small_recipe(pictures), tmp_path / "run", resume=True)

    assert killed(in_a_child(work))
    assert not killed(in_a_child(lambda: train(small_recipe(pictures), tmp_path / "run", resume=True)))
    assert what_a_run_left(tmp_path / "run") == never_killed[0]


def test_a_finished_run_resumes_to_itself(pictures: Path, tmp_path: Path) -> None:
    recipe = small_recipe(pictures, steps=2)
    train(recipe, tmp_path)
    before = what_a_run_left(tmp_path)
    train(recipe, tmp_path, resume=True)
    assert what_a_run_left(tmp_path) == before


def test_the_best_checkpoint_and_the_last_ones_are_kept(pictures: Path, tmp_path: Path) -> None:
    recipe = small_recipe(pictures)
    train(recipe, tmp_path, keep=2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.safetensors", "step-00000016.safetensors", "step-00000018.safetensors"]
    best = Checkpoints(tmp_path / "checkpoints", recipe).read(tmp_path / "checkpoints" / "best.safetensors")
    assert best.position.best_total == best.position.total


def test_resuming_with_another_recipe_names_the_fields_that_differ(pictures: Path, tmp_path: Path) -> None:
    ours, theirs = small_recipe(pictures, steps=4), small_recipe(pictures, steps=2)
    train(theirs, tmp_path)
    before = what_a_run_left(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        train(ours, tmp_path, resume=True)
    path = tmp_path / "checkpoints" / "step-00000003.safetensors"
    assert str(caught.value) == (
        f"{path}: was written by another recipe ({theirs.id}, this is {ours.id}): "
        "recipe.stages.0.steps: 4, not 2; recipe.stages.1.steps: 2, not 1; resume with the same recipe, "
        "or start a new run in another folder"
    )
    assert what_a_run_left(tmp_path) == before


def test_a_folder_that_holds_a_run_is_not_overwritten(pictures: Path, tmp_path: Path) -> None:
    recipe = small_recipe(pictures, steps=2)
    train(recipe, tmp_path)
    before = what_a_run_left(tmp_path)
    with pytest.raises(FileExistsError) as caught:
        train(recipe, tmp_path)
    assert str(caught.value) == f"{tmp_path}: holds a run already; go on with --resume, or choose another --out"
    assert what_a_run_left(tmp_path) == before


def test_a_damaged_checkpoint_is_named(pictures: Path, tmp_path: Path) -> None:
    recipe = small_recipe(pictures, steps=2)
    train(recipe, tmp_path)
    path = sorted((tmp_path / "checkpoints").glob("step-*"))[-1]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="is no whole safetensors file"):
        train(recipe, tmp_path, resume=True)


def test_the_number_of_parts_of_a_batch_changes_rounding_only(pictures: Path, tmp_path: Path) -> None:
    weights = []
    for parts in (1, 2, 4):
        folder = train(small_recipe(pictures, steps=4, accumulate=parts), tmp_path / str(parts))
        weights.append(read_tensors(folder / "model.safetensors")[0])
    for other in weights[1:]:
        for name, tensor in other.items():
            torch.testing.assert_close(tensor, weights[0][name], rtol=1e-3, atol=1e-4, msg=name)
