"""One cell of a study: a variant with a seed is trained, measured, and leaves ``cell.json``.

A cell's folder is an ordinary run folder. It can be stopped at any moment: the next call goes on from its newest
checkpoint. A lock keeps two processes out of one cell. What fails is written down as failed, with its error.
"""

import hashlib
import json
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from ..blocks.registry import decode, encode
from ..blocks.slots import ImageSource, Measured, ProbeConfig, ProtocolConfig
from ..evaluation.pictures import to_picture
from ..evaluation.results import Result, save_result
from ..families.files import CheckpointError, read_config, write_atomically
from ..training.cached import computing_teacher
from ..training.engine import train
from ..training.recipe import Recipe
from ..training.records import METRICS, TIMING, Watcher, read_records
from ..training.runs import Run, load_run
from .costs import threads
from .measure import measure_run
from .study import Study

CELL, ERROR, PICTURES = "cell.json", "error.txt", "pictures"
MOST_PICTURES, PICTURE_SIDE = 3, 192


class CellBusyError(RuntimeError):
    """Another process is running the cell."""


def cell_folder(study: Study, variant: str, seed: int, folder: Path) -> Path:
    return folder / "cells" / study.variant(variant).folder / f"seed-{seed}"


def read_cell(study: Study, variant: str, seed: int, folder: Path) -> dict[str, Any]:
    """What a cell has come to: its ``cell.json``, or that it is pending."""
    path = cell_folder(study, variant, seed, folder)
    with suppress(FileNotFoundError, CheckpointError):  # one that is damaged is made again from the run beside it
        return read_config(path / CELL)
    return _cell(variant, seed, path.relative_to(folder), "pending")


