"""Pairs of latents and features as data: packed by `latelier pack`, or the ``.npy`` files of somebody else.

Which pictures are held out follows from their names by a hash, so that a pack that grows moves none of them; all views
of a picture are on one side.
"""

import fnmatch
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..blocks.latent_module import LatentSpace
from ..blocks.latent_space import LatentSpec, check_scale
from ..blocks.registry import PartError, part
from ..blocks.slots import DataConfig, LatentSpaceConfig, PairSource, TeacherOutput
from ..blocks.teacher_spec import TeacherSpec
from ..families.pairs import PairFolder
from .sources import hold_out

SCALE_ROWS = 256
"""Of somebody else's files, to look at the scale of latents."""


class PackedPairs:
    """Some rows of a pack."""

    def __init__(self, pack: PairFolder, rows: Sequence[int]) -> None:
        self.pack, self.rows = pack, rows
        layout = pack.layout
        self.latent_spec: LatentSpec = layout.latent_spec
        self.teacher_spec: TeacherSpec | None = layout.teacher_spec
        self.resolution, self.grid, self.features = layout.resolution, layout.grid, layout.features
        self.latent_shape, self.has_cls = layout.latent_shape, layout.has_cls

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return self.pack.names[self.rows[index]]

    def read(self, indices: Sequence[int]) -> tuple[Tensor, TeacherOutput]:
        return self.pack.read([self.rows[index] for index in indices])

    def thumbnail(self, index: int) -> Tensor | None:
        return self.pack.thumbnail(self.rows[index])


def held_out_pictures(names: Sequence[str], *, share: float, patterns: Sequence[str] = (), where: str) -> set[str]:
    """Those of the pictures that are held out.

    Raises:
        PartError: a single picture, or patterns that match none or all.
    """
    pictures = list(dict.fromkeys(names))
    if not patterns:
        if len(pictures) < 2:
            raise PartError(where, f"has {len(pictures)} picture and none can be held out; pack more")
        return hold_out(pictures, share)
    found = {name for name in pictures if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)}
    if not found or len(found) == len(pictures):
        raise PartError(
            where,
            f"the patterns match {len(found)} of {len(pictures)} pictures, such as {pictures[0]!r}; "
            "they must match some and leave some",
        )
    return found


@part("data/pairs")
class PairsConfig(DataConfig):
    """Pairs that `latelier pack` made.

    Attributes:
        path: the folder of the pack.
        held_out_share: of the pictures, which are not trained on: 1 % as on the bridge's card; one at least.
        held_out_names: shell patterns of pictures to hold out instead, such as "*astronaut*".
    """

    path: str
    held_out_share: float = 0.01
    held_out_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_share(self.held_out_share)

    def training(self) -> PairSource:
        return self._rows(False)

    def held_out(self) -> PairSource:
        return self._rows(True)

    def everything(self) -> PairSource:
        """All rows."""
        pack = PairFolder(self.path)
        return PackedPairs(pack, range(len(pack)))

    def _rows(self, held_out: bool) -> PackedPairs:
        pack = PairFolder(self.path)
        apart = held_out_pictures(
            pack.pictures,
            share=self.held_out_share,
            patterns=self.held_out_names,
            where="data.held_out_names" if self.held_out_names else "data.path",
        )
        rows = [row for row, picture in enumerate(pack.pictures) if (picture in apart) is held_out]
        return PackedPairs(pack, rows)


# --- somebody else's files ----------------------------------------------------------------------------------------


class NpyPairs:
    """Some rows of mapped files; raw latents are normalised as they are read."""

    def __init__(
        self,
        latents: NDArray[Any],
        features: NDArray[Any],
        cls: NDArray[Any] | None,
        rows: Sequence[int],
        *,
        space: LatentSpace,
        raw: bool,
        resolution: int,
    ) -> None:
        self._latents, self._features, self._cls, self.rows = latents, features, cls, rows
        self._space, self._raw = space, raw
        side = math.isqrt(features.shape[1])
        self.latent_spec, self.teacher_spec = space.spec, None
        self.resolution, self.grid, self.features = resolution, (side, side), int(features.shape[2])
        steps = resolution // space.stride
        self.latent_shape, self.has_cls = (space.channels, steps, steps), cls is not None

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return f"row-{self.rows[index]}"

    def read(self, indices: Sequence[int]) -> tuple[Tensor, TeacherOutput]:
        rows = [self.rows[index] for index in indices]
        latents, patches = (_float32(array, rows) for array in (self._latents, self._features))
        cls = None if self._cls is None else _float32(self._cls, rows)
        if self._raw:
            latents = self._space.normalise(latents)
        return latents, TeacherOutput(patches=patches, grid=self.grid, cls=cls)

    def thumbnail(self, index: int) -> Tensor | None:
        """None: there are no images."""
        return None


