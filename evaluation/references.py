"""Teachers beside a model, on the grid of its latents: what probes compare it with."""

import contextlib
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from ..blocks.registry import Part, encode
from ..blocks.slots import ProbeContext, TeacherConfig
from ..blocks.teachers import Teacher


@dataclass(frozen=True)
class Reference:
    """A teacher that stands beside a model, on the grid of its latents."""

    config: TeacherConfig
    teacher: Teacher
    name: str
    """For tables: ``hog``, ``dinov3:vits16``, with the config's id where anything else was set."""

    def as_json(self) -> dict[str, Any]:
        return {
            "teacher": encode(self.config),
            "teacher_id": self.config.id,
            "teacher_spec_id": self.teacher.spec.id,
            "teacher_name": self.name,
        }


def reference(probe: Part, config: TeacherConfig | None, model: Any, context: ProbeContext) -> Reference:
    """The teacher that a probe names or, where it names none, that of the run; built once for all probes.

    Raises:
        ValueError: there is neither.
    """
    config = config or context.teacher
    if config is None:
        name = probe.kind.partition("/")[2]
        raise ValueError(
            f"{probe.kind}: needs a teacher, and the model's recipe has none; name one, as in --probe {name}:hog"
        )
    placed = config.for_stride(model.stride)
    if placed not in context.built:
        with torch.random.fork_rng(devices=[]):  # a network draws weights before it gets its own
            context.built[placed] = placed.build()
    first = next(chain(model.parameters(), model.buffers()))
    return Reference(placed, context.built[placed].to(first.device), teacher_name(placed, model.stride))


def teacher_name(config: TeacherConfig, stride: int) -> str:
    """The short form of a teacher on the grid of that stride, with its id where more was set."""
    name, fields = config.kind.partition("/")[2], {}
    if config.shorthand:
        fields = {config.shorthand: getattr(config, config.shorthand)}
        name = f"{name}:{fields[config.shorthand]}"
    with contextlib.suppress(TypeError):  # a field without a default
        if config == type(config)(**fields).for_stride(stride):
            return name
    return f"{name}-{config.id}"
