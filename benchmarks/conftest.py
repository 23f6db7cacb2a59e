"""One process, one thread unless a benchmark says otherwise, no shape checks, and a table for each file."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from measuring import Table

from latelier.blocks import channel_rms_norm

os.environ.pop("PYTEST_XDIST_WORKER", None)  # a process that a test starts is no worker of the tests

_written: list[tuple[Table, Path]] = []


def pytest_sessionstart() -> None:
    if hasattr(channel_rms_norm, "__wrapped__"):
        pytest.exit(
            "benchmarks: the shape-checking hook is on, and a checked forward costs ten times its own time; "
            "run `make bench`, or pytest without --jaxtyping-packages",
            returncode=4,
        )
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    """Rows added here end up in ``benchmarks/results``."""
    table = Table(request.path.stem.removeprefix("bench_"), request.module.__doc__.partition("\n\n")[0].strip())
    yield table
    if table.rows:
        _written.append((table, table.write(Path(__file__).parent / "results")))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for table, path in _written:
        terminalreporter.section(f"{table.name}: {path}")
        terminalreporter.write(table.markdown())
