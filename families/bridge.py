"""Bridges: from an autoencoder's latents to the tokens that a teacher gives of the same image, without decoding.

A stem reads the latents of one autoencoder, a transformer body knows of no autoencoder and no teacher, and a head gives
one teacher's tokens; their tensors have the prefixes ``stem.``, ``body.`` and ``head.``. A new latent space is another
stem, and a new teacher another head. The first of the kind is kingsidharth/sd_vae_2_dino_v2_bridge, whose published
interface ``bridge_card.py`` speaks; the names of its tensors are not published, so that its files are not read.
"""

import copy
import inspect
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..blocks.adapters import ResidualStemConfig
from ..blocks.feature_heads import LinearHeadConfig
from ..blocks.flux2 import Flux2LatentsConfig
from ..blocks.latent_module import LatentSpace
from ..blocks.latent_space import UNKNOWN, LatentSpec, mark, spec_of
from ..blocks.registry import part, suggest
from ..blocks.shapes import Image, Latent, Times
from ..blocks.slots import (
    BridgeNoiseConfig,
    FamilyConfig,
    FeatureHeadConfig,
    LatentSpaceConfig,
    LatentStemConfig,
    TeacherConfig,
    TeacherOutput,
    TokenBodyConfig,
)
from ..blocks.teacher_spec import TeacherSpec
from ..blocks.token_body import TransformerBodyConfig
from ..blocks.weights import CheckpointError, assign, read_tensors
from .bridge_grids import BridgeGrids, derive_grids
from .files import SPEC, TEACHER_SPEC, find_files, load_folder, save_folder, spec_in

PARTS = ("stem", "body", "head")

Bridge = TypeVar("Bridge", bound="LatentBridge")


