"""How benchmarks measure: times taken in turn, exact counts, and tables that name the machine they were made on."""

import datetime
import importlib.metadata
import json
import math
import os
import platform
import re
import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


def awake(module: M) -> M:
    """The module where and as it is measured, with random weights, because many are born as zero."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.05)
    return module.to(DEVICE, DTYPE)


def assert_agrees(value: Tensor, expected: Tensor) -> None:
    """Equal but for rounding: relative L2 error up to 1e-5, in bfloat16 2 %."""
    error = (value.double() - expected.double()).norm() / expected.double().norm()
    assert error <= (1e-5 if value.dtype == torch.float32 else 0.02), f"relative error {error:.1e}"


def draw(*shape: int) -> Tensor:
    """Standard normal numbers where and as they are measured."""
    return torch.randn(shape, device=DEVICE, dtype=DTYPE)


@dataclass(frozen=True)
class Spread:
    """One number a round: seconds a call, or ratios of such."""

    values: tuple[float, ...]
    unit: Literal["s", ""] = "s"

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    def over(self, other: "Spread") -> "Spread":
        """Quotients round by round: what slows a round down slows both."""
        return Spread(tuple(a / b for a, b in zip(self.values, other.values, strict=True)), unit="")


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 20,
    warm_up: int = 2,
    sample: float = 0.005,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Spread]:
    """Time each function once a round, in turn, so that a slow spell of the machine falls on all of them.

    A measurement repeats its function for about ``sample`` seconds or once; on CUDA it takes events for its clock.
    """
    repeats = {}
    for name, function in functions.items():
        once = min(_seconds(function, 1, clock) for _ in range(warm_up))
        repeats[name] = max(1, math.ceil(sample / once))
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            found[name].append(_seconds(function, repeats[name], clock))
    return {name: Spread(tuple(seconds)) for name, seconds in found.items()}


def _seconds(function: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> float:
    if DEVICE == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(repeats):
            function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / repeats
    begin = clock()
    for _ in range(repeats):
        function()
    return (clock() - begin) / repeats


def settled(function: Callable[..., T]) -> Callable[..., T]:
    """The function, waiting until the device has done what it asked for."""

    def call(*arguments: Any) -> T:
        result = function(*arguments)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return result

    return call


class Crowd:
    """A context that finds how many processor cores other processes kept busy meanwhile; 0 where nothing tells."""

    cores = 0.0

    def __enter__(self) -> "Crowd":
        self._begin = time.perf_counter(), _computed_by_others()
        return self

    def __exit__(self, *error: object) -> None:
        begin, computed = self._begin
        self.cores = max(0.0, _computed_by_others() - computed) / (time.perf_counter() - begin)


def _computed_by_others() -> float:
    """Seconds since the machine started, of all cores together."""
    try:
        user, nice, system, _, _, irq, softirq, steal, *_ = Path("/proc/stat").read_text().split()[1:]
    except (OSError, ValueError):
        return 0.0
    return sum(map(int, (user, nice, system, irq, softirq, steal))) / os.sysconf("SC_CLK_TCK") - time.process_time()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """``count`` threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- exact counts ---------------------------------------------------------------------------------------------


def flops(function: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products, convolutions and attention; costs nothing on ``meta`` tensors."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def peak_bytes(function: Callable[[], Any]) -> int:
    """The most bytes that tensors made by ``function`` hold at once, its result included; exact, on ``meta`` too.

    Scratch memory inside an operator is not seen.
    """
    with _LiveTensors() as live:
        function()
    return live.peak


class _LiveTensors(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.peak = self._bytes = 0
        self._held: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {a.untyped_storage()._cdata for a in args if isinstance(a, Tensor)}
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self._hold(tensor.untyped_storage(), given)
        return made

    def _hold(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = storage._cdata
        if key in self._held or key in given:  # a view, or written in place
            return
        self._held[key] = storage.nbytes()
        self._bytes += storage.nbytes()
        self.peak = max(self.peak, self._bytes)
        weakref.finalize(storage, self._release, key).atexit = False

    def _release(self, key: int) -> None:
        self._bytes -= self._held.pop(key)


# --- tables ---------------------------------------------------------------------------------------------------

Cell = str | int | float | Spread | None


class Table:
    """Rows of named cells; spreads are shown as median and quartiles. ``about`` is the sentence above them."""

    def __init__(self, name: str, about: str) -> None:
        self.name, self.about = name, about
        self.rows: list[dict[str, Cell]] = []

    def add(self, **cells: Cell) -> None:
        """Add a row; underscores in the names of columns are read as spaces."""
        self.rows.append({name.replace("_", " "): cell for name, cell in cells.items()})

    def markdown(self) -> str:
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        lines = [columns, ["---"] * len(columns)]
        lines += [[_shown(row.get(column)) for column in columns] for row in self.rows]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def write(self, folder: Path) -> Path:
        """Write ``NAME-DEVICE.md`` and ``.json``; returns the path of the former."""
        folder.mkdir(exist_ok=True)
        where = machine()
        path = folder / f"{self.name}-{re.sub(r'[^a-z0-9]+', '-', where['device'].lower()).strip('-')}.md"
        facts = "; ".join(f"{name} {value}" for name, value in where.items())
        _replace(path, f"# {self.name}\n\n{self.about}\n\n{facts}. Medians with quartiles.\n\n{self.markdown()}")
        rows = [{name: _plain(cell) for name, cell in row.items()} for row in self.rows]
        _replace(path.with_suffix(".json"), json.dumps({"machine": where, "rows": rows}, indent=1) + "\n")
        return path


def machine() -> dict[str, str]:
    """What a number depends on besides the code."""
    versions = {name: importlib.metadata.version(name) for name in ("latelier", "torch", "diffusers")}
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else _cpu_name()
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    dtype = str(DTYPE).removeprefix("torch.")
    return {"device": device, "dtype": dtype, "date": date, "python": platform.python_version(), **versions}


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _shown(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, Spread):
        show = _duration if cell.unit == "s" else "{:.3g}".format
        return f"{show(cell.median)} ({' to '.join(map(show, cell.quartiles))})"
    if isinstance(cell, float):
        return f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def _duration(seconds: float) -> str:
    unit, scale = next((u, s) for u, s in (("s", 1), ("ms", 1e3), ("us", 1e6)) if seconds * s >= 1 or u == "us")
    return f"{seconds * scale:.3g} {unit}"


def _plain(cell: Cell) -> Any:
    if not isinstance(cell, Spread):
        return cell
    return {"median": cell.median, "quartiles": cell.quartiles, "unit": cell.unit, "rounds": len(cell.values)}


def _replace(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
