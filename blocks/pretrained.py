"""Pretrained networks as teachers (extra ``teachers``): any network of timm, any known vision model of transformers.

``teacher_families.py`` has the published families under short names. Here is what all of them share: where
weights come from, random weights from a seed, and whose rule fits positions to a grid.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import torch

from .backbones import Backbone, Colour, NetworkTeacher, NetworkTeacherConfig
from .positions import Resampling
from .registry import part
from .timm_backbones import create, has_tokens, map_patch, square, timm_backbone
from .transformers_backbones import CONVNEXT, transformers_backbone, vision_config

Settings = tuple[tuple[str, int | float | str | bool | tuple[int | float, ...]], ...]
"""Pairs of a name and a value, as JSON can hold them: (("embed_dim", 32), ("depth", 2))."""


@dataclass(frozen=True, kw_only=True)
class PretrainedConfig(NetworkTeacherConfig):
    """What can be chosen of every pretrained network.

    Attributes:
        weights: None for those that are published, else a hub id, a local file (safetensors, or tensors that
            ``torch.load(weights_only=True)`` reads), or a folder.
        random_init: random weights as the library draws them, from ``seed``; nothing is downloaded.
        position: whose rule fits a learned table of positions to a grid; None is that of the library.
    """

    weights: str | None = None
    random_init: bool = False
    seed: int = 0
    position: Resampling | None = None

    def check_common(self) -> None:
        super().check_common()
        if self.random_init and self.weights is not None:
            raise ValueError(f"weights: must stay None with random_init=True, got {self.weights!r}")

    @abstractmethod
    def backbone(self) -> Backbone:
        """The network, on the CPU."""

    def build(self) -> NetworkTeacher:
        return NetworkTeacher(self.backbone(), self, name=self.kind)

    @property
    def drawn(self) -> int | None:
        """The seed of random weights, or None where they are read."""
        return self.seed if self.random_init else None


@part("teacher/timm")
class TimmConfig(PretrainedConfig):
    """A network of timm by its name, with its tag: ``vit_small_patch14_dinov2.lvd142m``.

    Its class token, registers, width, patch and final norm are those of the network.

    Attributes:
        model: the name.
        settings: further arguments of ``timm.create_model``, as pairs of name and value.
    """

    shorthand = "model"

    model: str
    settings: Settings = ()

    def __post_init__(self) -> None:
        self.check_common()

    @property
    def width(self) -> int:
        return _timm_facts(self.model, self.settings)[0]

    @property
    def token_pixels(self) -> int:
        return _timm_facts(self.model, self.settings)[1]

    def backbone(self) -> Backbone:
        return timm_backbone(
            self.model,
            settings=dict(self.settings),
            weights=self.weights,
            seed=self.drawn,
            resampling=self.position,
            where=self.kind,
        )


@cache
def _timm_facts(model: str, settings: Settings) -> tuple[int, int]:
    with torch.device("meta"):
        plan = create(model, dict(settings), where=TimmConfig.kind)
    if not has_tokens(plan):  # Swin has a patch_embed too, and merges its patches later
        return plan.num_features, map_patch(plan) or 1
    embed = getattr(plan, "patch_embed", None) or plan.embeds
    return plan.num_features, square(embed.patch_size, where=TimmConfig.kind)


@part("teacher/transformers")
class TransformersConfig(PretrainedConfig):
    """A vision model of transformers: DINOv2, DINOv3, SigLIP, SigLIP 2, ViTMAE, AIMv2, RADIO, TIPS, I-JEPA, ViT, CLIP.

    Attributes:
        model: a hub id or a local folder; with ``random_init=True`` also a type of model, such as "dinov2".
        settings: of its config, as pairs of name and value: (("hidden_size", 32), ("num_hidden_layers", 2)).
        licence: of the weights, which transformers does not know.
    """

    shorthand = "model"

    model: str
    settings: Settings = ()
    licence: str = "see the model card"

    def __post_init__(self) -> None:
        self.check_common()

    @property
    def width(self) -> int:
        return _transformers_facts(self.model, self.settings)[0]

    @property
    def token_pixels(self) -> int:
        return _transformers_facts(self.model, self.settings)[1]

    def backbone(self) -> Backbone:
        return transformers_backbone(
            self.model,
            settings=dict(self.settings),
            weights=self.weights,
            seed=self.drawn,
            resampling=self.position,
            licence=self.licence,
            where=self.kind,
        )


@cache
def _transformers_facts(model: str, settings: Settings) -> tuple[int, int]:
    config: Any = vision_config(model, dict(settings), kind=None, where=TransformersConfig.kind)
    if config.model_type == CONVNEXT:
        return config.hidden_sizes[-1], 4 * 2 ** (len(config.hidden_sizes) - 1)
    return config.hidden_size, square(config.patch_size, where=TransformersConfig.kind)


# --- families -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """A published network of a family.

    Attributes:
        timm: its name there, with the tag of its weights.
        width, patch: features of a token, pixels a side.
        hub: where transformers finds it, or "" where it does not know it.
        kind, settings: the type and config of that model.
        colours: mean and standard deviation, where the type of model does not tell.
    """

    timm: str
    width: int
    patch: int
    licence: str
    hub: str = ""
    kind: str = ""
    settings: tuple[tuple[str, Any], ...] = ()
    colours: tuple[Colour, Colour] | None = None


@dataclass(frozen=True, kw_only=True)
class PublishedConfig(PretrainedConfig):
    """One of a family of published networks, by its ``size``."""

    networks: ClassVar[Mapping[str, Published]]
    size: str

    def __post_init__(self) -> None:
        self.check_common()

    @property
    def network(self) -> Published:
        """What the size stands for."""
        return self.networks[self.size]

    @property
    def width(self) -> int:
        return self.network.width

    @property
    def token_pixels(self) -> int:
        return self.network.patch

    def backbone(self) -> Backbone:
        return timm_backbone(
            self.network.timm,
            settings={},
            weights=self.weights,
            seed=self.drawn,
            resampling=self.position,
            where=self.kind,
        )


@dataclass(frozen=True, kw_only=True)
class InBothConfig(PublishedConfig):
    """A network that both libraries know.

    Attributes:
        library: which of them computes it.
    """

    library: Literal["timm", "transformers"] = "timm"

    def backbone(self) -> Backbone:
        network = self.network
        if self.library == "timm":
            return super().backbone()
        return transformers_backbone(
            network.hub,
            settings=dict(network.settings),
            kind=network.kind,
            weights=self.weights,
            seed=self.drawn,
            resampling=self.position,
            licence=network.licence,
            where=self.kind,
            instead="library='timm'",
            colours=network.colours,
        )
