"""A source, a model and a protocol for evaluations that stream."""

from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latelier.blocks import HOGConfig, Part, TinyViTConfig
from latelier.evaluation import (
    FrechetConfig,
    KIDConfig,
    NativeFramingConfig,
    PRDCConfig,
    ReconstructionConfig,
    RoundConfig,
    TeacherExtractorConfig,
)

SIDE = 16


class Drawn:
    """Small smooth pictures that belong to their index; ``broken`` names one that cannot be read."""

    def __init__(self, count: int, *, broken: int | None = None, side: int = SIDE) -> None:
        self.count, self.broken, self.side = count, broken, side
        self.read_indices: list[int] = []

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"{index:05d}.png"

    def size(self, index: int) -> tuple[int, int]:
        return self.side, self.side

    def read(self, index: int) -> PIL.Image.Image:
        if index == self.broken:
            raise ValueError("cannot be read as an image (no known image format); restore it or leave it out")
        self.read_indices.append(index)
        small = np.random.default_rng(index).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        return PIL.Image.fromarray(small).resize((self.side, self.side), PIL.Image.Resampling.BICUBIC)


class Halver(nn.Module):
    """Halves pictures and enlarges them again; ``nan`` is the index after which it gives no numbers."""

    stride = 2

    def __init__(self, *, nan_after: int | None = None) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.config: Part = HOGConfig()
        self.left = nan_after

    def encode(self, images: Tensor) -> Tensor:
        return self.gain * F.avg_pool2d(images, 2)

    def decode(self, latents: Tensor, height: int, width: int, settings: Any = None) -> Tensor:
        out = F.interpolate(latents, (height, width), mode="bilinear")
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                return out * torch.nan
        return out


def protocol(**changes: Any) -> ReconstructionConfig:
    known: dict[str, Any] = {
        "crop": NativeFramingConfig(multiple=16),
        "quantise": RoundConfig(),
        "extractor": TeacherExtractorConfig(teacher=TinyViTConfig(width=8, depth=1, head_width=8, patch=8)),
        "set_metrics": (FrechetConfig(), KIDConfig(subsets=3, subset_size=5), PRDCConfig(k=2, density=True)),
    }
    return ReconstructionConfig(**known | changes)
