"""Terms of training objectives, as parts. Each reads what it needs from a :class:`StepState` and returns one number."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..blocks import losses
from ..blocks.adaptive import GradientRatioConfig
from ..blocks.draws import Draws
from ..blocks.dropout import addressed
from ..blocks.grids import GridConfig, Pair, StrictGridConfig
from ..blocks.heads import NoisyLatentHeadConfig
from ..blocks.posterior import EncoderPosterior
from ..blocks.registry import part
from ..blocks.slots import (
    CorruptionConfig,
    FamilyConfig,
    HeadConfig,
    ObjectiveConfig,
    StepState,
    TeacherConfig,
    TeacherOutput,
    TimesConfig,
)
from ..blocks.vp import Beta22TimesConfig, UniformTimesConfig, sid2_weight
from .adaptive import AdaptiveWeights, short
from .recipe import Recipe, StageConfig

Latents = Literal["encoder", "teacher", "data"]
"""Where a stage's latents come from."""


class VPReconstruction(nn.Module):
    """Denoise the image from a random noise level, given the latent."""

    def __init__(self, *, bias: float, path_drop: float, times: TimesConfig) -> None:
        super().__init__()
        self.bias, self.path_drop, self.times = bias, path_drop, times

    def forward(self, state: StepState) -> Tensor:
        model, draws = state.model, state.draws
        t = self.times.sample(draws, "time")
        x_t = model.noise_schedule.corrupt(state.images, t, draws.normal("pixel noise", *state.images.shape[1:]))
        dropped = draws.uniform("path drop") < self.path_drop if self.path_drop else False
        x0 = model.predict(x_t, t, state.latent, drop_middle_blocks=dropped)
        return losses.weighted_square_error(x0, state.images, sid2_weight(model.noise_schedule, t, bias=self.bias))


@part("objective/vp_reconstruction")
class VPReconstructionConfig(ObjectiveConfig):
    """x-prediction loss under SiD2's sigmoid weight.

    Attributes:
        bias: b of the weight, -2 in SemDisDiffAE.
        path_drop: probability, per image, that the middle blocks are dropped, which path-drop guidance needs
            (not published; 0.1 is our choice).
        times: distribution of noise levels.
    """

    weight: float = 1.0
    bias: float = -2.0
    path_drop: float = 0.1
    times: TimesConfig = UniformTimesConfig()

    def __post_init__(self) -> None:
        if not 0 <= self.path_drop <= 1:
            raise ValueError(f"path_drop: must be a probability in [0, 1], got {self.path_drop}")

    def build(self, model: FamilyConfig, teacher: TeacherConfig | None) -> VPReconstruction:
        return VPReconstruction(bias=self.bias, path_drop=self.path_drop, times=self.times)


class NoisyAlignment(nn.Module):
    """Noise the whitened latent, let the head predict the teacher's tokens, compare by cosine."""

    def __init__(self, head: nn.Module, times: TimesConfig, grid: GridConfig) -> None:
        super().__init__()
        self.head, self.times, self.grid = head, times, grid

    def forward(self, state: StepState) -> Tensor:
        z = state.model.whiten(state.latent)
        tau = self.times.sample(state.draws, "tau")
        level = tau[:, None, None, None]
        noisy = (1 - level) * z + level * state.draws.normal("alignment noise", *z.shape[1:])
        return losses.negative_cosine(*matched(state, self.head(noisy, tau), z, self.grid, AlignmentConfig.kind))

    def predict_tokens(self, model: Any, latents: Tensor) -> Tensor:
        """Teacher tokens ``[b, h*w, features]`` from what ``model.encode`` gives, clean whitened latents."""
        return self.head(latents, latents.new_zeros(len(latents)))


@part("objective/alignment")
class AlignmentConfig(ObjectiveConfig):
    """Semantic alignment of noised latents: minus the cosine to the teacher's patch tokens; weight 0.01 as published.

    The latents are the whitened posterior sample, with gradient into the encoder (not published; our choice). Where
    the stage has a corruption it is the corrupted sample.

    Attributes:
        head: predicts the teacher's tokens, and is told the noise level.
        times: distribution of noise levels.
        grid: what happens where the teacher's grid is not that of the latents.
        adaptive: None, or how the weight follows gradients.
    """

    weight: float = 0.01
    head: HeadConfig = NoisyLatentHeadConfig()
    times: TimesConfig = Beta22TimesConfig()
    grid: GridConfig = StrictGridConfig()
    adaptive: GradientRatioConfig | None = None

    def build(self, model: FamilyConfig, teacher: TeacherConfig | None) -> NoisyAlignment:
        features = needed_teacher(self, teacher).features
        return NoisyAlignment(self.head.build(latent=model.latent_channels, features=features), self.times, self.grid)


