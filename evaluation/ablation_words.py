"""What tables and pages say of an ablation study, as plain text: numbers with fitting digits, rows, notes, failures.

Nothing here depends on when or how fast a cell ran, so that an interrupted and resumed study says the same.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .comparison import Study, ordered

MINUS, DASH = "−", "–"
HEAD = ("variant", "n", "mean ± SE", "difference", "95 % interval", "p", "p (Holm)", "reading")
EFFECTS_HEAD = ("effect", "pairs", "difference", "95 % interval", "p", "p (Holm)", "reading")
LONGEST = 400
"""Of an error in a table; the whole stands in its file."""


@dataclass(frozen=True)
class Group:
    """Rows about one measure: a metric under one protocol."""

    title: str
    protocol: str
    rows: list[list[str]]


def digits(measure: Mapping[str, Any]) -> int:
    """Digits after the point: two of decibels, else four in all, and up to two more where an error is smaller."""
    largest = max((abs(row["mean"]) for row in measure["variants"] if row["mean"] is not None), default=0.0)
    before = math.floor(math.log10(largest)) + 1 if largest >= 1 else 0
    base = 2 if measure["unit"] == "dB" else max(4 - before, 0)
    errors = [row["se"] for row in measure["variants"]]
    errors += [d["se"] for row in [*measure["variants"], *measure["effects"]] if (d := row["difference"])]
    smallest = min((error for error in errors if error), default=1.0)
    return min(max(-math.floor(math.log10(smallest)), base), base + 2)


def fixed(value: float | None, places: int, *, sign: bool = False) -> str:
    """A number with so many digits, with a power of ten where it would look like zero and is not; None is a dash."""
    if value is None:
        return DASH
    plus = "+" if sign and value else ""
    text = f"{value:{plus}.{places}f}"
    if value and not float(text):
        text = f"{value:{plus}.0e}"
    return (text if value else text.lstrip("-")).replace("-", MINUS)


def probability(p: float | None) -> str:
    return DASH if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def direction(measure: Mapping[str, Any]) -> str:
    return f"{measure['better']} is better" if measure["better"] else "neither direction is better"


def heading(measure: Mapping[str, Any]) -> str:
    unit = f", {measure['unit']}" if measure["unit"] else ""
    return f"{measure['label']}{unit} ({direction(measure)})"


# --- rows ---------------------------------------------------------------------------------------------------------


def groups(comparison: Mapping[str, Any]) -> list[Group]:
    """The rows of the main table; columns as in ``HEAD``."""
    return [
        Group(heading(m), m["protocol"], [_row(row, digits(m)) for row in m["variants"]])
        for m in comparison["measures"]
    ]


def effect_groups(study: Study, comparison: Mapping[str, Any]) -> list[Group]:
    """The rows of main effects, columns as in ``EFFECTS_HEAD``; none with fewer than two axes.

    Along a single axis they would say again what the differences say.
    """
    if sum(len(values) > 1 for values in study["axes"].values()) < 2:
        return []
    return [
        Group(
            heading(m),
            m["protocol"],
            [[effect_name(e), f"{e['pairs']}/{e['possible']}", *_difference(e, digits(m))] for e in m["effects"]],
        )
        for m in comparison["measures"]
    ]


def effect_name(effect: Mapping[str, Any]) -> str:
    return f"{effect['axis']}: {effect['value']}, not {effect['against']}"


def mean_text(row: Mapping[str, Any], places: int) -> str:
    error = "" if row["se"] is None else f" ± {fixed(row['se'], places)}"
    return fixed(row["mean"], places) + error


def interval_text(difference: Mapping[str, Any] | None, places: int) -> str:
    if difference is None or difference["low"] is None:
        return DASH
    return f"[{fixed(difference['low'], places, sign=True)}, {fixed(difference['high'], places, sign=True)}]"


def reading(row: Mapping[str, Any]) -> str:
    """The verdict, or why there is none."""
    difference = row["difference"]
    if row["reason"]:
        return row["reason"]
    if difference["verdict"] is None:
        return "different"
    if difference["constant"] and difference["mean"]:
        return f"{difference['verdict']} (all pairs differ by the same number)"
    return difference["verdict"]


def _row(row: Mapping[str, Any], places: int) -> list[str]:
    return [row["variant"], f"{row['n']}/{row['cells']}", mean_text(row, places), *_difference(row, places)]


def _difference(row: Mapping[str, Any], places: int) -> list[str]:
    d = row["difference"] or {"mean": None, "low": None, "p": None, "p_holm": None}
    return [
        fixed(d["mean"], places, sign=True),
        interval_text(d, places),
        probability(d["p"]),
        probability(d["p_holm"]),
        reading(row),
    ]


# --- overview -----------------------------------------------------------------------------------------------------

MARKS = {"better": " ▲", "worse": " ▼"}
OTHER_PROTOCOL = " †"


def overview(study: Study, comparison: Mapping[str, Any]) -> list[list[str]]:
    """A row for each variant and a column for each metric, after a row of heads: means with marks."""
    measures: dict[str, list[Mapping[str, Any]]] = {}
    for measure in comparison["measures"]:
        measures.setdefault(measure["key"], []).append(measure)
    heads = [f"{m['label']}, {m['unit']}" if m["unit"] else m["label"] for m, *_ in measures.values()]
    rows = [["variant", "finished", *heads]]
    for variant in study["variants"]:
        cells = [cell for cell in study["cells"] if cell["variant"] == variant["name"]]
        finished = sum(cell["status"] == "finished" for cell in cells)
        marked = [_marked(found, variant["name"], comparison["baseline"]) for found in measures.values()]
        rows.append([variant["name"], f"{finished}/{len(cells)}", *marked])
    return rows


def _marked(measures: Sequence[Mapping[str, Any]], variant: str, baseline: str) -> str:
    for measure in measures:
        rows = {row["variant"]: row for row in measure["variants"] if row["n"]}
        if variant in rows:
            row, other = rows[variant], variant != baseline and baseline not in rows
            verdict = row["difference"]["verdict"] if row["difference"] else None
            mark = MARKS.get(verdict or "", OTHER_PROTOCOL if other else "")
            return mean_text(row, digits(measure)) + mark
    return DASH


def legend(rows: Sequence[Sequence[str]]) -> str:
    """What the marks of an overview mean, of those that it has."""
    text = " ".join(cell for row in rows[1:] for cell in row[2:])
    compared = [f"{mark.strip()} {verdict}" for verdict, mark in MARKS.items() if mark in text]
    notes = [f"{', '.join(compared)} than the baseline, by a 95 % interval without zero"] if compared else []
    if OTHER_PROTOCOL in text:
        notes.append(
            f"{OTHER_PROTOCOL.strip()} of another protocol than the baseline's, and not to be compared with it"
        )
    return "; ".join(notes)


# --- notes --------------------------------------------------------------------------------------------------------


def count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def states(study: Study) -> dict[str, int]:
    """How many cells there are of each status."""
    return {
        status: sum(cell["status"] == status for cell in study["cells"]) for status in ("finished", "failed", "pending")
    }


def summary(study: Study) -> str:
    """One sentence about what ran."""
    found = states(study)
    parts = [f"{found['finished']} of {count(len(study['cells']), 'cell')} finished"]
    parts += [f"{found['failed']} failed"] if found["failed"] else []
    parts += [f"{found['pending']} not yet run"] if found["pending"] else []
    return (
        f"{count(len(study['variants']), 'variant')} of {study['name']} (study {study['id']}), "
        f"{seeds(study)}, {study['budget']['text']}: {', '.join(parts)}."
    )


def seeds(study: Study) -> str:
    return ("seed " if len(study["seeds"]) == 1 else "seeds ") + ", ".join(map(str, study["seeds"]))


def explanation(study: Study, comparison: Mapping[str, Any]) -> list[str]:
    """What the numbers are, a sentence or two an item."""
    level, made = 100 * comparison["level"], comparison["comparisons"]
    notes = [
        f"The baseline is {comparison['baseline']}. Means are over the n seeds with a value; SE is their standard "
        "error.",
        f"Differences are to the baseline, paired by seed, with the {level:g} % interval of Student's t over the "
        "pairs. The p-value is that of no difference; Holm's allows for the number of comparisons.",
    ]
    if made["differences"]:
        by_chance = (1 - comparison["level"]) * made["differences"]
        notes.append(
            f"{count(made['differences'], 'comparison')} with the baseline: were nothing different, {by_chance:.2g} "
            "of these intervals would exclude zero by chance on average."
        )
    if made["effects"] and effect_groups(study, comparison):
        notes.append(
            f"{count(made['effects'], 'main effect')}: for each seed the difference is averaged over the settings of "
            "the other axes in which both cells have a value."
        )
    notes.append("The intervals speak of other seeds, not of other images.")
    return notes


def failures(study: Study) -> list[tuple[str, str, str]]:
    """Cell, error and file of the traceback, of each failed cell."""
    found = []
    for cell in ordered(study):
        if cell["status"] == "failed":
            error = cell["error"] or {}
            text = " ".join(f"{error.get('type', 'unknown error')}: {error.get('message', '')}".split()).rstrip(":")
            cut = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
            found.append((f"{cell['variant']}, seed {cell['seed']}", cut, error.get("traceback") or ""))
    return found


def pending(study: Study) -> list[str]:
    return [f"{cell['variant']}, seed {cell['seed']}" for cell in ordered(study) if cell["status"] == "pending"]


def without_value(comparison: Mapping[str, Any]) -> list[str]:
    return [f"{w['variant']}, seed {w['seed']}: {w['label']}" for w in comparison["without_value"]]


# --- costs --------------------------------------------------------------------------------------------------------

COSTS_HEAD = ("variant", "parameters", "FLOPs a step", "FLOPs of the teacher", "steps")


def costs(study: Study) -> list[list[str]]:
    """What each variant costs, columns as in ``COSTS_HEAD``; steps are a dash where the clock decides them."""
    return [
        [
            variant["name"],
            thousands(variant.get("parameters")),
            flops(variant.get("flops_per_step")),
            flops(variant.get("teacher_flops_per_step")),
            DASH if study["budget"]["kind"] == "seconds" else thousands(variant.get("steps")),
        ]
        for variant in study["variants"]
    ]


def thousands(n: int | None) -> str:
    return DASH if n is None else f"{n:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def flops(n: float | int | None) -> str:
    """1.2e9 is 1.2 G; None, as of a run that counted nothing, is a dash."""
    if n is None:
        return DASH
    for power, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= power:
            return f"{n / power:.3g} {unit}"
    return f"{n:g}"
