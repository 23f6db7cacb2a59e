"""The report: one file that asks nothing of a network, says what was measured, and draws what was recorded."""

import json
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given

from latelier.blocks import FCDMBlockConfig, HOGConfig, SkipDecoderConfig, StackEncoderConfig
from latelier.evaluation import (
    ArchetypePSNRConfig,
    TokenRobustnessConfig,
    charts,
    evaluate,
    gallery,
    page,
    report,
    save_result,
    write_report,
)
from latelier.families import DiffAEConfig, SemDisDiffAE

NAMES = ('<b>bold & "quoted"</b>.png', "lake.jpg", "a/rather/long/path/to/a/picture/of/a/lake.jpg")
VOID = {"meta", "img", "br", "line", "circle", "path"}


class Noise:
    """Pictures of noise, which no format makes small."""

    def __init__(self, names: Sequence[str], *, side: int = 16) -> None:
        self.names, self.side = names, side

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def size(self, index: int) -> tuple[int, int]:
        return self.side, self.side + 4

    def read(self, index: int) -> PIL.Image.Image:
        random = np.random.default_rng(len(self.names[index]))
        return PIL.Image.fromarray(random.integers(0, 256, (self.side, self.side + 4, 3), dtype=np.uint8))


class Page(HTMLParser):
    """Checks that elements nest, and gathers what a page holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def tiny() -> SemDisDiffAE:
    torch.manual_seed(1)
    block = FCDMBlockConfig()
    config = DiffAEConfig(
        patch=4,
        width=16,
        latent=6,
        encoder=StackEncoderConfig(block=block, depth=1),
        decoder=SkipDecoderConfig(block=block),
    )
    return config.build()


def finished(run: Path, *, images: Noise) -> Path:
    """A run folder as training and evaluation leave it."""
    model = tiny()
    result = evaluate(model, images, training=Noise(["other"]), teacher=HOGConfig(patch=4), recipe=model.config)
    save_result(result, run / "evaluation")
    (run / "recipe.json").write_text(json.dumps({"kind": "recipe/staged", "name": "<tiny>", "seed": 0}))
    lines = [
        {"step": step, "stage": "main" if step < 60 else "polish", "loss": 1 / step, "vp_reconstruction": 0.5}
        | {"alignment": -0.1 * step, "rate": 1e-3}
        | ({"validation_loss": 0.25} if step % 50 == 0 else {})
        for step in range(10, 101, 10)
    ]
    cut_short = '{"step": 110, "stage"'
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + cut_short)
    (run / "timing.jsonl").write_text("".join(json.dumps({"step": s, "seconds": s * 7.0}) + "\n" for s in (50, 100)))
    return run


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    run, images = tmp_path_factory.mktemp("run"), Noise(NAMES)
    path = write_report(finished(run, images=images), tiny(), images)
    assert path == run / "report.html"
    assert sorted(p.name for p in run.iterdir()) == [
        "evaluation",
        "metrics.jsonl",
        "recipe.json",
        "report.html",
        "timing.jsonl",
    ]
    return path.read_text(encoding="utf-8")


def test_a_report_asks_nothing_of_a_network(written: str) -> None:
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+", re.sub(r"base64,[\w+/=]+", "", written))
    assert "url(" not in written
    made = Page(written)
    for _, attributes in made.elements:
        assert not {"href", "srcset", "action", "data", "poster"} & attributes.keys()
        assert (attributes.get("src") or "data:").startswith("data:")
    assert {"http-equiv": "Content-Security-Policy", "content": page.POLICY} in made.of("meta")
    assert not made.of("link")


def test_every_picture_and_chart_has_words(written: str) -> None:
    made = Page(written)
    shown = [image for image in made.of("img") if "src" in image]
    assert len(shown) == 4 * len(NAMES)
    assert all(image["alt"] for image in shown)
    assert all(chart["aria-label"] for chart in made.of("svg"))
    assert made.of("html") == [{"lang": "en"}]


def test_names_are_text_and_never_markup(written: str) -> None:
    made = Page(written)
    assert NAMES[0] in made.text
    assert "<tiny>" in made.text
    assert "<b>bold" not in written
    assert f"Original of {NAMES[0]}" in [image["alt"] for image in made.of("img")]


def test_a_report_says_what_was_measured_and_how(written: str) -> None:
    text = Page(written).text
    assert "mean PSNR of 3 held-out images" in text
    assert "against linear PCA" in text
    assert "6 × 64 × 64 for an image of 256 × 256 pixels" in text
    assert f"protocol/archetype_psnr ({ArchetypePSNRConfig().id})" in text
    assert "11 min 40 s" in text
    assert "of training, 100 steps" in text
    assert "PCA of 4x4 patches, 6 components, fitted on 1 training image." in text
    assert "Pictures are as measured, without loss" in text
    assert "recipe/staged" in text


def test_every_recorded_term_is_drawn(written: str) -> None:
    made = Page(written)
    labels = " ".join(chart["aria-label"] or "" for chart in made.of("svg"))
    for title in ("Loss", "VP reconstruction", "Alignment", "Rate"):
        assert f"{title}. From " in labels
    assert "Dots: on held-out crops, 0.25 at the end." in made.text
    assert "Loss (logarithmic)" in made.text
    assert "polish" in made.text


def test_many_or_large_pictures_are_compressed_until_the_page_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Noise([f"{i}" for i in range(5)], side=64)
    run = finished(tmp_path, images=images)
    monkeypatch.setattr(gallery, "MOST_BYTES", 60_000)
    made = write_report(run, tiny(), images, most=3).read_text(encoding="utf-8")
    assert "3 of 5 images. Worst first." in Page(made).text
    assert re.search(r"compressed for this page \(WebP, quality \d\d\)", made)


def test_a_report_of_an_evaluation_alone_is_shorter(tmp_path: Path) -> None:
    images = Noise(["a"])
    save_result(evaluate(tiny(), images), tmp_path / "evaluation")
    made = Page(write_report(tmp_path, tiny(), images).read_text(encoding="utf-8"))
    assert "Training" not in made.words
    assert "Recipe" not in made.words
    assert "linear baseline" not in made.text


def test_a_report_draws_what_wrong_tokens_do(tmp_path: Path) -> None:
    images, unit = Noise(["a", "b"]), TokenRobustnessConfig(relative_to="unit", share=0.125)
    model = tiny()
    for parameter in model.parameters():  # off the zeros of birth, at which no token reaches another's pixels
        torch.nn.init.normal_(parameter, std=0.1)
    result = evaluate(model, images, probes=(TokenRobustnessConfig(), unit))
    save_result(result, tmp_path / "evaluation")
    made = Page(write_report(tmp_path, tiny(), images).read_text(encoding="utf-8"))
    answer, other = result["probes"].values()
    means = [n["whole"]["mean"] for n in answer["offsets"]]
    drawn = [c["aria-label"] or "" for c in made.of("svg") if "PSNR by offset" in (c["aria-label"] or "")]
    assert len(drawn) == 2
    assert f"all pixels from {means[0]:.1f} to {means[-1]:.1f} dB; untouched tokens from " in drawn[0]
    for region in ("whole", "untouched", "corrupted"):
        assert len([p for p in made.of("path") if p["class"] == region]) == 2
        assert len([p for p in made.of("circle") if p["class"] == region]) == 8
    assert "Robustness to wrong tokens 25 % of each latent's tokens, chosen at random, are drawn from" in made.text
    assert f"The posterior's log-SNR is {answer['logsnr']:.2f} nats on average." in made.text
    assert "12.5 % of each latent's tokens, chosen at random, are mixed with noise at a log-SNR of 6 nats" in made.text
    assert f"{other['offsets'][3]['untouched']['pooled']:.2f}" in made.text
    assert "no posterior" not in made.text


def test_curves_that_are_exact_are_said_and_not_drawn(tmp_path: Path) -> None:
    result = evaluate(tiny(), Noise(["a"]), probes=[TokenRobustnessConfig(offsets=(1.0, 2.0))])
    (answer,) = result["probes"].values()
    for numbers in answer["offsets"]:
        nothing = dict.fromkeys(("mean", "std", "median", "p5", "p95", "min", "max", "pooled"))
        numbers["untouched"] = {"n": 1, "infinite": 1} | nothing
    answer["relative_to"] = "unit"
    save_result(result, tmp_path / "evaluation")
    made = Page(write_report(tmp_path, tiny(), Noise(["a"])).read_text(encoding="utf-8"))
    assert [p["class"] for p in made.of("path") if p["class"] in ("whole", "untouched", "corrupted")] == [
        "corrupted",
        "whole",
    ]
    assert "Exact on untouched tokens, and left out of these means: 1 of 1 at 1, 1 of 1 at 2." in made.text
    assert "This model has no posterior of finite log-SNR to be offset." in made.text


def test_answers_of_a_probe_of_another_package_are_shown_as_json(tmp_path: Path) -> None:
    result = evaluate(tiny(), Noise(["a"]))
    result["probes"] = {"theirs": {"kind": "probe/theirs", "id": "0123", "settings": {}, "found": "<b>much</b>"}}
    save_result(result, tmp_path / "evaluation")
    made = Page(write_report(tmp_path, tiny(), Noise(["a"])).read_text(encoding="utf-8"))
    assert "theirs (0123)" in made.text
    assert '"found": "<b>much</b>"' in made.text


def test_more_images_than_rows_are_drawn_as_a_curve(tmp_path: Path) -> None:
    images = Noise([f"{i}" for i in range(45)])
    made = Page(write_report(finished(tmp_path, images=images), tiny(), images).read_text(encoding="utf-8"))
    assert "PSNR of each image. Images from worst to best, in dB" in [c["aria-label"] for c in made.of("svg")]
    assert "12 of 45 images. Worst first." in made.text


def test_a_run_that_was_not_measured_so_is_refused(tmp_path: Path) -> None:
    images = Noise(["a"])
    path = tmp_path / "evaluation" / "archetype_psnr.json"
    with pytest.raises(FileNotFoundError, match=f"^{path}: is not there; evaluate the run first$"):
        write_report(tmp_path, tiny(), images)
    result = evaluate(tiny(), images)
    save_result(result, tmp_path / "evaluation")
    message = "images: 'a' was measured but is not among these; evaluate the run anew"
    with pytest.raises(ValueError, match=f"^{message}$"):
        write_report(tmp_path, tiny(), Noise(["b"]))
    text = path.read_text().replace(ArchetypePSNRConfig().id, "0123456789ab")
    path.write_text(text)
    message = (
        f"{path}: was measured with settings 0123456789ab of the protocol, not {ArchetypePSNRConfig().id}; "
        "evaluate the run anew"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        write_report(tmp_path, tiny(), images)


# --- the pieces ---------------------------------------------------------------------------------------------------


def test_the_worst_images_come_first_and_others_are_spread() -> None:
    rows: list[dict[str, Any]] = [{"name": str(i), "psnr": float(i)} for i in range(10)]
    assert gallery.chosen(rows[::-1], 20) == [str(i) for i in range(10)]
    assert gallery.chosen(rows[::-1], 4) == ["0", "1", "5", "9"]
    assert gallery.chosen([{"name": "perfect", "psnr": None}, *rows[:1]], 5) == ["0", "perfect"]


@pytest.mark.parametrize(
    ("seconds", "total"), [([], None), ([1.0, 2.0], 2.0), ([5.0, 9.0, 2.0, 4.0, 1.0], 14.0), ([3.0, 3.0], 3.0)]
)
def test_the_clock_adds_sittings_up(seconds: list[float], total: float | None) -> None:
    assert report.elapsed([{"step": i, "seconds": s} for i, s in enumerate(seconds)]) == total


@given(slope=st.floats(-3, 3), n=st.integers(1, 300))
def test_smoothing_leaves_a_straight_line_alone(slope: float, n: int) -> None:
    line = [(float(x), slope * x + 1) for x in range(n)]
    np.testing.assert_allclose(charts.smoothed(line), line, atol=1e-9)


@given(n=st.integers(1, 5000))
def test_thinning_keeps_both_ends(n: int) -> None:
    points = [(float(x), 0.0) for x in range(n)]
    found = charts.thinned(points, 100)
    assert len(found) <= 101
    assert (found[0], found[-1]) == (points[0], points[-1])


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-6, 1e6))
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    ticks = list(charts.nice_ticks(low, low + span))
    assert 2 <= len(ticks) <= 6
    assert all(low - 1e-6 * span <= tick <= low + (1 + 1e-6) * span for tick in ticks)


def test_logarithmic_ticks_are_decades_or_finer() -> None:
    assert list(charts.log_ticks(0.9, 30.0)) == pytest.approx([1, 2, 5, 10, 20])
    assert list(charts.log_ticks(1e-4, 1.5)) == pytest.approx([1e-4, 1e-3, 1e-2, 0.1, 1])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (2500.0, "2.5k"), (1.5e6, "1.5M"), (0.0005, "0.0005"), (2e-5, "2e-5"), (-0.5, "-0.5")],
)
def test_tick_labels_are_short(value: float, text: str) -> None:
    assert charts.short(value) == text


def test_ticks_that_lie_close_together_have_labels_that_differ() -> None:
    assert [label for _, label in charts.labelled([0.73465, 0.73466, 0.73467])] == ["0.73465", "0.73466", "0.73467"]
    assert [label for _, label in charts.labelled([0.1, 0.2])] == ["0.1", "0.2"]
    assert charts.labelled([]) == []


def test_a_long_label_of_the_axis_covers_no_tick() -> None:
    series = [charts.Series([(x, x) for x in (0.0, 2.0, 4.0, 6.0)], "whole", knots=True)]

    def ticks(label: str) -> list[str]:
        svg = charts.line_chart("t", series, description="d", x_label=label)
        return re.findall(r'class="tick middle"[^>]*>([^<]*)<', svg)

    assert ticks("step") == ["0", "2", "4"]
    assert ticks("nats below the posterior") == ["0", "2"]


def test_charts_survive_constant_and_single_values() -> None:
    for points in ([(1.0, 2.0)], [(1.0, 0.0), (2.0, 0.0)], [(0.0, -1.0), (5.0, -1.0)]):
        svg = charts.line_chart("A & B", [charts.Series(points, "smooth")], description="<flat>", level=0.0)
        assert "nan" not in svg
        assert "A &amp; B" in svg
        assert "&lt;flat&gt;" in svg
    svg = charts.pair_chart("P", [("a", 30.0, None), ("b", None, 31.0)], unit="dB", description="d")
    assert "exact" in svg
    assert math.isfinite(len(svg))
