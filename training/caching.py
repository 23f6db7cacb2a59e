"""Writing a cache of teacher features: planned once, made shard by shard, by one process or many.

The plan, which pictures are in which shard, is written first. A shard is computed from its beginning, in the same
batches, whoever makes it and however often it is tried; it appears whole or not at all. So a run that is killed and
started again, by other numbers of processes too, ends with the same bytes, where the device and the number of threads
are the same. Pictures that come later are new shards; the others stay.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..blocks.slots import DataConfig, ImageSource, TeacherConfig, TeacherOutput
from ..blocks.teachers import Teacher
from ..families.feature_cache import INDEX, FeatureCache, read_index
from ..families.feature_shards import (
    DTYPES,
    THUMBNAILS,
    TOKENS,
    VIEWS,
    FeatureCacheError,
    FeatureLayout,
    thumbnails,
    write_shard,
)
from ..families.images import ImageReadError, Pixels, to_pixels, to_signed
from .cache_plan import lock, told, write_plan, write_result
from .cached import computing_teacher
from .crops import central_view
from .loader import leave_interrupts_to_the_main_process, pass_on
from .world import World, join

SHARD_BYTES = 2**28
"""Of features, in a shard of a size that nobody chose."""

OnImage = Callable[[str, int, int], None]
"""Called with the name of the last picture done, how many are done, and how many this process has to do."""


def cache_features(
    teacher: TeacherConfig,
    source: ImageSource,
    out: str | Path,
    *,
    resolution: int = 256,
    flips: bool = True,
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    tokens: Sequence[str] | None = None,
    shard_images: int | None = None,
    batch: int = 32,
    workers: int = 0,
    device: str | torch.device | None = None,
    accept: Collection[str] = (),
    verify: bool = False,
    on_image: OnImage | None = None,
    say: Callable[[str], None] | None = None,
) -> FeatureCache:
    """Compute the features of the central squares of pictures, or go on with it, and return the cache.

    What is there already stays: shards that are missing, cut short or (with ``verify``) changed are made anew, and
    pictures that are new get shards of their own. Under torchrun the processes share the work.

    Args:
        resolution: side of the squares in pixels.
        flips: their mirror images as well.
        dtype: in which features are stored.
        tokens: which to store, of "patches", "cls" and "registers"; None is all that the teacher has.
        shard_images: pictures in a shard; None is as many as make 256 MiB.
        batch: images that the teacher is given at once.
        workers: processes that read pictures.
        accept: fields of the teacher's spec in which it may differ from that of the cache to go on with.
        verify: compare the checksums of what is there, which reads all of it.
        on_image: hears of the progress of this process.
        say: hears what is made anew and what could not be read.

    Raises:
        FeatureCacheError: the folder holds a cache of other settings, another process writes to it, a value is not
            finite, or a file cannot be written.
        ValueError: the folder holds a cache of another teacher, or the teacher does not take the resolution.
        ImageReadError: a picture cannot be read and may not be skipped.
    """
    folder, say = Path(out).expanduser(), say or (lambda text: None)
    computing = computing_teacher(teacher)
    if folder.exists() and not folder.is_dir():
        raise FeatureCacheError(f"{folder}: is a file; --out names the folder for the features")
    with join(device) as world:
        built = computing.build().to(world.device).eval()
        layout = _layout(
            computing,
            built,
            world,
            resolution=resolution,
            views=VIEWS if flips else VIEWS[:1],
            dtype=dtype,
            tokens=tokens,
            shard_images=shard_images,
        )
        with lock(folder) if world.leads else nullcontext():
            if world.leads:
                with told(folder, INDEX):
                    write_plan(folder, layout, source, accept, verify, say, sized=shard_images is not None)
            world.wait()
            _make(folder, built, source, world, batch=batch, workers=workers, on_image=on_image, say=say)
            if world.leads:
                with told(folder, INDEX):
                    write_result(folder)
        world.wait()
    return FeatureCache(folder)


def _layout(
    teacher: TeacherConfig,
    built: Teacher,
    world: World,
    *,
    resolution: int,
    views: tuple[str, ...],
    dtype: str,
    tokens: Sequence[str] | None,
    shard_images: int | None,
) -> FeatureLayout:
    for name, value in (("resolution", resolution), ("shard_images", shard_images)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: must be at least 1, got {value}")
    seen = built(torch.zeros(1, 3, resolution, resolution, device=world.device))
    given = tuple(name for name in TOKENS if getattr(seen, name) is not None)
    chosen = given if tokens is None else tuple(name for name in TOKENS if name in tokens)
    for name in tokens or ():
        if name not in TOKENS:
            raise ValueError(f"tokens: takes {', '.join(TOKENS)}, got {name!r}")
        if name not in given:
            raise ValueError(f"tokens: {teacher.kind!r} gives no {name!r}; it gives {', '.join(given)}")
    if "patches" not in chosen:
        raise ValueError(f"tokens: must hold 'patches', got {', '.join(chosen) or 'none'}")
    count = 0 if seen.registers is None or "registers" not in chosen else seen.registers.shape[1]
    per_picture = len(views) * DTYPES[dtype].itemsize * built.spec.features
    per_picture *= seen.patches.shape[1] + ("cls" in chosen) + count
    return FeatureLayout(
        teacher=teacher,
        spec=built.spec,
        resolution=resolution,
        views=views,
        dtype=dtype,
        tokens=chosen,
        grid=seen.grid,
        registers=count,
        shard_images=shard_images or max(1, SHARD_BYTES // per_picture),
    )


class _Joined:
    """Pictures of several sources; of those with the same name the first."""

    def __init__(self, *sources: ImageSource) -> None:
        found: dict[str, tuple[ImageSource, int]] = {}
        for source in sources:
            for index in range(len(source)):
                found.setdefault(source.name(index), (source, index))
        self.places = list(found.values())

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        source, there = self.places[index]
        return source.name(there)

    def size(self, index: int) -> tuple[int, int]:
        source, there = self.places[index]
        return source.size(there)

    def read(self, index: int) -> PIL.Image.Image:
        source, there = self.places[index]
        return source.read(there)


def every_picture(data: DataConfig) -> ImageSource:
    """What is trained on and what is held out; a held-out picture that is called as one for training is left out."""
    return _Joined(data.training(), data.held_out())


# --- the work -----------------------------------------------------------------------------------------------------


class Views(Dataset):
    """Batches of the views of pictures, which are named by their indices in the source; ``cut`` makes a view."""

    def __init__(
        self,
        source: ImageSource,
        batches: Sequence[Sequence[int]],
        *,
        views: Sequence[str],
        side: int,
        cut: Callable[[PIL.Image.Image, str, str], PIL.Image.Image],
    ) -> None:
        self.source, self.batches, self.views, self.side, self.cut = source, batches, views, side, cut

    def __getitem__(self, number: int) -> tuple[Pixels, dict[str, str]] | ImageReadError:
        """Views of one picture after those of another, and the reasons by the names of those that cannot be read.

        In their place there is black. An error is returned: raised in a worker, it would be wrapped in a traceback.
        """
        crops, unreadable = [], {}
        for index in self.batches[number]:
            name = self.source.name(index)
            try:
                image = self.source.read(index)
            except ImageReadError as error:
                if not error.skippable:
                    return error
                unreadable[name] = error.reason
                image = PIL.Image.new("RGB", (self.side, self.side))
            crops += [self.cut(image, name, view) for view in self.views]
        return to_pixels(crops), unreadable

    def loaded(self, *, workers: int, device: torch.device) -> Iterator[Any]:
        """What :meth:`__getitem__` gives, in order."""
        return iter(
            DataLoader(
                self,
                batch_size=None,
                sampler=range(len(self.batches)),
                num_workers=workers,
                collate_fn=pass_on,
                worker_init_fn=leave_interrupts_to_the_main_process,
                generator=torch.Generator(),
                pin_memory=device.type == "cuda",
            )
        )


def _cut(side: int, image: PIL.Image.Image, name: str, view: str) -> PIL.Image.Image:
    return central_view(image, (side, side), view)


def _make(
    folder: Path,
    teacher: Teacher,
    source: ImageSource,
    world: World,
    *,
    batch: int,
    workers: int,
    on_image: OnImage | None,
    say: Callable[[str], None],
) -> None:
    """Make this process's share of the shards that the index lacks."""
    layout, entries = read_index(folder)
    waiting = [entry for entry in entries if entry.sha256 is None]
    mine = waiting[world.rank :: world.size]
    indices = {source.name(index): index for index in range(len(source))} if waiting else {}
    size = max(1, batch // len(layout.views))
    batches = [
        [indices[name] for name in entry.names[first : first + size]]
        for entry in mine
        for first in range(0, len(entry.names), size)
    ]
    side = layout.resolution
    views = Views(source, batches, views=layout.views, side=side, cut=partial(_cut, side))
    loaded = views.loaded(workers=workers, device=world.device)
    done, total = 0, sum(len(entry.names) for entry in mine)
    for turn in range(-(-len(waiting) // world.size)):
        if turn < len(mine):
            entry = mine[turn]
            tensors = {
                name: torch.empty(shape, dtype=dtype)
                for name, (dtype, shape) in layout.shapes(len(entry.names)).items()
            }
            unreadable: dict[str, str] = {}
            for first in range(0, len(entry.names), size):
                made = next(loaded)
                if isinstance(made, ImageReadError):
                    raise made
                pixels, reasons = made
                unreadable |= reasons
                names = entry.names[first : first + size]
                for name, values in _describe(teacher, layout, names, pixels, world.device).items():
                    tensors[name][first : first + len(names)] = values
                done += len(names)
                if on_image is not None:
                    on_image(names[-1], done, total)
            for name, reason in unreadable.items():
                say(f"skipped {name}: {reason}")
            with told(folder, entry.file):
                write_shard(folder / entry.file, layout, entry.names, tensors, unreadable)
        world.wait()  # after each, because processes that wait too long for one another are given up


def _describe(
    teacher: Teacher, layout: FeatureLayout, names: Sequence[str], pixels: Pixels, device: torch.device
) -> dict[str, Tensor]:
    """What is stored of a batch: ``[p, v, ...]`` by the name of the tensor."""
    images = to_signed(pixels.to(device, non_blocking=True))
    output: TeacherOutput = teacher((images + 1) / 2)
    found = {name: getattr(output, name) for name in layout.tokens}
    stored = {name: values.to(DTYPES[layout.dtype]) for name, values in found.items()}
    for name, values in stored.items():
        if not values.isfinite().all():
            row = int((~values.isfinite()).flatten(1).any(1).nonzero()[0])
            largest = found[name][row].abs().max().item()
            advice = "take --dtype bfloat16" if largest < torch.inf else "look whether the teacher is damaged"
            raise FeatureCacheError(
                f"{names[row // len(layout.views)]}: its {name} reach {largest:.4g}, which is not finite in "
                f"{layout.dtype}; {advice}"
            )
    stored[THUMBNAILS] = thumbnails(images).half()
    return {name: values.unflatten(0, (len(names), len(layout.views))).cpu() for name, values in stored.items()}
