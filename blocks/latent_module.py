"""A latent space that computes: images to normalised latents and back, with somebody else's autoencoder inside.

    z = normalise(pack(raw)),  raw = mode or sample of the encoder's posterior

Models are trained on z, model space. ``raw`` is what the autoencoder itself says. The order of packing and normalising
is that of FLUX.2's pipeline: positions are packed into channels first, and statistics are of packed channels.
Normalisation is float32 arithmetic whatever dtype the autoencoder computes in, and latents and images come out float32.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from .codecs import Codec, Loaded, RawLatent
from .latent_norm import ChannelNormConfig, PositionNormConfig, WhiteningConfig, norm_fingerprint
from .latent_space import RAW, UNKNOWN, LatentSpec, complete, mark, spec_of
from .patch import patchify, unpatchify
from .precision import Float32Buffers, without_autocast
from .registry import PartError, decode, encode
from .shapes import Image, Latent
from .slots import LatentNormConfig, LatentSpaceConfig, Statistics
from .weights import CheckpointError, read_tensors, read_weights

SPEC, NORM = "latelier.latent_spec", "latelier.latent_norm"
"""Entries of the header of a file of statistics."""

SLACK = 1e-2
"""How far beyond [-1, 1] resampling and rounding may carry an image."""


class _Statistics(Float32Buffers):
    """Statistics as buffers, which keep float32."""

    def __init__(self, norm: LatentNormConfig, statistics: Statistics) -> None:
        super().__init__()
        self.norm = norm
        for name, value in statistics.items():
            self.register_buffer(name, value.detach().float().clone())

    @property
    def named(self) -> Statistics:
        return dict(self.named_buffers())


class LatentSpace(nn.Module):
    """A space of latents and the autoencoder between it and images.

    The autoencoder is loaded at the first use that needs it, on the device and in the dtype of this module.

    Attributes:
        config: describes the space; equal configs build the same space.
    """

    def __init__(self, config: LatentSpaceConfig, load: Callable[[], Loaded], *, norm: LatentNormConfig) -> None:
        """``load`` reads the autoencoder, ``norm`` is the normaliser as the config alone has it."""
        super().__init__()
        self.config = config
        self.packing: int = config.spec.patch
        self.name = config.spec.source
        self.codec: Codec | None = None
        self._load = load
        self._own = False  # statistics that were fitted or read from a file of their own win over those of weights
        self.register_buffer("_place", torch.zeros(0), persistent=False)
        self._raw_channels = config.spec.channels // self.packing**2
        self._take(norm, norm.statistics(config.channels))
        self._known = norm.fixed and config.spec.normalisation != UNKNOWN
        self.eval()

    # --- what it is -----------------------------------------------------------------------------------------------

    @property
    def spec(self) -> LatentSpec:
        """The space; its normalisation is ``UNKNOWN`` until weights or statistics are there."""
        if not self._known:
            return replace(self.config.spec, normalisation=UNKNOWN)
        fingerprint = norm_fingerprint(self.statistics.norm, self.statistics.named)
        return replace(self.config.spec, normalisation=fingerprint)

    @property
    def raw_spec(self) -> LatentSpec:
        """The space of raw latents, before packing."""
        spec, p = self.config.spec, self.packing
        return replace(
            spec, channels=self._raw_channels, stride=spec.stride // p, patch=spec.patch // p, normalisation=RAW
        )

    @property
    def channels(self) -> int:
        return self.config.channels

    @property
    def stride(self) -> int:
        return self.config.stride

    def train(self, mode: bool = True) -> "LatentSpace":
        """A space is always in evaluation."""
        return super().train(False)

    def load(self) -> Codec:
        """Read the autoencoder, if that has not been done, and take the statistics that its files hold."""
        if self.codec is None:
            loaded = self._load()
            place: Tensor = self.get_buffer("_place")
            if not self._own and loaded.norm is not None and loaded.statistics is not None:
                self._take(loaded.norm, loaded.statistics)
                self._known = True
            self.codec = loaded.codec.requires_grad_(False).eval().to(place.device, place.dtype)
        return self.codec

    def _take(self, norm: LatentNormConfig, statistics: Statistics) -> None:
        wanted = {name: value.shape for name, value in norm.statistics(self.config.channels).items()}
        found = {name: value.shape for name, value in statistics.items()}
        if wanted != found:
            raise CheckpointError(
                f"{self.name}: its statistics must be "
                f"{', '.join(f'{name} {list(shape)}' for name, shape in wanted.items())}, got "
                f"{', '.join(f'{name} {list(shape)}' for name, shape in found.items())}"
            )
        broken = [name for name, value in statistics.items() if not value.isfinite().all()]
        broken += [name for name in ("std", "scale") if name in statistics and not (statistics[name] > 0).all()]
        variances = [name for name in ("running_var", "var") if name in statistics]
        broken += [name for name in variances if not (statistics[name] > -1e-4).all()]
        if broken:
            raise CheckpointError(
                f"{self.name}: its statistics must be finite, and spreads positive; {', '.join(broken)} is not"
            )
        self.statistics = _Statistics(norm, statistics).to(self.get_buffer("_place").device)

    def _settle(self) -> _Statistics:
        """The statistics, which may be in the autoencoder's files."""
        if not self._known and not self._own:
            self.load()
        if not self._known:
            raise ValueError(
                f"{self.name}: its latents are normalised by statistics that its weights do not hold; "
                "give statistics=FILE, or fit them to raw latents with fit(...)"
            )
        return self.statistics

    # --- both ways ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: Image, *, generator: torch.Generator | None = None, seed: int | None = None) -> Latent:
        """Normalised latents ``[b, channels, H/stride, W/stride]`` of images in [-1, 1], float32, marked.

        Where the space takes a sample of the posterior, its noise comes from ``generator``, or is drawn on the CPU
        from ``seed``; one of the two must be given.

        Raises:
            ValueError: a size that does not divide by the stride, a range or a dtype that is none of images.
        """
        return self.normalise(self.encode_raw(images, generator=generator, seed=seed))

    @torch.no_grad()
    def encode_raw(
        self, images: Image, *, generator: torch.Generator | None = None, seed: int | None = None
    ) -> RawLatent:
        """As :meth:`encode`, before packing and normalisation."""
        return self._mark(self.differentiable_raw(images, generator=generator, seed=seed), self.raw_spec)

    def differentiable_raw(
        self, images: Image, *, generator: torch.Generator | None = None, seed: int | None = None
    ) -> RawLatent:
        """As :meth:`encode_raw`, not marked, with gradients to the images."""
        self._check_images(images)
        sampled = self.config.spec.posterior == "sample"
        if sampled and (generator is None) == (seed is None):
            raise ValueError(
                f"{self.name}: takes a sample of its posterior; give generator= or seed=, one of the two, "
                "or choose posterior='mode'"
            )
        codec = self.load()
        with without_autocast(images.device):
            mode, std = codec.moments(images)
            if not sampled or std is None:
                return mode
            source = torch.Generator().manual_seed(seed) if generator is None and seed is not None else generator
            device = torch.device("cpu") if source is None else source.device
            noise = torch.randn(mode.shape, generator=source, device=device)
            return mode + std * noise.to(mode.device)

    def normalise(self, raw: RawLatent) -> Latent:
        """Raw latents to model space: packed, then normalised; float32, marked. Gradients flow."""
        given = None if torch.compiler.is_compiling() else spec_of(raw)
        if given is not None:
            self._check_mark(self.raw_spec, given, "normalise")
        self._check_latents(raw, self._raw_channels, "raw latents", "normalise")
        p = self.packing
        if raw.shape[2] % p or raw.shape[3] % p:
            raise ValueError(
                f"{self.name}: normalise: sides of raw latents must divide by {p}, got {raw.shape[2]}x{raw.shape[3]}"
            )
        statistics = self._settle()
        with without_autocast(raw.device):
            packed = patchify(raw.float(), p) if p > 1 else raw.float()
            z = statistics.norm.normalise(packed, statistics.named)
        return self._mark(z.clone() if z is raw else z, self.spec)

    def denormalise(self, z: Latent) -> RawLatent:
        """Model space to raw latents; undoes :meth:`normalise`; float32, marked as raw."""
        statistics = self._settle()
        given = None if torch.compiler.is_compiling() else spec_of(z)
        if given is not None:
            self._check_mark(self.spec, given, "denormalise")
        self._check_latents(z, self.channels, "latents", "denormalise")
        with without_autocast(z.device):
            packed = statistics.norm.denormalise(z.float(), statistics.named)
            raw = unpatchify(packed, self.packing) if self.packing > 1 else packed
        return self._mark(raw.clone() if raw is z else raw, self.raw_spec)

    @torch.no_grad()
    def decode(self, latents: Latent) -> Image:
        """Images ``[b, 3, H, W]``, float32, about [-1, 1] and not clamped, of latents in model space.

        Raises:
            ValueError: the latents are marked as those of another space, or have other channels.
        """
        codec = self.load()
        given = None if torch.compiler.is_compiling() else spec_of(latents)
        if given is not None:
            self._check_mark(self.spec, given, "decode")
        self._check_latents(latents, self.channels, "latents", "decode")
        self._check_size(codec, latents.shape[2] * self.stride, latents.shape[3] * self.stride)
        raw = self.denormalise(latents)
        with without_autocast(latents.device):
            return codec.reconstruct(raw)

    # --- statistics -----------------------------------------------------------------------------------------------

    def fit(self, raw_latents: Iterable[Tensor]) -> "LatentSpace":
        """Take the statistics of raw latents ``[b, channels, h, w]``, batch by batch, in float64; return the space."""
        norm, weight, total = self.statistics.norm, 0, None
        for raw in raw_latents:
            given = spec_of(raw)
            if given is not None:
                self._check_mark(self.raw_spec, given, "fit")
            self._check_latents(raw, self._raw_channels, "raw latents", "fit")
            if not raw.isfinite().all():
                raise ValueError(f"{self.name}: fit: latents hold values that are not finite")
            if not raw.numel():
                continue
            moments = norm.observe(patchify(raw.float(), self.packing))
            count = raw.shape[0] * raw.shape[2] * raw.shape[3]
            total = count * moments.cpu() if total is None else total + count * moments.cpu()
            weight += count
        if total is None:
            raise ValueError(f"{self.name}: fit: takes at least one latent, got none")
        statistics = norm.statistics(self.channels)
        norm.fit(statistics, total / weight, momentum=1.0)
        self._take(norm, statistics)
        self._known = self._own = True
        return self

    def save_statistics(self, path: str | Path) -> Path:
        """Write the statistics as a safetensors file, whose header says of which space and normaliser they are."""
        path, statistics = Path(path), self._settle()
        header = {"format": "pt", SPEC: json.dumps(encode(self.spec)), NORM: json.dumps(encode(statistics.norm))}
        tensors = {name: value.cpu().contiguous() for name, value in statistics.named.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(save(tensors, header))
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return path

    def load_statistics(self, path: str | Path) -> "LatentSpace":
        """Take the statistics of a file: ours, or others' ``mean`` with ``std`` (VA-VAE) or ``var`` (RAE).

        A space that a batch norm normalises (FLUX.2, REPA-E) takes ``running_mean`` and ``running_var``, which may
        stand among other tensors, such as those of the generator.

        Raises:
            FileNotFoundError: there is none.
            CheckpointError: it is of another space, or holds other tensors.
        """
        source = Path(path).expanduser()
        if not source.is_file():
            raise FileNotFoundError(f"{self.name}: {source}: no such file of statistics")
        tensors, header = read_tensors(source) if source.suffix == ".safetensors" else ({}, {})
        if SPEC in header and NORM in header:
            norm = self._described(source, header)
        else:
            tensors = read_weights(str(source), where=self.name)[0]
            norm, tensors = _of_others(self.statistics.norm, tensors, str(source))
        self._take(norm, tensors)
        self._known = self._own = True
        return self

    def _described(self, source: Path, header: dict[str, str]) -> LatentNormConfig:
        try:
            found = decode(complete(json.loads(header[SPEC]), self.config.spec), LatentSpec, where=SPEC)
            norm = decode(json.loads(header[NORM]), LatentNormConfig, where=NORM)
        except PartError as error:
            raise PartError(f"{source} (header): {error.where}", error.what) from None
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{source} (header): is no JSON object ({error}); save them again") from None
        replace(self.config.spec, normalisation=UNKNOWN).check(found, where=str(source))
        return norm

    # --- checks ---------------------------------------------------------------------------------------------------

    def _mark(self, latents: Latent, spec: LatentSpec) -> Latent:
        return latents if torch.compiler.is_compiling() or latents.is_meta else mark(latents, spec)

    def _check_mark(self, ours: LatentSpec, given: LatentSpec, where: str) -> None:
        ours.check(given, where=f"{self.name}: {where}")

    def _check_latents(self, latents: Latent, channels: int, what: str, where: str) -> None:
        if latents.ndim != 4 or latents.shape[1] != channels:
            hint = ""
            if self.packing > 1 and latents.ndim == 4 and latents.shape[1] in (self.channels, self._raw_channels):
                hint = f"; raw ones have {self._raw_channels} channels, and packed and normalised ones {self.channels}"
            raise ValueError(
                f"{self.name}: {where}: takes {what} [b, {channels}, h, w], got {list(latents.shape)}{hint}"
            )
        if not latents.is_floating_point():
            raise ValueError(f"{self.name}: {where}: takes {what} as floating-point numbers, got {latents.dtype}")

    def _check_size(self, codec: Codec, height: int, width: int) -> None:
        try:
            codec.check_images(height, width)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None

    def _check_images(self, images: Image) -> None:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"{self.name}: takes images [b, 3, H, W], got {list(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(f"{self.name}: takes images in [-1, 1], got {images.dtype}; map bytes with x / 127.5 - 1")
        height, width = images.shape[2:]
        if height % self.stride or width % self.stride or not (height and width):
            near = "x".join(str(max(round(side / self.stride), 1) * self.stride) for side in (height, width))
            raise ValueError(
                f"{self.name}: image sides must be divisible by {self.stride}, got {height}x{width}; "
                f"pad or crop to {near}"
            )
        self._check_size(self.load(), height, width)
        if images.numel() and not images.is_meta and not torch.compiler.is_compiling():
            low, high = (value.item() for value in images.detach().aminmax())
            if not (low >= -1 - SLACK and high <= 1 + SLACK):
                raise ValueError(
                    f"{self.name}: takes images in [-1, 1], got values from {low:.4g} to {high:.4g}; "
                    "map bytes with x / 127.5 - 1"
                )


def _of_others(norm: LatentNormConfig, tensors: Statistics, where: str) -> tuple[LatentNormConfig, Statistics]:
    """Statistics in the layouts of LightningDiT and RAE."""
    running = {name.rpartition(".")[2]: value for name, value in tensors.items() if "running_" in name}
    if isinstance(norm, WhiteningConfig) and running.keys() == {"running_mean", "running_var"}:  # of a batch norm
        return norm, running
    with contextlib.suppress(KeyError):
        mean = tensors["mean"]
        if "std" in tensors:
            scale = getattr(norm, "scale", 1.0) if isinstance(norm, ChannelNormConfig) else 1.0
            return ChannelNormConfig(scale=scale), {"mean": mean.flatten(), "std": tensors["std"].flatten()}
        var = tensors["var"]
        if mean.ndim >= 3:
            shape = mean.shape[-3:]
            changed: dict[str, Any] = {"grid": (int(shape[1]), int(shape[2]))}
            base = norm if isinstance(norm, PositionNormConfig) else PositionNormConfig()
            return replace(base, **changed), {"mean": mean.reshape(shape), "var": var.reshape(shape)}
    raise CheckpointError(
        f"{where}: holds no statistics of latents; takes 'mean' with 'std' [z], or 'mean' with 'var' [z, h, w], "
        f"or a file of save_statistics, got {', '.join(map(repr, sorted(tensors)[:5]))}"
    )
