"""Tables of ablations: word for word, with every failure in them, and in LaTeX that is whole."""

import copy
import re
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from latelier.evaluation import ablation_words, compare, headline, latex_table, markdown_table

NAMES = ("encoder.block=fcdm", "encoder.block=dit", "encoder.block=_odd|*")


def study() -> dict[str, Any]:
    """Three variants and three seeds: one variant is worse, one failed twice and has one value left."""
    values = {NAMES[0]: [30.0, 31.0, 32.0], NAMES[1]: [29.0, 30.1, 30.9], NAMES[2]: [30.5, None, None]}
    cells = []
    for name, numbers in values.items():
        for seed, value in enumerate(numbers):
            cell = {"variant": name, "seed": seed, "status": "finished", "run": "r", "error": None, "metrics": []}
            cell |= {"curve": [], "pictures": []}
            if value is None:
                error = {"type": "ValueError", "message": "a\n  <b> & 50 %", "traceback": "cells/2/error.txt"}
                cell |= {"status": "failed", "error": error} if seed == 1 else {"status": "pending"}
            else:
                kind = {"key": "psnr", "label": "PSNR mean", "unit": "dB", "better": "higher"}
                cell["metrics"] = [kind | {"protocol": "archetype_psnr 1a2b on 3 images", "value": value}]
                teacher = {"key": "cosine", "label": "Cosine", "unit": "", "better": "higher"}
                if name != NAMES[2]:
                    protocol = "to hog" if name == NAMES[0] else "to tiny_vit"
                    cell["metrics"].append(teacher | {"protocol": protocol, "value": value / 100})
            cells.append(cell)
    return {
        "format": 1,
        "name": "demo/semdisdiffae",
        "id": "0123456789ab",
        "command": None,
        "axes": {"encoder.block": ["fcdm", "dit", "_odd|*"]},
        "seeds": [0, 1, 2],
        "baseline": NAMES[0],
        "budget": {"kind": "steps", "amount": 300, "text": "300 steps each"},
        "conditions": ["batch: 8, not 16"],
        "variants": [
            {"name": name, "labels": {"encoder.block": name.partition("=")[2]}, "steps": 300, "parameters": 487_840}
            | {"flops_per_step": 1.25e9, "teacher_flops_per_step": 0, "recipe_id": "ab", "teacher": "teacher/hog"}
            for name in NAMES
        ],
        "cells": cells,
        "timing": {f"{NAMES[0]}/0": 12.0},
    }


MARKDOWN = r"""# demo/semdisdiffae: ablation

3 variants of demo/semdisdiffae (study 0123456789ab), seeds 0, 1, 2, 300 steps each: 7 of 9 cells finished, 1 ⏎
failed, 1 not yet run.

By PSNR mean encoder.block=\_odd\|\* is best on average: +0.50 dB against the baseline, encoder.block=fcdm. That ⏎
is one pair of seeds: whether it is more than chance cannot be said.

| variant | finished | PSNR mean, dB | Cosine |
| :-- | --: | --: | --: |
| encoder.block=fcdm | 3/3 | 31.00 ± 0.58 | 0.3100 ± 0.0058 |
| encoder.block=dit | 3/3 | 30.00 ± 0.55 ▼ | 0.3000 ± 0.0055 † |
| encoder.block=\_odd\|\* | 1/3 | 30.50 | – |

▼ worse than the baseline, by a 95 % interval without zero; † of another protocol than the baseline's, and not to ⏎
be compared with it

The baseline is encoder.block=fcdm. Means are over the n seeds with a value; SE is their standard error. ⏎
Differences are to the baseline, paired by seed, with the 95 % interval of Student's t over the pairs. The ⏎
p-value is that of no difference; Holm's allows for the number of comparisons. 1 comparison with the baseline: ⏎
were nothing different, 0.05 of these intervals would exclude zero by chance on average. The intervals speak ⏎
of other seeds, not of other images.

**Not equal: batch: 8, not 16**

## PSNR mean, dB (higher is better)

Protocol: archetype_psnr 1a2b on 3 images

| variant | n | mean ± SE | difference | 95 % interval | p | p (Holm) | reading |
| :-- | --: | --: | --: | --: | --: | --: | :-- |
| encoder.block=fcdm | 3/3 | 31.00 ± 0.58 | – | – | – | – | the baseline |
| encoder.block=dit | 3/3 | 30.00 ± 0.55 | −1.00 | \[−1.25, −0.75\] | 0.003 | 0.003 | worse |
| encoder.block=\_odd\|\* | 1/3 | 30.50 | +0.50 | – | – | – | one pair of seeds, of which no interval follows |

## Cosine (higher is better)

Protocol: to hog

| variant | n | mean ± SE | difference | 95 % interval | p | p (Holm) | reading |
| :-- | --: | --: | --: | --: | --: | --: | :-- |
| encoder.block=fcdm | 3/3 | 0.3100 ± 0.0058 | – | – | – | – | the baseline |
| encoder.block=\_odd\|\* | 0/3 | – | – | – | – | – | not measured |

## Cosine (higher is better)

Protocol: to tiny_vit

| variant | n | mean ± SE | difference | 95 % interval | p | p (Holm) | reading |
| :-- | --: | --: | --: | --: | --: | --: | :-- |
| encoder.block=dit | 3/3 | 0.3000 ± 0.0055 | – | – | – | – | baseline measured under another protocol |

## Costs

| variant | parameters | FLOPs a step | FLOPs of the teacher | steps |
| :-- | --: | --: | --: | --: |
| encoder.block=fcdm | 487 840 | 1.25 G | 0 | 300 |
| encoder.block=dit | 487 840 | 1.25 G | 0 | 300 |
| encoder.block=\_odd\|\* | 487 840 | 1.25 G | 0 | 300 |

## Failed cells

- encoder.block=\_odd\|\*, seed 1: ValueError: a &lt;b&gt; &amp; 50 % (cells/2/error.txt)

## Not yet run

- encoder.block=\_odd\|\*, seed 2
""".replace(" ⏎\n", " ")

