"""Safetensors files that are too large for memory: written a tensor at a time, read a tensor at a time.

A safetensors file is eight bytes N (little-endian), N bytes of JSON that give each tensor's name, type, shape and
place, and the tensors one after another (https://huggingface.co/docs/safetensors). Where names, types and shapes are
known beforehand, the head is written first, and then each tensor at its place, in any order.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .files import CheckpointError, replacing

TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""The types that are written, under their names in the head of the file."""

Shapes = Mapping[str, tuple[torch.dtype, Sequence[int]]]
"""The type and the shape of each tensor by name."""


class TensorWriter:
    """Puts tensors at their places in a file whose head is written at once; see :func:`write_stream`."""

    def __init__(self, file: BinaryIO, where: str, shapes: Shapes, header: Mapping[str, str]) -> None:
        self._file, self._where = file, where
        self._shapes = {name: (dtype, tuple(shape)) for name, (dtype, shape) in shapes.items()}
        self._waiting = set(self._shapes)
        head: dict[str, Any] = {"__metadata__": dict(header)}
        self._places: dict[str, int] = {}
        place = 0
        # Wide types first: then every tensor starts at a multiple of its own width.
        for name, (dtype, shape) in sorted(self._shapes.items(), key=lambda item: -item[1][0].itemsize):
            if name == "__metadata__":
                raise ValueError(f"{where}: a tensor cannot be called {name!r}, which the format keeps for itself")
            if any("\ud800" <= sign <= "\udfff" for sign in name):  # as Python reads file names that are no UTF-8
                raise ValueError(f"{where}: the name {name!r} is no Unicode text; rename it")
            if dtype not in TYPES:
                raise ValueError(f"{where}: {name!r} is {dtype}; streams hold float32, float16 and bfloat16")
            end = place + math.prod(shape) * dtype.itemsize
            head[name] = {"dtype": TYPES[dtype], "shape": list(shape), "data_offsets": [place, end]}
            self._places[name], place = place, end
        text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor of the type and shape that were announced; each name once.

        Raises:
            ValueError: another name, type or shape, or a name that was written before.
        """
        if name not in self._shapes:
            raise ValueError(f"{self._where}: no tensor {name!r} was announced")
        if name not in self._waiting:
            raise ValueError(f"{self._where}: {name!r} is written already")
        dtype, shape = self._shapes[name]
        if (tensor.dtype, tuple(tensor.shape)) != (dtype, shape):
            announced, given = f"{dtype} {list(shape)}", f"{tensor.dtype} {list(tensor.shape)}"
            raise ValueError(f"{self._where}: {name!r} was announced as {announced}, got {given}")
        self._file.seek(self._start + self._places[name])
        self._file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self._waiting.remove(name)

    def finish(self) -> None:
        """Raise ``ValueError`` where an announced tensor was not written."""
        if self._waiting:
            missing = min(self._waiting)
            raise ValueError(
                f"{self._where}: {len(self._waiting)} announced tensors were not written, first {missing!r}"
            )


@contextmanager
def write_stream(path: Path, shapes: Shapes, header: Mapping[str, str]) -> Iterator[TensorWriter]:
    """Write a safetensors file a tensor at a time; it appears under its name when the block ends well, and whole.

    Raises:
        ValueError: an announced tensor was not written, or a tensor is not as it was announced.
    """
    with replacing(path) as file:
        writer = TensorWriter(file, str(path), shapes, header)
        yield writer
        writer.finish()


@contextmanager
def read_stream(path: Path) -> Iterator[Any]:
    """Yield an open ``safetensors.safe_open``, from which tensors are read one at a time.

    The file is mapped: copy what outlives the block.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is cut short or is no safetensors file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        file = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is no whole safetensors file ({error}); copy or download it again") from None
    with file:
        yield file
