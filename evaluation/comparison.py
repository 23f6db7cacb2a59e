"""What an ablation study shows and what it does not: means over seeds, paired differences, main effects.

Every variant ran on the same seeds, and a seed fixes the order of the data and all noise. What a seed does to all
variants alike cancels in the difference to the baseline of the same seed: with differences d_1 ... d_n, their mean m
and their standard deviation s (divisor n - 1),

    interval = m ± t(0.975, n - 1) s / sqrt(n),    p = 2 P(T > |m| sqrt(n) / s),    T of Student with n - 1 degrees

(Student, *The probable error of a mean*, 1908). The interval is one of 95 % for each difference by itself; ``p_holm``
allows for their number (Holm, *A simple sequentially rejective multiple test procedure*, 1979). Both speak of other
seeds on the same data and the same measured images, not of other images.

Numbers of two protocols are never averaged nor subtracted: a *measure* is a metric under one protocol.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Study = Mapping[str, Any]

LEVEL = 0.95
BETTER, WORSE, UNSHOWN = "better", "worse", "no difference shown"


def compare(study: Study) -> dict[str, Any]:
    """Compare the cells of a study; JSON-able, and the same whatever the order in which cells finished.

    ``measures`` has an entry for each metric and protocol. Its ``variants`` are those measured so, with ``cells``
    (planned), ``finished``, ``n`` (values that went into the mean), ``mean``, ``se`` (standard error over seeds) and
    ``difference`` to the baseline; ``reason`` says why there is no difference, or none with an interval. A variant
    without any value of a metric stands in the first measure of that metric. Its ``effects`` compare each value of an
    axis with the baseline's: for each seed the differences are averaged over all settings of the other axes where
    both cells have a value (``pairs`` of ``possible``), then treated as above.

    A difference has ``n`` pairs, ``mean``, ``se``, ``low``, ``high``, ``p``, ``p_holm`` and a ``verdict``: 'better' or
    'worse' where the interval excludes zero, else 'no difference shown'; None where the metric has no better
    direction. ``constant`` differences (all the same number) have no variance: zeros have the interval [0, 0] and
    p 1, others an interval without width and p 0, which is as certain as the formula gets, not as the world is.

    ``comparisons`` counts differences and effects; Holm's adjustment is made within each of these two families.
    ``without_value`` lists what finished cells could not measure (None, infinite, not a number).

    Raises:
        ValueError: the study names its baseline, a variant, a seed or a metric wrongly or twice.
        ImportError: scipy is not installed.
    """
    _check(study)
    measures = [_measure(study, kind, first) for kind, first in _kinds(study)]
    differences = [row["difference"] for measure in measures for row in measure["variants"]]
    effects = [effect["difference"] for measure in measures for effect in measure["effects"]]
    return {
        "format": 1,
        "baseline": study["baseline"],
        "level": LEVEL,
        "comparisons": {"differences": _adjust(differences), "effects": _adjust(effects)},
        "measures": measures,
        "without_value": [
            {"variant": cell["variant"], "seed": cell["seed"], "key": metric["key"], "label": metric["label"]}
            for cell in ordered(study)
            for metric in _metrics(cell)
            if not _finite(metric["value"])
        ],
    }


# --- statistics ---------------------------------------------------------------------------------------------------


def mean_and_error(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The mean, and its standard error; None where there are too few values."""
    n = len(values)
    if n == 0:
        return None, None
    mean = values[0] if _constant(values) else math.fsum(values) / n
    if n == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)


def paired(differences: Sequence[float], better: str | None) -> dict[str, Any]:
    """Mean, interval, p and verdict of differences; with fewer than two of them the mean alone."""
    n = len(differences)
    mean, se = mean_and_error(differences)
    low = high = p = None
    if mean is not None and se is not None:
        if _constant(differences):
            low = high = mean
            p = 1.0 if mean == 0 else 0.0
        else:
            t = student()
            reach = float(t.ppf((1 + LEVEL) / 2, n - 1)) * se
            low, high = mean - reach, mean + reach
            p = float(2 * t.sf(abs(mean) / se, n - 1))
    return {
        "n": n,
        "mean": mean,
        "se": se,
        "low": low,
        "high": high,
        "p": p,
        "p_holm": None,
        "constant": n > 1 and _constant(differences),
        "verdict": verdict(low, high, better),
    }