LATEX = r"""% \usepackage{booktabs}
\begin{table}
\centering
\caption{3 variants of demo/semdisdiffae (study 0123456789ab), seeds 0, 1, 2, 300 steps each: 7 of 9 cells ⏎
finished, 1 failed, 1 not yet run.}
\label{tab:ablation-0123456789ab}
\footnotesize\setlength{\tabcolsep}{4pt}
\begin{tabular}{lrrrrrl}
\toprule
variant & n & mean $\pm$ SE & difference & 95 \% interval & p (Holm) & reading \\
\midrule
\multicolumn{7}{l}{\itshape PSNR mean, dB (higher is better)} \\
\multicolumn{7}{l}{\scriptsize archetype\_psnr 1a2b on 3 images} \\
encoder.block=fcdm & 3/3 & $31.00 \pm 0.58$ & -- & -- & -- & the baseline \\
encoder.block=dit & 3/3 & $30.00 \pm 0.55$ & $-1.00$ & $[-1.25,\ -0.75]$ & $0.003$ & worse \\
encoder.block=\_odd$|${*} & 1/3 & $30.50$ & $+0.50$ & -- & -- & one pair of seeds, of which no interval follows \\
\midrule
""".replace(" ⏎\n", " ")


def tables() -> tuple[str, str]:
    made = study()
    comparison = compare(made)
    return markdown_table(made, comparison), latex_table(made, comparison)


def test_the_markdown_table_word_for_word() -> None:
    assert tables()[0].replace("\N{NARROW NO-BREAK SPACE}", " ") == MARKDOWN


def test_the_latex_table_word_for_word() -> None:
    latex = tables()[1]
    assert latex.startswith(LATEX)
    assert "\n\\textbf{Not equal: batch: 8, not 16}\n" in latex
    assert (
        "\nFailed cells: encoder.block=\\_odd$|${*}, seed 1: ValueError: a $<$b$>$ \\& 50 \\% (cells/2/error.txt).\n"
        "Not yet run: encoder.block=\\_odd$|${*}, seed 2.\n\\end{table}\n"
    ) in latex


def whole(latex: str) -> None:
    """Environments nest, braces and dollars balance, and every row has the columns of the table."""
    bare = re.sub(r"\\[\\{}$&%#_]", lambda m: "\\\\" if m[0] == "\\\\" else "", latex.partition("\n")[2])
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert all(line.count("$") % 2 == 0 for line in bare.splitlines())
    outside = re.sub(r"\$[^$]*\$", "", bare)
    assert not re.search(r"[\^#%<>~|_]", outside.replace("p{", ""))
    assert re.findall(r"\\(begin|end)\{(\w+)\}", latex) == [
        ("begin", "table"),
        ("begin", "tabular"),
        ("end", "tabular"),
        ("end", "table"),
    ]
    (columns,) = re.findall(r"\\begin\{tabular\}\{(\w+)\}", latex)
    rows = bare.partition("\\toprule")[2].partition("\\bottomrule")[0].strip().splitlines()
    for row in rows:
        if row == "\\midrule":
            continue
        assert row.endswith(" \\\\")
        span = re.match(r"\\multicolumn\{(\d+)\}", row)
        assert (int(span[1]) if span else row.count("&") + 1) == len(columns)


def test_latex_is_whole() -> None:
    whole(tables()[1])


