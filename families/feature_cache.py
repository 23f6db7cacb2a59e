"""A cache of teacher features: a folder of shards and an index, read in place of the teacher.

``index.json`` holds the layout and, for each shard, its file, its names and, once it is made, its bytes and SHA-256.
It is written before the first shard, so that every run of the writer has the same plan, and after the last. Shards
appear whole, under their own names: what is there is good until the disk fails, and a lost index is rebuilt from them.
"""

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..blocks.slots import TeacherConfig, TeacherOutput
from ..blocks.teacher_spec import TeacherSpec
from .feature_shards import THUMBNAILS, FeatureCacheError, FeatureLayout, Shard, read_shard
from .files import read_config, write_atomically

INDEX, SHARDS = "index.json", "features-*.safetensors"
AGAIN = "`latelier cache` with the same arguments"
CHANGED = "has other bytes than were written (its SHA-256 differs)"

Look = Literal["size", "header", "bytes"]
"""How closely a shard is looked at."""


@dataclass(frozen=True)
class ShardEntry:
    """A shard in the index; ``bytes`` and ``sha256`` are None until it is made."""

    file: str
    names: tuple[str, ...]
    unreadable: tuple[str, ...] = ()
    bytes: int | None = None
    sha256: str | None = None


def write_index(folder: Path, layout: FeatureLayout, entries: Sequence[ShardEntry]) -> None:
    content = {"layout": layout.encoded(), "shards": [asdict(entry) for entry in entries]}
    write_atomically(folder / INDEX, json.dumps(content, indent=1) + "\n")


def read_index(folder: Path) -> tuple[FeatureLayout, list[ShardEntry]]:
    """Read an index.

    Raises:
        FeatureCacheError: it is no index.
    """
    path = folder / INDEX
    try:
        content = read_config(path)
    except ValueError as error:
        raise FeatureCacheError(f"{error}; delete it, and {AGAIN} rebuilds it from the shards") from None
    layout = FeatureLayout.decoded(content.get("layout"), where=str(path))
    try:
        entries = [
            ShardEntry(**(entry | {name: tuple(entry[name]) for name in ("names", "unreadable")}))
            for entry in content["shards"]
        ]
    except (KeyError, TypeError) as error:
        raise FeatureCacheError(
            f"{path}: lists no shards ({error!r}); delete it, and {AGAIN} rebuilds it from the shards"
        ) from None
    return layout, entries


