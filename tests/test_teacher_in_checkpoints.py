"""Checkpoints and models say which teacher they learnt from, and another one is refused by name."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from latelier.blocks import (
    DiTBlockConfig,
    HOGConfig,
    NoisyLatentHeadConfig,
    SkipDecoderConfig,
    StackEncoderConfig,
    TeacherConfig,
    TeacherSpec,
    TinyViTConfig,
    decode,
    encode,
)
from latelier.cli import main
from latelier.evaluation import ArchetypePSNRConfig, evaluate
from latelier.families import CheckpointError, DiffAEConfig
from latelier.training import (
    AdamWConfig,
    AlignmentConfig,
    FolderDataConfig,
    Recipe,
    StageConfig,
    VPReconstructionConfig,
    load_run,
    train,
)

HOG = HOGConfig(patch=8)
SPEC = "latelier.teacher_spec"


def recipe_of(pictures: Path, teacher: TeacherConfig | None = HOG) -> Recipe:
    head = NoisyLatentHeadConfig(width=16, block=DiTBlockConfig(head_width=8))
    aligned = () if teacher is None else (AlignmentConfig(head=head),)
    return Recipe(
        name="small",
        model=DiffAEConfig(
            patch=8,
            width=16,
            latent=4,
            encoder=StackEncoderConfig(depth=1),
            decoder=SkipDecoderConfig(start=1, middle=1, end=1, rank=4),
        ),
        teacher=teacher,
        data=FolderDataConfig(path=str(pictures)),
        stages=(
            StageConfig(
                steps=2,
                batch=2,
                resolution=16,
                objective=(VPReconstructionConfig(), *aligned),
                optimiser=AdamWConfig(rate=1e-3),
                recalibrate=1,
                checkpoint_every=1,
            ),
        ),
        evaluation=(ArchetypePSNRConfig(),),
    )


def message(error: type[Exception], work: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        work()
    return str(caught.value)


def header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def newest(folder: Path) -> Path:
    return sorted((folder / "checkpoints").glob("step-*"))[-1]


@pytest.fixture
def run(pictures: Path, tmp_path: Path) -> Path:
    train(recipe_of(pictures), tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("teacher", [HOG, TinyViTConfig(width=16, head_width=8, patch=8)], ids=["hog", "vit"])
def test_checkpoints_and_models_hold_the_spec(teacher: TeacherConfig, pictures: Path, tmp_path: Path) -> None:
    train(recipe_of(pictures, teacher), tmp_path)
    files = [*sorted((tmp_path / "checkpoints").iterdir()), tmp_path / "model" / "model.safetensors"]
    assert len(files) == 4
    for path in files:
        assert decode(json.loads(header(path)[SPEC]), TeacherSpec) == teacher.build().spec
    run = load_run(tmp_path)
    assert run.teacher_spec == teacher.build().spec and run.teacher == teacher


def test_without_a_teacher_there_is_no_spec(pictures: Path, tmp_path: Path) -> None:
    train(recipe_of(pictures, None), tmp_path)
    assert SPEC not in header(newest(tmp_path)) | header(tmp_path / "model" / "model.safetensors")
    run = load_run(tmp_path)
    assert run.teacher_spec is None and run.teacher is None


def test_resuming_with_another_version_of_the_teacher_is_refused_unless_accepted(
    pictures: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    latest = newest(run)
    monkeypatch.setattr("latelier.blocks.hog.VERSION", "2")
    text = (
        f"{latest}: is of another teacher (version: '1', not '2'); take the teacher that it was made with, or make it "
        "anew; --accept FIELD takes a difference that is known to be harmless"
    )
    assert message(CheckpointError, lambda: train(recipe_of(pictures), run, resume=True)) == text
    assert message(CheckpointError, lambda: train(recipe_of(pictures), run, resume=True, accept=["weights"])) == text
    again = ["train", str(run / "recipe.json"), "--resume", "--out", str(run), "--device", "cpu"]
    for arguments, code in ((again, 1), ([*again, "--accept", "version"], 0)):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == code
        assert (f"error: {text}\n" in capsys.readouterr().err) == (code == 1)
    assert json.loads(header(run / "model" / "model.safetensors")[SPEC])["version"] == "2"


def test_resuming_with_other_weights_behind_the_same_name_is_refused(pictures: Path, run: Path) -> None:
    """The recipe is the same, and the file that it names has changed."""
    latest = newest(run)
    entries = header(latest)
    spec = replace(decode(json.loads(entries[SPEC]), TeacherSpec), weights="sha256:0123456789abcdef", layers=(5,))
    save_file(load_file(latest), latest, entries | {SPEC: json.dumps(encode(spec))})
    assert message(CheckpointError, lambda: train(recipe_of(pictures), run, resume=True)) == (
        f"{latest}: is of another teacher (weights: 'sha256:0123456789abcdef', not 'none'; layers: (5,), not ()); take "
        "the teacher that it was made with, or make it anew; --accept FIELD takes a difference that is known to be "
        "harmless"
    )


def test_a_checkpoint_that_says_nothing_of_a_teacher_is_taken(pictures: Path, run: Path) -> None:
    latest = newest(run)
    entries = header(latest)
    del entries[SPEC]
    save_file(load_file(latest), latest, entries)
    train(recipe_of(pictures), run, resume=True)


def test_measuring_with_another_teacher_is_refused_unless_accepted(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("latelier.blocks.hog.VERSION", "2")
    text = (
        "the trained model: is of another teacher (version: '1', not '2'); take the teacher that it was made with, or "
        "make it anew; --accept FIELD takes a difference that is known to be harmless"
    )
    loaded = load_run(run)
    settings: dict[str, Any] = {"teacher": loaded.teacher, "teacher_spec": loaded.teacher_spec}
    source = loaded.recipe.data.held_out()
    assert message(ValueError, lambda: evaluate(loaded.model, source, **settings)) == text
    assert evaluate(loaded.model, source, **settings, accept=["version"])["alignment"]["teacher"] == encode(HOG)
    other: dict[str, Any] = settings | {"teacher": HOGConfig(patch=8, cells=1)}
    assert re.match(
        r"the trained model: is of another teacher \(version: '1', not '2'; model: 'hog\(cells=2, .*\)', not "
        r"'hog\(cells=1, .*\)'; features: 36, not 9\); ",
        message(ValueError, lambda: evaluate(loaded.model, source, **other)),
    )
    monkeypatch.setattr("latelier.evaluation.write_report", lambda folder, *_, **__: folder / "report.html")
    for command in ("eval", "report"):
        for arguments, code in (([command, str(run)], 1), ([command, str(run), "--accept", "version"], 0)):
            with pytest.raises(SystemExit) as stopped:
                main([*arguments, "--device", "cpu"])
            assert stopped.value.code == code
            assert (f"error: {text}\n" in capsys.readouterr().err) == (code == 1)


def test_a_header_that_is_damaged_is_named(pictures: Path, run: Path) -> None:
    latest = newest(run)
    entries = header(latest) | {SPEC: '{"kind": "teacher_spec/modell"}'}
    save_file(load_file(latest), latest, entries)
    assert message(ValueError, lambda: train(recipe_of(pictures), run, resume=True)) == (
        f"{latest} (header): {SPEC}: no part is named 'teacher_spec/modell'; did you mean 'teacher_spec/model'?"
    )


def test_the_model_is_loaded_without_its_teacher(run: Path) -> None:
    import latelier

    assert latelier.load(run / "model").encode(torch.zeros(1, 3, 16, 16)).shape == (1, 4, 2, 2)
