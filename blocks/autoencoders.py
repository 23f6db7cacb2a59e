"""Autoencoders of diffusers as latent spaces (extra ``vae``): where their weights and their constants come from.

Weights are a hub repository, a local folder, or a local file in diffusers' or latent diffusion's layout. Constants of
normalisation are taken from the file's own config wherever that has them (as written: diffusers would fill in the
defaults of its class), and from the space's table only where the file is silent.
"""

import importlib
import inspect
import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from .codecs import Codec, DeterministicCodec, KLCodec, Loaded, RAECodec
from .latent_module import LatentSpace
from .latent_norm import ChannelNormConfig, PositionNormConfig, ScaleShiftConfig, WhiteningConfig, norm_fingerprint
from .latent_space import UNKNOWN, LatentSpec, Posterior
from .ldm_names import to_diffusers
from .libraries import installed
from .registry import suggest
from .slots import LatentNormConfig, LatentSpaceConfig, Statistics
from .weights import CheckpointError, assign, fetch, is_absent, listed, read_weights

Setting = int | float | str | bool | tuple[int | float | str | tuple[int, ...], ...]
_AS_IT_IS, _BY_POSITION = ScaleShiftConfig(), PositionNormConfig(grid=(16, 16))

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")

Raw = Mapping[str, Any]
"""A config.json as it is written."""


