"""Probes of latents against a teacher's features: likeness, and retrieval by predicted tokens.

Both look at the images of the protocol. Where those are few, ``tile`` cuts them into squares. A teacher that is not
named is the one of the run's recipe.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor

from ..blocks.draws import address
from ..blocks.grids import GridConfig, StrictGridConfig
from ..blocks.registry import part
from ..blocks.shapes import Latent, Tokens
from ..blocks.slots import (
    Columns,
    ImageSource,
    ProbeConfig,
    ProbeContext,
    ProtocolConfig,
    TeacherConfig,
    TeacherOutput,
)
from .answers import Numbers, check_count, row_columns
from .linear import RidgeReadout
from .neighbours import retrieval
from .protocols import frozen, placed_like
from .references import Reference, reference
from .representations import Representations, collect, described_batches, identity
from .similarity import cknna, linear_cka, mutual_knn
from .tiles import tiled
from .token_errors import TokenErrors


@part("probe/similarity")
class SimilarityProbeConfig(ProbeConfig):
    """Likeness of latents and a teacher's patch tokens, both averaged over positions.

    ``cka_N<n>`` and ``cka_unbiased_N<n>`` are linear CKA, ``cknna<k>_N<n>`` and ``mutual_knn<k>_N<n>`` look at the k
    nearest by cosine, over n images (see ``similarity.py``). The row "shuffled" is the control: the same numbers with
    the teacher's rows in another order.

    Attributes:
        k: neighbours, at least 2; as REPA reports it.
        tile: cut images into squares of so many pixels.
        most: at most so many images or tiles, evenly spaced; None takes all.
    """

    better = "higher"

    shorthand: ClassVar[str] = "teacher"

    teacher: TeacherConfig | None = None
    k: int = 10
    tile: int | None = None
    most: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ValueError(f"k: must be at least 2, got {self.k}")
        check_count(self.tile, where="tile")
        check_count(self.most, where="most")

    def measure(
        self,
        model: Any,
        images: ImageSource,
        protocol: ProtocolConfig,
        *,
        context: ProbeContext = ProbeContext(),
        on_image: Callable[[int, int], None] | None = None,
    ) -> dict[str, Any]:
        """``model`` needs ``encode`` and ``stride``."""
        ref, source = reference(self, self.teacher, model, context), tiled(images, self.tile)
        count, least = min(len(source), self.most or len(source)), max(self.k + 1, 4)
        if count < least:
            raise ValueError(
                f"{self.kind}: k={self.k} needs at least {least} images, got {count}; "
                "evaluate more, lower k, or cut them into tiles"
            )
        ours, theirs = collect(
            [model, ref.teacher], source, protocol=protocol, stride=model.stride, most=self.most, on_image=on_image
        )
        generator = torch.Generator().manual_seed(address(self.seed, self.kind, count))
        order = torch.randperm(count, generator=generator)
        rows = {ref.name: self._numbers(ours.mean, theirs.mean)}
        rows[f"{ref.name}, shuffled"] = self._numbers(ours.mean, theirs.mean[order])
        return ref.as_json() | {"set": identity(ours), "rows": rows}

    def _numbers(self, x: Tensor, y: Tensor) -> Numbers:
        n = len(x)
        values = {
            f"cka_N{n}": linear_cka(x, y),
            f"cka_unbiased_N{n}": linear_cka(x, y, unbiased=True),
            f"cknna{self.k}_N{n}": cknna(x, y, self.k),
            f"mutual_knn{self.k}_N{n}": mutual_knn(x, y, self.k),
        }
        return {name: value if math.isfinite(value) else None for name, value in values.items()}

    def columns(self, answer: Mapping[str, Any]) -> Columns:
        """All but the control."""
        return row_columns(self, answer, lambda row, number: row == answer["teacher_name"])


@part("probe/retrieval")
class RetrievalProbeConfig(ProbeConfig):
    """How well a teacher's tokens are predicted from latents: retrieval of each image by its prediction.

    ``r@<k>_<pooling>_N<n>`` is the share of n images whose true tokens are among the k nearest to the predicted ones;
    ``..._shuffled`` is its control. "meanpool" averages the tokens of an image, "flatten" puts them side by side, which
    needs grids of one size; the row "class token" compares those. Beside them stand the errors of ``token_errors.py``.

    Rows are predictors: "head", the run's alignment head or token head, where it was trained on this teacher;
    "ridge", a linear readout of the latent at the same position, fitted on at most ``fit_images`` images that the run
    learned from; "class token", that of the model's token head.

    Attributes:
        grid: how tokens are compared where the teacher's grid is not that of the latents; the default refuses.
        tile: cut images, those for fitting as well, into squares of so many pixels.
        most: at most so many images or tiles, evenly spaced; None takes all.
    """

    better = "higher"

    shorthand: ClassVar[str] = "teacher"

    teacher: TeacherConfig | None = None
    ks: tuple[int, ...] = (1, 5, 10)
    poolings: tuple[Literal["meanpool", "flatten"], ...] = ("meanpool", "flatten")
    fit_images: int = 64
    grid: GridConfig = StrictGridConfig()
    tile: int | None = None
    most: int | None = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"ks: must be 1 or more, got {list(self.ks)}")
        check_count(self.fit_images, where="fit_images")
        check_count(self.tile, where="tile")
        check_count(self.most, where="most")

    def measure(
        self,
        model: Any,
        images: ImageSource,
        protocol: ProtocolConfig,
        *,
        context: ProbeContext = ProbeContext(),
        on_image: Callable[[int, int], None] | None = None,
    ) -> dict[str, Any]:
        """``model`` needs ``encode`` and ``stride``; with ``predict_features`` it may have a class token."""
        ref, source = reference(self, self.teacher, model, context), tiled(images, self.tile)
        if min(len(source), self.most or len(source)) < 2:
            raise ValueError(f"{self.kind}: takes at least 2 images to choose among, got 1; cut it into tiles")
        predictors = self._predictors(model, ref, protocol, context)
        if not predictors:
            raise ValueError(
                f"{self.kind}: has nothing to predict tokens of {ref.name} with; give images to fit a readout on "
                "(training), or a run whose alignment head has this teacher"
            )
        seen, errors = Representations(), {name: TokenErrors() for name in predictors}
        pooled: dict[tuple[str, str], tuple[list[Tensor], list[Tensor]]] = {}
        classes = self._class_tokens(model, ref)
        for names, batch, (ours, theirs) in described_batches(
            [model, ref.teacher], source, protocol=protocol, stride=model.stride, most=self.most, on_image=on_image
        ):
            seen.see(names, batch)
            for name, predict in predictors.items():
                predicted = TeacherOutput(predict(ours.maps), ours.tokens.grid)
                prediction, targets = self.grid.match(predicted, theirs.tokens, where=f"{names[0]}, {ref.name}")
                errors[name].update(prediction, targets)
                for pooling in self.poolings:
                    pair = pooled.setdefault((name, pooling), ([], []))
                    for rows, tokens in zip(pair, (prediction, targets), strict=True):
                        rows.extend(_pooled(tokens, pooling))
            if classes is not None and theirs.cls is not None:
                pair = pooled.setdefault(("class token", "cls"), ([], []))
                pair[0].extend(classes(ours.maps))
                pair[1].extend(theirs.cls)
        rows, left_out = self._rows(pooled, errors)
        answer = ref.as_json() | {"set": identity(seen), "rows": rows}
        return answer | ({"left_out": left_out} if left_out else {})

    def _rows(
        self, pooled: Mapping[tuple[str, str], tuple[list[Tensor], list[Tensor]]], errors: Mapping[str, TokenErrors]
    ) -> tuple[dict[str, Numbers], dict[str, str]]:
        rows: dict[str, Numbers] = {}
        left_out = {}
        for (name, pooling), (predictions, targets) in pooled.items():
            if len({len(t) for t in targets}) > 1:
                left_out[pooling] = "images have grids of several sizes"
                continue
            found = retrieval(
                torch.stack(predictions), torch.stack(targets), pooling=pooling, ks=self.ks, seed=self.seed
            )
            rows.setdefault(name, {}).update(found)
        for name, sums in errors.items():
            rows.setdefault(name, {}).update(sums.report())
        return rows, left_out

    def _predictors(
        self, model: Any, ref: Reference, protocol: ProtocolConfig, context: ProbeContext
    ) -> dict[str, Callable[[Latent], Tokens]]:
        found: dict[str, Callable[[Latent], Tokens]] = {}
        head, teacher = context.predict_tokens, context.teacher
        if head is not None and teacher is not None and ref.config == teacher.for_stride(model.stride):

            def by_head(latents: Latent) -> Tokens:
                with frozen(model):
                    return head(placed_like(model, latents)).float().cpu()

            found["head"] = by_head
        if context.training is not None and len(context.training):
            readout = None
            for names, _, (ours, theirs) in described_batches(
                [model, ref.teacher],
                tiled(context.training, self.tile),
                protocol=protocol,
                stride=model.stride,
                most=self.fit_images,
            ):
                positions, tokens = self.grid.match(ours.tokens, theirs.tokens, where=f"{names[0]}, {ref.name}")
                readout = readout or RidgeReadout(latent=positions.shape[2], features=tokens.shape[2])
                readout.observe(rearrange(positions, "b n z -> b z n 1"), tokens)
            assert readout is not None
            found["ridge"] = readout.solve().predict
        return found

    def _class_tokens(self, model: Any, ref: Reference) -> Callable[[Latent], Tensor] | None:
        head = getattr(model.config, "token_head", None) if hasattr(model, "predict_features") else None
        if head is None or head.features != ref.config.features:
            return None

        def by_token_head(latents: Latent) -> Tensor:
            with frozen(model):
                return model.predict_features(placed_like(model, latents)).cls.float().cpu()

        return by_token_head

    def columns(self, answer: Mapping[str, Any]) -> Columns:
        """Retrieval at the smallest k, with its control, and the cosine."""
        first = f"r@{min(self.ks)}_", "cos_token"
        return row_columns(self, answer, lambda row, number: number.startswith(first))


def _pooled(tokens: Tokens, pooling: str) -> Tensor:
    return tokens.double().mean(dim=1) if pooling == "meanpool" else tokens.float().flatten(1)
