"""Ablations: every variant with every seed, under equal conditions, to a table that says what is certain.

All cells of a seed see the same pictures, crops and noise, because random numbers are addressed by seed, stage and
step, and have the same budget. So the difference of a variant to the baseline is taken seed by seed, and its
interval is that of paired differences.

    variants = grid(demo.semdisdiffae, {"teacher": [HOGConfig(), TinyViTConfig()], "encoder.block": ["fcdm", "dit"]})
    study = ablate(variants, out="runs/study", seeds=3, steps=300)

A folder holds ``plan.json``, ``cells/<variant>/seed-<k>/`` (ordinary run folders), ``ablation.json``, ``table.md``,
``table.tex``, ``plots/`` and ``report.html``. The same call on the same folder goes on where it was interrupted.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..blocks.registry import encode, suggest
from ..blocks.slots import ProbeConfig
from ..evaluation.ablation_outputs import check_libraries, load_study, write_study
from ..training.cached import computing_teacher
from .cells import forget_cell, read_cell
from .grid import Variant, name_of, split_values
from .launchers import Address, Launcher, in_processes, in_this_process
from .study import (
    Budget,
    Study,
    asked_for,
    check_same,
    load_plan,
    make_plan,
    prepare_folder,
    save_plan,
    unequal_conditions,
)

OnCell = Callable[[Address, dict[str, Any], int, int], None]
"""Called when a cell has ended, with its address, what became of it, how many are done, and of how many."""


def ablate(
    variants: Sequence[Variant],
    *,
    out: str | Path,
    seeds: int | Sequence[int] = 3,
    steps: int | None = None,
    budget: Budget | str | None = None,
    baseline: str | Mapping[str, str] | None = None,
    probes: Sequence[ProbeConfig] = (),
    jobs: int = 1,
    devices: Sequence[str] = (),
    launcher: Launcher | None = None,
    retry_failed: bool = False,
    imports: Sequence[str] = (),
    command: str | None = None,
    on_plan: Callable[[Study], None] | None = None,
    on_cell: OnCell | None = None,
) -> dict[str, Any]:
    """Run a study, or go on with it, write its tables, plots and report, and return what ``ablation.json`` holds.

    Args:
        variants: see :func:`grid`; or recipes with names of your own.
        out: a new folder, or one of the same study.
        seeds: how many, from 0; or which. More of them than a study in ``out`` has are added to it.
        steps: optimiser steps of every cell; None leaves each recipe its own. Short for ``budget="steps=N"``.
        budget: "steps=300", "seconds=60" (measured on this machine while planning), or "flops=1e13".
        baseline: name of a variant or its labels, all or some that tell it apart; default: the first.
        probes: asked of every model besides its recipe's; their numbers become columns.
        jobs: worker processes; 1 runs everything in this one. Cores are shared among them.
        devices: that cells take in turn, such as ("cuda:0", "cuda:1"), at least one job for each; default: CUDA where
            there is one.
        launcher: runs the cells in another way, such as :func:`through_submitit`.
        retry_failed: run cells again that failed.
        imports: Python files that declare parts, for workers to run first.

    Raises:
        ValueError: no variants, two of one name, no such baseline, or a folder that holds something else.
        CellBusyError: another process is at a cell of this folder.
        ImportError: scipy or matplotlib is missing (extra ``ablations``).
    """
    check_libraries()
    folder, jobs = Path(out), max(jobs, len(devices)) if jobs > 0 else jobs
    study = plan(
        variants,
        folder,
        seeds=seeds,
        budget=_budget(steps, budget),
        baseline=baseline,
        probes=probes,
        jobs=jobs,
        devices=devices,
        imports=imports,
        command=command,
    )
    if on_plan is not None:
        on_plan(study)
    cells = [(variant.name, seed) for seed in study.seeds for variant in study.variants]
    waiting = []
    for address in cells:
        status = read_cell(study, *address, folder)["status"]
        if status == "failed" and retry_failed:
            forget_cell(study, *address, folder)
        if status == "pending" or (status == "failed" and retry_failed):
            waiting.append(address)
    if launcher is None:
        one = in_this_process(devices[0] if devices else None)
        launcher = one if jobs == 1 else in_processes(jobs, devices)
    done = len(cells) - len(waiting)
    for address, cell in launcher(study, waiting, folder):
        done += 1
        if on_cell is not None:
            on_cell(address, cell, done, len(cells))
    return collect(folder, study)


def plan(
    variants: Sequence[Variant],
    folder: Path,
    *,
    seeds: int | Sequence[int],
    budget: Budget,
    baseline: str | Mapping[str, str] | None,
    probes: Sequence[ProbeConfig] = (),
    jobs: int = 1,
    devices: Sequence[str] = (),
    imports: Sequence[str] = (),
    command: str | None = None,
) -> Study:
    """The study in a folder, which must be the one that is asked for; a new one is made and written there."""
    if not variants:
        raise ValueError("variants: are empty; give at least one")
    names = [variant.name for variant in variants]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"variants: {name!r} is there twice; give each its own name")
    if jobs < 1:
        raise ValueError(f"jobs: must be at least 1, got {jobs}")
    chosen = _seeds(seeds)
    base = find_baseline(variants, baseline)
    if prepare_folder(folder):
        study, asked = load_plan(folder), asked_for(variants, chosen, base, budget, probes)
        if set(chosen) > set(study.seeds) and asked | {"seeds": 0} == study.asked | {"seeds": 0}:
            study = replace(study, seeds=chosen, asked=asked)  # more of the same
            save_plan(study, folder)
        check_same(study, asked, folder)
        return study
    study = make_plan(
        variants,
        chosen,
        base,
        budget,
        probes=probes,
        imports=[str(Path(file).resolve()) for file in imports],
        count=max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else torch.get_num_threads(),
        device=devices[0] if devices else None,
        command=command,
    )
    save_plan(study, folder)
    return study


def collect(folder: str | Path, study: Study | None = None) -> dict[str, Any]:
    """Write tables, plots and report of what a study has come to, finished or not, and return ``ablation.json``."""
    folder = Path(folder)
    study = study or load_plan(folder)
    cells = [read_cell(study, v.name, seed, folder) for v in study.variants for seed in study.seeds]
    conditions = next((cell["conditions"] for cell in cells if cell["conditions"]), {})
    mixed = [
        f"{cell['variant']}, seed {cell['seed']}: {line}"
        for cell in cells
        if cell["conditions"]
        for line in _changed(cell["conditions"], conditions)
    ]
    timing = {f"{cell['variant']}/{cell['seed']}": cell["seconds"] for cell in cells if cell["seconds"] is not None}
    apart = {"conditions", "seconds"}
    tree = {
        "format": 1,
        "name": study.variants[0].recipe.name,
        "id": _identity(study),
        "command": study.command,
        "axes": study.axes,
        "seeds": list(study.seeds),
        "baseline": study.baseline,
        "budget": {"kind": study.budget.kind, "amount": study.budget.amount, "text": _budget_text(study)},
        "conditions": unequal_conditions(study) + mixed,
        "variants": [_described(study, variant.name) for variant in study.variants],
        "cells": [{key: value for key, value in cell.items() if key not in apart} for cell in cells],
        **{key: conditions.get(key) for key in ("versions", "dtype", "device")},
        "timing": timing,
    }
    write_study(tree, folder)
    return load_study(folder / "ablation.json")


def _changed(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Where a cell was measured under other conditions than the first: dtype, device, versions."""
    pairs = {key: (ours[key], theirs.get(key)) for key in ("dtype", "device")}
    pairs |= {key: (value, theirs["versions"].get(key)) for key, value in ours["versions"].items()}
    return [f"{key}: {a!r}, not {b!r}" for key, (a, b) in pairs.items() if a != b]