# --- configs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AutoencoderSpaceConfig(LatentSpaceConfig):
    """What can be chosen of every autoencoder of diffusers.

    Attributes:
        name: "" is the published name; another encoder than that of the published space deserves its own.
        weights: None for those that are published, else a hub id, a local folder, or a local file.
        subfolder: of the repository or folder; None is the published one, or ``vae`` where a local folder has that.
        random_init: random weights as the library draws them, from ``seed``; nothing is downloaded.
        posterior: whether latents are the mode of the posterior, or a sample, which needs a generator or a seed.
        latent: channels that the autoencoder itself gives.
        reduction: pixels a side that it itself turns into one position.
        patch: positions a side that are then packed into channels.
        norm: how latents are normalised, where neither the weights' config nor ``statistics`` say it.
        statistics: a file of statistics: of ``save_statistics``, or LightningDiT's and RAE's.
        settings: of the autoencoder's class, as pairs of name and value, for random weights and lone files.
        version: date of the space, where it changed under one name.
    """

    library_class: ClassVar[str]
    published: ClassVar[tuple[str, str]]
    published_file: ClassVar[str] = ""
    architecture: ClassVar[Mapping[str, Any]]
    image_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    name: str = ""
    weights: str | None = None
    subfolder: str | None = None
    random_init: bool = False
    seed: int = 0
    posterior: Posterior = "mode"
    latent: int = 4
    reduction: int = 8
    patch: int = 1
    norm: LatentNormConfig = _AS_IT_IS
    statistics: str | None = None
    settings: tuple[tuple[str, Setting], ...] = ()
    version: str = ""

    def __post_init__(self) -> None:
        if self.random_init and self.weights is not None:
            raise ValueError(f"weights: must stay None with random_init=True, got {self.weights!r}")
        for name in ("latent", "reduction", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        deterministic = type(self).posterior == "deterministic"
        if deterministic != (self.posterior == "deterministic"):
            allowed = "'deterministic', as it has no posterior" if deterministic else "'mode' or 'sample'"
            raise ValueError(f"posterior: must be {allowed}, got {self.posterior!r}")
        if self.norm.fixed:
            self.norm.statistics(self.latent * self.patch**2)

    @property
    def label(self) -> str:
        """What messages and specs call the space."""
        name = self.name or self.kind.partition("/")[2]
        return f"{name} (random:{self.seed})" if self.random_init else name

    @property
    def spec(self) -> LatentSpec:
        channels = self.latent * self.patch**2
        normalisation = UNKNOWN
        if self.norm.fixed and self.weights is None and self.statistics is None:
            with torch.device("cpu"):  # the numbers are needed where a model is planned on meta, too
                normalisation = norm_fingerprint(self.norm, self.norm.statistics(channels))
        return LatentSpec(
            source=self.label,
            channels=channels,
            stride=self.reduction * self.patch,
            normalisation=normalisation,
            posterior=self.posterior,
            image_range=self.image_range,
            patch=self.patch,
            version=self.version,
        )

    def build(self) -> LatentSpace:
        space = LatentSpace(self, self.load, norm=self.norm)
        return space if self.statistics is None else space.load_statistics(self.statistics)

    def load(self) -> Loaded:
        """Read or draw the autoencoder."""
        model, raw = self.read()
        norm, statistics = self.constants(model, raw)
        if statistics is None and (norm.fixed or self.random_init):
            statistics = norm.statistics(self.latent * self.patch**2)
        codec = self.wrap(model)
        self._check_sizes(model)
        return Loaded(codec=codec, norm=norm, statistics=statistics)

    @abstractmethod
    def wrap(self, model: nn.Module) -> Codec: ...

    @abstractmethod
    def constants(self, model: nn.Module, raw: Raw) -> tuple[LatentNormConfig, Statistics | None]:
        """The normaliser and its statistics by the file, or by our table where the file is silent."""

    @abstractmethod
    def sizes(self, model: Any) -> tuple[int, int, int]:
        """Channels of latents, pixels a side of a position, positions a side that are packed, by the autoencoder."""

    def _check_sizes(self, model: nn.Module) -> None:
        ours, found = (self.latent, self.reduction, self.patch), self.sizes(model)
        if ours != found:
            named = ("latent", "reduction", "patch")
            lines = [f"{name}={b}, not {a}" for name, a, b in zip(named, ours, found, strict=True) if a != b]
            raise ValueError(f"{self.label}: this autoencoder has {', '.join(lines)}; set what it has")

    # --- where it comes from --------------------------------------------------------------------------------------

    def _class(self) -> Any:
        try:
            return getattr(importlib.import_module("diffusers"), self.library_class)
        except (ImportError, RuntimeError, AttributeError) as error:
            raise ImportError(
                f"{self.kind}: needs diffusers with {self.library_class}; pip install 'latelier[vae]'"
            ) from error

    def read(self) -> tuple[nn.Module, dict[str, Any]]:
        """The autoencoder, and the config of its file as it is written ({} where there is none)."""
        cls = self._class()
        if self.random_init:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                return self._make(cls, {}), {}
        if self.weights is None and self.published_file:
            return self._read_file(cls, fetch(self.published[0], self.published_file, where=self.label))
        source, subfolder = (self.weights, self.subfolder) if self.weights is not None else self.published
        subfolder = subfolder if self.subfolder is None else self.subfolder
        path = Path(source).expanduser()
        if path.is_file():
            return self._read_file(cls, path)
        if path.is_dir():
            if subfolder is None and not (path / "config.json").is_file() and (path / "vae" / "config.json").is_file():
                subfolder = "vae"
            return self._read_folder(cls, path / (subfolder or ""))
        if source.count("/") != 1 or source.startswith((".", "/", "~")):
            raise FileNotFoundError(
                f"{self.label}: {source}: no such file or folder, and no hub repository 'owner/name'"
            )
        return self._read_folder(cls, self._download(source, subfolder))

    def _download(self, repository: str, subfolder: str | None) -> Path:
        """The local folder of a repository's config and weights."""
        before = f"{subfolder}/" if subfolder else ""
        folder = fetch(repository, f"{before}config.json", where=self.label).parent
        for name in WEIGHTS:
            try:
                fetch(repository, before + name, where=self.label)
                break
            except FileNotFoundError as error:
                if name == WEIGHTS[-1] or not is_absent(error):
                    raise
        return folder

    def _read_folder(self, cls: Any, source: Path) -> tuple[nn.Module, dict[str, Any]]:
        try:
            raw = cls.load_config(source)
            model, told = cls.from_pretrained(
                source,
                torch_dtype=torch.float32,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
        except (ValueError, RuntimeError) as error:  # tensors of other shapes, or a config that the class does not take
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise CheckpointError(f"{self.label}: {source} does not fit {cls.__name__} ({reason})") from error
        except OSError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise FileNotFoundError(
                f"{self.label}: {source} does not give a {cls.__name__} ({reason}); "
                "a folder has config.json and diffusion_pytorch_model.safetensors"
            ) from error
        found = raw.get("_class_name", cls.__name__)
        if found != cls.__name__:
            raise CheckpointError(f"{self.label}: {source} holds a {found}, not a {cls.__name__}; take its own space")
        for what, does in (("missing_keys", "lacks"), ("unexpected_keys", "has, though the model has not,")):
            names = sorted(told.get(what, ()))
            if names:
                raise CheckpointError(f"{self.label}: {source} {does} {listed(names)}")
        if told.get("mismatched_keys"):
            names = [str(entry[0]) for entry in told["mismatched_keys"]]
            raise CheckpointError(f"{self.label}: {source} has other shapes than its config in {listed(names)}")
        return model, dict(raw)

    def _read_file(self, cls: Any, path: Path) -> tuple[nn.Module, dict[str, Any]]:
        beside, raw = path.with_name("config.json"), {}
        if beside.is_file():
            try:
                raw = json.loads(beside.read_text())
            except ValueError as error:
                raise CheckpointError(f"{beside}: is no JSON ({error})") from None
        tensors, where = read_weights(str(path), where=self.label)
        known = inspect.signature(cls.__init__).parameters
        model = self._make(cls, {name: value for name, value in raw.items() if name in known})
        assign(model, to_diffusers(tensors, where=where), where=where)
        return model, raw

    def _make(self, cls: Any, written: Raw) -> nn.Module:
        known = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
        for name, _ in self.settings:
            if name not in known:
                raise ValueError(f"{self.label}: settings: {cls.__name__} has no {name!r}; {suggest(name, known)}")
        return cls(**self.shaped(dict(self.architecture) | dict(written) | dict(self.settings)))

    def shaped(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings completed by what follows from others."""
        return settings


@dataclass(frozen=True, kw_only=True)
class KLSpaceConfig(AutoencoderSpaceConfig):
    """``AutoencoderKL``: a Gaussian posterior, and one scale, scale and shift, or statistics of channels."""

    library_class: ClassVar[str] = "AutoencoderKL"
    attention: ClassVar[bool] = False
    """Whether the coarsest level has attention beside the middle."""

    architecture: ClassVar[Mapping[str, Any]] = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}

    def wrap(self, model: nn.Module) -> Codec:
        return KLCodec(model, upcast=bool(self._config(model).force_upcast))

    @staticmethod
    def _config(model: Any) -> Any:
        return model.config

    def sizes(self, model: Any) -> tuple[int, int, int]:
        return model.config.latent_channels, 2 ** (len(model.config.block_out_channels) - 1), self.patch

    def shaped(self, settings: dict[str, Any]) -> dict[str, Any]:
        levels = len(settings["block_out_channels"])
        last = "Attn" if self.attention else ""
        down = ("DownEncoderBlock2D",) * (levels - 1) + (f"{last}DownEncoderBlock2D",)
        up = (f"{last}UpDecoderBlock2D",) + ("UpDecoderBlock2D",) * (levels - 1)
        return {"latent_channels": self.latent, "down_block_types": down, "up_block_types": up} | settings

    def constants(self, model: nn.Module, raw: Raw) -> tuple[LatentNormConfig, Statistics | None]:
        mean, std, scale = (raw.get(name) for name in ("latents_mean", "latents_std", "scaling_factor"))
        table = self.norm
        if mean is not None and std is not None:
            factor = getattr(table, "scale", 1.0) if scale is None else scale
            return ChannelNormConfig(scale=float(factor), mean=_numbers(mean), std=_numbers(std)), None
        if isinstance(table, ScaleShiftConfig):
            shift = raw.get("shift_factor", table.shift)
            return ScaleShiftConfig(
                scale=float(table.scale if scale is None else scale), shift=float(0.0 if shift is None else shift)
            ), None
        return table, None


@dataclass(frozen=True, kw_only=True)
class GeneratorNormSpaceConfig(KLSpaceConfig):
    """An autoencoder trained with its generator, whose batch norm normalises latents (REPA-E).

    The scale of the autoencoder that it started from is not its own: a ``scaling_factor`` in its config is not read.
    """

    def constants(self, model: nn.Module, raw: Raw) -> tuple[LatentNormConfig, Statistics | None]:
        mean, std = raw.get("latents_mean"), raw.get("latents_std")
        if mean is not None and std is not None:
            return ChannelNormConfig(mean=_numbers(mean), std=_numbers(std)), None
        return self.norm, None


@dataclass(frozen=True, kw_only=True)
class BatchNormSpaceConfig(KLSpaceConfig):
    """``AutoencoderKLFlux2``: packed 2x2, then normalised by the running statistics of its ``bn``."""

    library_class: ClassVar[str] = "AutoencoderKLFlux2"

    def wrap(self, model: nn.Module) -> Codec:
        return KLCodec(model)

    def sizes(self, model: Any) -> tuple[int, int, int]:
        latent, reduction, _ = super().sizes(model)
        rows, columns = model.config.patch_size
        if rows != columns:
            raise ValueError(f"{self.label}: packs {rows}x{columns} positions; takes squares")
        return latent, reduction, rows

    def constants(self, model: Any, raw: Raw) -> tuple[LatentNormConfig, Statistics | None]:
        bn = model.bn
        return WhiteningConfig(eps=float(model.config.batch_norm_eps)), {
            "running_mean": bn.running_mean.float(),
            "running_var": bn.running_var.float(),
        }


@dataclass(frozen=True, kw_only=True)
class DCSpaceConfig(AutoencoderSpaceConfig):
    """``AutoencoderDC``: deterministic, one scale."""

    library_class: ClassVar[str] = "AutoencoderDC"
    posterior: Posterior = "deterministic"

    def wrap(self, model: nn.Module) -> Codec:
        return DeterministicCodec(model)

    def sizes(self, model: Any) -> tuple[int, int, int]:
        return model.config.latent_channels, 2 ** (len(model.config.encoder_block_out_channels) - 1), self.patch

    def constants(self, model: nn.Module, raw: Raw) -> tuple[LatentNormConfig, Statistics | None]:
        scale = raw.get("scaling_factor")
        return (self.norm if scale is None else ScaleShiftConfig(scale=float(scale))), None

    def shaped(self, settings: dict[str, Any]) -> dict[str, Any]:
        return {"latent_channels": self.latent} | settings


@dataclass(frozen=True, kw_only=True)
class RAESpaceConfig(AutoencoderSpaceConfig):
    """``AutoencoderRAE``: tokens of a frozen vision transformer, normalised by position."""

    library_class: ClassVar[str] = "AutoencoderRAE"
    image_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    posterior: Posterior = "deterministic"
    latent: int = 768
    reduction: int = 16
    norm: LatentNormConfig = _BY_POSITION

    def wrap(self, model: nn.Module) -> Codec:
        return RAECodec(model)

    def sizes(self, model: Any) -> tuple[int, int, int]:
        return model.config.encoder_hidden_size, model.decoder_patch_size, self.patch

    def shaped(self, settings: dict[str, Any]) -> dict[str, Any]:
        return {"encoder_hidden_size": self.latent, "patch_size": self.reduction} | settings

    def read(self) -> tuple[nn.Module, dict[str, Any]]:
        try:
            return super().read()
        except AttributeError as error:  # its encoders are classes of transformers, whose attributes it knows
            found = " and ".join(f"{name} {installed(name) or 'missing'}" for name in ("diffusers", "transformers"))
            raise ImportError(
                f"{self.label}: {found} do not fit each other ({error}); take versions that do"
            ) from error

    def constants(self, model: Any, raw: Raw) -> tuple[LatentNormConfig, Statistics | None]:
        mean, std = model._latents_mean.float(), model._latents_std.float()
        if mean.numel() == 1 and std.numel() == 1:  # no file has statistics of one number: it is silent
            side = model.decoder_image_size // model.decoder_patch_size
            positions = isinstance(self.norm, PositionNormConfig) and self.norm.grid != (1, 1)
            return (replace(self.norm, grid=(side, side)) if positions else self.norm), None
        shape = torch.broadcast_shapes(mean.shape, std.shape)
        shape = shape[-3:] if len(shape) >= 3 else (shape[-1], 1, 1)
        mean, std = (x.reshape(x.shape[-3:] if x.ndim >= 3 else (-1, 1, 1)).expand(shape) for x in (mean, std))
        eps = 1e-5
        norm = PositionNormConfig(
            grid=(shape[1], shape[2]), eps=eps, form="diffusers", scale=float(model.config.scaling_factor)
        )
        return norm, {"mean": mean, "var": std.square() - eps}


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in torch.as_tensor(values).flatten().tolist())
