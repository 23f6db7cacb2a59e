"""What an ablation writes: one page that asks nothing of a network, plots that repeat, and no study is too poor."""

import copy
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from latelier.evaluation import (
    ablation_pictures,
    ablation_plots,
    ablation_series,
    charts,
    compare,
    curve_figure,
    load_study,
    metric_figure,
    page,
    write_ablation_report,
    write_plots,
    write_study,
)

VOID = {"meta", "img", "br", "line", "circle", "path"}
FAILED = ("teacher=<b>&vit, block=dit", 1)


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


def study(folder: Path | None = None) -> dict[str, Any]:
    """Two teachers, two blocks, three seeds: dit is worse by 1 dB, seeds differ by more, one cell failed."""
    rng, pixels = np.random.default_rng(0), np.random.default_rng(1)
    shared = rng.normal(0, 3, size=3)
    variants: list[dict[str, Any]] = []
    cells: list[dict[str, Any]] = []
    for teacher in ("hog", "<b>&vit"):
        for block in ("fcdm", "dit"):
            name = f"teacher={teacher}, block={block}"
            variants.append(
                {"name": name, "labels": {"teacher": teacher, "block": block}, "recipe": {}, "recipe_id": "abc123"}
                | {"steps": 300, "parameters": 123_456, "flops_per_step": 2.5e9, "teacher_flops_per_step": None}
                | {"teacher": f"teacher/{teacher}"}
            )
            for seed in range(3):
                run = f"cells/{len(variants)}/seed-{seed}"
                cell = {"variant": name, "seed": seed, "status": "finished", "run": run, "error": None}
                value = 25 + shared[seed] - (block == "dit") + rng.normal(0, 0.05)
                kind = {"label": "PSNR mean", "unit": "dB", "better": "higher", "protocol": "archetype_psnr 1a2b"}
                cosine = {"label": "Cosine", "unit": "", "better": "higher", "protocol": f"to {teacher}"}
                cell["metrics"] = [kind | {"key": "psnr", "value": value}, cosine | {"key": "cosine/x", "value": 0.5}]
                cell["curve"] = [[step, float(value) / step] for step in range(10, 101, 10)]
                cell["pictures"] = [{"name": "a.png", "original": f"{run}/o.png", "reconstruction": f"{run}/r.png"}]
                if folder:
                    for kept in ("o.png", "r.png"):
                        (folder / run).mkdir(parents=True, exist_ok=True)
                        noise = pixels.integers(0, 256, (24, 32, 3), dtype=np.uint8)
                        PIL.Image.fromarray(noise).save(folder / run / kept)
                if (name, seed) == FAILED:
                    error = {"type": "FloatingPointError", "message": "loss is <nan>", "traceback": f"{run}/error.txt"}
                    cell |= {"status": "failed", "error": error, "metrics": [], "pictures": []}
                    cell["curve"] = [[10, 3.0], [20, None]]
                cells.append(cell)
    return {
        "format": 1,
        "name": "demo/<semdisdiffae>",
        "id": "0123456789ab",
        "command": "latelier ablate demo/semdisdiffae --axis 'teacher=hog,<b>&vit' --out x",
        "axes": {"teacher": ["hog", "<b>&vit"], "block": ["fcdm", "dit"]},
        "seeds": [0, 1, 2],
        "baseline": variants[0]["name"],
        "budget": {"kind": "steps", "amount": 300, "text": "300 steps each"},
        "conditions": ["teacher=hog, block=dit: stages.0.batch: 8, not 16"],
        "variants": variants,
        "cells": cells,
        "versions": {"torch": "2.15"},
        "dtype": "float32",
        "device": "cpu",
        "timing": {f"{variants[0]['name']}/0": 20.0, f"{variants[0]['name']}/1": 31.0},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    paths = write_study(study(folder), folder)
    assert list(paths) == ["ablation.json", "table.md", "table.tex", "plots", "report.html"]
    assert all(path == folder / name and path.exists() for name, path in paths.items())
    return folder


def report(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def written(made: dict[str, Any], folder: Path) -> Page:
    return Page(write_ablation_report(made, compare(made), folder).read_text(encoding="utf-8"))


def roughly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots in a tenth of the time, where they are not what is tested."""
    monkeypatch.setattr(ablation_plots, "PNG_DOTS", 20)
    monkeypatch.setattr(ablation_plots, "KINDS", {"png": {"Software": None}})


# --- the page -----------------------------------------------------------------------------------------------------


def test_the_page_asks_nothing_of_a_network(folder: Path) -> None:
    text = report(folder)
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+", re.sub(r"base64,[\w+/=]+", "", text))
    assert "url(" not in text
    made = Page(text)
    for _, attributes in made.elements:
        assert not {"href", "srcset", "action", "data", "poster"} & attributes.keys()
        assert (attributes.get("src") or "data:").startswith("data:")
    assert {"http-equiv": "Content-Security-Policy", "content": page.POLICY} in made.of("meta")


def test_the_page_says_what_ran_and_what_it_shows(folder: Path) -> None:
    text = Page(report(folder)).text
    for wanted in (
        "latelier, report of an ablation study demo/<semdisdiffae>",
        "By PSNR mean",
        "11/12 cells finished, 1 failed",
        "Axis teacher hog, <b>&vit",
        "Seeds 0, 1, 2 Budget 300 steps each",
        "Not equal between variants, though it should be: teacher=hog, block=dit: stages.0.batch: 8, not 16",
        "Failed cells teacher=<b>&vit, block=dit, seed 1 FloatingPointError: loss is <nan> cells/4/seed-1/error.txt",
        "baseline measured under another protocol",
        "The intervals speak of other seeds, not of other images.",
        "123 456 2.5 G – 300 26",
        "To repeat latelier ablate demo/semdisdiffae --axis 'teacher=hog,<b>&vit' --out x",
    ):
        assert wanted in text
    assert "<b>&vit" not in report(folder)


def test_a_planted_loss_is_worse_in_table_and_forest(folder: Path) -> None:
    made = load_study(folder)
    rows = {row["variant"]: row for row in made["comparison"]["measures"][0]["variants"]}
    assert rows["teacher=hog, block=dit"]["difference"]["high"] < 0
    text = report(folder)
    assert len(re.findall(r'<td class="worse">worse</td>', text)) == 3  # two variants, one main effect
    forest = re.search(r"<title>PSNR mean, difference</title>.*?</svg>", text)
    assert forest
    assert re.findall(r'<circle class="(\w+)"', forest[0]) == ["s1", "quiet", "s1"]


def test_every_chart_has_words_and_every_variant_its_pictures(folder: Path) -> None:
    made = Page(report(folder))
    labels = [chart["aria-label"] or "" for chart in made.of("svg")]
    for title in ("PSNR mean, difference", "PSNR mean against teacher", "Cosine against teacher", "Training loss"):
        assert any(label.startswith(f"{title}. ") for label in labels)
    assert len([image for image in made.of("img") if "src" in image]) == 1 + 4
    assert "a.png, teacher=<b>&vit, block=dit" in [image["alt"] for image in made.of("img")]
    assert "nan" not in " ".join(str(v) for tag in ("line", "circle", "path") for e in made.of(tag) for v in e.values())


def test_a_page_tells_nothing_but_its_seconds_of_when_cells_ran(folder: Path, tmp_path: Path) -> None:
    made = study(tmp_path)
    made["cells"].reverse()
    made["timing"] = {}
    write_ablation_report(made, compare(made), tmp_path)
    later, before = report(tmp_path), report(folder)
    assert later.replace("<td>–</td></tr>", "<td>26</td></tr>", 1) == before


def test_many_pictures_are_compressed_and_then_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = study(tmp_path)
    for cell in made["cells"]:
        cell["pictures"] = [p | {"name": f"{i}.png"} for p in cell["pictures"] for i in range(3)]
    monkeypatch.setattr(ablation_pictures, "MOST_BYTES", 4_000)
    text = written(made, tmp_path).text
    assert "Pictures are compressed for this page (WebP, quality 35)" in text
    assert "2 of 3 pictures are left out to keep the page small." in text


def test_pictures_that_are_gone_are_said_to_be(tmp_path: Path) -> None:
    made = study(tmp_path)
    (tmp_path / "cells/2/seed-0/r.png").unlink()
    assert "1 files of pictures are not there any more." in written(made, tmp_path).text


# --- poor studies -------------------------------------------------------------------------------------------------


def none_finished(made: dict[str, Any]) -> None:
    for cell in made["cells"]:
        cell |= {"status": "pending", "metrics": [], "curve": [], "pictures": [], "error": None}


def all_failed(made: dict[str, Any]) -> None:
    for cell in made["cells"]:
        cell |= {"status": "failed", "metrics": [], "curve": [], "pictures": [], "error": None}


def one_seed(made: dict[str, Any]) -> None:
    made["seeds"] = [0]
    made["cells"] = [cell for cell in made["cells"] if cell["seed"] == 0]


def one_variant(made: dict[str, Any]) -> None:
    made["variants"] = made["variants"][:1]
    made["axes"] = {}
    made["cells"] = made["cells"][:3]


def no_axes(made: dict[str, Any]) -> None:
    made |= {"axes": {}, "command": None, "conditions": []}
    for variant in made["variants"]:
        variant["labels"] = {}


def no_values(made: dict[str, Any]) -> None:
    for cell in made["cells"]:
        for metric in cell["metrics"]:
            metric["value"] = float("nan")


def baseline_failed(made: dict[str, Any]) -> None:
    for cell in made["cells"][:3]:
        cell |= {"status": "failed", "metrics": [], "error": {"type": "E", "message": "", "traceback": None}}


def no_cells(made: dict[str, Any]) -> None:
    made["cells"] = []


def other_metrics(made: dict[str, Any]) -> None:
    for cell in made["cells"]:
        for metric in cell["metrics"]:
            metric["better"] = None


@pytest.mark.parametrize(
    ("impoverish", "words"),
    [
        (none_finished, "No cell has finished: there is nothing to compare yet."),
        (all_failed, "teacher=hog, block=dit, seed 2 unknown error"),
        (one_seed, "one pair of seeds, of which no interval follows"),
        (one_variant, "One variant alone: there is nothing to compare it with."),
        (no_axes, "The study was made from Python, with ablate ."),
        (no_values, "Finished without a value: teacher=hog, block=fcdm, seed 0: PSNR mean;"),
        (baseline_failed, "No metric that has a better direction was measured of the baseline"),
        (no_cells, "0/0 cells finished"),
        (other_metrics, "neither direction is better"),
    ],
)
def test_no_study_is_too_poor_to_be_written(
    impoverish: Callable[[dict[str, Any]], None], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = study(tmp_path)
    impoverish(made)
    roughly(monkeypatch)
    paths = write_study(made, tmp_path)
    assert words in Page(report(tmp_path)).text
    assert load_study(paths["ablation.json"])["comparison"]["format"] == 1
    assert paths["table.md"].read_text().startswith("# demo/&lt;semdisdiffae&gt;: ablation\n")
    assert "\\end{table}" in paths["table.tex"].read_text()


# --- files --------------------------------------------------------------------------------------------------------


def test_a_study_is_read_back_as_it_was(folder: Path) -> None:
    made = load_study(folder)
    comparison = made.pop("comparison")
    assert made == json.loads(json.dumps(study()))
    assert comparison == json.loads(json.dumps(compare(study())))
    assert load_study(folder / "ablation.json")["comparison"] == comparison


def test_values_that_json_does_not_have_become_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = study()
    made["cells"][0]["metrics"][0]["value"] = np.float64("inf")
    made["cells"][0]["curve"][0][1] = float("nan")
    roughly(monkeypatch)
    read = load_study(write_study(made, tmp_path)["ablation.json"])
    assert read["cells"][0]["metrics"][0]["value"] is read["cells"][0]["curve"][0][1] is None


def test_files_that_are_no_study_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ablation.json"
    with pytest.raises(FileNotFoundError) as missing:
        load_study(tmp_path)
    assert str(missing.value).endswith("ablation.json: is not there; `latelier ablate` writes one")
    for text, message in (
        ("{", "is no JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); "),
        ("[]", "is no ablation study, it lacks name, id, axes, seeds, baseline, budget, conditions, variants, cells; "),
        (json.dumps({k: v for k, v in study().items() if k != "axes"}), "is no ablation study, it lacks axes; "),
        (json.dumps(study() | {"format": 2}), "has format 2, and this version reads 1; update latelier"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError) as caught:
            load_study(path)
        assert str(caught.value).startswith(f"{path}: {message}")


# --- plots --------------------------------------------------------------------------------------------------------


def test_plots_are_written_and_the_same_each_time(folder: Path, tmp_path: Path) -> None:
    names = [f"{name}.{kind}" for name in ("curves", "metric-cosine-x", "metric-psnr") for kind in ("pdf", "png")]
    assert sorted(path.name for path in (folder / "plots").iterdir()) == names
    made = study()
    comparison = compare(made)
    first = {path.name: path.read_bytes() for path in write_plots(made, comparison, tmp_path)}
    assert first == {path.name: path.read_bytes() for path in (folder / "plots").iterdir()}
    assert first["curves.png"].startswith(b"\x89PNG")
    assert first["curves.pdf"].startswith(b"%PDF")


def test_a_metric_is_drawn_with_its_errors_and_seeds() -> None:
    made = study()
    comparison = compare(made)
    figure = metric_figure(made, comparison, "psnr")
    (panel,) = figure.axes
    rows = {row["variant"]: row for row in comparison["measures"][0]["variants"]}
    assert [label.get_text() for label in panel.get_xticklabels()] == ["hog", "<b>&vit"]
    lines = {container.get_label(): container for container in panel.containers}
    assert list(lines) == ["block=fcdm", "block=dit"]
    drawn = lines["block=dit"].lines[0].get_ydata()
    assert list(drawn) == [rows[f"teacher={t}, block=dit"]["mean"] for t in ("hog", "<b>&vit")]
    low, high = lines["block=dit"].lines[2][0].get_segments()[1][:, 1]
    assert high - low == pytest.approx(2 * rows["teacher=<b>&vit, block=dit"]["se"])
    seeds = [line.get_ydata() for line in panel.lines if line.get_markersize() == 3]
    assert [len(values) for values in seeds] == [3, 3, 3, 2]


def test_each_protocol_has_a_panel_of_its_own() -> None:
    made = study()
    figure = metric_figure(made, compare(made), "cosine/x")
    assert [panel.get_title() for panel in figure.axes] == ["higher is better; to hog", "higher is better; to <b>&vit"]


def test_curves_are_means_of_finished_seeds() -> None:
    made = study()
    (name, mean, single), *_, (_, last_mean, last_single) = ablation_series.curves(made)
    assert name == made["baseline"]
    assert len(single) == 3
    assert mean[0][1] == pytest.approx(np.mean([curve[0][1] for curve in single]))
    assert last_single[1] == [(10.0, 3.0)]  # failed: as far as it came, and in no mean
    assert last_mean[0][1] == pytest.approx(np.mean([last_single[0][0][1], last_single[2][0][1]]))
    (panel,) = curve_figure(made).axes
    assert len(panel.lines) == 4 * 3 + 4
    assert panel.get_yscale() == "log"


def test_figures_show_themselves_and_leave_pyplot_alone() -> None:
    from matplotlib import _pylab_helpers

    made = study()
    figure = curve_figure(made)
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert not _pylab_helpers.Gcf.figs


def test_odd_labels_are_drawn_as_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = json.loads(json.dumps(study()).replace("<b>&vit", "_$x^$").replace("block=dit", "_block=$dit"))
    no_axes(made)
    made["axes"] = {"_a$": ["_1$", "2$"]}
    for i, variant in enumerate(made["variants"]):
        variant["labels"] = {"_a$": ["_1$", "2$"][i % 2]}
    roughly(monkeypatch)
    assert len(write_plots(made, compare(made), tmp_path)) == 3


def test_what_cannot_be_drawn_is_refused() -> None:
    made = study()
    with pytest.raises(ValueError) as caught:
        metric_figure(made, compare(made), "fid")
    assert str(caught.value) == "metric_figure: the study has no metric 'fid'; it has psnr, cosine/x"
    none_finished(made)
    with pytest.raises(ValueError) as caught:
        metric_figure(made, compare(made), "fid")
    assert str(caught.value) == "metric_figure: the study has no metric 'fid'; it has no metric"
    with pytest.raises(ValueError) as caught:
        curve_figure(made)
    assert str(caught.value) == "curve_figure: no cell of the study has a curve yet"


def test_a_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    ablation_plots.figure_class.cache_clear()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError) as caught:
        curve_figure(study())
    assert str(caught.value) == "ablation plots: need matplotlib; pip install 'latelier[ablations]'"


# --- charts -------------------------------------------------------------------------------------------------------


def test_a_forest_has_its_zero_whatever_the_values() -> None:
    rows = [("a & b", 5.0, 4.0, 6.0, "s0"), ("one pair", 3.0, None, None, "quiet"), ("x" * 80, 4.0, 4.0, 4.0, "s1")]
    svg = charts.forest_chart("F", rows, unit="dB", description="d")
    assert svg.count('class="zero"') == 1
    assert svg.count("<circle") == 3
    assert svg.count('class="interval') == 6
    assert "a &amp; b" in svg
    assert f">…{'x' * 51}<" in svg
    flat = charts.forest_chart("F", [("same", 0.0, 0.0, 0.0, "quiet")], unit="", description="d")
    assert "nan" not in flat


def test_categories_with_long_names_are_numbered() -> None:
    estimates = [charts.Estimate(0, 1.0, 0.0, [1.0]), charts.Estimate(1, 2.0, 0.5, [1.5, 2.5])]
    short = charts.category_chart("C", ["a", "b"], [(estimates, "s0")], description="d", joined=True)
    assert ">a<" in short
    assert short.count("<path") == 1
    assert short.count('class="interval') == 3
    long = charts.category_chart("C", ["a" * 30, "b" * 30], [(estimates, "s0")], description="d", joined=False)
    assert f">2: {'b' * 30}<" in long
    assert "<path" not in long


def test_axes_beyond_the_first_are_lines_and_names_stand_alone() -> None:
    made = study()
    measure = compare(made)["measures"][0]
    plot = ablation_series.against_axis(made, measure)
    assert (plot.axis, [line.label for line in plot.lines]) == ("teacher", ["block=fcdm", "block=dit"])
    assert [[spot.place for spot in line.spots] for line in plot.lines] == [[0, 1], [0, 1]]
    bare = copy.deepcopy(made)
    no_axes(bare)
    plot = ablation_series.against_axis(bare, measure)
    assert (plot.axis, [line.label for line in plot.lines], len(plot.values)) == ("variant", [""], 4)
    assert [spot.place for spot in plot.lines[0].spots] == [0, 1, 2, 3]
