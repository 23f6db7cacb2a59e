"""The models that a staged run had at the end of each phase, from its checkpoints, and the report on them."""

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from ..evaluation.phases import Phase, measure_phase, views, write_phases
from ..training.checkpoints import Checkpoints
from ..training.recipe import Recipe, StageConfig
from ..training.runs import read_recipe


def phase_models(folder: str | Path, *, device: str | torch.device = "cpu") -> Iterator[tuple[StageConfig, Any]]:
    """Each stage of a run with the averaged model at its end.

    Raises:
        FileNotFoundError: the checkpoint at the end of a stage was not kept; train with ``keep`` of at least the
            number of checkpoints from there.
    """
    folder = Path(folder)
    recipe = read_recipe(folder)
    checkpoints = Checkpoints(folder / "checkpoints", recipe)
    for stage, total in zip(recipe.stages, accumulate(stage.steps for stage in recipe.stages), strict=True):
        path = checkpoints.path(total)
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder}: the checkpoint at the end of the stage {stage.name!r}, {path.name}, was not kept; "
                "train with more checkpoints to keep"
            )
        model: Any = recipe.model.build()
        model.load_state_dict(checkpoints.read(path).group("average"))
        yield stage, model.to(device).eval()


def report_phases(folder: str | Path, *, device: str | torch.device = "cpu") -> tuple[Path, list[Phase]]:
    """Measure the model after each phase on what the recipe holds out, and write ``phases.html`` in the run's folder.

    The resolutions are those of the stages.
    """
    folder = Path(folder)
    recipe = read_recipe(folder)
    sides, held_out = sorted({stage.resolution for stage in recipe.stages}), recipe.data.held_out()
    models, phases = {}, []
    for number, (stage, model) in enumerate(phase_models(folder, device=device), 1):
        models[f"{number} {stage.name}"] = model
        phases.append(
            measure_phase(f"{number} {stage.name}", model, held_out, sides=sides, trained=_learned(recipe, stage))
        )
    pictures = views(models, held_out, side=sides[-1])
    return write_phases(folder, f"{recipe.name}, phase by phase", phases, pictures), phases


def _learned(recipe: Recipe, stage: StageConfig) -> str:
    what = "everything" if stage.trainable == ("*",) else ", ".join(p.removesuffix(".*") for p in stage.trainable)
    return f"{what}; {stage.resolution} px{'; adversary' if stage.has_adversary else ''}"
