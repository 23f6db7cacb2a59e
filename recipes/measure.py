"""Measuring a finished run as its recipe says: under its protocols, with its teacher and its probes."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from ..blocks.slots import ImageSource, ProbeConfig
from ..evaluation.measure import evaluate
from ..evaluation.results import Result
from ..training.runs import Run


def measure_run(
    run: Run,
    *,
    held_out: ImageSource | None = None,
    probes: Sequence[ProbeConfig] = (),
    accept: Collection[str] = (),
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[Result]:
    """Give a result for each protocol of the run's recipe.

    Args:
        held_out: images to measure on in place of the recipe's; then nothing is fitted on its training images.
        probes: asked as well, after the recipe's.
        accept: fields in which the teacher's spec may differ from the run's.

    Raises:
        ValueError: the recipe names no protocol, or see :func:`~..evaluation.measure.evaluate`.
    """
    recipe = run.recipe
    if not recipe.evaluation:
        raise ValueError(f"{run.folder}: the recipe {recipe.name!r} names no protocol in 'evaluation'")
    settings: dict[str, Any] = {} if held_out is not None else {"training": recipe.data.training()}
    for protocol in recipe.evaluation:
        yield evaluate(
            run.model,
            recipe.data.held_out() if held_out is None else held_out,
            protocol=protocol,
            teacher=run.teacher,
            predict_tokens=run.predict_tokens,
            grid=run.grid,
            standardise=run.standardise,
            recipe=recipe,
            probes=[*recipe.probes, *(probe for probe in probes if probe not in recipe.probes)],
            teacher_spec=run.teacher_spec,
            accept=accept,
            on_progress=on_progress,
            **settings,
        )
