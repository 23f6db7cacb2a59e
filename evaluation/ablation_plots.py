"""Plots of an ablation study for papers and notebooks: a metric against an axis, and the curves of training.

Figures are made without pyplot: nothing global changes, no window opens, and a figure that is the value of a notebook
cell is shown.
"""

import io
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..families.files import write_atomically
from .ablation_series import against_axis, curves
from .ablation_words import direction
from .comparison import Study

COLOURS = ("#0f5c8c", "#b8701a", "#6b4a9e", "#2e7d4f", "#b03a48", "#5f6b73")
DASHES = ("-", "--", ":")
"""Colours come again with another dash."""

PNG_DOTS = 160
"""An inch."""

KINDS: dict[str, dict[str, None]] = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None}}
"""Formats, each without what would change from day to day."""


def metric_figure(study: Study, comparison: Mapping[str, Any], key: str) -> Any:
    """A matplotlib ``Figure``: mean and standard error against the first axis' values, single seeds as dots.

    A line for each setting of the other axes; a panel for each protocol that the metric was measured under.

    Raises:
        ValueError: the study has no such metric.
        ImportError: matplotlib is not installed.
    """
    measures = [measure for measure in comparison["measures"] if measure["key"] == key]
    if not measures:
        known = ", ".join(dict.fromkeys(measure["key"] for measure in comparison["measures"])) or "no metric"
        raise ValueError(f"metric_figure: the study has no metric {key!r}; it has {known}")
    plots = [against_axis(study, measure) for measure in measures]
    longest = max(len(name) for name in plots[0].values)
    slanted = longest * len(plots[0].values) > 60
    figure = _figure((max(4.8, 1.1 * len(plots[0].values)), (3.6 if slanted else 3.2) * len(plots)))
    panels = figure.subplots(len(plots), 1, squeeze=False)[:, 0]
    for panel, measure, plot in zip(panels, measures, plots, strict=True):
        for i, line in enumerate(plot.lines):
            colour, dash = _look(i)
            shift = 0.24 * ((i + 0.5) / len(plot.lines) - 0.5)
            for spot in line.spots:
                panel.plot(
                    [spot.place + shift] * len(spot.seeds), spot.seeds, "o", color=colour, ms=3, alpha=0.4, mew=0
                )
            panel.errorbar(
                [spot.place + shift for spot in line.spots],
                [spot.row["mean"] for spot in line.spots],
                [spot.row["se"] or 0.0 for spot in line.spots],
                color=colour,
                linestyle=dash if plot.axis != "variant" else "none",
                marker="o",
                ms=5,
                capsize=3,
                label=_label(line.label),
            )
        panel.set_xticks(range(len(plot.values)), plot.values, parse_math=False)
        if slanted:
            panel.tick_params("x", rotation=20)
        panel.set_xlim(-0.5, len(plot.values) - 0.5)
        unit = f", {measure['unit']}" if measure["unit"] else ""
        panel.set_ylabel(f"{measure['label']}{unit}", parse_math=False)
        panel.set_title(f"{direction(measure)}; {measure['protocol']}", fontsize=7, color="0.35", parse_math=False)
        if any(line.label for line in plot.lines):
            _legend(panel)
    panels[-1].set_xlabel(f"{plots[0].axis} (mean ± standard error; small dots: seeds)", parse_math=False)
    return figure


def curve_figure(study: Study) -> Any:
    """A matplotlib ``Figure`` of the training loss: thick the mean over seeds, thin the single seeds.

    Raises:
        ValueError: no cell has a curve.
        ImportError: matplotlib is not installed.
    """
    drawn = curves(study)
    if not drawn:
        raise ValueError("curve_figure: no cell of the study has a curve yet")
    figure = _figure((5.6, 3.6))
    panel = figure.subplots()
    values = []
    for i, (name, mean, single) in enumerate(drawn):
        colour, dash = _look(i)
        for points in single:
            panel.plot(*zip(*points, strict=True), color=colour, lw=0.7, alpha=0.35)
            values += [y for _, y in points]
        if mean:
            panel.plot(*zip(*mean, strict=True), color=colour, linestyle=dash, lw=1.8, label=_label(name))
    if min(values) > 0 and max(values) > 8 * min(values):
        panel.set_yscale("log")
    panel.set_xlabel("step")
    panel.set_ylabel("training loss")
    _legend(panel)
    return figure


def write_plots(study: Study, comparison: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``metric-<key>`` and ``curves`` as PNG and PDF and return their paths; the same study, the same bytes."""
    figures = {}
    for key in dict.fromkeys(measure["key"] for measure in comparison["measures"]):
        figures[f"metric-{re.sub(r'[^A-Za-z0-9._-]+', '-', key)}"] = metric_figure(study, comparison, key)
    if curves(study):
        figures["curves"] = curve_figure(study)
    paths = []
    for name, figure in figures.items():
        for kind, metadata in KINDS.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=PNG_DOTS, metadata=metadata)
            paths.append(write_atomically(folder / f"{name}.{kind}", buffer.getvalue()))
    return paths


def _look(index: int) -> tuple[str, str]:
    return COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]


def _label(text: str) -> str:
    return f" {text}" if text.startswith("_") else text  # matplotlib leaves names that start so out of legends


def _legend(panel: Any) -> None:
    handles, labels = panel.get_legend_handles_labels()
    if handles:
        legend = panel.legend(handles, labels, fontsize=7, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)


def _figure(size: tuple[float, float]) -> Any:
    figure = figure_class()(figsize=size, layout="constrained")
    figure.set_facecolor("white")
    return figure


@cache
def figure_class() -> Any:
    """Of figures that show themselves; raises ``ImportError`` where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("ablation plots: need matplotlib; pip install 'latelier[ablations]'") from error

    class StudyFigure(Figure):
        """Shows itself in a notebook, which a figure made without pyplot does not."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=110)
            return buffer.getvalue()

    return StudyFigure
