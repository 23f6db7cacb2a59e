"""What a run writes while it goes: ``metrics.jsonl`` (deterministic) and ``timing.jsonl`` (not), one object a line.

The files are only appended to. A resumed run first drops lines past its checkpoint, so that the metrics of a run that
was killed and resumed are byte for byte those of one that was not.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..families.files import write_atomically

METRICS, TIMING = "metrics.jsonl", "timing.jsonl"


class Watcher:
    """Hears of the progress of a run. This one keeps quiet; the command line has one that draws."""

    def start(self, recipe: Any, *, done: int, total: int) -> None:
        """``done`` of ``total`` steps were done by the run that this one continues."""

    def step(self, total: int, values: Mapping[str, float] | None) -> None:
        """``total`` steps are done; ``values`` are the metrics of the last one where they were recorded."""

    def say(self, text: str) -> None:
        """Something that a person should know."""


class Records:
    """The record files of a run folder, cut back to ``step``. ``tensorboard`` mirrors the metrics there as well."""

    def __init__(self, folder: Path, *, step: int, tensorboard: bool = False) -> None:
        for name in (METRICS, TIMING):
            lines = [line for line in read_records(folder / name) if line["step"] <= step]
            write_atomically(folder / name, "".join(_line(line) for line in lines))
        self.folder = folder
        self._board = _summary_writer(folder / "tensorboard", step) if tensorboard else None

    def metrics(self, step: int, stage: str, values: Mapping[str, float]) -> None:
        self._append(METRICS, {"step": step, "stage": stage, **values})
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def timing(self, step: int, seconds: float) -> None:
        self._append(TIMING, {"step": step, "seconds": round(seconds, 3)})

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(_line(record))


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a record file; a last line that was cut short is left out."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _summary_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("tensorboard: is not installed; pip install 'latelier[tensorboard]'") from error
    return SummaryWriter(str(folder), purge_step=step + 1)
