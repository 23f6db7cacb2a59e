"""Typed primitives: blocks, their mathematics, and the configs that name them."""

if __name__ != "latelier.blocks":  # Python was started inside the checkout and would load a second copy
    raise ImportError("import latelier.blocks, not blocks")

from .dit import DiTBlock, DiTBlockConfig
from .draws import Draws, address
from .fcdm import FCDMBlock, FCDMBlockConfig
from .heads import NoisyLatentHead, NoisyLatentHeadConfig
from .latent_norm import NoNormConfig, WhiteningConfig, dewhiten, whiten
from .losses import (
    inverse_variance,
    latent_energy,
    latent_scale,
    negative_cosine,
    variance_expansion,
    weighted_square_error,
)
from .mlp import MLP
from .modulation import AdaLN, LowRankDelta
from .norm import GRN, ChannelRMSNorm, channel_rms_norm, response_norm
from .patch import Patchify, Unpatchify, patchify, unpatchify
from .posterior import EncoderPosterior, PointPosteriorConfig, VPPosteriorConfig, alpha_sigma
from .registry import Part, PartError, decode, discover, encode, override, part, parts
from .rope import rope_angles, rope_periods, rotate
from .samplers import GRIDS, SAMPLERS, cosine_grid, ddim, dpmpp_2m, linear_grid, path_drop_guidance
from .slots import (
    BlockConfig,
    DataConfig,
    DecoderConfig,
    EncoderConfig,
    FamilyConfig,
    HeadConfig,
    ImageSource,
    LatentNormConfig,
    ObjectiveConfig,
    OptimiserConfig,
    PosteriorConfig,
    PosteriorHead,
    ProtocolConfig,
    RateConfig,
    ScheduleConfig,
    StepState,
    TeacherConfig,
    TeacherOutput,
    TimesConfig,
)
from .stack import SkipDecoder, SkipDecoderConfig, StackEncoder, StackEncoderConfig
from .time import TimeEmbedding, sinusoids
from .vp import (
    Beta22TimesConfig,
    UniformTimesConfig,
    VPSchedule,
    VPScheduleConfig,
    WithPureNoiseConfig,
    sid2_weight,
)

__all__ = [name for name in globals() if not name.startswith("_")]
