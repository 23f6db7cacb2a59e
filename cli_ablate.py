"""The command that compares variants of a recipe: ablate."""

import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from .cli_common import Device, Probes, Settings, find_probe, imported, make_console, with_data

if TYPE_CHECKING:
    from .recipes import Variant
    from .recipes.launchers import Address
    from .recipes.study import Study

app = typer.Typer()


@app.command("ablate")
def ablate_command(
    out: Annotated[Path, typer.Option(help="folder of the study; the same command goes on with it", metavar="DIR")],
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="a recipe as for `latelier train`, or a study from `latelier list --studies`; with --collect, nothing",
            metavar="RECIPE",
        ),
    ] = None,
    axes: Annotated[
        list[str] | None,
        typer.Option(
            "--axis",
            help="values of an argument or a field: teacher=hog,tiny_vit,dinov3:vits16, encoder.block=fcdm,dit "
            "(repeatable)",
            metavar="PATH=A,B",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="runs of each variant", min=1)] = 3,
    steps: Annotated[
        int | None, typer.Option(help="optimiser steps of every run; default: the recipe's", min=1)
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="equal cost in another unit: seconds=60 (measured here first) or flops=1e13", metavar="B"),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="what others are compared with: teacher=hog,encoder.block=fcdm; default: the first values"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="folder of images in place of the recipe's data", metavar="DIR")
    ] = None,
    settings: Settings = None,
    probes: Probes = None,
    jobs: Annotated[int, typer.Option(help="runs at a time, each in a process with its share of the cores", min=1)] = 1,
    devices: Annotated[
        str | None, typer.Option(help="devices that runs take in turn: cuda:0,cuda:1", metavar="NAMES")
    ] = None,
    launcher: Annotated[
        Literal["here", "slurm", "local"],
        typer.Option(help="here, or as jobs through submitit: slurm, or local processes of submitit"),
    ] = "here",
    slurm: Annotated[
        list[str] | None,
        typer.Option("--slurm", help="a parameter of submitit: timeout_min=600 (repeatable)", metavar="KEY=VALUE"),
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="run again what has failed")] = False,
    only_collect: Annotated[
        bool, typer.Option("--collect", help="run nothing; write tables and report of what is there")
    ] = False,
) -> None:
    """Train every combination of some settings with several seeds, and compare them: table, plots, report."""
    from .recipes import CellBusyError, ablate, collect

    if only_collect:
        _run_imports(out)
        _show(collect(out), out)
        return
    if recipe is None:
        raise ValueError("ablate: has no recipe; name one, such as demo/semdisdiffae, or a study that is ready")
    if slurm and launcher == "here":
        raise ValueError("--slurm: is for jobs of a cluster; add --launcher slurm")
    clock = _Clock()
    try:
        study = ablate(
            _variants(recipe, axes or (), settings or (), data),
            out=out,
            seeds=seeds,
            steps=steps,
            budget=budget,
            baseline=baseline,
            probes=[find_probe(text) for text in probes or ()],
            jobs=jobs,
            devices=[name.strip() for name in devices.split(",")] if devices else (),
            launcher=None if launcher == "here" else _submitit(launcher, slurm or ()),
            retry_failed=retry_failed,
            imports=_files_of_parts(recipe),
            command=shlex.join(["latelier", *sys.argv[1:]]),
            on_plan=clock.start,
            on_cell=clock.cell,
        )
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the newest checkpoints", file=sys.stderr)
        raise typer.Exit(130) from None
    except CellBusyError as error:
        raise ValueError(str(error)) from None
    _show(study, out)
    if any(cell["status"] == "failed" for cell in study["cells"]):
        raise typer.Exit(1)


@app.command("ablate-cell", hidden=True)
def cell_command(
    study: Annotated[Path, typer.Argument(help="folder of the study")],
    variant: Annotated[str, typer.Option(help="its name")],
    seed: Annotated[int, typer.Option()],
    parent: Annotated[int | None, typer.Option(help="process with which to end")] = None,
    device: Device = None,
) -> None:
    """Run one cell of a study: what a worker of `latelier ablate --jobs` does."""
    from .recipes import CellBusyError, run_job
    from .recipes.launchers import BUSY, end_with

    if parent is not None:
        end_with(parent)
    try:
        run_job(str(study), variant, seed, device)
    except CellBusyError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(BUSY) from None


