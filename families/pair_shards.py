"""Shards of a pack of pairs: latents and a teacher's features of the same images, as plain ``.npy`` files.

A shard holds the views of up to ``shard_pictures`` pictures, one row each, the views of a picture after one another:

    latents-<latent spec>-00000.npy     [n, z, h, w]      in model space
    features-<teacher spec>-00000.npy   [n, tokens, f]    patch tokens, row-major
    cls-<teacher spec>-00000.npy        [n, f]            where they are kept
    thumbnails-00000.npy                [n, 3, 64, 64]    uint8, what was seen

``numpy.load(path, mmap_mode="r")`` maps them. The sidecar ``pairs-00000.json`` is written last: with it the shard is
whole. It says everything else (both specs, names of rows, types, shapes, SHA-256 of each file), so that a lone shard
can be read and verified.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..blocks.latent_space import LatentSpec
from ..blocks.registry import PartError, decode, differences, encode
from ..blocks.slots import LatentSpaceConfig, TeacherConfig
from ..blocks.teacher_spec import TeacherSpec
from .feature_shards import FeatureCacheError
from .files import CheckpointError, read_config, replacing, write_atomically

LATENTS, FEATURES, CLS, THUMBNAILS = "latents", "features", "cls", "thumbnails"
SIDECARS = "pairs-*.json"
SIDE = 64
"""Pixels a side of a thumbnail."""

Arrays = Mapping[str, NDArray[Any]]


class PairsError(FeatureCacheError):
    """A pack of pairs is damaged, unfinished, in use, or not what was asked for."""


@dataclass(frozen=True, kw_only=True)
class PairLayout:
    """What all shards of a pack have in common.

    Attributes:
        space, latent_spec: whose latents, as described, and to the last thing that changes a number.
        teacher, teacher_spec: whose features, likewise.
        resolution: side in pixels of the square images.
        views: of each picture, in the order of its rows: "central", "mirrored", "crop-0", "crop-1", ...
        seed: of the crops, and of posterior samples where the space takes them.
        dtype: of latents and features, "float16" or "float32".
        latent_shape: (channels, rows, columns).
        grid, features: of the teacher's tokens.
        has_cls, has_thumbnails: which files there are.
        shard_pictures: in a full shard.
    """

    space: LatentSpaceConfig
    latent_spec: LatentSpec
    teacher: TeacherConfig
    teacher_spec: TeacherSpec
    resolution: int
    views: tuple[str, ...]
    seed: int
    dtype: str
    latent_shape: tuple[int, int, int]
    grid: tuple[int, int]
    features: int
    has_cls: bool
    has_thumbnails: bool
    shard_pictures: int

    def encoded(self) -> dict[str, Any]:
        """The JSON form."""
        return {field.name: encode(getattr(self, field.name)) for field in fields(self)}

    @staticmethod
    def decoded(value: Any, *, where: str) -> "PairLayout":
        """Rebuild a layout from its JSON form; raises :class:`PairsError` for anything else."""
        try:
            plain: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in value.items()}
            for name, slot in SPECS.items():
                plain[name] = decode(value[name], slot)
            return PairLayout(**plain)
        except (AttributeError, KeyError, TypeError) as error:
            raise PairsError(f"{where}: describes no pack of pairs ({error}); make the pack anew") from None
        except PartError as error:
            raise PartError(f"{where}: {error.where}", error.what) from None

    def check(self, stored: "PairLayout", *, where: str, accept: Collection[str] = ()) -> None:
        """Raise where ``stored``, found at ``where``, has pairs of another space or teacher, or other settings.

        How space and teacher are described may differ, such as a folder in place of a hub's name: their specs count.
        """
        self.latent_spec.check(stored.latent_spec, where=where)
        self.teacher_spec.check(stored.teacher_spec, where=where, accept=accept)
        settings = [field.name for field in fields(self) if field.name not in SPECS]
        lines = [
            line for name in settings for line in differences(getattr(stored, name), getattr(self, name), where=name)
        ]
        if lines:
            raise PairsError(
                f"{where}: was made with other settings ({'; '.join(lines)}); ask for the same, or choose another --out"
            )

    def shapes(self, rows: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Types and shapes of the arrays of ``rows`` rows."""
        found: dict[str, tuple[str, tuple[int, ...]]] = {
            LATENTS: (self.dtype, (rows, *self.latent_shape)),
            FEATURES: (self.dtype, (rows, self.grid[0] * self.grid[1], self.features)),
        }
        if self.has_cls:
            found[CLS] = (self.dtype, (rows, self.features))
        if self.has_thumbnails:
            found[THUMBNAILS] = ("uint8", (rows, 3, SIDE, SIDE))
        return found

    def file(self, array: str, number: int) -> str:
        """The name of a file of a shard."""
        stamp = {LATENTS: f"-{self.latent_spec.id}", THUMBNAILS: ""}.get(array, f"-{self.teacher_spec.id}")
        return f"{array}{stamp}-{number:05d}.npy"

    def row_names(self, pictures: Sequence[str]) -> list[str]:
        """``picture#view`` for the rows of pictures; of a pack with one view, the picture."""
        if len(self.views) == 1:
            return list(pictures)
        return [f"{picture}#{view}" for picture in pictures for view in self.views]


