"""The ``latelier`` command."""

import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from . import __version__, cli_ablate, cli_cache, cli_latents, cli_pack
from .cli_bridge_demo import show_bridge_demo
from .cli_common import (
    Accept,
    DataFolder,
    Device,
    ModelName,
    Probes,
    RecipeName,
    Settings,
    Swaps,
    Tile,
    TileStride,
    find_device,
    find_probe,
    imported,
    load_with_run,
    make_console,
    with_data,
    with_tiles,
)

if TYPE_CHECKING:
    from .blocks.slots import ProbeConfig
    from .training import Recipe, Run

app = typer.Typer(
    help="A workshop for image latents: train, measure and look at autoencoders made of composable blocks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class DemoModel(StrEnum):
    semdisdiffae = "semdisdiffae"
    dinac_ae = "dinac_ae"
    bridge = "bridge"
    dc_ae = "dc_ae"


@app.callback(invoke_without_command=True)
def latelier(
    version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False,
    imports: Annotated[
        list[Path] | None,
        typer.Option("--import", help="run a Python file first, for the parts that it declares", metavar="FILE.py"),
    ] = None,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
    imported[:] = imports or ()
    if imported:
        from .recipes.find import run_file

        for path in imported:
            run_file(path, where="--import")


@app.command("list")
def list_command(
    studies: Annotated[bool, typer.Option("--studies", help="list what `latelier ablate` has ready instead")] = False,
) -> None:
    """List recipes, and parts by slot; or studies."""
    from .blocks.registry import discover, parts
    from .recipes import RECIPES, STUDIES

    if studies:
        table = Table("study", "what it compares", **PLAIN)
        for name, make in STUDIES.items():
            table.add_row(name, _first_line(make))
        _print_table(table)
        return
    failed = discover()
    table = Table("recipe", "what it is", **PLAIN)
    for name, make in RECIPES.items():
        table.add_row(name, _first_line(make))
    table.add_row()
    table.add_row("part", "what it is", style="bold")
    for cls in parts():
        table.add_row(cls.kind, _first_line(cls))
    _print_table(table)
    for failure in failed:
        print(f"warning: {failure}", file=sys.stderr)


@app.command()
def show(
    recipe: RecipeName,
    swaps: Swaps = None,
    settings: Settings = None,
    resolution: Annotated[int, typer.Option(help="side in pixels of the image whose cost is counted")] = 256,
    only_json: Annotated[bool, typer.Option("--json", help="print the config alone, for a file of your own")] = False,
) -> None:
    """Show a recipe: its resolved config, parameters, latent shape, and the cost of encoding and decoding."""
    import json

    from .blocks.overrides import override
    from .blocks.registry import encode
    from .evaluation.counts import count
    from .recipes import find_source, swap

    made = override(swap(find_source(recipe), swaps or ()), settings or ())
    console = make_console()
    if only_json:
        console.print_json(json.dumps(encode(made)))
        return
    counts = count(made.model, resolution=resolution)
    console.print_json(json.dumps(encode(made)))
    console.print(f"\n{made.name} ({made.id})", highlight=False)
    table = Table(show_header=False, **PLAIN)
    for name, number in counts.parameters.items():
        table.add_row(f"parameters of {name}", f"{number:,}")
    table.add_row("parameters", f"{counts.total:,}")
    shape = " x ".join(map(str, counts.latent))
    table.add_row(f"latent at {resolution} px", f"{shape}, {counts.compression:.3g}x fewer numbers than the image")
    costs = {"encode": counts.encode_flops, "decode, 1 step": counts.decode_flops}
    if counts.predict_flops is not None:
        costs = {"latents to features": counts.predict_flops}
    for name, flops in costs.items():
        table.add_row(f"{name} at {resolution} px", "-" if flops is None else f"{flops / 1e9:.2f} GFLOP")
    _print_table(table)


@app.command()
def train(
    recipe: RecipeName,
    data: DataFolder = None,
    swaps: Swaps = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="run folder; default: runs/RECIPE", metavar="DIR")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the newest checkpoint in --out")] = False,
    device: Device = None,
    workers: Annotated[int, typer.Option(help="processes that read images", min=0)] = 0,
    keep: Annotated[int, typer.Option(help="checkpoints to keep besides the best", min=1)] = 2,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="mirror metrics to OUT/tensorboard")] = False,
    accept: Accept = None,
) -> None:
    """Train a recipe. Under torchrun, all processes share each batch."""
    from .blocks.overrides import override
    from .recipes import find_source, swap

    made = override(with_data(swap(find_source(recipe), swaps or ()), data), settings or ())
    folder = out or Path("runs") / made.name
    options = {"workers": workers, "keep": keep, "tensorboard": tensorboard, "accept": accept or ()}
    _train(made, folder, resume=resume, device=device, **options)
    if _leads():
        make_console().print(f"finished: {folder / 'model'}; measure it with: latelier eval {folder}", highlight=False)


