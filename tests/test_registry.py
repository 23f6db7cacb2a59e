"""Parts: what is checked when they are made, how they become JSON and return, and what is said when they do not."""

import contextlib
import copy
import dataclasses
import importlib.metadata
import inspect
import json
import math
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import latelier.evaluation
import latelier.families
import latelier.recipes
import latelier.training
from latelier.blocks import (
    BlockConfig,
    DiTBlockConfig,
    EncoderConfig,
    FCDMBlock,
    FCDMBlockConfig,
    Part,
    PartError,
    StackEncoderConfig,
    decode,
    encode,
    override,
    part,
    parts,
    registry,
)


class OddityConfig(Part):
    """A slot of these tests alone."""

    slot = "oddity"


@part("oddity/leaf")
class LeafConfig(OddityConfig):
    count: int = 1
    ratio: float = 0.5
    label: str = "a"
    mode: Literal["nearest", "bilinear"] = "nearest"
    flag: bool = False
    sizes: tuple[int, ...] = ()
    span: tuple[float, float] = (0.0, 1.0)
    limit: float | None = None
    switch: Literal["auto", True] = "auto"

    def __post_init__(self) -> None:
        if self.ratio < 0:
            raise ValueError(f"ratio: must not be negative, got {self.ratio}; write 0 or more")
        if self.count > 1000:
            raise ValueError("is too large for a leaf")


@part("oddity/tree")
class TreeConfig(OddityConfig):
    leaf: OddityConfig = LeafConfig()
    leaves: tuple[OddityConfig, ...] = ()
    maybe: BlockConfig | None = None
    exact: LeafConfig = LeafConfig()
    encoder: EncoderConfig = StackEncoderConfig()


@part("oddity/needy")
class NeedyConfig(OddityConfig):
    width: int
    leaf: OddityConfig


LEAF = {"kind": "oddity/leaf"}
TREE = {"kind": "oddity/tree"}


def says(error: pytest.ExceptionInfo[PartError], message: str) -> bool:
    assert str(error.value) == message
    return True


# --- declaring ----------------------------------------------------------------------------------------------------


def test_a_part_declared_a_moment_ago_is_a_citizen_at_once() -> None:
    @part("block/oddly_plain")
    class OddlyPlainConfig(BlockConfig):
        def build(self, width: int, *, cond: int | None = None) -> torch.nn.Module:
            return torch.nn.Identity()

    assert OddlyPlainConfig in parts(BlockConfig)
    assert OddlyPlainConfig not in parts(EncoderConfig)
    encoder = decode({"kind": "encoder/stack", "block": "oddly_plain"}, EncoderConfig)
    assert encoder == StackEncoderConfig(block=OddlyPlainConfig())
    assert decode(encode(encoder)) == encoder


def test_a_notebook_cell_may_be_run_again() -> None:
    cell = "@part('oddity/cell')\nclass CellConfig(Part):\n    depth: int = {}\n"
    notebook = {"__name__": "__main__", "part": part, "Part": Part}
    exec(cell.format(1), notebook)
    exec(cell.format(2), notebook)
    assert parts(notebook["CellConfig"]) == (notebook["CellConfig"],)  # type: ignore[arg-type]
    assert encode(decode("oddity/cell")) == {"kind": "oddity/cell", "depth": 2}


def test_parts_come_in_the_order_of_their_kinds() -> None:
    assert [cls.kind for cls in parts(OddityConfig)] == ["oddity/leaf", "oddity/needy", "oddity/tree"]
    kinds = [cls.kind for cls in parts()]
    assert kinds == sorted(kinds)


def test_a_name_that_another_class_has_is_refused() -> None:
    with pytest.raises(PartError) as error:

        @part("block/fcdm")
        class OtherConfig(BlockConfig):
            pass

    owner = f"{FCDMBlockConfig.__module__}.FCDMBlockConfig"
    where = test_a_name_that_another_class_has_is_refused.__name__ + ".<locals>.OtherConfig"
    assert says(error, f"{where}: 'block/fcdm' is declared by {owner}; choose another name")
    assert decode("block/fcdm") == FCDMBlockConfig()


