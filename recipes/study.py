"""What a study is, as a file: its variants, seeds, baseline and budget. Cells are run from the file alone.

``plan.json`` has what was asked, which a later call must repeat, and what was made of it: recipes with their steps,
costs and threads, so that a study that was interrupted goes on with the same numbers.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from ..blocks.registry import decode, differences, encode
from ..blocks.slots import ProbeConfig
from ..families.files import read_config, write_atomically
from ..training.recipe import Recipe
from .costs import count_step, threads, time_step, with_steps
from .grid import Variant

PLAN, FORMAT = "plan.json", 1

BudgetKind = Literal["steps", "seconds", "flops"]


@dataclass(frozen=True)
class Budget:
    """What every cell may use: as many optimiser steps, seconds of training on this machine, or operations.

    ``amount`` None, of steps alone, leaves each recipe its own.
    """

    kind: BudgetKind = "steps"
    amount: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """``steps``, ``steps=300``, ``seconds=60`` or ``flops=1e13``."""
        kind, equals, amount = text.partition("=")
        if kind not in ("steps", "seconds", "flops"):
            raise ValueError(f"--budget: takes steps=N, seconds=S or flops=F, got {text!r}")
        try:
            number = float(amount) if equals else None
        except ValueError:
            raise ValueError(f"--budget: takes a number behind {kind}=, got {amount!r}") from None
        return cls(kind, number)

    def __post_init__(self) -> None:
        if self.amount is None and self.kind != "steps":
            raise ValueError(f"budget: {self.kind} need an amount, such as {self.kind}=60")
        if self.amount is not None and not 0 < self.amount < float("inf"):
            raise ValueError(f"budget: must be positive, got {self.amount:g}")
        if self.kind == "steps" and self.amount is not None and self.amount != int(self.amount):
            raise ValueError(f"budget: takes whole steps, got {self.amount:g}")


@dataclass(frozen=True)
class Planned:
    """A variant as it is run: ``recipe`` has its steps; None costs could not be counted, for the reason in ``why``."""

    name: str
    folder: str
    labels: dict[str, str]
    recipe: Recipe
    flops_per_step: int | None = None
    teacher_flops_per_step: int | None = None
    parameters: int | None = None
    seconds_per_step: float | None = None
    why: str = ""

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.recipe.stages)


@dataclass(frozen=True)
class Study:
    """Everything that its cells are run from."""

    variants: tuple[Planned, ...]
    seeds: tuple[int, ...]
    baseline: str
    budget: Budget
    probes: tuple[ProbeConfig, ...] = ()
    imports: tuple[str, ...] = ()
    threads: int = 1
    command: str | None = None
    asked: dict[str, Any] = field(default_factory=dict)

    def variant(self, name: str) -> Planned:
        return next(variant for variant in self.variants if variant.name == name)

    @property
    def axes(self) -> dict[str, list[str]]:
        """The values of each axis, in order."""
        found: dict[str, list[str]] = {}
        for variant in self.variants:
            for axis, label in variant.labels.items():
                if label not in found.setdefault(axis, []):
                    found[axis].append(label)
        return found


def asked_for(
    variants: Sequence[Variant],
    seeds: Sequence[int],
    baseline: str,
    budget: Budget,
    probes: Sequence[ProbeConfig],
) -> dict[str, Any]:
    """What a second call must repeat to go on with a study."""
    return {
        "variants": [{"name": v.name, "labels": dict(v.labels), "recipe": encode(v.recipe)} for v in variants],
        "seeds": list(seeds),
        "baseline": baseline,
        "budget": asdict(budget),
        "probes": encode(tuple(probes)),
    }


def make_plan(
    variants: Sequence[Variant],
    seeds: Sequence[int],
    baseline: str,
    budget: Budget,
    *,
    probes: Sequence[ProbeConfig] = (),
    imports: Sequence[str] = (),
    count: int = 1,
    device: str | torch.device | None = None,
    command: str | None = None,
) -> Study:
    """Count, and where the budget needs it time, what a step of each variant costs, and give each its steps."""
    with threads(count):
        planned = tuple(_planned(i, variant, budget, device) for i, variant in enumerate(variants))
    asked = asked_for(variants, seeds, baseline, budget, probes)
    return Study(
        planned, tuple(seeds), baseline, budget, tuple(probes), tuple(imports), count, command=command, asked=asked
    )


def _planned(index: int, variant: Variant, budget: Budget, device: str | torch.device | None) -> Planned:
    slug = re.sub(r"[^A-Za-z0-9.=_+-]+", "-", variant.name).strip("-")
    made = Planned(variant.name, f"{index:02d}-{slug}"[:80], dict(variant.labels), variant.recipe)
    if budget.kind == "steps" and budget.amount is not None:
        made = replace(made, recipe=with_steps(made.recipe, int(budget.amount)))
    try:
        cost = count_step(made.recipe)
        made = replace(
            made, flops_per_step=cost.flops, teacher_flops_per_step=cost.teacher_flops, parameters=cost.parameters
        )
        if budget.kind == "seconds":
            made = replace(made, seconds_per_step=time_step(made.recipe, device))
    except Exception as error:  # its cells will fail by it, and say so
        return replace(made, why=f"{type(error).__name__}: {error}")
    each = {"seconds": made.seconds_per_step, "flops": made.flops_per_step}.get(budget.kind)
    if each is None or budget.amount is None:
        return made
    if budget.amount < each:
        raise ValueError(
            f"budget: {budget.kind}={budget.amount:g} pays for no step of {variant.name!r}, which takes {each:.3g}; "
            "give more, or name steps"
        )
    return replace(made, recipe=with_steps(made.recipe, round(budget.amount / each)))


# --- the file -----------------------------------------------------------------------------------------------------


def save_plan(study: Study, folder: Path) -> Path:
    variants = [
        {spec.name: getattr(v, spec.name) for spec in fields(v)} | {"recipe": encode(v.recipe)} for v in study.variants
    ]
    made = {
        "variants": variants,
        "imports": list(study.imports),
        "threads": study.threads,
        "command": study.command,
    }
    text = json.dumps({"format": FORMAT, "asked": study.asked, "made": made}, indent=1)
    return write_atomically(folder / PLAN, text + "\n")


def load_plan(folder: Path) -> Study:
    """Read the study that a folder holds.

    Raises:
        FileNotFoundError: there is none.
        PartError: one of its recipes needs parts that are not known here.
    """
    path = folder / PLAN
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: holds no study; latelier ablate RECIPE --axis ... --out {folder} makes one")
    tree = read_config(path)
    if tree.get("format") != FORMAT:
        raise ValueError(f"{path}: has format {tree.get('format')!r}, this version reads {FORMAT}; run it with its own")
    asked, made = tree["asked"], tree["made"]
    variants = tuple(
        Planned(**{**v, "recipe": decode(v["recipe"], Recipe, where=f"{path}: variants.{i}.recipe")})
        for i, v in enumerate(made["variants"])
    )
    return Study(
        variants,
        tuple(asked["seeds"]),
        asked["baseline"],
        Budget(**asked["budget"]),
        tuple(decode(probe, ProbeConfig) for probe in asked["probes"]),
        tuple(made["imports"]),
        made["threads"],
        made["command"],
        asked,
    )


def check_same(study: Study, asked: Mapping[str, Any], folder: Path) -> None:
    """Raise ``ValueError`` where the study in a folder was asked for in other words."""
    lines = [line.lstrip(".") for line in _differing(study.asked, asked, "")]
    if lines:
        more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
        raise ValueError(
            f"{folder}: holds another study ({'; '.join(lines[:3])}{more}); repeat its command to go on with it, or "
            "choose another --out"
        )


def _differing(ours: Any, theirs: Any, where: str) -> list[str]:
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        if "/" in str(ours.get("kind")) and ours.get("kind") == theirs.get("kind"):
            return differences(decode(dict(ours)), decode(dict(theirs)), where=where)
        keys = dict.fromkeys([*ours, *theirs])
        return [line for key in keys for line in _differing(ours.get(key), theirs.get(key), f"{where}.{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [line for i, (a, b) in pairs for line in _differing(a, b, f"{where}.{i}")]
    return [] if ours == theirs else [f"{where}: {_brief(ours)}, not {_brief(theirs)}"]


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def prepare_folder(folder: Path) -> bool:
    """Whether a study stands in ``folder``; raise ``ValueError`` where something else does."""
    if (folder / PLAN).is_file():
        return True
    strangers = sorted(os.listdir(folder)) if folder.is_dir() else []
    strangers = [name for name in strangers if not name.startswith(".")]
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; choose a folder for --out")
    if strangers:
        raise ValueError(f"{folder}: holds something else ({', '.join(strangers[:3])}); choose another --out")
    return False


def unequal_conditions(study: Study) -> list[str]:
    """What differs between variants and the baseline though equal conditions would have it equal."""
    baseline = study.variant(study.baseline).recipe
    lines = []
    for variant in study.variants:
        found = []
        for line in differences(variant.recipe, baseline, where=""):
            path = line.partition(": ")[0].lstrip(".")
            meant = study.budget.kind != "steps" and path.endswith(".steps")  # an equal budget makes them differ
            if re.fullmatch(EQUAL, path) and not meant:
                found.append(line.lstrip("."))
        lines += [f"{variant.name}: {line}" for line in found]
    return lines


_OF_A_STAGE = r"name|steps|batch|resolution|latents|crop|crop\..*|precision|ema"
EQUAL = rf"data(\..*)?|evaluation(\..*)?|stages|stages\.\d+\.({_OF_A_STAGE})"
"""Fields of a recipe that fix data order, noise, budget and measuring."""
