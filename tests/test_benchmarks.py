"""What the benchmarks measure with: turns, ratios, exact counts, tables."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from latelier.families import DiffAEConfig

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def measuring() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measuring", BENCHMARKS / "measuring.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["measuring"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_functions_are_timed_in_turn(measuring: ModuleType) -> None:
    calls: list[str] = []
    runs = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = measuring.interleaved(runs, rounds=3, warm_up=1, sample=0)
    assert calls == ["a", "b"] * 4
    assert {name: len(spread.values) for name, spread in times.items()} == {"a": 3, "b": 3}


def test_short_functions_are_repeated_until_they_fill_the_sample(measuring: ModuleType) -> None:
    now = 0.0
    calls: list[float] = []

    def quarter_of_a_second() -> None:
        nonlocal now
        now += 0.25
        calls.append(now)

    times = measuring.interleaved({"f": quarter_of_a_second}, rounds=2, warm_up=1, sample=1, clock=lambda: now)
    assert times["f"].values == (0.25, 0.25)
    assert len(calls) == 1 + 2 * 4


def test_ratios_are_taken_round_by_round(measuring: ModuleType) -> None:
    ratio = measuring.Spread((20.0, 90.0, 60.0)).over(measuring.Spread((10.0, 30.0, 20.0)))
    assert ratio == measuring.Spread((2.0, 3.0, 3.0), unit="")
    assert ratio.median == 3
    assert ratio.quartiles == (2.5, 3.0)


def test_peak_memory_counts_new_tensors_while_they_live(measuring: ModuleType) -> None:
    x = torch.ones(256)  # 1,024 bytes

    def three_at_once() -> None:
        y, z = x + 1, x + 2
        y.view(2, 128).mul_(3)
        _ = y + z

    def two_at_once() -> None:
        y = x + 1
        for _ in range(5):
            y = y + 1

    assert measuring.peak_bytes(three_at_once) == 3 * 1024
    assert measuring.peak_bytes(two_at_once) == 2 * 1024
    assert measuring.peak_bytes(lambda: x.view(2, 128).mul_(1)) == 0


def test_peak_memory_is_the_same_on_meta(measuring: ModuleType) -> None:
    model, image = DiffAEConfig(width=32, latent=4, patch=4).build(), torch.rand(2, 3, 16, 16)
    here = measuring.peak_bytes(lambda: model.encode(image))
    model, image = model.to("meta"), image.to("meta")
    assert here == measuring.peak_bytes(lambda: model.encode(image)) > 0


def test_a_table_is_written_as_markdown_and_json(measuring: ModuleType, tmp_path: Path) -> None:
    table = measuring.Table("norms", "How long norms take.")
    table.add(case="rms", time=measuring.Spread((0.002, 0.003, 0.0041)), peak_bytes=12345)
    table.add(case="grn", faster=measuring.Spread((2.0, 3.0, 4.0), unit=""))
    path = table.write(tmp_path)
    assert path.read_text().startswith("# norms\n\nHow long norms take.\n\ndevice ")
    assert path.read_text().endswith(
        "\n\n| case | time | peak bytes | faster |\n"
        "| --- | --- | --- | --- |\n"
        "| rms | 3 ms (2.5 ms to 3.55 ms) | 12,345 |  |\n"
        "| grn |  |  | 3 (2.5 to 3.5) |\n"
    )
    stored = json.loads(path.with_suffix(".json").read_text())
    assert stored["machine"]["torch"] == torch.__version__.partition("+")[0]
    assert stored["rows"][1] == {
        "case": "grn",
        "faster": {"median": 3.0, "quartiles": [2.5, 3.5], "unit": "", "rounds": 3},
    }
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json", ".md"]


def test_benchmarks_refuse_to_run_under_the_shape_checking_hook() -> None:
    command = [sys.executable, "-m", "pytest", str(BENCHMARKS), "--jaxtyping-packages=latelier,beartype.beartype"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 4
    assert "benchmarks: the shape-checking hook is on" in ran.stdout + ran.stderr
    assert "run `make bench`, or pytest without --jaxtyping-packages" in ran.stdout + ran.stderr


def test_every_file_of_benchmarks_is_importable_and_has_some() -> None:
    command = [sys.executable, "-m", "pytest", str(BENCHMARKS), "--collect-only", "--quiet"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = {line.partition("::")[0].rpartition("/")[2] for line in ran.stdout.splitlines() if "::" in line}
    assert found == {file.name for file in BENCHMARKS.glob("bench_*.py")}
