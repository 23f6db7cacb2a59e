"""One page about a run: what it is, what it does to photographs, how it learned, what its latents are like.

``write_report`` reads what training and evaluation left in the run's folder and makes the pictures anew. The page is
a single file that opens without a network.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..blocks.slots import ImageSource, ProtocolConfig
from ..families.files import write_atomically
from . import page
from .charts import Points, Series, line_chart, pair_chart, smoothed
from .gallery import View, collect, rendered
from .pictures import AMPLIFICATION
from .probes import probe_sections
from .protocols import ArchetypePSNRConfig
from .results import Result, file_name, load_result, number, rows_of

MOST_ROWS = 40
"""More images than this are drawn as a curve instead of a row each."""

WORDS = {"vp": "VP", "kl": "KL", "sid2": "SiD2", "mse": "MSE"}


def write_report(
    run: Path,
    model: Any,
    held_out: ImageSource,
    *,
    protocol: ProtocolConfig | None = None,
    most: int = 12,
) -> Path:
    """Write ``RUN/report.html`` and return its path.

    Shows at most ``most`` of the held-out images, those that went worst and the rest evenly spread over the ranks.
    Reads ``evaluation/<protocol>.json`` (which must exist), and ``recipe.json``, ``metrics.jsonl`` and
    ``timing.jsonl`` where they are.
    """
    protocol = protocol or ArchetypePSNRConfig()
    result, recipe = read_result(run, protocol), read_json(run / "recipe.json")
    metrics = read_lines(run / "metrics.jsonl")
    seconds = elapsed(read_lines(run / "timing.jsonl"))
    views = collect(model, held_out, protocol, result, most)
    title = (result["recipe"] or {}).get("name") or run.name
    body = "\n".join(
        [
            _header(title, result, metrics, seconds),
            _photographs(views, result),
            _numbers(result),
            training_section(metrics),
            _latents(result["latents"]),
            *probe_sections(result),
            recipe_section(recipe),
        ]
    )
    return write_atomically(run / "report.html", page.document(f"{title} · latelier", body))


# --- gathering ----------------------------------------------------------------------------------------------------


def read_result(run: Path, protocol: ProtocolConfig) -> Result:
    """What an evaluation under the protocol left in a run's folder.

    Raises:
        FileNotFoundError: nothing.
        ValueError: it was measured with other settings.
    """
    path = run / "evaluation" / file_name(protocol)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: is not there; evaluate the run first")
    result = load_result(path)
    if result["protocol"]["id"] != protocol.id:
        raise ValueError(
            f"{path}: was measured with settings {result['protocol']['id']} of the protocol, not {protocol.id}; "
            "evaluate the run anew"
        )
    return result


def read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file; none where there is no file."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def elapsed(timing: Sequence[dict[str, Any]]) -> float | None:
    """Seconds over all sittings: the clock starts anew with each stage and each resumption."""
    if not timing:
        return None
    seconds = [line["seconds"] for line in timing]
    ends = [a for a, b in zip(seconds, [*seconds[1:], -math.inf], strict=True) if b < a]
    return math.fsum(ends)


# --- sections -----------------------------------------------------------------------------------------------------


def _header(title: str, result: Result, metrics: Sequence[dict[str, Any]], seconds: float | None) -> str:
    model, latents, images = result["model"], result["latents"], result["set"]
    psnr, ssim = result["psnr"], result["ssim"]
    linear = ((result.get("baseline") or {}).get("psnr") or {}).get("mean")
    against = "" if linear is None or psnr["mean"] is None else f", {number(psnr['mean'] - linear, 'dB', sign=True)}"
    against += " against linear PCA" if against else ""
    figures = [
        (number(psnr["mean"], "dB"), f"mean PSNR of {counted(images['n'], 'held-out image')}{against}"),
        (number(ssim["mean"]), "mean SSIM"),
    ]
    alignment = result.get("alignment") or {}
    cosine = alignment.get("head_cosine", alignment.get("ridge_cosine"))
    if cosine is not None:
        reader = "the alignment head" if "head_cosine" in alignment else "a ridge readout"
        figures.append((f"{cosine:.3f}", f"cosine of {reader} to {alignment['teacher']['kind']}"))
    figures.append((f"{model['compression']:.3g}×", f"fewer numbers, {model['stride']}× in height and width"))
    figures.append((millions(model["parameters"]), "parameters"))
    steps = metrics[-1]["step"] if metrics else None
    if steps is not None and seconds is not None:
        figures.append((duration(seconds), f"of training, {thousands(steps)} steps"))
    grid = 256 // model["stride"]
    shape = f"{latents['channels']} × {grid} × {grid}".replace(" ", "\N{NO-BREAK SPACE}")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    facts = [
        ("Model", f"{model['kind']} ({model['id']})"),
        ("Recipe", f"{result['recipe']['name']} ({result['recipe']['id']})" if result["recipe"] else ""),
        ("Latent", f"{shape} for an image of 256 × 256 pixels"),
        ("Protocol", f"{result['protocol']['name']} ({result['protocol']['id']})"),
        ("Images", f"{images['n']} ({images['id']})"),
        ("Measured", f"{date(result['measured'])}, {result['dtype']} on {result['device']}"),
        ("Versions", versions),
    ]
    return (
        f'<p class="kicker">latelier, report of a run</p><h1>{escape(title)}</h1>'
        f'<p class="lead">An image autoencoder: 256 × 256 pixels in three colours become a latent of '
        f"{shape} numbers, and pixels again. "
        f"Measured on {counted(images['n'], 'image')} kept out of its training.</p>"
        + page.headline(figures)
        + page.facts(facts)
    )


def _photographs(views: Sequence[View], result: Result) -> str:
    figures, quality = rendered(views)
    exact = "as measured, without loss" if quality is None else f"compressed for this page (WebP, quality {quality})"
    text = (
        f"Pictures are {exact}. The difference is reconstruction minus original, {AMPLIFICATION:g} times amplified "
        "around grey. Latent colours are the first three principal components, fitted on the images of this page. "
        "Choose a picture to see original and reconstruction side by side at 100 %."
    )
    shown = "" if len(views) == result["set"]["n"] else f"{len(views)} of {result['set']['n']} images. "
    return page.section("Pictures", page.paragraph(f"{shown}Worst first. {text}", "note"), *figures)


def _numbers(result: Result) -> str:
    baseline = result.get("baseline")
    head = ["", "this model"] + (["linear baseline", "difference"] if baseline else [])
    rows = []
    for name, unit, value, linear in rows_of(result):
        cells = [name, number(value, unit)]
        if baseline:
            gap = None if value is None or linear is None else value - linear
            cells += [number(linear, unit), number(gap, unit, sign=True)]
        rows.append(cells)
    notes = [_protocol_text(result)]
    if baseline:
        fitted = counted(baseline["fitted_images"], "training image")
        notes.append(f"The linear baseline is a {baseline['name']}, fitted on {fitted}.")
    alignment = result.get("alignment") or {}
    if "mean_token_cosine" in alignment:
        notes.append(
            f"Always answering the mean token of {alignment['teacher']['kind']} has a cosine of "
            f"{alignment['mean_token_cosine']:.4f}."
        )
    if "mean_class_cosine" in alignment:
        notes.append(f"Always answering its mean class token has a cosine of {alignment['mean_class_cosine']:.4f}.")
    infinite = result["psnr"]["infinite"]
    if infinite:
        notes.append(f"{counted(infinite, 'perfect reconstruction')} left out of the PSNR statistics.")
    left = page.table(head, rows) + "".join(page.paragraph(escape(note), "note") for note in notes)
    return page.section("Numbers", f'<div class="columns"><div>{left}</div>{_each_image(result, bool(baseline))}</div>')


def _each_image(result: Result, baseline: bool) -> str:
    ranked = sorted(result["images"], key=lambda r: math.inf if r["psnr"] is None else r["psnr"])
    if all(row["psnr"] is None for row in ranked):
        return ""
    key = '<p class="note key"><i class="full"></i>this model' + ("<i></i>linear baseline" if baseline else "") + "</p>"
    if len(ranked) <= MOST_ROWS:
        rows = [(row["name"], row["psnr"], row.get("baseline_psnr")) for row in ranked]
        svg = pair_chart("PSNR of each image", rows, unit="dB", description=f"{len(rows)} images, worst first")
    else:
        curves = [Series([(i + 1.0, r["psnr"]) for i, r in enumerate(ranked) if r["psnr"] is not None], "smooth")]
        if baseline:
            pairs = [(i + 1.0, r["baseline_psnr"]) for i, r in enumerate(ranked) if r["baseline_psnr"] is not None]
            curves.insert(0, Series(smoothed(pairs), "compared"))
        svg = line_chart("PSNR of each image", curves, description="Images from worst to best, in dB", x_label="rank")
    return f"<div><h3>PSNR of each image, dB</h3>{key}{svg}</div>"


def _protocol_text(result: Result) -> str:
    settings = result["protocol"]["settings"]
    described = ", ".join(f"{name} {value}" for name, value in settings.items() if name != "kind")
    return (
        f"Protocol {result['protocol']['name'].partition('/')[2]} ({result['protocol']['id']}) on "
        f"{counted(result['set']['n'], 'image')} ({result['set']['id']}): {described}. "
        "Pooled PSNR is that of the squared error over all pixels together."
    )


def training_section(
    metrics: Sequence[dict[str, Any]], *, unseen: str = "held-out crops", more: Mapping[str, str] | None = None
) -> str:
    """Charts of everything recorded; ``more`` are charts of their own, which stand for the names that they are of."""
    if not metrics:
        return ""
    drawn = ("step", "stage", *(more or {}))
    terms = list(dict.fromkeys(name for line in metrics for name in line if name not in drawn))
    starts = [(float(b["step"]), str(b["stage"])) for a, b in pairwise(metrics) if a.get("stage") != b.get("stage")]
    checked = series_of(metrics, "validation_loss")
    charts = []
    for name in terms:
        points = series_of(metrics, name)
        if len(points) < 2 or name == "validation_loss":
            continue
        curves = (
            [Series(points, "smooth")]
            if name == "rate"
            else [Series(points, "raw"), Series(smoothed(points), "smooth")]
        )
        title, note = spelled(name), ""
        if name == "loss" and checked:
            curves.append(Series(checked, "checked", dots=True))
            note = f"Dots: on {unseen}, {checked[-1][1]:.4g} at the end."
        values = [y for curve in curves for _, y in curve.points]
        log = min(values) > 0 and max(values) > 8 * min(values) and name != "rate"
        description = (
            f"From {points[0][1]:.3g} at step {points[0][0]:g} to {points[-1][1]:.3g} at step {points[-1][0]:g}."
        )
        svg = line_chart(title, curves, description=description, log=log, marks=starts)
        charts.append(page.chart(title + (" (logarithmic)" if log else ""), svg, note))
    charts += dict.fromkeys((more or {}).values())
    text = "Thin lines are the values as recorded, thick ones a moving average over 5 % of them."
    return page.section("Training", page.paragraph(text, "note"), f'<div class="charts">{"".join(charts)}</div>')


def series_of(metrics: Sequence[dict[str, Any]], name: str) -> Points:
    return [(float(line["step"]), float(line[name])) for line in metrics if line.get(name) is not None]


def _latents(latents: dict[str, Any]) -> str:
    variation, posterior = latents["norm_variation"], latents["posterior"]
    shares = list(latents["variance_fractions"].items())
    rows = [
        ("Channels", str(latents["channels"])),
        ("Positions measured", thousands(latents["positions"])),
        ("Effective rank", f"{latents['effective_rank']:.1f}"),
        ("Variation of norms, images", _percent(variation["image"])),
        ("Variation of norms, tokens", _percent(variation["token"])),
        ("Variance in the first components", ", ".join(f"{k}: {_percent(share)}" for k, share in shares[:-1])),
    ]
    if posterior["bits_per_value"] is None:
        rows.append(("Information", "no bound, the encoder is deterministic"))
    else:
        rows += [
            (
                "Information, at most",
                f"{posterior['bits_per_value']:.2f} bits a value, {posterior['bits_per_pixel']:.2f} bits a pixel",
            ),
            ("Divergence from N(0, 1), raw latents", f"{posterior['kl_bits_per_value']:.2f} bits a value"),
            ("Posterior noise, raw latents", f"{posterior['sigma']:.3g}"),
        ]
    cumulative, total = [], 0.0
    for i, share in enumerate(latents["spectrum"], 1):
        total += share
        cumulative.append((float(i), 100 * total))
    charts = []
    if latents["channels"] > 1:
        svg = line_chart(
            "Variance explained", [Series(cumulative, "smooth")], description="Cumulative share", x_label="components"
        )
        charts.append(page.chart("Variance explained, %", svg))
    for key, level, title in (("mean", 0.0, "Mean"), ("std", 1.0, "Standard deviation"), ("kurtosis", 3.0, "Kurtosis")):
        points = [(float(i), value) for i, value in enumerate(latents[key]) if value is not None]
        if points:
            svg = line_chart(
                f"{title} of each channel",
                [Series(points, "dot", dots=True)],
                description=f"Dashed: {level:g}",
                level=level,
                x_label="channel",
            )
            charts.append(page.chart(f"{title} of each channel", svg))
    text = (
        "Latents of the held-out images, as the encoder returns them. Dashed lines: 0, 1 and 3, as for a unit "
        "Gaussian. Effective rank is the exponential of the entropy of the covariance's eigenvalues."
    )
    return page.section(
        "Latent space", page.paragraph(text, "note"), f'<div class="charts">{page.facts(rows)}{"".join(charts)}</div>'
    )


def recipe_section(recipe: dict[str, Any] | None) -> str:
    if recipe is None:
        return ""
    text = escape(json.dumps(recipe, indent=2, ensure_ascii=False))
    return page.section(
        "Recipe",
        page.paragraph("Everything that the run was made from, defaults included.", "note"),
        f"<details><summary>recipe.json</summary><pre>{text}</pre></details>",
    )


# --- words --------------------------------------------------------------------------------------------------------


def counted(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def millions(n: int) -> str:
    return f"{n / 1e6:.3g} M" if n >= 100_000 else thousands(n)


def thousands(n: int) -> str:
    return f"{n:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def spelled(name: str) -> str:
    """A term of the objective as a title: vp_reconstruction is VP reconstruction."""
    first, *rest = name.split("_")
    return " ".join([WORDS.get(first, first.capitalize()), *(WORDS.get(word, word) for word in rest)])


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    whole = round(seconds)
    parts = ((whole // 3600, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    return " ".join(_leading(parts)) or "0 s"


def _leading(parts: Sequence[tuple[int, str]]) -> Iterator[str]:
    """The two largest units that are not zero at the front."""
    started = [part for i, part in enumerate(parts) if any(n for n, _ in parts[: i + 1])]
    yield from (f"{n} {unit}" for n, unit in started[:2])


def date(stamp: str) -> str:
    return stamp.replace("T", " ").removesuffix("+00:00") + " UTC"
