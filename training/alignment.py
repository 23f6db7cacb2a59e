"""Terms that train a model's own token head, or the latents through it (DINAC-AE).

The head reads raw latents as the teacher reads images. Its class and patch tokens are compared with the teacher's on
clean latents, without the noise of SemDisDiffAE's alignment (model cards of dinac_ae and dinac_ae_d2, which give
neither weights nor forms: those are our choice).
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import losses
from ..blocks.adaptive import GradientRatioConfig
from ..blocks.frechet import FrechetLoss
from ..blocks.grids import GridConfig, StrictGridConfig
from ..blocks.registry import part
from ..blocks.slots import FamilyConfig, ObjectiveConfig, StepState, TeacherConfig, TeacherOutput
from .objectives import needed_teacher


def token_head_width(term: ObjectiveConfig, model: FamilyConfig, teacher: TeacherConfig | None) -> int:
    """Width of the tokens of the model's own head, which must be the teacher's."""
    features = needed_teacher(term, teacher).features
    head = getattr(model, "token_head", None)
    if head is None:
        raise ValueError(
            f"objective: {term.kind!r} needs a model with a token head, and {model.kind!r} has none; "
            "take 'family/dinac_ae', or 'objective/alignment', which has a head of its own"
        )
    if head.features != features:
        raise ValueError(
            f"objective: {term.kind!r} needs a teacher of {head.features} features, the width of the model's token "
            f"head, got {features}; set model.token_head.features to {features}, or choose another teacher"
        )
    return features


def clean_prediction(state: StepState) -> TeacherOutput:
    """What the model's token head says of the clean latents, computed once a step.

    These are the posterior's mode alpha·mu, raw, with gradient into encoder and head, or what the teacher gave.
    """
    if state.prediction is None:
        clean = state.latent if state.posterior is None else state.posterior.mode()
        state.prediction = state.model.token_head(clean)
        assert state.prediction is not None
    return state.prediction


def teacher_class(state: StepState, term: str) -> Tensor:
    assert state.features is not None
    if state.features.cls is None:
        raise ValueError(f"{term}: the teacher gives no class token; choose one that does, or leave the term out")
    return state.features.cls


class PatchAlignment(nn.Module):
    """Minus the cosine of the head's patch tokens to the teacher's."""

    def __init__(self, grid: GridConfig) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, state: StepState) -> Tensor:
        prediction = clean_prediction(state)
        assert state.features is not None
        return losses.negative_cosine(*self.grid.match(prediction, state.features, where=PatchAlignmentConfig.kind))


@part("objective/patch_alignment")
class PatchAlignmentConfig(ObjectiveConfig):
    """Alignment of clean latents with the teacher's patch tokens, by the model's own head.

    The weight is that of SemDisDiffAE's alignment; DINAC-AE's is not published. ``grid`` says what happens where the
    teacher's grid is not that of the latents, ``adaptive`` how the weight follows gradients, if it does.
    """

    weight: float = 0.01
    grid: GridConfig = StrictGridConfig()
    adaptive: GradientRatioConfig | None = None

    def build(self, model: FamilyConfig, teacher: TeacherConfig | None) -> PatchAlignment:
        token_head_width(self, model, teacher)
        return PatchAlignment(self.grid)


class ClassAlignment(nn.Module):
    """Minus the cosine of the head's class token to the teacher's."""

    def forward(self, state: StepState) -> Tensor:
        target = teacher_class(state, ClassAlignmentConfig.kind)
        prediction = clean_prediction(state).cls
        assert prediction is not None
        return losses.negative_cosine(prediction[:, None], target[:, None])


@part("objective/class_alignment")
class ClassAlignmentConfig(ObjectiveConfig):
    """Alignment of clean latents with the teacher's class token, by the model's own head.

    The weight is that of SemDisDiffAE's alignment; DINAC-AE's is not published. ``adaptive`` says how it follows
    gradients, if it does.
    """

    weight: float = 0.01
    adaptive: GradientRatioConfig | None = None

    def build(self, model: FamilyConfig, teacher: TeacherConfig | None) -> ClassAlignment:
        token_head_width(self, model, teacher)
        return ClassAlignment()


class Frechet(nn.Module):
    """Fréchet distance of the class tokens that the head reads off the step's latents to the teacher's."""

    def __init__(self, loss: FrechetLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, state: StepState) -> Tensor:
        target = teacher_class(state, FrechetConfig.kind).float()
        prediction = state.model.token_head(state.latent).cls
        return self.loss(prediction, F.rms_norm(target, target.shape[1:], eps=1e-6))


@part("objective/frechet")
class FrechetConfig(ObjectiveConfig):
    """FD-loss in the latent space (arXiv 2604.28190): class tokens of the latents against the teacher's as populations.

    The latents are those that the decoder sees, posterior samples with gradient into the encoder, read by the model's
    own head, whose tokens have a root mean square of 1; the teacher's are brought to it. Both populations are queues
    of the newest ``size`` tokens and the batch (see :class:`FrechetLoss`); checkpoints hold them, 300 MB for 50,000
    tokens of 768 features.

    Statistics are no mean over images: parts of an accumulated batch enter one after the other, so that the number of
    parts changes the loss (as the queue fills, by ever less), while the number of processes does not. In validation
    the distance is that of the training queue and the held-out batch.

    Attributes:
        weight: our choice, DINAC-AE's is not published. At a root mean square of 1 the distance is at most 4 times the
            width: with 768 features the term stays below 0.03, about what both alignments can weigh.
        size: of the queues; FD-loss takes about 50,000.
        gradient: "batch" makes it independent of the size of the queue, "population" is the plain derivative.
    """

    weight: float = 1e-5
    size: int = 50_000
    gradient: Literal["batch", "population"] = "batch"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size: must be at least 1, got {self.size}")

    def build(self, model: FamilyConfig, teacher: TeacherConfig | None) -> Frechet:
        return Frechet(FrechetLoss(token_head_width(self, model, teacher), size=self.size, gradient=self.gradient))
