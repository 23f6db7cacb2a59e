"""Parts: frozen configs that build something, and the names by which files find their classes again.

A part is a keyword-only frozen dataclass whose field values are checked when it is made. ``@part("slot/name")``
declares it under a short name, its *kind*, which is what JSON files carry; Python code imports the class and needs
no name. Abstract subclasses of :class:`Part` in ``slots.py`` are the swap points.

Every problem is a :class:`PartError`, whose text is *where: what is wrong; what would be right*.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, ClassVar, Literal, TypeVar, Union, dataclass_transform

from beartype.door import is_bearable

ENTRY_POINTS = "latelier.parts"
"""Entry-point group through which other packages declare parts: each entry names a module to import."""

_declared: dict[str, type["Part"]] = {}


class PartError(ValueError):
    """A part, or a file that describes one, is wrong; says where, what, and what would be right."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")
        self.where, self.what = where, what

    def __reduce__(self) -> tuple[type["PartError"], tuple[str, str]]:
        return type(self), (self.where, self.what)


class Part:
    """Base of all configs. ``slot`` names the swap point, ``kind`` is ``slot/name``; both are set on classes.

    ``shorthand`` is the field that the text behind a colon sets in a short form: ``dinov3:vits16``.
    """

    slot: ClassVar[str] = ""
    kind: ClassVar[str] = ""
    shorthand: ClassVar[str] = ""
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that equal parts share, on every machine and in every session."""
        text = json.dumps(encode(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


P = TypeVar("P", bound=Part)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field,))
def part(kind: str) -> Callable[[type[P]], type[P]]:
    """Declare a class as the part ``kind``: freeze it, make it keyword-only, check its values whenever one is made.

    A ``__post_init__`` of the class runs after the types are checked; it may raise ``ValueError("field: what is
    wrong; what would be right")``, which readers see with the full path of the field in front.
    """

    def declare(cls: Any) -> Any:
        slot, _, name = kind.partition("/")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", slot) or not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name):
            raise PartError(cls.__qualname__, f"{kind!r} is no kind; write 'slot/name' in small letters")
        if not issubclass(cls, Part):
            raise PartError(cls.__qualname__, "a part subclasses Part or one of the slots")
        if cls.slot and cls.slot != slot:
            raise PartError(cls.__qualname__, f"{kind!r} is declared in slot {cls.slot!r}; name it '{cls.slot}/{name}'")
        other = _declared.get(kind)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            owner = f"{other.__module__}.{other.__qualname__}"
            raise PartError(cls.__qualname__, f"{kind!r} is declared by {owner}; choose another name")
        user_check = getattr(cls, "__post_init__", None)

        def post_init(self: P) -> None:
            if type(self) is cls:
                _check_values(self)
            if user_check is not None:
                try:
                    user_check(self)
                except PartError:
                    raise
                except ValueError as error:
                    where, _, what = str(error).partition(": ")
                    if where.partition(".")[0] in cls.__dataclass_fields__:
                        raise PartError(f"config.{where}", what) from None
                    raise PartError("config", str(error)) from None

        cls.__post_init__ = post_init  # type: ignore[attr-defined]
        made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
        for spec in dataclasses.fields(made):
            if hasattr(Part, spec.name):
                raise PartError(cls.__qualname__, f"every part has its own {spec.name!r}; choose another field name")
        if made.shorthand and made.shorthand not in made.__dataclass_fields__:
            raise PartError(cls.__qualname__, f"has no field {made.shorthand!r} for its short form")
        _leave_checks_to_us(made)
        made.slot, made.kind = slot, kind
        _declared[kind] = made
        return made

    return declare


def _leave_checks_to_us(cls: Any) -> None:
    """Keep the shape-checking hook of tests off ``__init__``: it would refuse an int for a float, in its own words."""
    signature = inspect.signature(cls.__init__)
    cls.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
    cls.__init__.__annotations__ = {}


def parts(slot: type[P] | None = None) -> tuple[type[P], ...]:
    """Return the declared classes, or those of one slot, in the order of their kinds."""
    found = (cls for _, cls in sorted(_declared.items()) if slot is None or issubclass(cls, slot))
    return typing.cast("tuple[type[P], ...]", tuple(found))


@functools.cache
def discover() -> tuple[str, ...]:
    """Import, once, what installed packages name in the entry-point group ``latelier.parts``; return what failed."""
    failed = []
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            entry.load()
        except Exception as error:  # another package's fault must not hide ours; it is told when a name is missing
            failed.append(f"the plug-in {entry.name!r} ({entry.value}) failed with {type(error).__name__}: {error}")
    return tuple(failed)


def fields(cls: type[Part] | Part) -> dict[str, Any]:
    """Return the fields of a part with their types, in the order of declaration."""
    cls = cls if isinstance(cls, type) else type(cls)
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def short_name(config: Part) -> str:
    """The second half of a part's kind, followed by its id where its settings are not its defaults."""
    name = config.kind.partition("/")[2]
    with contextlib.suppress(TypeError):  # a field without a default
        if config == type(config)():
            return name
    return f"{name}-{config.id}"


# --- to and from JSON -------------------------------------------------------------------------------------------


def encode(value: Any) -> Any:
    """Return the JSON form: parts as objects with ``kind`` first, tuples as lists."""
    if isinstance(value, Part):
        if not vars(type(value)).get("kind"):
            raise PartError(type(value).__qualname__, "is not declared; decorate it with @part('slot/name')")
        return {"kind": value.kind} | {name: encode(getattr(value, name)) for name in fields(value)}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value


def decode(value: Any, slot: type[P] = Part, *, where: str = "config") -> P:
    """Rebuild a part from its JSON form; ``slot`` says what is expected there.

    Raises:
        PartError: unknown kind or field, wrong type or slot; the message starts with the path inside the file.
    """
    return _decode_part(value, slot, where)


def _decode_part(value: Any, slot: type[P], where: str) -> P:
    if isinstance(value, str):
        value = _short_form(value, slot, where)
    if not isinstance(value, Mapping):
        raise PartError(where, f"takes {_describe(slot)}, got {value!r}")
    if "kind" not in value:
        raise PartError(where, f"has no 'kind'; it names the part, such as {_an_example(slot)}")
    cls = _find(value["kind"], slot, where)
    known = fields(cls)
    given = {name: item for name, item in value.items() if name != "kind"}
    for name in given:
        if name not in known:
            raise PartError(where, f"{cls.kind!r} has no field {name!r}; {suggest(str(name), known)}")
    for spec in dataclasses.fields(cls):
        required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        if required and spec.name not in given:
            raise PartError(where, f"{cls.kind!r} needs {spec.name!r}, {_describe(known[spec.name])}")
    ready = {name: decode_value(item, known[name], f"{where}.{name}") for name, item in given.items()}
    try:
        return cls(**ready)
    except PartError as error:
        raise PartError(where + error.where.removeprefix("config"), error.what) from None


def _short_form(text: str, slot: type[P], where: str) -> dict[str, Any]:
    """A part with its defaults, as in --set encoder.block=fcdm, or with its one telling field, as in dinov3:vits16."""
    if text.lstrip().startswith("{"):
        raise PartError(where, f"is no whole JSON, got {text!r}")
    name, colon, setting = text.partition(":")
    kind = name if "/" in name or not slot.slot else f"{slot.slot}/{name}"
    if not colon:
        return {"kind": kind}
    cls = _find(kind, slot, where)
    if not cls.shorthand:
        raise PartError(where, f"{cls.kind!r} takes nothing behind a colon, got {text!r}; write its fields as JSON")
    try:
        value = json.loads(setting)
    except json.JSONDecodeError:
        value = setting
    return {"kind": cls.kind, cls.shorthand: value}


def _find(kind: Any, slot: type[P], where: str) -> type[P]:
    if str(kind) not in _declared:
        discover()
    cls = _declared.get(str(kind))
    if cls is None:
        pool = [c.kind for c in parts(slot)] or list(_declared)
        raise PartError(where, "; ".join([f"no part is named {kind!r}", suggest(str(kind), pool), *discover()]))
    if not issubclass(cls, slot):
        raise PartError(where, f"takes {_describe(slot)}, got {kind!r}")
    return cls


def decode_value(value: Any, hint: Any, where: str) -> Any:
    """The value that a JSON form stands for where ``hint`` is expected; raises as :func:`decode`."""
    for option in _options(hint):
        if isinstance(option, type) and issubclass(option, Part) and isinstance(value, Mapping | str):
            return _decode_part(value, option, where)
    items = _item_hints(value, hint)
    if items is not None:
        return tuple(decode_value(item, items[i], f"{where}.{i}") for i, item in enumerate(value))
    return _checked(value, hint, where)


# --- comparison ---------------------------------------------------------------------------------------------------


def differences(ours: object, theirs: object, *, where: str = "config") -> list[str]:
    """Return where two parts differ, as lines ``path: ours, not theirs``."""
    if isinstance(ours, Part) and isinstance(theirs, Part) and ours.kind == theirs.kind:
        pairs = [(f"{where}.{name}", getattr(ours, name), getattr(theirs, name)) for name in fields(ours)]
    elif isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == len(theirs):
        pairs = [(f"{where}.{i}", a, b) for i, (a, b) in enumerate(zip(ours, theirs, strict=True))]
    else:
        a, b = (x.kind if isinstance(x, Part) else x for x in (ours, theirs))
        return [] if ours == theirs else [f"{where}: {a!r}, not {b!r}"]
    return [line for path, a, b in pairs for line in differences(a, b, where=path)]


# --- checks of values ---------------------------------------------------------------------------------------------


def _check_values(self: Part) -> None:
    for name, hint in fields(self).items():
        value = getattr(self, name)
        checked = _checked(value, hint, f"config.{name}")
        if checked is not value:
            object.__setattr__(self, name, checked)


def _checked(value: Any, hint: Any, where: str) -> Any:
    """Return ``value`` (an int as float where floats belong) or raise; a bool is no number, NaN and inf no setting."""
    options = _options(hint)
    if isinstance(value, bool) and bool not in options and not any(_is_literal(o, value) for o in options):
        raise PartError(where, f"takes {_describe(hint)}, got {value!r}")
    if type(value) is int and float in options and int not in options:
        with contextlib.suppress(OverflowError):
            value = float(value)
    if isinstance(value, tuple) and (items := _item_hints(value, hint)) is not None:
        return tuple(_checked(item, items[i], f"{where}.{i}") for i, item in enumerate(value))
    if not is_bearable(value, hint):
        known = [arg for o in options if typing.get_origin(o) is Literal for arg in typing.get_args(o)]
        close = _closest(value, known) if isinstance(value, str) else None
        got = repr(value.kind) if isinstance(value, Part) and value.kind else repr(value)
        raise PartError(where, f"takes {_describe(hint)}, got {got}" + (f"; did you mean {close!r}?" if close else ""))
    if isinstance(value, float):
        if not math.isfinite(value):
            raise PartError(where, f"takes a finite number, got {value!r}")
        value += 0.0  # -0.0 equals 0.0, and equal parts share an id
    return value


def _item_hints(value: Any, hint: Any) -> tuple[Any, ...] | None:
    """Return the hints of the items of a list or tuple, where exactly one option of ``hint`` is a tuple as long."""
    found = []
    for option in _options(hint) if isinstance(value, list | tuple) else ():
        if typing.get_origin(option) is tuple:
            args = typing.get_args(option)
            items = args[:1] * len(value) if args[1:] == (...,) else args
            found += [items] if len(items) == len(value) else []
    return found[0] if len(found) == 1 else None


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is_literal(option: Any, value: Any) -> bool:
    return typing.get_origin(option) is Literal and any(arg is value for arg in typing.get_args(option))


def _describe(hint: Any) -> str:
    options = _options(hint)
    if len(options) > 1:
        return " or ".join(_describe(option) for option in options)
    if hint is None or hint is types.NoneType:
        return "None"
    if typing.get_origin(hint) is Literal:
        return " or ".join(repr(arg) for arg in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return "tuple[" + ", ".join("..." if a is ... else _describe(a) for a in typing.get_args(hint)) + "]"
    if isinstance(hint, type) and issubclass(hint, Part):
        return repr(hint.kind) if hint.kind else f"a part of slot {hint.slot!r}" if hint.slot else "a part"
    return getattr(hint, "__name__", str(hint))


def _an_example(slot: type[Part]) -> str:
    found = parts(slot)
    return repr(found[0].kind) if found else f"'{slot.slot or 'slot'}/name'"


def _closest(name: str, known: Iterable[Any]) -> str | None:
    slot = name[: name.find("/") + 1]  # that two kinds share their slot makes them no likelier to be confused
    names = {str(k).removeprefix(slot): str(k) for k in known}
    close = get_close_matches(name.removeprefix(slot), names, n=1) or get_close_matches(name, names, n=1)
    return names[close[0]] if close else None


def suggest(name: str, known: Iterable[str]) -> str:
    """What would be right in the place of a name that is not known."""
    known = list(known)
    close = _closest(name, known)
    if close:
        return f"did you mean {close!r}?"
    return "known: " + ", ".join(map(repr, known)) if known else "it takes none"
