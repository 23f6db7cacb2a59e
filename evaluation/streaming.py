"""An evaluation that streams: partial results on disk, divided over processes, continued after a kill.

A folder holds *parts*. Each is what one process did in one go: a row of JSON for each image (``.jsonl``), float32 rows
of features for measures that need them (``.f32``), and a file of float64 sums (``.safetensors``), which is renamed into
place last and says how many rows count: what stands beyond is of a process that was killed, and is done again. A
start takes what all parts have, divides the rest over its processes, whatever their number, and writes parts of its
own. Rows are put in the order of the images and sums add, so that numbers do not depend on who did what.

Memory holds the sums, the JSON rows, and one image. Rows of features are read at the end, by the measures that need
them. Processes on several machines need a folder that all of them see.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ..blocks.weights import read_tensors
from ..families.files import write_atomically, write_tensors
from .populations import GaussianSums

HEADER = "latelier.part"
STATE = "evaluation.json"

Row = dict[str, Any]
Described = Mapping[str, Tensor]
"""Rows of features of one image by the name of their stream."""

Work = Callable[[int], tuple[Row, Described]]
"""Measures the image of that index: a row, and what is summed."""


def world() -> tuple[int, int]:
    """(rank, processes) of the group that is joined, or (0, 1)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def agreed(value: Any) -> Any:
    """What the first process says, on all of them."""
    if world()[1] == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


@dataclass
class Tally:
    """What parts amount to: rows by the index of their image, sums by stream, and files of rows of features."""

    rows: dict[int, Row] = field(default_factory=dict)
    sums: dict[str, GaussianSums] = field(default_factory=dict)
    kept: dict[str, list[tuple[Path, list[int], int, int]]] = field(default_factory=dict)
    """By stream: file, indices of its images, rows an image, width."""

    def features(self, stream: str) -> Tensor:
        """Kept rows ``[n, f]`` of a stream in the order of the images; raises ``ValueError`` where none were kept."""
        if stream not in self.kept:
            raise ValueError(f"features: no rows of {stream!r} were kept")
        order: list[tuple[int, int, int]] = []
        files = []
        for number, (path, indices, each, width) in enumerate(self.kept[stream]):
            values = np.fromfile(path, dtype="<f4", count=len(indices) * each * width)
            files.append(torch.from_numpy(values.reshape(len(indices), each, width)))
            order += [(index, number, place) for place, index in enumerate(indices)]
        return torch.cat([files[number][place] for _, number, place in sorted(order)])


class Part:
    """The file set of this process's go; :meth:`commit` makes it count."""

    def __init__(self, folder: Path, stem: str, *, keep: Iterable[str], add: Iterable[str]) -> None:
        self.folder, self.stem, self.keep, self.summed = folder, stem, frozenset(keep), frozenset(add)
        self.indices: list[int] = []
        self.sums: dict[str, GaussianSums] = {}
        self.shapes: dict[str, tuple[int, int]] = {}
        self.files: dict[str, IO[bytes]] = {}
        self.committed = 0

    def _file(self, suffix: str) -> IO[bytes]:
        if suffix not in self.files:
            self.files[suffix] = (self.folder / f"{self.stem}{suffix}").open("wb")
        return self.files[suffix]

    def add(self, index: int, row: Row, described: Described) -> None:
        # all streams are checked before any sum is changed: an image counts whole or not at all
        for stream, rows in described.items():
            if not rows.isfinite().all():
                raise ValueError(
                    f"{row['name']}: the features {stream!r} are not finite; the extractor or the image is damaged"
                )
        for stream, rows in described.items():
            if stream in self.summed:
                self.sums.setdefault(stream, GaussianSums()).update(rows)
            if stream in self.keep:
                self.shapes[stream] = (rows.shape[0], rows.shape[1])
                self._file(f".{stream.replace('/', '-')}.f32").write(
                    rows.detach().cpu().numpy().astype("<f4").tobytes()
                )
        self._file(".jsonl").write((json.dumps(row, allow_nan=False) + "\n").encode())
        self.indices.append(index)

    def commit(self) -> None:
        if len(self.indices) == self.committed:
            return
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        tensors = {}
        for stream, sums in self.sums.items():
            tensors |= {f"{stream}.total": sums.total, f"{stream}.outer": sums.outer}
        counts = {stream: sums.count for stream, sums in self.sums.items()}
        header = {"indices": self.indices, "counts": counts, "shapes": self.shapes}
        tensors["rows"] = torch.tensor(len(self.indices))
        write_tensors(self.folder / f"{self.stem}.safetensors", tensors, {HEADER: json.dumps(header)})
        self.committed = len(self.indices)

    def close(self) -> None:
        for file in self.files.values():
            file.close()


