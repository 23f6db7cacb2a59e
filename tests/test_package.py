"""How the package is imported: lightly, once, under its own name, and in tests with its shapes checked."""

import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch

from latelier.blocks import FCDMBlock, FCDMBlockConfig, PartError, channel_rms_norm

ROOT = Path(__file__).resolve().parents[1]


def python(code: str, *, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)


def test_importing_latelier_is_light(tmp_path: Path) -> None:
    done = python("import latelier, sys; print(sorted({'numpy', 'rich', 'torch'} & sys.modules.keys()))", cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_second_copy_of_the_blocks_is_refused() -> None:
    done = python("import blocks", cwd=ROOT)
    assert done.stderr.splitlines()[-1] == "ImportError: import latelier.blocks, not blocks"


def test_the_version_is_that_of_the_distribution(tmp_path: Path) -> None:
    done = python(
        "import latelier, importlib.metadata as m; print(latelier.__version__, m.version('latelier'))", cwd=tmp_path
    )
    module, distribution = done.stdout.split()
    assert module == distribution


def test_tests_refuse_a_wrong_rank() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        channel_rms_norm(torch.randn(2, 8, 4))
    with pytest.raises(jaxtyping.TypeCheckError):
        FCDMBlock(8, cond=4)(torch.randn(2, 8, 4), torch.randn(2, 4))


def test_tests_refuse_sizes_that_disagree() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        FCDMBlock(8, cond=4)(torch.randn(2, 8, 4, 4), torch.randn(3, 4))


def test_parts_keep_their_own_errors_under_the_shape_checks() -> None:
    with pytest.raises(PartError) as error:
        FCDMBlockConfig(kernel="5")  # type: ignore[arg-type]
    assert str(error.value) == "config.kernel: takes int, got '5'"