SPECS: dict[str, Any] = {
    "space": LatentSpaceConfig,
    "latent_spec": LatentSpec,
    "teacher": TeacherConfig,
    "teacher_spec": TeacherSpec,
}
"""Fields of a layout that are parts."""


@dataclass(frozen=True)
class PairShard:
    """What a sidecar says: a whole shard."""

    layout: PairLayout
    pictures: tuple[str, ...]
    unreadable: dict[str, str]
    """Pictures that could not be read, with reasons; they have no rows."""
    sha256: dict[str, str]
    """By file."""

    @property
    def rows(self) -> int:
        return len(self.pictures) * len(self.layout.views)


def sidecar(number: int) -> str:
    return f"pairs-{number:05d}.json"


def write_pair_shard(
    folder: Path,
    number: int,
    layout: PairLayout,
    pictures: Sequence[str],
    arrays: Arrays,
    unreadable: Mapping[str, str],
) -> None:
    """Write the files of a shard and then its sidecar, each whole or not at all; the same arguments, the same bytes."""
    digests = {}
    for name, array in arrays.items():
        path = folder / layout.file(name, number)
        with replacing(path) as file:
            np.save(file, np.ascontiguousarray(array), allow_pickle=False)
        digests[path.name] = file_digest(path)
    content = {
        "layout": layout.encoded(),
        "pictures": list(pictures),
        "unreadable": dict(unreadable),
        "sha256": digests,
    }
    write_atomically(folder / sidecar(number), json.dumps(content, indent=1) + "\n")


def read_sidecar(path: Path) -> PairShard:
    """Read what a sidecar says.

    Raises:
        FileNotFoundError: there is none.
        PairsError: it is no sidecar.
    """
    try:
        content = read_config(path)
    except CheckpointError as error:
        raise PairsError(str(error)) from None
    layout = PairLayout.decoded(content.get("layout"), where=str(path))
    try:
        return PairShard(layout, tuple(content["pictures"]), dict(content["unreadable"]), {**content["sha256"]})
    except (KeyError, TypeError) as error:
        raise PairsError(f"{path}: is no sidecar of pairs ({error!r})") from None


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_arrays(folder: Path, number: int, shard: PairShard) -> dict[str, NDArray[Any]]:
    """Map the arrays of a shard.

    Raises:
        PairsError: a file is missing, cut short, or holds something else.
    """
    found = {}
    for name, (dtype, shape) in shard.layout.shapes(shard.rows).items():
        path = folder / shard.layout.file(name, number)
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise PairsError(f"{path}: is missing") from None
        except (ValueError, OSError, EOFError) as error:
            raise PairsError(f"{path}: is no whole .npy file ({error})") from None
        if (str(array.dtype), array.shape) != (dtype, shape):
            raise PairsError(f"{path}: holds {array.dtype} {list(array.shape)}, not {dtype} {list(shape)}")
        found[name] = array
    return found


def problem_of(folder: Path, number: int, *, layout: PairLayout | None = None, verify: bool = False) -> str | None:
    """What is wrong with a shard, or None; ``verify`` reads all its bytes and compares checksums."""
    path = folder / sidecar(number)
    try:
        shard = read_sidecar(path)
        open_arrays(folder, number, shard)
    except FileNotFoundError:
        return "is not made yet"
    except ValueError as error:
        return str(error).removeprefix(f"{folder}/").removeprefix(f"{path.name}: ")
    if layout is not None and shard.layout.encoded() != layout.encoded():
        return "is not of this pack"
    if verify:
        for file, digest in shard.sha256.items():
            if file_digest(folder / file) != digest:
                return f"{file}: has other bytes than were written (its SHA-256 differs)"
    return None
