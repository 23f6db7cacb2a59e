"""A run's progress on the terminal: a bar with the time left, or a line now and then where there is no terminal."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .records import Watcher

LINES = 20
"""Lines that a whole run prints where there is no terminal."""


class ProgressWatcher(Watcher):
    """Draws a run on ``console``; use it as a context."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._first = self._total = self._shown = 0
        self._clock = 0.0

    def __enter__(self) -> "ProgressWatcher":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def start(self, recipe: Any, *, done: int, total: int) -> None:
        self._first, self._total, self._clock = done, total, time.monotonic()
        self._shown = done
        self._task = self._bar.add_task("training", total=total, completed=done, loss="")
        if done:
            self.say(f"going on from step {done} of {total}")

    def step(self, total: int, values: Mapping[str, float] | None) -> None:
        assert self._task is not None
        loss = f"loss {values['loss']:.4f}" if values and "loss" in values else None
        self._bar.update(self._task, completed=total)
        if loss:
            self._bar.update(self._task, loss=loss)
        due = total == self._total or total - self._shown >= self._total / LINES
        if not self.console.is_terminal and loss and due:
            self._shown = total
            seconds = time.monotonic() - self._clock
            left = seconds / max(1, total - self._first) * (self._total - total)
            self.say(f"step {total:>6} of {self._total}  {loss}  {seconds:4.0f} s, {left:.0f} s left")

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False)
