"""What the commands share: their arguments, the console, and how a model and a device are found."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    import torch

    from .blocks.slots import ProbeConfig, TeacherConfig
    from .training import Recipe, Run

Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: CUDA where there is one", metavar="NAME")
]
Accept = Annotated[
    list[str] | None,
    typer.Option(
        "--accept", help="field of the teacher's spec that may differ, such as version (repeatable)", metavar="FIELD"
    ),
]
ModelName = Annotated[str, typer.Argument(help="a run folder, a model folder or file, or a hub id", metavar="MODEL")]


RecipeName = Annotated[
    str,
    typer.Argument(
        help="a name from `latelier list`, ./file.py:function, a JSON or YAML file, or a run folder", metavar="RECIPE"
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="change a field: model.encoder.depth=8 (repeatable)", metavar="A.B=C"),
]
Swaps = Annotated[
    list[str] | None,
    typer.Option(
        "--swap",
        help="another part for the recipe, which computes anew what depends on it: teacher=dinov3:vits16, "
        "encoder.block=dit (repeatable)",
        metavar="PATH=PART",
    ),
]
DataFolder = Annotated[
    Path | None,
    typer.Option(
        "--data", help="folder of images, any depth, or a pack of pairs, in place of the recipe's data", metavar="DIR"
    ),
]


Probes = Annotated[
    list[str] | None,
    typer.Option(
        "--probe",
        help="ask this as well, besides the recipe's probes: knn, linear_probe, similarity, retrieval, "
        "self_similarity, pca_maps, token_robustness; with a teacher as in knn:hog; or JSON (repeatable)",
        metavar="PROBE",
    ),
]

Tile = Annotated[
    str | None,
    typer.Option(
        "--tile",
        help="work tile by tile, in memory that the tile bounds: pixels a side, or HEIGHTxWIDTH",
        metavar="PIXELS",
    ),
]
TileStride = Annotated[
    str | None,
    typer.Option(
        "--tile-stride",
        help="pixels from one tile to the next; default: overlap by an eighth",
        metavar="PIXELS",
    ),
]

imported: list[Path] = []
"""Files of the user's that --import named in this call."""


def make_console() -> Console:
    """Wraps lines on terminals only."""
    return Console(soft_wrap=True, width=None if sys.stdout.isatty() else 1000)


def find_device(name: str | None) -> "torch.device":
    """The device of that name, or by default this process's CUDA device, where there is one."""
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device: takes cpu, cuda, cuda:1 and so on, got {name!r}") from None
    if device.type != "cuda":
        return device
    index = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise ValueError(f"--device: there are {torch.cuda.device_count()} CUDA devices here, got {name!r}; try cpu")
    return torch.device("cuda", index)


def load_with_run(name: str, device: str | None) -> "tuple[Any, Run | None]":
    """Load the model of a run, with the run, or a model by itself."""
    from .training import is_run, load_run

    if is_run(Path(name)):
        run = load_run(name, device=find_device(device))
        return run.model, run
    return load_model(name, device), None


def load_model(name: str, device: str | None, *, dtype: str | None = None) -> Any:
    """Load a model by itself, or that of a run, in the precision of that name."""
    import torch

    from . import load
    from .training import is_run, load_run

    path, place = Path(name), find_device(device)
    if is_run(path):
        path = path / "model"
        if not path.is_dir():
            load_run(name)  # says what is missing
    elif not path.exists() and path.parent != Path() and path.parent.is_dir():  # a slip, and no id for the hub
        raise FileNotFoundError(f"{name}: no such file or folder; {str(path.parent)!r} holds {_listed(path.parent)}")
    else:
        path = name
    return load(path, device=place, dtype=None if dtype is None else getattr(torch, dtype))


def with_tiles(model: Any, tile: str | None, stride: str | None) -> Any:
    """The model, working tile by tile where that is asked for; what tiles change is said once."""
    import warnings

    if tile is None:
        if stride is not None:
            raise ValueError("--tile-stride: says how far apart tiles are; say how large they are with --tile")
        return model
    if not hasattr(model, "tiled"):
        raise ValueError(f"--tile: a model {model.config.kind!r} does not work on tiles")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        view = model.tiled(_sides("--tile", tile), None if stride is None else _sides("--tile-stride", stride))
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    return view


def _sides(option: str, text: str) -> tuple[int, int]:
    height, times, width = text.partition("x")
    try:
        return int(height), int(width if times else height)
    except ValueError:
        raise ValueError(f"{option}: takes pixels a side such as 512, or HEIGHTxWIDTH, got {text!r}") from None


def _listed(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "") if names else "nothing"


@contextmanager
def show_progress(what: str, *, quiet: bool = False) -> Iterator[Callable[[Any, int, int], None]]:
    """Yield what is called with how many of how many are done; quiet where there is no terminal."""
    console = make_console()
    columns = TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda item, done, total: bar.update(task, completed=done, total=total)


def with_data(recipe: "Recipe", data: Path | None) -> "Recipe":
    """The recipe on the pictures of a folder or, where it learns from pairs, on a pack, where one is given."""
    from .training import FolderDataConfig, PairsConfig

    if data is None:
        return recipe
    if any(stage.latents == "data" for stage in recipe.stages):
        return replace(recipe, data=PairsConfig(path=str(data)))
    base = recipe.data if isinstance(recipe.data, FolderDataConfig) else FolderDataConfig()
    return replace(recipe, data=replace(base, path=str(data)))


def find_recipe(name: str | None, settings: Sequence[str]) -> "Recipe | None":
    """The recipe that an option names, changed by settings; None where there is none."""
    from .recipes import find

    if name is None:
        if settings:
            raise ValueError("--set: changes a recipe, and there is none; name it with --recipe")
        return None
    return find(name, settings)


def find_teacher(text: str | None, recipe: "Recipe | None", stride: int | None, *, command: str) -> "TeacherConfig":
    """A teacher from its short form, its kind, or its JSON; without any, that of the recipe."""
    import json

    from .blocks.registry import decode
    from .blocks.slots import TeacherConfig

    if text is not None:
        try:
            described = json.loads(text)
        except json.JSONDecodeError:
            described = text
        found = decode(described, TeacherConfig, where="TEACHER")
    elif recipe is not None and recipe.teacher is not None:
        found = recipe.teacher
    else:
        whose = "" if recipe is None else f" and the recipe {recipe.name!r} has none"
        raise ValueError(f"{command}: no teacher is named{whose}; name one, such as hog or dinov3:vits16")
    return found if stride is None else found.for_stride(stride)


def find_probe(text: str) -> "ProbeConfig":
    """A probe from its short name, its kind, or its JSON."""
    import json

    from .blocks.registry import decode
    from .blocks.slots import ProbeConfig

    try:
        described = json.loads(text)
    except json.JSONDecodeError:
        described = text
    return decode(described, ProbeConfig, where="--probe")
