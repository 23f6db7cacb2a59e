"""One or two sentences about an ablation study, that claim no more than its numbers show."""

from collections.abc import Mapping
from typing import Any

from .ablation_words import count, digits, fixed, interval_text, probability
from .comparison import BETTER, UNSHOWN, WORSE, Study

ALPHA = 0.05


def leading(comparison: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The measure that the headline speaks of: the first with a better direction and a value of the baseline's."""
    for measure in comparison["measures"]:
        rows = {row["variant"]: row for row in measure["variants"]}
        if measure["better"] and rows.get(comparison["baseline"], {"n": 0})["n"]:
            return measure
    return None


def best(measure: Mapping[str, Any], baseline: str) -> Mapping[str, Any]:
    """The row that is best on average: of the largest paired difference in the good direction, or the baseline's.

    Means alone would compare different seeds where cells failed.
    """
    sign = 1 if measure["better"] == "higher" else -1
    rows = [row for row in measure["variants"] if row["variant"] == baseline or row["difference"]]
    rows.sort(key=lambda row: row["variant"] != baseline)  # of equals the baseline is the first
    return max(rows, key=lambda row: sign * (row["difference"] or {"mean": 0.0})["mean"])


def headline(study: Study, comparison: Mapping[str, Any]) -> str:
    """Which variant is best by the first metric, and whether that is more than chance."""
    measure, baseline = leading(comparison), comparison["baseline"]
    if not comparison["measures"]:
        return "No cell has finished: there is nothing to compare yet."
    if measure is None:
        return "No metric that has a better direction was measured of the baseline: no variant can be called the best."
    if len(study["variants"]) == 1:
        return "One variant alone: there is nothing to compare it with."
    row, places = best(measure, baseline), digits(measure)
    unit = f" {measure['unit']}" if measure["unit"] else ""
    compared = [r for r in measure["variants"] if r["difference"]]
    if not compared:
        return f"By {measure['label']} no variant can be compared with the baseline yet."
    if row["variant"] == baseline:
        worse = sum(r["difference"]["verdict"] == WORSE for r in compared)
        text = (
            f"By {measure['label']} no variant is better on average than the baseline, {baseline}: "
            f"{worse} of {count(len(study['variants']) - 1, 'other variant')} "
            f"{'is' if worse == 1 else 'are'} worse with an interval that excludes zero"
        )
        unknown = len(study["variants"]) - 1 - sum(r["difference"]["low"] is not None for r in compared)
        return text + (f", and {unknown} cannot be judged." if unknown else ".")
    difference = row["difference"]
    gain = fixed(difference["mean"], places, sign=True)
    text = f"By {measure['label']} {row['variant']} is best on average: {gain}{unit} against the baseline, {baseline}"
    if difference["verdict"] is None:
        return f"{text}. That is one pair of seeds: whether it is more than chance cannot be said."
    text += f", with a 95 % interval of {interval_text(difference, places)}. "
    if difference["verdict"] == UNSHOWN:
        return text + "The interval includes zero: these seeds do not show that it is better."
    assert difference["verdict"] == BETTER
    made = comparison["comparisons"]["differences"]
    if difference["constant"]:
        return text + f"All {difference['n']} pairs differ by the same number, so that the interval has no width."
    p = probability(difference["p_holm"])
    holm = f"p {p if p.startswith('<') else f'= {p}'} by Holm"
    if made == 1:
        return text + "The interval excludes zero."
    if difference["p_holm"] < ALPHA:
        return text + f"The interval excludes zero, and would after allowing for all {made} comparisons ({holm})."
    return (
        text + f"The interval by itself excludes zero, but among {made} comparisons one such may be chance ({holm}): "
        "take it as a hint, and run more seeds."
    )
