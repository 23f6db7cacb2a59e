"""Whole models, composed of blocks."""

from .diffae import DiffAEConfig, InferenceConfig, SemDisDiffAE
from .files import CheckpointError, load_folder, read_tensors, save_folder, write_atomically, write_tensors
from .images import ImageReadError, image_size, open_image
from .published import FlatDiffAE
from .streams import read_stream, write_stream

__all__ = [
    "CheckpointError",
    "DiffAEConfig",
    "FlatDiffAE",
    "ImageReadError",
    "InferenceConfig",
    "SemDisDiffAE",
    "image_size",
    "load_folder",
    "open_image",
    "read_stream",
    "read_tensors",
    "save_folder",
    "write_atomically",
    "write_stream",
    "write_tensors",
]
