"""Changes of a part by dotted paths, as ``--set model.encoder.depth=8`` makes them."""

import json
from collections.abc import Iterable
from typing import Any, TypeVar

from .registry import Part, PartError, decode, encode, suggest

P = TypeVar("P", bound=Part)


def override(config: P, settings: Iterable[str], *, where: str = "config") -> P:
    """Return ``config`` changed by settings such as ``"encoder.depth=8"`` or ``"encoder.block=fcdm"``.

    A value is read as JSON and, failing that, as text. A tuple's item is named by its index, by its field ``name`` or,
    without one, by the name that ends its kind: ``stages.main.objective.alignment.weight=0``. The same checks apply as
    to files.

    Raises:
        PartError: a setting without ``=``, or one that :func:`decode` refuses; ``config`` itself is never changed.
    """
    tree, complete = encode(config), True
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise PartError(setting, "is no setting; write path=value, such as encoder.depth=8")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        if not complete:
            tree = encode(decode(tree, type(config), where=where))
        complete = not isinstance(
            value, str | dict | list
        )  # these may name parts whose fields are still to be filled in
        keys = path.split(".")
        target, at = tree, where
        for key in keys[:-1]:
            target, at = _step(target, key, at), f"{at}.{key}"
        _step(target, keys[-1], at)
        if isinstance(target, list):
            target[_index(target, keys[-1], at)] = value
        else:
            target[keys[-1]] = value
    return decode(tree, type(config), where=where)


def _step(target: Any, key: str, where: str) -> Any:
    if isinstance(target, list):
        return target[_index(target, key, where)]
    if not isinstance(target, dict):
        raise PartError(where, f"is {target!r} and has no field {key!r}")
    if key not in target:
        known = [name for name in target if name != "kind"]
        raise PartError(where, f"{target['kind']!r} has no field {key!r}; {suggest(key, known)}")
    return target[key]


def _index(items: list[Any], key: str, where: str) -> int:
    if key.isdecimal() and int(key) < len(items):
        return int(key)
    names = [item.get("name") or item["kind"].partition("/")[2] if isinstance(item, dict) else "" for item in items]
    if names.count(key) == 1:
        return names.index(key)
    if key in names:
        hint = f"{names.count(key)} items are named so: write an index"
    elif any(names):
        hint = suggest(key, [n for n in names if n])
    else:
        hint = f"it has the indices 0 to {len(items) - 1}" if items else "it is empty"
    raise PartError(where, f"has no item {key!r}; {hint}")
