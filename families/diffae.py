"""Diffusion autoencoders: SemDisDiffAE, DINAC-AE and their relatives.

An encoder gives a variance-preserving posterior over latents, the latents are whitened per channel, and a decoder
denoises pixels given the latent (technical report of SemDisDiffAE; model cards data-archetype/semdisdiffae,
semdisdiffae_p32, semdisdiffae_p32_v2, full_capacitor, capacitor_decoder). DINAC-AE has a transformer for an encoder,
and a head that reads a teacher's class and patch tokens off the latent (model cards dinac_ae, dinac_ae_d2).
"""

from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..blocks.dit import DiTBlockConfig
from ..blocks.draws import cpu_normal
from ..blocks.fcdm import FCDMBlockConfig
from ..blocks.heads import DINOTokenHeadConfig
from ..blocks.latent_norm import WhiteningConfig, norm_fingerprint
from ..blocks.latent_space import LatentSpec, Posterior, mark, spec_of
from ..blocks.patch import patchify, unpatchify
from ..blocks.posterior import EncoderPosterior, PointPosteriorConfig, VPPosteriorConfig
from ..blocks.registry import part
from ..blocks.samplers import GRIDS, SAMPLERS, path_drop_guidance
from ..blocks.shapes import Image, Latent, Map, Times
from ..blocks.slots import (
    DecoderConfig,
    EncoderConfig,
    FamilyConfig,
    LatentNormConfig,
    PosteriorConfig,
    ScheduleConfig,
    Statistics,
    TeacherOutput,
    TokenHeadConfig,
)
from ..blocks.stack import SkipDecoderConfig, StackEncoderConfig
from ..blocks.vp import VPScheduleConfig
from .files import load_folder, save_folder
from .inference import InferenceConfig
from .tiling import Tileable, nearest

Model = TypeVar("Model", bound="DiffAE")
"""Written out, because the shape checks of tests refuse ``typing.Self`` in a method."""