def read_parts(folder: Path) -> Tally:
    """What all parts of a folder amount to."""
    tally = Tally()
    for path in sorted(folder.glob("part-*.safetensors")):
        tensors, texts = read_tensors(path)
        header = json.loads(texts[HEADER])
        indices = header["indices"]
        with path.with_suffix(".jsonl").open(encoding="utf-8") as lines:
            tally.rows |= {index: json.loads(line) for index, line in zip(indices, lines, strict=False)}
        for stream, count in header["counts"].items():
            ours = GaussianSums(count, tensors[f"{stream}.total"], tensors[f"{stream}.outer"])
            tally.sums[stream] = ours.merge(tally.sums[stream]) if stream in tally.sums else ours
        for stream, (each, width) in header["shapes"].items():
            file = folder / f"{path.stem}.{stream.replace('/', '-')}.f32"
            tally.kept.setdefault(stream, []).append((file, indices, each, width))
    return tally


def stream(
    count: int,
    work: Work,
    *,
    folder: Path,
    key: Mapping[str, Any],
    keep: Iterable[str] = (),
    add: Iterable[str] = (),
    every: int = 64,
) -> Tally:
    """Do what the folder lacks of ``count`` images, with all processes, and give what it then amounts to.

    Every process of the group has to call this.

    Args:
        key: what the partial results depend on; a folder of another key is refused.
        keep: streams whose rows are kept.
        add: streams whose moments are wanted.
        every: images between two commits.

    Raises:
        ValueError: the folder is of another evaluation. What ``work`` raises, after what was done is committed; on the
            other processes a ``RuntimeError`` that says so.
    """
    rank, size = world()
    problem = None
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        problem = _claim(folder, dict(key))
    problem = agreed(problem)
    if problem is not None:
        raise ValueError(problem)
    done = read_parts(folder).rows
    go = len({path.name.split("-")[1] for path in folder.glob("part-*")})
    if size > 1:
        dist.barrier()  # everyone has seen the same folder before anyone writes to it
    part = Part(folder, f"part-{go:03d}-{rank:04d}", keep=keep, add=add)
    failure: Exception | None = None
    try:
        for index in [i for i in range(count) if i not in done][rank::size]:
            row, described = work(index)
            part.add(index, row, described)
            if len(part.indices) - part.committed >= every:
                part.commit()
    except Exception as error:
        if size == 1:
            raise
        failure = error
    finally:
        part.commit()
        part.close()
    if size > 1:
        _raise_together(failure, rank, size)
    return read_parts(folder)


def _claim(folder: Path, key: dict[str, Any]) -> str | None:
    """Mark a folder as of this evaluation; what is wrong where it is of another."""
    path = folder / STATE
    if not path.exists():
        write_atomically(path, json.dumps(key, indent=2) + "\n")
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        found = {}
    other = [name for name in key if not isinstance(found, dict) or found.get(name) != key[name]]
    if not other:
        return None
    return (
        f"{folder}: holds an evaluation with another {' and '.join(other)}; give another folder, or remove it to "
        "measure anew"
    )


def _raise_together(failure: Exception | None, rank: int, size: int) -> None:
    texts: list[str | None] = [None] * size
    dist.all_gather_object(texts, None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for other, text in enumerate(texts):
        if text is not None:
            raise RuntimeError(f"process {other}: {text}; what process {rank} did is kept")


@contextlib.contextmanager
def shared_folder(folder: Path | None) -> Iterator[Path]:
    """The folder, or one that all processes of this machine share until the end."""
    if folder is not None:
        yield folder
        return
    rank, size = world()
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(tempfile.TemporaryDirectory(prefix="latelier-")) if rank == 0 else None
        try:
            yield Path(agreed(made))
        finally:
            if size > 1:
                dist.barrier()
