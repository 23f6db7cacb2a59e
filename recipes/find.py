"""Recipes by name, from a user's own Python file, from JSON or YAML, or from a run folder.

:func:`find` gives the recipe, :func:`find_source` what makes it: a function with axes, where there is one.
"""

import functools
import importlib.util
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from ..blocks.overrides import override
from ..blocks.registry import PartError, decode
from ..training.engine import RECIPE
from ..training.recipe import Recipe


def find(name: str, settings: Iterable[str] = ()) -> Recipe:
    """Return the recipe that ``name`` stands for, changed by ``settings`` (see :func:`blocks.override`).

    ``name`` is a name of ``RECIPES``, ``./file.py:function``, a JSON or YAML file, or a run folder.

    Raises:
        PartError: no such recipe, a file that cannot be read or fails, or a setting that does not fit.
    """
    return override(called(find_source(name)), settings)


Source = Callable[..., Recipe] | Recipe
"""What a recipe comes from: a function whose keyword arguments are axes, or the recipe itself."""


def called(source: Source, **arguments: Any) -> Recipe:
    """The recipe that a source gives."""
    return source if isinstance(source, Recipe) else source(**arguments)


def find_source(name: str) -> Source:
    """Return what makes the recipe that ``name`` stands for; see :func:`find`."""
    from . import RECIPES

    if name in RECIPES:
        return RECIPES[name]
    path, (file, _, attribute) = Path(name), name.rpartition(":")
    if file.endswith(".py"):
        return _from_python(Path(file), attribute)
    if name.endswith(".py"):
        return _from_python(path, "")
    if name.endswith((".json", ".yaml", ".yml")):
        return _from_data(path)
    if (path / RECIPE).is_file():
        return _from_data(path / RECIPE)
    close = get_close_matches(name, RECIPES, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(map(repr, RECIPES))}"
    raise PartError("recipe", f"none is named {name!r}; {hint}")


# --- Python -------------------------------------------------------------------------------------------------------


def _from_python(path: Path, attribute: str) -> Source:
    module = run_file(path)
    own = [k for k, v in vars(module).items() if isinstance(v, FunctionType) and v.__module__ == module.__name__]
    if not attribute:
        raise PartError(str(path), f"is a file of recipes; write {path}:{own[0] if own else 'function'}")
    if not hasattr(module, attribute):
        raise PartError(str(path), f"has no function {attribute!r}; it has {', '.join(map(repr, own)) or 'none'}")
    found = getattr(module, attribute)
    return _checked(found, path, attribute) if callable(found) else _as_recipe(found, path, attribute)


def _checked(make: Callable[..., Any], path: Path, attribute: str) -> Callable[..., Recipe]:
    """The function, whose errors name the line of its file, and whose result must be a recipe."""

    @functools.wraps(make, assigned=("__doc__", "__name__"))
    def checked(**arguments: Any) -> Recipe:
        with _naming_the_line(path):
            made = make(**arguments)
        return _as_recipe(made, path, attribute)

    return checked


def _as_recipe(made: Any, path: Path, attribute: str) -> Recipe:
    if not isinstance(made, Recipe):
        raise PartError(str(path), f"{attribute!r} gives {made!r}; it must return a Recipe")
    return made


def run_file(path: Path, *, where: str = "recipe") -> ModuleType:
    """Run a user's Python file; parts that it declares are known from then on.

    Raises:
        PartError: there is no such file, or it fails; the message names its line.
    """
    name = f"latelier_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise PartError(where, f"there is no Python file {str(path)!r}")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    with _naming_the_line(path):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _naming_the_line(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        inside = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path.absolute()]
        line, text = inside[-1:], str(error)
        if isinstance(error, SyntaxError):
            line, text = [error.lineno], error.msg
        where = ":".join(map(str, [path, *line]))
        raise PartError(where, text if isinstance(error, PartError) else f"{type(error).__name__}: {text}") from error


# --- JSON and YAML ------------------------------------------------------------------------------------------------


def _from_data(path: Path) -> Recipe:
    if not path.is_file():
        raise PartError("recipe", f"there is no file {str(path)!r}")
    kind, read = ("JSON", json.loads) if path.suffix == ".json" else ("YAML", _yaml)
    try:
        tree = read(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PartError(str(path), f"is no {kind} ({error})") from None
    try:
        return decode(tree, Recipe)
    except PartError as error:
        raise PartError(f"{path}: {error.where}", error.what) from None


def _yaml(text: str) -> Any:
    import yaml  # comes with huggingface_hub

    class Loader(yaml.SafeLoader):
        """Takes 1e-4 for a number, as YAML 1.2 does."""

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