def _float32(array: NDArray[Any], rows: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.stack([array[row] for row in rows]).astype(np.float32))


@part("data/npy_pairs")
class NpyPairsConfig(DataConfig):
    """Two ``.npy`` files that belong together row by row, such as those of kingsidharth/sd_vae_2_dino_v2_bridge.

    They are mapped, not read. What made the features cannot be checked.

    Attributes:
        latents: ``[n, z, h, w]``.
        features: ``[n, tokens, f]``, patch tokens of a square grid, row by row.
        cls: ``[n, f]``, or none.
        space: whose latents.
        stored: "raw" as the autoencoder gives them, or "normalised" as models take them. The card does not say which
            its own are; a warning tells where their scale is not that of the space.
        resolution: side of the images in pixels.
        held_out_share: of the rows, chosen by a hash of their number: 1 % as on the card.
    """

    latents: str
    features: str
    space: LatentSpaceConfig
    cls: str = ""
    stored: Literal["raw", "normalised"] = "raw"
    resolution: int = 256
    held_out_share: float = 0.01

    def __post_init__(self) -> None:
        _check_share(self.held_out_share)
        if self.resolution < 1 or self.resolution % self.space.stride:
            raise ValueError(
                f"resolution: must be divisible by the stride {self.space.stride} of the latents, got {self.resolution}"
            )

    def training(self) -> PairSource:
        return self._rows(False)

    def held_out(self) -> PairSource:
        return self._rows(True)

    def everything(self) -> PairSource:
        """All rows."""
        return self._rows(None)

    def _rows(self, held_out: bool | None) -> NpyPairs:
        latents, features = _mapped(self.latents, "data.latents", 4), _mapped(self.features, "data.features", 3)
        cls = _mapped(self.cls, "data.cls", 2) if self.cls else None
        space = self.space.build()
        self._check(latents, features, cls, space)
        rows: Sequence[int] = range(len(latents))
        if held_out is not None:
            names = [f"row-{row}" for row in rows]
            apart = held_out_pictures(names, share=self.held_out_share, where="data.latents")
            rows = [row for row, name in enumerate(names) if (name in apart) is held_out]
        raw = self.stored == "raw"
        found = NpyPairs(latents, features, cls, rows, space=space, raw=raw, resolution=self.resolution)
        seen = range(0, len(found), max(1, len(found) // SCALE_ROWS))
        check_scale(found.read(list(seen)[:SCALE_ROWS])[0], space.spec, where=self.latents)
        return found

    def _check(
        self, latents: NDArray[Any], features: NDArray[Any], cls: NDArray[Any] | None, space: LatentSpace
    ) -> None:
        side = self.resolution // self.space.stride
        wanted = (self.space.channels, side, side)
        if self.stored == "raw":
            p = space.packing
            wanted = (self.space.channels // p**2, side * p, side * p)
        if latents.shape[1:] != wanted:
            raise PartError(
                "data.latents",
                f"{self.stored} latents of {space.name!r} for images of {self.resolution} pixels are "
                f"{list(wanted)} a row, got {list(latents.shape[1:])}; name their space, resolution and form",
            )
        others = {"data.features": features} | ({} if cls is None else {"data.cls": cls})
        for where, array in others.items():
            if len(array) != len(latents):
                raise PartError(where, f"must have a row for each of the {len(latents)} latents, got {len(array)}")
        if cls is not None and cls.shape[1] != features.shape[2]:
            raise PartError("data.cls", f"must have {features.shape[2]} features as patches do, got {cls.shape[1]}")
        if math.isqrt(features.shape[1]) ** 2 != features.shape[1]:
            raise PartError("data.features", f"must have a square number of tokens a row, got {features.shape[1]}")


def _mapped(path: str, where: str, dimensions: int) -> NDArray[Any]:
    file = Path(path).expanduser()
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise PartError(where, f"{file}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise PartError(where, f"{file}: is no whole .npy file ({error})") from None
    if not isinstance(array, np.ndarray) or array.ndim != dimensions or array.dtype.kind != "f" or not len(array):
        kind = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise PartError(where, f"{file}: must hold floating-point rows of {dimensions} dimensions in all, got {kind}")
    return array


def _check_share(share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"held_out_share: must lie between 0 and 1, got {share}")
