"""The spaces of our own autoencoders: a model in a folder, in a run, or published.

A model's latents are what its ``encode`` returns: the normalised mode of its posterior, packed as the model packs. A
decoder for another model's latents, such as capacitor_decoder for FLUX.2's, has that model's space and encodes nothing.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..blocks.codecs import Codec, Loaded, RawLatent
from ..blocks.latent_module import LatentSpace
from ..blocks.latent_norm import NoNormConfig
from ..blocks.latent_space import UNKNOWN, LatentSpec, complete
from ..blocks.latent_spaces import KNOWN_SPACES
from ..blocks.registry import PartError, decode, part
from ..blocks.shapes import Image
from ..blocks.slots import FamilyConfig, LatentNormConfig, LatentSpaceConfig
from .diffae import DiffAE, DiffAEConfig
from .files import CONFIG, SPEC, WEIGHTS, CheckpointError, load_folder, read_config
from .inference import InferenceConfig
from .published import read_published


class ModelCodec(Codec):
    """A diffusion autoencoder; raw latents are the mode of its posterior, already packed."""

    def __init__(self, model: DiffAE, settings: InferenceConfig, *, name: str) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.name = name

    def moments(self, images: Image) -> tuple[RawLatent, RawLatent | None]:
        if self.model.encoder is None:
            raise ValueError(f"{self.name}: is a decoder only; encode with the space whose latents it reads")
        return self.model.posterior(images.to(self.model.dtype)).mode().float(), None

    def reconstruct(self, raw: RawLatent) -> Image:
        side = self.model.stride
        height, width = raw.shape[2] * side, raw.shape[3] * side
        noise = self.model.draw_noise(len(raw), height, width, seed=self.settings.seed).to(raw.device)
        return self.model.denoise(noise, raw, self.settings).float()


@part("latent_space/model")
class ModelSpaceConfig(LatentSpaceConfig):
    """The space of a trained model of ours.

    Attributes:
        path: a model's folder, a run's folder, a lone safetensors file, or a hub repository.
        known: the space, where the path is not on this machine yet.
        foreign: the latents are another model's, whose space ``known`` describes; there is only a decoder.
        steps: of the decoder.
        seed: of the decoder's noise.
    """

    shorthand = "path"

    path: str
    known: LatentSpec | None = None
    foreign: bool = False
    steps: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: must be at least 1, got {self.steps}")
        if self.foreign and self.known is None:
            raise ValueError("known: must describe the other model's latents where foreign is true")

    @property
    def spec(self) -> LatentSpec:
        if self.known is not None:
            return self.known
        return self._local()

    def place(self) -> Path | str:
        """Where the model is: a run's folder has it in ``model``."""
        path = Path(self.path).expanduser()
        return path / "model" if not (path / WEIGHTS).is_file() and (path / "model" / WEIGHTS).is_file() else path

    def _local(self) -> LatentSpec:
        """The space by the files, without reading their tensors."""
        place = Path(self.place())
        weights = place if place.is_file() else place / WEIGHTS
        if not weights.is_file():
            raise FileNotFoundError(
                f"latent_space/model: {self.path}: no such model, and its latents are not described; train it first, "
                "or download it and pass the folder"
            )
        try:
            with safe_open(weights, framework="pt") as file:
                header = dict(file.metadata() or {})
                names = list(file.keys())
        except SafetensorError as error:
            raise CheckpointError(
                f"{weights}: is no whole safetensors file ({error}); copy or download it again"
            ) from None
        beside = weights.with_name(CONFIG)
        if "latelier.config" in header:
            raw: dict[str, Any] = json.loads(header["latelier.config"])
        elif beside.is_file():
            raw = read_config(beside)
        else:
            raise CheckpointError(f"{weights}: has no {CONFIG} beside it and none in its header")
        if "kind" not in raw:
            with safe_open(weights, framework="pt") as file:
                config: Any = read_published(raw, {name: file.get_tensor(name) for name in names})[0]
        else:
            config = decode(raw, FamilyConfig, where=str(weights))
        if not isinstance(config, DiffAEConfig):
            raise PartError(str(weights), f"holds {config.kind!r}, whose latents are no space; takes an autoencoder")
        spec = _spec_of(config)
        if SPEC in header:
            return decode(complete(json.loads(header[SPEC]), spec), LatentSpec, where=f"{weights} (header)")
        return spec

    def build(self) -> LatentSpace:
        return ModelSpace(self, self._load, norm=NoNormConfig())

    def _load(self) -> Loaded:
        model = load_folder(self.place(), DiffAE, published=read_published)
        norm: LatentNormConfig = model.config.latent_norm
        ours, spec = replace(model.latent_spec, normalisation=UNKNOWN), replace(self.spec, normalisation=UNKNOWN)
        if self.foreign:
            ours = replace(spec, channels=ours.channels, stride=ours.stride)
        spec.check(ours, where=self.path)
        codec = ModelCodec(model, InferenceConfig(num_steps=self.steps, seed=self.seed), name=self.path)
        return Loaded(codec=codec, norm=norm, statistics=model.latent_statistics)


class ModelSpace(LatentSpace):
    """A space whose raw latents are packed already."""

    def __init__(self, config: ModelSpaceConfig, load: Any, *, norm: LatentNormConfig) -> None:
        super().__init__(config, load, norm=norm)
        self.foreign = config.foreign
        self.packing, self._raw_channels = 1, config.channels
        self._known = False

    def fit(self, raw_latents: Iterable[Tensor]) -> LatentSpace:
        self.load()  # the normaliser is the model's
        return super().fit(raw_latents)

    @property
    def spec(self) -> LatentSpec:
        # A decoder for another model's latents undoes its statistics with its own copy of them, or takes them as
        # they are; what latents it takes is that model's to say.
        return self.config.spec if self.foreign else super().spec


def _spec_of(config: DiffAEConfig) -> LatentSpec:
    """The space of a family's latents, statistics apart."""
    return LatentSpec(
        source=config.kind,
        channels=config.latent_channels,
        stride=config.stride,
        normalisation=UNKNOWN,
        posterior=config.posterior_taken,
        patch=config.latent_patch,
    )


def _published(path: str, kind: str, *, channels: int = 128, stride: int = 16, patch: int = 1) -> ModelSpaceConfig:
    spec = LatentSpec(source=kind, channels=channels, stride=stride, normalisation=UNKNOWN, patch=patch)
    return ModelSpaceConfig(path=path, known=spec)


KNOWN_SPACES |= {
    "semdisdiffae": _published("data-archetype/semdisdiffae", "family/semdisdiffae"),
    "semdisdiffae_p32": _published(
        "data-archetype/semdisdiffae_p32", "family/semdisdiffae", channels=512, stride=32, patch=2
    ),
    "semdisdiffae_p32_v2": _published(
        "data-archetype/semdisdiffae_p32_v2", "family/semdisdiffae", channels=384, stride=32
    ),
    "full_capacitor": _published("data-archetype/full_capacitor", "family/semdisdiffae"),
    "dinac_ae": _published("data-archetype/dinac_ae", "family/dinac_ae"),
    "dinac_ae_d2": _published("data-archetype/dinac_ae_d2", "family/dinac_ae"),
    "capacitor_decoder": ModelSpaceConfig(
        path="data-archetype/capacitor_decoder", known=KNOWN_SPACES["flux2"].spec, foreign=True
    ),
}
