"""Whole models, composed of blocks."""

from .diffae import DiffAEConfig, InferenceConfig, SemDisDiffAE
from .files import CheckpointError
from .published import FlatDiffAE

__all__ = ["CheckpointError", "DiffAEConfig", "FlatDiffAE", "InferenceConfig", "SemDisDiffAE"]
