"""One page about a bridge: its numbers beside what it must beat, where it errs, what it sees, how it learned."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from einops import rearrange
from torch import Tensor

from ..blocks.slots import PairSource, TeacherOutput
from ..families.files import write_atomically
from . import page
from .bridge_measure import BRIDGE, bridge_gain, bridge_row
from .bridge_val import BridgeValConfig, MeasuredPair
from .charts import Series, heat_map, line_chart, smoothed
from .gallery import chosen
from .pictures import data_uri, latent_colours, png, webp
from .protocols import frozen, placed_like
from .report import (
    counted,
    date,
    duration,
    elapsed,
    millions,
    read_json,
    read_lines,
    read_result,
    recipe_section,
    series_of,
    spelled,
    thousands,
    training_section,
)
from .results import SECONDS, Result, bridge_notes, number

LINES = ("solid", "dashed", "dotted", "dashdot", "long", "close")
"""Styles of lines, of which a chart has one for each term."""

STYLE = """
svg .heat { fill: var(--model); shape-rendering: crispEdges; }
svg path:is(.solid, .dashed, .dotted, .dashdot, .long, .close) { fill: none; stroke-width: 1.9; }
svg path.solid { stroke: var(--model); }
svg path.dashed { stroke: var(--linear); stroke-dasharray: 6 3; }
svg path.dotted { stroke: var(--third); stroke-dasharray: 1.5 3; }
svg path.dashdot { stroke: var(--quiet); stroke-dasharray: 6 3 1.5 3; }
svg path.long { stroke: var(--model); stroke-dasharray: 11 3; }
svg path.close { stroke: var(--linear); stroke-dasharray: 3 1.5; }
.lines i.dashed { border-top: 2.5px dashed var(--linear); }
.lines i.dotted { border-top: 2.5px dotted var(--third); }
.lines i.dashdot { border-top: 2.5px dashed var(--quiet); }
.lines i.close { border-top: 2.5px dashed var(--linear); }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(14rem, 100%), 17rem)); gap: 1.8rem 2.5rem; }
.strips figure > div { align-items: start; }
"""

MEANINGS = (
    ("cos_token", "cosine of each token with its target, mean over tokens and images"),
    ("nmse_energy", "squared error over the squared targets, sums over the whole set"),
    ("nmse_var", "the same over the variance of the targets, 1 for the mean token of the set"),
    ("cos_mean_token", "control: the cosine of always answering that mean token"),
    ("selfsim_err", "mean difference of cosines between tokens of an image"),
    ("card_loss", "1 − cos + 0.25 unit MSE (mean over channels) + 0.05 MSE"),
    ("cos_class", "cosine of the class token"),
    ("r@k_…_N…", "share of images found among the k nearest of N by cosine"),
    ("…_shuffled", "control: the targets of other images, about k/N"),
)


def write_bridge_report(
    run: Path,
    model: Any,
    held_out: PairSource,
    *,
    protocol: BridgeValConfig | None = None,
    most: int = 12,
) -> Path:
    """Write ``RUN/report.html`` and return its path.

    Shows at most ``most`` of the held-out pairs, those that went worst and the rest evenly spread over the ranks.
    Reads ``evaluation/<protocol>.json`` (which must exist), and ``recipe.json``, ``metrics.jsonl`` and
    ``timing.jsonl`` where they are.

    Raises:
        FileNotFoundError: the run was not evaluated.
        ValueError: it was evaluated under other settings or on other pairs.
    """
    protocol = protocol or BridgeValConfig()
    result, recipe = read_result(run, protocol), read_json(run / "recipe.json")
    metrics, seconds = read_lines(run / "metrics.jsonl"), elapsed(read_lines(run / "timing.jsonl"))
    views = _views(model, held_out, protocol, result, most)
    title = (result["recipe"] or {}).get("name") or run.name
    body = "\n".join(
        [
            _header(title, model, result, metrics, seconds),
            _numbers(result),
            _maps(result),
            _pictures(views, result),
            training_section(metrics, unseen="held-out pairs", more=_shares(metrics)),
            recipe_section(recipe),
        ]
    )
    return write_atomically(run / "report.html", page.document(f"{title} · latelier", body, style=STYLE))


# --- gathering ----------------------------------------------------------------------------------------------------


@dataclass
class BridgeView:
    """One pair of the page: maps ``[1, f, h, w]`` of targets and predictions, 1 - cos by position, the image small."""

    row: dict[str, Any]
    target: Tensor
    prediction: Tensor
    error: list[list[float | None]]
    thumbnail: PIL.Image.Image | None


def _views(model: Any, held_out: PairSource, protocol: BridgeValConfig, result: Result, most: int) -> list[BridgeView]:
    rows = {row["name"]: row for row in result["images"]}
    names = chosen(result["images"], most, by="cos_token")
    places = {held_out.name(i): i for i in range(len(held_out))}
    missing = [name for name in names if name not in places]
    if missing:
        raise ValueError(f"pairs: {missing[0]!r} was measured but is not among these; evaluate the run anew")
    indices, measured = [places[name] for name in names], list[MeasuredPair]()
    with frozen(model):
        protocol.measure_on(lambda z: model(placed_like(model, z)), held_out, indices, visit=measured.append)
    views = []
    for index, pair in zip(indices, measured, strict=True):
        target, prediction = _map(pair.target), _map(pair.prediction)
        cosines = torch.nn.functional.cosine_similarity(prediction, target, dim=1)[0]
        seen = target.abs().amax(dim=1)[0] > 0
        error = [
            [1 - c if s else None for c, s in zip(line, there, strict=True)]
            for line, there in zip(cosines.tolist(), seen.tolist(), strict=True)
        ]
        views.append(BridgeView(rows[pair.name], target, prediction, error, _thumbnail(held_out, index)))
    return views


def _map(said: TeacherOutput) -> Tensor:
    return rearrange(said.patches.float().cpu(), "b (h w) f -> b f h w", h=said.grid[0])


def _thumbnail(pairs: PairSource, index: int) -> PIL.Image.Image | None:
    levels = pairs.thumbnail(index)
    return None if levels is None else PIL.Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


# --- sections -----------------------------------------------------------------------------------------------------


def _header(title: str, model: Any, result: Result, metrics: Sequence[dict[str, Any]], seconds: float | None) -> str:
    found, pairs, n = bridge_row(result)["metrics"], result["pairs"], result["set"]["n"]
    space, teacher = pairs["latent_spec"]["source"], _teacher(model, result)
    figures = [(_shown(found["cos_token"]), f"cosine of tokens, mean over {counted(n, 'held-out pair')}")]
    against = _against(result)
    figures.append((_shown(found["nmse_energy"]), f"NMSE (energy){against}"))
    first = next((name for name in found if name.startswith("r@1_") and not name.endswith("_shuffled")), None)
    if first is not None:
        _, pooling, count = first.split("_")
        control = _shown(found[f"{first}_shuffled"])
        figures.append(
            (_shown(found[first]), f"retrieval@1 of {count[1:]}, {pooling}; {control} with targets shuffled")
        )
    if result["ratio"] is not None:
        figures.append((f"{result['ratio']:.3g}×", "as fast as decoding for the teacher"))
    figures.append((millions(result["model"]["parameters"]), "parameters"))
    if metrics and seconds is not None:
        figures.append((duration(seconds), f"of training, {thousands(metrics[-1]['step'])} steps"))
    latent = " × ".join(map(str, pairs["latent"])).replace(" ", "\N{NO-BREAK SPACE}")
    grid = " × ".join(map(str, pairs["grid"])).replace(" ", "\N{NO-BREAK SPACE}")
    spec = pairs["latent_spec"]
    facts = [
        ("Model", f"{result['model']['kind']} ({result['model']['id']})"),
        ("Recipe", f"{result['recipe']['name']} ({result['recipe']['id']})" if result["recipe"] else ""),
        ("Latents", f"{space}, {latent} at stride {spec['stride']}, normalisation {spec['normalisation']}"),
        ("Teacher", teacher),
        ("Protocol", f"{result['protocol']['name']} ({result['protocol']['id']})"),
        ("Pairs", f"{n} of {pairs['resolution']} × {pairs['resolution']} pixels ({result['set']['id']})"),
        ("Measured", f"{date(result['measured'])}, {result['dtype']} on {result['device']}"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in result["versions"].items())),
    ]
    return (
        f'<p class="kicker">latelier, report of a bridge</p><h1>{escape(title)}</h1>'
        f'<p class="lead">From latents of {escape(space)}, {latent} numbers, to {grid} tokens of {pairs["features"]} '
        f"features, as {escape(teacher)} would give of the image, which is never decoded. Measured on "
        f"{counted(n, 'pair')} kept out of its training.</p>" + page.headline(figures) + page.facts(facts)
    )


def _teacher(model: Any, result: Result) -> str:
    spec = result["pairs"]["teacher_spec"] or {}
    return str(spec.get("model") or model.config.teacher.kind)


def _against(result: Result) -> str:
    try:
        better = bridge_gain(result)
    except ValueError:
        return ""
    return f", {abs(100 * better):.0f} % {'below' if better >= 0 else 'above'} the linear baseline"


def _numbers(result: Result) -> str:
    rows = result["rows"]
    numbers = {one["name"]: {**one.get("metrics", {}), SECONDS: one.get("seconds_per_image")} for one in rows}
    names = [*bridge_row(result)["metrics"]]
    names += [name for found in numbers.values() for name in found if name not in (*names, SECONDS)]
    cells = [[name, *(number(numbers[k].get(name)) for k in numbers)] for name in dict.fromkeys(names)]
    cells.append([SECONDS, *(number(numbers[k].get(SECONDS), significant=True) for k in numbers)])
    settings = result["protocol"]["settings"]
    described = ", ".join(f"{name} {_plain(value)}" for name, value in settings.items() if name != "kind")
    notes = [
        *bridge_notes(result),
        f"Protocol {result['protocol']['name'].partition('/')[2]} ({result['protocol']['id']}) on "
        f"{counted(result['set']['n'], 'pair')} ({result['set']['id']}): {described}.",
    ]
    table = page.table(["", *("this bridge" if name == BRIDGE else name for name in numbers)], cells)
    known = [(name, text) for name, text in MEANINGS if not name.startswith("cos_class") or name in names]
    words = page.facts(known)
    text = "".join(page.paragraph(escape(note), "note") for note in notes)
    return page.section("Numbers", table, text, f"<h3>What they are</h3>{words}")


def _plain(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _maps(result: Result) -> str:
    maps = result["maps"]
    grid = f"{maps['grid'][0]} × {maps['grid'][1]} tokens"
    charts = []
    for key, title, rows in (
        ("cos_error", "1 − cosine", maps["cos_error"]),
        ("nmse", "NMSE (energy)", maps["nmse"]),
    ):
        values = [value for row in rows for value in row if value is not None]
        if values:
            description = f"{grid}, from {min(values):.3g} to {max(values):.3g}"
            charts.append(page.chart(title, heat_map(f"{title} by position ({key})", rows, description=description)))
    text = (
        f"Where on the grid of {grid} the bridge errs, over all {counted(result['set']['n'], 'held-out pair')}. "
        "Each scale spans from the lowest to the highest position, the stronger the larger."
    )
    return page.section("Error by position", page.paragraph(text, "note"), f'<div class="maps">{"".join(charts)}</div>')


def _pictures(views: Sequence[BridgeView], result: Result) -> str:
    targets = [view.target for view in views]
    known, said = latent_colours(targets), latent_colours([view.prediction for view in views], fitted_on=targets)
    values = [value for view in views for row in view.error for value in row if value is not None] or [0.0]
    figures = []
    for view, target, prediction in zip(views, known, said, strict=True):
        name = escape(view.row["name"], quote=True)
        heat = heat_map(
            f"1 − cosine of {view.row['name']}",
            view.error,
            description="by position",
            between=(0.0, max(values)),
            scale=False,
        )
        cells = [
            _cell(f"Target of {name} as colours", png(target), "Teacher"),
            _cell(f"Prediction for {name} as colours", png(prediction), "Bridge"),
            f"<div>{heat}<span>1 − cosine</span></div>",
        ]
        if view.thumbnail is not None:
            image = f'<img src="{data_uri(webp(view.thumbnail, quality=80))}" alt="{name}">'
            cells.insert(0, f"<div>{image}<span>Image</span></div>")
        caption = f"<b>{name}</b> cosine {number(view.row['cos_token'])}, NMSE {number(view.row['nmse_energy'])}"
        figures.append(f"<figure><figcaption>{caption}</figcaption><div>{''.join(cells)}</div></figure>")
    shown = "" if len(views) == result["set"]["n"] else f"{len(views)} of {counted(result['set']['n'], 'pair')}. "
    text = (
        f"{shown}Worst first. Colours are three principal components of tokens, fitted on the teacher's tokens of this "
        "page, and mean the same in every picture of teacher and bridge. Squares are the stronger the larger the "
        f"error at their position, from 0 to {max(values):.3g}."
    )
    strips = f'<div class="strips">{"".join(figures)}</div>'
    return page.section("What the teacher sees, and the bridge", page.paragraph(text, "note"), strips)


def _cell(alt: str, data: bytes, label: str) -> str:
    return f'<div><img class="latent" src="{data_uri(data)}" alt="{alt}"><span>{label}</span></div>'


def _shares(metrics: Sequence[dict[str, Any]]) -> dict[str, str]:
    """One chart of the shares of all terms in the gradient, under the name of each."""
    names = list(dict.fromkeys(name for line in metrics for name in line if name.endswith("_share")))
    drawn = [(name, series_of(metrics, name)) for name in names]
    drawn = [(name, points) for name, points in drawn if len(points) > 1]
    if not drawn:
        return {}
    styles = [LINES[i % len(LINES)] for i in range(len(drawn))]
    curves = [Series(smoothed(points), style) for (_, points), style in zip(drawn, styles, strict=True)]
    words = [spelled(name.removeprefix("bridge_").removesuffix("_share")) for name, _ in drawn]
    last = ", ".join(f"{word} {points[-1][1]:.3g}" for word, (_, points) in zip(words, drawn, strict=True))
    svg = line_chart("Shares of the gradient", curves, description=f"At the end: {last}")
    key = "".join(f'<span><i class="{s}"></i>{escape(w)}</span>' for s, w in zip(styles, words, strict=True))
    chart = f'<div><h3>Shares of the gradient</h3>{svg}<p class="note lines">{key}</p></div>'
    return dict.fromkeys(names, chart)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
