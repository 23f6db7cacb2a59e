"""What a cache of features will hold, and who may write it: the plan that every process and every later run follows.

The plan is the index, in which shards that are still to be made have no checksum. Whole shards stay as they are and
keep their pictures; pictures without a place get one in new shards, in their order.
"""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ..blocks.slots import ImageSource
from ..families.feature_cache import CHANGED, INDEX, SHARDS, ShardEntry, read_index, write_index
from ..families.feature_shards import FeatureCacheError, FeatureLayout, read_shard

LOCK = ".lock"


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep others from writing to the folder; the lock goes with the process, however that ends."""
    import fcntl  # Windows has none, and can still train

    with told(folder, "the folder"):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FeatureCacheError(
                f"{folder}: another process is writing to it; wait for its end, or choose another --out"
            ) from None
        yield
    finally:
        os.close(handle)


@contextmanager
def told(folder: Path, what: str, *, shards: str = SHARDS) -> Iterator[None]:
    """Say what a file that cannot be written, on a full disk for one, means for the ``shards`` that are there."""
    try:
        yield
    except OSError as error:
        whole = len(list(folder.glob(shards)))
        raise FeatureCacheError(
            f"{folder}: {what} cannot be written ({error.strerror}); {whole} shards are there and stay good; make room "
            "and run the same command again, which goes on with the next"
        ) from error


def write_plan(
    folder: Path,
    layout: FeatureLayout,
    source: ImageSource,
    accept: Collection[str],
    verify: bool,
    say: Callable[[str], None],
    *,
    sized: bool,
) -> None:
    """Write an index in which every picture has its place, and whole shards alone have a checksum."""
    for half_written in folder.glob(".*.part"):
        half_written.unlink()
    names = [source.name(index) for index in range(len(source))]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ValueError(f"data: two pictures are called {twice[0]!r}; features are found by name")
    shards = sorted(folder.glob(SHARDS))
    known: dict[int, ShardEntry] = {}
    if (folder / INDEX).is_file():
        stored, entries = read_index(folder)
        layout = _as_stored(layout, stored, folder, accept, sized=sized)
        for entry in entries:
            found = _look(folder / entry.file, verify=verify)
            if isinstance(found, ShardEntry) and (found.names, found.sha256) != (
                entry.names,
                entry.sha256 or found.sha256,
            ):
                found = "is not the one that the index knows"
            if isinstance(found, str) and entry.sha256 is not None:
                say(f"{entry.file}: {found}; it is made anew")
            known[_number(entry.file)] = ShardEntry(entry.file, entry.names) if isinstance(found, str) else found
    else:
        for path in shards:
            found = _look(path, verify=verify)
            if isinstance(found, str):
                say(f"{path.name}: {found}; it is made anew")
                path.unlink()
                continue
            layout = _as_stored(layout, read_shard(path).layout, folder, accept, sized=sized)
            known[_number(path.name)] = found
    available = set(names)
    for number, entry in list(known.items()):
        if entry.sha256 is None and not available.issuperset(entry.names):  # pictures of it are gone
            (folder / entry.file).unlink(missing_ok=True)
            del known[number]
    placed = {name for entry in known.values() for name in entry.names}
    new = [name for name in names if name not in placed]
    full = layout.shard_images
    chunks = [tuple(new[first : first + full]) for first in range(0, len(new), full)]
    free = [number for number in range(len(known) + len(chunks)) if number not in known]
    for number, chunk in zip(free[: len(chunks)], chunks, strict=True):
        known[number] = ShardEntry(layout.file(number), chunk)
    write_index(folder, layout, [known[number] for number in sorted(known)])


def _as_stored(
    layout: FeatureLayout, stored: FeatureLayout, folder: Path, accept: Collection[str], *, sized: bool
) -> FeatureLayout:
    """The layout that is there already, if ours fits it; where nobody chose a number of pictures, any does."""
    ours = layout if sized else replace(layout, shard_images=stored.shard_images)
    ours.check(stored, where=str(folder), accept=accept)
    return stored


def _number(file: str) -> int:
    return int(Path(file).stem.rpartition("-")[2])


def _look(path: Path, *, verify: bool) -> ShardEntry | str:
    """The entry of a whole shard, or what is wrong with it."""
    try:
        shard = read_shard(path)
    except FileNotFoundError:
        return "is missing"
    except ValueError as error:
        return str(error).removeprefix(f"{path}: ")
    if verify and not shard.is_as_written():
        return CHANGED
    return ShardEntry(path.name, shard.names, tuple(shard.unreadable), shard.bytes, shard.digest)


def write_result(folder: Path) -> None:
    layout, entries = read_index(folder)
    found = [entry if entry.sha256 else _look(folder / entry.file, verify=False) for entry in entries]
    write_index(folder, layout, [entry for entry in found if isinstance(entry, ShardEntry)])
