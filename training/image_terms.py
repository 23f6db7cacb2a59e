"""Terms on the image that a latent is decoded to in one pass; the terms of a step share one such image."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks.adaptive import GradientRatioConfig
from ..blocks.perceptual import LPIPS, Net, RandomPyramid, check_lpips, feature_distance
from ..blocks.registry import part
from ..blocks.shapes import Image
from ..blocks.slots import FamilyConfig, ObjectiveConfig, StepState, TeacherConfig


def reconstruction_of(state: StepState, *, term: str) -> Image:
    """What the model decodes the step's latent to, with gradient; decoded at the first call."""
    image = state.reconstruction
    if image is None:
        render = getattr(state.model, "render", None)
        if render is None:
            raise ValueError(
                f"{term}: needs a model that decodes in one pass, and {state.model.config.kind!r} does not; "
                "take a term of diffusion, such as 'objective/vp_reconstruction'"
            )
        state.reconstruction = image = render(state.latent)
    assert image is not None
    return image


class PixelDistance(nn.Module):
    """Mean over pixels and colours of |x' - x|, or of its square; float32."""

    def __init__(self, kind: str, *, squared: bool) -> None:
        super().__init__()
        self.kind, self.squared = kind, squared

    def forward(self, state: StepState) -> Tensor:
        ours = reconstruction_of(state, term=self.kind).float()
        distance = F.mse_loss if self.squared else F.l1_loss
        return distance(ours, state.images.float())


@part("objective/l1")
class L1Config(ObjectiveConfig):
    """mean |x' - x| of the reconstruction x', images in [-1, 1]."""

    weight: float = 1.0

    def build(self, model: FamilyConfig, teacher: TeacherConfig | None) -> PixelDistance:
        return PixelDistance(self.kind, squared=False)


@part("objective/l2")
class L2Config(ObjectiveConfig):
    """mean (x' - x)² of the reconstruction x', images in [-1, 1]."""

    weight: float = 1.0

    def build(self, model: FamilyConfig, teacher: TeacherConfig | None) -> PixelDistance:
        return PixelDistance(self.kind, squared=True)


class LPIPSTerm(nn.Module):
    """LPIPS; its network is read at the first call, and is no part of what is saved."""

    def __init__(self, config: "LPIPSConfig") -> None:
        super().__init__()
        self.config = config
        self._lpips: LPIPS | None = None

    def forward(self, state: StepState) -> Tensor:
        if self._lpips is None:
            self._lpips = LPIPS(self.config.net, self.config.weights, where=self.config.kind)
        ours = reconstruction_of(state, term=self.config.kind)
        with torch.autocast(ours.device.type, enabled=False):
            return self._lpips(ours, state.images).mean()


@part("objective/lpips")
class LPIPSConfig(ObjectiveConfig):
    """LPIPS 0.1 of the reconstruction (extra ``lpips``).

    Attributes:
        net: whose features: "vgg" or "alex".
        weights: local file of that network as torchvision publishes it; nothing is downloaded. The fitted weights
            of the features come with torchmetrics.
    """

    weight: float = 1.0
    net: Net = "vgg"
    weights: str = ""

    def check(self) -> None:
        """Raise ``ImportError``, ``ValueError`` or ``FileNotFoundError`` for what is missing, before anything runs."""
        check_lpips(self.net, self.weights, where=self.kind)

    def build(self, model: FamilyConfig, teacher: TeacherConfig | None) -> LPIPSTerm:
        return LPIPSTerm(self)


class PerceptualSubstitute(nn.Module):
    """Distance in a random pyramid."""

    def __init__(self, config: "PerceptualSubstituteConfig", *, channels: int) -> None:
        super().__init__()
        self.kind, self.levels = config.kind, len(config.widths)
        self.pyramid = RandomPyramid(config.widths, channels=channels, seed=config.seed)

    def forward(self, state: StepState) -> Tensor:
        ours = reconstruction_of(state, term=self.kind)
        with torch.autocast(ours.device.type, enabled=False):
            with torch.no_grad():
                theirs = self.pyramid(state.images)
            return feature_distance(self.pyramid(ours), theirs, [None] * self.levels).mean() / self.levels


@part("objective/perceptual_substitute")
class PerceptualSubstituteConfig(ObjectiveConfig):
    """What takes the place of LPIPS where its weights cannot be had: a distance in random convolutions, offline.

    It is no LPIPS and its values compare to none; see ``blocks/perceptual.py``.

    Attributes:
        widths: channels of each level of the pyramid, from fine to coarse.
        seed: of its kernels.
    """

    weight: float = 1.0
    widths: tuple[int, ...] = (24, 32, 48, 64)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths: must be at least 1, and one at least, got {list(self.widths)}")

    def build(self, model: FamilyConfig, teacher: TeacherConfig | None) -> PerceptualSubstitute:
        return PerceptualSubstitute(self, channels=model.channels)


class Adversarial(nn.Module):
    """What the adversary of the stage thinks of the reconstruction."""

    def forward(self, state: StepState) -> Tensor:
        adversary = state.adversary
        if not self.training or adversary is None or not adversary.plays:
            return state.images.new_zeros(())  # validation asks no judge that learns: its numbers would not compare
        return adversary.judge(reconstruction_of(state, term=AdversarialConfig.kind))


@part("objective/adversarial")
class AdversarialConfig(ObjectiveConfig):
    """The generator's side of the stage's adversary; 0 in validation, and before the adversary plays.

    Attributes:
        adaptive: how the weight follows gradients (VQGAN, arXiv 2012.09841, eq. 7), or None.
    """

    adversarial: ClassVar[bool] = True
    weight: float = 0.5
    adaptive: GradientRatioConfig | None = GradientRatioConfig(
        anchor="decoder.conv_out.weight", reference=("l1", "lpips"), eps=1e-4, clamp=1e4
    )

    def build(self, model: FamilyConfig, teacher: TeacherConfig | None) -> Adversarial:
        return Adversarial()
