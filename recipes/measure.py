"""Measuring a finished run as its recipe says: under its protocols, with its teacher and its probes."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from ..blocks.slots import ImageSource, PairSource, ProbeConfig, ProtocolConfig
from ..evaluation.bridge_measure import evaluate_bridge
from ..evaluation.bridge_val import BridgeValConfig
from ..evaluation.measure import evaluate
from ..evaluation.results import Result
from ..families.bridge import LatentBridge
from ..training.runs import Run


def measure_run(
    run: Run,
    *,
    held_out: ImageSource | PairSource | None = None,
    probes: Sequence[ProbeConfig] = (),
    accept: Collection[str] = (),
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[Result]:
    """Give a result for each protocol of the run's recipe.

    Args:
        held_out: images, or pairs for a bridge, to measure on in place of the recipe's; then nothing is fitted on its
            training images. A bridge's baselines are fitted on its training pairs all the same, where they are there.
        probes: asked as well, after the recipe's.
        accept: fields in which the teacher's spec may differ from the run's.

    Raises:
        ValueError: the recipe names no protocol, or one for other models, or see
            :func:`~..evaluation.measure.evaluate` and :func:`~..evaluation.bridge_measure.evaluate_bridge`.
    """
    recipe = run.recipe
    if not recipe.evaluation:
        raise ValueError(f"{run.folder}: the recipe {recipe.name!r} names no protocol in 'evaluation'")
    settings: dict[str, Any] = {"recipe": recipe, "accept": accept, "on_progress": on_progress}
    asked = [*recipe.probes, *(probe for probe in probes if probe not in recipe.probes)]
    if isinstance(run.model, LatentBridge):
        if asked:
            raise ValueError(
                f"{run.folder}: probes ask models of images, and this is a bridge; leave {asked[0].kind} out"
            )
        return _measure_bridge(run, held_out, settings)
    return _measure_images(run, held_out, asked, settings)


def _measure_images(
    run: Run, held_out: Any, probes: Sequence[ProbeConfig], settings: dict[str, Any]
) -> Iterator[Result]:
    recipe = run.recipe
    for protocol in recipe.evaluation:
        if isinstance(protocol, BridgeValConfig):
            raise ValueError(_unfit(run, protocol, "an autoencoder", "protocol/archetype_psnr"))
    fitted: dict[str, Any] = {} if held_out is not None else {"training": recipe.data.training()}
    for protocol in recipe.evaluation:
        yield evaluate(
            run.model,
            recipe.data.held_out() if held_out is None else held_out,
            protocol=protocol,
            teacher=run.teacher,
            predict_tokens=run.predict_tokens,
            grid=run.grid,
            standardise=run.standardise,
            probes=probes,
            teacher_spec=run.teacher_spec,
            **fitted,
            **settings,
        )


def _measure_bridge(run: Run, held_out: Any, settings: dict[str, Any]) -> Iterator[Result]:
    recipe = run.recipe
    data: Any = recipe.data
    try:
        training = data.training()
    except (OSError, ValueError):
        if held_out is None:
            raise
        training = None  # measured elsewhere than it was trained
    for protocol in recipe.evaluation:
        if not isinstance(protocol, BridgeValConfig):
            raise ValueError(_unfit(run, protocol, "a bridge", "protocol/bridge_val"))
        pairs = data.held_out() if held_out is None else held_out
        yield evaluate_bridge(run.model, pairs, training=training, protocol=protocol, **settings)


def _unfit(run: Run, protocol: ProtocolConfig, model: str, right: str) -> str:
    return f"{run.folder}: the model is {model}, which {protocol.kind!r} does not measure; take {right!r}"
