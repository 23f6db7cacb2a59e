"""Finished runs: the recipe, the averaged model, and the alignment head that trained with it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks.registry import decode
from ..blocks.slots import TeacherConfig
from ..blocks.teacher_spec import TeacherSpec
from ..families.files import WEIGHTS, CheckpointError, assign, load_folder, read_config, read_tensors
from ..families.streams import read_stream
from .cached import computing_teacher
from .checkpoints import teacher_spec_in
from .engine import MODEL, RECIPE, TERMS, objective_of
from .objectives import NoisyAlignment
from .recipe import Recipe


@dataclass(frozen=True)
class Run:
    """A finished run.

    ``predict_tokens`` maps whitened latents to teacher tokens, where an alignment head was trained: the head of the
    term ``objective/alignment`` or, without this term, the model's own token head. ``teacher_spec`` says which teacher
    the model learnt from; None where there was none, or where the run is older than such entries.
    """

    folder: Path
    recipe: Recipe
    model: Any
    predict_tokens: Callable[[Tensor], Tensor] | None
    teacher_spec: TeacherSpec | None = None

    @property
    def teacher(self) -> TeacherConfig | None:
        """The teacher that computes: the recipe's or, where that read a cache, the one behind it."""
        return computing_teacher(self.recipe.teacher)


def is_run(folder: Path) -> bool:
    return (folder / RECIPE).is_file()


def read_recipe(folder: Path) -> Recipe:
    return decode(read_config(folder / RECIPE), Recipe, where=str(folder / RECIPE))


def load_run(folder: str | Path, *, device: str | torch.device = "cpu") -> Run:
    """Load a finished run.

    Raises:
        FileNotFoundError: the folder holds no run, or one that has not finished.
        CheckpointError: its files do not belong together.
    """
    folder = Path(folder)
    if not is_run(folder):
        raise FileNotFoundError(f"{folder}: holds no run; a run folder has {RECIPE}")
    if not (folder / MODEL).is_dir():
        raise FileNotFoundError(
            f"{folder}: has not finished; go on with latelier train {folder / RECIPE} --resume --out {folder}"
        )
    recipe = read_recipe(folder)
    model = load_folder(folder / MODEL, nn.Module, device=device)
    if model.config != recipe.model:
        raise CheckpointError(f"{folder}: {MODEL} and {RECIPE} describe different models")
    tensors, _ = read_tensors(folder / TERMS)
    with torch.device("meta"):
        terms = objective_of(recipe, recipe.stages[-1], model).terms
    assign(terms, tensors, where=str(folder / TERMS))
    heads = [term for term in terms.to(device).eval().values() if isinstance(term, NoisyAlignment)]
    predict_tokens = heads[0].predict_tokens if heads else _own_tokens(model)
    weights = folder / MODEL / WEIGHTS
    with read_stream(weights) as file:
        spec = teacher_spec_in(dict(file.metadata() or {}), where=str(weights))
    return Run(folder, recipe, model, predict_tokens, spec)


def _own_tokens(model: Any) -> Callable[[Tensor], Tensor] | None:
    if getattr(model, "token_head", None) is None:
        return None
    return lambda latents: model.predict_features(latents).patches
