"""Whole models, composed of blocks."""

from .diffae import DiffAEConfig, InferenceConfig, SemDisDiffAE
from .files import CheckpointError, load_folder, read_tensors, save_folder, write_atomically, write_tensors
from .images import ImageReadError, open_image
from .published import FlatDiffAE

__all__ = [
    "CheckpointError",
    "DiffAEConfig",
    "FlatDiffAE",
    "ImageReadError",
    "InferenceConfig",
    "SemDisDiffAE",
    "load_folder",
    "open_image",
    "read_tensors",
    "save_folder",
    "write_atomically",
    "write_tensors",
]