class DiffAE(Tileable):
    """What the diffusion autoencoders have in common. Images are RGB in [-1, 1], NCHW."""

    config: "DiffAEConfig"

    def __init__(self, config: "DiffAEConfig") -> None:
        super().__init__()
        self.config = config
        self._known_spec: tuple[list[tuple[Tensor, int | None]], LatentSpec] | None = None
        self.posterior_head = config.posterior.build(config.latent)
        self.encoder = (
            None
            if config.encoder is None
            else config.encoder.build(
                channels=config.channels, patch=config.patch, width=config.width, out=self.posterior_head.channels
            )
        )
        self.decoder = config.decoder.build(
            channels=config.channels, patch=config.patch, width=config.width, latent=config.latent
        )
        self.noise_schedule = config.schedule.build()
        for name, value in config.latent_norm.statistics(self.latent_channels).items():
            self.register_buffer(f"latent_norm_{name}", value)
        self.find_ordinary()

    @property
    def stride(self) -> int:
        return self.config.stride

    @property
    def latent_channels(self) -> int:
        return self.config.latent_channels

    @property
    def latent_statistics(self) -> Statistics:
        """The float32 statistics of the latent normaliser, by name; they live in buffers ``latent_norm_<name>``."""
        return {
            name.removeprefix("latent_norm_"): buffer
            for name, buffer in self.named_buffers(recurse=False)
            if name.startswith("latent_norm_")
        }

    @property
    def latent_spec(self) -> LatentSpec:
        """The space of this model's latents; it changes with the statistics of the latent normaliser."""
        statistics = self.latent_statistics
        state = [(value, None if value.is_inference() else value._version) for value in statistics.values()]
        known = self._known_spec
        if (
            known is None
            or len(known[0]) != len(state)
            or any(
                a is not b or before is None or before != now
                for (a, before), (b, now) in zip(known[0], state, strict=True)
            )
        ):
            spec = LatentSpec(
                source=self.config.kind,
                channels=self.latent_channels,
                stride=self.stride,
                normalisation=norm_fingerprint(self.config.latent_norm, statistics),
                posterior=self.config.posterior_taken,
                patch=self.config.latent_patch,
            )
            known = self._known_spec = (state, spec)  # kept, because reading statistics off a GPU waits for it
        return known[1]

    # --- the published surface ------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: Image) -> Latent:
        """Whitened mode of the posterior, ``[b, latent_channels, H/stride, W/stride]``, in the model's dtype."""
        latents = self.whiten(self.posterior(images).mode())
        return latents if torch.compiler.is_compiling() or latents.is_meta else mark(latents, self.latent_spec)

    @torch.no_grad()
    def encode_posterior(self, images: Image) -> EncoderPosterior:
        """The raw posterior, not whitened; ``mean`` and ``logsnr`` have the shape of latents."""
        return self.posterior(images)

    @torch.no_grad()
    def decode(
        self, latents: Latent, height: int, width: int, inference_config: InferenceConfig | None = None
    ) -> Image:
        """Images ``[b, 3, height, width]``, float32, not clamped, from whitened latents."""
        self.check_latents(latents, height, width)
        settings = inference_config or InferenceConfig()
        noise = self.draw_noise(len(latents), height, width, seed=settings.seed).to(latents.device)
        return self.denoise(noise, self.dewhiten(latents.float()), settings)

    @torch.no_grad()
    def reconstruct(self, images: Image, inference_config: InferenceConfig | None = None) -> Image:
        """``decode(encode(images))`` at the images' own size."""
        return self.decode(self.encode(images), images.shape[2], images.shape[3], inference_config)

    def whiten(self, z: Latent) -> Latent:
        """Raw latents to the normalised space of ``encode``; float32 arithmetic, the dtype of ``z``."""
        return self.config.latent_norm.normalise(z, self.latent_statistics)

    def dewhiten(self, z: Latent) -> Latent:
        """Normalised latents to raw ones; undoes :meth:`whiten`."""
        return self.config.latent_norm.denormalise(z, self.latent_statistics)

    @classmethod
    def from_pretrained(
        cls: type[Model],
        path_or_id: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> Model:
        """Load a folder or a hub repository, in our layout or in the published one.

        ``dtype`` is that of storage and arithmetic, islands apart; None is bfloat16 on CUDA and float32 elsewhere.

        Raises:
            PartError, CheckpointError: a config or tensors that do not fit, with what is wrong by name.
            FileNotFoundError: no such folder, or a hub repository that cannot be reached.
        """
        from .published import read_published

        return load_folder(
            path_or_id,
            cls,
            device=device,
            dtype=dtype,
            revision=revision,
            cache_dir=cache_dir,
            published=read_published,
        )

    def save_pretrained(self, folder: str | Path, *, header: dict[str, Any] | None = None) -> Path:
        """Write ``config.json`` and ``model.safetensors``; ``header`` adds entries to the safetensors header."""
        return save_folder(self, folder, header=header)

    def export_published(self, folder: str | Path) -> Path:
        """Write the folder that the published package of this model reads: flat config, float32 weights, its names.

        Raises:
            PartError: that layout has no words for some part of this model; the message names it.
        """
        from .published import export_published

        return export_published(self, folder)

    # --- what the surface and training are made of ----------------------------------------------------------------

    def posterior(self, images: Image) -> EncoderPosterior:
        """As :meth:`encode_posterior`, with gradients."""
        self.check_images(images)
        posterior = self.posterior_head(self._moments(images))
        if self.config.latent_patch == 1:
            return posterior
        patch = self.config.latent_patch
        return EncoderPosterior(patchify(posterior.mean, patch), patchify(posterior.logsnr, patch))

    def predict(
        self, x_t: Image, t: Times, raw_latents: Latent, *, drop_middle_blocks: bool | Bool[Tensor, " b"] = False
    ) -> Image:
        """One evaluation of the decoder: the estimate of x0 from noisy images, in the model's dtype."""
        z = raw_latents
        if self.config.latent_patch > 1:
            z = unpatchify(z, self.config.latent_patch)
        return self._decoder(x_t, t, z, drop_middle_blocks)

    def _moments(self, images: Image) -> Map:
        """The encoder's output; the whole model computes in one dtype."""
        assert self.encoder is not None
        return self.encoder(images.to(self.dtype))

    def _decoder(self, x_t: Image, t: Times, z: Latent, drop_middle_blocks: bool | Bool[Tensor, " b"]) -> Image:
        return self.decoder(x_t.to(self.dtype), t, z.to(self.dtype), drop_middle_blocks)

    def latent_moments(self, raw_latents: Latent) -> Float[Tensor, "k z"]:
        """Moments of raw latents, from which :meth:`fit_latent_norm` sets the statistics; they average over parts."""
        return self.config.latent_norm.observe(raw_latents)

    def fit_latent_norm(self, moments: Float[Tensor, "k z"], *, momentum: float) -> None:
        """Move the statistics of the latent normaliser towards ``moments``; momentum 1 replaces them."""
        self.config.latent_norm.fit(self.latent_statistics, moments, momentum=momentum)

    def draw_noise(self, batch: int, height: int, width: int, *, seed: int | None) -> Float[Tensor, "b c H W"]:
        """Unit Gaussian noise times s, one float32 tensor drawn on the CPU: the same on every device."""
        return self.noise_schedule.noise_std * cpu_normal([batch, self.config.channels, height, width], seed)

    def denoise(self, noise: Image, raw_latents: Latent, settings: InferenceConfig) -> Image:
        """Integrate from ``noise`` (of standard deviation s) to images; sampler state is float32."""
        grid = settings.strength * GRIDS[settings.schedule](settings.num_steps, device=noise.device)

        def estimate(x: Image, t: Times) -> Image:
            full = self.predict(x, t, raw_latents)
            if not settings.pdg or settings.pdg_strength == 1:
                return full
            dropped = self.predict(x, t, raw_latents, drop_middle_blocks=True)
            return path_drop_guidance(full.float(), dropped.float(), settings.pdg_strength)

        sigma = self.noise_schedule.alpha_sigma(grid[0])[1]
        return SAMPLERS[settings.sampler](estimate, sigma * noise, grid, self.noise_schedule)

    def check_images(self, images: Image) -> None:
        """Refuse images that ``encode`` does not take."""
        if self.encoder is None:
            raise ValueError("encode: this model has a decoder only; its latents come from another model's encoder")
        super().check_images(images)

    def check_latents(self, latents: Latent, height: int, width: int) -> None:
        """Refuse latents that are of another space or do not become images of that size."""
        self._check_space(latents, "decode")
        if height % self.stride or width % self.stride or height < 1 or width < 1:
            raise ValueError(
                f"decode: height and width must be divisible by {self.stride}, got {height}x{width}; "
                f"try {nearest(height, self.stride)}x{nearest(width, self.stride)}"
            )
        wanted = (self.latent_channels, height // self.stride, width // self.stride)
        if latents.ndim != 4 or tuple(latents.shape[1:]) != wanted:
            raise ValueError(
                f"decode: {height}x{width} images need latents of shape [b, {', '.join(map(str, wanted))}], "
                f"got {list(latents.shape)}"
            )

    def raw_latents(self, images: Image) -> Latent:
        return self.posterior(images).mode()

    def raw_from(self, latents: Latent) -> Latent:
        return self.dewhiten(latents.float())

    def paint(self, raw_latents: Latent, noise: Image | None, settings: InferenceConfig) -> Image:
        assert noise is not None
        return self.denoise(noise, raw_latents, settings)

    def _check_space(self, latents: Latent, where: str) -> None:
        """Refuse latents that say that they are another model's."""
        spec = None if torch.compiler.is_compiling() else spec_of(latents)
        if spec is not None:
            self.latent_spec.check(spec, where=where)


class SemDisDiffAE(DiffAE):
    """The convolutional autoencoder of the family, and decoders of its kind for other models' latents.

    As in the package fcdm_diffae, the whole model computes in one dtype, and latents have it.
    """


class DinacAE(DiffAE):
    """The autoencoder with a transformer encoder, whose ``token_head`` reads a teacher's tokens off the latent.

    In bfloat16 its ordinary weights are stored so, its ``islands`` stay float32, and it computes under autocast;
    latents are float32 (inference package of data-archetype/dinac_ae).
    """

    config: "DinacAEConfig"
    islands = (
        "*norm*",
        "*.layer_scale",
        "*.grn.gamma",
        "*.grn.beta",
        "decoder.path_drop_mask_feature",
        "decoder.out_proj.*",
    )

    def __init__(self, config: "DinacAEConfig") -> None:
        super().__init__(config)
        self.token_head = config.token_head.build(latent=self.latent_channels)

    def predict_class(self, latents: Latent) -> Float[Tensor, "b f"]:
        """The teacher's class token from whitened latents, float32, of root mean square 1; gradients flow.

        As published, the head computes under bfloat16 autocast whatever the model's dtype is.
        """
        cls = self._read(latents, "predict_class", torch.bfloat16).cls
        assert cls is not None
        return cls

    def predict_features(self, latents: Latent) -> TeacherOutput:
        """The teacher's patch and class tokens from whitened latents, float32, computed in the model's own dtype."""
        return self._read(latents, "predict_features", None)

    def _read(self, latents: Latent, where: str, dtype: torch.dtype | None) -> TeacherOutput:
        self._check_space(latents, where)
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels or 0 in latents.shape[2:]:
            raise ValueError(f"{where}: takes latents [b, {self.latent_channels}, h, w], got {list(latents.shape)}")
        with self.autocast(dtype):
            read = self.token_head(self.dewhiten(latents.float()))
        assert read.cls is not None
        return TeacherOutput(patches=read.patches.float(), grid=read.grid, cls=read.cls.float())

    def _moments(self, images: Image) -> Map:
        assert self.encoder is not None
        with self.autocast():
            return self.encoder(images.to(self.wide_dtype)).to(self.wide_dtype)

    def _decoder(self, x_t: Image, t: Times, z: Latent, drop_middle_blocks: bool | Bool[Tensor, " b"]) -> Image:
        with self.autocast():
            return self.decoder(x_t.to(self.wide_dtype), t, z.to(self.wide_dtype), drop_middle_blocks)


@part("family/semdisdiffae")
class DiffAEConfig(FamilyConfig):
    """A diffusion autoencoder: its sizes and swappable parts; the defaults are the published SemDisDiffAE.

    Attributes:
        channels: of the image.
        patch: pixels a side of a patch; ``latent_patch`` positions a side are then packed into channels.
        width: of encoder and decoder.
        latent: channels of the bottleneck, before packing.
        encoder: None makes a decoder for somebody else's latents.
    """

    channels: int = 3
    patch: int = 16
    width: int = 896
    latent: int = 128
    latent_patch: int = 1
    encoder: EncoderConfig | None = StackEncoderConfig(block=FCDMBlockConfig(), depth=4)
    decoder: DecoderConfig = SkipDecoderConfig(block=FCDMBlockConfig())
    posterior: PosteriorConfig = VPPosteriorConfig()
    latent_norm: LatentNormConfig = WhiteningConfig()
    schedule: ScheduleConfig = VPScheduleConfig()

    def __post_init__(self) -> None:
        for name in ("channels", "patch", "width", "latent", "latent_patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")

    @property
    def stride(self) -> int:
        return self.patch * self.latent_patch

    @property
    def latent_channels(self) -> int:
        return self.latent * self.latent_patch**2

    @property
    def posterior_taken(self) -> Posterior:
        """What latents are of the posterior."""
        return "deterministic" if isinstance(self.posterior, PointPosteriorConfig) else "mode"

    def build(self) -> SemDisDiffAE:
        return SemDisDiffAE(self)


@part("family/dinac_ae")
class DinacAEConfig(DiffAEConfig):
    """DINAC-AE: a transformer encoder and a token head; the defaults are the published dinac_ae."""

    encoder: EncoderConfig | None = StackEncoderConfig(block=DiTBlockConfig(), depth=6)
    token_head: TokenHeadConfig = DINOTokenHeadConfig()

    def build(self) -> DinacAE:
        return DinacAE(self)
