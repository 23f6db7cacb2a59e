"""What probes found, as sections of a report."""

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from . import page
from .charts import Series, line_chart
from .probe_tables import SECTIONS
from .results import Result, number
from .robustness import REGIONS, TokenRobustnessConfig

NAMES = {"whole": "all pixels", "untouched": "untouched tokens", "corrupted": "corrupted tokens"}


def probe_sections(result: Result) -> Iterator[str]:
    """A section for all answers of a kind; one that is not known here shows its JSON."""
    answers = result.get("probes") or {}
    kinds = dict.fromkeys(answer["kind"] for answer in answers.values())
    for kind in kinds:
        of_kind = {name: answer for name, answer in answers.items() if answer["kind"] == kind}
        if kind == TokenRobustnessConfig.kind:
            yield page.section(
                "Robustness to wrong tokens", *(_robustness(name, answer) for name, answer in of_kind.items())
            )
        elif kind in SECTIONS:
            title, show = SECTIONS[kind]
            yield page.section(title, *(show(answer) for answer in of_kind.values()))
        else:
            yield page.section(kind.partition("/")[2], *(_as_json(name, answer) for name, answer in of_kind.items()))


def _robustness(name: str, answer: Mapping[str, Any]) -> str:
    settings, offsets = answer["settings"], answer["offsets"]
    own = answer["relative_to"] == "posterior"
    drawn = (
        "are drawn from the posterior with its log-SNR lowered by as many nats as the chart's offset (alpha′·mu + "
        "sigma′·eps) while the others stay at its mode"
        if own
        else "are mixed with noise at a log-SNR of "
        f"{settings['logsnr']:g} nats less the chart's offset, taking latents to have unit variance"
    )
    base = f"The posterior's log-SNR is {answer['logsnr']:.2f} nats on average. " if own and answer["logsnr"] else ""
    if not own and settings["relative_to"] == "posterior":
        base = "This model has no posterior of finite log-SNR to be offset. "
    text = (
        f"{100 * settings['share']:.3g} % of each latent's tokens, chosen at random, {drawn}. "
        f"{base}Both latents are decoded from the same noise, and PSNR is that of one decode against the other, not "
        "against the picture: higher means that wrong tokens changed less. The pixels of untouched tokens tell how far "
        "an error spreads."
    )
    series = []
    for region in reversed(REGIONS):
        points = [(n["offset"], n[region]["mean"]) for n in offsets if n[region]["mean"] is not None]
        if points:
            series.append(Series(points, region, knots=True))
    left, notes = "", _left_out(offsets)
    if series:
        described = [
            f"{NAMES[s.style]} from {s.points[0][1]:.1f} to {s.points[-1][1]:.1f} dB" for s in reversed(series)
        ]
        svg = line_chart("PSNR by offset", series, description="; ".join(described), x_label="offset, nats")
        key = "".join(f'<span><i class="{s.style}"></i>{NAMES[s.style]}</span>' for s in reversed(series))
        left = f'<div><h3>PSNR against the untouched decode, dB</h3><p class="note lines">{key}</p>{svg}</div>'
    rows = [[f"{n['offset']:g}", *(_digits(n[region]["mean"]) for region in REGIONS)] for n in offsets]
    means = page.table(["offset", *NAMES.values()], rows) + "".join(page.paragraph(escape(x), "note") for x in notes)
    return (
        f'<div class="probe">{page.paragraph(escape(text), "note")}'
        + f'<div class="columns">{left}<div><h3>Means over images, dB</h3>{means}</div></div>'
        + f"<details><summary>{escape(name)} ({answer['id']}): all statistics, dB</summary>"
        + f"{_statistics(offsets)}</details></div>"
    )


def _statistics(offsets: Sequence[Mapping[str, Any]]) -> str:
    keys = {"mean": "mean", "std": "std", "median": "median", "p5": "P5", "p95": "P95", "pooled": "pooled"}
    rows = [
        [f"{numbers['offset']:g}, {region}", *(_digits(numbers[region][key]) for key in keys)]
        for region in REGIONS
        for numbers in offsets
    ]
    return page.table(["offset, region", *keys.values()], rows)


def _left_out(offsets: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for region in REGIONS:
        exact = [n for n in offsets if n[region]["infinite"]]
        if exact:
            counts = ", ".join(f"{n[region]['infinite']} of {n[region]['n']} at {n['offset']:g}" for n in exact)
            yield f"Exact on {NAMES[region]}, and left out of these means: {counts}."


def _digits(decibels: float | None) -> str:
    return number(decibels, "dB").removesuffix(" dB")


def _as_json(name: str, answer: Mapping[str, Any]) -> str:
    text = escape(json.dumps(answer, indent=2, ensure_ascii=False))
    return f"<details><summary>{escape(name)} ({answer['id']})</summary><pre>{text}</pre></details>"
