"""Latent spaces by name, and another space's latents as a teacher.

    space = latent_space("sd")                         # Stable Diffusion's, loaded at its first encode or decode
    z = space.encode(images)                           # [-1, 1] to normalised latents, marked with their space
    config = space_config("va_vae", statistics="latents_stats.pt")

Models of ours are spaces too: ``latent_space("model:runs/demo/model")``, and those that are published by name.
"""

import dataclasses
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from .backbones import weights_hash
from .latent_module import LatentSpace
from .published_spaces import PUBLISHED
from .registry import PartError, decode, discover, part, suggest
from .resize import SizeError
from .shapes import Image
from .slots import LatentSpaceConfig, TeacherConfig, TeacherOutput
from .teacher_spec import TeacherSpec
from .teachers import Teacher

KNOWN_SPACES: dict[str, LatentSpaceConfig] = dict(PUBLISHED)
"""Spaces by name. Other layers and packages add theirs, so look a name up with :func:`space_config`."""


def space_config(name: str | Mapping[str, Any] | LatentSpaceConfig, /, **changes: Any) -> LatentSpaceConfig:
    """The config of a space: by its name, by the short or JSON form of its part, with some fields changed.

    Raises:
        PartError: no space or part has that name, or a changed field is unknown or of a wrong type.
    """
    config = name if isinstance(name, LatentSpaceConfig) else _find(name)
    if not changes:
        return config
    known = [field.name for field in dataclasses.fields(config)]
    for field in changes:
        if field not in known:
            raise PartError("space", f"{config.kind!r} has no field {field!r}; {suggest(field, known)}")
    return dataclasses.replace(config, **changes)


def latent_space(name: str | Mapping[str, Any] | LatentSpaceConfig, /, **changes: Any) -> LatentSpace:
    """Build a space; see :func:`space_config`."""
    return space_config(name, **changes).build()


def _find(name: str | Mapping[str, Any]) -> LatentSpaceConfig:
    if not isinstance(name, str):
        return decode(name, LatentSpaceConfig, where="space")
    if name.lstrip().startswith("{"):
        try:
            return decode(json.loads(name), LatentSpaceConfig, where="space")
        except json.JSONDecodeError:
            raise PartError("space", f"is no whole JSON, got {name!r}") from None
    if name not in KNOWN_SPACES:
        failed = discover()
        if ":" in name or "/" in name:
            return decode(name, LatentSpaceConfig, where="space")
        if name not in KNOWN_SPACES:
            unknown = f"no latent space is named {name!r}; {suggest(name, KNOWN_SPACES)}"
            raise PartError("space", "; ".join([unknown, *failed]))
    return KNOWN_SPACES[name]


class LatentsTeacher(Teacher):
    """Normalised latents ``[b, h*w, channels]`` of a space, in row-major order, of images in [0, 1]."""

    def __init__(self, space: LatentSpace) -> None:
        super().__init__("teacher/latents")
        space.load()
        self.space = space
        config, described = space.config, space.spec
        assert space.codec is not None
        drawn = f"random:{getattr(config, 'seed', 0)}" if getattr(config, "random_init", False) else None
        ours = config.kind == "latent_space/model"
        self.spec = TeacherSpec(
            library="latelier" if ours else "diffusers",
            version=version("latelier" if ours else "diffusers"),
            model=f"latents of {described.source}, {described.posterior}, normalised by {described.normalisation}",
            weights=drawn or weights_hash(space.codec.state_dict()),
            licence="of the weights: see their model card",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            patch=space.stride,
            features=space.channels,
        )

    def describe(self, images: Image) -> TeacherOutput:
        height, width = images.shape[2:]
        side = self.space.stride
        if height % side or width % side:
            raise SizeError(f"image sides must be divisible by {side}, got {height}x{width}")
        z = self.space.normalise(self.space.differentiable_raw(2 * images - 1))
        return TeacherOutput(patches=z.flatten(2).transpose(1, 2), grid=(z.shape[2], z.shape[3]))


@part("teacher/latents")
class LatentsTeacherConfig(TeacherConfig):
    """Another space's normalised latents as tokens, such as for a bridge from one latent space to another."""

    space: LatentSpaceConfig

    def __post_init__(self) -> None:
        if self.space.spec.posterior == "sample":
            raise ValueError("space: must give the same latents each time; choose posterior='mode'")

    @property
    def features(self) -> int:
        return self.space.channels

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """The grid of latents of an image of that height and width; raises :class:`SizeError` where there is none."""
        side = self.space.stride
        if size[0] % side or size[1] % side:
            raise SizeError(f"image sides must be divisible by {side}, got {size[0]}x{size[1]}")
        return size[0] // side, size[1] // side

    def build(self) -> LatentsTeacher:
        return LatentsTeacher(self.space.build())
