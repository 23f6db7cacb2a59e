"""Terms that compare relations among tokens: which positions of an image are alike, for the latents and for a teacher.

They are blind to rotations of features, need no projector of as many features as the teacher has, and see what
iREPA (arXiv 2512.10794) finds to predict the quality of generation: spatial structure. Formulas: ``token_losses.py``.
"""

from torch import Tensor

from ..blocks.adaptive import GradientRatioConfig
from ..blocks.grids import GridConfig, StrictGridConfig
from ..blocks.projectors import LinearProjectorConfig, NoProjectorConfig, ProjectorConfig
from ..blocks.readings import ReadingConfig, SampleReadingConfig
from ..blocks.registry import part
from ..blocks.standardise import StandardiseConfig
from ..blocks.token_losses import gram_error, marginal_cosine, marginal_distances, similarity_distance
from .feature_terms import FeatureObjectiveConfig


@part("objective/vf")
class VFConfig(FeatureObjectiveConfig):
    """The vision foundation loss of VA-VAE (arXiv 2501.01423, sec. 3.2; code of LightningDiT).

        L = mean ReLU(1 - m1 - cos(f, Wz)) + mean over all pairs of positions of ReLU(|S(Wz) - S(f)| - m2)

    with z the raw posterior sample, W a linear projector without bias and S the cosines among the tokens of an image.
    The weight 0.1 times the ratio of gradients at the encoder's last layer is VA-VAE's, and so are the margins. Its
    reference is L1 + LPIPS summed over pixels; ours is what the recipe's reconstruction adds to the loss.

    Attributes:
        cosine_margin: m1.
        distance_margin: m2.
    """

    weight: float = 0.1
    cosine_margin: float = 0.5
    distance_margin: float = 0.25
    projector: ProjectorConfig = LinearProjectorConfig(bias=False)
    reading: ReadingConfig = SampleReadingConfig(whitened=False)
    standardise: StandardiseConfig | None = None
    grid: GridConfig = StrictGridConfig()
    adaptive: GradientRatioConfig | None = GradientRatioConfig()

    def __post_init__(self) -> None:
        for name in ("cosine_margin", "distance_margin"):
            if not 0 <= getattr(self, name) < 2:
                raise ValueError(f"{name}: must be in [0, 2), where cosines differ, got {getattr(self, name)}")

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return marginal_cosine(prediction, target, margin=self.cosine_margin) + marginal_distances(
            prediction, target, margin=self.distance_margin
        )


@part("objective/gram")
class GramConfig(FeatureObjectiveConfig):
    """mean over pairs of positions of (S(z) - S(f))²: the Gram matrices of unit tokens, as DINOv3's Gram anchoring.

    DINOv3 (arXiv 2508.10104, sec. 4.2) holds a student to an earlier self that saw larger images, resampled by
    ``ResampleGridConfig(mode="bicubic")``; its weight is 2 at the end, and its code takes the mean too. Here
    latents are held to another network: weight and reading are our choice.
    """

    weight: float = 0.1
    projector: ProjectorConfig = NoProjectorConfig()
    reading: ReadingConfig = SampleReadingConfig()
    standardise: StandardiseConfig | None = None
    grid: GridConfig = StrictGridConfig()
    adaptive: GradientRatioConfig | None = None

    point_by_point = False

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return gram_error(prediction, target)


@part("objective/self_similarity")
class SelfSimilarityConfig(FeatureObjectiveConfig):
    """1 - correlation, over pairs of different positions, of the cosines among latents with those among tokens.

    Only the pattern counts, not the level of the cosines, so that neither side need be centred (Kriegeskorte et al.
    2008, representational similarity analysis). As a loss of latents, and its weight, our choice.
    """

    weight: float = 0.01
    projector: ProjectorConfig = NoProjectorConfig()
    reading: ReadingConfig = SampleReadingConfig()
    standardise: StandardiseConfig | None = None
    grid: GridConfig = StrictGridConfig()
    adaptive: GradientRatioConfig | None = None

    point_by_point = False

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return similarity_distance(prediction, target)
