"""Packing pairs: latents of a space and features of a teacher, of the same views of pictures.

As with a cache of features the plan is written first, shards are made from their beginning in the same batches whoever
makes them, and each appears whole or not at all: a run that is killed and started again, by other numbers of processes
too, ends with the same bytes, where the device and the number of threads are the same. New pictures are new shards.
"""

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ..blocks.draws import address
from ..blocks.latent_module import LatentSpace
from ..blocks.latent_space import check_scale
from ..blocks.shapes import Image, Latent
from ..blocks.slots import ImageSource, LatentSpaceConfig, TeacherConfig, TeacherOutput
from ..blocks.teachers import Teacher
from ..families.feature_shards import VIEWS
from ..families.images import ImageReadError, Pixels, to_signed
from ..families.pair_shards import (
    CLS,
    FEATURES,
    LATENTS,
    SIDE,
    SIDECARS,
    THUMBNAILS,
    PairLayout,
    PairsError,
    problem_of,
    read_sidecar,
    sidecar,
    write_pair_shard,
)
from ..families.pairs import INDEX, PairFolder, PlannedShard, read_index, write_index
from .cache_plan import lock, told
from .cached import computing_teacher
from .caching import SHARD_BYTES, OnImage, Views
from .crops import NativeCropConfig, central_view
from .world import World, join

CROP = NativeCropConfig()


def pack(
    space: LatentSpaceConfig,
    teacher: TeacherConfig,
    source: ImageSource,
    out: str | Path,
    *,
    resolution: int = 256,
    flips: bool = False,
    crops: int = 0,
    seed: int = 0,
    dtype: Literal["float16", "float32"] = "float16",
    cls: bool = True,
    thumbnails: bool = True,
    shard_pictures: int | None = None,
    batch: int = 32,
    workers: int = 0,
    device: str | torch.device | None = None,
    accept: Collection[str] = (),
    verify: bool = False,
    on_image: OnImage | None = None,
    say: Callable[[str], None] | None = None,
) -> PairFolder:
    """Compute latents and features of square views of pictures, or go on with it, and return the pack.

    What is there already stays: shards that are missing, cut short or (with ``verify``) changed are made anew, and
    pictures that are new get shards of their own. Under torchrun the processes share the work.

    Args:
        resolution: side of the views in pixels.
        flips: the mirror image of the central square as well.
        crops: in place of the central square so many crops of each picture, of its own pixels, at places that follow
            from its name and ``seed``, half of them mirrored.
        dtype: in which latents and features are stored; ``.npy`` files have no bfloat16.
        cls: keep class tokens, where the teacher gives them.
        thumbnails: keep small pictures, for reports.
        shard_pictures: pictures in a shard; None is as many as make 256 MiB.
        batch: views that autoencoder and teacher are given at once.
        workers: processes that read pictures.
        accept: fields of the teacher's spec in which it may differ from that of the pack to go on with.
        verify: compare the checksums of what is there, which reads all of it.
        on_image: hears of the progress of this process.
        say: hears what is made anew and what could not be read.

    Raises:
        PairsError: the folder holds a pack of other settings, a value is not finite, or a file cannot be written.
        ValueError: the folder holds pairs of another space or teacher, or one of the two does not take the resolution.
        ImageReadError: a picture cannot be read and may not be skipped.
    """
    folder, say = Path(out).expanduser(), say or (lambda text: None)
    if folder.exists() and not folder.is_dir():
        raise PairsError(f"{folder}: is a file; --out names the folder for the pairs")
    if crops < 0 or (flips and crops):
        raise ValueError(f"crops: takes a number of crops, some of them mirrored, in place of flips; got {crops}")
    computing = computing_teacher(teacher)
    with join(device) as world:
        makers = Makers(space.build().to(world.device), computing.build().to(world.device).eval(), world.device)
        layout = _layout(
            makers,
            computing,
            resolution=resolution,
            views=tuple(f"crop-{i}" for i in range(crops)) or (VIEWS if flips else VIEWS[:1]),
            seed=seed,
            dtype=dtype,
            cls=cls,
            thumbnails=thumbnails,
            shard_pictures=shard_pictures,
        )
        with lock(folder) if world.leads else nullcontext():
            if world.leads:
                with told(folder, INDEX, shards=SIDECARS):
                    _write_plan(folder, layout, source, accept, verify, say, sized=shard_pictures is not None)
            world.wait()
            _make(folder, makers, source, world, batch=batch, workers=workers, on_image=on_image, say=say)
        world.wait()
    return PairFolder(folder)