def run_cell(
    study: Study,
    variant: str,
    seed: int,
    folder: Path,
    *,
    device: str | None = None,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Train and measure a cell, or go on with it, and return what stands in its ``cell.json``.

    Raises:
        CellBusyError: another process is at it.
    """
    path = cell_folder(study, variant, seed, folder)
    path.mkdir(parents=True, exist_ok=True)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with _locked(path), threads(study.threads):
        recipe = replace(study.variant(variant).recipe, seed=seed)
        made = _cell(variant, seed, path.relative_to(folder), "finished")
        try:
            (path / ERROR).unlink(missing_ok=True)
            train(recipe, path, resume=True, device=device, keep=1, watcher=watcher)
            run = load_run(path, device=device)
            results = list(measure_run(run, probes=study.probes))
            for result in results:
                save_result(result, path / "evaluation")
            made["metrics"] = [*_metrics(recipe, results), *_training_metrics(recipe, path)]
            made["curve"] = [[line["step"], line["loss"]] for line in read_records(path / METRICS) if "loss" in line]
            if seed == study.seeds[0]:
                made["pictures"] = _pictures(run, path, folder)
            made["conditions"] = {key: results[0][key] for key in ("dtype", "device", "versions")} if results else {}
            made["seconds"] = _seconds(path)
        except Exception as error:
            return write_failure(study, variant, seed, folder, error)
        return _write(path, made)


def write_failure(study: Study, variant: str, seed: int, folder: Path, error: BaseException | str) -> dict[str, Any]:
    """Write down that a cell failed, and how."""
    path = cell_folder(study, variant, seed, folder)
    text = error if isinstance(error, str) else "".join(traceback.format_exception(error))
    write_atomically(path / ERROR, text if text.endswith("\n") else text + "\n")
    made = _cell(variant, seed, path.relative_to(folder), "failed")
    kind, what = ("Died", error) if isinstance(error, str) else (type(error).__name__, str(error))
    made["error"] = {"type": kind, "message": what, "traceback": str((path / ERROR).relative_to(folder))}
    return _write(path, made)


def forget_cell(study: Study, variant: str, seed: int, folder: Path) -> None:
    """Take back what was said of a cell, so that it is run again from its newest checkpoint."""
    (cell_folder(study, variant, seed, folder) / CELL).unlink(missing_ok=True)


def _cell(variant: str, seed: int, run: Path, status: str) -> dict[str, Any]:
    cell = {"variant": variant, "seed": seed, "status": status, "run": run.as_posix(), "error": None}
    return cell | {"metrics": [], "curve": [], "pictures": [], "conditions": {}, "seconds": None}


def _write(path: Path, made: dict[str, Any]) -> dict[str, Any]:
    write_atomically(path / CELL, json.dumps(made, indent=1) + "\n")
    return made


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The lock ends with its process, however that ends."""
    import fcntl  # Windows has none, and can still use recipes

    with (path / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CellBusyError(f"{path}: another process is running this cell; wait for it, or stop it") from None
        yield


def _seconds(path: Path) -> float:
    """Of training, over all sittings, whose clocks begin anew."""
    clock = [line["seconds"] for line in read_records(path / TIMING)]
    return sum(now for now, after in zip(clock, [*clock[1:], 0.0], strict=True) if after <= now)


# --- numbers ------------------------------------------------------------------------------------------------------


def _metrics(recipe: Recipe, results: list[Result]) -> Iterator[dict[str, Any]]:
    """Numbers that tables compare, each with a text that says what it was measured by."""
    for result in results:
        name, images = result["protocol"], result["set"]
        protocol = f"{name['name'].partition('/')[2]} {name['id']} on {images['n']} images {images['id']}"
        tail = "" if len(results) == 1 else f", {name['name'].partition('/')[2]}"
        for key, label, unit in (("psnr", "PSNR", "dB"), ("ssim", "SSIM", "")):
            yield _metric(f"{key}{tail}", f"{label} mean{tail}", unit, "higher", protocol, result[key]["mean"])
        alignment = result.get("alignment") or {}
        for key, label in (
            ("head_cosine", "Cosine, alignment head"),
            ("ridge_cosine", "Cosine, ridge readout"),
            ("class_cosine", "Cosine, class token"),
        ):
            if alignment.get(key) is not None:
                rules = [alignment["grid"]] if alignment["resampled"] else []
                rules += [alignment["standardise"]] if "standardise" in alignment else []
                teacher = f"{protocol}, to {alignment['teacher']['kind']} {alignment['teacher_id']}"
                teacher += "".join(f", {rule['kind']} {_digest(rule)}" for rule in rules)
                yield _metric(f"{key}{tail}", f"{label}{tail}", "", "higher", teacher, alignment[key])
        yield from _probe_metrics(result, protocol, tail)


def _probe_metrics(result: Result, protocol: str, tail: str) -> Iterator[dict[str, Any]]:
    for name, answer in (result.get("probes") or {}).items():
        probe = decode(answer["settings"], ProbeConfig)
        for label, (value, unit) in probe.columns(answer).items():
            asked = f"{protocol}, {name} {answer['id']}"
            better = None if "shuffled" in label else probe.better  # a control has no better direction
            yield _metric(f"{label}{tail}", f"{label}{tail}", unit, better, asked, value)


def _training_metrics(recipe: Recipe, path: Path) -> Iterator[dict[str, Any]]:
    """The objective on held-out crops at the end: comparable where objective and teacher are the same."""
    checked = [line["validation_loss"] for line in read_records(path / METRICS) if "validation_loss" in line]
    if checked:
        stage = recipe.stages[-1]
        asked = [
            encode(stage.objective),
            encode(computing_teacher(recipe.teacher)),
            stage.resolution,
            stage.validate_images,
        ]
        protocol = f"objective of stage {stage.name}, {_digest(asked)}"
        yield _metric("validation_loss", "Validation loss", "", "lower", protocol, checked[-1])


def _metric(key: str, label: str, unit: str, better: str | None, protocol: str, value: float | None) -> dict[str, Any]:
    return {"key": key, "label": label, "unit": unit, "better": better, "protocol": protocol, "value": value}


def _digest(described: Any) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]


# --- pictures -----------------------------------------------------------------------------------------------------


def _pictures(run: Run, path: Path, folder: Path) -> list[dict[str, str]]:
    """Small crops of held-out pictures, the same for every variant, and what the model makes of them."""
    found: list[dict[str, str]] = []
    protocol: ProtocolConfig = run.recipe.evaluation[0]

    def visit(measured: Measured) -> None:
        named = {"original": measured.original, "reconstruction": measured.reconstruction}
        files = {what: path / PICTURES / f"{measured.index}-{what}.png" for what in named}
        for what, image in named.items():
            height, width = image.shape[2:]
            top, left = max(0, height - PICTURE_SIDE) // 2, max(0, width - PICTURE_SIDE) // 2
            picture: PIL.Image.Image = to_picture(image)
            picture = picture.crop((left, top, min(width, left + PICTURE_SIDE), min(height, top + PICTURE_SIDE)))
            files[what].parent.mkdir(exist_ok=True)
            picture.save(files[what])
        found.append({"name": measured.name} | {what: str(p.relative_to(folder)) for what, p in files.items()})

    protocol.measure(run.model, _First(run.recipe.data.held_out(), MOST_PICTURES), visit=visit)
    return found


class _First:
    """The first images of a source."""

    def __init__(self, source: ImageSource, most: int) -> None:
        self.source, self.most = source, most

    def __len__(self) -> int:
        return min(len(self.source), self.most)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def size(self, index: int) -> tuple[int, int]:
        return self.source.size(index)

    def read(self, index: int) -> PIL.Image.Image:
        return self.source.read(index)


def summary_of(cell: Mapping[str, Any]) -> str:
    """A cell in a few words, for a line on the terminal."""
    if cell["status"] == "failed":
        return f"failed: {cell['error']['type']}: {cell['error']['message'].splitlines()[0]}"
    shown = [f"{m['label']} {m['value']:.4g}" for m in cell["metrics"][:2] if m["value"] is not None]
    return ", ".join(shown) or cell["status"]
