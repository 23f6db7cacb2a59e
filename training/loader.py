"""Batches of crops, the same whatever the number of processes and workers that make them.

Which pictures a step has is :class:`~.order.Order`'s to say; the crop at a position of the global batch is drawn from a
generator that belongs to (seed, step, position). A worker makes whole batches and hands them over as bytes.
"""

import random
import signal
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass

import PIL.Image
import torch
from torch.utils.data import DataLoader, Dataset

from ..blocks.draws import address
from ..blocks.shapes import Image
from ..blocks.slots import ImageSource
from ..families.feature_shards import VIEWS
from ..families.images import ImageReadError, Pixels, to_pixels, to_signed
from .crops import CropConfig, RandomCropConfig, central_view
from .order import Group, Order

Skipped = list[tuple[str, str]]
"""Name and reason of files that could not be read."""


@dataclass(frozen=True)
class Batch:
    """A process's part of a batch: images in [-1, 1], their names, and the files that had to be skipped for once.

    ``views`` names the view of each picture, "" where its crop has no name.
    """

    images: Image
    names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    views: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)


class ImageLoader:
    """Makes process ``rank``'s part of the batches of ``batch`` images that ``world`` processes share.

    Where a file cannot be read and its source lets us skip it, the next member of its group takes its place.

    Args:
        stride: of the model; the sides of buckets are multiples of it.
        workers: processes that make batches ahead; 0 makes them in this one.
        device: where the images are wanted.

    Raises:
        ValueError: the batch does not divide among the processes, or a crop's settings do not fit.
    """

    def __init__(
        self,
        source: ImageSource,
        crop: CropConfig = RandomCropConfig(),
        *,
        resolution: int,
        batch: int,
        seed: int,
        stride: int = 1,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch % world:
            raise ValueError(
                f"batch: must divide evenly among {world} processes, got {batch}; "
                f"take {max(batch // world, 1) * world} or {-(-batch // world) * world}"
            )
        groups = crop.groups(source, resolution=resolution, stride=stride, batch=batch)
        order = Order(groups, batch=batch, seed=seed)
        count = batch // world
        self._steps = _Steps(source, crop, order, first=rank * count, count=count, seed=seed)
        self.workers, self.device = workers, torch.device(device)
        self.skipped: dict[str, str] = {}
        """Reasons by the names of all files that had to be skipped so far."""

    def iterate(self, first: int, stop: int) -> AbstractContextManager[Iterator[tuple[int, Batch]]]:
        """Give ``(step, batch)`` for the steps ``first`` .. ``stop - 1``; the workers end with the context.

        Raises:
            ImageReadError: a file cannot be read and may not be skipped.
        """
        return closing(self._batches(first, stop))

    def _batches(self, first: int, stop: int) -> Generator[tuple[int, Batch], None, None]:
        on_cuda = self.device.type == "cuda"
        made_ahead = DataLoader(
            self._steps,
            batch_size=None,
            sampler=range(first, stop),
            num_workers=self.workers,
            collate_fn=pass_on,
            worker_init_fn=leave_interrupts_to_the_main_process,
            generator=torch.Generator(),  # torch would draw from the global one
            pin_memory=on_cuda,
        )
        for step, made in zip(range(first, stop), made_ahead, strict=True):
            if isinstance(made, ImageReadError):
                raise made
            pixels, names, views, skipped = made
            new = {name: reason for name, reason in skipped if name not in self.skipped}
            self.skipped |= new
            images = to_signed(pixels.to(self.device, non_blocking=True))
            yield step, Batch(images, tuple(names), tuple(new.items()), tuple(views))


class _Steps(Dataset):
    """A process's part of the batch of each step."""

    def __init__(
        self, source: ImageSource, crop: CropConfig, order: Order, *, first: int, count: int, seed: int
    ) -> None:
        self.source, self.crop, self.order = source, crop, order
        self.first, self.count, self.seed = first, count, seed

    def __getitem__(self, step: int) -> tuple[Pixels, list[str], list[str], Skipped] | ImageReadError:
        """Make the batch, or return the error: raised in a worker, torch would wrap it in the worker's traceback."""
        group, members = self.order.samples(step, self.first, self.count)
        crops, names, views, skipped = [], [], [], []
        try:
            for position, member in enumerate(members.tolist(), self.first):
                name, image = self._read(group, member, skipped)
                rng = random.Random(address(self.seed, "crop", step, position))
                crop, view = self.crop.cut_view(image, group.shape, rng)
                crops.append(crop)
                names.append(name)
                views.append(view)
        except ImageReadError as error:
            return error
        return to_pixels(crops), names, views, skipped

    def _read(self, group: Group, member: int, skipped: Skipped) -> tuple[str, PIL.Image.Image]:
        size = len(group.members)
        for nearby in range(member, member + size):
            index = int(group.members[nearby % size])
            try:
                return self.source.name(index), self.source.read(index)
            except ImageReadError as error:
                if not error.skippable:
                    raise
                skipped.append((self.source.name(index), error.reason))
        name, reason = skipped[-1]
        raise ImageReadError(name, reason, f"nor can any other of the {size} images in its group; restore some")


def pass_on(made: object) -> object:
    return made


def leave_interrupts_to_the_main_process(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def held_out_crops(source: ImageSource, *, resolution: int, batch: int, most: int | None = None) -> Iterator[Image]:
    """Give the images of :func:`held_out_batches`."""
    for made in held_out_batches(source, resolution=resolution, batch=batch, most=most):
        yield made.images


def held_out_batches(source: ImageSource, *, resolution: int, batch: int, most: int | None = None) -> Iterator[Batch]:
    """Give the central square of images, reduced or enlarged to ``resolution``, in batches of at most ``batch``.

    Of more than ``most`` images, evenly spaced ones are taken. Files that may be skipped are passed over.
    """
    crops, names = [], []
    step = 1 if most is None else max(1, -(-len(source) // most))
    chosen = range(0, len(source), step)
    for index in chosen:
        try:
            crops.append(central_view(source.read(index), (resolution, resolution), VIEWS[0]))
            names.append(source.name(index))
        except ImageReadError as error:
            if not error.skippable:
                raise
        if crops and (len(crops) == batch or index == chosen[-1]):
            yield Batch(to_signed(to_pixels(crops)), tuple(names), (), VIEWS[:1] * len(names))
            crops, names = [], []
