"""The ``latelier`` command."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from . import __version__

if TYPE_CHECKING:
    from .training.recipe import Recipe

app = typer.Typer(
    help="A workshop for image latents: train, measure and look at autoencoders made of composable blocks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipeName = Annotated[
    str,
    typer.Argument(help="a name from `latelier list`, ./file.py:function, or a JSON or YAML file", metavar="RECIPE"),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="change a field: model.encoder.depth=8 (repeatable)", metavar="A.B=C"),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: CUDA where there is one")]
DataFolder = Annotated[
    Path | None, typer.Option("--data", help="folder of images, any depth, in place of the recipe's data")
]


def _console() -> Console:
    return Console(soft_wrap=True)


@app.callback(invoke_without_command=True)
def latelier(version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command("list")
def list_command() -> None:
    """List recipes, and parts by slot."""
    from .blocks.registry import discover, parts
    from .recipes import RECIPES

    discover()
    console = _console()
    table = Table("recipe", "what it is", title="Recipes", title_justify="left", box=None)
    for name, make in RECIPES.items():
        table.add_row(name, _first_line(make))
    console.print(table)
    table = Table("part", "what it is", title="\nParts", title_justify="left", box=None)
    for cls in parts():
        table.add_row(cls.kind, _first_line(cls))
    console.print(table)


@app.command()
def show(
    recipe: RecipeName,
    settings: Settings = None,
    resolution: Annotated[int, typer.Option(help="side in pixels of the image whose cost is counted")] = 256,
) -> None:
    """Show a recipe: its resolved config, parameters, latent shape, and the cost of encoding and decoding."""
    import json

    from .blocks.registry import encode
    from .evaluation.counts import count
    from .recipes import find

    made = find(recipe, settings or ())
    counts = count(made.model, resolution=resolution)
    console = _console()
    console.print_json(json.dumps(encode(made)))
    table = Table(title=f"{made.name}  {made.id}", title_justify="left", show_header=False, box=None)
    for name, number in counts.parameters.items():
        table.add_row(f"parameters of {name}", f"{number:,}")
    table.add_row("parameters", f"{counts.total:,}")
    shape = " x ".join(map(str, counts.latent))
    table.add_row(f"latent at {resolution} px", f"{shape}, {counts.compression:.3g}x fewer numbers than the image")
    for name, flops in (("encode", counts.encode_flops), ("decode, 1 step", counts.decode_flops)):
        table.add_row(f"{name} at {resolution} px", "-" if flops is None else f"{flops / 1e9:.2f} GFLOP")
    console.print(table)


@app.command()
def train(
    recipe: RecipeName,
    data: DataFolder = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="run folder; default: runs/RECIPE")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the newest checkpoint in --out")] = False,
    device: Device = None,
    workers: Annotated[int, typer.Option(help="processes that read images")] = 0,
    keep: Annotated[int, typer.Option(help="checkpoints to keep besides the best")] = 2,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="mirror metrics to OUT/tensorboard")] = False,
) -> None:
    """Train a recipe. Under torchrun, all processes share each batch."""
    from .recipes import find

    made = _with_data(find(recipe, settings or ()), data)
    folder = out or Path("runs") / made.name
    _train(made, folder, resume=resume, device=device, workers=workers, keep=keep, tensorboard=tensorboard)
    if _leads():
        _console().print(f"finished: {folder / 'model'}; measure it with: latelier eval {folder}", highlight=False)


@app.command("eval")
def eval_command(
    model: Annotated[str, typer.Argument(help="a run folder, a model folder or file, or a hub id", metavar="RUN")],
    data: DataFolder = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for the JSON; default: RUN/evaluation, or evaluation")
    ] = None,
    device: Device = None,
) -> None:
    """Measure a model on held-out images: PSNR, SSIM, alignment, latent statistics, and a linear baseline."""
    from .evaluation import results_table

    results = _evaluate(model, data, out, device)
    console = _console()
    for path, result in results:
        console.print(results_table([result]))
        console.print(f"written: {path}", highlight=False)


@app.command()
def reconstruct(
    model: Annotated[str, typer.Argument(help="a run folder, a model folder or file, or a hub id")],
    images: Annotated[list[Path], typer.Argument(help="pictures of any size", metavar="IMAGES...")],
    out: Annotated[Path, typer.Option(help="folder for the PNG files")],
    steps: Annotated[int, typer.Option(help="decoder evaluations")] = 1,
    guidance: Annotated[float, typer.Option(help="path-drop guidance strength; 1 is none")] = 1.0,
    seed: Annotated[int, typer.Option(help="of the decoder's noise")] = 0,
    side_by_side: Annotated[bool, typer.Option("--side-by-side", help="put the original beside it")] = False,
    device: Device = None,
) -> None:
    """Encode and decode pictures and write what comes out."""
    from .evaluation.reconstruct import reconstruct_files
    from .families.diffae import InferenceConfig

    settings = InferenceConfig(num_steps=steps, pdg=guidance != 1, pdg_strength=guidance, seed=seed)
    loaded, _ = _load(model, device)
    written = reconstruct_files(loaded, images, out, inference=settings, side_by_side=side_by_side)
    for path in written:
        print(path)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="a finished run folder", metavar="RUN")],
    data: DataFolder = None,
    device: Device = None,
) -> None:
    """Measure a run and write RUN/report.html, one file that opens offline."""
    print(_report(run, data, device))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="run folder")] = Path("runs/demo"),
    settings: Settings = None,
    device: Device = None,
) -> None:
    """Train a small autoencoder on photographs, measure it on unseen ones, and write a report to look at."""
    from .recipes import find

    made = find("demo/semdisdiffae", settings or ())
    _train(made, out, resume=True, device=device)
    _report(out, None, device)
    console = _console()
    console.print(f"\nreport:      {(out / 'report.html').resolve()}", highlight=False)
    console.print(f"model:       {out / 'model'}", highlight=False)
    console.print(f"try it:      latelier reconstruct {out} PICTURE.jpg --out pictures", highlight=False)


# --- what the commands share --------------------------------------------------------------------------------------


def _first_line(documented: Any) -> str:
    return (documented.__doc__ or "").strip().partition("\n")[0]


def _leads() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _with_data(recipe: "Recipe", data: Path | None) -> "Recipe":
    from dataclasses import replace

    from .training.sources import FolderDataConfig

    return recipe if data is None else replace(recipe, data=FolderDataConfig(path=str(data)))


def _folder(path: Path) -> Any:
    """Every image of a folder, as a source."""
    from .training.sources import FolderSource, list_images

    return FolderSource(path, list_images(path, where="--data"))


def _train(recipe: "Recipe", folder: Path, **options: Any) -> None:
    from .training.engine import train
    from .training.progress import ProgressWatcher

    if not _leads():
        train(recipe, folder, **options)
        return
    console = _console()
    console.print(f"recipe {recipe.name} ({recipe.id}) -> {folder}", highlight=False)
    with ProgressWatcher(console) as watcher:
        train(recipe, folder, watcher=watcher, **options)


def _load(name: str, device: str | None) -> tuple[Any, Any]:
    """Return (model, run or None)."""
    import torch

    from . import load
    from .training.runs import is_run, load_run

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if is_run(Path(name)):
        run = load_run(name, device=device)
        return run.model, run
    return load(name, device=device), None


def _evaluate(name: str, data: Path | None, out: Path | None, device: str | None) -> list[tuple[Path, dict[str, Any]]]:
    from .evaluation import ArchetypePSNRConfig, evaluate, save_result

    model, run = _load(name, device)
    if data is None and run is None:
        raise ValueError("eval: a model by itself has no data; name a folder of images with --data")
    recipe = run.recipe if run else None
    held_out = _folder(data) if data else run.recipe.data.held_out()
    training = run.recipe.data.training() if run and data is None else None
    protocols = (run.recipe.evaluation if run else ()) or (ArchetypePSNRConfig(),)
    folder = out or (Path(name) / "evaluation" if run else Path("evaluation"))
    results = []
    with _Counter(_console()) as counter:
        for protocol in protocols:
            result = evaluate(
                model,
                held_out,
                training=training,
                protocol=protocol,
                teacher=recipe.teacher if recipe else None,
                predict_tokens=run.predict_tokens if run else None,
                recipe=recipe,
                on_progress=counter,
            )
            results.append((save_result(result, folder), result))
    return results


def _report(run: Path, data: Path | None, device: str | None) -> Path:
    from .evaluation import results_table
    from .evaluation.report import write_report

    model, loaded = _load(str(run), device)
    if loaded is None:
        raise FileNotFoundError(f"{run}: holds no run; a run folder has recipe.json")
    results = _evaluate(str(run), data, None, device)
    for _, result in results:
        _console().print(results_table([result]))
    held_out = _folder(data) if data else loaded.recipe.data.held_out()
    protocol = loaded.recipe.evaluation[0] if loaded.recipe.evaluation else None
    return write_report(run, model, held_out, protocol=protocol)


class _Counter:
    """Progress of an evaluation, on terminals only."""

    def __init__(self, console: Console) -> None:
        self.status = console.status("measuring") if console.is_terminal else None

    def __enter__(self) -> "_Counter":
        if self.status:
            self.status.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.status:
            self.status.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.status:
            self.status.update(f"{what}: {done} of {total}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake becomes one line, not a traceback (LATELIER_TRACEBACK=1 shows it)."""
    from .training.engine import TrainingError

    try:
        app(args=None if arguments is None else list(arguments))
    except KeyboardInterrupt:
        print("\nstopped; a training run goes on with --resume", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, OSError, ImportError, TrainingError) as error:
        if os.environ.get("LATELIER_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
