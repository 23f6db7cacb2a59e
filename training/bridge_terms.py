"""Terms that train a bridge on pairs: what it predicts from latents against what the teacher said of the image.

The prediction is computed once a step, from noised latents where the bridge has a noise. Formulas and weights:
``blocks/bridge_losses.py``. The records of a stage of such terms have the share of each in the gradient as well.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..blocks import bridge_losses, token_losses
from ..blocks.adaptive import GradientRatioConfig
from ..blocks.bridge_losses import BRIDGE_REDUCTION, BRIDGE_WEIGHTS, BridgePreset, UnitReduction
from ..blocks.grids import StrictGridConfig
from ..blocks.registry import part
from ..blocks.slots import FamilyConfig, ObjectiveConfig, StepState, TeacherConfig, TeacherOutput
from ..blocks.standardise import fit_channels
from .objectives import MeasuredTerm

Compared = Callable[[TeacherOutput, TeacherOutput], Tensor]
"""A loss of a prediction and its target."""


def bridge_prediction(state: StepState) -> TeacherOutput:
    """What the bridge says of the latents of a step, float32; ``state.tau`` is how much noise was added to them."""
    if state.prediction is None:
        noise, latent = state.model.config.noise, state.latent
        if noise is not None:
            latent, state.tau = noise.apply(latent, state.draws)
        found: TeacherOutput = state.model(latent, state.tau)
        cls = None if found.cls is None else found.cls.float()
        # gradients at the prediction are those of float32 too, where float16 would lose them
        state.prediction = replace(found, patches=found.patches.float(), cls=cls)
    return state.prediction


class BridgeTerm(nn.Module):
    """A loss of what the bridge predicts and the pair's features, on one grid."""

    def __init__(self, kind: str, loss: Compared) -> None:
        super().__init__()
        self.kind, self.loss = kind, loss

    def forward(self, state: StepState) -> Tensor:
        assert state.features is not None
        prediction = bridge_prediction(state)
        StrictGridConfig().match(prediction, state.features, where=self.kind)
        return self.loss(prediction, state.features)


class BridgeObjectiveConfig(ObjectiveConfig, ABC):
    """What terms of bridges have in common; ``adaptive`` needs an anchor among the bridge's parameters."""

    of_pairs: ClassVar[bool] = True

    @abstractmethod
    def loss(self, prediction: TeacherOutput, target: TeacherOutput) -> Tensor: ...

    def build(self, model: FamilyConfig, teacher: TeacherConfig | None) -> nn.Module:
        return BridgeTerm(self.kind, self.loss)


@part("objective/bridge_cosine")
class BridgeCosineConfig(BridgeObjectiveConfig):
    """1 - cos of each predicted token with its target, averaged over tokens and batch; weight 1 as on the card."""

    weight: float = 1.0
    adaptive: GradientRatioConfig | None = None

    def loss(self, prediction: TeacherOutput, target: TeacherOutput) -> Tensor:
        return bridge_losses.cosine_distance(prediction.patches, target.patches)


@part("objective/bridge_mse_unit")
class BridgeMSEUnitConfig(BridgeObjectiveConfig):
    """Squared difference of unit tokens; weight 0.25 as on the card.

    Attributes:
        reduction: over channels: the "sum", which is 2(1 - cos); or the "mean", as on the card, which is inert.
    """

    weight: float = 0.25
    reduction: UnitReduction = "sum"
    adaptive: GradientRatioConfig | None = None

    def loss(self, prediction: TeacherOutput, target: TeacherOutput) -> Tensor:
        return bridge_losses.unit_square_error(prediction.patches, target.patches, reduction=self.reduction)


@part("objective/bridge_mse_raw")
class BridgeMSERawConfig(BridgeObjectiveConfig):
    """mean (p - t)² over everything: the lengths of tokens are learned too; weight 0.05 as on the card."""

    weight: float = 0.05
    adaptive: GradientRatioConfig | None = None

    def loss(self, prediction: TeacherOutput, target: TeacherOutput) -> Tensor:
        return token_losses.square_error(prediction.patches, target.patches)


