"""Reconstructions of all variants side by side, embedded in a page and small enough for it."""

import io
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import PIL.Image

from . import page
from .comparison import Study, ordered
from .pictures import data_uri, webp

SIDE = 320
"""Larger pictures are made smaller."""

MOST_BYTES = 2_200_000
QUALITIES = (None, 92, 80, 60, 35)
"""Of WebP, tried in turn until all pictures together have at most ``MOST_BYTES``; None is lossless."""


def pictures_section(study: Study, folder: Path) -> str:
    """A row for each picture: the original, then every variant of which it was kept, of its first such seed."""
    rows, missing = _collected(study, folder)
    if not rows:
        return ""
    left_out = 0
    quality, figures = _rendered(rows)
    while sum(map(len, figures)) > MOST_BYTES and len(figures) > 1:  # even the lowest quality is too much
        figures, left_out = figures[:-1], left_out + 1
    exact = "without loss" if quality is None else f"compressed for this page (WebP, quality {quality})"
    notes = [f"Pictures are {exact}, and at most {SIDE} pixels a side. Variants show their first seed."]
    if left_out:
        notes.append(f"{left_out} of {len(rows)} pictures are left out to keep the page small.")
    if missing:
        notes.append(f"{missing} files of pictures are not there any more.")
    return page.section("Reconstructions", page.paragraph(" ".join(notes), "note"), *figures)


def _collected(study: Study, folder: Path) -> tuple[dict[str, list[tuple[str, PIL.Image.Image]]], int]:
    """For each picture's name what to show with its labels; and how many files are missing."""
    rows: dict[str, list[tuple[str, PIL.Image.Image]]] = {}
    missing = 0
    for variant in study["variants"]:
        cells = [c for c in ordered(study) if c["variant"] == variant["name"] and c["pictures"]]
        for picture in cells[0]["pictures"] if cells else ():
            views = rows.setdefault(picture["name"], [])
            wanted = [("original", picture["original"])] if not views else []
            for label, name in [*wanted, (variant["name"], picture["reconstruction"])]:
                if (folder / name).is_file():
                    views.append((label, _small(folder / name)))
                else:
                    missing += 1
    return {name: views for name, views in rows.items() if views}, missing


def _small(path: Path) -> PIL.Image.Image:
    with PIL.Image.open(io.BytesIO(path.read_bytes())) as picture:
        shown = picture.convert("RGB")
    shown.thumbnail((SIDE, SIDE))
    return shown


def _rendered(rows: Mapping[str, Any]) -> tuple[int | None, list[str]]:
    figures: list[str] = []
    for quality in QUALITIES:
        figures = [_figure(name, views, quality) for name, views in rows.items()]
        if sum(map(len, figures)) <= MOST_BYTES:
            return quality, figures
    return QUALITIES[-1], figures


def _figure(name: str, views: list[tuple[str, PIL.Image.Image]], quality: int | None) -> str:
    cells = []
    for label, picture in views:
        alt = escape(f"{name}, {label}", quote=True)
        size = f'width="{picture.width}" height="{picture.height}"'
        image = f'<img src="{data_uri(webp(picture, quality=quality))}" alt="{alt}" {size}>'
        cells.append(f'<div class="view">{image}<span>{escape(label)}</span></div>')
    return f'<figure class="beside"><figcaption>{escape(name)}</figcaption><div>{"".join(cells)}</div></figure>'
