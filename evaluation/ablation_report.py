"""One page about an ablation study: what differs from the baseline, by how much, how surely, and at what cost.

A single file that opens without a network. Everything but the seconds of training is the same when an interrupted
study is resumed.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..families.files import write_atomically
from . import ablation_words as words
from . import page
from .ablation_headline import best, headline, leading
from .ablation_pictures import pictures_section
from .ablation_series import against_axis, curves
from .charts import Estimate, Series, category_chart, forest_chart, line_chart
from .comparison import Study

COLOURS = 6
STYLE = """
:root { --s0: #0f5c8c; --s1: #a8640f; --s2: #6b4a9e; --s3: #2a7548; --s4: #b03a48; --s5: #5f6b73; }
@media (prefers-color-scheme: dark) {
  :root { --s0: #74b9e8; --s1: #e0a458; --s2: #bfa3ec; --s3: #7fc99a; --s4: #ef8f98; --s5: #a9b4bb; } }
h1 + .lead { max-width: 60ch; }
.better, .worse { font-weight: 600; }
td.better::before { content: "▲ "; }
td.worse::before { content: "▼ "; }
td:last-child, th.reading { text-align: left; white-space: normal; min-width: 9rem; }
td.number { text-align: right; white-space: nowrap; min-width: 0; }
td.nothing { color: var(--quiet); }
.unequal { border-left: 4px solid var(--s4); padding: 0.1rem 0 0.1rem 1rem; margin: 1.4rem 0; }
.unequal p, .unequal ul { margin: 0.2rem 0; }
.measure + .measure { margin-top: 2.4rem; }
.measure h3 + .note { margin-bottom: 0.5rem; overflow-wrap: anywhere; }
.scroll { position: relative; }
.beside { margin: 1.6rem 0 0; }
.beside figcaption { margin-bottom: 0.4rem; font-size: 0.9rem; }
.beside > div { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(10.5rem, 47%), 1fr)); gap: 0.7rem; }
.beside span { overflow-wrap: anywhere; }
.failed { margin: 0; padding: 0; list-style: none; }
.failed li { margin: 0 0 0.9rem; overflow-wrap: anywhere; }
.failed code { display: block; margin-top: 0.15rem; color: var(--quiet); }
pre.command { white-space: pre-wrap; overflow-wrap: anywhere; padding: 0.8rem 1rem; border: 1px solid var(--rule);
  border-radius: 6px; background: var(--raised); }
.legend { max-width: none; }
.legend span { display: inline-block; margin: 0 1.3em 0.2em 0; }
.legend i { display: inline-block; width: 1.5em; margin-right: 0.45em; vertical-align: 0.25em; border-top: 3px solid; }
svg .zero { stroke: var(--ink); stroke-width: 1.2; }
svg line.interval { stroke-width: 1.9; }
svg path { fill: none; stroke-width: 1.7; stroke-linejoin: round; }
svg path.thin { stroke-width: 0.8; opacity: 0.4; }
svg circle.single { opacity: 0.4; }
svg .quiet { fill: var(--quiet); stroke: var(--quiet); }
svg .name { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; }
svg .dashed { stroke-dasharray: 5 3; }
.legend i.dashed { border-top-style: dashed; }
.wide { max-width: 36rem; }
.inside { padding: 0 1rem 1rem; margin: 0; }
h2 + .measure { margin-top: 1.1rem; }
"""
STYLE += "".join(
    f"svg .s{i}, .legend i.s{i} {{ stroke: var(--s{i}); border-top-color: var(--s{i}); }}\n"
    f"svg circle.s{i} {{ fill: var(--s{i}); stroke: none; }}\n"
    for i in range(COLOURS)
)


def write_ablation_report(study: Study, comparison: Mapping[str, Any], folder: Path) -> Path:
    """Write ``FOLDER/report.html`` and return its path; pictures are read from where the study names them there."""
    body = "\n".join(
        [
            _header(study, comparison),
            _failed(study, comparison),
            _differences(comparison),
            _numbers(study, comparison),
            _axes(study, comparison),
            _effects(study, comparison),
            _curves(study),
            pictures_section(study, folder),
            _plan(study),
            _repeat(study),
        ]
    )
    title = f"{study['name']}: ablation"
    return write_atomically(folder / "report.html", page.document(f"{title} · latelier", body, style=STYLE))


# --- sections -----------------------------------------------------------------------------------------------------


def _header(study: Study, comparison: Mapping[str, Any]) -> str:
    states, measure = words.states(study), leading(comparison)
    figures = []
    if measure is not None:
        row, places = best(measure, comparison["baseline"]), words.digits(measure)
        figures.append((f"{words.mean_text(row, places)} {measure['unit']}", f"{measure['label']} of {row['variant']}"))
        if row["difference"]:
            gain = words.fixed(row["difference"]["mean"], places, sign=True)
            figures.append((f"{gain} {measure['unit']}", f"against the baseline: {words.reading(row)}"))
    rest = [
        f"{states[status]} {word}" for status, word in (("failed", "failed"), ("pending", "to run")) if states[status]
    ]
    figures.append((f"{states['finished']}/{len(study['cells'])}", ", ".join(["cells finished", *rest])))
    figures.append((f"{comparison['comparisons']['differences']}", "comparisons with the baseline, all metrics"))
    facts = [
        ("Study", f"{study['name']} ({study['id']})"),
        *((f"Axis {axis}", ", ".join(values)) for axis, values in study["axes"].items()),
        ("Baseline", study["baseline"]),
        ("Seeds", ", ".join(map(str, study["seeds"]))),
        ("Budget", study["budget"]["text"]),
        ("Protocols", "; ".join(dict.fromkeys(measure["protocol"] for measure in comparison["measures"]))),
        ("Measured in", " on ".join(str(study[k]) for k in ("dtype", "device") if study.get(k))),
        ("Versions", ", ".join(f"{name} {version}" for name, version in (study.get("versions") or {}).items())),
    ]
    return (
        f'<p class="kicker">latelier, report of an ablation study</p><h1>{escape(study["name"])}</h1>'
        f'<p class="lead">{escape(headline(study, comparison))}</p>'
        + page.headline(figures)
        + page.facts(facts)
        + _conditions(study)
    )


def _conditions(study: Study) -> str:
    if not study["conditions"]:
        text = "All variants had the same data, order, noise and budget; they differ in what is named."
        return page.paragraph(text, "note conditions")
    items = "".join(f"<li><b>{escape(condition)}</b></li>" for condition in study["conditions"])
    return f'<div class="unequal"><p><b>Not equal between variants, though it should be:</b></p><ul>{items}</ul></div>'


def _failed(study: Study, comparison: Mapping[str, Any]) -> str:
    items = "".join(
        f"<li><b>{escape(cell)}</b><code>{escape(error)}</code>"
        + (f'<span class="note">{escape(file)}</span>' if file else "")
        + "</li>"
        for cell, error, file in words.failures(study)
    )
    content = [f'<ul class="failed">{items}</ul>'] if items else []
    if waiting := words.pending(study):
        content.append(page.paragraph(escape(f"Not yet run: {'; '.join(waiting)}."), "note"))
    if empty := words.without_value(comparison):
        content.append(page.paragraph(escape(f"Finished without a value: {'; '.join(empty)}."), "note"))
    title = "Failed cells" if items else "Missing cells" if waiting else "Missing values"
    return page.section(title, *content) if content else ""


def _differences(comparison: Mapping[str, Any]) -> str:
    charts = []
    for measure in comparison["measures"]:
        rows = [row for row in measure["variants"] if row["difference"]]
        if rows:
            drawn = [_forest_row(row["variant"], row["difference"]) for row in rows]
            charts.append(_forest(measure, drawn, f"Differences to {comparison['baseline']}."))
    if not charts:
        return ""
    note = (
        f"Each variant minus the baseline, {comparison['baseline']}, paired by seed: mean and 95 % interval. In colour "
        "where the interval excludes zero; the line is at zero."
    )
    body = f'<div class="charts">{"".join(charts)}</div>'
    return page.section("Differences to the baseline", page.paragraph(escape(note), "note"), body)


def _forest_row(name: str, difference: Mapping[str, Any]) -> tuple[str, float, float | None, float | None, str]:
    shown = difference["low"] is not None and not difference["low"] <= 0 <= difference["high"]
    style = {"better": "s0", "worse": "s1"}.get(difference["verdict"], "s2") if shown else "quiet"
    return name, difference["mean"], difference["low"], difference["high"], style


def _forest(
    measure: Mapping[str, Any], rows: Sequence[tuple[str, float, float | None, float | None, str]], about: str
) -> str:
    spoken = "; ".join(f"{name} {words.fixed(mean, words.digits(measure), sign=True)}" for name, mean, *_ in rows)
    title = f"{measure['label']}, difference"
    svg = forest_chart(title, rows, unit=measure["unit"], description=f"{about} {spoken}")
    return page.chart(title, svg, f"{words.direction(measure)}; {measure['protocol']}")


def _numbers(study: Study, comparison: Mapping[str, Any]) -> str:
    tables = [_measure(words.HEAD, group) for group in words.groups(comparison)]
    head, *rows = words.overview(study, comparison)
    glance = page.table(head, rows) + page.paragraph(escape(words.legend([head, *rows])), "note")
    notes = [page.paragraph(escape(note), "note") for note in words.explanation(study, comparison)]
    if not tables:
        return ""
    return page.section(
        "Numbers", f'<div class="measure">{glance}</div>', *tables, '<div class="measure">', *notes, "</div>"
    )


def _measure(head: Sequence[str], group: words.Group) -> str:
    top = "".join(f'<th scope="col"{_class(cell)}>{escape(cell)}</th>' for cell in head)
    rows = []
    for name, *cells, last in group.rows:
        style = {"better": "better", "worse": "worse"}.get(last.split(" ")[0], "nothing")
        numbers = "".join(f'<td class="number">{escape(cell)}</td>' for cell in cells)
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{numbers}<td class="{style}">{escape(last)}</td></tr>')
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return (
        f'<div class="measure"><h3>{escape(group.title)}</h3>{page.paragraph(escape(group.protocol), "note")}'
        f'<div class="scroll" tabindex="0">{table}</div></div>'
    )


def _class(cell: str) -> str:
    return ' class="reading"' if cell == "reading" else ""


def _axes(study: Study, comparison: Mapping[str, Any]) -> str:
    charts: list[str] = []
    labels: list[str] = []
    for measure in comparison["measures"]:
        plot = against_axis(study, measure)
        series = [
            ([Estimate(s.place, s.row["mean"], s.row["se"] or 0.0, s.seeds) for s in line.spots], _colour(i))
            for i, line in enumerate(plot.lines)
        ]
        places = words.digits(measure)
        spoken = "; ".join(
            f"{s.row['variant']} {words.mean_text(s.row, places)}" for line in plot.lines for s in line.spots
        )
        title = f"{measure['label']} against {plot.axis}"
        labels = [line.label for line in plot.lines if line.label]
        drawn = [(estimates, style) for estimates, style in series if estimates]
        if not drawn:  # measured by cells that finished, and never a number
            continue
        joined = plot.axis != "variant"
        svg = category_chart(title, plot.values, drawn, description=f"Means: {spoken}.", joined=joined)
        charts.append(page.chart(title, svg, f"{words.heading(measure)}; {measure['protocol']}"))
    if not charts:
        return ""
    note = page.paragraph("Mean ± standard error over seeds; faint dots are single seeds.", "note")
    return page.section("Metrics along the axis", note, _legend(labels), f'<div class="charts">{"".join(charts)}</div>')


def _effects(study: Study, comparison: Mapping[str, Any]) -> str:
    tables = words.effect_groups(study, comparison)
    if not tables:
        return ""
    charts = []
    for measure in comparison["measures"]:
        rows = [_forest_row(words.effect_name(e), e["difference"]) for e in measure["effects"] if e["difference"]]
        if rows:
            charts.append(_forest(measure, rows, "Main effects."))
    note = (
        "What a value of one axis does on average over the settings of the others, against the baseline's value: for "
        "each seed the differences are averaged over the settings in which both cells have a value, and the interval "
        "is over seeds. Where axes interact the average hides it: see the metrics along the axis."
    )
    inside = "".join(_measure(words.EFFECTS_HEAD, group) for group in tables)
    details = f'<details><summary>Main effects in numbers</summary><div class="inside">{inside}</div></details>'
    body = f'<div class="charts">{"".join(charts)}</div>'
    return page.section("Main effects", page.paragraph(note, "note"), body, details)


def _curves(study: Study) -> str:
    drawn = curves(study)
    if not drawn:
        return ""
    series = []
    for i, (_, _, single) in enumerate(drawn):
        series += [Series(points, f"thin {_colour(i)}") for points in single]
    series += [Series(mean, _colour(i)) for i, (_, mean, _) in enumerate(drawn) if mean]
    values = [y for one in series for _, y in one.points]
    log = min(values) > 0 and max(values) > 8 * min(values)
    ends = "; ".join(f"{name} ends at {mean[-1][1]:.4g}" for name, mean, _ in drawn if mean)
    svg = line_chart("Training loss", series, description=f"{ends or 'No cell finished'}.", log=log)
    note = (
        "Thick: mean over finished seeds; thin: single seeds, failed ones as far as they came. A loss is the sum of a "
        "recipe's own terms: between variants of different terms or teachers its height says nothing."
    )
    title = "Training loss" + (" (logarithmic)" if log else "")
    legend = _legend([name for name, *_ in drawn])
    return page.section(
        "Training", page.paragraph(note, "note"), legend, f'<div class="wide">{page.chart(title, svg)}</div>'
    )


def _plan(study: Study) -> str:
    head = [*words.COSTS_HEAD, "seconds of training"]
    rows = [[*row, _seconds(study, row[0])] for row in words.costs(study)]
    note = "Seconds are the mean over the cells whose time is known, on whatever else the machine was doing."
    recipes = "".join(
        f"<dt>{escape(variant['name'])}</dt><dd>recipe {escape(str(variant.get('recipe_id')))}, teacher "
        f"{escape(variant.get('teacher') or 'none')}</dd>"
        for variant in study["variants"]
    )
    details = f'<details><summary>Recipes</summary><dl class="facts inside">{recipes}</dl></details>'
    return page.section("Plan and costs", page.paragraph(note, "note"), page.table(head, rows), details)


def _seconds(study: Study, variant: str) -> str:
    timing = study.get("timing") or {}
    found = [timing[key] for seed in study["seeds"] if timing.get(key := f"{variant}/{seed}") is not None]
    return f"{math.fsum(found) / len(found):.0f}" if found else words.DASH


def _repeat(study: Study) -> str:
    if not study["command"]:
        return page.section("To repeat", page.paragraph("The study was made from Python, with <code>ablate</code>."))
    return page.section("To repeat", f'<pre class="command">{escape(study["command"])}</pre>')


def _legend(labels: Sequence[str]) -> str:
    spans = "".join(f'<span><i class="{_colour(i)}"></i>{escape(label)}</span>' for i, label in enumerate(labels))
    return page.paragraph(spans, "note legend") if labels else ""


def _colour(index: int) -> str:
    return f"s{index % COLOURS}" + (" dashed" if index // COLOURS % 2 else "")
