"""Measure a bridge on pairs, beside what it must beat, with the time that each takes.

A result has ``rows``: the bridge first, then the baselines, each with its name, the number of pairs, its metrics, its
seconds per image, or ``why`` it is missing. ``bridge_row``, ``bridge_gain`` and ``share_of_gain`` read them.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

from torch import Tensor

from ..blocks.registry import Part, encode
from ..blocks.slots import PairSource, TeacherOutput
from ..blocks.teacher_spec import TeacherSpec
from .bridge_baselines import DecodeThenTeacher, LinearStem, seconds_per_image
from .bridge_val import BridgeValConfig, batches
from .latents import evenly_spaced
from .protocols import frozen, placed_like
from .results import Result, origin, plain

Progress = Callable[[str, int, int], None]

BRIDGE, MEAN, LINEAR, DECODE = "bridge", "mean token", "linear", "decode, then teacher"
"""Names of the rows."""


def evaluate_bridge(
    model: Any,
    held_out: PairSource,
    *,
    training: PairSource | None = None,
    protocol: BridgeValConfig | None = None,
    recipe: Part | None = None,
    decode_then_teacher: bool | Literal["auto"] = "auto",
    accept: Collection[str] = (),
    on_progress: Progress | None = None,
) -> Result:
    """Measure ``model`` on the held-out pairs and return a result for :func:`~.results.save_result`.

    Args:
        model: a :class:`~latelier.families.LatentBridge`.
        training: pairs that fit the baselines; without them their rows say so.
        decode_then_teacher: "auto" decodes where autoencoder and teacher can be built here, and otherwise the row says
            why not; True raises what is in the way.
        accept: fields in which the teacher's spec may differ from the pairs'.

    Raises:
        ValueError: pairs of other latents, of another teacher, or on another grid than the bridge's; or predictions
            that are not finite.
    """
    protocol = protocol or BridgeValConfig()
    progress = on_progress or (lambda what, done, total: None)
    _check(model, held_out, accept)
    if training is not None:
        _check(model, training, accept)
    with frozen(model):

        def bridge(latents: Tensor) -> TeacherOutput:
            return model(placed_like(model, latents))

        indices = protocol.indices(held_out)
        numbers = protocol.measure_on(bridge, held_out, indices, visit=_told(progress, "measure"))
        device = next(model.parameters()).device
        timed = held_out.read(indices[: protocol.timed])[0]

        def seconds(predict: Callable[[Tensor], Any]) -> float:
            return seconds_per_image(lambda: predict(timed), len(timed), device=device)

        rows = [_row(BRIDGE, len(indices), numbers.pop("metrics"), seconds(bridge))]
        linear, why = _fit(held_out, training, protocol, progress)
        if linear is None:
            rows += [_missing(MEAN, why), _missing(LINEAR, why)]
        else:
            for name, predict, cost in ((MEAN, linear.mean, None), (LINEAR, linear, seconds(linear))):
                found = protocol.measure_on(predict, held_out, indices, visit=_told(progress, f"measure {name}"))
                rows.append(_row(name, len(indices), found["metrics"], cost))
        rows.append(_decode(model, held_out, protocol, decode_then_teacher, accept, seconds, progress))
    start = origin(model, protocol, recipe=recipe)
    start["model"] |= {"stride": model.stride, "latent_channels": model.latent_channels}
    return plain(
        start
        | {"set": _set(held_out, numbers["images"]), "pairs": _described(held_out, training)}
        | {"rows": rows, "ratio": _ratio(rows), "timed": len(timed)}
        | numbers
    )


# --- reading a result ---------------------------------------------------------------------------------------------


def bridge_row(result: Result, name: str = BRIDGE) -> dict[str, Any]:
    """The row of that name, "bridge", "mean token", "linear" or "decode, then teacher".

    Raises:
        ValueError: it is no result of a bridge, or the row has no numbers; it says why.
    """
    found = [one for one in result.get("rows", ()) if one["name"] == name]
    if not found:
        raise ValueError(f"result: has no row {name!r}; evaluate a bridge with protocol/bridge_val")
    if "metrics" not in found[0]:
        raise ValueError(f"result: {name!r} has no numbers: {found[0]['why']}")
    return found[0]


def bridge_gain(result: Result, *, over: str = LINEAR, metric: str = "nmse_energy") -> float:
    """By which share a bridge's error is below a baseline's: 1 - error / error of the baseline.

    Raises:
        ValueError: see :func:`bridge_row`, or an error of nothing.
    """
    ours, theirs = (bridge_row(result, name)["metrics"].get(metric) for name in (BRIDGE, over))
    if ours is None or not theirs:
        raise ValueError(f"result: {metric!r} has no ratio to that of {over!r}, {ours} to {theirs}")
    return 1 - ours / theirs


def share_of_gain(result: Result, whole: Result, *, over: str = LINEAR, metric: str = "nmse_energy") -> float:
    """The gain of one bridge over that of another, each against its own baseline.

    With the whole bridge of a space as ``whole``, it says how much of it a new stem before a frozen body reaches.

    Raises:
        ValueError: see :func:`bridge_gain`, or the other gains nothing.
    """
    part, all_of_it = (bridge_gain(one, over=over, metric=metric) for one in (result, whole))
    if all_of_it <= 0:
        raise ValueError(f"result: the whole bridge gains {all_of_it:.3g} over {over!r}, of which there is no share")
    return part / all_of_it


# --- the rows -----------------------------------------------------------------------------------------------------


def _row(name: str, n: int, metrics: dict[str, Any], seconds: float | None) -> dict[str, Any]:
    return {"name": name, "n": n, "metrics": metrics, "seconds_per_image": seconds}


def _missing(name: str, why: str) -> dict[str, Any]:
    return {"name": name, "why": why}


def _fit(
    held_out: PairSource, training: PairSource | None, protocol: BridgeValConfig, progress: Progress
) -> tuple[LinearStem | None, str]:
    """The linear baseline, or why there is none."""
    if training is None or not len(training):
        return None, "there are no training pairs to fit it on"
    try:
        linear = LinearStem(latent=held_out.latent_shape, grid=held_out.grid, features=held_out.features)
    except ValueError as error:
        return None, str(error)
    indices, done = list(evenly_spaced(len(training), protocol.fitted)), 0
    for chosen, latents, target in batches(training, indices, protocol.batch):
        linear.observe(latents, target)
        done += len(chosen)
        progress("fit the baselines", done, len(indices))
    return linear.solve(), ""


def _decode(
    model: Any,
    held_out: PairSource,
    protocol: BridgeValConfig,
    wanted: bool | Literal["auto"],
    accept: Collection[str],
    seconds: Callable[[Callable[[Tensor], Any]], float],
    progress: Progress,
) -> dict[str, Any]:
    if wanted is False:
        return _missing(DECODE, "it was not asked for")
    try:
        device = next(model.parameters()).device
        decode = DecodeThenTeacher(model.space, model.config.teacher, device=device, accept=accept)
        decode.check(held_out)
    except (ImportError, OSError, ValueError) as error:
        if wanted is True:
            raise
        return _missing(DECODE, f"it cannot be built here: {error}")
    indices = protocol.indices(held_out, protocol.decoded)
    found = protocol.measure_on(decode, held_out, indices, visit=_told(progress, f"measure {DECODE}"))
    return _row(DECODE, len(indices), found["metrics"], seconds(decode))


def _ratio(rows: Sequence[dict[str, Any]]) -> float | None:
    """How many times longer decoding for the teacher takes than the bridge; None where one has no time."""
    times = {one["name"]: one.get("seconds_per_image") for one in rows}
    ours, theirs = times[BRIDGE], times[DECODE]
    return theirs / ours if ours and theirs else None


# --- what was measured --------------------------------------------------------------------------------------------


def _check(model: Any, pairs: PairSource, accept: Collection[str]) -> None:
    model.latent_spec.check(pairs.latent_spec, where="bridge")
    spec: TeacherSpec | None = model.teacher_spec
    if spec is not None and pairs.teacher_spec is not None:
        spec.check(pairs.teacher_spec, where="pairs", accept=accept)


def _set(pairs: PairSource, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Count and id of the pairs: the id follows from their names, their size and their teacher, not from the space.

    Bridges from several spaces to one teacher, on the same images, share a table.
    """
    teacher = None if pairs.teacher_spec is None else encode(pairs.teacher_spec)
    text = json.dumps([teacher, pairs.resolution, sorted(r["name"] for r in rows)], sort_keys=True)
    return {"n": len(rows), "id": hashlib.sha256(text.encode()).hexdigest()[:12]}


def _described(held_out: PairSource, training: PairSource | None) -> dict[str, Any]:
    return {
        "latent_spec": encode(held_out.latent_spec),
        "teacher_spec": None if held_out.teacher_spec is None else encode(held_out.teacher_spec),
        "resolution": held_out.resolution,
        "latent": list(held_out.latent_shape),
        "grid": list(held_out.grid),
        "features": held_out.features,
        "held_out": len(held_out),
        "training": None if training is None else len(training),
    }


def _told(progress: Progress, what: str) -> Callable[[Any], None]:
    return lambda pair: progress(what, pair.index + 1, pair.total)
