"""The source keeps to the layers: blocks <- families <- {training, evaluation} <- recipes <- cli."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BELOW = {
    "blocks": set(),
    "families": {"blocks"},
    "training": {"blocks", "families"},
    "evaluation": {"blocks", "families"},
    "recipes": {"blocks", "families", "training", "evaluation"},
}
HEAVY = {
    "diffusers",
    "matplotlib",
    "scipy",
    "skimage",
    "sklearn",
    "submitit",
    "tensorboard",
    "timm",
    "torchvision",
    "transformers",
    "xformers",
}

library = sorted([*ROOT.glob("*.py"), *(path for layer in BELOW for path in (ROOT / layer).rglob("*.py"))])
outside = sorted(path for folder in ("tests", "benchmarks", "notebooks") for path in (ROOT / folder).glob("*.py"))
notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


every_library_file = pytest.mark.parametrize("path", library, ids=name)
every_file_outside = pytest.mark.parametrize("path", [*outside, *notebooks], ids=name)


def parse(path: Path) -> ast.Module:
    if path.suffix == ".py":
        return ast.parse(path.read_text(), name(path))
    cells = [cell["source"] for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    lines = "\n".join("".join(source) for source in cells).splitlines()
    return ast.parse("\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in lines), name(path))


def imported(tree: ast.AST) -> Iterator[tuple[int, str, str, int]]:
    """Yield ``(dots, module, name, line)`` of every import below a node; ``import a`` has no name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, "", node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, node.module or "", alias.name, node.lineno) for alias in node.names)


def distributions(tree: ast.AST) -> dict[str, int]:
    """Return the top-level packages that a node imports, with a line for each."""
    return {module.split(".")[0]: line for dots, module, _, line in imported(tree) if dots == 0}


def run_on_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that importing a module runs: not those in functions, nor those for type checkers."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        inner = [child for field in ("body", "orelse", "handlers", "finalbody") for child in getattr(node, field, [])]
        if inner:
            yield from run_on_import(inner)
        else:
            yield node


@every_library_file
def test_imports_inside_the_package_are_relative_and_point_down(path: Path) -> None:
    folders = path.relative_to(ROOT).parts[:-1]
    tree = parse(path)
    for package, line in distributions(tree).items():
        assert package not in {"latelier", *BELOW}, f"{name(path)}:{line}: write a relative import"
    for dots, module, item, line in imported(tree):
        if dots and folders:
            target = f"{module}.{item}".lstrip(".").split(".")[0]
            layer = (*folders[: len(folders) + 1 - dots], target)[0]
            allowed = {folders[0], *BELOW[folders[0]]}
            assert layer in allowed, f"{name(path)}:{line}: {folders[0]} may not import {layer}"


@every_file_outside
def test_imports_outside_the_package_go_no_deeper_than_its_folders(path: Path) -> None:
    for _, module, _, line in imported(parse(path)):
        first, *deeper = module.split(".")
        assert first != "latelier" or len(deeper) < 2, f"{name(path)}:{line}: import from latelier.{deeper[0]}"


@every_library_file
def test_annotations_stay_objects_for_the_shape_checks(path: Path) -> None:
    assert "__future__" not in distributions(parse(path)), f"{name(path)}: the import hook needs annotations as objects"


@every_library_file
def test_extras_are_imported_only_where_they_are_used(path: Path) -> None:
    for statement in run_on_import(parse(path).body):
        early = HEAVY & distributions(statement).keys()
        assert not early, f"{name(path)}:{statement.lineno}: import {', '.join(early)} in the function that needs it"


@every_library_file
def test_only_attention_knows_xformers(path: Path) -> None:
    assert "xformers" not in distributions(parse(path)) or name(path) == "blocks/attention.py"


def test_the_registry_needs_no_torch() -> None:
    assert "torch" not in distributions(parse(ROOT / "blocks/registry.py"))
