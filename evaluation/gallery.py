"""The pictures of a report: which images, made how, and as HTML that carries them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import PIL.Image

from ..blocks.slots import ImageSource, Measured, ProtocolConfig
from .pictures import AMPLIFICATION, data_uri, difference, latent_colours, png, to_picture, webp
from .results import Result, number

SHOWN_SIDE = 1024
"""Larger pictures show their centre."""

MOST_BYTES = 7_500_000
QUALITIES = (None, 92, 80, 60)
"""Of WebP, tried in turn until all pictures together have at most ``MOST_BYTES``; None is lossless."""


def chosen(rows: Sequence[dict[str, Any]], most: int, *, by: str = "psnr") -> list[str]:
    """Names of the worst images, and of others evenly spread over the ranks; worst first, those with least ``by``."""
    ranked = [row["name"] for row in sorted(rows, key=lambda r: math.inf if r[by] is None else r[by])]
    if len(ranked) <= most:
        return ranked
    worst = most // 2
    rest = ranked[worst:]
    return ranked[:worst] + [rest[(i + 1) * len(rest) // (most - worst) - 1] for i in range(most - worst)]


@dataclass
class View:
    """One image of the page."""

    row: dict[str, Any]
    original: PIL.Image.Image
    reconstruction: PIL.Image.Image
    difference: PIL.Image.Image
    latent: PIL.Image.Image


class _Chosen:
    """Some images of a source, as a source."""

    def __init__(self, source: ImageSource, indices: Sequence[int]) -> None:
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.source.name(self.indices[index])

    def size(self, index: int) -> tuple[int, int]:
        return self.source.size(self.indices[index])

    def read(self, index: int) -> Any:
        return self.source.read(self.indices[index])


def collect(model: Any, held_out: ImageSource, protocol: ProtocolConfig, result: Result, most: int) -> list[View]:
    """The pictures of the chosen images, made under the protocol of the result."""
    rows = {row["name"]: row for row in result["images"]}
    names = chosen(result["images"], most)
    places = {held_out.name(i): i for i in range(len(held_out))}
    missing = [name for name in names if name not in places]
    if missing:
        raise ValueError(f"images: {missing[0]!r} was measured but is not among these; evaluate the run anew")
    measured: list[Measured] = []
    protocol.measure(model, _Chosen(held_out, [places[name] for name in names]), visit=measured.append)
    colours = latent_colours([m.latent for m in measured])
    views = []
    for m, latent in zip(measured, colours, strict=True):
        error = difference(m.reconstruction, m.original)
        original, reconstruction, amplified = (_cropped(to_picture(x)) for x in (m.original, m.reconstruction, error))
        views.append(View(rows[m.name], original, reconstruction, amplified, latent))
    return views


def _cropped(picture: PIL.Image.Image) -> PIL.Image.Image:
    width, height = (min(side, SHOWN_SIDE) for side in picture.size)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


# --- HTML ---------------------------------------------------------------------------------------------------------


def rendered(views: Sequence[View]) -> tuple[list[str], int | None]:
    """The figures, at the best quality that keeps the page small, and that quality."""
    for quality in QUALITIES:
        figures = [_figure(view, quality) for view in views]
        if sum(map(len, figures)) <= MOST_BYTES:
            return figures, quality
    return figures, QUALITIES[-1]


def _figure(view: View, quality: int | None) -> str:
    row, name = view.row, escape(view.row["name"], quote=True)
    cells = [
        _zoomable("Original", f"Original of {name}", view.original, quality),
        _zoomable("Reconstruction", f"Reconstruction of {name}", view.reconstruction, quality),
        _zoomable(
            f"Difference ×{AMPLIFICATION:g}", f"Amplified difference of {name}", view.difference, min(quality or 85, 85)
        ),
        _latent(view, name),
    ]
    caption = [f"<b>{name}</b>", f"{row['width']} × {row['height']} px", f"PSNR {number(row['psnr'], 'dB')}"]
    if row.get("baseline_psnr") is not None:
        caption.append(f"linear {number(row['baseline_psnr'], 'dB')}")
    caption.append(f"SSIM {number(row['ssim'])}")
    head = "".join(f"<span>{text}</span>" for text in caption)
    views = "".join(f'<div class="view">{cell}</div>' for cell in cells)
    return f'<figure class="photograph"><figcaption>{head}</figcaption><div class="views">{views}</div></figure>'


def _zoomable(label: str, alt: str, picture: PIL.Image.Image, quality: int | None) -> str:
    source = data_uri(webp(picture, quality=quality))
    size = f'width="{picture.width}" height="{picture.height}"'
    image = f'<img src="{source}" alt="{alt}" data-view="{label}" {size}>'
    button = f'<button class="zoom" type="button" aria-label="{alt}, open at 100 %">{image}</button>'
    return f"{button}<span>{label}</span>"


def _latent(view: View, name: str) -> str:
    shape = f"aspect-ratio: {view.original.width} / {view.original.height}"  # a pixel of the latent is a large one
    image = f'<img class="latent" src="{data_uri(png(view.latent))}" alt="Latent of {name} as colours" style="{shape}">'
    return f"{image}<span>Latent, {view.latent.height} × {view.latent.width}</span>"
