"""The command that computes a teacher's features once, for training to read: cache."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .cli_common import Accept, Device, find_device, find_recipe, find_teacher, make_console, show_progress

if TYPE_CHECKING:
    from .training import Recipe

app = typer.Typer()


@app.command("cache")
def cache_command(
    out: Annotated[Path, typer.Option(help="folder for the features", metavar="FOLDER")],
    teacher: Annotated[
        str | None,
        typer.Argument(help="hog, tiny_vit:96, dinov3:vits16, or JSON; default: the recipe's", metavar="TEACHER"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="folder of pictures, any depth; default: the recipe's data", metavar="DIR")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="take teacher, resolution and data from a recipe", metavar="RECIPE")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="change a field of the recipe (repeatable)", metavar="A.B=C")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(help="side of the central squares in pixels; default: the recipe's, or 256", min=1)
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="place the teacher so that a token stands for so many pixels a side", min=1)
    ] = None,
    flips: Annotated[bool, typer.Option("--flips/--no-flips", help="mirror images as well")] = True,
    dtype: Annotated[
        Literal["float16", "bfloat16", "float32"], typer.Option(help="in which features are stored")
    ] = "float16",
    tokens: Annotated[
        str | None, typer.Option(help="which to store: patches,cls,registers; default: all there are", metavar="NAMES")
    ] = None,
    shard_images: Annotated[
        int | None, typer.Option(help="pictures in a shard; default: as many as make 256 MiB", min=1, metavar="N")
    ] = None,
    batch: Annotated[int, typer.Option(help="images that the teacher is given at once", min=1, metavar="N")] = 32,
    workers: Annotated[int, typer.Option(help="processes that read pictures", min=0)] = 0,
    on_error: Annotated[
        Literal["raise", "skip"], typer.Option(help="what to do with a file of --data that cannot be read")
    ] = "raise",
    accept: Accept = None,
    verify: Annotated[bool, typer.Option("--verify", help="compare checksums, and make anew what has changed")] = False,
    device: Device = None,
) -> None:
    """Compute a teacher's features of pictures once, for training to read. The same command goes on, or repairs.

    Train from them with --set teacher=cached:FOLDER --set stages.main.crop=central. Under torchrun, all processes share
    the work.
    """
    from .training import FolderSource, cache_features, every_picture, list_images

    made = find_recipe(recipe, settings or ())
    source: Any
    if data is not None:
        source = FolderSource(data, list_images(data, where="--data"), on_error=on_error)
    elif made is not None:
        source = every_picture(made.data)
    else:
        raise ValueError("cache: has no pictures; name a folder of them with --data, or a recipe with --recipe")
    console, leads = make_console(), os.environ.get("RANK", "0") == "0"

    with show_progress("caching", quiet=not leads) as report:
        cache = cache_features(
            find_teacher(teacher, made, stride, command="cache"),
            source,
            out,
            resolution=resolution or _resolution(made),
            flips=flips,
            dtype=dtype,
            tokens=None if tokens is None else [name.strip() for name in tokens.split(",")],
            shard_images=shard_images,
            batch=batch,
            workers=workers,
            device=find_device(device),
            accept=accept or (),
            verify=verify,
            on_image=report,
            say=lambda text: console.print(text, highlight=False),
        )
    if leads:
        views, size = len(cache.layout.views), sum(entry.bytes or 0 for entry in cache.shards)
        console.print(
            f"written: {out} ({len(cache):,} pictures, {views} view{'s' * (views > 1)} each, {len(cache.shards)} "
            f"shard{'s' * (len(cache.shards) != 1)}, {size / 1e6:,.1f} MB, teacher {cache.spec.id})",
            highlight=False,
        )
        console.print(f"train from it: --set teacher=cached:{out} --set stages.main.crop=central", highlight=False)


def _resolution(recipe: "Recipe | None") -> int:
    if recipe is None:
        return 256
    found = sorted({stage.resolution for stage in recipe.stages})
    if len(found) > 1:
        raise ValueError(
            f"cache: the stages of {recipe.name!r} have the resolutions {', '.join(map(str, found))}; choose one with "
            "--resolution"
        )
    return found[0]