@pytest.mark.parametrize("kind", ["fcdm", "block/", "/fcdm", "Block/fcdm", "block/FCDM", "block fcdm", "a/b/c", ""])
def test_a_kind_is_slot_and_name_in_small_letters(kind: str) -> None:
    with pytest.raises(PartError) as error:
        part(kind)(type("Odd", (Part,), {}))
    assert says(error, f"Odd: {kind!r} is no kind; write 'slot/name' in small letters")


def test_a_part_is_named_after_its_slot() -> None:
    with pytest.raises(PartError) as error:
        part("encoder/odd")(type("Odd", (BlockConfig,), {}))
    assert says(error, "Odd: 'encoder/odd' is declared in slot 'block'; name it 'block/odd'")


def test_a_part_subclasses_part() -> None:
    with pytest.raises(PartError) as error:
        part("oddity/odd")(type("Odd", (), {}))  # type: ignore[arg-type]
    assert says(error, "Odd: a part subclasses Part or one of the slots")


@pytest.mark.parametrize("name", ["kind", "slot", "id"])
def test_fields_leave_the_names_of_every_part_alone(name: str) -> None:
    with pytest.raises(PartError) as error:
        part("oddity/odd")(type("Odd", (Part,), {"__annotations__": {name: str}}))
    assert says(error, f"Odd: every part has its own {name!r}; choose another field name")
    with pytest.raises(PartError, match="no part is named 'oddity/odd'"):
        decode("oddity/odd")