class FeatureCache:
    """The features in a folder, by the name of the picture and the view.

    Opening reads the index alone. Shards are mapped when they are first needed; memory holds what is read.

    Raises:
        FileNotFoundError: the folder holds no cache.
        FeatureCacheError: its index is lost or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        if not (self.folder / INDEX).is_file():
            if any(self.folder.glob(SHARDS)):
                raise FeatureCacheError(
                    f"{self.folder}: has shards of features but no {INDEX}; {AGAIN} rebuilds it from them"
                )
            raise FileNotFoundError(
                f"{self.folder}: holds no cache of features; latelier cache TEACHER --data DIR --out {self.folder} "
                "makes one"
            )
        self.layout, self.shards = read_index(self.folder)
        self._places = {
            name: (number, row)
            for number, entry in enumerate(self.shards)
            for row, name in enumerate(entry.names)
            if name not in entry.unreadable
        }
        self._unreadable = {name: number for number, entry in enumerate(self.shards) for name in entry.unreadable}
        self._open: dict[int, Shard] = {}

    @property
    def spec(self) -> TeacherSpec:
        return self.layout.spec

    @property
    def teacher(self) -> TeacherConfig:
        """What made the features."""
        return self.layout.teacher

    @property
    def names(self) -> tuple[str, ...]:
        """Of the pictures whose features it holds."""
        return tuple(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __len__(self) -> int:
        return len(self._places)

    def check(self, names: Iterable[str] | None = None, *, verify: bool = False) -> None:
        """Raise where a shard that the pictures are in, by default any, is missing, unfinished or of another size.

        ``verify`` reads all their bytes and compares checksums. Pictures that could not be read are passed over.

        Raises:
            FeatureCacheError: the first shard that is not whole, or a picture that is not in the cache.
        """
        if names is None:
            numbers = set(range(len(self.shards)))
        else:
            numbers = {self.shard_of(name) for name in names if name not in self._unreadable}
        for number in sorted(numbers):
            problem = self.problem(number, look="bytes" if verify else "size")
            if problem:
                raise self._damaged(number, problem)

    def problem(self, number: int, *, look: Look = "size") -> str | None:
        """What is wrong with a shard, or None; looks at its size, at its header too, or at all its bytes."""
        entry = self.shards[number]
        path = self.folder / entry.file
        if entry.sha256 is None:
            return "is not made yet"
        if not path.is_file():
            return "is missing"
        size = path.stat().st_size
        if size != entry.bytes:
            return f"has {size:,} bytes where the index says {entry.bytes:,}"
        if look == "size":
            return None
        try:
            shard = read_shard(path)
        except ValueError as error:
            return str(error).removeprefix(f"{path}: ")
        if (shard.digest, shard.names) != (entry.sha256, entry.names):
            return "is not the one that the index knows"
        if look == "bytes" and not shard.is_as_written():
            return CHANGED
        return None

    def shard_of(self, name: str) -> int:
        """The number of the shard that a picture is in.

        Raises:
            FeatureCacheError: the picture is not in the cache.
        """
        if name in self._unreadable:
            file = self.shards[self._unreadable[name]].file
            raise FeatureCacheError(
                f"{self.folder}: {name!r} could not be read when it was made; delete {file} there, and {AGAIN} "
                "makes it anew"
            )
        if name not in self._places:
            raise FeatureCacheError(f"{self.folder}: has no features of {name!r}; {AGAIN} adds new pictures")
        return self._places[name][0]

    def read(self, names: Sequence[str], views: Sequence[str], *, device: torch.device | str = "cpu") -> TeacherOutput:
        """Features of pictures in one view each, float32, as the teacher would give them.

        Raises:
            FeatureCacheError: a picture or a view that is not in the cache, or a shard that is not whole.
        """
        found = {
            name: self._gather(name, names, views).to(device, non_blocking=True).float() for name in self.layout.tokens
        }
        return TeacherOutput(grid=self.layout.grid, **found)

    def thumbnails(self, names: Sequence[str], views: Sequence[str]) -> Tensor:
        """What the teacher saw, as mean colours ``[b, 3, 8, 8]`` in [-1, 1]."""
        return self._gather(THUMBNAILS, names, views).float()

    def file_of(self, name: str) -> str:
        return self.shards[self.shard_of(name)].file

    def _gather(self, tensor: str, names: Sequence[str], views: Sequence[str]) -> Tensor:
        rows = []
        for name, view in zip(names, views, strict=True):
            number = self.shard_of(name)
            if view not in self.layout.views:
                raise FeatureCacheError(
                    f"{self.folder}: has no view {view!r} of its pictures; it has {', '.join(self.layout.views)}"
                )
            rows.append(self._shard(number).tensors[tensor][self._places[name][1], self.layout.views.index(view)])
        return torch.stack(rows)  # a copy: the files are mapped

    def _shard(self, number: int) -> Shard:
        if number not in self._open:
            problem = self.problem(number, look="header")
            if problem:
                raise self._damaged(number, problem)
            self._open[number] = read_shard(self.folder / self.shards[number].file)
        return self._open[number]

    def _damaged(self, number: int, problem: str) -> FeatureCacheError:
        again = f"{AGAIN} and --verify" if problem == CHANGED else AGAIN
        return FeatureCacheError(
            f"{self.folder / self.shards[number].file}: {problem}; {again} makes it anew and leaves the others as they "
            "are"
        )


def open_cache(folder: str | Path) -> FeatureCache:
    """As ``FeatureCache(folder)``, but an index that has not changed is not read again."""
    path = Path(folder).expanduser().absolute()
    try:
        state = (path / INDEX).stat()
    except OSError:
        return FeatureCache(folder)  # says what is missing
    return _opened(str(folder), str(path), state.st_mtime_ns, state.st_size, state.st_ino)


@functools.lru_cache(maxsize=4)
def _opened(folder: str, path: str, *state: Any) -> FeatureCache:
    return FeatureCache(folder)
