"""Variants of a recipe: every combination of the values of some axes, each a recipe of its own.

An axis is a dotted path. Its first word may be a keyword argument of the function that makes the recipe; the value is
then given to the function, which computes in its body what depends on it (a head as wide as the teacher's tokens):

    teacher=hog                 semdisdiffae(teacher=HOGConfig())
    encoder.block=dit           semdisdiffae(encoder=<the recipe's own encoder, with block=DiTBlockConfig()>)

Any other path is one of the recipe, of its model, or of all its stages, tried in this order:

    model.width=64              as it stands
    latent=16                   model.latent
    optimiser.rate=1e-3         stages.*.optimiser.rate

Values are parts or plain Python values, or text as on the command line: a short form, or JSON.
"""

import dataclasses
import inspect
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..blocks.overrides import override
from ..blocks.registry import Part, PartError, decode, decode_value, encode, fields, suggest
from ..training.recipe import Recipe
from .find import Source, called

Labels = dict[str, str]


@dataclass(frozen=True)
class Variant:
    """A recipe under a name that is unique in its study; ``labels`` says which value it has on each axis."""

    name: str
    recipe: Recipe
    labels: Labels = field(default_factory=dict)


def grid(
    source: Source,
    axes: Mapping[str, Sequence[Any]],
    *,
    settings: Iterable[str] = (),
    arguments: Mapping[str, Any] | None = None,
) -> list[Variant]:
    """Return the variants of ``source``, a function of keyword arguments or a recipe, in the order of the axes.

    Args:
        axes: values by path; see the module's text.
        settings: changes of every variant (``model.latent=16``), before those of the axes.
        arguments: of the function, for every variant.

    Raises:
        PartError: a path that leads nowhere, a value that does not fit, or two variants that are the same.
    """
    base = override(called(source, **(arguments or {})), settings)
    places = {path: _place(source, base, path) for path in axes}
    labelled = {path: _labelled(path, values) for path, values in axes.items()}
    variants = []
    for combination in itertools.product(*(values.items() for values in labelled.values())):
        labels = {path: label for path, (label, _) in zip(labelled, combination, strict=True)}
        values = {path: text for path, (_, text) in zip(labelled, combination, strict=True)}
        given = dict(arguments or {}) | _arguments(source, base, places, values)
        recipe = override(called(source, **given), settings)
        dotted = [f"{path}={values[axis]}" for axis in values for path in places[axis].paths]
        variants.append(Variant(name_of(labels) or base.name, override(recipe, dotted), labels))
    check_distinct(variants)
    return variants


def swap(source: Source, swaps: Iterable[str]) -> Recipe:
    """The recipe with other parts, each ``path=value``, which act where an axis of that path would.

    ``teacher=dinov3:vits16`` is given to the function that makes the recipe, so that what depends on the teacher fits.

    Raises:
        PartError: as :func:`grid`.
    """
    axes: dict[str, list[str]] = {}
    for text in swaps:
        path, equals, value = text.partition("=")
        if not equals or not path or not value:
            raise PartError(f"--swap {text}", "is no swap; write path=value, such as teacher=dinov3:vits16")
        if path in axes:
            raise PartError(f"--swap {path}", "is given twice; give it once")
        axes[path] = [value]
    (only,) = grid(source, axes)
    return only.recipe


def check_distinct(variants: Sequence[Variant]) -> None:
    """Refuse a grid in which a value changes nothing: a setting or another axis has undone it."""
    seen: dict[str, str] = {}
    for variant in variants:
        other = seen.setdefault(variant.recipe.id, variant.name)
        if other != variant.name:
            raise PartError("axes", f"{other!r} and {variant.name!r} are the same recipe; leave one of them out")


def name_of(labels: Mapping[str, str]) -> str:
    """The name of the variant with these labels."""
    return ", ".join(f"{path}={label}" for path, label in labels.items())


def split_values(text: str) -> list[str]:
    """Split at commas that stand outside of brackets and quotes: JSON stays whole."""
    found, depth, quoted, start = [], 0, False, 0
    for i, character in enumerate(text):
        if character == '"' and text[i - 1 : i] != "\\":
            quoted = not quoted
        elif not quoted:
            depth += (character in "[{(") - (character in "]})")
            if character == "," and depth == 0:
                found.append(text[start:i])
                start = i + 1
    return [value.strip() for value in [*found, text[start:]]]


def parse_axes(settings: Iterable[str]) -> dict[str, list[str]]:
    """Axes from the command line, ``path=value,value,...`` each.

    Raises:
        PartError: no values, an empty one, or an axis that is given twice.
    """
    axes: dict[str, list[str]] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path.strip():
            raise PartError(f"--axis {setting}", "is no axis; write path=value,value such as teacher=hog,tiny_vit")
        if path in axes:
            raise PartError(f"--axis {path}", "is given twice; put all its values behind one")
        axes[path] = split_values(text)
        if "" in axes[path]:
            raise PartError(f"--axis {path}", f"has an empty value in {text!r}; write path=value,value")
    return axes