class PosteriorTerm(nn.Module):
    """A loss of the posterior alone."""

    def __init__(self, kind: str, loss: Callable[[EncoderPosterior], Tensor]) -> None:
        super().__init__()
        self.kind, self.loss = kind, loss

    def forward(self, state: StepState) -> Tensor:
        if state.posterior is None:
            raise ValueError(f"{self.kind}: needs an encoder's posterior; this stage trains on the teacher's latents")
        return self.loss(state.posterior)


@part("objective/variance_expansion")
class VarianceExpansionConfig(ObjectiveConfig):
    """mean softplus(lambda), the -log sigma² half of a KL divergence; weight 1e-5 as published (first reading)."""

    weight: float = 1e-5

    def build(self, model: FamilyConfig, teacher: TeacherConfig | None) -> PosteriorTerm:
        return PosteriorTerm(self.kind, lambda posterior: losses.variance_expansion(posterior.logsnr))


@part("objective/inverse_variance")
class InverseVarianceConfig(ObjectiveConfig):
    """mean 1/(sigma² + delta), variance expansion as in arXiv 2603.21085 (second reading)."""

    weight: float = 1e-5
    delta: float = 1e-6

    def build(self, model: FamilyConfig, teacher: TeacherConfig | None) -> PosteriorTerm:
        return PosteriorTerm(self.kind, lambda posterior: losses.inverse_variance(posterior.logsnr, delta=self.delta))


@part("objective/latent_scale")
class LatentScaleConfig(ObjectiveConfig):
    """(RMS of mu per image and channel - 1)²; the published weight is 1e-4, the form is our choice."""

    weight: float = 1e-4

    def build(self, model: FamilyConfig, teacher: TeacherConfig | None) -> PosteriorTerm:
        return PosteriorTerm(self.kind, lambda posterior: losses.latent_scale(posterior.mean))


@part("objective/latent_energy")
class LatentEnergyConfig(ObjectiveConfig):
    """mean(mu²)/2, the other half of a KL divergence."""

    weight: float = 1e-4

    def build(self, model: FamilyConfig, teacher: TeacherConfig | None) -> PosteriorTerm:
        return PosteriorTerm(self.kind, lambda posterior: losses.latent_energy(posterior.mean))


class LatentRegression(nn.Module):
    """Match the posterior's mean to the teacher's tokens, by smooth L1 and cosine."""

    def __init__(self, cosine: float) -> None:
        super().__init__()
        self.cosine = cosine

    def forward(self, state: StepState) -> Tensor:
        if state.posterior is None:
            raise ValueError("objective/latent_regression: needs an encoder's posterior; this stage has none")
        mean = state.posterior.mean
        mine = mean.flatten(2).transpose(1, 2)
        tokens, target = matched(state, mine, mean, StrictGridConfig(), LatentRegressionConfig.kind)
        return losses.smooth_l1(tokens, target) + self.cosine * (1 + losses.negative_cosine(tokens, target))


@part("objective/latent_regression")
class LatentRegressionConfig(ObjectiveConfig):
    """Regression of the encoder's mean to another model's latents (full_capacitor; the form is our choice)."""

    weight: float = 1.0
    cosine: float = 1.0

    def build(self, model: FamilyConfig, teacher: TeacherConfig | None) -> LatentRegression:
        features = needed_teacher(self, teacher).features
        if features != model.latent_channels:
            raise ValueError(
                f"objective: 'objective/latent_regression' needs a teacher of {model.latent_channels} features, "
                f"the model's latent channels, got {features}"
            )
        return LatentRegression(self.cosine)


class MeasuredTerm(nn.Module, ABC):
    """A term with numbers that are measured on training features before the first step of its first stage."""

    batches: int
    """How many batches of the stage's size it looks at."""

    @abstractmethod
    def measure(self, outputs: Iterable[TeacherOutput]) -> None:
        """Fix the numbers, which are buffers: checkpoints hold them, and later stages take them over."""


def needed_teacher(term: ObjectiveConfig, teacher: TeacherConfig | None) -> TeacherConfig:
    if teacher is None:
        raise ValueError(f"objective: {term.kind!r} needs a teacher, and the recipe has none")
    return teacher


def matched(state: StepState, prediction: Tensor, latent: Tensor, grid: GridConfig, term: str) -> Pair:
    """A prediction on the grid of ``latent`` and the teacher's patch tokens, brought together by the rule ``grid``."""
    assert state.features is not None
    ours = TeacherOutput(prediction, (latent.shape[2], latent.shape[3]))
    return grid.match(ours, state.features, where=term)


# --- all terms together ----------------------------------------------------------------------------------------------


