"""What the plots of an ablation study draw, for the page and for matplotlib alike."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .comparison import Study, ordered, values_of

Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Spot:
    """One variant in a plot: where on the axis, its row of the comparison, its single seeds."""

    place: int
    row: Mapping[str, Any]
    seeds: list[float]


@dataclass(frozen=True)
class Line:
    """Variants that differ along the axis of the plot alone; without a label where there is one line."""

    label: str
    spots: list[Spot] = field(default_factory=list)


@dataclass(frozen=True)
class AxisPlot:
    """A measure against the values of one axis, a line for each setting of the other axes."""

    axis: str
    values: list[str]
    lines: list[Line]


def against_axis(study: Study, measure: Mapping[str, Any]) -> AxisPlot:
    """The measure against the first axis that has several values; against the variants' names where none has."""
    axes = {axis: list(values) for axis, values in study["axes"].items() if len(values) > 1}
    rows = {row["variant"]: row for row in measure["variants"]}
    found = values_of(study, measure["key"], measure["protocol"])
    axis = next(iter(axes), "")
    gridded = bool(axis) and all(axes.keys() <= variant["labels"].keys() for variant in study["variants"])
    names = axes[axis] if gridded else [variant["name"] for variant in study["variants"]]
    lines: dict[str, Line] = {}
    for variant in study["variants"]:
        name, labels = variant["name"], variant["labels"]
        label = ", ".join(f"{other}={labels[other]}" for other in axes if other != axis) if gridded else ""
        place = names.index(labels[axis] if gridded else name)
        line = lines.setdefault(label, Line(label))
        if name in rows and rows[name]["n"]:
            line.spots.append(Spot(place, rows[name], [x for (who, _), x in found.items() if who == name]))
    return AxisPlot(axis if gridded else "variant", names, list(lines.values()))


def curves(study: Study) -> list[tuple[str, Curve, list[Curve]]]:
    """Of each variant with a curve: its name, the mean over finished seeds at the steps that all have, single seeds.

    Values that are not finite are left out; the curve of a cell that failed is a single one and in no mean.
    """
    found = []
    for variant in study["variants"]:
        single: list[Curve] = []
        tables: list[dict[float, float]] = []
        for cell in ordered(study):
            points = [(float(x), float(y)) for x, y in cell["curve"] if y is not None and math.isfinite(y)]
            if cell["variant"] == variant["name"] and points:
                single.append(points)
                tables += [dict(points)] if cell["status"] == "finished" else []
        if single:
            common = [x for x in tables[0] if all(x in table for table in tables)] if tables else []
            mean = [(x, math.fsum(table[x] for table in tables) / len(tables)) for x in common]
            found.append((variant["name"], mean, single))
    return found
