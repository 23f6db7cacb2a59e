"""Terms that bring latents close to a teacher's patch and class tokens, token by token.

A term is put together from parts: which latents it reads (``reading``), what maps them to tokens (``projector``), what
is done to the teacher's tokens first (``standardise``, iREPA's spatial z-score for one; a teacher can also carry this
itself, as a field of its spec), how grids of different size meet (``grid``), and whether the weight follows gradients
(``adaptive``). Losses of relations among tokens are in ``relation_terms.py``.

With latents of an autoencoder where they have activations of a generator, REPA is
``PatchCosineConfig(projector=MLPProjectorConfig(), weight=0.5)`` and iREPA
``PatchCosineConfig(projector=ConvProjectorConfig(), standardise=SpatialZScoreConfig(), weight=1.0)``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from ..blocks import losses
from ..blocks.adaptive import GradientRatioConfig
from ..blocks.grids import GridConfig, StrictGridConfig
from ..blocks.projectors import LinearProjectorConfig, MLPProjectorConfig, Projector, ProjectorConfig
from ..blocks.readings import ReadingConfig, SampleReadingConfig
from ..blocks.registry import part
from ..blocks.slots import FamilyConfig, ObjectiveConfig, StepState, TeacherConfig, TeacherOutput
from ..blocks.standardise import StandardiseConfig
from ..blocks.token_losses import square_error
from .adaptive import short
from .alignment import teacher_class
from .objectives import needed_teacher


class FeatureObjectiveConfig(ObjectiveConfig, ABC):
    """What terms on patch tokens have in common: their parts, and a loss of predicted tokens and the teacher's."""

    projector: ProjectorConfig
    reading: ReadingConfig
    standardise: StandardiseConfig | None
    grid: GridConfig

    point_by_point: ClassVar[bool] = True
    """Whether predicted tokens must be as wide as their targets."""

    @abstractmethod
    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """One number from tokens ``[b, n, ...]`` that lie on one grid."""

    def build(self, model: FamilyConfig, teacher: TeacherConfig | None) -> "FeatureTerm":
        features = needed_teacher(self, teacher).features
        projector = self.projector.build(latent=model.latent_channels, features=features)
        if self.point_by_point:
            check_width(self, self.projector, projector)
        return FeatureTerm(self, projector, None if self.standardise is None else self.standardise.build(features))


def check_width(term: ObjectiveConfig, config: ProjectorConfig, projector: Projector) -> None:
    """Raise ``ValueError`` where a projector's tokens are not as wide as their targets."""
    if projector.width != projector.target_width:
        raise ValueError(
            f"objective: {term.kind!r} compares token by token, and {config.kind!r} gives {projector.width} features "
            f"where the teacher has {projector.target_width}; take 'projector/linear', or a loss of relations such as "
            "'objective/gram'"
        )


class FeatureTerm(nn.Module):
    """Read latents, project them, and compare with the teacher's patch tokens."""

    def __init__(self, config: FeatureObjectiveConfig, projector: Projector, standardise: nn.Module | None) -> None:
        super().__init__()
        self.config, self.grid = config, config.grid
        self.projector, self.standardise = projector, standardise

    def forward(self, state: StepState) -> Tensor:
        assert state.features is not None
        latent = self.config.reading.read(state, short(self.config))
        prediction = TeacherOutput(self.projector(latent), (latent.shape[2], latent.shape[3]))
        patches = state.features.patches if self.standardise is None else self.standardise(state.features.patches)
        target = TeacherOutput(self.projector.target(patches), state.features.grid)
        return self.config.loss(*self.grid.match(prediction, target, where=self.config.kind))

    @property
    def predict_tokens(self) -> Callable[[Any, Tensor], Tensor] | None:
        """Tokens as the teacher's, standardised, from a model and what its ``encode`` gives; None if there are none."""
        if not self.projector.predicts:
            return None
        return lambda model, latents: self.projector(self.config.reading.of_encoded(model, latents))


@part("objective/patch_cosine")
class PatchCosineConfig(FeatureObjectiveConfig):
    """Minus the cosine of each projected position with the teacher's token there; in [-1, 1].

    REPA (arXiv 2410.06940) weighs it 0.5 beside a flow-matching loss, iREPA (arXiv 2512.10794) 1.0, DINO-SAE 0.5; in an
    autoencoder such as ours SemDisDiffAE has 0.01, which is the default. Linear projector, whitened posterior sample:
    our choices.
    """

    weight: float = 0.01
    projector: ProjectorConfig = LinearProjectorConfig()
    reading: ReadingConfig = SampleReadingConfig()
    standardise: StandardiseConfig | None = None
    grid: GridConfig = StrictGridConfig()
    adaptive: GradientRatioConfig | None = None

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return losses.negative_cosine(prediction, target)


@part("objective/feature_mse")
class FeatureMSEConfig(FeatureObjectiveConfig):
    """mean (p - t)² over tokens and features: also the teacher's lengths and shared mean are learned.

    Teachers differ in scale; standardised tokens (``standardise/channels``) make weights comparable. Form and weight
    are our choice.
    """

    weight: float = 0.01
    projector: ProjectorConfig = LinearProjectorConfig()
    reading: ReadingConfig = SampleReadingConfig()
    standardise: StandardiseConfig | None = None
    grid: GridConfig = StrictGridConfig()
    adaptive: GradientRatioConfig | None = None

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return square_error(prediction, target)


class ClassCosine(nn.Module):
    """Minus the cosine of the mean of the projected positions with the teacher's class token."""

    def __init__(self, reading: ReadingConfig, projector: Projector) -> None:
        super().__init__()
        self.reading, self.projector = reading, projector

    def forward(self, state: StepState) -> Tensor:
        target = self.projector.target(teacher_class(state, ClassCosineConfig.kind)[:, None])
        prediction = self.projector(self.reading.read(state, "class_cosine")).mean(dim=1, keepdim=True)
        return losses.negative_cosine(prediction, target)


@part("objective/class_cosine")
class ClassCosineConfig(ObjectiveConfig):
    """Minus the cosine of a pooled prediction with the teacher's class token.

    Positions are projected, then averaged: with an MLP the mean is one of votes. ``objective/class_alignment`` reads
    the class through the model's own token head instead. Form and weight are our choice; the weight is SemDisDiffAE's
    for patches.
    """

    weight: float = 0.01
    projector: ProjectorConfig = MLPProjectorConfig()
    reading: ReadingConfig = SampleReadingConfig()
    adaptive: GradientRatioConfig | None = None

    def build(self, model: FamilyConfig, teacher: TeacherConfig | None) -> ClassCosine:
        features = needed_teacher(self, teacher).features
        projector = self.projector.build(latent=model.latent_channels, features=features)
        check_width(self, self.projector, projector)
        return ClassCosine(self.reading, projector)