def _described(study: Study, name: str) -> dict[str, Any]:
    variant = study.variant(name)
    teacher = computing_teacher(variant.recipe.teacher)
    return {
        "name": variant.name,
        "labels": variant.labels,
        "recipe": encode(variant.recipe),
        "recipe_id": variant.recipe.id,
        "steps": variant.steps,
        "parameters": variant.parameters,
        "flops_per_step": variant.flops_per_step,
        "teacher_flops_per_step": variant.teacher_flops_per_step,
        "seconds_per_step": variant.seconds_per_step,
        "why": variant.why,
        "teacher": None if teacher is None else teacher.kind,
    }


def _identity(study: Study) -> str:
    return hashlib.sha256(json.dumps(study.asked, sort_keys=True).encode()).hexdigest()[:12]


def _budget(steps: int | None, budget: Budget | str | None) -> Budget:
    if steps is not None and budget is not None:
        raise ValueError("budget: give steps or a budget, not both")
    if steps is not None:
        return Budget("steps", float(steps))
    return budget if isinstance(budget, Budget) else Budget.parse(budget) if budget else Budget()


def _budget_text(study: Study) -> str:
    kind, amount = study.budget.kind, study.budget.amount
    steps = sorted({variant.steps for variant in study.variants})
    counted = f"{steps[0]:,} to {steps[-1]:,} steps"
    if len(steps) == 1:
        counted = f"{steps[0]:,} step" + ("" if steps[0] == 1 else "s")
    if kind == "steps":
        equal = "each" if len(steps) == 1 else "as their recipes say: NOT equal"
        return f"{counted} {equal}"
    if kind == "seconds":
        return f"{amount:g} seconds of training each, as a step took while planning: {counted}"
    return f"{amount:.3g} operations of model and terms each (teachers apart): {counted}"


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen:
        raise ValueError(f"seeds: must be at least 1, got {seeds}")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"seeds: must differ, got {list(chosen)}")
    return chosen


def find_baseline(variants: Sequence[Variant], wanted: str | Mapping[str, str] | None) -> str:
    """The name of the variant that others are compared with."""
    names = [variant.name for variant in variants]
    if wanted is None:
        return names[0]
    if isinstance(wanted, str):
        if wanted in names:
            return wanted
        wanted = dict(_pair(text) for text in split_values(wanted)) if "=" in wanted else {"": wanted}
    found = [v.name for v in variants if v.labels and all(v.labels.get(k) == label for k, label in wanted.items())]
    if len(found) == 1:
        return found[0]
    asked = name_of(wanted).removeprefix("=")
    if found:
        raise ValueError(f"baseline: {asked!r} stands for {len(found)} variants; name a value of each axis")
    raise ValueError(f"baseline: no variant is {asked!r}; {suggest(asked, names)}")


def _pair(text: str) -> tuple[str, str]:
    axis, _, label = text.partition("=")
    return axis.strip(), label.strip()
