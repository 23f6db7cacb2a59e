"""Finished runs: the recipe, the averaged model, and the alignment head that trained with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks.grids import GridConfig, StrictGridConfig
from ..blocks.registry import decode
from ..blocks.slots import ObjectiveConfig, TeacherConfig
from ..blocks.standardise import StandardiseConfig
from ..blocks.teacher_spec import TeacherSpec
from ..families.files import WEIGHTS, CheckpointError, assign, load_folder, read_config, read_tensors
from ..families.streams import read_stream
from .adaptive import short
from .cached import computing_teacher
from .checkpoints import teacher_spec_in
from .engine import MODEL, RECIPE, TERMS
from .feature_terms import FeatureTerm
from .objectives import NoisyAlignment, objective_of
from .recipe import Recipe


@dataclass(frozen=True)
class Run:
    """A finished run, and how its last stage aligned it.

    Attributes:
        predict_tokens: maps latents as ``encode`` gives them to teacher tokens, where something learned to: the head of
            ``objective/alignment`` or, without this term, the first projector that predicts a teacher's tokens or,
            without any, the model's own token head. A bridge has none: it is such a map itself.
        teacher_spec: which teacher the model learnt from; None where there was none, or where the run is older than
            such entries.
        grid: how that term (or the first that has a rule) compares tokens on grids of different size.
        standardise: what that term does to the teacher's tokens before it compares.
    """

    folder: Path
    recipe: Recipe
    model: Any
    predict_tokens: Callable[[Tensor], Tensor] | None
    teacher_spec: TeacherSpec | None = None
    grid: GridConfig = field(default_factory=StrictGridConfig)
    standardise: StandardiseConfig | None = None

    @property
    def teacher(self) -> TeacherConfig | None:
        """The teacher that computes: the recipe's, or a bridge's own; where it read a cache, the one behind it."""
        return computing_teacher(self.recipe.teacher or getattr(self.recipe.model, "teacher", None))


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
    predict_tokens, term = _predictor(recipe.stages[-1].objective, terms.to(device).eval(), model)
    weights = folder / MODEL / WEIGHTS
    with read_stream(weights) as file:
        spec = teacher_spec_in(dict(file.metadata() or {}), where=str(weights))
    grid, standardise = getattr(term, "grid", StrictGridConfig()), getattr(term, "standardise", None)
    return Run(folder, recipe, model, predict_tokens, spec, grid, standardise)


def _predictor(
    configs: Sequence[ObjectiveConfig], terms: nn.ModuleDict, model: Any
) -> tuple[Callable[[Tensor], Tensor] | None, ObjectiveConfig | None]:
    """What predicts a teacher's tokens from encoded latents, and the term under whose rules it learned."""
    built = [(config, terms[short(config)]) for config in configs if config.weight]
    for config, term in built:
        if isinstance(term, NoisyAlignment):
            return partial(term.predict_tokens, model), config
    for config, term in built:
        if isinstance(term, FeatureTerm) and term.predict_tokens is not None:
            return partial(term.predict_tokens, model), config
    return _own_tokens(model), next((config for config, _ in built if hasattr(config, "grid")), None)


def _own_tokens(model: Any) -> Callable[[Tensor], Tensor] | None:
    if getattr(model, "token_head", None) is None:
        return None
    return lambda latents: model.predict_features(latents).patches
