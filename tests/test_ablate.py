"""Studies: equal conditions, interruptions at any moment, failures, workers, clusters, and what is refused."""

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from children import in_a_child, killed

from latelier.blocks import HOGConfig, NoisyLatentHeadConfig, SkipDecoderConfig, StackEncoderConfig, TinyViTConfig
from latelier.evaluation import ArchetypePSNRConfig, TokenRobustnessConfig, ablation_plots
from latelier.families import DiffAEConfig
from latelier.recipes import (
    Budget,
    CellBusyError,
    Recipe,
    StageConfig,
    Variant,
    ablate,
    collect,
    in_processes,
    through_submitit,
)
from latelier.training import (
    AdamWConfig,
    AlignmentConfig,
    FolderDataConfig,
    VPReconstructionConfig,
    load_run,
    read_records,
    train,
)


def small(pictures: Path, *, rate: float = 3e-3, latent: int = 4, steps: int = 6, **more: Any) -> Recipe:
    stage: dict[str, Any] = {
        "steps": steps,
        "batch": 4,
        "resolution": 16,
        "objective": (
            VPReconstructionConfig(bias=-6.0),
            AlignmentConfig(head=NoisyLatentHeadConfig(width=64, depth=0)),
        ),
        "optimiser": AdamWConfig(rate=rate),
        "ema": 0.5,
        "recalibrate": 1,
        "checkpoint_every": 2,
        "log_every": 1,
    }
    settings: dict[str, Any] = {
        "name": "small",
        "model": DiffAEConfig(
            patch=8,
            width=16,
            latent=latent,
            encoder=StackEncoderConfig(depth=1),
            decoder=SkipDecoderConfig(start=1, middle=1, end=1, rank=4),
        ),
        "teacher": HOGConfig(patch=8),
        "data": FolderDataConfig(path=str(pictures), held_out_share=0.3),
        "stages": (StageConfig(**stage),),
        "evaluation": (ArchetypePSNRConfig(),),
    }
    return Recipe(**(settings | more))


def variants(pictures: Path) -> list[Variant]:
    return [
        Variant("wide", small(pictures), {"latent": "4"}),
        Variant("narrow", small(pictures, latent=2), {"latent": "2"}),
    ]


def what_is_compared(folder: Path) -> dict[str, Any]:
    """Everything of a study that must not depend on interruptions: all but its timing."""
    study = json.loads((folder / "ablation.json").read_text())
    study.pop("timing")
    tables = {name: (folder / name).read_text() for name in ("table.md", "table.tex")}
    return {"study": study, **tables}


def values(study: dict[str, Any], variant: str, key: str = "psnr") -> list[float]:
    return [m["value"] for c in study["cells"] if c["variant"] == variant for m in c["metrics"] if m["key"] == key]


def difference(study: dict[str, Any], variant: str, key: str = "psnr") -> dict[str, Any]:
    measure = next(measure for measure in study["comparison"]["measures"] if measure["key"] == key)
    return next(row for row in measure["variants"] if row["variant"] == variant)["difference"]


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "study"
    train(small(pictures, steps=1), folder.with_name("warm-up"))  # what is imported late, children inherit
    assert not killed(in_a_child(lambda: ablate(variants(pictures), out=folder, seeds=2)))
    return folder


# --- what a study is ----------------------------------------------------------------------------------------------


