"""What a bridge must beat: always the mean token, a linear map without a body, and decoding for the teacher itself.

The linear baseline is ridge regression in closed form on the stem's own neighbourhood. Where a token stands for s x s
latent positions, all their channels are its input, ordered c·s² + i·p + j: a linear patchify, which is the best that
a linear stem of that stride followed by a 1x1 could do without overlapping. Where a position stands for s x s tokens,
it predicts them all. A class token is read from the mean over positions. The penalty is chosen on training pairs.

``DecodeThenTeacher`` is what one does without a bridge: decode the latent and show the image to the teacher. Its time
is the number that a bridge must beat, its errors tell how much of the teacher's features a latent holds.
"""

import statistics
import time
from collections.abc import Callable, Collection
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ..blocks.patch import patchify, unpatchify
from ..blocks.slots import PairSource, TeacherConfig, TeacherOutput
from ..blocks.teacher_spec import TeacherSpec
from .linear import TunedReadout

BUDGET = 20.0
"""Seconds that are spent on timing one thing, unless a single run takes longer."""


class LinearStem:
    """Ridge regression from latents to features, and their means; learns by :meth:`observe` and :meth:`solve`.

    Raises:
        ValueError: neither grid is a multiple of the other.
    """

    def __init__(self, *, latent: tuple[int, int, int], grid: tuple[int, int], features: int) -> None:
        channels, height, width = latent
        strides = {_stride(side, count) for side, count in zip((height, width), grid, strict=True)}
        if len(strides) > 1 or None in strides:
            raise ValueError(
                f"linear: latents of {height}x{width} and {grid[0]}x{grid[1]} tokens have no whole stride between them"
            )
        (self.stride, self.factor) = strides.pop() or (1, 1)
        self.grid, self.features = grid, features
        self.patches = TunedReadout(latent=channels * self.stride**2, features=features * self.factor**2)
        self.cls = TunedReadout(latent=channels * self.stride**2, features=features)

    def observe(self, latents: Tensor, target: TeacherOutput) -> None:
        """Take in training pairs."""
        x = patchify(latents, self.stride)
        maps = rearrange(target.patches, "b (h w) f -> b f h w", h=target.grid[0])
        self.patches.observe(x, rearrange(patchify(maps, self.factor), "b f h w -> b (h w) f"))
        if target.cls is not None:
            self.cls.observe(x.mean(dim=(2, 3), keepdim=True), target.cls[:, None])

    def solve(self) -> "LinearStem":
        self.patches.solve()
        if self.cls.count:
            self.cls.solve()
        return self

    def __call__(self, latents: Tensor) -> TeacherOutput:
        x = patchify(latents, self.stride)
        cls = self.cls.predict(x.mean(dim=(2, 3), keepdim=True))[:, 0].float() if self.cls.count else None
        return self._described(self.patches.predict(x), cls)

    def mean(self, latents: Tensor) -> TeacherOutput:
        """The mean token of the training pairs, whatever the latents."""
        each = self.patches.mean_token.reshape(self.features, -1).mean(dim=1)
        count = self.grid[0] * self.grid[1]
        cls = self.cls.mean_token.expand(len(latents), -1).float() if self.cls.count else None
        return TeacherOutput(each.expand(len(latents), count, -1).float(), self.grid, cls)

    def _described(self, squares: Tensor, cls: Tensor | None) -> TeacherOutput:
        maps = unpatchify(rearrange(squares, "b (h w) f -> b f h w", h=self.grid[0] // self.factor), self.factor)
        return TeacherOutput(rearrange(maps, "b f h w -> b (h w) f").float(), self.grid, cls)


class DecodeThenTeacher:
    """Latents to images by the space's decoder, and images to features by the teacher.

    Raises:
        ValueError: the autoencoder or the teacher is not the one of the pairs.
        ImportError, OSError: a library or weights are missing.
    """

    def __init__(
        self, space: Any, teacher: TeacherConfig, *, device: torch.device, accept: Collection[str] = ()
    ) -> None:
        self.space = space.to(device)
        self.teacher: Any = teacher.build().eval().to(device)
        self.device, self.accept = device, accept

    def __call__(self, latents: Tensor) -> TeacherOutput:
        with torch.no_grad():
            images = self.space.decode(latents.to(self.device)).float().clamp(-1, 1)
            return self.teacher((images + 1) / 2)

    def check(self, pairs: PairSource) -> None:
        """Try it on a pair, and raise ``ValueError`` where its parts or its grid are not those of the pairs."""
        latents, target = pairs.read([0])
        found = self(latents)
        self.space.spec.check(pairs.latent_spec, where="pairs")
        spec: TeacherSpec | None = pairs.teacher_spec
        if spec is not None:
            self.teacher.spec.check(spec, where="pairs", accept=self.accept)
        if found.grid != target.grid:
            raise ValueError(f"its grid is {found.grid}, that of the pairs {target.grid}")


def _stride(side: int, count: int) -> tuple[int, int] | None:
    """Positions a side of a token, and tokens a side of a position, of which one is 1."""
    if side % count == 0:
        return side // count, 1
    return (1, count // side) if count % side == 0 else None


def seconds_per_image(call: Callable[[], Any], images: int, *, device: torch.device, runs: int = 5) -> float:
    """Median of at most ``runs`` runs after one that is not counted, over the number of images in each."""
    taken: list[float] = []
    for run in range(runs + 1):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
        if run and sum(taken) > BUDGET:
            break
    return statistics.median(taken[1:]) / images