@app.command("eval")
def eval_command(
    model: ModelName,
    data: DataFolder = None,
    out: Annotated[
        Path | None,
        typer.Option(help="folder for the JSON; default: MODEL/evaluation of a run, else evaluation", metavar="DIR"),
    ] = None,
    probes: Probes = None,
    accept: Accept = None,
    device: Device = None,
) -> None:
    """Measure a model on held-out images: PSNR, SSIM, alignment, latent statistics, and a linear baseline.

    A bridge is measured on pairs: cosine, error and retrieval, beside what it must beat; --data names a folder of them.
    """
    asked = [find_probe(text) for text in probes or ()]
    loaded, run = load_with_run(model, device)
    folder = out or (run.folder if run else Path()) / "evaluation"
    for path in _evaluate(loaded, run, data, folder, probes=asked, accept=accept or ()):
        make_console().print(f"written: {path}", highlight=False)


@app.command()
def reconstruct(
    model: ModelName,
    images: Annotated[list[Path], typer.Argument(help="pictures of any size", metavar="IMAGES...")],
    out: Annotated[Path, typer.Option(help="folder for the PNG files", metavar="DIR")],
    steps: Annotated[int, typer.Option(help="decoder evaluations", min=1)] = 1,
    guidance: Annotated[float, typer.Option(help="path-drop guidance strength; 1 is none")] = 1.0,
    seed: Annotated[int, typer.Option(help="of the decoder's noise")] = 0,
    side_by_side: Annotated[bool, typer.Option("--side-by-side", help="put the original beside it")] = False,
    tile: Tile = None,
    tile_stride: TileStride = None,
    device: Device = None,
) -> None:
    """Encode and decode pictures and write what comes out."""
    from .evaluation import reconstruct_files
    from .families import InferenceConfig

    settings = InferenceConfig(num_steps=steps, pdg=guidance != 1, pdg_strength=guidance, seed=seed)
    loaded, _ = load_with_run(model, device)
    reconstruct_files(
        with_tiles(loaded, tile, tile_stride),
        images,
        out,
        inference=settings,
        side_by_side=side_by_side,
        on_image=lambda written, done, total: print(written),
    )


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="a finished run folder", metavar="RUN")],
    data: DataFolder = None,
    probes: Probes = None,
    accept: Accept = None,
    device: Device = None,
) -> None:
    """Measure a run and write RUN/report.html, one file that opens offline."""
    print(_report(run, data, device, probes=[find_probe(text) for text in probes or ()], accept=accept or ()))


@app.command()
def demo(
    model: Annotated[DemoModel, typer.Argument(help="which of the small models")] = DemoModel.semdisdiffae,
    out: Annotated[
        Path | None, typer.Option(help="run folder; default: runs/demo, runs/demo_dinac_ae, ...", metavar="DIR")
    ] = None,
    settings: Settings = None,
    device: Device = None,
) -> None:
    """Train a small model on photographs, measure it on unseen ones, and write a report to look at."""
    import torch

    from .recipes import find, report_phases

    # Its maps are too small for more: where others use the cores too, threads only wait for one another.
    torch.set_num_threads(1)
    out = out or Path("runs") / ("demo" if model is DemoModel.semdisdiffae else f"demo_{model.value}")
    if model is DemoModel.bridge:
        if settings:
            raise ValueError("--set: this demo trains four models; change one with `latelier train` instead")
        show_bridge_demo(out, partial(_train, resume=True, device=device), device=device)
        return
    recipe = find(f"demo/{model.value}", settings or ())
    _train(recipe, out, resume=True, device=device, keep=max(2, len(recipe.stages)))  # each stage leaves one
    page = _report(out, None, device)
    console = make_console()
    console.print(f"\nreport:  {page.resolve()}", highlight=False)
    if len(recipe.stages) > 1:
        phases, _ = report_phases(out, device=find_device(device))
        console.print(f"phases:  {phases.resolve()}", highlight=False)
    console.print(f"model:   {out / 'model'}", highlight=False)
    console.print(f"try it:  latelier reconstruct {out} PICTURE.jpg --out pictures", highlight=False)