def test_a_study_leaves_runs_numbers_tables_plots_and_a_report(whole: Path, pictures: Path) -> None:
    study = json.loads((whole / "ablation.json").read_text())
    assert [(c["variant"], c["seed"], c["status"]) for c in study["cells"]] == [
        ("wide", 0, "finished"),
        ("wide", 1, "finished"),
        ("narrow", 0, "finished"),
        ("narrow", 1, "finished"),
    ]
    assert (study["axes"], study["seeds"], study["baseline"]) == ({"latent": ["4", "2"]}, [0, 1], "wide")
    assert study["budget"]["text"] == "6 steps each"
    assert study["conditions"] == []
    assert study["variants"][0]["parameters"] > study["variants"][1]["parameters"]
    for cell in study["cells"]:
        run = load_run(whole / cell["run"])
        assert run.recipe == replace(small(pictures, latent=4 if cell["variant"] == "wide" else 2), seed=cell["seed"])
        result = json.loads((whole / cell["run"] / "evaluation" / "archetype_psnr.json").read_text())
        found = {metric["key"]: metric for metric in cell["metrics"]}
        assert found["psnr"]["value"] == result["psnr"]["mean"]
        assert found["head_cosine"]["value"] == result["alignment"]["head_cosine"]
        protocol = f"archetype_psnr {result['protocol']['id']} on {result['set']['n']} images {result['set']['id']}"
        assert found["psnr"]["protocol"] == protocol
        assert found["head_cosine"]["protocol"] == f"{protocol}, to teacher/hog {HOGConfig(patch=8).id}"
        losses = [line["validation_loss"] for line in read_records(whole / cell["run"] / "metrics.jsonl")[-1:]]
        assert [found["validation_loss"]["value"]] == losses
        assert [step for step, _ in cell["curve"]] == [1, 2, 3, 4, 5, 6]
        assert len(cell["pictures"]) == (3 if cell["seed"] == 0 else 0)
        for picture in cell["pictures"]:
            assert (whole / picture["original"]).is_file() and (whole / picture["reconstruction"]).is_file()
    for name in ("table.md", "table.tex", "report.html"):
        assert (whole / name).stat().st_size > 100
    assert list((whole / "plots").glob("*.png")) and list((whole / "plots").glob("*.pdf"))


def test_the_same_call_again_runs_nothing(whole: Path, pictures: Path) -> None:
    before = what_is_compared(whole)
    stamps = {path: path.stat().st_mtime_ns for path in whole.rglob("cell.json")}
    heard: list[object] = []
    ablate(variants(pictures), out=whole, seeds=2, on_cell=lambda *cell: heard.append(cell))
    assert heard == []
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("cell.json")} == stamps
    assert what_is_compared(whole) == before


