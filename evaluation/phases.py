"""What each phase of a staged training did to a model: decibels by resolution, sharpness, and a distance of features.

    sharpness         mean |grad x'|² / mean |grad x|², 1 where reconstructions have the energy of edges of pictures
    feature distance  Fréchet distance of the HOG tokens (8 pixels) of all pictures and of all reconstructions

Both are over all crops of the lower resolution. HOG has no weights and no part in training.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..blocks.frechet import frechet_distance, moments
from ..blocks.hog import HOGConfig
from ..blocks.shapes import Image
from ..blocks.slots import ImageSource
from ..families.files import write_atomically
from ..families.images import to_pixels, to_signed
from .metrics import psnr
from .page import document, paragraph, section, table
from .pictures import data_uri, png, to_picture

FEATURES = HOGConfig(patch=8)
BATCH_PIXELS = 64 * 64 * 64


@dataclass(frozen=True)
class Phase:
    """A model after a phase.

    Attributes:
        name: of the phase.
        trained: what learned, in a few words.
        psnr: mean decibels of the crops of each side in pixels.
        sharpness, feature_distance: see the module's text.
    """

    name: str
    trained: str
    psnr: dict[int, float]
    sharpness: float
    feature_distance: float


def crops(source: ImageSource, side: int) -> Iterator[Image]:
    """All crops ``[1, 3, side, side]`` of the pictures' own pixels that lie side by side from the upper left corner."""
    for i in range(len(source)):
        picture = to_signed(to_pixels([source.read(i)]))
        for top in range(0, picture.shape[2] - side + 1, side):
            for left in range(0, picture.shape[3] - side + 1, side):
                yield picture[:, :, top : top + side, left : left + side]


@torch.no_grad()
def measure_phase(
    name: str, model: Any, held_out: ImageSource, *, sides: Sequence[int], trained: str = "everything"
) -> Phase:
    """Measure a model on held-out pictures at several resolutions, of which the first is the lower one."""
    device = next(model.parameters()).device
    decibels, low = {}, (torch.zeros(0), torch.zeros(0))
    for side in sides:
        originals = torch.cat(list(crops(held_out, side)))
        batch = max(1, BATCH_PIXELS // side**2)
        ours = torch.cat([model.reconstruct(part.to(device)).cpu() for part in originals.split(batch)])
        ours = ours.clamp(-1, 1)
        decibels[side] = psnr(ours, originals, data_range=2.0).mean().item()
        if side == sides[0]:
            low = ours, originals
    return Phase(name, trained, decibels, sharpness(*low), feature_distance(*low))


def sharpness(ours: Image, originals: Image) -> float:
    """Energy of the gradients of reconstructions as a share of that of pictures."""
    return (_energy(ours) / _energy(originals)).item()


def _energy(images: Image) -> Tensor:
    across, down = images.double().diff(dim=3), images.double().diff(dim=2)
    return across.square().mean() + down.square().mean()


def feature_distance(ours: Image, originals: Image) -> float:
    """Fréchet distance of HOG tokens."""
    teacher = FEATURES.build()
    found = [moments(teacher((images.float() + 1) / 2).patches.flatten(0, 1)) for images in (ours, originals)]
    return frechet_distance(found[0].mean, found[0].cov, found[1].mean, found[1].cov).item()


@torch.no_grad()
def views(models: Mapping[str, Any], held_out: ImageSource, *, side: int) -> list[tuple[str, list[tuple[str, Image]]]]:
    """The central crop of each held-out picture, and what each model makes of it."""
    found = []
    devices = {name: next(model.parameters()).device for name, model in models.items()}
    for i in range(len(held_out)):
        picture = to_signed(to_pixels([held_out.read(i)]))
        top, left = (picture.shape[2] - side) // 2, (picture.shape[3] - side) // 2
        original = picture[:, :, max(top, 0) :, max(left, 0) :][:, :, :side, :side]
        if original.shape[2:] != (side, side):
            continue
        made = [(name, model.reconstruct(original.to(devices[name])).cpu()) for name, model in models.items()]
        found.append((held_out.name(i), [("original", original), *made]))
    return found


def write_phases(
    folder: Path, title: str, phases: Sequence[Phase], pictures: Sequence[tuple[str, list[tuple[str, Image]]]]
) -> Path:
    """Write ``phases.json`` and ``phases.html``, one page that opens offline, and return the latter."""
    write_atomically(folder / "phases.json", json.dumps([asdict(phase) for phase in phases], indent=2) + "\n")
    sides = list(phases[0].psnr)
    head = ["phase", "what learned", *(f"PSNR, {side} px" for side in sides), "sharpness", "feature distance"]
    rows = [[p.name, p.trained, *_decibels(p), f"{p.sharpness:.3f}", f"{p.feature_distance:.4f}"] for p in phases]
    strips = "".join(_strip(name, shown) for name, shown in pictures)
    body = (
        f"<h1>{escape(title)}</h1>\n"
        + section(
            "After each phase",
            table(head, rows),
            paragraph(
                "Held-out pictures, all crops of their own pixels. PSNR: higher is better. Sharpness: energy of the "
                "gradients of reconstructions as a share of that of pictures, 1 is right. Feature distance: Fréchet "
                f"distance of HOG tokens, lower is better; both at {sides[0]} px.",
                "note",
            ),
        )
        + section("Pictures", f'<div class="phases">{strips}</div>')
    )
    style = ".phases figure div { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; gap: 0.5rem; } "
    style += ".phases figure { margin: 0 0 1.5rem; } .phases img { width: 100%; height: auto; display: block; } "
    style += ".phases span { font-size: 0.85rem; color: var(--quiet); }"
    page = folder / "phases.html"
    write_atomically(page, document(title, body, style=style))
    return page


def _decibels(phase: Phase) -> list[str]:
    return [f"{value:.2f} dB" for value in phase.psnr.values()]


def _strip(name: str, shown: Sequence[tuple[str, Image]]) -> str:
    cells = "".join(
        f'<div><img src="{data_uri(png(to_picture(image)))}" alt="{escape(f"{name}, {label}")}">'
        f"<span>{escape(label)}</span></div>"
        for label, image in shown
    )
    return f"<figure><figcaption>{escape(name)}</figcaption><div>{cells}</div></figure>"
