"""Notebooks run from top to bottom with the interpreter of the tests, and what is committed of them reads well."""

import re
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


@every_notebook
def test_it_runs_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # nobody's start-up files
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = read(path)
    this_python = KernelSpecManager(kernel_dirs=[])  # without installed kernels, python3 is that of sys.executable
    kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=this_python)
    client = NotebookClient(notebook, km=kernel, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(cleanup_kc=True)
    check_outputs(notebook)


@every_notebook
def test_what_is_committed_of_it_reads_well(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    check_outputs(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run it once, from top to bottom"
    assert not any("execution" in cell.metadata for cell in notebook.cells), "leave out when it ran"
    assert path.stat().st_size < 400_000
    private = re.findall(r"/(?:home|root|work|tmp|Users|private)/[^\s\"']*", path.read_text(encoding="utf-8"))
    assert not private, "leave out where it ran"


def check_outputs(notebook: NotebookNode) -> None:
    """There are some, pictures among them, and neither errors nor warnings."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in data or "image/jpeg" in data for data in (output.get("data", {}) for output in outputs))
    for output in outputs:
        assert output.output_type != "error"
        text = str(output.get("text") or output.get("data", {}).get("text/plain", ""))
        assert output.get("name") != "stderr", text
        assert "Traceback" not in text
