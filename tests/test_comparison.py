"""The statistics of ablations: against scipy and by hand, and told to say no more than the numbers do."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from latelier.evaluation import compare, comparison

Values = Mapping[str, Sequence[float | None]]


def metric(value: float | None, key: str = "psnr", protocol: str = "p 1", better: str | None = "higher") -> Any:
    return {"key": key, "label": key.upper(), "unit": "", "better": better, "protocol": protocol, "value": value}


def study(values: Values, *, axes: Any = None, better: str | None = "higher") -> dict[str, Any]:
    """A study of one metric; names like 'a=1,b=2' are labels where there are axes, and the first is the baseline."""
    variants = [
        {"name": name, "labels": dict(pair.split("=") for pair in name.split(",")) if axes else {}} for name in values
    ]
    cells = [
        {"variant": name, "seed": seed, "status": "finished", "metrics": [metric(value, better=better)]}
        for name, numbers in values.items()
        for seed, value in enumerate(numbers)
    ]
    seeds = list(range(max(map(len, values.values()))))
    return {
        "axes": axes or {},
        "seeds": seeds,
        "baseline": next(iter(values)),
        "variants": variants,
        "cells": cells,
    }


def fail(made: dict[str, Any], variant: str, seed: int, status: str = "failed") -> None:
    (cell,) = [c for c in made["cells"] if (c["variant"], c["seed"]) == (variant, seed)]
    cell |= {"status": status, "metrics": []}


def rows(made: dict[str, Any], measure: int = 0) -> dict[str, dict[str, Any]]:
    return {row["variant"]: row for row in compare(made)["measures"][measure]["variants"]}


# --- intervals ----------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), n=st.integers(2, 9))
def test_differences_are_those_of_a_paired_t_test(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    base, other = rng.normal(size=n), rng.normal(0.5, 2, size=n)
    row = rows(study({"base": base.tolist(), "other": other.tolist()}))["other"]
    found, wanted = row["difference"], stats.ttest_rel(other, base)
    interval = wanted.confidence_interval(0.95)
    assert found["n"] == row["n"] == n
    assert found["mean"] == pytest.approx(np.mean(other - base))
    assert found["se"] == pytest.approx(stats.sem(other - base))
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
    assert found["p"] == pytest.approx(wanted.pvalue)
    assert (row["mean"], row["se"]) == pytest.approx((np.mean(other), stats.sem(other)))


def test_an_interval_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, standard deviation 1, t(0.975, 2) = 4.302653.
    found = rows(study({"base": [10.0, 20.0, 30.0], "other": [11.0, 22.0, 33.0]}))["other"]["difference"]
    assert found["mean"] == 2
    assert found["se"] == pytest.approx(1 / math.sqrt(3))
    assert found["low"] == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert found["high"] == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)
    assert found["verdict"] == "no difference shown"
    assert not found["constant"]


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng, times, truth = np.random.default_rng(0), 1000, 0.3
    held = [
        found["low"] <= truth <= found["high"]
        for found in (comparison.paired(rng.normal(truth, 1, size=4).tolist(), "higher") for _ in range(times))
    ]
    assert abs(sum(held) / times - 0.95) < 3 * math.sqrt(0.95 * 0.05 / times)


def test_what_a_seed_does_to_all_variants_cancels() -> None:
    rng = np.random.default_rng(1)
    seeds = rng.normal(0, 10, size=4)
    worse = seeds - 0.5 + rng.normal(0, 0.05, size=4)
    found = rows(study({"base": seeds.tolist(), "worse": worse.tolist()}))["worse"]["difference"]
    assert found["verdict"] == "worse"
    assert found["high"] < 0
    unpaired: Any = stats.ttest_ind(worse, seeds)
    assert unpaired.pvalue > 0.5  # in which, nothing would show


def test_pairs_follow_seeds_and_not_the_order_of_cells() -> None:
    made = study({"base": [1.0, 2.0, 4.0], "other": [1.5, 2.6, 4.4]})
    wanted = compare(made)
    made["cells"].reverse()
    assert compare(made) == wanted


@pytest.mark.parametrize(("better", "verdict"), [("higher", "worse"), ("lower", "better"), (None, None)])
def test_a_verdict_needs_a_direction(better: str | None, verdict: str | None) -> None:
    made = study({"base": [1.0, 2.0, 3.0], "less": [0.0, 1.1, 2.1], "same": [1.1, 1.9, 3.1]}, better=better)
    assert rows(made)["less"]["difference"]["verdict"] == verdict
    assert rows(made)["same"]["difference"]["verdict"] == "no difference shown"


def test_variants_equal_to_the_bit_have_no_difference() -> None:
    found = rows(study({"base": [0.1, 0.7, 0.3], "twin": [0.1, 0.7, 0.3]}))["twin"]["difference"]
    assert (found["mean"], found["se"], found["low"], found["high"], found["p"]) == (0, 0, 0, 0, 1)
    assert found["verdict"] == "no difference shown"


def test_a_constant_difference_is_as_certain_as_the_formula_gets() -> None:
    found = rows(study({"base": [1.0, 2.0], "other": [1.5, 2.5]}))["other"]["difference"]
    assert (found["low"], found["high"], found["p"], found["constant"]) == (0.5, 0.5, 0, True)
    assert found["verdict"] == "better"


# --- what is missing ----------------------------------------------------------------------------------------------


def test_one_seed_has_a_difference_and_no_interval() -> None:
    row = rows(study({"base": [1.0], "other": [3.0]}))["other"]
    assert (row["mean"], row["se"]) == (3, None)
    assert row["reason"] == "one pair of seeds, of which no interval follows"
    missing = ("se", "low", "high", "p", "p_holm", "verdict")
    assert [row["difference"][name] for name in missing] == [None] * 6
    assert (row["difference"]["n"], row["difference"]["mean"], row["difference"]["constant"]) == (1, 2, False)


def test_failed_cells_leave_their_pair_out() -> None:
    made = study({"base": [1.0, 2.0, 3.0, 9.0], "other": [2.0, 4.0, 6.0, 8.0]})
    fail(made, "other", 3)
    found = rows(made)
    assert (found["other"]["cells"], found["other"]["finished"], found["other"]["n"]) == (4, 3, 3)
    assert (found["other"]["mean"], found["base"]["mean"]) == (4, 3.75)
    assert (found["other"]["difference"]["n"], found["other"]["difference"]["mean"]) == (3, 2)
    fail(made, "base", 0)
    fail(made, "base", 1)
    fail(made, "base", 2)
    assert rows(made)["other"]["reason"] == "no seed of which both have a value"


@pytest.mark.parametrize(("status", "reason"), [("failed", "failed"), ("pending", "not yet run")])
def test_a_variant_or_baseline_without_cells_says_why(status: str, reason: str) -> None:
    made = study({"base": [1.0, 2.0], "other": [2.0, 4.0]})
    for seed in range(2):
        fail(made, "other", seed, status)
    row = rows(made)["other"]
    assert (row["difference"], row["reason"], row["mean"], row["n"]) == (None, reason, None, 0)
    made = study({"base": [1.0, 2.0], "other": [2.0, 4.0]})
    for seed in range(2):
        fail(made, "base", seed, status)
    found = rows(made)
    assert (found["other"]["reason"], found["other"]["mean"]) == (f"baseline {reason}", 3)
    assert (found["base"]["reason"], found["base"]["difference"]) == (reason, None)


def test_failed_and_pending_together_are_no_finished_cell() -> None:
    made = study({"base": [1.0, 2.0], "other": [2.0, 4.0]})
    fail(made, "other", 0)
    fail(made, "other", 1, "pending")
    assert rows(made)["other"]["reason"] == "no finished cell"


def test_values_that_are_no_numbers_are_left_out_and_listed() -> None:
    made = study({"base": [1.0, 2.0, None], "other": [math.nan, 4.0, 6.0], "none": [None, math.inf, -math.inf]})
    found = rows(made)
    assert [found[name]["n"] for name in ("base", "other", "none")] == [2, 2, 0]
    assert found["other"]["difference"]["n"] == 1
    assert found["none"]["reason"] == "no finite value"
    listed = [(w["variant"], w["seed"], w["key"]) for w in compare(made)["without_value"]]
    assert listed == [("base", 2, "psnr"), ("other", 0, "psnr"), *(("none", s, "psnr") for s in range(3))]


def test_a_study_without_a_finished_cell_has_no_measures() -> None:
    made = study({"base": [1.0], "other": [2.0]})
    fail(made, "base", 0)
    fail(made, "other", 0, "pending")
    assert compare(made) == {
        "format": 1,
        "baseline": "base",
        "level": 0.95,
        "comparisons": {"differences": 0, "effects": 0},
        "measures": [],
        "without_value": [],
    }


# --- protocols ----------------------------------------------------------------------------------------------------


def test_numbers_of_two_protocols_are_never_paired() -> None:
    made = study({"base": [1.0, 2.0], "like": [2.0, 4.0], "else": [7.0, 8.0], "silent": [0.0, 0.0]})
    for cell in made["cells"]:
        if cell["variant"] == "else":
            cell["metrics"][0]["protocol"] = "p 2"
        if cell["variant"] == "silent":
            cell["metrics"] = []
    first, second = compare(made)["measures"]
    assert [(m["protocol"], [r["variant"] for r in m["variants"]]) for m in (first, second)] == [
        ("p 1", ["base", "like", "silent"]),
        ("p 2", ["else"]),
    ]
    assert first["variants"][2]["reason"] == "not measured"
    (row,) = second["variants"]
    assert (row["difference"], row["mean"]) == (None, 7.5)
    assert row["reason"] == "baseline measured under another protocol"


def test_seeds_of_two_protocols_are_never_averaged() -> None:
    made = study({"base": [1.0, 2.0, 3.0], "other": [2.0, 4.0, 100.0]})
    made["cells"][-1]["metrics"][0]["protocol"] = "p 2"
    assert (rows(made)["other"]["mean"], rows(made)["other"]["n"]) == (3, 2)
    assert (rows(made, 1)["other"]["mean"], rows(made, 1)["other"]["n"]) == (100, 1)


# --- many comparisons ---------------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    # 4 x 0.01; max of it and 3 x 0.02; 2 x 0.03 = 0.06; 0.5.
    assert comparison.holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert comparison.holm([0.9, 0.8]) == [1, 1]
    assert comparison.holm([0.02, 0.02]) == [0.04, 0.04]
    assert comparison.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_lies_between_the_plain_p_and_bonferroni(ps: list[float]) -> None:
    for p, adjusted in zip(ps, comparison.holm(ps), strict=True):
        assert p <= adjusted <= min(1, len(ps) * p)


def test_every_comparison_of_every_metric_is_counted() -> None:
    made = study({"base": [1.0, 2.0, 3.0], "a": [1.2, 2.1, 3.4], "b": [0.0, 1.1, 2.3], "alone": [1.0, 2.0, 3.0]})
    for cell in made["cells"]:
        cell["metrics"].append(metric(cell["metrics"][0]["value"] ** 2, key="other"))
    fail(made, "alone", 1)
    fail(made, "alone", 2)
    found = compare(made)
    assert found["comparisons"] == {"differences": 4, "effects": 0}
    made = [r["difference"] for m in found["measures"] for r in m["variants"] if r["difference"]]
    ps = [d["p"] for d in made if d["p"] is not None]
    assert [d["p_holm"] for d in made if d["p"] is not None] == comparison.holm(ps)
    assert [d["p_holm"] for d in made if d["p"] is None] == [None, None]


# --- main effects -------------------------------------------------------------------------------------------------

AXES = {"a": ["1", "2"], "b": ["x", "y"]}
GRID = {
    "a=1,b=x": [10.0, 20.0, 30.0],
    "a=2,b=x": [11.0, 22.0, 33.0],  # 1, 2, 3 above a=1,b=x
    "a=1,b=y": [9.0, 18.0, 28.0],
    "a=2,b=y": [12.0, 20.0, 30.0],  # 3, 2, 2 above a=1,b=y
}


def effects(made: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {effect["axis"]: effect for effect in compare(made)["measures"][0]["effects"]}


def test_main_effects_by_hand() -> None:
    found = effects(study(GRID, axes=AXES))
    assert (found["a"]["value"], found["a"]["against"], found["a"]["pairs"], found["a"]["possible"]) == ("2", "1", 6, 6)
    for axis, averages in (("a", [2.0, 2.0, 2.5]), ("b", [0.0, -2.0, -2.5])):
        wanted: Any = stats.ttest_1samp(averages, 0)
        interval = wanted.confidence_interval()
        difference = found[axis]["difference"]
        assert difference["n"] == 3
        assert difference["mean"] == pytest.approx(np.mean(averages))
        assert (difference["low"], difference["high"]) == pytest.approx((interval.low, interval.high))
        assert difference["p"] == pytest.approx(wanted.pvalue)
    assert [found[axis]["difference"]["verdict"] for axis in "ab"] == ["better", "no difference shown"]
    ps = [found[axis]["difference"]["p"] for axis in "ab"]
    assert [found[axis]["difference"]["p_holm"] for axis in "ab"] == comparison.holm(ps)


def test_main_effects_take_the_settings_in_which_both_finished() -> None:
    made = study(GRID, axes=AXES)
    fail(made, "a=2,b=y", 0)
    found = effects(made)["a"]
    assert (found["pairs"], found["possible"]) == (5, 6)
    assert found["difference"]["mean"] == pytest.approx((1 + 2 + 2.5) / 3)
    for name in GRID:
        fail(made, name, 1)
        fail(made, name, 2)
    found = effects(made)["a"]
    assert (found["difference"]["mean"], found["difference"]["low"]) == (1, None)
    assert found["reason"] == "one seed, of which no interval follows"


@pytest.mark.parametrize(("value", "reason"), [("2", "failed"), ("1", "1 failed")])
def test_an_effect_of_what_failed_everywhere_says_so(value: str, reason: str) -> None:
    made = study(GRID, axes=AXES)
    for name in GRID:
        for seed in made["seeds"]:
            if name.startswith(f"a={value}"):
                fail(made, name, seed)
    assert effects(made)["a"]["reason"] == reason


def test_main_effects_mix_no_protocols() -> None:
    made = study(GRID, axes=AXES)
    for cell in made["cells"]:
        if cell["variant"].startswith("a=2"):
            cell["metrics"][0]["protocol"] = "p 2"
    for measure, setting in zip(compare(made)["measures"], ([-1.0, -2.0, -2.0], [1.0, -2.0, -3.0]), strict=True):
        across, along = measure["effects"]
        assert (across["axis"], across["difference"], across["reason"]) == (
            "a",
            None,
            "measured under another protocol",
        )
        assert (along["axis"], along["pairs"], along["possible"]) == ("b", 3, 6)
        assert along["difference"]["mean"] == pytest.approx(np.mean(setting))


def test_an_effect_needs_variants_that_differ_in_its_axis_alone() -> None:
    made = study({"a=1,b=x": [1.0, 2.0], "a=2,b=y": [2.0, 3.0]}, axes=AXES)
    found = effects(made)
    assert [found[axis]["reason"] for axis in "ab"] == [
        "no two variants differ in a alone",
        "no two variants differ in b alone",
    ]
    assert found["a"]["difference"] is None


# --- studies that contradict themselves ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "c"}, "study.baseline: 'c' is no variant of the study ('base', 'b')"),
        ({"variants": []}, "study.baseline: 'base' is no variant of the study (there are none)"),
        ({"seeds": [0]}, "study.cells[1].seed: 1 is no seed of the study"),
        (
            {"variants": [{"name": "base", "labels": {}}] * 2},
            "study.variants: 'base' is there 2 times; each is there once",
        ),
        ({"variants": [{"name": "base", "labels": {}}]}, "study.cells[2].variant: 'b' is no variant of the study"),
    ],
)
def test_a_study_that_contradicts_itself_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        compare(study({"base": [1.0, 2.0], "b": [1.0, 2.0]}) | change)
    assert str(caught.value) == message


def test_cells_and_metrics_are_there_once() -> None:
    made = study({"base": [1.0]})
    with pytest.raises(ValueError) as caught:
        compare(made | {"cells": made["cells"] * 2})
    assert str(caught.value) == "study.cells: 'base, seed 0' is there 2 times; each is there once"
    made["cells"][0]["metrics"] *= 2
    with pytest.raises(ValueError) as caught:
        compare(made)
    assert str(caught.value) == "study.cells[0].metrics: 'psnr' is there 2 times; each is there once"


def test_a_missing_scipy_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ImportError) as caught:
        compare(study({"base": [1.0, 2.0], "b": [1.0, 2.5]}))
    assert str(caught.value) == "compare: intervals need scipy; pip install 'latelier[ablations]'"
