"""Latents of a model and tokens of a teacher, collected from images alike: what probes compare.

A model describes an image by the latent that ``encode`` returns, a teacher by its patch tokens on their grid; both are
maps ``[features, rows, columns]``, and their mean over positions is the image's representation.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..blocks.shapes import Image, Map
from ..blocks.slots import ImageSource, ProtocolConfig, TeacherOutput
from ..blocks.teachers import Teacher
from .latents import evenly_spaced
from .protocols import ArchetypePSNRConfig, frozen, placed_like
from .results import identify

BATCH, BATCH_PIXELS = 32, 2**20
"""Most images in a batch, and most pixels, unless a single image has more."""


@dataclass(frozen=True)
class Description:
    """A batch as a model or a teacher sees it: float32 on the CPU."""

    maps: Map
    cls: Float[Tensor, "b f"] | None = None

    @property
    def tokens(self) -> TeacherOutput:
        """Positions in row-major order, as grid rules take them."""
        return TeacherOutput(self.maps.flatten(2).mT, (self.maps.shape[2], self.maps.shape[3]))


def describe(of: Any, images: Image) -> Description:
    """Latents of a model, or patch tokens and class token of a :class:`~latelier.blocks.Teacher`, of [-1, 1] images.

    Raises:
        ValueError: a size that does not fit, or latents that are not finite.
    """
    if isinstance(of, Teacher):
        first = next(chain(of.parameters(), of.buffers()), None)
        out = of(((images.float() + 1) / 2).to("cpu" if first is None else first.device))
        maps = rearrange(out.patches.float().cpu(), "b (h w) f -> b f h w", h=out.grid[0])
        return Description(maps, None if out.cls is None else out.cls.float().cpu())
    with frozen(of):
        latents = of.encode(placed_like(of, images)).float().cpu()
    if not latents.isfinite().all():
        raise ValueError("the latents are not finite; the model or its statistics are damaged")
    return Description(latents)


@dataclass
class Representations:
    """Images in the order of their source: one row, map, name and size each."""

    names: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    class_tokens: list[Tensor] = field(default_factory=list)
    maps: list[Map] = field(default_factory=list)
    """One ``[1, f, h, w]`` an image, where they were asked for."""

    @property
    def mean(self) -> Float[Tensor, "n f"]:
        """Means over positions, float64."""
        return torch.cat(self.rows)

    @property
    def cls(self) -> Float[Tensor, "n f"] | None:
        return torch.cat(self.class_tokens) if self.class_tokens else None

    def see(self, names: Sequence[str], batch: Image) -> None:
        """Note which images a batch has."""
        self.names += names
        self.sizes += [(batch.shape[2], batch.shape[3])] * len(names)

    def add(self, described: Description, *, maps: bool) -> None:
        """Take in what was said of them."""
        self.rows.append(described.maps.double().mean(dim=(2, 3)))
        if described.cls is not None:
            self.class_tokens.append(described.cls)
        if maps:
            self.maps += described.maps.split(1)


def representations(
    of: Any,
    images: ImageSource,
    *,
    protocol: ProtocolConfig | None = None,
    stride: int | None = None,
    maps: bool = False,
    most: int | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> Representations:
    """Describe images by a model, or by a teacher that a :class:`~latelier.blocks.TeacherConfig` built.

    Args:
        protocol: prepares the pictures; ``ArchetypePSNRConfig()`` crops their centre at native size.
        stride: sides of images are multiples of it; the model's own, or the patch of the teacher.
        maps: keep the map of each image, besides its mean.
        most: take at most so many images, evenly spaced.

    Raises:
        ValueError: an image does not fit, or is described by what is not finite; it says which.
    """
    if stride is None:
        stride = int(of.spec.patch if isinstance(of, Teacher) else of.stride)
    (found,) = collect([of], images, protocol=protocol, stride=stride, maps=maps, most=most, on_image=on_image)
    return found


def collect(
    subjects: Sequence[Any],
    images: ImageSource,
    *,
    protocol: ProtocolConfig | None = None,
    stride: int,
    maps: bool = False,
    most: int | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> list[Representations]:
    """What each of several models and teachers says of the same images, which are read once."""
    found = [Representations() for _ in subjects]
    for names, batch, described in described_batches(
        subjects, images, protocol=protocol, stride=stride, most=most, on_image=on_image
    ):
        for one, description in zip(found, described, strict=True):
            one.see(names, batch)
            one.add(description, maps=maps)
    return found


def described_batches(
    subjects: Sequence[Any],
    images: ImageSource,
    *,
    protocol: ProtocolConfig | None = None,
    stride: int,
    most: int | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[list[str], Image, list[Description]]]:
    """Names, images in [-1, 1] and descriptions: neighbouring images of one size share a batch."""
    if not len(images):
        raise ValueError("images: there are none to describe")
    chosen = list(evenly_spaced(len(images), len(images) if most is None else most))
    protocol, done = protocol or ArchetypePSNRConfig(), 0
    for names, batch in _batches(images, chosen, protocol, stride):
        try:
            described = [describe(subject, batch) for subject in subjects]
        except ValueError as error:
            raise ValueError(f"{_span(names)}: {error}") from error
        yield names, batch, described
        for _ in names:
            done += 1
            if on_image is not None:
                on_image(done, len(chosen))


def _batches(
    images: ImageSource, chosen: Sequence[int], protocol: ProtocolConfig, stride: int
) -> Iterator[tuple[list[str], Image]]:
    names: list[str] = []
    waiting: list[Tensor] = []
    for index in chosen:
        name = images.name(index)
        picture = images.read(index)
        try:
            image = protocol.prepare(picture, stride=stride)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        full = len(waiting) == BATCH or (len(waiting) + 1) * image[0, 0].numel() > BATCH_PIXELS
        if waiting and (full or image.shape != waiting[0].shape):
            yield names, torch.cat(waiting)
            names, waiting = [], []
        names.append(name)
        waiting.append(image)
    yield names, torch.cat(waiting)


def _span(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def identity(found: Representations) -> dict[str, Any]:
    """Count and id of the images, as a result has them."""
    rows = [
        {"name": name, "height": height, "width": width}
        for name, (height, width) in zip(found.names, found.sizes, strict=True)
    ]
    return identify(rows)