def test_a_cell_is_the_run_that_its_recipe_gives(whole: Path, pictures: Path, tmp_path: Path) -> None:
    recipe = replace(small(pictures), seed=1)
    assert not killed(in_a_child(lambda: train(recipe, tmp_path / "run")))
    ours, theirs = (load_run(f).model.state_dict() for f in (whole / "cells" / "00-wide" / "seed-1", tmp_path / "run"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# --- the truth on planted data ------------------------------------------------------------------------------------


def test_a_variant_that_was_made_worse_is_reported_as_worse_and_a_copy_is_not(pictures: Path, tmp_path: Path) -> None:
    planted = [
        Variant("as it is", small(pictures, steps=40)),
        Variant("hardly learns", small(pictures, steps=40, rate=3e-5)),
        Variant("a copy", small(pictures, steps=40)),
    ]
    assert not killed(in_a_child(lambda: ablate(planted, out=tmp_path / "study", seeds=3)))
    study = json.loads((tmp_path / "study" / "ablation.json").read_text())
    worse, copy = difference(study, "hardly learns"), difference(study, "a copy")
    assert worse["high"] < 0 and worse["verdict"] == "worse"
    assert (copy["low"], copy["high"], copy["verdict"]) == (0, 0, "no difference shown")
    assert values(study, "a copy") == values(study, "as it is")
    assert len(set(values(study, "as it is"))) == 3, "seeds must differ"


def test_cosines_to_different_teachers_are_not_subtracted(pictures: Path, tmp_path: Path) -> None:
    pair = [
        Variant("hog", small(pictures, steps=2), {"teacher": "hog"}),
        Variant("vit", small(pictures, steps=2, teacher=TinyViTConfig(patch=8)), {"teacher": "vit"}),
    ]
    assert not killed(in_a_child(lambda: ablate(pair, out=tmp_path / "study", seeds=2)))
    study = json.loads((tmp_path / "study" / "ablation.json").read_text())
    cosines = [measure for measure in study["comparison"]["measures"] if measure["key"] == "head_cosine"]
    assert [[row["variant"] for row in measure["variants"]] for measure in cosines] == [["hog"], ["vit"]]
    assert difference(study, "vit")["n"] == 2  # of PSNR
    assert all(row["difference"] is None for measure in cosines for row in measure["variants"])


# --- interruptions ------------------------------------------------------------------------------------------------


def test_a_study_killed_at_random_moments_ends_with_the_same_table(whole: Path, pictures: Path, tmp_path: Path) -> None:
    rng, kills, runs = random.Random(1), 0, 0
    while kills < 8:
        folder, finished = tmp_path / f"study{runs}", False
        runs += 1
        while not finished:
            child = in_a_child(lambda folder=folder: ablate(variants(pictures), out=folder, seeds=2))
            if kills < 8:
                time.sleep(rng.uniform(0.05, 1.5))
                os.kill(child, signal.SIGKILL)
            finished = not killed(child)
            kills += not finished
        assert what_is_compared(folder) == what_is_compared(whole)


def test_workers_end_with_a_killed_study_and_the_next_call_goes_on(whole: Path, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"

    def run() -> object:
        return ablate(variants(pictures), out=folder, seeds=2, jobs=2)

    child = in_a_child(run)
    deadline = time.monotonic() + 60
    while not list(folder.glob("cells/*/*/checkpoints/*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    assert killed(child)
    for path in folder.glob("cells/*/*/.lock"):
        assert _is_free(path), "a worker outlived the study"
    assert not killed(in_a_child(run))
    found, expected = what_is_compared(folder), what_is_compared(whole)
    assert found["table.md"] == expected["table.md"]
    assert [c["metrics"] for c in found["study"]["cells"]] == [c["metrics"] for c in expected["study"]["cells"]]


def _is_free(path: Path) -> bool:
    """Whether the lock can be had within a moment, which the kernel needs to end a process."""
    import fcntl

    for _ in range(100):
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                time.sleep(0.05)
    return False


def test_a_cell_that_another_process_runs_is_left_to_it(pictures: Path, tmp_path: Path) -> None:
    import fcntl

    folder = tmp_path / "study"
    path = folder / "cells" / "00-wide" / "seed-0"
    path.mkdir(parents=True)
    (folder / "plan.json").unlink(missing_ok=True)
    with (path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (folder / "cells").rename(tmp_path / "cells")  # a plan wants an empty folder

        def put_back(plan: object) -> None:
            (tmp_path / "cells").rename(folder / "cells")

        with pytest.raises(CellBusyError) as caught:
            ablate(variants(pictures), out=folder, seeds=1, on_plan=put_back)
    assert str(caught.value) == f"{path}: another process is running this cell; wait for it, or stop it"


# --- failures -----------------------------------------------------------------------------------------------------


def with_a_failing_one(pictures: Path) -> list[Variant]:
    model = replace(small(pictures).model, encoder=StackEncoderConfig(depth=1), width=15)
    return [
        Variant("good", small(pictures, steps=1)),
        Variant("bad", small(pictures, steps=1, teacher=HOGConfig(patch=16))),
        Variant("odd", small(pictures, steps=1, model=model)),
    ]


def test_a_cell_that_fails_is_reported_with_its_error_and_the_others_run(pictures: Path, tmp_path: Path) -> None:
    heard: list[tuple[str, int]] = []
    study = ablate(
        with_a_failing_one(pictures),
        out=tmp_path / "study",
        seeds=1,
        on_cell=lambda address, cell, done, total: heard.append((cell["status"], done)),
    )
    assert heard == [("finished", 1), ("failed", 2), ("finished", 3)]
    bad = study["cells"][1]
    reason = "the teacher's grid is (1, 1), the latent's (2, 2); choose a teacher whose patch equals the model's stride"
    assert bad["error"]["type"] == "ValueError"
    assert reason in bad["error"]["message"]
    assert bad["error"]["message"] in (tmp_path / "study" / bad["error"]["traceback"]).read_text()
    for name in ("table.md", "report.html"):
        assert "failed" in (tmp_path / "study" / name).read_text()


def test_seeds_are_added_to_a_study(pictures: Path, tmp_path: Path) -> None:
    one = [Variant("one", small(pictures, steps=1))]
    first = ablate(one, out=tmp_path / "study", seeds=1)
    heard: list[int] = []
    more = ablate(one, out=tmp_path / "study", seeds=3, on_cell=lambda address, *rest: heard.append(address[1]))
    assert heard == [1, 2]
    assert more["cells"][0]["metrics"] == first["cells"][0]["metrics"]
    assert [cell["seed"] for cell in more["cells"]] == [0, 1, 2]


def test_failed_cells_are_run_again_when_asked(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, pair = tmp_path / "study", with_a_failing_one(pictures)[:1]
    monkeypatch.setattr(HOGConfig, "build", lambda self: 1 / 0)
    first = ablate(pair, out=folder, seeds=1)
    assert first["cells"][0]["error"]["type"] == "ZeroDivisionError"
    monkeypatch.undo()
    assert ablate(pair, out=folder, seeds=1)["cells"][0]["status"] == "failed"
    again = ablate(pair, out=folder, seeds=1, retry_failed=True)["cells"][0]
    assert (again["status"], again["error"]) == ("finished", None)
    assert not list(folder.rglob("error.txt"))


def test_a_worker_that_dies_is_a_failed_cell(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\ncase "$*" in *wide*) kill -KILL $$;; *) echo "no room" >&2; exit 3;; esac\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    study = ablate(variants(pictures), out=tmp_path / "study", seeds=1, launcher=in_processes(2))
    assert [cell["error"]["message"].splitlines()[0] for cell in study["cells"]] == [
        "the worker was ended by SIGKILL (out of memory?)",
        "the worker ended with status 3: no room",
    ]


# --- clusters, budgets, probes ------------------------------------------------------------------------------------


def test_jobs_of_submitit_give_the_same_numbers(whole: Path, pictures: Path, tmp_path: Path) -> None:
    launcher = through_submitit("local", {"timeout_min": 5})
    study = ablate(variants(pictures)[:1], out=tmp_path / "study", seeds=1, launcher=launcher)
    theirs = json.loads((whole / "ablation.json").read_text())
    assert study["cells"][0]["metrics"] == theirs["cells"][0]["metrics"]
    assert list((tmp_path / "study" / "jobs").glob("*result.pkl"))


def test_steps_may_be_shared_out_by_operations(pictures: Path, tmp_path: Path) -> None:
    pair = variants(pictures)
    plans: list[Any] = []

    def stop(plan: Any) -> None:
        plans.append(plan)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        ablate(pair, out=tmp_path / "a", budget="steps=5", on_plan=stop)
    flops = [variant.flops_per_step for variant in plans[0].variants]
    assert flops[0] > flops[1]
    with pytest.raises(InterruptedError):
        ablate(pair, out=tmp_path / "b", budget=Budget("flops", 30.0 * flops[0]), on_plan=stop)
    assert [variant.steps for variant in plans[1].variants] == [30, round(30 * flops[0] / flops[1])]
    assert [v.recipe.stages[0].checkpoint_every for v in plans[1].variants] == [2, 2]
    with pytest.raises(ValueError) as caught:
        ablate(pair, out=tmp_path / "c", budget="flops=3")
    assert str(caught.value) == (
        f"budget: flops=3 pays for no step of {pair[0].name!r}, which takes {flops[0]:.3g}; give more, or name steps"
    )
    assert not (tmp_path / "c").exists()


def test_steps_may_be_shared_out_by_seconds_measured_here(pictures: Path, tmp_path: Path) -> None:
    one = variants(pictures)[:1]
    assert not killed(in_a_child(lambda: ablate(one, out=tmp_path / "a", seeds=1, budget="seconds=0.2")))
    study = json.loads((tmp_path / "a" / "ablation.json").read_text())
    (variant,) = study["variants"]
    assert variant["steps"] == max(1, round(0.2 / variant["seconds_per_step"]))
    assert study["budget"]["text"] == (
        f"0.2 seconds of training each, as a step took while planning: {variant['steps']:,} steps"
    )


def test_probes_become_columns(pictures: Path, tmp_path: Path) -> None:
    probe = TokenRobustnessConfig(offsets=(0.0, 2.0))
    study = ablate([Variant("one", small(pictures, steps=1))], out=tmp_path / "study", seeds=1, probes=[probe])
    labels = [metric["label"] for metric in study["cells"][0]["metrics"]]
    assert any(probe.id in label or "obustness" in label for label in labels)


def test_what_is_unequal_is_said(pictures: Path, tmp_path: Path) -> None:
    recipe = small(pictures, steps=1)
    larger = replace(recipe, stages=(replace(recipe.stages[0], batch=2),))
    pair = [Variant("four", recipe), Variant("two", larger)]
    study = ablate(pair, out=tmp_path / "study", seeds=1)
    assert study["conditions"] == ["two: stages.0.batch: 2, not 4"]
    for name in ("table.md", "report.html"):
        assert "stages.0.batch: 2, not 4" in (tmp_path / "study" / name).read_text()


def test_what_is_there_can_be_collected_while_the_rest_is_pending(pictures: Path, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(*cell: object) -> None:
        raise StopError

    with pytest.raises(StopError):
        ablate(variants(pictures), out=tmp_path / "study", seeds=1, steps=1, on_cell=stop)
    study = collect(tmp_path / "study")
    assert [cell["status"] for cell in study["cells"]] == ["finished", "pending"]


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 0}, "seeds: must be at least 1, got 0"),
        ({"seeds": (1, 1)}, "seeds: must differ, got [1, 1]"),
        ({"jobs": 0}, "jobs: must be at least 1, got 0"),
        ({"baseline": "wid"}, "baseline: no variant is 'wid'; did you mean 'wide'?"),
        ({"baseline": "latent=3"}, "baseline: no variant is 'latent=3'; known: 'wide', 'narrow'"),
        ({"steps": 3, "budget": "flops=3"}, "budget: give steps or a budget, not both"),
        ({"budget": "hours=3"}, "--budget: takes steps=N, seconds=S or flops=F, got 'hours=3'"),
        ({"budget": "seconds"}, "budget: seconds need an amount, such as seconds=60"),
        ({"budget": "flops=many"}, "--budget: takes a number behind flops=, got 'many'"),
        ({"budget": "seconds=-1"}, "budget: must be positive, got -1"),
        ({"budget": "steps=2.5"}, "budget: takes whole steps, got 2.5"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(
    settings: dict[str, Any], message: str, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as caught:
        ablate(variants(pictures), out=tmp_path / "study", **settings)
    assert str(caught.value) == message
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("library", "message"),
    [
        ("scipy.stats", "compare: intervals need scipy; pip install 'latelier[ablations]'"),
        ("matplotlib.figure", "ablation plots: need matplotlib; pip install 'latelier[ablations]'"),
    ],
)
def test_a_missing_library_is_told_before_anything_is_trained(
    library: str, message: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablation_plots.figure_class.cache_clear()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError) as caught:
        ablate(variants(pictures), out=tmp_path / "study")
    assert str(caught.value) == message
    assert not (tmp_path / "study").exists()


def test_variants_need_names_of_their_own(pictures: Path, tmp_path: Path) -> None:
    one = Variant("one", small(pictures))
    with pytest.raises(ValueError) as caught:
        ablate([one, one], out=tmp_path / "study")
    assert str(caught.value) == "variants: 'one' is there twice; give each its own name"
    with pytest.raises(ValueError) as caught:
        ablate([], out=tmp_path / "study")
    assert str(caught.value) == "variants: are empty; give at least one"


def test_a_folder_that_holds_something_else_is_left_alone(whole: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError) as caught:
        ablate(variants(pictures), out=tmp_path)
    assert str(caught.value) == f"{tmp_path}: holds something else (thesis.txt); choose another --out"
    with pytest.raises(ValueError) as caught:
        ablate(variants(pictures), out=tmp_path / "thesis.txt")
    assert str(caught.value) == f"{tmp_path / 'thesis.txt'}: is a file; choose a folder for --out"
    changed = [Variant("wide", small(pictures, rate=1e-3), {"latent": "4"}), variants(pictures)[1]]
    with pytest.raises(ValueError) as caught:
        ablate(changed, out=whole, seeds=2)
    assert str(caught.value) == (
        f"{whole}: holds another study (variants.0.recipe.stages.0.optimiser.rate: 0.003, not 0.001); repeat its "
        "command to go on with it, or choose another --out"
    )
    with pytest.raises(ValueError) as caught:
        ablate(variants(pictures), out=whole, seeds=1)
    assert str(caught.value) == (
        f"{whole}: holds another study (seeds: [0, 1], not [0]); repeat its command to go on with it, or choose "
        "another --out"
    )
    with pytest.raises(FileNotFoundError) as missing:
        collect(tmp_path)
    assert str(missing.value) == (
        f"{tmp_path}: holds no study; latelier ablate RECIPE --axis ... --out {tmp_path} makes one"
    )
