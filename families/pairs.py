"""A pack of pairs: a folder of shards and an index, read as rows of latents and features.

``pairs.json`` holds the layout and the pictures of each shard. It is written before the first shard, so that every run
of the writer has the same plan; a shard is whole once its sidecar is there (see ``pair_shards.py``).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..blocks.latent_space import LatentSpec
from ..blocks.slots import LatentSpaceConfig, TeacherConfig, TeacherOutput
from ..blocks.teacher_spec import TeacherSpec
from .files import CheckpointError, read_config, write_atomically
from .pair_shards import (
    CLS,
    FEATURES,
    LATENTS,
    SIDECARS,
    THUMBNAILS,
    PairLayout,
    PairsError,
    PairShard,
    open_arrays,
    problem_of,
    read_sidecar,
    sidecar,
)

INDEX = "pairs.json"
AGAIN = "`latelier pack` with the same arguments"


@dataclass(frozen=True)
class PlannedShard:
    """A shard in the index, made or not."""

    number: int
    pictures: tuple[str, ...]


def write_index(folder: Path, layout: PairLayout, shards: Sequence[PlannedShard]) -> None:
    content = {
        "layout": layout.encoded(),
        "shards": [{"number": shard.number, "pictures": list(shard.pictures)} for shard in shards],
    }
    write_atomically(folder / INDEX, json.dumps(content, indent=1) + "\n")


def read_index(folder: Path) -> tuple[PairLayout, list[PlannedShard]]:
    """Read an index.

    Raises:
        PairsError: it is no index.
    """
    path = folder / INDEX
    try:
        content = read_config(path)
    except CheckpointError as error:
        raise PairsError(f"{error}; delete it, and {AGAIN} rebuilds it from the shards") from None
    layout = PairLayout.decoded(content.get("layout"), where=str(path))
    try:
        shards = [PlannedShard(int(shard["number"]), tuple(shard["pictures"])) for shard in content["shards"]]
    except (KeyError, TypeError, ValueError) as error:
        raise PairsError(
            f"{path}: lists no shards ({error!r}); delete it, and {AGAIN} rebuilds it from the shards"
        ) from None
    return layout, shards


class PairFolder:
    """The pairs in a folder: row ``i`` is a view of a picture. Files are mapped when they are first needed.

    Opening reads index and sidecars alone.

    Raises:
        FileNotFoundError: the folder holds no pack.
        PairsError: its index is lost or damaged, or a shard is not made yet, missing, or of other pairs.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        if not (self.folder / INDEX).is_file():
            if any(self.folder.glob(SIDECARS)):
                raise PairsError(f"{self.folder}: has shards of pairs but no {INDEX}; {AGAIN} rebuilds it from them")
            raise FileNotFoundError(
                f"{self.folder}: holds no pack of pairs; latelier pack --space SPACE --teacher TEACHER --data DIR "
                f"--out {self.folder} makes one"
            )
        self.layout, planned = read_index(self.folder)
        self.shards: dict[int, PairShard] = {}
        for shard in planned:
            self.shards[shard.number] = self._whole(shard)
        self.pictures: list[str] = []
        """The picture of each row."""
        self.names: list[str] = []
        """Picture and view of each row."""
        self._places: list[tuple[int, int]] = []
        for number, shard in self.shards.items():
            self.names += self.layout.row_names(shard.pictures)
            self.pictures += [picture for picture in shard.pictures for _ in self.layout.views]
            self._places += [(number, row) for row in range(shard.rows)]
        self._open: dict[int, dict[str, NDArray[Any]]] = {}

    def _whole(self, planned: PlannedShard) -> PairShard:
        problem = problem_of(self.folder, planned.number, layout=self.layout)
        if problem is None:
            shard = read_sidecar(self.folder / sidecar(planned.number))
            if {*shard.pictures, *shard.unreadable} == set(planned.pictures):
                return shard
            problem = "is not the one that the index knows"
        raise PairsError(
            f"{self.folder / sidecar(planned.number)}: {problem}; {AGAIN} makes it anew and leaves the others as they "
            "are"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Workers map the files anew."""
        return self.__dict__ | {"_open": {}}

    def __len__(self) -> int:
        return len(self._places)

    @property
    def latent_spec(self) -> LatentSpec:
        return self.layout.latent_spec

    @property
    def teacher_spec(self) -> TeacherSpec:
        return self.layout.teacher_spec

    @property
    def space(self) -> LatentSpaceConfig:
        """Whose latents, as it was described."""
        return self.layout.space

    @property
    def teacher(self) -> TeacherConfig:
        """What made the features."""
        return self.layout.teacher

    @property
    def resolution(self) -> int:
        return self.layout.resolution

    def check(self, *, verify: bool = False) -> None:
        """Raise :class:`PairsError` where a shard is not whole; ``verify`` reads all bytes and compares checksums."""
        for number in self.shards:
            problem = problem_of(self.folder, number, layout=self.layout, verify=verify)
            if problem:
                raise PairsError(f"{self.folder}: {problem}; {AGAIN} and --verify makes it anew")

    def read(self, rows: Sequence[int]) -> tuple[Tensor, TeacherOutput]:
        """Latents ``[b, z, h, w]`` and features of rows, float32."""
        cls = self._gather(CLS, rows) if self.layout.has_cls else None
        features = TeacherOutput(patches=self._gather(FEATURES, rows), grid=self.layout.grid, cls=cls)
        return self._gather(LATENTS, rows), features

    def thumbnail(self, row: int) -> Tensor | None:
        """What was seen, uint8 ``[3, 64, 64]``, where it was kept."""
        if not self.layout.has_thumbnails:
            return None
        number, place = self._places[row]
        return torch.from_numpy(np.array(self._shard(number)[THUMBNAILS][place]))

    def _gather(self, array: str, rows: Sequence[int]) -> Tensor:
        found = [self._shard(number)[array][place] for number, place in (self._places[row] for row in rows)]
        return torch.from_numpy(np.stack(found).astype(np.float32))

    def _shard(self, number: int) -> dict[str, NDArray[Any]]:
        if number not in self._open:
            self._open[number] = open_arrays(self.folder, number, self.shards[number])
        return self._open[number]
