"""Small packs of pairs for tests: a space that needs no weights, and what is asked of every pack."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latelier.blocks import (
    Codec,
    HOGConfig,
    LatentSpace,
    LatentSpaceConfig,
    LatentSpec,
    Loaded,
    ScaleShiftConfig,
    TeacherConfig,
    fingerprint,
    part,
)
from latelier.families import PairFolder
from latelier.training import FolderSource, list_images, pack

SIDE = 32
HOG = HOGConfig(patch=8, cells=1)


class ColourCodec(Codec):
    """Mean colours of squares of 8 pixels and their sum, with a spread of 0.1."""

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        colours = F.avg_pool2d(images, 8)
        mode = torch.cat([colours, colours.sum(1, keepdim=True) / 2], 1)
        return mode, torch.full_like(mode, 0.1)

    def reconstruct(self, raw: Tensor) -> Tensor:
        return F.interpolate(raw[:, :3], scale_factor=8)


@part("latent_space/colours")
class ColourSpaceConfig(LatentSpaceConfig):
    """Normalised by one number; ``name`` makes another space of the same numbers."""

    scale: float = 2.0
    sampled: bool = False
    name: str = "colours"

    @property
    def spec(self) -> LatentSpec:
        norm = ScaleShiftConfig(scale=self.scale)
        return LatentSpec(
            source=self.name,
            channels=4,
            stride=8,
            normalisation=fingerprint(norm.statistics(4)),
            posterior="sample" if self.sampled else "mode",
        )

    def build(self) -> LatentSpace:
        return LatentSpace(self, lambda: Loaded(ColourCodec()), norm=ScaleShiftConfig(scale=self.scale))


SPACE = ColourSpaceConfig()


def folder_of(pictures: Path, **options: Any) -> FolderSource:
    return FolderSource(pictures, list_images(pictures), **options)


def make(
    pictures: Path,
    out: Path,
    space: LatentSpaceConfig = SPACE,
    teacher: TeacherConfig = HOG,
    *,
    on_error: Any = "raise",
    **options: Any,
) -> PairFolder:
    """Eight pictures in shards of three."""
    settings: dict[str, Any] = {"resolution": SIDE, "shard_pictures": 3, "batch": 4, "device": "cpu"} | options
    return pack(space, teacher, folder_of(pictures, on_error=on_error), out, **settings)


def named(name: str) -> ColourSpaceConfig:
    """Another space with the same numbers."""
    return replace(SPACE, name=name)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


def times(folder: Path) -> dict[str, int]:
    """When each file of a shard was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name.count("-")}


def message(error: type[Exception], work: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        work()
    return str(caught.value)
