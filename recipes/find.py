"""Recipes by name, from a user's own Python file, or from JSON or YAML."""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..blocks.registry import PartError, decode, override
from ..training.recipe import Recipe


def find(name: str, settings: Iterable[str] = ()) -> Recipe:
    """Return the recipe that ``name`` stands for, changed by ``settings`` (see :func:`blocks.override`).

    ``name`` is a name of ``RECIPES``, ``./file.py:function``, or a JSON or YAML file such as a run's ``recipe.json``.

    Raises:
        PartError: no such recipe, a file that cannot be read, or a setting that does not fit.
    """
    file, _, attribute = name.rpartition(":")
    if file.endswith(".py"):
        recipe = _from_python(Path(file), attribute)
    elif name.endswith((".json", ".yaml", ".yml")):
        recipe = decode(_read(Path(name)), Recipe)
    else:
        recipe = _named(name)()
    return override(recipe, settings)


def _named(name: str) -> Callable[..., Recipe]:
    from . import RECIPES

    if name in RECIPES:
        return RECIPES[name]
    close = get_close_matches(name, RECIPES, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(map(repr, RECIPES))}"
    raise PartError("recipe", f"none is named {name!r}; {hint}")


def _from_python(path: Path, attribute: str) -> Recipe:
    if not path.is_file():
        raise PartError("recipe", f"there is no file {str(path)!r}")
    module_name = f"latelier_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = getattr(module, attribute, None)
    if callable(made):
        made = made()
    if not isinstance(made, Recipe):
        raise PartError("recipe", f"{str(path)!r} has no recipe function {attribute!r}; write ./file.py:function")
    return made


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise PartError("recipe", f"there is no file {str(path)!r}")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise PartError("recipe", f"{str(path)!r} is no JSON ({error})") from None
    import yaml  # comes with huggingface_hub

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PartError("recipe", f"{str(path)!r} is no YAML ({error})") from None
