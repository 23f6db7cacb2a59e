"""Running recipes: data, stages, the loop, checkpoints."""

from .engine import TrainingError, train
from .recipe import Recipe, StageConfig
from .runs import Run, load_run

__all__ = ["Recipe", "Run", "StageConfig", "TrainingError", "load_run", "train"]