# --- where an axis acts -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """An argument of the function and a path inside it, or else paths in the recipe."""

    argument: str = ""
    inside: str = ""
    paths: tuple[str, ...] = ()


def _parameters(source: Source) -> Mapping[str, inspect.Parameter]:
    if isinstance(source, Recipe):
        return {}
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {name: p for name, p in inspect.signature(source).parameters.items() if p.kind in kinds}


def _place(source: Source, base: Recipe, path: str) -> _Place:
    first, _, rest = path.partition(".")
    parameters = _parameters(source)
    if first in parameters:
        if rest and _default(parameters[first], base) is None:
            raise PartError(f"axis {path}", f"the recipe has no {first!r} of its own to change; give {first!r} whole")
        return _Place(argument=first, inside=rest)
    candidates = [(path,), (f"model.{path}",), tuple(f"stages.{i}.{path}" for i in range(len(base.stages)))]
    for paths in candidates:
        if paths and all(_leads_somewhere(base, one) for one in paths):
            return _Place(paths=paths)
    known = [*parameters, *fields(base), *fields(base.model), *(fields(base.stages[0]) if base.stages else ())]
    raise PartError(f"axis {path}", f"leads to no argument and no field of {base.name!r}; {suggest(first, known)}")


def _leads_somewhere(part: Any, path: str) -> bool:
    for name in path.split("."):
        if isinstance(part, tuple):
            named = {str(i): item for i, item in enumerate(part)}
            for item in part:
                if isinstance(item, Part):
                    named.setdefault(getattr(item, "name", "") or item.kind.partition("/")[2], item)
            if name not in named:
                return False
            part = named[name]
        elif isinstance(part, Part) and name in fields(part):
            part = getattr(part, name)
        else:
            return False
    return True


def _default(parameter: inspect.Parameter, base: Recipe) -> Part | None:
    """The part that an argument stands for, when it is not given: its default, or what the recipe makes of none."""
    if isinstance(parameter.default, Part):
        return parameter.default
    for owner in (base.model, base):
        found = getattr(owner, parameter.name, None)
        if isinstance(found, Part):
            return found
    return None


def _arguments(source: Source, base: Recipe, places: Mapping[str, _Place], values: Mapping[str, str]) -> dict[str, Any]:
    """What the function is given; axes inside of an argument change what another axis gives for it."""
    parameters, given = _parameters(source), {}
    for axis, text in sorted(values.items(), key=lambda item: bool(places[item[0]].inside)):
        place = places[axis]
        if not place.argument:
            continue
        if place.inside:
            part = given.get(place.argument) or _default(parameters[place.argument], base)
            assert isinstance(part, Part)
            given[place.argument] = override(part, [f"{place.inside}={text}"], where=f"axis {place.argument}")
        else:
            given[place.argument] = _converted(_read(text), parameters[place.argument], f"axis {axis}")
    return given


def _converted(value: Any, parameter: inspect.Parameter, where: str) -> Any:
    """The value as the argument takes it; without an annotation, a part of the slot that its default has."""
    hint: Any = parameter.annotation
    if hint is inspect.Parameter.empty:
        if not isinstance(parameter.default, Part):
            return value
        hint = next(cls for cls in type(parameter.default).__mro__ if not vars(cls).get("kind"))
    return decode_value(value, hint, where)


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


# --- what values are called ---------------------------------------------------------------------------------------


def _labelled(path: str, values: Sequence[Any]) -> dict[str, str]:
    """Labels and texts of the values of an axis."""
    if not values:
        raise PartError(f"axis {path}", "has no values; give at least one")
    found: dict[str, str] = {}
    for value in values:
        text = value if isinstance(value, str) else json.dumps(encode(value))
        name = label_of(_read(text) if isinstance(value, str) else value)
        if name in found:
            raise PartError(f"axis {path}", f"has {name!r} twice; give each value once")
        found[name] = text
    return found


def label_of(value: Any) -> str:
    """A short name: of a part, what stands behind the slash, and what differs from its defaults."""
    if isinstance(value, dict) and "kind" in value:
        value = decode(value)
    if not isinstance(value, Part):
        return value if isinstance(value, str) else json.dumps(encode(value))
    changed = {}
    for spec in dataclasses.fields(value):
        mine = getattr(value, spec.name)
        if spec.default is dataclasses.MISSING or mine != spec.default:
            changed[spec.name] = mine
    name = value.kind.partition("/")[2]
    if value.shorthand in changed:
        name += f":{label_of(changed.pop(value.shorthand))}"
    inside = ", ".join(f"{key}={label_of(item)}" for key, item in changed.items())
    return f"{name}({inside})" if inside else name
