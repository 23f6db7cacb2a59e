"""Results as files and tables: a number travels with all that it depends on.

A result is one JSON object. Beside its numbers stand the protocol (name, id, settings), the set of images (count, id),
the model, the recipe, dtype, device and library versions. Tables join results of one protocol on one set of images.
"""

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from ..blocks.registry import Part, PartError, decode, encode, short_name
from ..blocks.slots import ProbeConfig, ProtocolConfig
from ..families.files import write_atomically

Result = dict[str, Any]

LIBRARIES = ("latelier", "torch", "torchmetrics", "numpy", "pillow")


def origin(model: Any, protocol: ProtocolConfig, *, recipe: Part | None) -> Result:
    """What every number of a result depends on, apart from the images."""
    first = next(model.parameters())
    start = versions(protocol, dtype=str(first.dtype).removeprefix("torch."), device=first.device)
    model_known = {
        "kind": model.config.kind,
        "id": model.config.id,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    recipe_known = None if recipe is None else {"name": getattr(recipe, "name", recipe.kind), "id": recipe.id}
    return {"protocol": start.pop("protocol"), "model": model_known, "recipe": recipe_known} | start


def versions(protocol: ProtocolConfig, *, dtype: str, device: torch.device) -> Result:
    """What every number depends on, apart from the model and the images."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "protocol": {"name": protocol.kind, "id": protocol.id, "settings": encode(protocol)},
        "dtype": dtype,
        "device": device.type if name is None else f"{device.type} ({name})",
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES},
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def identify(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Count and id of a set of images: the id follows from their names and measured sizes."""
    text = json.dumps(sorted([row["name"], row["height"], row["width"]] for row in rows))
    return {"n": len(rows), "id": hashlib.sha256(text.encode()).hexdigest()[:12]}


def save_result(result: Result, folder: Path) -> Path:
    """Write the result whole or not at all under its :func:`file_name`, and return the path."""
    name = file_name(decode(result["protocol"]["settings"], ProtocolConfig))
    return write_atomically(folder / name, json.dumps(plain(result), indent=2, allow_nan=False) + "\n")


def file_name(protocol: ProtocolConfig) -> str:
    """``<protocol>.json``, with the id before the dot where the protocol's settings are not its defaults."""
    return f"{short_name(protocol)}.json"


def load_result(path: Path) -> Result:
    """Read what :func:`save_result` wrote."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(result["protocol"]["id"], str)
        assert isinstance(result["set"]["id"], str)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AssertionError):
        raise ValueError(f"{path}: is no result of an evaluation; `latelier eval RUN` writes one") from None
    return result


def notes(results: Sequence[Result], *, mixed: bool = False) -> Iterator[str]:
    """What a reader must know of numbers: fewer images than asked for, what is left out, what they rest on."""
    for result in results:
        title = (result["recipe"] or result["model"]).get("name") or result["model"]["kind"]
        n, asked = result["set"]["n"], result["set"].get("asked", result.get("asked"))
        if asked is not None and asked != n:
            yield f"{title}: {n} of the {asked} images that the protocol asks for."
        if infinite := (result.get("psnr") or {}).get("infinite"):
            yield f"{title}: {infinite} perfect reconstruction{'s' * (infinite > 1)} left out of the PSNR statistics."
        if mixed and result.get("provenance"):
            yield f"{title}: {_provenance(result)}."


def _provenance(result: Result) -> str:
    """Hashes and names of files that numbers rest on beside the protocol's settings."""
    known = result.get("provenance") or {}
    texts = (f"{what} {' '.join(str(x)[:24] for x in facts.values())}" for what, facts in sorted(known.items()))
    return ", ".join(texts) or "none"


def _check_provenance(results: Sequence[Result], *, mixed: bool) -> None:
    found = list(dict.fromkeys(_provenance(result) for result in results))
    if len(found) > 1 and not mixed and len({result["protocol"]["id"] for result in results}) == 1:
        raise ValueError(
            f"table: results by {len(found)} references or files of weights ({'; '.join(found)}) cannot be compared; "
            "measure them alike, or ask for --mixed"
        )


def plain(value: Any) -> Any:
    """The value with numpy and torch scalars as Python's."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic | torch.Tensor) else value


# --- tables -------------------------------------------------------------------------------------------------------


def rows_of(result: Result) -> list[tuple[str, str, float | None, float | None]]:
    """Rows (name, unit, value, value of the linear baseline) of the measures that a reader looks at first."""
    baseline = result.get("baseline") or {}
    rows = [
        (f"{measure.upper()} {label}", unit, result[measure][key], (baseline.get(measure) or {}).get(key))
        for measure, unit, keys in (
            ("psnr", "dB", ("mean", "std", "median", "p5", "p95", "pooled")),
            ("ssim", "", ("mean", "p5")),
        )
        for key, label in ((key, key.upper() if key in ("p5", "p95") else key) for key in keys)
        if measure in result
    ]
    rows += [(f"{column} mean", "", found["mean"], None) for column, found in (result.get("metrics") or {}).items()]
    rows += [(column, "", value, None) for column, value in (result.get("population") or {}).items()]
    alignment = result.get("alignment") or {}
    ways = {"resampled": "resampled tokens", "standardise": "standardised tokens"}
    how = ", ".join(text for key, text in ways.items() if alignment.get(key))
    target = f" ({how})" if how else ""
    names = {
        "head_cosine": f"Cosine, alignment head{target}",
        "ridge_cosine": f"Cosine, ridge readout{target}",
        "class_cosine": "Cosine, class token",
    }
    rows += [(label, "", alignment[key], None) for key, label in names.items() if alignment.get(key) is not None]
    return rows


def probe_rows(result: Result) -> Iterator[tuple[str, str, float | None, None]]:
    """Rows as of :func:`rows_of`, of what probes found: each kind says which of its numbers."""
    for name, answer in (result.get("probes") or {}).items():
        try:
            columns = decode(answer["settings"], ProbeConfig).columns(answer)
        except PartError:  # of a package that is not installed here: its numbers as they are
            columns = {f"{name}, {key}": (float(x), "") for key, x in answer.items() if type(x) in (int, float)}
        yield from ((label, unit, value, None) for label, (value, unit) in columns.items())


def number(value: float | None, unit: str = "", *, sign: bool = False) -> str:
    """Decibels with two digits, shares with four; None is a dash."""
    if value is None:
        return "–"
    text = f"{value:{'+' if sign else ''}.{2 if unit == 'dB' else 4}f}".replace("-", "−")
    return f"{text} {unit}".rstrip()


def results_table(results: Sequence[Result], *, mixed: bool = False) -> Table:
    """A table with a column for each result; one result gets its linear baseline beside it.

    Raises:
        ValueError: results of several protocols or sets of images, unless ``mixed``, which names them in the head.
    """
    if not results:
        raise ValueError("table: there are no results to show")
    _check_provenance(results, mixed=mixed)
    for key, noun in (("protocol", "protocols"), ("set", "sets of images")):
        found = list(dict.fromkeys(_named(result, key) for result in results))
        if len(found) > 1 and not mixed:
            raise ValueError(
                f"table: results of {len(found)} {noun} ({', '.join(found)}) cannot be compared; "
                "measure them alike, or ask for --mixed"
            )
    table = Table(title=None if mixed else f"{_named(results[0], 'protocol')} on {_named(results[0], 'set')}")
    table.add_column("")
    single = len(results) == 1 and results[0].get("baseline")
    for result in results:
        title = (result["recipe"] or result["model"]).get("name") or result["model"]["kind"]
        head = [title, _named(result, "protocol"), _named(result, "set")] if mixed else [title]
        table.add_column("\n".join(head), justify="right")
    if single:
        table.add_column("linear", justify="right")
        table.add_column("difference", justify="right")
    columns = [
        {name: (unit, value, base) for name, unit, value, base in [*rows_of(result), *probe_rows(result)]}
        for result in results
    ]
    for name in dict.fromkeys(name for column in columns for name in column):
        cells = [number(column[name][1], column[name][0]) if name in column else "–" for column in columns]
        if single:
            unit, value, base = columns[0][name]
            difference = None if value is None or base is None else value - base
            cells += [number(base, unit), number(difference, unit, sign=True)]
        table.add_row(name, *cells)
    table.caption = "\n".join(notes(results, mixed=mixed)) or None
    return table


def _named(result: Result, key: str) -> str:
    if key == "protocol":
        return f"{result[key]['name'].partition('/')[2]} {result[key]['id']}"
    return f"{result[key]['n']} images {result[key]['id']}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
