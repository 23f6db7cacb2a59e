"""Typed primitives: blocks, their mathematics, and the configs that name them."""

if __name__ != "latelier.blocks":  # Python was started inside the checkout and would load a second copy
    raise ImportError("import latelier.blocks, not blocks")

from .attention import BACKENDS, attend, use_attention, why_not
from .corruption import RandomTokenLogSNRConfig
from .dit import DiTBlock, DiTBlockConfig, RoPEAttention, SandwichDiTBlock
from .draws import Draws, address, cpu_normal
from .fcdm import FCDMBlock, FCDMBlockConfig
from .flux2 import Flux2Latents, Flux2LatentsConfig
from .frechet import FeatureQueue, FrechetLoss, Moments, frechet_distance, moments
from .heads import DINOTokenHead, DINOTokenHeadConfig, NoisyLatentHead, NoisyLatentHeadConfig
from .latent_norm import NoNormConfig, WhiteningConfig, dewhiten, whiten
from .latent_space import LatentSpec, fingerprint, mark, spec_of
from .losses import (
    inverse_variance,
    latent_energy,
    latent_scale,
    negative_cosine,
    smooth_l1,
    variance_expansion,
    weighted_square_error,
)
from .mlp import MLP
from .modulation import AdaLN, LowRankDelta
from .norm import GRN, ChannelRMSNorm, RMSNorm, channel_rms_norm, response_norm
from .patch import Patchify, Unpatchify, patchify, unpatchify
from .posterior import EncoderPosterior, PointPosteriorConfig, VPPosteriorConfig, alpha_sigma
from .precision import Float32Buffers, Float32Islands
from .registry import Part, PartError, decode, differences, discover, encode, override, part, parts
from .rope import AxialRoPE, rope_angles, rope_periods, rotate
from .samplers import GRIDS, SAMPLERS, cosine_grid, ddim, dpmpp_2m, linear_grid, path_drop_guidance
from .sequence import SequenceBlock, SequenceBlockConfig
from .slots import (
    BlockConfig,
    CorruptionConfig,
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
    ProbeConfig,
    ProtocolConfig,
    RateConfig,
    ScheduleConfig,
    StepState,
    TeacherConfig,
    TeacherOutput,
    TimesConfig,
    TokenHeadConfig,
)
from .stack import SkipDecoder, SkipDecoderConfig, StackEncoder, StackEncoderConfig
from .teachers import HOG, HOGConfig
from .time import TimeEmbedding, sinusoids
from .vp import (
    Beta22TimesConfig,
    UniformTimesConfig,
    VPSchedule,
    VPScheduleConfig,
    WithPureNoiseConfig,
    sid2_weight,
)

__all__ = [
    "BACKENDS",
    "GRIDS",
    "GRN",
    "HOG",
    "MLP",
    "SAMPLERS",
    "AdaLN",
    "AxialRoPE",
    "Beta22TimesConfig",
    "BlockConfig",
    "ChannelRMSNorm",
    "CorruptionConfig",
    "DINOTokenHead",
    "DINOTokenHeadConfig",
    "DataConfig",
    "DecoderConfig",
    "DiTBlock",
    "DiTBlockConfig",
    "Draws",
    "EncoderConfig",
    "EncoderPosterior",
    "FCDMBlock",
    "FCDMBlockConfig",
    "FamilyConfig",
    "FeatureQueue",
    "Float32Buffers",
    "Float32Islands",
    "Flux2Latents",
    "Flux2LatentsConfig",
    "FrechetLoss",
    "HOGConfig",
    "HeadConfig",
    "ImageSource",
    "LatentNormConfig",
    "LatentSpec",
    "LowRankDelta",
    "Moments",
    "NoNormConfig",
    "NoisyLatentHead",
    "NoisyLatentHeadConfig",
    "ObjectiveConfig",
    "OptimiserConfig",
    "Part",
    "PartError",
    "Patchify",
    "PointPosteriorConfig",
    "PosteriorConfig",
    "PosteriorHead",
    "ProbeConfig",
    "ProtocolConfig",
    "RMSNorm",
    "RandomTokenLogSNRConfig",
    "RateConfig",
    "RoPEAttention",
    "SandwichDiTBlock",
    "ScheduleConfig",
    "SequenceBlock",
    "SequenceBlockConfig",
    "SkipDecoder",
    "SkipDecoderConfig",
    "StackEncoder",
    "StackEncoderConfig",
    "StepState",
    "TeacherConfig",
    "TeacherOutput",
    "TimeEmbedding",
    "TimesConfig",
    "TokenHeadConfig",
    "UniformTimesConfig",
    "Unpatchify",
    "VPPosteriorConfig",
    "VPSchedule",
    "VPScheduleConfig",
    "WhiteningConfig",
    "WithPureNoiseConfig",
    "address",
    "alpha_sigma",
    "attend",
    "channel_rms_norm",
    "cosine_grid",
    "cpu_normal",
    "ddim",
    "decode",
    "dewhiten",
    "differences",
    "discover",
    "dpmpp_2m",
    "encode",
    "fingerprint",
    "frechet_distance",
    "inverse_variance",
    "latent_energy",
    "latent_scale",
    "linear_grid",
    "mark",
    "moments",
    "negative_cosine",
    "override",
    "part",
    "parts",
    "patchify",
    "path_drop_guidance",
    "response_norm",
    "rope_angles",
    "rope_periods",
    "rotate",
    "sid2_weight",
    "sinusoids",
    "smooth_l1",
    "spec_of",
    "unpatchify",
    "use_attention",
    "variance_expansion",
    "weighted_square_error",
    "whiten",
    "why_not",
]
