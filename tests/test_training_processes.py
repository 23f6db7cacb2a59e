"""Two processes under torchrun train as one does: same data, same noise, same losses up to rounding."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latelier.families import read_tensors
from latelier.training import read_records

RECIPE = """
from latelier.blocks import DiTBlockConfig, HOGConfig, NoisyLatentHeadConfig, SkipDecoderConfig, StackEncoderConfig
from latelier.families import DiffAEConfig
from latelier.training import (
    AdamWConfig, AlignmentConfig, FolderDataConfig, LatentScaleConfig, Recipe, StageConfig, VPReconstructionConfig,
)


def small():
    head = NoisyLatentHeadConfig(width=16, block=DiTBlockConfig(head_width=8))
    return Recipe(
        name="small",
        model=DiffAEConfig(
            patch=8, width=16, latent=4, encoder=StackEncoderConfig(depth=1),
            decoder=SkipDecoderConfig(start=1, middle=1, end=1, rank=4),
        ),
        teacher=HOGConfig(patch=8),
        data=FolderDataConfig(path=PICTURES),
        stages=(
            StageConfig(
                steps=12, batch=8, accumulate=ACCUMULATE, resolution=16, log_every=1, checkpoint_every=4,
                objective=(VPReconstructionConfig(path_drop=0.0), AlignmentConfig(head=head), LatentScaleConfig()),
                optimiser=AdamWConfig(rate=1e-3), recalibrate=3, ema=0.9, precision="float32",
            ),
        ),
    )
"""

LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-4, 1e-3  # relative; twelve steps of float32 sums in another order


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    for parts in (1, 2):
        text = RECIPE.replace("PICTURES", repr(str(pictures))).replace("ACCUMULATE", str(parts))
        (folder / f"recipe{parts}.py").write_text(text)
    return folder


def run(folder: Path, out: str, *, processes: int, parts: int = 1, resume: bool = False) -> list[dict[str, float]]:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    command += ["-m", "latelier", "train", f"recipe{parts}.py:small", "--out", out, "--device", "cpu"]
    done = subprocess.run(
        command + ["--resume"] * resume,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return read_records(folder / out / "metrics.jsonl")


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[dict[str, float]]:
    return run(folder, "alone", processes=1)


def assert_same_curve(curve: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert [line["step"] for line in curve] == [line["step"] for line in expected]
    for line, other in zip(curve, expected, strict=True):
        assert line.keys() == other.keys()
        for name in line.keys() - {"step", "stage"}:
            assert line[name] == pytest.approx(other[name], rel=LOSS_TOLERANCE), (line["step"], name)


def test_two_processes_train_as_one_with_the_same_global_batch(folder: Path, alone: list[dict[str, float]]) -> None:
    assert_same_curve(run(folder, "both", processes=2, parts=2), alone)
    one, two = (read_tensors(folder / out / "model" / "model.safetensors")[0] for out in ("alone", "both"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=WEIGHT_TOLERANCE, atol=1e-5, msg=name)


def test_a_run_of_one_process_goes_on_with_two(folder: Path, alone: list[dict[str, float]]) -> None:
    shutil.copytree(folder / "alone", folder / "moved")
    (folder / "moved" / "checkpoints" / "step-00000012.safetensors").unlink()
    (folder / "moved" / "checkpoints" / "best.safetensors").unlink()
    shutil.rmtree(folder / "moved" / "model")
    assert_same_curve(run(folder, "moved", processes=2, resume=True), alone)
    recipes = [json.loads((folder / out / "recipe.json").read_text()) for out in ("alone", "moved")]
    assert recipes[0] == recipes[1]
