"""The protocol of bridges: how features that a model predicts from latents are compared with a teacher's."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch
from torch import Tensor

from ..blocks.registry import part
from ..blocks.shapes import Image
from ..blocks.slots import PairSource, ProtocolConfig, TeacherOutput
from .answers import check_count
from .bridge_errors import POOLED, BridgeErrors, Pooling
from .latents import evenly_spaced

Predict = Callable[[Tensor], TeacherOutput]
"""Latents in model space ``[b, z, h, w]`` to features: a bridge, or a baseline of one."""


@dataclass(frozen=True)
class MeasuredPair:
    """One pair under the protocol, a batch of one: what was predicted, what is true, and the numbers of it."""

    index: int
    total: int
    name: str
    prediction: TeacherOutput
    target: TeacherOutput
    scores: dict[str, Any]


@part("protocol/bridge_val")
class BridgeValConfig(ProtocolConfig):
    """Predicted features against a teacher's, on pairs, as on the card of kingsidharth/sd_vae_2_dino_v2_bridge.

    Numbers and their names: ``bridge_errors.py``. Latents are clean and as the pack has them, features float32.

    Attributes:
        most: at most so many pairs, evenly spaced, which is also the number of candidates of retrieval; the card had
            2,200. None takes all.
        ks: of retrieval; those that are not below the number of candidates are left out.
        pooling: how the tokens of an image become one row to retrieve by: all of them in order ("flatten"), their mean
            ("meanpool"), or the class token ("cls"), where both sides have one.
        seed: of the images that the control has instead.
        batch: pairs that are predicted together.
        fitted: at most so many training pairs, evenly spaced, fit the baselines.
        decoded: at most so many of the pairs, evenly spaced, are decoded and shown to the teacher.
        timed: pairs in a batch whose time is taken.
    """

    most: int | None = 2200
    ks: tuple[int, ...] = (1, 5, 10)
    pooling: tuple[Pooling, ...] = ("flatten", "meanpool", "cls")
    seed: int = 0
    batch: int = 64
    fitted: int = 4096
    decoded: int = 256
    timed: int = 8

    def __post_init__(self) -> None:
        for name in ("most", "batch", "fitted", "decoded", "timed"):
            check_count(getattr(self, name), where=name)
        for k in self.ks:
            check_count(k, where="ks")
        repeated = [name for name in POOLED if self.pooling.count(name) > 1]
        if repeated:
            raise ValueError(f"pooling: {repeated[0]!r} stands there more than once")

    def prepare(self, image: PIL.Image.Image, *, stride: int) -> Image:
        """Raises ``ValueError``: a bridge is measured on pairs, which were made of prepared pictures."""
        raise ValueError(_needs_pairs(self))

    def measure(
        self,
        model: Any,
        images: Any,
        *,
        visit: Callable[[MeasuredPair], None] | None = None,
    ) -> dict[str, Any]:
        """Return ``metrics`` by name, ``maps`` over the grid, and a row for each pair under ``images``.

        ``model`` maps latents to features; ``images`` are a :class:`~latelier.blocks.PairSource`.

        Raises:
            ValueError: no pairs, or predictions that are not finite or do not have the shape of the features.
        """
        if not isinstance(images, PairSource):
            raise ValueError(_needs_pairs(self))
        return self.measure_on(model, images, self.indices(images), visit=visit)

    def indices(self, pairs: PairSource, most: int | None = None) -> list[int]:
        """Which pairs are measured, ``most`` at most."""
        limits = [limit for limit in (most, self.most) if limit is not None]
        return list(evenly_spaced(len(pairs), min([len(pairs), *limits])))

    def measure_on(
        self,
        predict: Predict,
        pairs: PairSource,
        indices: Sequence[int],
        *,
        visit: Callable[[MeasuredPair], None] | None = None,
    ) -> dict[str, Any]:
        """The same on pairs of the caller's choice."""
        if not indices:
            raise ValueError("pairs: there are none to measure")
        errors, rows = BridgeErrors(), []
        for chosen, latents, target in batches(pairs, indices, self.batch):
            names = [pairs.name(index) for index in chosen]
            with torch.no_grad():
                prediction = predict(latents)
            try:
                scores = errors.take(prediction, target, pooling=self.pooling)
            except ValueError as error:
                span = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
                raise ValueError(f"{span}: {error}") from error
            for i, (name, score) in enumerate(zip(names, scores, strict=True)):
                row = {"name": name, "height": pairs.resolution, "width": pairs.resolution} | score
                rows.append(row)
                if visit is not None:
                    one, other = (TeacherOutput(x.patches[i : i + 1], x.grid) for x in (prediction, target))
                    visit(MeasuredPair(len(rows) - 1, len(indices), name, one, other, row))
        return {"metrics": errors.report(ks=self.ks, seed=self.seed), "maps": errors.maps(), "images": rows}


def batches(
    pairs: PairSource, indices: Sequence[int], batch: int
) -> Iterator[tuple[Sequence[int], Tensor, TeacherOutput]]:
    """Indices, latents and features of pairs, ``batch`` at a time."""
    for start in range(0, len(indices), batch):
        chosen = indices[start : start + batch]
        yield chosen, *pairs.read(chosen)


def _needs_pairs(protocol: ProtocolConfig) -> str:
    return (
        f"{protocol.kind}: measures bridges on pairs of latents and features, which `latelier pack` makes, not models "
        "on pictures; for an autoencoder take 'protocol/archetype_psnr'"
    )