class StandardisedTerm(BridgeTerm, MeasuredTerm):
    """The error in units of the deviation of each of the teacher's channels, which is measured before the first step.

    The deviations are part of what a checkpoint holds of the term.
    """

    std: Tensor

    def __init__(self, kind: str, features: int, *, batches: int, eps: float) -> None:
        super().__init__(kind, self._compare)
        self.batches, self.eps = batches, eps
        self.register_buffer("std", torch.ones(features))

    def _compare(self, prediction: TeacherOutput, target: TeacherOutput) -> Tensor:
        return bridge_losses.standardised_square_error(prediction.patches, target.patches, self.std)

    @torch.no_grad()
    def measure(self, outputs: Iterable[TeacherOutput]) -> None:
        variance = torch.tensor(fit_channels(output.patches for output in outputs).variance)
        self.std.copy_((variance + self.eps).sqrt())


@part("objective/bridge_mse_standardised")
class BridgeMSEStandardisedConfig(ObjectiveConfig):
    """mean ((p - t)/std)² over everything, with std the deviation of each of the teacher's channels.

    Some teachers have channels a hundred times as large as others (DINOv2's), which a raw error is about. The
    deviations are those of training pairs, measured as the stage begins, over images and positions (float64).

    Attributes:
        batches: of the stage's size, to measure on.
        eps: added to the variance.
    """

    of_pairs: ClassVar[bool] = True

    weight: float = 0.05
    batches: int = 16
    eps: float = 1e-5
    adaptive: GradientRatioConfig | None = None

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise ValueError(f"batches: must be at least 1, got {self.batches}")
        if self.eps <= 0:
            raise ValueError(f"eps: must be positive, got {self.eps}")

    def build(self, model: FamilyConfig, teacher: TeacherConfig | None) -> StandardisedTerm:
        return StandardisedTerm(self.kind, bridge_features(model), batches=self.batches, eps=self.eps)


@part("objective/bridge_relational")
class BridgeRelationalConfig(BridgeObjectiveConfig):
    """mean ReLU(|cos(p_i, p_j) - cos(t_i, t_j)| - margin) over pairs of tokens of an image."""

    weight: float = 0.05
    margin: float = 0.0
    adaptive: GradientRatioConfig | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 2:
            raise ValueError(f"margin: must be in [0, 2), where cosines differ, got {self.margin}")

    def loss(self, prediction: TeacherOutput, target: TeacherOutput) -> Tensor:
        return token_losses.marginal_distances(prediction.patches, target.patches, margin=self.margin)


@part("objective/bridge_class")
class BridgeClassConfig(BridgeObjectiveConfig):
    """1 - cos of the class token, where the bridge predicts one and the pairs have one."""

    weight: float = 1.0
    adaptive: GradientRatioConfig | None = None

    def build(self, model: FamilyConfig, teacher: TeacherConfig | None) -> nn.Module:
        bridge: Any = model
        if not bridge.head.has_cls:
            raise ValueError(
                f"objective: {self.kind!r} needs a head that predicts a class token, and {bridge.head.kind!r} predicts "
                "none; take 'feature_head/tokens', or leave the term out"
            )
        return super().build(model, teacher)

    def loss(self, prediction: TeacherOutput, target: TeacherOutput) -> Tensor:
        return bridge_losses.class_distance(prediction, target)


def bridge_features(model: FamilyConfig) -> int:
    """Width of what a bridge predicts."""
    bridge: Any = model
    return bridge.teacher.features


def bridge_objective(preset: BridgePreset = "default") -> tuple[ObjectiveConfig, ...]:
    """The terms of a preset of ``blocks.bridge_loss``, those of weight 0 left out."""
    weights = BRIDGE_WEIGHTS[preset]
    terms = {
        "cosine": BridgeCosineConfig(weight=weights["cosine"]),
        "mse_unit": BridgeMSEUnitConfig(weight=weights["mse_unit"], reduction=BRIDGE_REDUCTION[preset]),
        "mse_raw": BridgeMSERawConfig(weight=weights["mse_raw"]),
    }
    return tuple(term for name, term in terms.items() if weights[name])