class LatentBridge(nn.Module):
    """Latents in model space to a teacher's tokens; see the module's text.

    Made from a config, or from the card's own argument names (see :func:`~.bridge_card.card_config`).

    Attributes:
        grids: how latents, tokens and the teacher's patches lie on one another.
        latent_spec: of the latents that it reads.
        latent_channels, stride: of those latents.
        teacher_spec: of the teacher that it learned from, once it has.
    """

    def __init__(self, config: "LatentBridgeConfig | None" = None, **names: Any) -> None:
        super().__init__()
        if config is not None and names:
            raise ValueError(f"LatentBridge: takes a config or the card's names, got both ({', '.join(names)})")
        self.config = config or _from_card(names)
        config = self.config
        width, self.grids = config.body.width, config.grids()
        self.latent_spec: LatentSpec = config.space.spec
        self.latent_channels = self.latent_spec.channels
        self.stride = self.latent_spec.stride
        self.stem = _built(config.stem, channels=self.latent_channels, width=width, stride=self.grids.stride)
        self.body = _built(config.body, noise=config.noise is not None)
        self.head = _built(config.head, width=width, features=config.teacher.features, factor=self.grids.factor)
        self.teacher_spec: TeacherSpec | None = None
        self._space: list[LatentSpace] = []  # in a list: its weights are no part of this module

    def __getstate__(self) -> dict[str, Any]:
        """Copies load the autoencoder anew, where they need it."""
        return self.__dict__ | {"_space": []}

    @property
    def dtype(self) -> torch.dtype:
        """In which it is stored and computes."""
        return next(self.parameters()).dtype

    @property
    def space(self) -> LatentSpace:
        """The autoencoder whose latents it reads, built when it is first asked for, on the bridge's device."""
        if not self._space:
            self._space.append(self.config.space.build())
        return self._space[0].to(next(self.parameters()).device)

    def parts(self) -> dict[str, dict[str, nn.Parameter]]:
        """The parameters of stem, body and head, by their names in the whole."""
        named = list(self.named_parameters())
        return {name: {n: p for n, p in named if n.startswith(f"{name}.")} for name in PARTS}

    # --- reading latents ------------------------------------------------------------------------------------------

    def forward(self, latents: Latent, tau: Times | None = None) -> TeacherOutput:
        """What the teacher would say of the image: tokens at least float32, one a position of the grid.

        Args:
            latents: ``[b, z, h, w]`` in model space, of any size that the stem's stride divides; gradients flow.
            tau: how noisy each of them is, in [0, 1], of a bridge that was made with noise; None is clean.

        Raises:
            ValueError: the latents are of another space, shape or size, or the bridge is told no noise level.
        """
        self.check(latents, tau)
        return self.read(latents, tau)

    def read(self, latents: Latent, tau: Times | None = None) -> TeacherOutput:
        """As :meth:`forward`, of latents that are checked: one graph for ``torch.compile``."""
        return self.head(self.body(self.stem(latents.to(self.dtype)), tau))

    def grid_of(self, latents: Latent) -> tuple[int, int]:
        """Rows and columns of the tokens of latents ``[b, z, h, w]``."""
        stride, factor = self.grids.stride, self.grids.factor
        return latents.shape[2] // stride * factor, latents.shape[3] // stride * factor

    def predict(self, images: Image, *, seed: int | None = None) -> TeacherOutput:
        """The same for images in [-1, 1], through the encoder of the latent space; ``seed`` is of its sample if any."""
        return self(self.space.encode(images, seed=seed))

    def translate(self, latents: Latent) -> Float[Tensor, "b c i j"]:
        """Latents of the space that the teacher stands for, ``[b, c, h, w]``, marked as such; gradients flow.

        Raises:
            ValueError: the teacher is no latent space.
        """
        spec = _target_space(self.config.teacher)
        if spec is None:
            raise ValueError(
                f"translate: {self.config.teacher.kind} is no latent space; make the bridge for 'teacher/latents'"
            )
        found = self(latents)
        translated = found.patches.transpose(1, 2).unflatten(2, found.grid)
        return translated if torch.compiler.is_compiling() or translated.is_meta else mark(translated, spec)

    def check(self, latents: Latent, tau: Times | None = None) -> None:
        """Raise ``ValueError`` for what :meth:`forward` does not take."""
        z, stride = self.latent_channels, self.grids.stride
        if latents.ndim != 4 or latents.shape[1] != z or 0 in latents.shape[2:]:
            raise ValueError(f"LatentBridge: takes latents [b, {z}, h, w], got {list(latents.shape)}")
        if not latents.is_floating_point():
            raise ValueError(f"LatentBridge: takes latents of floating point, got {latents.dtype}")
        h, w = latents.shape[2:]
        if h % stride or w % stride:
            raise ValueError(
                f"LatentBridge: latents of {h}x{w} do not divide by the stem's stride {stride}; "
                f"take images whose sides divide by {stride * self.stride} pixels"
            )
        if tau is not None and self.config.noise is None:
            raise ValueError(
                "LatentBridge: was made without noise and takes no tau; give its config a 'noise', "
                "such as 'bridge_noise/linear'"
            )
        spec = None if torch.compiler.is_compiling() else spec_of(latents)
        if spec is not None:
            self.latent_spec.check(spec, where="LatentBridge")

    # --- whose latents, which teacher -----------------------------------------------------------------------------

    def take_specs(self, *, latent: LatentSpec | None = None, teacher: TeacherSpec | None = None) -> None:
        """Learn of which latents and which teacher the data are; what says more is kept, saved and compared.

        Raises:
            ValueError: they are others than those that are known.
        """
        if latent is not None:
            self.latent_spec.check(latent, where="LatentBridge")
        if teacher is not None:
            if self.teacher_spec is not None:
                self.teacher_spec.check(teacher, where="LatentBridge")
            elif teacher.features != self.config.teacher.features:
                raise ValueError(
                    f"LatentBridge: predicts {self.config.teacher.features} features of {self.config.teacher.kind}, "
                    f"and these are {teacher.features} of {teacher.model}; give the bridge that teacher"
                )
        if latent is not None and self.latent_spec.normalisation == UNKNOWN:
            self.latent_spec = latent
        self.teacher_spec = self.teacher_spec or teacher

    # --- other spaces, other files --------------------------------------------------------------------------------

    def with_stem(self, space: LatentSpaceConfig, *, stem: LatentStemConfig | None = None) -> "LatentBridge":
        """A bridge from another space: a new stem, copies of body and head as they are, for the same teacher.

        ``stem`` None is a new one of the same kind, on the stride that the new latents ask for.

        Raises:
            ValueError: the new latents and the teacher do not meet.
        """
        config = replace(self.config, space=space, stem=stem or replace(self.config.stem, stride=None))
        grids = config.grids()
        if grids.factor != self.grids.factor:
            raise ValueError(
                f"with_stem: the head makes {self.grids.factor} tokens a side of a position, and latents of "
                f"{space.kind} need {grids.factor}; give the stem a stride that leaves them, or train another head"
            )
        with torch.device("meta"):
            other = LatentBridge(config)
        weight = next(self.body.parameters())
        with torch.device(weight.device):
            stem_module = _built(
                config.stem, channels=config.latent_channels, width=config.body.width, stride=grids.stride
            )
        other.stem = stem_module.to(weight.dtype)
        other.body, other.head = copy.deepcopy(self.body), copy.deepcopy(self.head)
        other.teacher_spec = self.teacher_spec
        return other.train(self.training)

    def load_parts(self: Bridge, path: str | Path, parts: Collection[str] = ("body", "head")) -> Bridge:
        """Take the tensors of some parts from another bridge's folder or file; return this bridge.

        With the head comes its teacher, with the stem its space: the file's specs are compared with ours and taken.

        Raises:
            ValueError: a part that there is not, or specs that differ.
            CheckpointError: tensors that do not fit; nothing is taken then.
        """
        for name in parts:
            if name not in PARTS:
                raise ValueError(f"load_parts: a bridge has no part {name!r}; {suggest(name, PARTS)}")
        _, weights = find_files(path, revision=None)
        tensors, header = read_tensors(weights)
        where = str(weights)
        with torch.device("meta"):
            read = {name: made for name, made in LatentBridge(self.config).named_children() if name in parts}
        for name, made in read.items():
            given = {key.removeprefix(f"{name}."): x for key, x in tensors.items() if key.startswith(f"{name}.")}
            if not given:
                raise CheckpointError(f"{where}: has no tensors '{name}.*'; it is no bridge")
            assign(made, given, where=where, names={key: f"{name}.{key}" for key in made.state_dict()})
        self.take_specs(
            latent=spec_in(header, SPEC, LatentSpec, where=where) if "stem" in parts else None,
            teacher=spec_in(header, TEACHER_SPEC, TeacherSpec, where=where) if "head" in parts else None,
        )
        for name, made in read.items():
            self.get_submodule(name).load_state_dict(made.state_dict())
        return self

    def save_pretrained(self, folder: str | Path, *, header: dict[str, Any] | None = None) -> Path:
        """Write ``config.json`` and ``model.safetensors``, with both specs in its header; return the folder."""
        return save_folder(self, folder, header=header)

    @classmethod
    def from_pretrained(
        cls: type[Bridge],
        path_or_id: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> Bridge:
        """Load a folder, a lone file or a hub repository; ``dtype`` None is bfloat16 on CUDA and float32 elsewhere.

        Raises:
            PartError, CheckpointError: a config or tensors that do not fit, with what is wrong by name.
            FileNotFoundError: no such folder, or a hub repository that cannot be reached.
        """
        return load_folder(path_or_id, cls, device=device, dtype=dtype, revision=revision, cache_dir=cache_dir)


def _built(config: LatentStemConfig | TokenBodyConfig | FeatureHeadConfig, **sizes: Any) -> nn.Module:
    """A part of a bridge; what does not fit says of which part it is."""
    try:
        return config.build(**sizes)
    except ValueError as error:
        raise ValueError(f"LatentBridge: {config.kind}: {str(error).removeprefix(f'{config.kind}: ')}") from None


def _from_card(names: dict[str, Any]) -> "LatentBridgeConfig":
    from .bridge_card import card_config

    known = inspect.signature(card_config).parameters
    for name in names:
        if name not in known:
            raise ValueError(f"LatentBridge: takes no {name!r}; {suggest(name, known)}")
    return card_config(**names)


def _target_space(teacher: TeacherConfig) -> LatentSpec | None:
    """The space whose latents a teacher gives as tokens, or None."""
    if isinstance(teacher, Flux2LatentsConfig):
        from ..blocks.latent_spaces import space_config

        return space_config("flux2", weights=teacher.weights).spec
    space = getattr(teacher, "space", None)
    return space.spec if isinstance(space, LatentSpaceConfig) else None


@part("family/latent_bridge")
class LatentBridgeConfig(FamilyConfig):
    """A bridge from the latents of ``space`` to the tokens of ``teacher``.

    Attributes:
        space: the autoencoder, with its normalisation.
        teacher: what is predicted; its patches must lie on a grid that the latents reach by whole strides, see
            ``teacher.for_stride``.
        stem, body, head: the parts; what the grids ask of stem and head is derived.
        noise: on the latents in training, of which the bridge is then told; None is a bridge for clean latents.
        image: pixels a side of the square image for which grids are laid out; other sizes may be given.
        channels: of the images.
    """

    space: LatentSpaceConfig
    teacher: TeacherConfig
    stem: LatentStemConfig = ResidualStemConfig()
    body: TokenBodyConfig = TransformerBodyConfig()
    head: FeatureHeadConfig = LinearHeadConfig()
    noise: BridgeNoiseConfig | None = None
    image: int = 256
    channels: int = 3

    def __post_init__(self) -> None:
        for name in ("image", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")

    @property
    def stride(self) -> int:
        return self.space.stride

    @property
    def latent_channels(self) -> int:
        return self.space.channels

    def grids(self) -> BridgeGrids:
        """How latents, tokens and the teacher's patches lie on one another; raises ``ValueError`` where they do not."""
        return derive_grids(
            image=self.image, latent_stride=self.stride, stem=self.stem, head=self.head, teacher=self.teacher
        )

    def build(self) -> LatentBridge:
        return LatentBridge(self)
