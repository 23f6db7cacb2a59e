"""Whole models, composed of blocks."""

from .bridge import LatentBridge, LatentBridgeConfig
from .bridge_loss import BridgeFeatureLoss
from .dc_ae import DCAE, DCAEConfig
from .diffae import DiffAE, DiffAEConfig, DinacAE, DinacAEConfig, SemDisDiffAE
from .feature_cache import FeatureCache, open_cache
from .feature_shards import FeatureCacheError
from .files import CheckpointError, load_folder, read_tensors, save_folder, write_atomically, write_tensors
from .flat import FlatDiffAE, FlatDinacAE
from .images import ImageReadError, image_size, open_image
from .inference import InferenceConfig
from .model_space import ModelSpaceConfig
from .pair_shards import PairLayout, PairsError
from .pairs import PairFolder
from .published import export_published, published_tensors
from .streams import read_stream, write_stream
from .tiling import GlobalContextWarning, SeamError, Tileable, Tiled, seam_error

__all__ = [
    "DCAE",
    "BridgeFeatureLoss",
    "CheckpointError",
    "DCAEConfig",
    "DiffAE",
    "DiffAEConfig",
    "DinacAE",
    "DinacAEConfig",
    "FeatureCache",
    "FeatureCacheError",
    "FlatDiffAE",
    "FlatDinacAE",
    "GlobalContextWarning",
    "ImageReadError",
    "InferenceConfig",
    "LatentBridge",
    "LatentBridgeConfig",
    "ModelSpaceConfig",
    "PairFolder",
    "PairLayout",
    "PairsError",
    "SeamError",
    "SemDisDiffAE",
    "Tileable",
    "Tiled",
    "export_published",
    "image_size",
    "load_folder",
    "open_cache",
    "open_image",
    "published_tensors",
    "read_stream",
    "read_tensors",
    "save_folder",
    "seam_error",
    "write_atomically",
    "write_stream",
    "write_tensors",
]