app.add_typer(cli_ablate.app)
app.add_typer(cli_cache.app)
app.add_typer(cli_pack.app)
app.add_typer(cli_latents.app)  # without a name: its commands stand beside those above


# --- what the commands share --------------------------------------------------------------------------------------

PLAIN: dict[str, Any] = {"box": None, "pad_edge": False, "header_style": "bold"}


def _print_table(table: Table) -> None:
    """Print without the spaces that fill the last column."""
    console = make_console()
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        print(line.rstrip())


def _first_line(documented: Any) -> str:
    return (documented.__doc__ or "").strip().partition("\n")[0].replace("``", "")


def _leads() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _train(recipe: "Recipe", folder: Path, *, resume: bool, device: str | None, **options: Any) -> None:
    from .training import ProgressWatcher, Watcher, train, with_computing_teacher

    recipe = with_computing_teacher(recipe)
    options |= {"resume": resume, "device": find_device(device)}
    if not _leads():
        train(recipe, folder, watcher=Watcher(), **options)
        return
    console = make_console()
    console.print(f"recipe {recipe.name} ({recipe.id}) -> {folder}", highlight=False)
    try:
        with ProgressWatcher(console) as watcher:
            train(recipe, folder, watcher=watcher, **options)
    except KeyboardInterrupt:
        same = "the same command" if resume else "the same command with --resume"
        print(f"\nstopped; {same} goes on from the newest checkpoint", file=sys.stderr)
        raise typer.Exit(130) from None


def _evaluate(
    model: Any,
    run: "Run | None",
    data: Path | None,
    folder: Path,
    *,
    probes: "Sequence[ProbeConfig]" = (),
    accept: Sequence[str] = (),
) -> list[Path]:
    """Measure under the recipe's protocols, with its probes and those given; show and write the results."""
    from .evaluation import ArchetypePSNRConfig, evaluate, evaluate_bridge, results_table, save_result
    from .families import LatentBridge
    from .recipes import measure_run

    if run is None and data is None:
        what = "pairs" if isinstance(model, LatentBridge) else "images"
        raise ValueError(f"eval: a model by itself has no data; name a folder of {what} with --data")
    written, console = [], make_console()
    with console.status("measuring") as status:  # quiet where there is no terminal

        def tell(what: str, done: int, total: int) -> None:
            status.update(f"{what}: {done} of {total}")

        held_out: Any = None if data is None and run is not None else _held_out(model, run, data)
        if run is not None:
            results = measure_run(run, held_out=held_out, probes=probes, accept=accept, on_progress=tell)
        elif isinstance(model, LatentBridge):
            if probes:
                raise ValueError("--probe: probes ask models of images, and this is a bridge; leave it out")
            results = [evaluate_bridge(model, held_out, accept=accept, on_progress=tell)]
        else:
            results = [evaluate(model, held_out, protocol=ArchetypePSNRConfig(), probes=probes, on_progress=tell)]
        for result in results:
            written.append(save_result(result, folder))
            console.print(results_table([result]))
    return written


def _held_out(model: Any, run: "Run | None", data: Path | None) -> Any:
    """Every image of the folder, or every pair where the model is a bridge, or what the recipe holds out."""
    from .families import LatentBridge
    from .training import FolderSource, list_images

    if data is not None:
        if isinstance(model, LatentBridge):
            from .training import PairsConfig

            return PairsConfig(path=str(data)).everything()
        return FolderSource(data, list_images(data, where="--data"))
    assert run is not None
    return run.recipe.data.held_out()


def _report(
    folder: Path,
    data: Path | None,
    device: str | None,
    *,
    probes: "Sequence[ProbeConfig]" = (),
    accept: Sequence[str] = (),
) -> Path:
    from .evaluation import write_bridge_report, write_report
    from .families import LatentBridge
    from .training import load_run

    run = load_run(folder, device=find_device(device))
    _evaluate(run.model, run, data, folder / "evaluation", probes=probes, accept=accept)
    write = write_bridge_report if isinstance(run.model, LatentBridge) else write_report
    held_out: Any = _held_out(run.model, run, data)
    protocol: Any = run.recipe.evaluation[0]
    return write(folder, run.model, held_out, protocol=protocol)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake becomes one line, not a traceback (LATELIER_TRACEBACK=1 shows it)."""
    try:
        app(args=None if arguments is None else list(arguments))
    except Exception as error:
        from .training import TrainingError  # late: `latelier --help` needs no torch

        mistake = isinstance(error, (ValueError, OSError, ImportError, TrainingError))
        if os.environ.get("LATELIER_TRACEBACK") or not mistake:
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