class Objective(nn.Module):
    """The model and the terms of a stage as one module, so that one forward gives every loss of a batch."""

    def __init__(
        self,
        model: nn.Module,
        terms: Iterable[ObjectiveConfig],
        *,
        config: FamilyConfig,
        teacher: TeacherConfig | None,
        latents: Latents,
        corruption: CorruptionConfig | None = None,
    ) -> None:
        super().__init__()
        active = [term for term in terms if term.weight]
        self.model = model
        self.terms = nn.ModuleDict({short(term): term.build(config, teacher) for term in active})
        self.weights = {short(term): term.weight for term in active}
        self.adaptive = AdaptiveWeights(active, model)
        self.latents, self.corruption = latents, corruption
        self.adversary: Any = None
        """What judges the reconstructions of a stage, and learns beside it; see ``adversary.py``."""
        self._judged = frozenset(short(term) for term in active if term.adversarial)
        self.recording = False
        """Whether the next forward is to leave what gradient shares are taken from."""
        self.latest: dict[str, Tensor] = {}
        """The terms of the last forward one by one, with their graphs, where weights adapt or shares are recorded."""
        self.prediction: TeacherOutput | None = None
        """What the terms of the last forward compared, where shares are recorded."""

    def forward(self, inputs: Tensor, features: TeacherOutput | None, draws: Draws) -> tuple[Tensor, Tensor | None]:
        """Return the terms' values ``[k]``, float32, and the moments of the latents, before any corruption.

        ``inputs`` are images or, where latents are the data, latents; those have no moments.
        """
        state, moments = self._read(inputs, features, draws)
        values = self._values(self.weights, state)
        self.latest = values if self.adaptive or self.recording else {}
        self.prediction = state.prediction if self.recording else None
        if self.adversary is not None and self.training and state.reconstruction is not None:
            self.adversary.watch(inputs, state.reconstruction)
        return torch.stack(list(values.values())), moments

    def begin(self, step: int) -> None:
        """A training step begins; ``step`` counts from the start of the stage."""
        if self.adversary is not None:
            self.adversary.begin(step)
            self.adaptive.idle = frozenset() if self.adversary.plays else self._judged

    def train(self, mode: bool = True) -> "Objective":
        """As any module's; norms over batches whose parameters are frozen keep the statistics that they have."""
        super().train(mode)
        for module in self.modules():
            learns = [p.requires_grad for p in module.parameters()] if isinstance(module, _BatchNorm) else []
            if learns and not any(learns):
                module.eval()
        return self

    def values_of(
        self, terms: Collection[str], inputs: Tensor, features: TeacherOutput | None, draws: Draws
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """The values of some terms by name, and the moments."""
        state, moments = self._read(inputs, features, draws)
        return self._values(terms, state), moments

    def _values(self, terms: Collection[str], state: StepState) -> dict[str, Tensor]:
        with addressed(state.draws):
            return {name: term(state).float() for name, term in self.terms.items() if name in terms}

    def _read(self, inputs: Tensor, features: TeacherOutput | None, draws: Draws) -> tuple[StepState, Tensor | None]:
        """What the terms know of a batch, and the moments of its latents."""
        model: Any = self.model
        if self.latents == "data":
            no_images = inputs.new_zeros(len(inputs), 0, 0, 0)
            return StepState(model, no_images, None, inputs, draws, features), None
        if self.latents == "encoder":
            posterior = model.posterior(inputs)
            noise = draws.normal("posterior", *posterior.mean.shape[1:])
            latent = posterior.at(noise)
            moments = model.latent_moments(latent)
            if self.corruption is not None:
                latent = self.corruption.apply(posterior, draws).at(noise)
        else:
            assert features is not None
            posterior = None
            latent = features.patches.transpose(1, 2).unflatten(2, features.grid)
            moments = model.latent_moments(latent)
        return StepState(model, inputs, posterior, latent, draws, features, adversary=self.adversary), moments

    def total(self, values: Tensor) -> Tensor:
        """The sum under the weights of the terms, times their factors where they adapt."""
        weights = values.new_tensor(list(self.weights.values()))
        return values @ (weights * self.adaptive.factors if self.adaptive else weights)

    def anchor_gradients(self) -> dict[str, Tensor]:
        """What adaptive weights need of the last forward, whose graph stays."""
        latest, self.latest = self.latest, {}
        return self.adaptive.gradients(latest, self.model)


def objective_of(recipe: Recipe, stage: StageConfig, model: nn.Module) -> Objective:
    """The objective of a stage, its terms newly born."""
    return Objective(
        model,
        stage.objective,
        config=recipe.model,
        teacher=recipe.teacher,
        latents=stage.latents,
        corruption=stage.corruption,
    )