def test_parts_are_frozen_comparable_hashable_and_take_keywords_only() -> None:
    leaf = LeafConfig(count=3)
    assert leaf == LeafConfig(count=3) != LeafConfig(count=4)
    assert len({leaf, LeafConfig(count=3), LeafConfig(count=4)}) == 2
    assert dataclasses.replace(leaf, count=4) == LeafConfig(count=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        leaf.count = 4  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        LeafConfig(3)  # type: ignore[misc]


def test_the_signature_shows_the_types_of_the_fields() -> None:
    assert str(inspect.signature(FCDMBlockConfig)) == "(*, kernel: int = 7, expand: float = 4.0) -> None"


def test_composition_works_with_the_registry_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_declared", {})
    encoder = StackEncoderConfig(block=FCDMBlockConfig(kernel=3), depth=1)
    assert isinstance(encoder.block.build(8, cond=4), FCDMBlock)
    assert encoder.build(channels=3, patch=2, width=8, out=4)(torch.zeros(1, 3, 4, 4)).shape == (1, 4, 2, 2)


# --- values --------------------------------------------------------------------------------------------------------

WRONG_VALUES = {
    "text for a number": ("count", "5", "takes int, got '5'"),
    "a float for an int": ("count", 5.0, "takes int, got 5.0"),
    "a bool for an int": ("count", True, "takes int, got True"),
    "nothing for an int": ("count", None, "takes int, got None"),
    "a bool for a float": ("ratio", True, "takes float, got True"),
    "not a number": ("ratio", math.nan, "takes a finite number, got nan"),
    "infinity": ("ratio", -math.inf, "takes a finite number, got -inf"),
    "infinity where None may be": ("limit", math.inf, "takes a finite number, got inf"),
    "text where None may be": ("limit", "low", "takes float or None, got 'low'"),
    "a number for text": ("label", 3, "takes str, got 3"),
    "a number for a bool": ("flag", 1, "takes bool, got 1"),
    "a near miss of a choice": (
        "mode",
        "nearst",
        "takes 'nearest' or 'bilinear', got 'nearst'; did you mean 'nearest'?",
    ),
    "a far miss of a choice": ("mode", "cubic", "takes 'nearest' or 'bilinear', got 'cubic'"),
    "a number that equals a choice": ("switch", 1, "takes 'auto' or True, got 1"),
    "a bool that is no choice": ("switch", False, "takes 'auto' or True, got False"),
    "text for a tuple": ("sizes", "12", "takes tuple[int, ...], got '12'"),
    "one number for a tuple": ("sizes", 12, "takes tuple[int, ...], got 12"),
    "too many items": ("span", (0.0, 1.0, 2.0), "takes tuple[float, float], got (0.0, 1.0, 2.0)"),
}
WRONG_ITEMS = {
    "text among numbers": ("sizes", (1, 2, 3, "4"), "3: takes int, got '4'"),
    "a bool among numbers": ("sizes", (1, True), "1: takes int, got True"),
    "not a number in a tuple": ("span", (0, math.nan), "1: takes a finite number, got nan"),
}


@pytest.mark.parametrize(("field", "value", "problem"), WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_a_wrong_value_is_refused(field: str, value: Any, problem: str) -> None:
    with pytest.raises(PartError) as error:
        LeafConfig(**{field: value})
    assert says(error, f"config.{field}: {problem}")
    with pytest.raises(PartError) as error:
        decode(LEAF | {field: value})
    assert says(error, f"config.{field}: {problem}")


@pytest.mark.parametrize(("field", "value", "problem"), WRONG_ITEMS.values(), ids=WRONG_ITEMS)
def test_a_wrong_item_of_a_tuple_is_refused_every_time(field: str, value: Any, problem: str) -> None:
    for _ in range(20):  # beartype by itself looks at one item, drawn by chance
        with pytest.raises(PartError) as error:
            LeafConfig(**{field: value})
        assert says(error, f"config.{field}.{problem}")
    with pytest.raises(PartError) as error:
        decode(TREE | {"leaves": [LEAF, LEAF | {field: list(value)}]})
    assert says(error, f"config.leaves.1.{field}.{problem}")


def test_python_takes_no_list_for_a_tuple_but_json_has_nothing_else() -> None:
    with pytest.raises(PartError) as error:
        LeafConfig(sizes=[1, 2])  # type: ignore[arg-type]
    assert says(error, "config.sizes: takes tuple[int, ...], got [1, 2]")
    assert decode(LEAF | {"sizes": [1, 2]}) == LeafConfig(sizes=(1, 2))
    with pytest.raises(PartError) as error:
        decode(LEAF | {"span": [1, 2, 3]})
    assert says(error, "config.span: takes tuple[float, float], got [1, 2, 3]")


def test_an_int_becomes_a_float_where_a_float_belongs() -> None:
    leaf = LeafConfig(ratio=2, span=(0, 3), limit=4)
    assert [type(value) for value in (leaf.ratio, *leaf.span, leaf.limit)] == [float] * 4
    assert leaf.id == LeafConfig(ratio=2.0, span=(0.0, 3.0), limit=4.0).id
    assert LeafConfig(ratio=-0.0).id == LeafConfig(ratio=0.0).id


def test_an_int_too_large_for_a_float_is_refused() -> None:
    with pytest.raises(PartError, match=r"config\.ratio: takes float, got 1000"):
        LeafConfig(ratio=10**400)


def test_a_choice_may_be_a_bool() -> None:
    assert decode(LEAF | {"switch": True}) == LeafConfig(switch=True)


def test_parts_are_refused_in_the_wrong_place() -> None:
    with pytest.raises(PartError) as error:
        StackEncoderConfig(block=StackEncoderConfig())  # type: ignore[arg-type]
    assert says(error, "config.block: takes a part of slot 'block', got 'encoder/stack'")
    with pytest.raises(PartError) as error:
        TreeConfig(maybe=LeafConfig())  # type: ignore[arg-type]
    assert says(error, "config.maybe: takes a part of slot 'block' or None, got 'oddity/leaf'")
    with pytest.raises(PartError) as error:
        TreeConfig(exact=TreeConfig())  # type: ignore[arg-type]
    assert says(error, "config.exact: takes 'oddity/leaf', got 'oddity/tree'")


def test_a_check_of_the_part_itself_speaks_with_the_path_in_front() -> None:
    with pytest.raises(PartError) as error:
        LeafConfig(ratio=-1)
    assert says(error, "config.ratio: must not be negative, got -1.0; write 0 or more")
    with pytest.raises(PartError) as error:
        decode(TREE | {"leaves": [LEAF, LEAF | {"ratio": -1}]})
    assert says(error, "config.leaves.1.ratio: must not be negative, got -1.0; write 0 or more")
    with pytest.raises(PartError) as error:
        decode(TREE | {"leaf": LEAF | {"count": 1001}})
    assert says(error, "config.leaf: is too large for a leaf")


def test_a_part_that_extends_a_part_keeps_its_checks() -> None:
    @part("oddity/maple")
    class MapleConfig(LeafConfig):
        points: int = 5

    with pytest.raises(PartError) as error:
        MapleConfig(ratio=-1)
    assert says(error, "config.ratio: must not be negative, got -1.0; write 0 or more")
    with pytest.raises(PartError) as error:
        MapleConfig(points="5")  # type: ignore[arg-type]
    assert says(error, "config.points: takes int, got '5'")
    assert encode(MapleConfig())["kind"] == "oddity/maple"


# --- files ----------------------------------------------------------------------------------------------------------


def test_the_json_form_is_nested_objects_with_their_kinds_first() -> None:
    tree = TreeConfig(leaves=(LeafConfig(sizes=(1, 2)),), maybe=FCDMBlockConfig())
    json_form = encode(tree)
    assert next(iter(json_form)) == "kind"
    assert json_form["maybe"] == {"kind": "block/fcdm", "kernel": 7, "expand": 4.0}
    assert json_form["leaves"][0]["sizes"] == [1, 2]
    assert json.loads(json.dumps(json_form)) == json_form


def test_a_part_without_a_kind_is_not_encoded() -> None:
    class WildConfig(LeafConfig):
        pass

    for wild in (WildConfig(), Part()):
        with pytest.raises(PartError) as error:
            encode(wild)
        assert says(error, f"{type(wild).__qualname__}: is not declared; decorate it with @part('slot/name')")


def test_fields_left_out_of_a_file_take_their_defaults() -> None:
    assert decode(TREE | {"leaf": {"kind": "oddity/leaf", "count": 2}}) == TreeConfig(leaf=LeafConfig(count=2))


def test_a_name_alone_stands_for_a_part_with_its_defaults() -> None:
    assert decode("block/fcdm") == FCDMBlockConfig()
    assert decode("fcdm", BlockConfig) == FCDMBlockConfig()
    assert decode({"kind": "encoder/stack", "block": "dit"}) == StackEncoderConfig(block=DiTBlockConfig())


def test_a_name_with_a_colon_sets_the_one_field_that_tells_parts_of_a_kind_apart() -> None:
    assert decode("dit:32", BlockConfig) == decode("block/dit:32") == DiTBlockConfig(head_width=32)
    assert override(StackEncoderConfig(), ["block=dit:32"]) == StackEncoderConfig(block=DiTBlockConfig(head_width=32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fcdm:7", "config: 'block/fcdm' takes nothing behind a colon, got 'fcdm:7'; write its fields as JSON"),
        ("dti:32", "config: no part is named 'block/dti'; did you mean 'block/dit'?"),
        ("dit:wide", "config.head_width: takes int, got 'wide'"),
        ("dit:3", "config.head_width: must be a positive multiple of 4 (axial RoPE), got 3"),
        ("dit:", "config.head_width: takes int, got ''"),
        ('{"kind": "block/dit"', """config: is no whole JSON, got '{"kind": "block/dit"'"""),
    ],
)
def test_a_short_form_that_does_not_fit_is_told(text: str, message: str) -> None:
    with pytest.raises(PartError) as error:
        decode(text, BlockConfig)
    assert says(error, message)


def test_a_short_form_needs_a_field() -> None:
    with pytest.raises(PartError) as error:

        @part("oddity/stub")
        class StubConfig(OddityConfig):
            shorthand = "size"

    assert says(error, "test_a_short_form_needs_a_field.<locals>.StubConfig: has no field 'size' for its short form")


STACK = {"kind": "encoder/stack"}
WRONG_FILES: dict[str, tuple[Any, type[Part], str]] = {
    "a near miss of a name": (
        TREE | {"encoder": STACK | {"block": {"kind": "block/fcmd"}}},
        Part,
        "config.encoder.block: no part is named 'block/fcmd'; did you mean 'block/fcdm'?",
    ),
    "a near miss of a short name": (
        STACK | {"block": "fcmd"},
        EncoderConfig,
        "config.block: no part is named 'block/fcmd'; did you mean 'block/fcdm'?",
    ),
    "a near miss of a field": (
        STACK | {"block": {"kind": "block/fcdm", "kernal": 5}},
        EncoderConfig,
        "config.block: 'block/fcdm' has no field 'kernal'; did you mean 'kernel'?",
    ),
    "a far miss of a field": (
        {"kind": "block/fcdm", "zoom": 5},
        BlockConfig,
        "config: 'block/fcdm' has no field 'zoom'; known: 'kernel', 'expand'",
    ),
    "a field that is no text": (
        {"kind": "block/fcdm", 3: 5},
        Part,
        "config: 'block/fcdm' has no field 3; known: 'kernel', 'expand'",
    ),
    "a wrong type": ({"kind": "block/fcdm", "kernel": "5"}, BlockConfig, "config.kernel: takes int, got '5'"),
    "a far miss of a name": (
        {"kind": "oddity/umbrella"},
        OddityConfig,
        "config: no part is named 'oddity/umbrella'; known: 'oddity/leaf', 'oddity/needy', 'oddity/tree'",
    ),
    "a kind that is no text": (
        {"kind": 7},
        OddityConfig,
        "config: no part is named 7; known: 'oddity/leaf', 'oddity/needy', 'oddity/tree'",
    ),
    "the wrong slot": (
        STACK | {"block": STACK},
        Part,
        "config.block: takes a part of slot 'block', got 'encoder/stack'",
    ),
    "the wrong slot at the top": (
        "block/fcdm",
        EncoderConfig,
        "config: takes a part of slot 'encoder', got 'block/fcdm'",
    ),
    "another part of the same slot": (
        TREE | {"exact": TREE},
        Part,
        "config.exact: takes 'oddity/leaf', got 'oddity/tree'",
    ),
    "no kind": (
        TREE | {"leaf": {"count": 3}},
        Part,
        "config.leaf: has no 'kind'; it names the part, such as 'oddity/leaf'",
    ),
    "a number for a part": (TREE | {"leaf": 3}, Part, "config.leaf: takes a part of slot 'oddity', got 3"),
    "a list for a part": (TREE | {"leaf": [LEAF]}, Part, f"config.leaf: takes a part of slot 'oddity', got {[LEAF]!r}"),
    "nothing for a part": (TREE | {"leaf": None}, Part, "config.leaf: takes a part of slot 'oddity', got None"),
    "a number at the top": (3, Part, "config: takes a part, got 3"),
    "a required field left out": (
        {"kind": "oddity/needy", "leaf": "leaf"},
        Part,
        "config: 'oddity/needy' needs 'width', int",
    ),
    "a required part left out": (
        {"kind": "oddity/needy", "width": 3},
        Part,
        "config: 'oddity/needy' needs 'leaf', a part of slot 'oddity'",
    ),
}


@pytest.mark.parametrize(("value", "slot", "message"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_wrong_file_is_refused_with_the_path(value: Any, slot: type[Part], message: str) -> None:
    with pytest.raises(PartError) as error:
        decode(value, slot)
    assert says(error, message)


def test_the_path_starts_where_the_reader_says() -> None:
    with pytest.raises(PartError) as error:
        decode(STACK | {"depth": -1}, where="run/config.json")
    assert error.value.where == "run/config.json.depth"
    assert isinstance(error.value, ValueError)


def test_errors_of_parts_travel_between_processes() -> None:
    error = PartError("config.kernel", "takes int, got '5'")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.where, again.what) == (PartError, str(error), error.where, error.what)


def examples(slot: type[Part]) -> list[Part]:
    made = []
    for cls in parts(slot):
        with contextlib.suppress(TypeError, PartError):  # fields without defaults, or defaults that want changing
            made.append(cls())
    return made


def strategy(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a type, some of which a part may refuse."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(args)
    if origin is tuple and args[1:] == (...,):
        items = strategy(args[0])
        return st.just(()) if items.is_empty else st.lists(items, max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(strategy, args))
    if args:
        return st.one_of(*map(strategy, args))
    if issubclass(hint, Part):
        made = examples(hint)
        return st.sampled_from(made) if made else st.nothing()
    simple = {
        bool: st.booleans(),
        int: st.integers(-2, 70),
        float: st.floats() | st.integers(-2, 70),
        str: st.text(),
        NoneType: st.none(),
    }
    return simple[hint]


@pytest.mark.parametrize("cls", parts(), ids=lambda cls: cls.kind)
@settings(max_examples=settings().max_examples // 3)  # for each of many parts
@given(data=st.data())
def test_every_part_returns_from_json_as_it_was_or_says_what_is_wrong(cls: type[Part], data: st.DataObject) -> None:
    hints = registry.fields(cls)
    missing = dataclasses.MISSING
    required = [f.name for f in dataclasses.fields(cls) if f.default is missing and f.default_factory is missing]  # type: ignore[arg-type]
    changed = data.draw(st.sets(st.sampled_from(list(hints)), max_size=2)) if hints else set()
    values = {name: data.draw(strategy(hints[name]), name) for name in sorted({*required, *changed})}
    try:
        config = cls(**values)
    except PartError as error:
        assert error.where.startswith("config")  # noqa: PT017
        assert error.what  # noqa: PT017
        return
    assert_returns(config)


@pytest.mark.parametrize("name", latelier.recipes.RECIPES)
def test_every_recipe_returns_from_json_as_it_was(name: str) -> None:
    assert_returns(latelier.recipes.RECIPES[name]())


def assert_returns(config: Part) -> None:
    again = decode(json.loads(json.dumps(encode(config), allow_nan=False)), type(config))
    assert (again, again.id, hash(again)) == (config, config.id, hash(config))
    for other in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
        assert (other, other.id) == (config, config.id)


def test_ids_are_the_same_in_every_session() -> None:
    code = "from latelier.blocks import *; print(StackEncoderConfig(block=FCDMBlockConfig(expand=2), depth=3).id)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd="/", env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True)
    config = StackEncoderConfig(block=FCDMBlockConfig(expand=2.0), depth=3)
    assert done.stdout.strip() == config.id
    assert len(config.id) == 12
    assert int(config.id, 16) >= 0


def test_ids_tell_parts_apart() -> None:
    configs = [
        LeafConfig(),
        LeafConfig(count=2),
        LeafConfig(sizes=(1,)),
        TreeConfig(),
        TreeConfig(leaves=(LeafConfig(),)),
    ]
    assert len({config.id for config in configs}) == len(configs)


# --- plug-ins -------------------------------------------------------------------------------------------------------

GUEST = """
from latelier.blocks import Part, part

@part("oddity/guest")
class GuestConfig(Part):
    nights: int = 2
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages, and a registry that has not looked for plug-ins yet."""
    monkeypatch.syspath_prepend(tmp_path)
    registry.discover.cache_clear()
    yield tmp_path
    registry.discover.cache_clear()
    for name in ("latelier_guest", "latelier_broken"):
        sys.modules.pop(name, None)


def install(site: Path, module: str, source: str) -> None:
    (site / f"{module}.py").write_text(source)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[latelier.parts]\n{module} = {module}\n")


def test_parts_of_an_installed_plug_in_are_found(site: Path) -> None:
    install(site, "latelier_guest", GUEST)
    assert encode(decode({"kind": "oddity/guest", "nights": 3})) == {"kind": "oddity/guest", "nights": 3}


def test_a_plug_in_that_fails_is_told_when_a_name_is_missing(site: Path) -> None:
    install(site, "latelier_broken", "import a_module_that_nobody_has")
    install(site, "latelier_guest", GUEST)
    assert decode("oddity/guest").kind == "oddity/guest"
    with pytest.raises(PartError) as error:
        decode("oddity/lea")
    assert says(
        error,
        "config: no part is named 'oddity/lea'; did you mean 'oddity/leaf'?; the plug-in 'latelier_broken' "
        "(latelier_broken) failed with ModuleNotFoundError: No module named 'a_module_that_nobody_has'",
    )


def test_plug_ins_are_looked_up_once_and_only_for_an_unknown_name(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = []
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: groups.append(group) or ())
    decode("block/fcdm")
    assert groups == []
    for _ in range(2):
        with pytest.raises(PartError):
            decode("oddity/nobody")
    assert groups == ["latelier.parts"]


# --- overrides ------------------------------------------------------------------------------------------------------

FOREST = TreeConfig(leaves=(LeafConfig(), TreeConfig(leaves=(LeafConfig(), LeafConfig()))))


def test_settings_change_a_copy() -> None:
    changed = override(
        FOREST, ["encoder.depth=8", "encoder.block.kernel=5", "leaf.label=oak", "leaf.limit=3", "leaf.flag=true"]
    )
    assert changed == dataclasses.replace(
        FOREST,
        encoder=StackEncoderConfig(depth=8, block=FCDMBlockConfig(kernel=5)),
        leaf=LeafConfig(label="oak", limit=3.0, flag=True),
    )
    assert FOREST.encoder == StackEncoderConfig()


def test_settings_are_applied_in_order() -> None:
    assert override(LeafConfig(), ["count=2", "count=3"]).count == 3
    swapped = override(StackEncoderConfig(block=DiTBlockConfig()), ["block=fcdm", "block.kernel=3"])
    assert swapped == StackEncoderConfig(block=FCDMBlockConfig(kernel=3))


def test_a_setting_swaps_a_part_by_its_short_name_or_its_kind_or_its_json() -> None:
    for text in ("dit", "block/dit", '{"kind": "block/dit"}'):
        assert override(StackEncoderConfig(), [f"block={text}"]) == StackEncoderConfig(block=DiTBlockConfig())
    assert override(TreeConfig(maybe=FCDMBlockConfig()), ["maybe=null"]).maybe is None


def test_settings_reach_items_by_index_and_by_name() -> None:
    assert override(LeafConfig(sizes=(1, 2)), ["sizes.1=5"]).sizes == (1, 5)
    assert override(LeafConfig(), ["sizes=[3, 4]", "sizes.0=5"]).sizes == (5, 4)
    by_index = override(FOREST, ["leaves.1.leaves.0.count=9"])
    assert by_index == override(FOREST, ["leaves.tree.leaves.0.count=9"])
    assert encode(by_index)["leaves"][1]["leaves"][0]["count"] == 9
    assert override(FOREST, ["leaves.leaf=tree"]).leaves[0] == TreeConfig()


def test_settings_reach_items_by_a_name_of_their_own() -> None:
    @part("oddity/bird")
    class BirdConfig(OddityConfig):
        name: str
        eggs: int = 0

    birds = TreeConfig(leaves=(BirdConfig(name="tit"), BirdConfig(name="crow")))
    assert override(birds, ["leaves.crow.eggs=4"]).leaves == (BirdConfig(name="tit"), BirdConfig(name="crow", eggs=4))
    with pytest.raises(PartError) as error:
        override(birds, ["leaves.bird.eggs=4"])
    assert says(error, "config.leaves: has no item 'bird'; known: 'tit', 'crow'")


WRONG_SETTINGS = {
    "encoder.dept=8": "config.encoder: 'encoder/stack' has no field 'dept'; did you mean 'depth'?",
    "encodr.depth=8": "config: 'oddity/tree' has no field 'encodr'; did you mean 'encoder'?",
    "encoder.block=fcmd": "config.encoder.block: no part is named 'block/fcmd'; did you mean 'block/fcdm'?",
    "encoder.depth=many": "config.encoder.depth: takes int, got 'many'",
    "encoder.depth=-1": "config.encoder.depth: must not be negative, got -1",
    "leaf.ratio=NaN": "config.leaf.ratio: takes a finite number, got nan",
    "encoder.depth.x=1": "config.encoder.depth: is 4 and has no field 'x'",
    "leaves.oak.count=1": "config.leaves: has no item 'oak'; known: 'leaf', 'tree'",
    "leaves.lef.count=1": "config.leaves: has no item 'lef'; did you mean 'leaf'?",
    "leaves.7=leaf": "config.leaves: has no item '7'; known: 'leaf', 'tree'",
    "leaves.1.leaves.leaf=tree": "config.leaves.1.leaves: has no item 'leaf'; 2 items are named so: write an index",
    "leaf.span.2=1": "config.leaf.span: has no item '2'; it has the indices 0 to 1",
    "leaf.span.-1=1": "config.leaf.span: has no item '-1'; it has the indices 0 to 1",
    "leaf.sizes.0=1": "config.leaf.sizes: has no item '0'; it is empty",
    "encoder.depth": "encoder.depth: is no setting; write path=value, such as encoder.depth=8",
    "=8": "=8: is no setting; write path=value, such as encoder.depth=8",
}


@pytest.mark.parametrize(("setting", "message"), WRONG_SETTINGS.items(), ids=list(WRONG_SETTINGS))
def test_a_wrong_setting_is_refused(setting: str, message: str) -> None:
    with pytest.raises(PartError) as error:
        override(FOREST, [setting])
    assert says(error, message)


def test_the_path_of_a_setting_starts_where_the_reader_says() -> None:
    with pytest.raises(PartError) as error:
        override(FOREST, ["encoder.dept=8"], where="recipe.model")
    assert says(error, "recipe.model.encoder: 'encoder/stack' has no field 'dept'; did you mean 'depth'?")
