"""Shards of a cache of teacher features: what is in one, and how it is written whole, read and verified.

A shard is a safetensors file of the features of up to ``shard_images`` pictures, in each of their views:

    patches     [p, v, n, f]     cls [p, v, f]     registers [p, v, r, f]
    thumbnails  [p, v, 3, 8, 8]  mean colours in [-1, 1], float16: what was seen

Its header says everything else: the layout (teacher, spec, resolution, ...), the names of the pictures in their order,
those that could not be read, and the SHA-256 of the header's other entries and of all tensors, so that a lone shard
can be verified. A safetensors file is eight bytes N, N bytes of JSON with the place of each tensor, and the tensors;
plain numpy maps them with ``np.memmap(path, "<f2", "r", offset=8 + N + start, shape=shape)``.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..blocks.registry import PartError, decode, differences, encode
from ..blocks.shapes import Image
from ..blocks.slots import TeacherConfig
from ..blocks.teacher_spec import TeacherSpec
from .streams import write_stream

VIEWS = ("central", "mirrored")
"""The central square of a picture, and its mirror image."""

TOKENS = ("patches", "cls", "registers")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
THUMBNAILS, SIDE = "thumbnails", 8

LAYOUT, NAMES, UNREADABLE, DIGEST = (f"latelier.{name}" for name in ("feature_layout", "names", "unreadable", "sha256"))
"""Entries of a shard's header."""


class FeatureCacheError(ValueError):
    """A cache of features is damaged, unfinished, in use, or not what was asked for."""


@dataclass(frozen=True, kw_only=True)
class FeatureLayout:
    """What all shards of a cache have in common.

    Attributes:
        teacher, spec: what made the features, as it was described, and to the last thing that changes a number.
        resolution: side of the views in pixels.
        views: of ``VIEWS``, in the order in which they are stored.
        dtype: of the stored features: "float16", "bfloat16" or "float32".
        tokens: of ``TOKENS``.
        grid: of the patch tokens, (rows, columns).
        registers: how many an image has, or 0 where they are not stored.
        shard_images: pictures in a full shard.
    """

    teacher: TeacherConfig
    spec: TeacherSpec
    resolution: int
    views: tuple[str, ...]
    dtype: str
    tokens: tuple[str, ...]
    grid: tuple[int, int]
    registers: int
    shard_images: int

    def encoded(self) -> dict[str, Any]:
        """The JSON form."""
        return {field.name: encode(getattr(self, field.name)) for field in fields(self)}

    @staticmethod
    def decoded(value: Any, *, where: str) -> "FeatureLayout":
        """Rebuild a layout from its JSON form; raises :class:`FeatureCacheError` for anything else."""
        try:
            plain: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in value.items()}
            plain["teacher"] = decode(value["teacher"], TeacherConfig)
            plain["spec"] = decode(value["spec"], TeacherSpec)
            return FeatureLayout(**plain)
        except (AttributeError, KeyError, TypeError) as error:
            raise FeatureCacheError(f"{where}: describes no cache of features ({error}); make the cache anew") from None
        except PartError as error:
            raise PartError(f"{where}: {error.where}", error.what) from None

    def check(self, stored: "FeatureLayout", *, where: str, accept: Collection[str] = ()) -> None:
        """Raise where ``stored``, which was found at ``where``, is of another teacher or of other settings.

        How the teacher is described may differ, such as a folder in place of a hub's name: its spec counts.
        """
        self.spec.check(stored.spec, where=where, accept=accept)
        lines = [
            line
            for name in ("resolution", "views", "dtype", "tokens", "shard_images")
            for line in differences(getattr(stored, name), getattr(self, name), where=name)
        ]
        if lines:
            raise FeatureCacheError(
                f"{where}: was made with other settings ({'; '.join(lines)}); ask for the same, or choose another --out"
            )

    def shapes(self, count: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Types and shapes of the tensors of a shard of ``count`` pictures."""
        dtype, width, views = DTYPES[self.dtype], self.spec.features, len(self.views)
        inner = {"patches": (self.grid[0] * self.grid[1], width), "cls": (width,), "registers": (self.registers, width)}
        return {name: (dtype, (count, views, *inner[name])) for name in self.tokens} | {
            THUMBNAILS: (torch.float16, (count, views, 3, SIDE, SIDE))
        }

    def file(self, number: int) -> str:
        """The name of a shard."""
        return f"features-{self.spec.id}-{number:05d}.safetensors"


def thumbnails(images: Image) -> Tensor:
    """Mean colours ``[b, 3, 8, 8]`` of images, in their own range: hardly changed by another decoder of JPEG."""
    return F.adaptive_avg_pool2d(images.float(), SIDE)


@dataclass(frozen=True)
class Shard:
    """An open shard; its tensors are mapped, not read."""

    path: Path
    layout: FeatureLayout
    names: tuple[str, ...]
    unreadable: dict[str, str]
    digest: str
    tensors: dict[str, Tensor]
    header: dict[str, str]

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size

    def is_as_written(self) -> bool:
        """Whether its bytes are those that were written; reads all of them."""
        return _digest(self.header, self.tensors) == self.digest


def write_shard(
    path: Path,
    layout: FeatureLayout,
    names: Sequence[str],
    tensors: Mapping[str, Tensor],
    unreadable: Mapping[str, str],
) -> None:
    """Write a shard, whole or not at all; the same arguments give the same bytes."""
    header = {
        "format": "pt",
        LAYOUT: json.dumps(layout.encoded()),
        NAMES: json.dumps(list(names)),
        UNREADABLE: json.dumps(dict(unreadable)),
    }
    header[DIGEST] = _digest(header, tensors)
    with write_stream(path, layout.shapes(len(names)), header) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


def read_shard(path: Path) -> Shard:
    """Open a shard.

    Raises:
        FileNotFoundError: there is no such file.
        FeatureCacheError: it is cut short, no safetensors file, or no shard.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors, header = {name: file.get_tensor(name) for name in list(file.keys())}, dict(file.metadata() or {})
    except SafetensorError as error:
        raise FeatureCacheError(f"{path}: is no whole safetensors file ({error})") from None
    try:
        described, names, unreadable = (json.loads(header[key]) for key in (LAYOUT, NAMES, UNREADABLE))
        digest = header[DIGEST]
    except (KeyError, ValueError) as error:
        raise FeatureCacheError(f"{path}: is no shard of features ({error!r} in its header)") from None
    layout = FeatureLayout.decoded(described, where=str(path))
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    if found != layout.shapes(len(names)):
        raise FeatureCacheError(f"{path}: its tensors are not those that its header describes")
    return Shard(path, layout, tuple(names), unreadable, digest, tensors, header)


def _digest(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    described = {name: text for name, text in header.items() if name != DIGEST}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
