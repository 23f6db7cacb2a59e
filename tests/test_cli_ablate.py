"""`latelier ablate` as users call it: from a file of theirs, with parts of theirs, in workers, and with mistakes."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from latelier.cli import main

MINE = '''"""A user's file."""
from dataclasses import replace

from latelier.blocks import {imports}
from latelier.evaluation import ArchetypePSNRConfig
from latelier.recipes import demo
from latelier.training import FolderDataConfig


@part("block/of_an_ablation")
class MineConfig(BlockConfig):
    def build(self, width, *, cond=None):
        return FCDMBlockConfig(kernel=3).build(width, cond=cond)


def tiny(*, block: BlockConfig = FCDMBlockConfig(), teacher: TeacherConfig = HOGConfig(patch=8), steps: int = 2):
    base = demo.semdisdiffae(block=block, teacher=teacher, data=FolderDataConfig(path={path!r}), steps=steps)
    stage = replace(base.stages[0], batch=2, resolution=16, recalibrate=1, log_every=1)
    return replace(base, name="tiny", start=None, stages=(stage,))
'''
IMPORTS = "BlockConfig, FCDMBlockConfig, HOGConfig, TeacherConfig, part"


@dataclass
class Said:
    code: int
    out: str
    err: str


Latelier = Callable[..., Said]


@pytest.fixture
def run(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Latelier:
    """Call the command in this process, in a folder with a user's file."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE.format(imports=IMPORTS, path=str(pictures)))

    def call(*arguments: str) -> Said:
        with pytest.raises(SystemExit) as caught:
            main(["ablate", *arguments])
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Said(caught.value.code, captured.out, captured.err)

    return call


def test_a_study_of_a_users_recipe_prints_its_table_and_where_the_rest_is(run: Latelier) -> None:
    said = run("./mine.py:tiny", "--axis", "block=fcdm,of_an_ablation", "--seeds", "2", "--out", "study")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0] == "2 variants x 2 seeds = 4 runs; baseline: block=fcdm"
    assert lines[1].startswith("  block=fcdm: 2 steps, ")
    assert lines[3].startswith("  1 of 4  block=fcdm, seed 0: PSNR mean ")
    (head,) = [i for i, line in enumerate(lines) if line.startswith("variant ")]
    assert "PSNR mean, dB" in lines[head]
    assert [line.split()[:2] for line in lines[head + 1 : head + 3]] == [
        ["block=fcdm", "2/2"],
        ["block=of_an_ablation", "2/2"],
    ]
    assert lines[-3:] == [
        "report:  study/report.html",
        "numbers: study/ablation.json",
        "tables:  study/table.md, study/table.tex",
    ]
    again = run("./mine.py:tiny", "--axis", "block=fcdm,of_an_ablation", "--seeds", "2", "--out", "study")
    assert again.code == 0 and " of 4  " not in again.out
    collected = run("--collect", "--out", "study")
    assert collected.code == 0 and collected.out.splitlines() == lines[-len(collected.out.splitlines()) :]


def test_workers_know_the_parts_of_a_users_file_and_probes_are_columns(run: Latelier) -> None:
    probe = '{"kind": "probe/token_robustness", "offsets": [0, 2]}'
    said = run(
        *("./mine.py:tiny", "--axis", "block=of_an_ablation", "--seeds", "1", "--jobs", "2", "--steps", "1"),
        *("--probe", probe, "--out", "study"),
    )
    assert (said.code, said.err) == (0, "")
    (cell,) = json.loads(Path("study/ablation.json").read_text())["cells"]
    assert cell["status"] == "finished"
    assert any("robustness" in metric["key"] for metric in cell["metrics"])
    assert not list(Path("study").rglob("worker.txt"))


def test_a_failed_run_is_shown_and_makes_the_exit_status_1(run: Latelier) -> None:
    gone = '{"kind": "teacher/dinov2", "weights": "gone.safetensors"}'
    said = run("./mine.py:tiny", "--axis", f"teacher=hog,{gone}", "--seeds", "1", "--steps", "1", "--out", "s")
    assert said.code == 1
    (line,) = [line for line in said.out.splitlines() if line.startswith("  2 of 2  ")]
    assert line.startswith(
        "  2 of 2  teacher=dinov2(weights=gone.safetensors), seed 0: failed: FileNotFoundError: teacher/dinov2: "
        "gone.safetensors"
    )
    for name in ("table.md", "table.tex", "report.html"):
        assert "FileNotFoundError" in Path("s", name).read_text()


AXIS = ("--axis", "block=fcdm,of_an_ablation")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "ablate: has no recipe; name one, such as demo/semdisdiffae, or a study that is ready"),
        (("./mine.py:tiny",), "ablate: has no axis; add one, such as --axis teacher=hog,tiny_vit, to ./mine.py:tiny"),
        (
            ("demo/teacher_swap", "--axis", "steps=1,2"),
            "ablate: demo/teacher_swap has its own axes; vary a recipe with --axis, or run the study as it is",
        ),
        (("tniy", *AXIS), "recipe: none is named 'tniy'; known: "),
        (("./mine.py:tniy", *AXIS), "mine.py: has no function 'tniy'; it has 'tiny'"),
        (("./mine.py:tiny", *AXIS, "--baseline", "block=dit"), "baseline: no variant is 'block=dit'; did you mean "),
        (("./mine.py:tiny", *AXIS, "--budget", "hours=1"), "--budget: takes steps=N, seconds=S or flops=F, got "),
        (("./mine.py:tiny", *AXIS, "--slurm", "a=1"), "--slurm: is for jobs of a cluster; add --launcher slurm"),
        (
            ("./mine.py:tiny", *AXIS, "--launcher", "local", "--slurm", "a"),
            "--slurm: takes KEY=VALUE such as timeout_min=600, got 'a'",
        ),
        (("./mine.py:tiny", *AXIS, "--probe", "knnn"), "--probe: no part is named 'probe/knnn'; did you mean "),
        (("--collect",), "study: holds no study; latelier ablate RECIPE --axis ... --out study makes one"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(words: tuple[str, ...], message: str, run: Latelier) -> None:
    said = run(*words, "--out", "study")
    assert said.code == 1
    assert said.err.startswith(f"error: {message}")
    assert len(said.err.splitlines()) == 1
    assert not Path("study").exists()
