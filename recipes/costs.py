"""What a training step of a recipe costs, so that studies can be run at equal cost: operations, and seconds here."""

import contextlib
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..blocks.draws import Draws
from ..blocks.slots import TeacherOutput
from ..training.cached import computing_teacher
from ..training.engine import objective_of, train
from ..training.recipe import Recipe
from ..training.records import TIMING, read_records

CALIBRATION_STEPS = 12


@dataclass(frozen=True)
class StepCost:
    """Operations of one training step over its whole batch: model and terms forward and backward; the teacher apart."""

    flops: int
    teacher_flops: int
    parameters: int


def _convolution_backward(
    grad_shape: Sequence[int],
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    bias: object,
    stride: object,
    padding: object,
    dilation: object,
    transposed: bool,
    output_padding: object,
    groups: int,
    mask: Sequence[bool],
    **rest: object,
) -> int:
    """Operations of the gradients of a convolution: to the input and to the weight, each as many as forward.

    torch's own rule forgets the groups in the gradient of the weight, a hundredfold for our depthwise convolutions.
    """
    positions = (x_shape if transposed else grad_shape)[2:]
    forward = 2 * grad_shape[0] * math.prod(positions) * math.prod(weight_shape)
    return forward * (mask[0] + mask[1])


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward})


def count_step(recipe: Recipe) -> StepCost:
    """Count matrix products and convolutions of a step with torch's counter on two images, for the size of the batch.

    A recipe of several stages has the mean of its steps. What the counter does not know (norms, activations, spectra)
    is left out for every variant alike.
    """
    with torch.random.fork_rng(devices=[]):
        model = recipe.model.build()
        teacher = None if recipe.teacher is None else computing_teacher(recipe.teacher)
        built = None if teacher is None else teacher.build()
        flops = teacher_flops = 0.0
        steps = sum(stage.steps for stage in recipe.stages)
        for stage in recipe.stages:
            images = torch.rand(2, recipe.model.channels, stage.resolution, stage.resolution)
            features: TeacherOutput | None = None
            with _counter() as counter:
                if built is not None:
                    features = built(images)
            if teacher is recipe.teacher:  # features of a cache cost nothing here
                teacher_flops += counter.get_total_flops() / 2 * stage.batch * stage.steps / steps
            objective = objective_of(recipe, stage, model)
            with _counter() as counter:
                values, _ = objective(2 * images - 1, features, Draws(0, 0, first=0, batch=2))
                objective.total(values).backward()
            flops += counter.get_total_flops() / 2 * stage.batch * stage.steps / steps
    parameters = sum(p.numel() for p in model.parameters())
    return StepCost(flops=round(flops), teacher_flops=round(teacher_flops), parameters=parameters)


def time_step(recipe: Recipe, device: str | torch.device | None) -> float:
    """Seconds of a training step on this machine as it is now: the median over a few steps of each stage."""
    seconds, total = 0.0, sum(stage.steps for stage in recipe.stages)
    for stage in recipe.stages:
        short: Any = replace(
            stage,
            steps=CALIBRATION_STEPS,
            log_every=1,
            recalibrate=0,
            validate_every=0,
            validate_images=1,
            checkpoint_every=CALIBRATION_STEPS,
        )
        with tempfile.TemporaryDirectory() as folder:
            train(replace(recipe, stages=(short,), start=None), Path(folder) / "run", device=device)
            clock = [line["seconds"] for line in read_records(Path(folder) / "run" / TIMING)]
        # the first steps warm up, the last one validates
        seconds += median(b - a for a, b in pairwise(clock[2:-1])) * stage.steps / total
    return seconds


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with ``steps`` in all, shared among its stages as before; at least one checkpoint a quarter."""
    before = sum(stage.steps for stage in recipe.stages)
    shares = [max(1, round(steps * stage.steps / before)) for stage in recipe.stages]
    shares[-1] = max(1, steps - sum(shares[:-1]))
    return replace(
        recipe,
        stages=tuple(
            replace(stage, steps=share, checkpoint_every=min(stage.checkpoint_every, max(1, -(-share // 4))))
            for stage, share in zip(recipe.stages, shares, strict=True)
        ),
    )


@contextlib.contextmanager
def threads(count: int) -> Any:
    """Compute with ``count`` threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
