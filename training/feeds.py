"""What feeds a run, behind one interface: pictures that a teacher describes, or pairs of latents and features.

A feed opens the data of a recipe, checks the stages against it before anything is trained, makes the batches of steps,
and says what the objective is given of them. How a step learns is the engine's business.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from ..blocks.draws import address
from ..blocks.latent_space import LatentSpec
from ..blocks.registry import differences
from ..blocks.slots import ImageSource, PairSource, TeacherConfig, TeacherOutput
from ..blocks.teacher_spec import TeacherSpec
from .cached import CachedTeacher, computing_teacher
from .loader import Batch, ImageLoader, held_out_batches
from .pair_loader import PairBatch, PairLoader, held_out_pairs
from .pairs import PackedPairs
from .recipe import Recipe, StageConfig
from .world import World

Given = tuple[Tensor, TeacherOutput | None]
"""What the objective is given of some samples: images in [-1, 1] or latents, and what the teacher says of them."""

ALL = slice(None)


@runtime_checkable
class Served(Protocol):
    """A process's part of a batch."""

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """Names of what could not be read and was replaced, with reasons, each told once."""
        ...

    def __len__(self) -> int: ...


B = TypeVar("B", bound=Served)


class Feed(ABC, Generic[B]):
    """Everything between a recipe's data and the objective's input, in one process of ``world``."""

    teacher_spec: TeacherSpec | None = None
    """Of whom the features are, once :meth:`prepare` knows."""
    latent_spec: LatentSpec | None = None
    """Of the latents where they are data."""

    def __init__(self, recipe: Recipe, world: World) -> None:
        self.recipe, self.world = recipe, world

    @abstractmethod
    def prepare(self, model: Any, *, accept: Collection[str] = ()) -> None:
        """Get ready to serve ``model``.

        Raises:
            ValueError: the stages, the model or the teacher do not fit the data.
        """

    @abstractmethod
    def batches(
        self, stage: StageConfig, purpose: str, *, first: int, stop: int, workers: int = 0, shared: bool = False
    ) -> AbstractContextManager[Iterator[tuple[int, B]]]:
        """Give ``(step, batch)`` for the steps ``first`` .. ``stop - 1`` of a purpose.

        ``shared`` gives every process the whole of each batch instead of its part.
        """

    @abstractmethod
    def inputs(self, batch: B) -> Tensor:
        """Images or latents, on the device."""

    @abstractmethod
    def features(self, batch: B, span: slice = ALL) -> TeacherOutput | None:
        """What the teacher says of some of a batch, without gradient; None where there is no teacher."""

    @abstractmethod
    def held_out(self, stage: StageConfig) -> Iterator[Given]:
        """What the stage is validated on, the same on every process."""

    def given(self, batch: B, span: slice = ALL) -> Given:
        return self.inputs(batch)[span], self.features(batch, span)

    def samples(self, stage: StageConfig, batches: int, purpose: str, *, shared: bool = False) -> Iterator[B]:
        """``batches`` batches of training data that are no step's."""
        with self.batches(stage, purpose, first=0, stop=batches, shared=shared) as loaded:
            for _, batch in loaded:
                yield batch

    def seed(self, stage: StageConfig, purpose: str) -> int:
        """Of the order of batches for a purpose."""
        return address(self.recipe.seed, purpose, stage.name)

    def share(self, *, shared: bool) -> dict[str, int]:
        """The place of this process among those that a loader's batches are divided among."""
        return {"rank": 0, "world": 1} if shared else {"rank": self.world.rank, "world": self.world.size}

    def held_out_batch(self, stage: StageConfig) -> int:
        return max(1, stage.batch // self.world.size)


class ImageFeed(Feed[Batch]):
    """Crops of pictures, and the teacher that is shown them or was."""

    def __init__(self, recipe: Recipe, world: World, training: ImageSource, apart: ImageSource) -> None:
        super().__init__(recipe, world)
        self.training, self.apart = training, apart
        self.teacher: Any = None

    def prepare(self, model: Any, *, accept: Collection[str] = ()) -> None:
        for stage in self.recipe.stages:
            if stage.latents == "data":
                raise ValueError(
                    f"stage {stage.name!r}: latents: 'data' needs pairs of latents and features, and "
                    f"{self.recipe.data.kind!r} gives images; take 'data/pairs', which `latelier pack` makes"
                )
        if self.recipe.teacher is None:
            return
        self.teacher = self.recipe.teacher.build().to(self.world.device).eval()  # it may have to be downloaded
        if isinstance(self.teacher, CachedTeacher):
            self.teacher.check(self.recipe.stages, self.training)
        self.teacher_spec = self.teacher.spec

    def batches(
        self, stage: StageConfig, purpose: str, *, first: int, stop: int, workers: int = 0, shared: bool = False
    ) -> AbstractContextManager[Iterator[tuple[int, Batch]]]:
        loader = ImageLoader(
            self.training,
            stage.crop,
            resolution=stage.resolution,
            stride=self.recipe.model.stride,
            batch=stage.batch,
            seed=self.seed(stage, purpose),
            workers=workers,
            device=self.world.device,
            **self.share(shared=shared),
        )
        return loader.iterate(first, stop)

    def inputs(self, batch: Batch) -> Tensor:
        return batch.images.to(self.world.device)

    def features(self, batch: Batch, span: slice = ALL) -> TeacherOutput | None:
        return self._described(batch, span, compute_others=False)

    def held_out(self, stage: StageConfig) -> Iterator[Given]:
        made = held_out_batches(
            self.apart, resolution=stage.resolution, batch=self.held_out_batch(stage), most=stage.validate_images
        )
        for batch in made:
            yield self.inputs(batch), self._described(batch, ALL, compute_others=True)

    @torch.no_grad()
    def _described(self, batch: Batch, span: slice, *, compute_others: bool) -> TeacherOutput | None:
        if self.teacher is None:
            return None
        images = self.inputs(batch)[span]
        if isinstance(self.teacher, CachedTeacher):
            return self.teacher.read(images, batch.names[span], batch.views[span], compute_others=compute_others)
        return self.teacher((images + 1) / 2)


class PairFeed(Feed[PairBatch]):
    """Latents and features that were packed; neither an autoencoder nor a teacher is built."""

    def __init__(self, recipe: Recipe, world: World, training: PairSource, apart: PairSource) -> None:
        super().__init__(recipe, world)
        self.training, self.apart = training, apart

    def prepare(self, model: Any, *, accept: Collection[str] = ()) -> None:
        for stage in self.recipe.stages:
            self._check(stage)
        if not hasattr(model, "take_specs"):
            raise ValueError(
                f"model: {self.recipe.model.kind!r} learns from images, and {self.recipe.data.kind!r} gives latents "
                "and features; take a bridge, 'family/latent_bridge'"
            )
        for source in (self.training, self.apart):
            model.take_specs(latent=source.latent_spec, teacher=source.teacher_spec)
        self._try(model)
        self._check_teacher(model.config.teacher, accept)
        self.latent_spec, self.teacher_spec = self.training.latent_spec, self.training.teacher_spec

    def batches(
        self, stage: StageConfig, purpose: str, *, first: int, stop: int, workers: int = 0, shared: bool = False
    ) -> AbstractContextManager[Iterator[tuple[int, PairBatch]]]:
        loader = PairLoader(
            self.training,
            batch=stage.batch,
            seed=self.seed(stage, purpose),
            workers=workers,
            device=self.world.device,
            **self.share(shared=shared),
        )
        return loader.iterate(first, stop)

    def inputs(self, batch: PairBatch) -> Tensor:
        return batch.latents

    def features(self, batch: PairBatch, span: slice = ALL) -> TeacherOutput | None:
        said = batch.features
        cls, registers = (None if tokens is None else tokens[span] for tokens in (said.cls, said.registers))
        return TeacherOutput(said.patches[span], said.grid, cls, registers)

    def held_out(self, stage: StageConfig) -> Iterator[Given]:
        made = held_out_pairs(
            self.apart, batch=self.held_out_batch(stage), most=stage.validate_images, device=self.world.device
        )
        for batch in made:
            yield self.given(batch)

    def _check_teacher(self, ours: TeacherConfig, accept: Collection[str]) -> None:
        """Raise ``ValueError`` where the model predicts another teacher, which is built if its description differs."""
        spec, kind = self.training.teacher_spec, self.recipe.data.kind
        packed = self.training.pack.teacher if isinstance(self.training, PackedPairs) else None
        if spec is None or ours == packed:
            return
        try:
            built = computing_teacher(ours).build()
        except (OSError, ImportError) as error:
            lines = differences(packed, ours, where="model.teacher")
            raise ValueError(
                f"{kind}: was made with another teacher ({'; '.join(lines)}), and ours cannot be built to compare "
                f"them ({error}); give the bridge the teacher of the pairs"
            ) from error
        built.spec.check(spec, where=kind, accept=accept)

    @torch.no_grad()
    def _try(self, model: Any) -> None:
        """Raise ``ValueError`` where what the model predicts of a pair has not the shape of its features."""
        (batch,) = held_out_pairs(self.training, batch=1, most=1, device=self.world.device)
        was_training = model.training
        found, said = model.eval()(batch.latents), batch.features
        model.train(was_training)
        for what, ours, theirs in (
            ("a grid of tokens of", found.grid, said.grid),
            ("features:", found.patches.shape[2], said.patches.shape[2]),
        ):
            if ours != theirs:
                raise ValueError(
                    f"model: predicts {what} {ours} for the latents of {self.recipe.data.kind!r}, whose teacher gave "
                    f"{theirs}; take the teacher that the pairs were packed with, and a stem that meets its grid"
                )

    def _check(self, stage: StageConfig) -> None:
        """Raise ``ValueError`` where a stage does not fit the pairs."""
        where, kind = f"stage {stage.name!r}", self.recipe.data.kind
        if stage.latents != "data":
            raise ValueError(
                f"{where}: latents: must be 'data' for {kind!r}, which gives latents and features and no images, got "
                f"{stage.latents!r}"
            )
        if stage.resolution != self.training.resolution:
            raise ValueError(
                f"{where}: resolution: must be {self.training.resolution}, that of the pairs, got {stage.resolution}; "
                f"or pack anew with --resolution {stage.resolution}"
            )
        if any(term.kind == "objective/bridge_class" for term in stage.objective) and not self.training.has_cls:
            raise ValueError(
                f"{where}: objective: 'objective/bridge_class' needs class tokens, and the pairs have none; pack them "
                "with a teacher that gives some, or leave the term out"
            )


def feed_of(recipe: Recipe, world: World) -> Feed[Any]:
    """The feed for what a recipe's data gives."""
    training: Any = recipe.data.training()
    if isinstance(training, PairSource):
        apart: Any = recipe.data.held_out()
        return PairFeed(recipe, world, training, apart)
    return ImageFeed(recipe, world, training, recipe.data.held_out())