class Makers:
    """A space and a teacher, which describe images in [-1, 1]."""

    def __init__(self, space: LatentSpace, teacher: Teacher, device: torch.device) -> None:
        self.space, self.teacher, self.device = space, teacher, device
        self.sampled = space.config.spec.posterior == "sample"

    def encode(self, images: Image, *, seed: int) -> Latent:
        """Normalised latents; ``seed`` is that of the posterior's noise, where it is sampled."""
        return self.space.encode(images, seed=seed) if self.sampled else self.space.encode(images)

    def describe(self, images: Image) -> TeacherOutput:
        return self.teacher(((images + 1) / 2).clamp(0, 1))


# --- the plan -----------------------------------------------------------------------------------------------------


def _layout(
    makers: Makers,
    teacher: TeacherConfig,
    *,
    resolution: int,
    views: tuple[str, ...],
    seed: int,
    dtype: str,
    cls: bool,
    thumbnails: bool,
    shard_pictures: int | None,
) -> PairLayout:
    for name, value in (("resolution", resolution), ("shard_pictures", shard_pictures)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: must be at least 1, got {value}")
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype: .npy files of pairs hold float16 or float32, got {dtype!r}")
    if resolution % makers.space.stride:
        raise ValueError(
            f"resolution: must be divisible by the stride {makers.space.stride} of the latents, got {resolution}"
        )
    grey = torch.zeros(1, 3, resolution, resolution, device=makers.device)
    seen, latents = makers.describe(grey), makers.encode(grey, seed=0)
    has_cls, features = cls and seen.cls is not None, makers.teacher.spec.features
    a_row = latents[0].numel() + seen.patches[0].numel() + has_cls * features
    size = len(views) * (a_row * np.dtype(dtype).itemsize + thumbnails * 3 * SIDE**2)
    return PairLayout(
        space=makers.space.config,
        latent_spec=makers.space.spec,
        teacher=teacher,
        teacher_spec=makers.teacher.spec,
        resolution=resolution,
        views=views,
        seed=seed,
        dtype=dtype,
        latent_shape=(latents.shape[1], latents.shape[2], latents.shape[3]),
        grid=seen.grid,
        features=features,
        has_cls=has_cls,
        has_thumbnails=thumbnails,
        shard_pictures=shard_pictures or max(1, SHARD_BYTES // size),
    )


def _write_plan(
    folder: Path,
    layout: PairLayout,
    source: ImageSource,
    accept: Collection[str],
    verify: bool,
    say: Callable[[str], None],
    *,
    sized: bool,
) -> None:
    """Write an index in which every picture has its place; of shards that are not whole no sidecar is left."""
    for half_written in folder.glob(".*.part"):
        half_written.unlink()
    names = [source.name(index) for index in range(len(source))]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ValueError(f"data: two pictures are called {twice[0]!r}; pairs are told apart by name")
    if (folder / INDEX).is_file():
        stored, planned = read_index(folder)
    else:
        stored, planned = None, list(_orphans(folder, say))
        if planned:
            stored = read_sidecar(folder / sidecar(planned[0].number)).layout
    if stored is not None:
        ours = layout if sized else replace(layout, shard_pictures=stored.shard_pictures)
        ours.check(stored, where=str(folder), accept=accept)
        layout = stored
    available, kept = set(names), []
    for shard in planned:
        problem = problem_of(folder, shard.number, layout=layout, verify=verify)
        made = (folder / sidecar(shard.number)).is_file()
        if problem is not None:
            if made:
                say(f"{sidecar(shard.number)}: {problem}; it is made anew")
                (folder / sidecar(shard.number)).unlink()
            if not available.issuperset(shard.pictures):  # pictures of it are gone
                continue
        kept.append(shard)
    placed = {name for shard in kept for name in shard.pictures}
    new, full = [name for name in names if name not in placed], layout.shard_pictures
    chunks = [tuple(new[first : first + full]) for first in range(0, len(new), full)]
    taken = {shard.number for shard in kept}
    free = [number for number in range(len(kept) + len(chunks)) if number not in taken]
    kept += [PlannedShard(number, chunk) for number, chunk in zip(free, chunks, strict=False)]
    write_index(folder, layout, sorted(kept, key=lambda shard: shard.number))


def _orphans(folder: Path, say: Callable[[str], None]) -> Iterator[PlannedShard]:
    """Shards whose index is lost."""
    for path in sorted(folder.glob(SIDECARS)):
        number = int(path.stem.rpartition("-")[2])
        problem = problem_of(folder, number)
        if problem is None:
            shard = read_sidecar(path)
            yield PlannedShard(number, (*shard.pictures, *shard.unreadable))
        else:
            say(f"{path.name}: {problem}; it is made anew")
            path.unlink()


# --- the work -----------------------------------------------------------------------------------------------------


def _cut(side: int, seed: int, image: PIL.Image.Image, name: str, view: str) -> PIL.Image.Image:
    """A view of a picture, the same wherever and whenever it is cut."""
    if view in VIEWS:
        return central_view(image, (side, side), view)
    return CROP.cut(image, (side, side), random.Random(address(seed, name, view)))


def _make(
    folder: Path,
    makers: Makers,
    source: ImageSource,
    world: World,
    *,
    batch: int,
    workers: int,
    on_image: OnImage | None,
    say: Callable[[str], None],
) -> None:
    """Make this process's share of the shards that have no sidecar."""
    layout, planned = read_index(folder)
    waiting = [shard for shard in planned if not (folder / sidecar(shard.number)).is_file()]
    mine = waiting[world.rank :: world.size]
    indices = {source.name(index): index for index in range(len(source))} if waiting else {}
    size = max(1, batch // len(layout.views))
    chunks = [[shard.pictures[first : first + size] for first in range(0, len(shard.pictures), size)] for shard in mine]
    batches = [[indices[name] for name in names] for shard in chunks for names in shard]
    side = layout.resolution
    cut = partial(_cut, side, layout.seed)
    loaded = Views(source, batches, views=layout.views, side=side, cut=cut).loaded(workers=workers, device=world.device)
    done, total, looked = 0, sum(len(shard.pictures) for shard in mine), False
    for turn in range(-(-len(waiting) // world.size)):
        if turn < len(mine):
            number, parts, readable = mine[turn].number, [], []
            unreadable: dict[str, str] = {}
            for part, names in enumerate(chunks[turn]):
                made = next(loaded)
                if isinstance(made, ImageReadError):
                    raise made
                pixels, reasons = made
                unreadable |= reasons
                there = [name for name in names if name not in reasons]
                each = range(len(layout.views))
                rows = [len(each) * i + j for i, name in enumerate(names) if name not in reasons for j in each]
                if rows:
                    seed = address(layout.seed, "posterior", number, part)
                    parts += _rows_of(makers, layout, there, pixels[rows], batch=batch, seed=seed, look=not looked)
                    looked = True
                readable += there
                done += len(names)
                if on_image is not None:
                    on_image(names[-1], done, total)
            for name, reason in unreadable.items():
                say(f"skipped {name}: {reason}")
            empty = {name: np.zeros(shape, kind) for name, (kind, shape) in layout.shapes(0).items()}
            arrays = {name: np.concatenate([none, *(part[name] for part in parts)]) for name, none in empty.items()}
            with told(folder, sidecar(number), shards=SIDECARS):
                write_pair_shard(folder, number, layout, readable, arrays, unreadable)
        world.wait()  # after each, because processes that wait too long for one another are given up


def _rows_of(
    makers: Makers, layout: PairLayout, names: Sequence[str], pixels: Pixels, *, batch: int, seed: int, look: bool
) -> list[dict[str, NDArray[Any]]]:
    """The rows of some pictures, ``batch`` at a time; ``look`` looks at the scale of their latents."""
    found = []
    row_names = layout.row_names(names)
    for first in range(0, len(pixels), batch):
        images = to_signed(pixels[first : first + batch].to(makers.device, non_blocking=True))
        latents, features = makers.encode(images, seed=seed + first), makers.describe(images)
        if look and not first:
            check_scale(latents, layout.latent_spec, where="pack")
        arrays = {LATENTS: latents, FEATURES: features.patches}
        if layout.has_cls:
            assert features.cls is not None
            arrays[CLS] = features.cls
        stored = {name: _stored(name, x, layout, row_names[first:]) for name, x in arrays.items()}
        if layout.has_thumbnails:
            small = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)
            stored[THUMBNAILS] = ((small.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
        found.append(stored)
    return found


def _stored(name: str, values: torch.Tensor, layout: PairLayout, rows: Sequence[str]) -> NDArray[Any]:
    """Values in the type of the pack; raises :class:`PairsError` where that cannot hold them."""
    stored = values.to(getattr(torch, layout.dtype))
    if not stored.isfinite().all():
        row = int((~stored.isfinite()).flatten(1).any(1).nonzero()[0])
        largest = values[row].abs().max().item()
        advice = "take --dtype float32" if largest < torch.inf else "look whether the weights are damaged"
        raise PairsError(
            f"{rows[row]}: its {name} reach {largest:.4g}, which is not finite in {layout.dtype}; {advice}"
        )
    return stored.cpu().numpy()
