"""Whole models, composed of blocks."""

from .diffae import DiffAEConfig, InferenceConfig, SemDisDiffAE
from .files import CheckpointError

__all__ = ["CheckpointError", "DiffAEConfig", "InferenceConfig", "SemDisDiffAE"]
