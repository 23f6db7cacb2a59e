"""Running recipes: data, stages, the loop, checkpoints."""

from .adaptive import AdaptiveWeights
from .adversary import AdversarialStageConfig, Adversary, AdversaryConfig
from .alignment import ClassAlignmentConfig, FrechetConfig, PatchAlignmentConfig
from .bridge_start import BridgePartsConfig
from .bridge_terms import (
    BridgeClassConfig,
    BridgeCosineConfig,
    BridgeMSERawConfig,
    BridgeMSEStandardisedConfig,
    BridgeMSEUnitConfig,
    BridgeObjectiveConfig,
    BridgeRelationalConfig,
    bridge_objective,
    bridge_prediction,
)
from .cached import CachedTeacher, CachedTeacherConfig, computing_teacher, with_computing_teacher
from .caching import cache_features, every_picture
from .checkpoints import Checkpoint, Checkpoints, Position, optimiser_tensors, restore_optimiser
from .crops import BucketCropConfig, CentralCropConfig, CropConfig, NativeCropConfig, RandomCropConfig, bucket_shapes
from .ema import Average
from .engine import Trainer, TrainingError, train
from .feature_terms import ClassCosineConfig, FeatureMSEConfig, FeatureObjectiveConfig, PatchCosineConfig
from .feeds import Feed, ImageFeed, PairFeed
from .image_terms import AdversarialConfig, L1Config, L2Config, LPIPSConfig, PerceptualSubstituteConfig
from .labels import LabelledFolderConfig, LabelledFolderSource
from .loader import Batch, ImageLoader, held_out_batches, held_out_crops
from .objectives import (
    AlignmentConfig,
    InverseVarianceConfig,
    LatentEnergyConfig,
    LatentRegressionConfig,
    LatentScaleConfig,
    MeasuredTerm,
    Objective,
    VarianceExpansionConfig,
    VPReconstructionConfig,
    objective_of,
)
from .optimisers import AdamWConfig, ConstantRateConfig, CosineRateConfig, TrapezoidRateConfig
from .order import Group, Order, Shuffled, permutation
from .packing import pack
from .pair_loader import PairBatch, PairLoader, held_out_pairs
from .pairs import NpyPairsConfig, PairsConfig
from .precision import Precision
from .progress import ProgressWatcher
from .recipe import Recipe, StageConfig, trainable_names
from .records import Records, Watcher, read_records
from .relation_terms import GramConfig, SelfSimilarityConfig, VFConfig
from .runs import Run, is_run, load_run, read_recipe
from .shares import GradientShares
from .sources import FolderDataConfig, FolderSource, PhotographsConfig, PhotographSource, list_images
from .starts import LogSNRStartConfig, PCAStartConfig, StartConfig, WeightsConfig
from .world import World, join

__all__ = [
    "AdamWConfig",
    "AdaptiveWeights",
    "AdversarialConfig",
    "AdversarialStageConfig",
    "Adversary",
    "AdversaryConfig",
    "AlignmentConfig",
    "Average",
    "Batch",
    "BridgeClassConfig",
    "BridgeCosineConfig",
    "BridgeMSERawConfig",
    "BridgeMSEStandardisedConfig",
    "BridgeMSEUnitConfig",
    "BridgeObjectiveConfig",
    "BridgePartsConfig",
    "BridgeRelationalConfig",
    "BucketCropConfig",
    "CachedTeacher",
    "CachedTeacherConfig",
    "CentralCropConfig",
    "Checkpoint",
    "Checkpoints",
    "ClassAlignmentConfig",
    "ClassCosineConfig",
    "ConstantRateConfig",
    "CosineRateConfig",
    "CropConfig",
    "FeatureMSEConfig",
    "FeatureObjectiveConfig",
    "Feed",
    "FolderDataConfig",
    "FolderSource",
    "FrechetConfig",
    "GradientShares",
    "GramConfig",
    "Group",
    "ImageFeed",
    "ImageLoader",
    "InverseVarianceConfig",
    "L1Config",
    "L2Config",
    "LPIPSConfig",
    "LabelledFolderConfig",
    "LabelledFolderSource",
    "LatentEnergyConfig",
    "LatentRegressionConfig",
    "LatentScaleConfig",
    "LogSNRStartConfig",
    "MeasuredTerm",
    "NativeCropConfig",
    "NpyPairsConfig",
    "Objective",
    "Order",
    "PCAStartConfig",
    "PairBatch",
    "PairFeed",
    "PairLoader",
    "PairsConfig",
    "PatchAlignmentConfig",
    "PatchCosineConfig",
    "PerceptualSubstituteConfig",
    "PhotographSource",
    "PhotographsConfig",
    "Position",
    "Precision",
    "ProgressWatcher",
    "RandomCropConfig",
    "Recipe",
    "Records",
    "Run",
    "SelfSimilarityConfig",
    "Shuffled",
    "StageConfig",
    "StartConfig",
    "Trainer",
    "TrainingError",
    "TrapezoidRateConfig",
    "VFConfig",
    "VPReconstructionConfig",
    "VarianceExpansionConfig",
    "Watcher",
    "WeightsConfig",
    "World",
    "bridge_objective",
    "bridge_prediction",
    "bucket_shapes",
    "cache_features",
    "computing_teacher",
    "every_picture",
    "held_out_batches",
    "held_out_crops",
    "held_out_pairs",
    "is_run",
    "join",
    "list_images",
    "load_run",
    "objective_of",
    "optimiser_tensors",
    "pack",
    "permutation",
    "read_recipe",
    "read_records",
    "restore_optimiser",
    "train",
    "trainable_names",
    "with_computing_teacher",
]
