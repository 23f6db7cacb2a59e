"""The command that packs latents with a teacher's features, for bridges to learn from: pack."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .cli_common import Accept, Device, find_device, find_recipe, find_teacher, make_console, show_progress

if TYPE_CHECKING:
    from .blocks.slots import LatentSpaceConfig
    from .training import Recipe

app = typer.Typer()


@app.command("pack")
def pack_command(
    data: Annotated[Path, typer.Option(help="folder of pictures, any depth", metavar="DIR")],
    out: Annotated[Path, typer.Option(help="folder for the pairs", metavar="FOLDER")],
    space: Annotated[
        str | None,
        typer.Option(help="sd, flux2, sana, model:RUN, ..., or JSON; default: the recipe's", metavar="SPACE"),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="dinov2:vitb14, hog, latents:flux2, ..., or JSON; default: the recipe's", metavar="TEACHER"),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="take space, teacher and resolution from a bridge's recipe", metavar="RECIPE")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="change a field of the recipe (repeatable)", metavar="A.B=C")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(help="side of the squares in pixels; default: the recipe's, or 256", min=1)
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="place the teacher so that a token stands for so many pixels a side", min=1)
    ] = None,
    flips: Annotated[bool, typer.Option("--flips", help="the mirror image of the central square as well")] = False,
    crops: Annotated[
        int, typer.Option(help="random crops of each picture's own pixels in place of its square", min=0, metavar="N")
    ] = 0,
    seed: Annotated[int, typer.Option(help="of the crops, and of sampled posteriors")] = 0,
    dtype: Annotated[Literal["float16", "float32"], typer.Option(help="in which numbers are stored")] = "float16",
    cls: Annotated[bool, typer.Option("--cls/--no-cls", help="keep class tokens")] = True,
    thumbnails: Annotated[bool, typer.Option("--thumbnails/--no-thumbnails", help="keep small pictures")] = True,
    shard_pictures: Annotated[
        int | None, typer.Option(help="pictures in a shard; default: as many as make 256 MiB", min=1, metavar="N")
    ] = None,
    batch: Annotated[int, typer.Option(help="images that are encoded at once", min=1, metavar="N")] = 32,
    workers: Annotated[int, typer.Option(help="processes that read pictures", min=0)] = 0,
    on_error: Annotated[
        Literal["raise", "skip"], typer.Option(help="what to do with a file of --data that cannot be read")
    ] = "raise",
    accept: Accept = None,
    verify: Annotated[bool, typer.Option("--verify", help="compare checksums, and make anew what has changed")] = False,
    device: Device = None,
) -> None:
    """Pack latents and a teacher's features of the same pictures. The same command goes on, or repairs.

    Train a bridge on them with --data FOLDER. Under torchrun, all processes share the work. A latent space of other
    people's needs the extra vae, a pretrained teacher the extra teachers.
    """
    from .training import FolderSource, list_images, pack

    made = find_recipe(recipe, settings or ())
    described, teacher_config = _space(space, made), find_teacher(teacher, made, stride, command="pack")
    source = FolderSource(data, list_images(data, where="--data"), on_error=on_error)
    console, leads = make_console(), os.environ.get("RANK", "0") == "0"
    side = resolution or (made.stages[0].resolution if made else 256)

    with show_progress("packing", quiet=not leads) as report:
        packed = pack(
            described,
            teacher_config,
            source,
            out,
            resolution=side,
            flips=flips,
            crops=crops,
            seed=seed,
            dtype=dtype,
            cls=cls,
            thumbnails=thumbnails,
            shard_pictures=shard_pictures,
            batch=batch,
            workers=workers,
            device=find_device(device),
            accept=accept or (),
            verify=verify,
            on_image=report,
            say=lambda text: console.print(text, highlight=False),
        )
    if leads:
        layout = packed.layout
        size = sum(file.stat().st_size for file in out.iterdir() if file.is_file())
        shape = " x ".join(map(str, layout.latent_shape))
        tokens = layout.grid[0] * layout.grid[1]
        console.print(
            f"written: {out} ({len(packed):,} pairs of {shape} latents and {tokens} tokens of {layout.features}, "
            f"{len(packed.shards)} shard{'s' * (len(packed.shards) != 1)}, {size / 1e6:,.1f} MB, "
            f"space {layout.latent_spec.id}, teacher {layout.teacher_spec.id})",
            highlight=False,
        )
        console.print(f"train on it: latelier train {recipe or 'RECIPE'} --data {out}", highlight=False)


def _space(text: str | None, recipe: "Recipe | None") -> "LatentSpaceConfig":
    from .blocks import space_config

    if text is not None:
        return space_config(text)
    space = getattr(recipe.model, "space", None) if recipe is not None else None
    if space is None:
        whose = "" if recipe is None else f" and the model of {recipe.name!r} has none"
        raise ValueError(f"pack: no latent space is named{whose}; name one with --space, such as sd or model:RUN")
    return space
