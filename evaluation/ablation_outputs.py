"""The files of an ablation study: its data, tables, plots and page, written whole or not at all."""

import json
from pathlib import Path
from typing import Any

from ..families.files import write_atomically
from .ablation_plots import figure_class, write_plots
from .ablation_report import write_ablation_report
from .ablation_tables import latex_table, markdown_table
from .comparison import Study, compare, student
from .results import plain

ABLATION = "ablation.json"
PARTS = ("name", "id", "axes", "seeds", "baseline", "budget", "conditions", "variants", "cells")


def check_libraries() -> None:
    """Raise ``ImportError`` where :func:`write_study` would, for callers who would train for hours first."""
    student()
    figure_class()


def write_study(study: Study, folder: Path) -> dict[str, Path]:
    """Compare the study's cells and write ``ablation.json``, ``table.md``, ``table.tex``, ``plots/``, ``report.html``.

    ``folder`` is the study's own: pictures are looked for there. Returns the paths by these names. A study that is
    not finished may be written, and written again later.

    Raises:
        ValueError: the study contradicts itself; see :func:`compare`.
        ImportError: scipy or matplotlib is not installed.
    """
    study = strict(plain(study))
    comparison = compare(study)
    data = json.dumps({**study, "comparison": comparison}, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    paths = {
        ABLATION: write_atomically(folder / ABLATION, data),
        "table.md": write_atomically(folder / "table.md", markdown_table(study, comparison)),
        "table.tex": write_atomically(folder / "table.tex", latex_table(study, comparison)),
    }
    write_plots(study, comparison, folder / "plots")
    return paths | {"plots": folder / "plots", "report.html": write_ablation_report(study, comparison, folder)}


def load_study(path: str | Path) -> dict[str, Any]:
    """Read the ``ablation.json`` of :func:`write_study`, or that of a folder; its comparison is under 'comparison'."""
    path = Path(path)
    path = path / ABLATION if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: is not there; `latelier ablate` writes one")
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is no JSON ({error}); `latelier ablate` writes it anew") from None
    missing = [name for name in PARTS if name not in study] if isinstance(study, dict) else list(PARTS)
    if missing:
        raise ValueError(f"{path}: is no ablation study, it lacks {', '.join(missing)}; `latelier ablate` writes one")
    if study.get("format") != 1:
        raise ValueError(f"{path}: has format {study.get('format')!r}, and this version reads 1; update latelier")
    return study


def strict(value: Any) -> Any:
    """The value with None for every number that JSON does not have."""
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value