# --- what it is made of -------------------------------------------------------------------------------------------


def _variants(recipe: str, axes: Sequence[str], settings: Sequence[str], data: Path | None) -> "list[Variant]":
    """Those of a study by its name, or the grid of a recipe's axes."""
    from .blocks.overrides import override
    from .blocks.registry import encode
    from .recipes import STUDIES, find_source, grid, parse_axes
    from .recipes.find import called
    from .recipes.grid import check_distinct

    if recipe not in STUDIES:
        if not axes:
            raise ValueError(f"ablate: has no axis; add one, such as --axis teacher=hog,tiny_vit, to {recipe}")
        source, first = find_source(recipe), []
        if data is not None:
            first = [f"data={json.dumps(encode(with_data(called(source), data).data))}"]
        return grid(source, parse_axes(axes), settings=[*first, *settings])
    if axes:
        raise ValueError(f"ablate: {recipe} has its own axes; vary a recipe with --axis, or run the study as it is")
    made = [replace(v, recipe=override(with_data(v.recipe, data), settings)) for v in STUDIES[recipe]()]
    check_distinct(made)
    return made


def _files_of_parts(recipe: str) -> list[str]:
    """Files of the user's that may declare parts, for workers: the recipe's own, and those of --import."""
    named = [str(path) for path in imported]
    file = recipe.rpartition(":")[0]
    return [*named, *([file] if file.endswith(".py") else [])]


def _run_imports(folder: Path) -> None:
    from .recipes import imports_of
    from .recipes.find import run_file

    for file in imports_of(folder):
        run_file(Path(file), where="--import")


def _submitit(cluster: str, settings: Sequence[str]) -> Any:
    from .recipes import through_submitit

    parameters: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise ValueError(f"--slurm: takes KEY=VALUE such as timeout_min=600, got {setting!r}")
        try:
            parameters[name] = json.loads(text)
        except json.JSONDecodeError:
            parameters[name] = text
    return through_submitit(cluster, parameters)


def _show(study: dict[str, Any], folder: Path) -> None:
    """What came out in a sentence, every variant in a row, and where the rest is."""
    from .evaluation import headline, overview, overview_legend

    console = make_console()
    console.print(f"\n{headline(study, study['comparison'])}\n", highlight=False)
    head, *rows = overview(study, study["comparison"])
    table = Table(*head, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    console.print(table, highlight=False)
    if legend := overview_legend([head, *rows]):
        console.print(legend, highlight=False)
    print()
    names = {"report": ("report.html",), "numbers": ("ablation.json",), "tables": ("table.md", "table.tex")}
    for what, files in names.items():
        print(f"{what + ':':9}{', '.join(str(folder / name) for name in files)}")


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


class _Clock:
    """A line for each run that has ended, and how long the rest may take."""

    def __init__(self) -> None:
        self.console, self.began, self.first = make_console(), time.monotonic(), 0

    def start(self, study: "Study") -> None:
        variants, seeds = len(study.variants), len(study.seeds)
        self.console.print(
            f"{_count(variants, 'variant')} x {_count(seeds, 'seed')} = {_count(variants * seeds, 'run')}; "
            f"baseline: {study.baseline}",
            highlight=False,
        )
        for variant in study.variants:
            cost = "" if variant.flops_per_step is None else f", {variant.flops_per_step / 1e9:.3g} GFLOP a step"
            cost = cost or f", cannot be counted: {variant.why}"
            self.console.print(f"  {variant.name}: {_count(variant.steps, 'step')}{cost}", highlight=False)
        self.began = time.monotonic()

    def cell(self, address: "Address", cell: dict[str, Any], done: int, total: int) -> None:
        from .recipes import summary_of

        self.first = self.first or done
        seconds = time.monotonic() - self.began
        left = seconds / (done - self.first + 1) * (total - done)
        variant, seed = address
        self.console.print(
            f"{done:>3} of {total}  {variant}, seed {seed}: {summary_of(cell)}  ({seconds:.0f} s, {left:.0f} s left)",
            highlight=False,
        )
