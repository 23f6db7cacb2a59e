"""The commands about files of latents: encode, decode, features; and export, for other packages."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .cli_common import Device, ModelName, Tile, TileStride, load_model, show_progress, with_tiles

app = typer.Typer()

LatentsFile = Annotated[
    Path, typer.Argument(help="what `latelier encode` wrote", metavar="LATENTS", show_default=False)
]
Batch = Annotated[int, typer.Option(help="most images in a batch", min=1, metavar="N")]
BatchPixels = Annotated[
    int, typer.Option(help="most pixels in a batch; an image with more goes alone", min=1, metavar="N")
]
BATCH, BATCH_PIXELS = 8, 2**22


@app.command("encode")
def encode_command(
    model: ModelName,
    images: Annotated[list[Path], typer.Argument(help="pictures of any size", metavar="IMAGES...")],
    out: Annotated[Path, typer.Option(help="safetensors file for the latents", metavar="FILE")],
    batch: Batch = BATCH,
    batch_pixels: BatchPixels = BATCH_PIXELS,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="of the model and the latents; default: the device's for the model, float32 for the latents"),
    ] = None,
    tile: Tile = None,
    tile_stride: TileStride = None,
    device: Device = None,
) -> None:
    """Write the latents of pictures as one safetensors file."""
    from .evaluation import encode_files

    loaded = with_tiles(load_model(model, device, dtype=dtype), tile, tile_stride)
    with show_progress("encoding") as report:
        encode_files(
            loaded,
            images,
            out,
            batch=batch,
            batch_pixels=batch_pixels,
            dtype=dtype or "float32",
            on_image=report,
        )
    print(f"written: {out}")


@app.command("decode")
def decode_command(
    model: ModelName,
    latents: LatentsFile,
    out: Annotated[Path, typer.Option(help="folder for the PNG files", metavar="DIR")],
    steps: Annotated[int, typer.Option(help="decoder evaluations", min=1)] = 1,
    guidance: Annotated[float, typer.Option(help="path-drop guidance strength; 1 is none")] = 1.0,
    seed: Annotated[int, typer.Option(help="of the decoder's noise, which is drawn anew for each picture")] = 0,
    batch: Batch = BATCH,
    batch_pixels: BatchPixels = BATCH_PIXELS,
    tile: Tile = None,
    tile_stride: TileStride = None,
    device: Device = None,
) -> None:
    """Write a picture for each latent of a file, at its original size."""
    from .evaluation import decode_files
    from .families import InferenceConfig

    settings = InferenceConfig(num_steps=steps, pdg=guidance != 1, pdg_strength=guidance, seed=seed)
    loaded = with_tiles(load_model(model, device), tile, tile_stride)
    with show_progress("decoding") as report:

        def written(path: Path, done: int, total: int) -> None:
            print(path)
            report(path, done, total)

        decode_files(loaded, latents, out, inference=settings, batch=batch, batch_pixels=batch_pixels, on_image=written)


@app.command("features")
def features_command(
    model: ModelName,
    latents: LatentsFile,
    out: Annotated[Path, typer.Option(help="safetensors file for the features", metavar="FILE")],
    batch: Batch = BATCH,
    batch_pixels: BatchPixels = BATCH_PIXELS,
    device: Device = None,
) -> None:
    """Write the class and patch features that a model's token head reads off each latent of a file."""
    from .evaluation import feature_files

    loaded = load_model(model, device)
    with show_progress("reading") as report:
        feature_files(loaded, latents, out, batch=batch, batch_pixels=batch_pixels, on_image=report)
    print(f"written: {out}")


@app.command("export")
def export_command(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="folder for config.json and model.safetensors", metavar="DIR")],
) -> None:
    """Write a model in the layout of its published kind, for other packages to load."""
    loaded = load_model(model, "cpu", dtype="float32")
    if not hasattr(loaded, "export_published"):
        raise ValueError(f"export: nobody has published a layout for a model {loaded.config.kind!r}")
    print(f"written: {loaded.export_published(out)}")