@given(text=st.text(alphabet=r"""ab1 \{}$&#%_^~<>|"'[]*-−±×–…,""", min_size=1, max_size=12))
def test_any_name_leaves_latex_whole_and_markdown_in_its_columns(text: str) -> None:
    made = study()
    made["variants"][1]["name"] = text
    for cell in made["cells"]:
        if cell["variant"] == NAMES[1]:
            cell["variant"] = text
        for metric in cell["metrics"]:
            metric["label"] = metric["protocol"] = text
        if cell["error"]:
            cell["error"]["message"] = text
    comparison = compare(made)
    whole(latex_table(made, comparison))
    for line in markdown_table(made, comparison).splitlines():
        if line.startswith("|"):
            assert len(re.split(r"(?<!\\)(?:\\\\)*\|", line)) in (6, 7, 10)  # of four, five and eight columns


def test_tables_say_nothing_of_time() -> None:
    made = study()
    before = tables()
    made["timing"] = {f"{NAMES[0]}/0": 99.0}
    made["cells"].reverse()
    comparison = compare(made)
    after = markdown_table(made, comparison), latex_table(made, comparison)
    assert after == before


def test_no_steps_are_promised_where_the_clock_decides() -> None:
    made = study()
    made["budget"] = {"kind": "seconds", "amount": 60, "text": "60 s each"}
    assert "| encoder.block=dit | 487\N{NARROW NO-BREAK SPACE}840 | 1.25 G | 0 | – |" in markdown_table(
        made, compare(made)
    )


def test_tables_of_a_grid_have_main_effects() -> None:
    made = study()
    made["axes"] = {"teacher": ["hog", "tiny_vit"], "block": ["a", "b"]}
    grid = [{"teacher": t, "block": b} for t in made["axes"]["teacher"] for b in made["axes"]["block"]]
    made["variants"] = [made["variants"][0] | {"name": f"{g['teacher']}-{g['block']}", "labels": g} for g in grid]
    made["baseline"] = "hog-a"
    kind = {"key": "psnr", "label": "PSNR", "unit": "dB", "better": "higher", "protocol": "p"}
    made["cells"] = [
        {"variant": v["name"], "seed": s, "status": "finished", "error": None, "curve": [], "pictures": []}
        | {"metrics": [kind | {"value": 30.0 + s + i + 0.1 * s * i}]}
        for i, v in enumerate(made["variants"])
        for s in range(3)
    ]
    comparison = compare(made)
    text = markdown_table(made, comparison)
    assert "2 main effects: for each seed the difference is averaged over" in text
    assert "## Main effects\n\nPSNR, dB (higher is better), protocol p\n\n" in text
    # 2 (1 + s / 10) over seeds 0, 1, 2: mean 2.2, standard deviation 0.2, t(0.975, 2) = 4.3027.
    assert "| teacher: tiny_vit, not hog | 6/6 | +2.20 | \\[+1.70, +2.70\\] | 0.003 | 0.005 | better |" in text
    latex = latex_table(made, comparison)
    assert "\\multicolumn{7}{l}{\\itshape Main effects, PSNR, dB (higher is better)} \\\\" in latex
    assert "block: b, not a & 6/6 &  & $+1.10$ & $[+0.85,\\ +1.35]$ & $0.005$ & better \\\\" in latex
    whole(latex)


def test_a_study_that_has_not_begun_has_tables() -> None:
    made = study()
    for cell in made["cells"]:
        cell |= {"status": "pending", "metrics": [], "error": None}
    comparison = compare(made)
    assert "No cell has finished: there is nothing to compare." in markdown_table(made, comparison)
    assert "9 not yet run" in markdown_table(made, comparison)
    whole(latex_table(made, comparison))


# --- words --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "places", "sign", "text"),
    [
        (None, 2, False, "–"),
        (1.234, 2, True, "+1.23"),
        (-1.235, 1, True, "−1.2"),
        (0.0, 2, True, "0.00"),
        (-0.0, 2, False, "0.00"),
        (0.00004, 2, True, "+4e−05"),
    ],
)
def test_numbers_have_their_digits(value: float | None, places: int, sign: bool, text: str) -> None:
    assert ablation_words.fixed(value, places, sign=sign) == text


@pytest.mark.parametrize(
    ("unit", "mean", "se", "places"),
    [
        ("dB", 30.0, 0.5, 2),
        ("dB", 30.0, 0.004, 3),
        ("", 0.7, 0.002, 4),
        ("", 250.0, 3.0, 1),
        ("", 20.0, 3.0, 2),
        ("dB", 30.0, None, 2),
        ("dB", 3.0, 1e-9, 4),
    ],
)
def test_digits_follow_the_smallest_error(unit: str, mean: float, se: float | None, places: int) -> None:
    row = {"mean": mean, "se": se, "difference": None}
    assert ablation_words.digits({"unit": unit, "variants": [row], "effects": []}) == places


def test_long_errors_are_cut() -> None:
    made = study()
    made["cells"][7]["error"]["message"] = "x" * 1000
    ((_, text, _),) = ablation_words.failures(made)
    assert text == f"ValueError: {'x' * 388}…"


