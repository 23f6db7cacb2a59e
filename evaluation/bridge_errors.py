"""How well a teacher's features are predicted: bridge.md, section 9, as float64 sums that add over parts of a set.

Beside the numbers of ``token_errors.py``:

    selfsim_err      mean over images of the mean |cos(p_i, p_j) - cos(t_i, t_j)| over pairs of tokens
    cos_class        cosine of the class token, mean over images, where both sides have one
    card_loss        the loss of the reference's card: 1 - cos + 0.25 mean over channels of (p/|p| - t/|t|)² + 0.05 MSE
    r@k_{flatten|meanpool|cls}_N{n}   see ``neighbours.py``; ``..._shuffled`` is the control, about k/n

and maps over the positions of the grid: ``cos_error`` = mean over images of 1 - cos(p, t), and ``nmse`` = the sum over
images of |p - t|² over that of |t|². Where targets are zero, as flat patches of HOG, there is nothing to say: None.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..blocks.bridge_losses import bridge_loss
from ..blocks.slots import TeacherOutput
from .latents import Sum
from .neighbours import retrieval
from .self_similarity import selfsim_error
from .token_errors import TokenErrors

Pooling = Literal["flatten", "meanpool", "cls"]

Rows = tuple[Tensor, Tensor]
"""Predictions and targets, a row for each image, float32."""

POOLED: dict[Pooling, Callable[[TeacherOutput], Tensor | None]] = {
    "flatten": lambda said: said.patches.flatten(1),
    "meanpool": lambda said: said.patches.mean(dim=1),
    "cls": lambda said: said.cls,
}
"""How the tokens of an image become the row that retrieval compares."""


@dataclass
class BridgeErrors(TokenErrors):
    """Sums over images of predictions and targets on one grid, and a row of each image for retrieval."""

    images: int = 0
    selfsim: Sum = 0
    card: Sum = 0
    classes: int = 0
    class_cosines: Sum = 0
    cosine_map: Sum = 0
    directed_map: Sum = 0
    error_map: Sum = 0
    energy_map: Sum = 0
    grids: list[tuple[int, int]] = field(default_factory=list)
    flatten: list[Rows] = field(default_factory=list)
    meanpool: list[Rows] = field(default_factory=list)
    cls: list[Rows] = field(default_factory=list)

    def take(
        self, prediction: TeacherOutput, target: TeacherOutput, *, pooling: Sequence[Pooling] = ()
    ) -> list[dict[str, float | None]]:
        """Add a batch; return ``cos_token``, ``nmse_energy`` and ``selfsim_err`` of each of its images.

        Raises:
            ValueError: they lie on two grids, have other widths, or the prediction is not finite.
        """
        prediction, target = _numbers(prediction), _numbers(target)
        _check(prediction, target)
        self.update(prediction.patches, target.patches)
        p, t = prediction.patches.double(), target.patches.double()
        seen = (t.abs().amax(dim=2) > 0).double()
        cosines, error, energy = F.cosine_similarity(p, t, dim=2) * seen, (p - t).square().sum(2), t.square().sum(2)
        gaps = _gaps(prediction, target)
        self.images += len(p)
        self.grids = [*self.grids, *({target.grid} - set(self.grids))]
        self.selfsim = self.selfsim + gaps.sum()
        self.card = self.card + len(p) * bridge_loss(prediction, target, preset="card")[0].double()
        self.cosine_map, self.directed_map = self.cosine_map + cosines.sum(0), self.directed_map + seen.sum(0)
        self.error_map, self.energy_map = self.error_map + error.sum(0), self.energy_map + energy.sum(0)
        if prediction.cls is not None and target.cls is not None:
            self.classes += len(p)
            found = F.cosine_similarity(prediction.cls.double(), target.cls.double(), dim=1)
            self.class_cosines = self.class_cosines + found.sum()
        for name in pooling:
            rows = POOLED[name](prediction), POOLED[name](target)
            if rows[0] is not None and rows[1] is not None:
                getattr(self, name).append(rows)
        return [
            {
                "cos_token": _share(c.sum(), s.sum()),
                "nmse_energy": _share(e.sum(), n.sum()),
                "selfsim_err": _finite(g),
            }
            for c, s, e, n, g in zip(cosines, seen, error, energy, gaps, strict=True)
        ]

    def report(self, *, ks: Sequence[int] = (1, 5, 10), seed: int = 0) -> dict[str, float | None]:
        """Every number by its name; retrieval where at least two images had rows.

        Raises:
            ValueError: no images were seen.
        """
        numbers = super().report()
        if self.classes:
            numbers["cos_class"] = float(self.class_cosines) / self.classes
        numbers["selfsim_err"] = _finite(torch.as_tensor(self.selfsim) / self.images)
        numbers["card_loss"] = float(self.card) / self.images
        for name in POOLED:
            rows: list[Rows] = getattr(self, name)
            predictions, targets = ([pair[side] for pair in rows] for side in (0, 1))
            possible = [k for k in ks if k < sum(map(len, targets))]
            if possible:
                numbers |= retrieval(torch.cat(predictions), torch.cat(targets), pooling=name, ks=possible, seed=seed)
        return numbers

    def maps(self) -> dict[str, Any]:
        """``grid`` = [rows, columns], and ``cos_error`` and ``nmse`` as rows of numbers.

        Raises:
            ValueError: what was seen lies on several grids.
        """
        if len(set(self.grids)) != 1:
            raise ValueError(f"grid: all pairs must lie on one, got {sorted(set(self.grids))}")
        cosine, directed, error, energy = (
            torch.as_tensor(x) for x in (self.cosine_map, self.directed_map, self.error_map, self.energy_map)
        )
        height, width = self.grids[0]
        return {
            "grid": [height, width],
            "cos_error": _nested(1 - cosine / directed, (height, width)),
            "nmse": _nested(error / energy, (height, width)),
        }


def _numbers(said: TeacherOutput) -> TeacherOutput:
    cls = None if said.cls is None else said.cls.detach().float().cpu()
    return TeacherOutput(said.patches.detach().float().cpu(), said.grid, cls)


def _check(prediction: TeacherOutput, target: TeacherOutput) -> None:
    if prediction.grid != target.grid or prediction.patches.shape != target.patches.shape:
        raise ValueError(
            f"bridge: predicts {_shape(prediction)}, and the pairs have {_shape(target)}; "
            "measure it on pairs of the teacher that it learnt from"
        )
    if not prediction.patches.isfinite().all():
        raise ValueError("bridge: its prediction is not finite; the model or its latents are damaged")


def _shape(said: TeacherOutput) -> str:
    return f"{said.grid[0]}x{said.grid[1]} tokens of {said.patches.shape[2]} features"


def _gaps(prediction: TeacherOutput, target: TeacherOutput) -> Float[Tensor, " b"]:
    """Errors of self-similarity; NaN where an image has a single token."""
    if prediction.patches.shape[1] < 2:
        return torch.full((len(prediction.patches),), torch.nan, dtype=torch.float64)
    p, t = (rearrange(x.patches, "b n f -> b f n 1") for x in (prediction, target))
    return selfsim_error(p, t)


def _share(part: Tensor, whole: Tensor) -> float | None:
    return (part / whole).item() if whole > 0 else None


def _finite(value: Tensor) -> float | None:
    return value.item() if value.isfinite() else None


def _nested(flat: Tensor, grid: tuple[int, int]) -> list[list[float | None]]:
    return [[_finite(cell) for cell in row] for row in flat.reshape(grid)]
