"""Where the cells of a study run: in this process, in worker processes, or as jobs of a cluster.

A launcher gives each cell when it has ended, in whatever order they end. Workers read the study from its folder. A
worker ends with the process that started it, and the lock of its cell with it.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..families.files import read_config
from ..training.records import Watcher
from .cells import CellBusyError, cell_folder, read_cell, run_cell, write_failure
from .find import run_file
from .study import PLAN, Study, load_plan

Address = tuple[str, int]
"""Name of a variant, and a seed."""

Ended = Iterator[tuple[Address, dict[str, Any]]]

LOG = "worker.txt"
"""What a worker said, in the folder of its cell while it runs, and afterwards if it died."""

BUSY = 75  # EX_TEMPFAIL, which Windows does not name
"""Exit status of a worker that found its cell taken."""


Launcher = Callable[[Study, Sequence[Address], Path], Ended]
"""Runs cells of the study in a folder and gives what became of them."""


def in_this_process(device: str | None = None, *, watch: Callable[[Address], Watcher] | None = None) -> Launcher:
    """One cell after the other, here."""

    def launch(study: Study, cells: Sequence[Address], folder: Path) -> Ended:
        for variant, seed in cells:
            watcher = watch((variant, seed)) if watch is not None else None
            yield (variant, seed), run_cell(study, variant, seed, folder, device=device, watcher=watcher)

    return launch


def in_processes(jobs: int, devices: Sequence[str] = ()) -> Launcher:
    """``jobs`` worker processes at a time, on the devices in turn."""
    if jobs < 1:
        raise ValueError(f"jobs: must be at least 1, got {jobs}")

    def launch(study: Study, cells: Sequence[Address], folder: Path) -> Ended:
        waiting, running = list(cells), {}
        free = [devices[i % len(devices)] if devices else None for i in range(jobs)]
        try:
            while waiting or running:
                while waiting and free:
                    address, device = waiting.pop(0), free.pop(0)
                    running[address] = _start(study, address, folder, device), device
                for address, (worker, device) in list(running.items()):
                    if worker.poll() is None:
                        continue
                    del running[address]
                    free.append(device)
                    yield address, _ended(study, address, folder, worker)
                time.sleep(0.05)
        finally:
            for worker, _ in running.values():
                worker.terminate()
            for worker, _ in running.values():
                worker.wait()

    return launch


def _start(study: Study, address: Address, folder: Path, device: str | None) -> "subprocess.Popen[bytes]":
    variant, seed = address
    command = [sys.executable, "-m", "latelier", "ablate-cell", str(folder), "--variant", variant, "--seed", str(seed)]
    command += ["--parent", str(os.getpid()), *(["--device", device] if device else [])]
    log = cell_folder(study, variant, seed, folder) / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        return subprocess.Popen(
            command,
            env=os.environ | {"OMP_NUM_THREADS": str(study.threads)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C goes to this process, which ends its workers
        )


def end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies (Linux; elsewhere the lock of its cell protects it)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died before that
            os._exit(1)


def _ended(study: Study, address: Address, folder: Path, worker: "subprocess.Popen[bytes]") -> dict[str, Any]:
    log = cell_folder(study, *address, folder) / LOG
    told = log.read_text(encoding="utf-8", errors="replace").strip()
    cell = read_cell(study, *address, folder)
    if worker.returncode == BUSY:
        raise CellBusyError(told.removeprefix("error: "))
    if cell["status"] != "pending":
        log.unlink()
        return cell
    if worker.returncode < 0:
        name = signal.Signals(-worker.returncode).name
        reason = f"the worker was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    else:
        last = (told.splitlines() or ["it said nothing"])[-1]
        reason = f"the worker ended with status {worker.returncode}: {last}"
    return write_failure(study, *address, folder, f"{reason}\n\n{told}" if told else reason)


def through_submitit(cluster: str = "slurm", parameters: Mapping[str, Any] | None = None) -> Launcher:
    """A job for each cell through submitit (extra ``slurm``): ``cluster`` is "slurm", "local" or "debug".

    ``parameters`` are submitit's: ``timeout_min=600``, ``slurm_partition="gpu"``, ``gpus_per_node=1``. The folder of
    the study must be on a file system that the jobs see, under the same path.
    """

    def launch(study: Study, cells: Sequence[Address], folder: Path) -> Ended:
        try:
            import submitit
        except ImportError as error:
            raise ImportError("ablate: clusters need submitit; pip install 'latelier[slurm]'") from error
        executor = submitit.AutoExecutor(folder=str(folder.resolve() / "jobs"), cluster=cluster)
        try:
            executor.update_parameters(**{"name": "latelier", **(parameters or {})})
        except (NameError, TypeError, AssertionError, ValueError) as error:
            raise ValueError(f"slurm: {error}") from None
        with executor.batch():
            jobs = {address: executor.submit(run_job, str(folder.resolve()), *address) for address in cells}
        while jobs:
            for address, job in list(jobs.items()):
                if not job.done():
                    continue
                del jobs[address]
                failed = job.exception()
                cell = read_cell(study, *address, folder)
                if cell["status"] == "pending" and CellBusyError.__name__ in str(failed):
                    raise CellBusyError(f"{cell['run']}: another job is running this cell; wait for it, or cancel it")
                if cell["status"] == "pending":
                    cell = write_failure(study, *address, folder, str(failed or "the job left no result"))
                yield address, cell
            time.sleep(0.2)

    return launch


def run_job(folder: str, variant: str, seed: int, device: str | None = None) -> str:
    """What a worker does: read the study, declare the parts of the user's files, run the cell; return its status."""
    path = Path(folder)
    for file in imports_of(path):
        run_file(Path(file), where="--import")
    return run_cell(load_plan(path), variant, seed, path, device=device)["status"]


def imports_of(folder: Path) -> list[str]:
    """The files that declare parts of a study, which must be run before its recipes can be read."""
    return read_config(folder / PLAN)["made"]["imports"] if (folder / PLAN).is_file() else []