# --- the headline -------------------------------------------------------------------------------------------------


def with_values(*values: list[float]) -> dict[str, Any]:
    made = copy.deepcopy(study())
    made["variants"] = [v | {"name": n} for v, n in zip(made["variants"], "abc", strict=False)][: len(values)]
    kind = {"key": "psnr", "label": "PSNR", "unit": "dB", "better": "higher", "protocol": "p"}
    made["cells"] = [
        {"variant": "abc"[i], "seed": s, "status": "finished", "metrics": [kind | {"value": value}]}
        for i, numbers in enumerate(values)
        for s, value in enumerate(numbers)
    ]
    return made | {"baseline": "a"}


BASE = [30.0, 31.0, 32.0]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            [BASE, [31.0, 32.1, 33.0]],
            "By PSNR b is best on average: +1.03 dB against the baseline, a, with a 95 % interval of [+0.89, +1.18]. "
            "The interval excludes zero.",
        ),
        (
            [BASE, [31.0, 32.1, 33.0], [30.1, 30.9, 32.0]],
            "By PSNR b is best on average: +1.03 dB against the baseline, a, with a 95 % interval of [+0.89, +1.18]. "
            "The interval excludes zero, and would after allowing for all 2 comparisons (p = 0.002 by Holm).",
        ),
        (
            [BASE, [31.0, 31.8, 32.7], [30.1, 30.9, 32.0]],
            "By PSNR b is best on average: +0.83 dB against the baseline, a, with a 95 % interval of [+0.45, +1.21]. "
            "The interval excludes zero, and would after allowing for all 2 comparisons (p = 0.022 by Holm).",
        ),
        (
            [BASE, [31.0, 31.6, 32.5], [30.1, 30.9, 32.0]],
            "By PSNR b is best on average: +0.70 dB against the baseline, a, with a 95 % interval of [+0.04, +1.36]. "
            "The interval by itself excludes zero, but among 2 comparisons one such may be chance (p = 0.089 by Holm): "
            "take it as a hint, and run more seeds.",
        ),
        (
            [BASE, [31.0, 31.2, 32.0]],
            "By PSNR b is best on average: +0.40 dB against the baseline, a, with a 95 % interval of [−0.91, +1.71]. "
            "The interval includes zero: these seeds do not show that it is better.",
        ),
        (
            [BASE, [31.0, 32.0, 33.0]],
            "By PSNR b is best on average: +1.00 dB against the baseline, a, with a 95 % interval of [+1.00, +1.00]. "
            "All 3 pairs differ by the same number, so that the interval has no width.",
        ),
        (
            [[30.0], [31.0]],
            "By PSNR b is best on average: +1.00 dB against the baseline, a. That is one pair of seeds: whether it "
            "is more than chance cannot be said.",
        ),
        (
            [BASE, BASE, [29.0, 30.1, 31.0]],
            "By PSNR no variant is better on average than the baseline, a: 1 of 2 other variants is worse with an "
            "interval that excludes zero.",
        ),
        (
            [[30.0], [29.0]],
            "By PSNR no variant is better on average than the baseline, a: 0 of 1 other variant are worse with an "
            "interval that excludes zero, and 1 cannot be judged.",
        ),
        ([BASE], "One variant alone: there is nothing to compare it with."),
    ],
)
def test_the_headline_claims_no_more_than_is_shown(values: list[list[float]], text: str) -> None:
    made = with_values(*values)
    assert headline(made, compare(made)) == text


def test_the_headline_compares_the_same_seeds() -> None:
    made = with_values([30.0, 31.0, 50.0], [30.5, 31.4, 49.0], [30.4, 31.2])  # c lacks the seed at which all are high
    assert headline(made, compare(made)).startswith("By PSNR c is best on average: +0.30 dB against")


def test_lower_is_better_where_the_metric_says_so() -> None:
    made = with_values(BASE, [29.0, 30.1, 31.0])
    for cell in made["cells"]:
        cell["metrics"][0]["better"] = "lower"
    assert headline(made, compare(made)).startswith("By PSNR b is best on average: −0.97 dB against")
    for cell in made["cells"]:
        cell["metrics"][0]["better"] = None
    assert headline(made, compare(made)) == (
        "No metric that has a better direction was measured of the baseline: no variant can be called the best."
    )


def test_a_headline_of_nothing_says_so() -> None:
    made = with_values(BASE, BASE)
    for cell in made["cells"]:
        if cell["variant"] == "b":
            cell |= {"status": "failed", "metrics": []}
    assert headline(made, compare(made)) == "By PSNR no variant can be compared with the baseline yet."
    for cell in made["cells"]:
        cell |= {"status": "failed", "metrics": []}
    assert headline(made, compare(made)) == "No cell has finished: there is nothing to compare yet."