def verdict(low: float | None, high: float | None, better: str | None) -> str | None:
    """What an interval says: nothing unless it excludes zero, and not which side is good where none is."""
    if low is None or high is None:
        return None
    if low <= 0 <= high:
        return UNSHOWN
    if better is None:
        return None
    return BETTER if (low > 0) == (better == "higher") else WORSE


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p: the i-th smallest (from 0) of m times m - i, at least its predecessor's and at most 1."""
    adjusted, least = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        least = max(least, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = least
    return adjusted


def _adjust(differences: Sequence[dict[str, Any] | None]) -> int:
    """Write Holm's p beside each p, and return how many comparisons were made."""
    made = [difference for difference in differences if difference is not None and difference["p"] is not None]
    for difference, p in zip(made, holm([difference["p"] for difference in made]), strict=True):
        difference["p_holm"] = p
    return len(made)


def _constant(values: Sequence[float]) -> bool:
    return all(value == values[0] for value in values)


def student() -> Any:
    """Scipy's t distribution; raises ``ImportError`` where scipy is missing."""
    try:
        from scipy.stats import t
    except ImportError as error:
        raise ImportError("compare: intervals need scipy; pip install 'latelier[ablations]'") from error
    return t


# --- measures -----------------------------------------------------------------------------------------------------


def _kinds(study: Study) -> Iterator[tuple[dict[str, Any], bool]]:
    """Each metric under each protocol, the baseline's protocols first; and whether it is the metric's first."""
    cells = sorted(ordered(study), key=lambda cell: cell["variant"] != study["baseline"])
    kinds: dict[str, dict[str, dict[str, Any]]] = {}
    for cell in cells:
        for metric in _metrics(cell):
            kind = {name: metric[name] for name in ("key", "label", "unit", "better", "protocol")}
            kinds.setdefault(metric["key"], {}).setdefault(metric["protocol"], kind)
    for protocols in kinds.values():
        yield from ((kind, i == 0) for i, kind in enumerate(protocols.values()))


def _measure(study: Study, kind: dict[str, Any], first: bool) -> dict[str, Any]:
    values = values_of(study, kind["key"], kind["protocol"])
    known = {name for name, *_ in values_of(study, kind["key"])}  # under any protocol
    shown = {name for name, _ in values} | ({v["name"] for v in study["variants"]} - known if first else set())
    context = _Context(study, kind, values, known)
    return {
        **kind,
        "variants": [context.row(variant["name"]) for variant in study["variants"] if variant["name"] in shown],
        "effects": [
            context.effect(axis, value, context.labels[study["baseline"]][axis])
            for axis, members in study["axes"].items()
            for value in members
            if axis in context.labels[study["baseline"]] and value != context.labels[study["baseline"]][axis]
        ],
    }


class _Context:
    """One measure of a study: values by variant and seed, and who has a value of the metric at all."""

    def __init__(
        self, study: Study, kind: dict[str, Any], values: dict[tuple[str, int], float], known: set[str]
    ) -> None:
        self.study, self.kind, self.values, self.known = study, kind, values, known
        self.seeds: list[int] = list(study["seeds"])
        self.baseline: str = study["baseline"]
        self.labels: dict[str, dict[str, str]] = {v["name"]: dict(v["labels"]) for v in study["variants"]}

    def row(self, name: str) -> dict[str, Any]:
        cells = [cell for cell in self.study["cells"] if cell["variant"] == name]
        found = [self.values[name, seed] for seed in self.seeds if (name, seed) in self.values]
        mean, se = mean_and_error(found)
        difference, reason = (None, "the baseline") if name == self.baseline and found else self.difference(name)
        return {
            "variant": name,
            "cells": len(cells),
            "finished": sum(cell["status"] == "finished" for cell in cells),
            "n": len(found),
            "mean": mean,
            "se": se,
            "difference": difference,
            "reason": reason,
        }

    def difference(self, name: str) -> tuple[dict[str, Any] | None, str | None]:
        """The paired difference to the baseline, and why it is none or has no interval."""
        for subject, who in (("", name), ("baseline ", self.baseline)):
            if not self.measured(who):
                return None, subject + self.absence(who)
        both = [seed for seed in self.seeds if {(name, seed), (self.baseline, seed)} <= self.values.keys()]
        if not both:
            return None, "no seed of which both have a value"
        found = paired([self.values[name, s] - self.values[self.baseline, s] for s in both], self.kind["better"])
        return found, "one pair of seeds, of which no interval follows" if len(both) == 1 else None

    def measured(self, name: str) -> bool:
        return any((name, seed) in self.values for seed in self.seeds)

    def absence(self, name: str) -> str:
        """Why a variant has no value in this measure."""
        if name in self.known:
            return "measured under another protocol"
        cells = [cell for cell in self.study["cells"] if cell["variant"] == name]
        states = {cell["status"] for cell in cells}
        if "finished" not in states:
            return "failed" if states == {"failed"} else "not yet run" if states == {"pending"} else "no finished cell"
        tried = any(m["key"] == self.kind["key"] for cell in cells for m in _metrics(cell))
        return "no finite value" if tried else "not measured"

    def effect(self, axis: str, value: str, against: str) -> dict[str, Any]:
        partners = []
        for name, labels in self.labels.items():
            if labels.get(axis) == value:
                wanted = labels | {axis: against}
                partners += [(name, other) for other, theirs in self.labels.items() if theirs == wanted]
        averages, pairs = [], 0
        for seed in self.seeds:
            found = [
                self.values[name, seed] - self.values[other, seed]
                for name, other in partners
                if {(name, seed), (other, seed)} <= self.values.keys()
            ]
            if found:
                averages.append(found[0] if _constant(found) else math.fsum(found) / len(found))
                pairs += len(found)
        reason = None
        if not averages:
            reason = self.no_pairs(axis, against, partners)
        elif len(averages) == 1:
            reason = "one seed, of which no interval follows"
        return {
            "axis": axis,
            "value": value,
            "against": against,
            "pairs": pairs,
            "possible": len(partners) * len(self.seeds),
            "difference": paired(averages, self.kind["better"]) if averages else None,
            "reason": reason,
        }

    def no_pairs(self, axis: str, against: str, partners: Sequence[tuple[str, str]]) -> str:
        if not partners:
            return f"no two variants differ in {axis} alone"
        for subject, side in zip(("", f"{against} "), zip(*partners, strict=True), strict=True):
            if not any(map(self.measured, side)) and {self.absence(name) for name in side} == {"failed"}:
                return f"{subject}failed"
        elsewhere = any(name in self.known and not self.measured(name) for pair in partners for name in pair)
        return "measured under another protocol" if elsewhere else "no seed of which both have a value"


def values_of(study: Study, key: str, protocol: str | None = None) -> dict[tuple[str, int], float]:
    """Finite values of finished cells by variant and seed, under one protocol or any."""
    return {
        (cell["variant"], cell["seed"]): float(metric["value"])
        for cell in ordered(study)
        for metric in _metrics(cell)
        if metric["key"] == key and protocol in (None, metric["protocol"]) and _finite(metric["value"])
    }


def ordered(study: Study) -> list[Mapping[str, Any]]:
    """The cells in the order of variants and seeds, in whichever they finished."""
    order = {variant["name"]: i for i, variant in enumerate(study["variants"])}
    return sorted(study["cells"], key=lambda cell: (order[cell["variant"]], study["seeds"].index(cell["seed"])))


def _metrics(cell: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return cell["metrics"] if cell["status"] == "finished" else ()


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _check(study: Study) -> None:
    names = [variant["name"] for variant in study["variants"]]
    if study["baseline"] not in names:
        known = ", ".join(map(repr, names)) or "there are none"
        raise ValueError(f"study.baseline: {study['baseline']!r} is no variant of the study ({known})")
    _once(names, "study.variants")
    for i, cell in enumerate(study["cells"]):
        if cell["variant"] not in names:
            raise ValueError(f"study.cells[{i}].variant: {cell['variant']!r} is no variant of the study")
        if cell["seed"] not in study["seeds"]:
            raise ValueError(f"study.cells[{i}].seed: {cell['seed']!r} is no seed of the study")
        _once([metric["key"] for metric in _metrics(cell)], f"study.cells[{i}].metrics")
    _once([f"{cell['variant']}, seed {cell['seed']}" for cell in study["cells"]], "study.cells")


def _once(names: Sequence[str], where: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{where}: {name!r} is there {names.count(name)} times; each is there once")
