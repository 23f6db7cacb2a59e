"""Checkpoints of a run: one safetensors file each, written whole or not at all.

A file holds every tensor that the next step depends on, under ``model/``, ``average/``, ``terms/`` and
``optimiser/``; its header says where in the recipe it stands. There is nothing else to save: random numbers are
addressed by step (``blocks/draws.py``), and so is the order of the data.
"""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..blocks.latent_space import LatentSpec
from ..blocks.registry import decode, differences, encode
from ..blocks.teacher_spec import TeacherSpec
from ..families.files import SPEC as LATENT_SPEC
from ..families.files import TEACHER_SPEC, CheckpointError, read_tensors, write_tensors
from .recipe import Recipe

BEST = "best.safetensors"


@dataclass(frozen=True)
class Position:
    """Where a run stands: ``step`` steps of stage number ``stage`` are done, ``total`` over all stages."""

    stage: int = 0
    step: int = 0
    total: int = 0
    best_loss: float | None = None
    best_total: int | None = None


@dataclass(frozen=True)
class Checkpoint:
    position: Position
    tensors: dict[str, Tensor] = field(repr=False)
    path: Path
    teacher_spec: TeacherSpec | None
    latent_spec: LatentSpec | None = None
    """Of the latents that a bridge reads."""

    def group(self, name: str) -> dict[str, Tensor]:
        """Tensors under ``name/``, without the prefix."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): t for key, t in self.tensors.items() if key.startswith(prefix)}


class Checkpoints:
    """The checkpoints in a folder: writes, finds, and keeps the last ``keep`` and the best."""

    def __init__(self, folder: Path, recipe: Recipe, *, keep: int = 2) -> None:
        self.folder, self.recipe, self.keep = folder, recipe, keep
        self.teacher_spec: TeacherSpec | None = None
        """Of the teacher at hand, once it is built."""
        self.latent_spec: LatentSpec | None = None
        """Of the latents, where they are data."""

    def path(self, total: int) -> Path:
        return self.folder / f"step-{total:08d}.safetensors"

    def all(self) -> list[Path]:
        """Checkpoint files, oldest first."""
        return sorted(self.folder.glob("step-*.safetensors"))

    def save(self, position: Position, groups: Mapping[str, Mapping[str, Tensor]]) -> Path:
        tensors = {f"{group}/{name}": t for group, items in groups.items() for name, t in items.items()}
        header = {
            "latelier.recipe": json.dumps(encode(self.recipe)),
            "latelier.position": json.dumps(asdict(position)),
        }
        if self.teacher_spec is not None:
            header[TEACHER_SPEC] = json.dumps(encode(self.teacher_spec))
        if self.latent_spec is not None:
            header[LATENT_SPEC] = json.dumps(encode(self.latent_spec))
        path = write_tensors(self.path(position.total), tensors, header)
        self.settle(position)
        return path

    def settle(self, position: Position) -> None:
        """Bring the folder in line with ``position``: the best is named so, older ones are gone."""
        if position.best_total == position.total:
            spare = self.folder / f".{BEST}.part"
            spare.unlink(missing_ok=True)
            os.link(self.path(position.total), spare)
            os.replace(spare, self.folder / BEST)
            spare.unlink(missing_ok=True)  # renaming onto a link to the same file does nothing
        for old in self.all()[: -self.keep]:
            old.unlink()

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint, or None.

        Raises:
            CheckpointError: it belongs to another recipe; the message names the fields that differ.
        """
        files = self.all()
        return self.read(files[-1]) if files else None

    def read(self, path: Path) -> Checkpoint:
        tensors, header = read_tensors(path)
        if "latelier.recipe" not in header:
            raise CheckpointError(f"{path}: is no checkpoint of a run; it has no recipe in its header")
        theirs = decode(json.loads(header["latelier.recipe"]), Recipe)
        if theirs != self.recipe:
            lines = differences(self.recipe, theirs, where="recipe")
            raise CheckpointError(
                f"{path}: was written by another recipe ({theirs.id}, this is {self.recipe.id}): "
                f"{'; '.join(lines[:3])}{' ...' if len(lines) > 3 else ''}; resume with the same recipe, "
                "or start a new run in another folder"
            )
        position = Position(**json.loads(header["latelier.position"]))
        return Checkpoint(
            position, tensors, path, teacher_spec_in(header, where=str(path)), latent_spec_in(header, where=str(path))
        )

    def check_teacher(self, checkpoint: Checkpoint, *, accept: Collection[str] = ()) -> None:
        """Raise :class:`CheckpointError` where a checkpoint was trained with another teacher than that at hand.

        ``accept`` names fields of the spec that may differ. A checkpoint that says nothing of a teacher is taken.
        """
        if self.teacher_spec is None or checkpoint.teacher_spec is None:
            return
        try:
            self.teacher_spec.check(checkpoint.teacher_spec, where=str(checkpoint.path), accept=accept)
        except ValueError as error:
            raise CheckpointError(f"{error}; --accept FIELD takes a difference that is known to be harmless") from None

    def check_latents(self, checkpoint: Checkpoint) -> None:
        """Raise :class:`CheckpointError` where a checkpoint was trained on latents of another space than the data's."""
        if self.latent_spec is None or checkpoint.latent_spec is None:
            return
        try:
            checkpoint.latent_spec.check(self.latent_spec, where=str(checkpoint.path))
        except ValueError as error:
            raise CheckpointError(f"{error}; the run goes on with the pairs that it began with") from None


def teacher_spec_in(header: Mapping[str, str], *, where: str) -> TeacherSpec | None:
    """The teacher that the header of a file names, or None."""
    if TEACHER_SPEC not in header:
        return None
    return decode(json.loads(header[TEACHER_SPEC]), TeacherSpec, where=f"{where} (header): {TEACHER_SPEC}")


def latent_spec_in(header: Mapping[str, str], *, where: str) -> LatentSpec | None:
    """The space of latents that the header of a file names, or None."""
    if LATENT_SPEC not in header:
        return None
    return decode(json.loads(header[LATENT_SPEC]), LatentSpec, where=f"{where} (header): {LATENT_SPEC}")


# --- optimisers ---------------------------------------------------------------------------------------------------


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of an optimiser built from named parameters, as ``parameter/entry``."""
    state = optimiser.state_dict()
    names = _names(state)
    return {f"{names[i]}/{key}": torch.as_tensor(v) for i, entry in state["state"].items() for key, v in entry.items()}


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Undo :func:`optimiser_tensors`; rates and other settings come from the recipe, not from the file."""
    state = optimiser.state_dict()
    entries: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition("/")
        entries.setdefault(parameter, {})[key] = tensor
    state["state"] = {i: entries[name] for i, name in _names(state).items() if name in entries}
    optimiser.load_state_dict(state)


def _names(state: dict) -> dict[int, str]:
    return {
        i: name
        for group in state["param_groups"]
        for i, name in zip(group["params"], group["param_names"], strict=True)
    }
