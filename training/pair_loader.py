"""Batches of packed pairs, the same whatever the number of processes and workers that read them.

The order is that of :class:`~.order.Order` over one group; a worker reads whole batches, in memory-mapped files as a
rule, so that most runs need none.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..blocks.shapes import Latent
from ..blocks.slots import PairSource, TeacherOutput
from .loader import leave_interrupts_to_the_main_process, pass_on
from .order import Group, Order

Read = tuple[dict[str, Tensor], tuple[int, int], list[str]]
"""Tensors by name, the grid of the features, and the names of pairs."""


@dataclass(frozen=True)
class PairBatch:
    """A process's part of a batch: latents in model space, and what the teacher said of the images."""

    latents: Latent
    features: TeacherOutput
    names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.latents)


class PairLoader:
    """Reads process ``rank``'s part of the batches of ``batch`` pairs that ``world`` processes share.

    Args:
        workers: processes that read batches ahead; 0 reads them in this one.
        device: where the tensors are wanted.

    Raises:
        ValueError: the batch does not divide among the processes.
    """

    def __init__(
        self,
        source: PairSource,
        *,
        batch: int,
        seed: int,
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
        order = Order([Group(np.arange(len(source)), source.latent_shape[1:])], batch=batch, seed=seed)
        count = batch // world
        self._steps = _PairSteps(source, order, first=rank * count, count=count)
        self.workers, self.device = workers, torch.device(device)

    def iterate(self, first: int, stop: int) -> AbstractContextManager[Iterator[tuple[int, PairBatch]]]:
        """Give ``(step, batch)`` for the steps ``first`` .. ``stop - 1``; the workers end with the context."""
        return closing(self._batches(first, stop))

    def _batches(self, first: int, stop: int) -> Generator[tuple[int, PairBatch], None, None]:
        read_ahead = DataLoader(
            self._steps,
            batch_size=None,
            sampler=range(first, stop),
            num_workers=self.workers,
            collate_fn=pass_on,
            worker_init_fn=leave_interrupts_to_the_main_process,
            generator=torch.Generator(),  # torch would draw from the global one
            pin_memory=self.device.type == "cuda",
        )
        for step, read in zip(range(first, stop), read_ahead, strict=True):
            yield step, on_device(read, self.device)


def read_pairs(source: PairSource, indices: Sequence[int]) -> Read:
    """Read pairs as plain things, which workers can hand over."""
    latents, features = source.read(indices)
    tensors = {"latents": latents, "patches": features.patches, "cls": features.cls, "registers": features.registers}
    there = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    return there, features.grid, [source.name(index) for index in indices]


def on_device(read: Read, device: torch.device) -> PairBatch:
    """A batch of what :func:`read_pairs` read."""
    tensors, (rows, columns), names = read
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
    latents = moved.pop("latents")
    return PairBatch(latents, TeacherOutput(grid=(rows, columns), **moved), tuple(names))


class _PairSteps(Dataset):
    """A process's part of the batch of each step."""

    def __init__(self, source: PairSource, order: Order, *, first: int, count: int) -> None:
        self.source, self.order, self.first, self.count = source, order, first, count

    def __getitem__(self, step: int) -> Read:
        group, places = self.order.samples(step, self.first, self.count)
        return read_pairs(self.source, group.members[places].tolist())


def held_out_pairs(
    source: PairSource, *, batch: int, most: int | None = None, device: torch.device | str = "cpu"
) -> Iterator[PairBatch]:
    """Give evenly spaced pairs, ``most`` of them at most, in batches of at most ``batch``."""
    step = 1 if most is None else max(1, -(-len(source) // most))
    chosen = list(range(0, len(source), step))
    for first in range(0, len(chosen), batch):
        yield on_device(read_pairs(source, chosen[first : first + batch]), torch.device(device))
