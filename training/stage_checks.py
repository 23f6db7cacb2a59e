"""What of a recipe's stages can be told to be wrong before the first step is taken, anywhere in the run."""

from torch import nn

from .adaptive import check_adaptive_weights
from .image_terms import LPIPSConfig
from .precision import Precision
from .recipe import Recipe
from .world import World


def check_stages(recipe: Recipe, model: nn.Module, world: World) -> None:
    """Raise where a stage cannot be run by the processes of ``world``.

    Raises:
        ValueError: an adaptive weight, a precision or the size of a batch does not fit.
        ImportError, FileNotFoundError: a term lacks a library or a file.
    """
    for stage in recipe.stages:
        check_adaptive_weights(stage, model)
        Precision.check(stage.precision, world.device, where=f"stage {stage.name!r}")
        if stage.batch % (stage.accumulate * world.size):
            raise ValueError(
                f"stage {stage.name!r}: a batch of {stage.batch} does not divide into {stage.accumulate} parts on "
                f"each of {world.size} processes"
            )
        for term in stage.objective:
            if isinstance(term, LPIPSConfig) and term.weight:
                term.check()
