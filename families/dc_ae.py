"""DC-AE, the deep compression autoencoder (arXiv 2410.10733): convolutions at the fine stages of a pyramid, linear
attention at the coarse ones, 32, 64 or 128 pixels a side to one position. There is no posterior: it is deterministic.

It reads and writes the folders of diffusers' ``AutoencoderDC`` and reads the original files of efficientvit
(``dc_ae_layout.py``). Its tensors have diffusers' names, and its convolutions are kept in channels-last memory.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..blocks.latent_norm import ScaleShiftConfig, norm_fingerprint
from ..blocks.latent_space import LatentSpec, Posterior, mark, spec_of
from ..blocks.posterior import EncoderPosterior
from ..blocks.pyramid import PyramidDecoderConfig, PyramidEncoderConfig
from ..blocks.registry import part
from ..blocks.shapes import Image, Latent
from ..blocks.slots import FamilyConfig, LatentNormConfig, PixelDecoderConfig, PixelEncoderConfig, Statistics
from .files import load_folder, save_folder
from .inference import InferenceConfig
from .tiling import Tileable

Model = TypeVar("Model", bound="DCAE")
"""Written out, because the shape checks of tests refuse ``typing.Self`` in a method."""

OF_LATENT_NORM = "latent_norm_"


class DCAE(Tileable):
    """A deterministic autoencoder between images and latents. Images are RGB in [-1, 1], NCHW."""

    config: "DCAEConfig"

    def __init__(self, config: "DCAEConfig") -> None:
        super().__init__()
        self.config = config
        self.encoder = config.encoder.build(channels=config.channels, latent=config.latent)
        self.decoder = config.decoder.build(channels=config.channels, latent=config.latent)
        statistics = config.latent_norm.statistics(config.latent)
        if not config.latent_norm.fixed:  # what is fixed stands in the config, and the names stay diffusers'
            for name, value in statistics.items():
                self.register_buffer(OF_LATENT_NORM + name, value)
        self.find_ordinary()
        self._channels_last()

    def _channels_last(self) -> None:
        """Keep convolutions as they are computed fastest; values and shapes stay."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As any module's; then convolutions are put in channels-last memory."""
        report = super().load_state_dict(state_dict, strict=strict, assign=assign)
        self._channels_last()
        return report

    @property
    def stride(self) -> int:
        return self.config.stride

    @property
    def latent_channels(self) -> int:
        return self.config.latent_channels

    @property
    def latent_statistics(self) -> Statistics:
        """The float32 statistics of the latent normaliser, by name: fixed by the config, or in buffers."""
        norm = self.config.latent_norm
        if norm.fixed:
            device = next(self.parameters()).device
            return {name: value.to(device) for name, value in norm.statistics(self.latent_channels).items()}
        return {
            name.removeprefix(OF_LATENT_NORM): buffer
            for name, buffer in self.named_buffers(recurse=False)
            if name.startswith(OF_LATENT_NORM)
        }

    @property
    def latent_spec(self) -> LatentSpec:
        """The space of this model's latents; it changes with the statistics of the latent normaliser."""
        return LatentSpec(
            source=self.config.kind,
            channels=self.latent_channels,
            stride=self.stride,
            normalisation=norm_fingerprint(self.config.latent_norm, self.latent_statistics),
            posterior=self.config.posterior_taken,
        )

    # --- the published surface ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: Image) -> Latent:
        """Normalised latents ``[b, latent_channels, H/stride, W/stride]``: raw ones times the scaling factor."""
        latents = self.whiten(self._raw(images))
        return latents if torch.compiler.is_compiling() or latents.is_meta else mark(latents, self.latent_spec)

    @torch.no_grad()
    def encode_raw(self, images: Image) -> Latent:
        """Latents as the encoder gives them, which is what diffusers' ``encode`` returns."""
        return self._raw(images)

    @torch.no_grad()
    def encode_posterior(self, images: Image) -> EncoderPosterior:
        """The raw latents as a posterior without uncertainty, for what measures posteriors."""
        return self.posterior(images)

    @torch.no_grad()
    def decode(
        self,
        latents: Latent,
        height: int | None = None,
        width: int | None = None,
        inference_config: InferenceConfig | None = None,
    ) -> Image:
        """Images ``[b, 3, h*stride, w*stride]``, float32, not clamped, from normalised latents.

        ``height`` and ``width`` are checked where they are given. One pass decodes without noise, whatever the
        ``inference_config`` of a diffusion decoder says.
        """
        self.check_latents(latents, height, width)
        return self.render(self.dewhiten(latents)).to(self.wide_dtype)

    @torch.no_grad()
    def decode_raw(self, raw_latents: Latent) -> Image:
        """Images from latents as the encoder gives them, which is what diffusers' ``decode`` takes."""
        self.check_latents(raw_latents, None, None)
        return self.render(raw_latents).to(self.wide_dtype)

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
        config: "DCAEConfig | None" = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> Model:
        """Load a folder or a hub repository: ours, diffusers', or efficientvit's.

        ``config`` says what a file of weights is that has nothing beside it to say so (efficientvit's layout, or
        diffusers'). ``dtype`` None is bfloat16 on CUDA and float32 elsewhere.

        Raises:
            PartError, CheckpointError: a config or tensors that do not fit, with what is wrong by name.
            FileNotFoundError: no such folder, or a hub repository that cannot be reached.
        """
        from .dc_ae_layout import load_with
        from .published import read_published

        if config is not None:
            model = load_with(config, path_or_id, device=device, dtype=dtype)
            assert isinstance(model, cls)
            return model
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

    def export_diffusers(self, folder: str | Path) -> Path:
        """Write the folder that diffusers' ``AutoencoderDC.from_pretrained`` reads.

        Raises:
            PartError: that layout has no words for some part of this model; the message names it.
        """
        from .dc_ae_layout import export_diffusers

        return export_diffusers(self, folder)

    # --- what the surface and training are made of --------------------------------------------------------------------

    def posterior(self, images: Image) -> EncoderPosterior:
        """Raw latents, with gradients, as the mean of a posterior whose log-SNR is infinite."""
        raw = self._raw(images)
        return EncoderPosterior(raw, torch.full_like(raw, torch.inf))

    def render(self, raw_latents: Latent) -> Image:
        """The decoder: raw latents to images in the model's dtype, with gradients."""
        return self.decoder(raw_latents.to(self.dtype)).contiguous()

    def raw_latents(self, images: Image) -> Latent:
        """As :meth:`encode_raw`, with gradients."""
        return self._raw(images)

    def raw_from(self, latents: Latent) -> Latent:
        return self.dewhiten(latents)

    def paint(self, raw_latents: Latent, noise: Image | None, settings: InferenceConfig) -> Image:
        """As :meth:`render`, in float32 or wider; there is no noise."""
        return self.render(raw_latents).to(self.wide_dtype)

    def latent_moments(self, raw_latents: Latent) -> Float[Tensor, "k z"]:
        """Moments of raw latents, from which :meth:`fit_latent_norm` sets the statistics; they average over parts."""
        return self.config.latent_norm.observe(raw_latents)

    def fit_latent_norm(self, moments: Float[Tensor, "k z"], *, momentum: float) -> None:
        """Move the statistics of the latent normaliser towards ``moments``, unless the config fixes them."""
        if not self.config.latent_norm.fixed:
            self.config.latent_norm.fit(self.latent_statistics, moments, momentum=momentum)

    def _raw(self, images: Image) -> Latent:
        self.check_images(images)
        return self.encoder(images.to(self.dtype)).contiguous()

    def check_latents(self, latents: Latent, height: int | None, width: int | None) -> None:
        """Refuse latents that are of another space or do not become images of that size."""
        spec = None if torch.compiler.is_compiling() else spec_of(latents)
        if spec is not None:
            self.latent_spec.check(spec, where="decode")
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels or 0 in latents.shape[2:]:
            raise ValueError(f"decode: takes latents [b, {self.latent_channels}, h, w], got {list(latents.shape)}")
        sides = tuple(side * self.stride for side in latents.shape[2:])
        wanted = (height or sides[0], width or sides[1])
        if wanted != sides:
            raise ValueError(
                f"decode: latents of {latents.shape[2]}x{latents.shape[3]} positions become images of "
                f"{sides[0]}x{sides[1]}, not {wanted[0]}x{wanted[1]}"
            )


@part("family/dc_ae")
class DCAEConfig(FamilyConfig):
    """A deterministic autoencoder: its swappable halves; the defaults are those of dc-ae-f32c32-sana-1.0.

    Attributes:
        channels: of the image.
        latent: channels of the latents.
        latent_norm: what ``encode`` does to raw latents; ``latent_norm/scale_shift`` is the published scaling factor.
    """

    channels: int = 3
    latent: int = 32
    encoder: PixelEncoderConfig = PyramidEncoderConfig()
    decoder: PixelDecoderConfig = PyramidDecoderConfig()
    latent_norm: LatentNormConfig = ScaleShiftConfig(scale=0.41407)

    def __post_init__(self) -> None:
        for name in ("channels", "latent"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.encoder.stride != self.decoder.stride:
            raise ValueError(
                f"decoder: must have the encoder's stride {self.encoder.stride}, got {self.decoder.stride}; "
                "give both as many stages"
            )

    @property
    def stride(self) -> int:
        return self.encoder.stride

    @property
    def latent_channels(self) -> int:
        return self.latent

    @property
    def posterior_taken(self) -> Posterior:
        """What latents are of the posterior."""
        return "deterministic"

    def build(self) -> DCAE:
        return DCAE(self)
