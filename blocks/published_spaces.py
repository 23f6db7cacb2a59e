"""The latent spaces that people train on, each a part with the constants of its publication.

Constants are those of diffusers' configs and pipelines; a file that has its own wins over them (``autoencoders.py``).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from .autoencoders import (
    AutoencoderSpaceConfig,
    BatchNormSpaceConfig,
    DCSpaceConfig,
    GeneratorNormSpaceConfig,
    KLSpaceConfig,
    RAESpaceConfig,
    Raw,
)
from .latent_norm import ChannelNormConfig, ScaleShiftConfig, WhiteningConfig
from .registry import part
from .slots import LatentNormConfig, Statistics

_PLAIN: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
_WITHOUT_QUANT = _PLAIN | {"use_quant_conv": False, "use_post_quant_conv": False}
_RAE: dict[str, Any] = {
    "decoder_hidden_size": 1152,
    "decoder_num_hidden_layers": 28,
    "decoder_num_attention_heads": 16,
    "decoder_intermediate_size": 4096,
}
_VA_VAE: dict[str, Any] = {"block_out_channels": (128, 128, 256, 256, 512), "layers_per_block": 2}


@part("latent_space/sd")
class SDSpaceConfig(KLSpaceConfig):
    """Stable Diffusion 1 and 2: z·0.18215, 4 channels at stride 8."""

    published: ClassVar[tuple[str, str]] = ("stabilityai/sd-vae-ft-mse", "")
    architecture: ClassVar[Mapping[str, Any]] = _PLAIN
    norm: LatentNormConfig = ScaleShiftConfig(scale=0.18215)


@part("latent_space/sdxl")
class SDXLSpaceConfig(KLSpaceConfig):
    """SDXL: z·0.13025, or (z - mean)·0.13025/std where its config has statistics. It stays float32 in float16."""

    published: ClassVar[tuple[str, str]] = ("stabilityai/sdxl-vae", "")
    architecture: ClassVar[Mapping[str, Any]] = _PLAIN
    norm: LatentNormConfig = ScaleShiftConfig(scale=0.13025)


@part("latent_space/sd3")
class SD3SpaceConfig(KLSpaceConfig):
    """Stable Diffusion 3 and 3.5: (z - 0.0609)·1.5305, 16 channels at stride 8, without quantisation convolutions."""

    published: ClassVar[tuple[str, str]] = ("stabilityai/stable-diffusion-3.5-medium", "vae")
    architecture: ClassVar[Mapping[str, Any]] = _WITHOUT_QUANT
    latent: int = 16
    norm: LatentNormConfig = ScaleShiftConfig(scale=1.5305, shift=0.0609)


@part("latent_space/flux")
class FluxSpaceConfig(KLSpaceConfig):
    """FLUX.1: (z - 0.1159)·0.3611, 16 channels at stride 8; ``patch=2`` packs them as its transformer does."""

    published: ClassVar[tuple[str, str]] = ("black-forest-labs/FLUX.1-schnell", "vae")
    architecture: ClassVar[Mapping[str, Any]] = _WITHOUT_QUANT
    latent: int = 16
    norm: LatentNormConfig = ScaleShiftConfig(scale=0.3611, shift=0.1159)


@part("latent_space/flux2")
class Flux2SpaceConfig(BatchNormSpaceConfig):
    """FLUX.2: the mode, packed 2x2, (z - running mean) / sqrt(running variance + 1e-4): 128 channels at stride 16."""

    published: ClassVar[tuple[str, str]] = ("black-forest-labs/FLUX.2-dev", "vae")
    architecture: ClassVar[Mapping[str, Any]] = _PLAIN
    latent: int = 32
    patch: int = 2
    norm: LatentNormConfig = WhiteningConfig()


def _dc(stages: int) -> dict[str, Any]:
    """Widths, depths and kinds of the in and mix models: the first three stages are residual blocks."""
    kinds = ("ResBlock",) * 3 + ("EfficientViTBlock",) * (stages - 3)
    widths = (128, 256, 512, 512, 1024, 1024, 2048, 2048)[:stages]
    return {
        "encoder_block_types": kinds,
        "decoder_block_types": kinds,
        "encoder_block_out_channels": widths,
        "decoder_block_out_channels": widths,
        "encoder_layers_per_block": (0, 4, 8, 2, 2, 2, 2, 2)[:stages],
        "decoder_layers_per_block": (0, 5, 10, 2, 2, 2, 2, 2)[:stages],
        "encoder_qkv_multiscales": ((),) * stages,
        "decoder_qkv_multiscales": ((),) * stages,
        "decoder_norm_types": ("batch_norm",) * 3 + ("rms_norm",) * (stages - 3),
        "decoder_act_fns": ("relu",) * 3 + ("silu",) * (stages - 3),
    }


_SANA: dict[str, Any] = {
    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "downsample_block_type": "conv",
    "upsample_block_type": "interpolate",
}


@part("latent_space/sana")
class SanaSpaceConfig(DCSpaceConfig):
    """DC-AE of SANA, version 1.1: z·0.41407, 32 channels at stride 32."""

    published: ClassVar[tuple[str, str]] = ("mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers", "")
    architecture: ClassVar[Mapping[str, Any]] = _SANA
    latent: int = 32
    reduction: int = 32
    norm: LatentNormConfig = ScaleShiftConfig(scale=0.41407)


@part("latent_space/sana_1_0")
class Sana10SpaceConfig(SanaSpaceConfig):
    """DC-AE of SANA, version 1.0: the encoder of 1.1 and thus its space, with another decoder."""

    published: ClassVar[tuple[str, str]] = ("mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers", "")
    name: str = "sana"


@part("latent_space/dc_ae_f32c32_in")
class DCAEf32InSpaceConfig(DCSpaceConfig):
    """DC-AE f32c32 of ImageNet: z·0.3189."""

    published: ClassVar[tuple[str, str]] = ("mit-han-lab/dc-ae-f32c32-in-1.0-diffusers", "")
    architecture: ClassVar[Mapping[str, Any]] = _dc(6)
    latent: int = 32
    reduction: int = 32
    norm: LatentNormConfig = ScaleShiftConfig(scale=0.3189)


@part("latent_space/dc_ae_f32c32_mix")
class DCAEf32MixSpaceConfig(DCAEf32InSpaceConfig):
    """DC-AE f32c32 of a mixture of images: z·0.4552."""

    published: ClassVar[tuple[str, str]] = ("mit-han-lab/dc-ae-f32c32-mix-1.0-diffusers", "")
    norm: LatentNormConfig = ScaleShiftConfig(scale=0.4552)


@part("latent_space/dc_ae_f64c128_in")
class DCAEf64InSpaceConfig(DCSpaceConfig):
    """DC-AE f64c128 of ImageNet: z·0.2889."""

    published: ClassVar[tuple[str, str]] = ("mit-han-lab/dc-ae-f64c128-in-1.0-diffusers", "")
    architecture: ClassVar[Mapping[str, Any]] = _dc(7)
    latent: int = 128
    reduction: int = 64
    norm: LatentNormConfig = ScaleShiftConfig(scale=0.2889)


@part("latent_space/dc_ae_f64c128_mix")
class DCAEf64MixSpaceConfig(DCAEf64InSpaceConfig):
    """DC-AE f64c128 of a mixture of images: z·0.4538."""

    published: ClassVar[tuple[str, str]] = ("mit-han-lab/dc-ae-f64c128-mix-1.0-diffusers", "")
    norm: LatentNormConfig = ScaleShiftConfig(scale=0.4538)


@part("latent_space/dc_ae_f128c512_in")
class DCAEf128InSpaceConfig(DCSpaceConfig):
    """DC-AE f128c512 of ImageNet: z·0.4883."""

    published: ClassVar[tuple[str, str]] = ("mit-han-lab/dc-ae-f128c512-in-1.0-diffusers", "")
    architecture: ClassVar[Mapping[str, Any]] = _dc(8)
    latent: int = 512
    reduction: int = 128
    norm: LatentNormConfig = ScaleShiftConfig(scale=0.4883)


@part("latent_space/dc_ae_f128c512_mix")
class DCAEf128MixSpaceConfig(DCAEf128InSpaceConfig):
    """DC-AE f128c512 of a mixture of images: z·0.3620."""

    published: ClassVar[tuple[str, str]] = ("mit-han-lab/dc-ae-f128c512-mix-1.0-diffusers", "")
    norm: LatentNormConfig = ScaleShiftConfig(scale=0.3620)


@part("latent_space/rae_dinov2_b")
class RAEDinov2BSpaceConfig(RAESpaceConfig):
    """RAE with DINOv2-B with registers: 768 channels, 16x16 positions of 256x256 pixels."""

    published: ClassVar[tuple[str, str]] = ("nyu-visionx/RAE-dinov2-wReg-base-ViTXL-n08", "")
    architecture: ClassVar[Mapping[str, Any]] = _RAE


@part("latent_space/rae_dinov2_s")
class RAEDinov2SSpaceConfig(RAESpaceConfig):
    """RAE with DINOv2-S with registers: 384 channels."""

    published: ClassVar[tuple[str, str]] = ("nyu-visionx/RAE-dinov2-wReg-small-ViTXL-n08", "")
    architecture: ClassVar[Mapping[str, Any]] = _RAE
    latent: int = 384


@part("latent_space/rae_dinov2_l")
class RAEDinov2LSpaceConfig(RAESpaceConfig):
    """RAE with DINOv2-L with registers: 1,024 channels."""

    published: ClassVar[tuple[str, str]] = ("nyu-visionx/RAE-dinov2-wReg-large-ViTXL-n08", "")
    architecture: ClassVar[Mapping[str, Any]] = _RAE | {"encoder_num_hidden_layers": 24}
    latent: int = 1024


@part("latent_space/rae_siglip2_b")
class RAESigLIP2BSpaceConfig(RAESpaceConfig):
    """RAE with SigLIP2-B of patch 16: 768 channels."""

    published: ClassVar[tuple[str, str]] = ("nyu-visionx/RAE-siglip2-base-p16-i256-ViTXL-n08", "")
    architecture: ClassVar[Mapping[str, Any]] = _RAE | {
        "encoder_type": "siglip2",
        "encoder_patch_size": 16,
        "encoder_input_size": 256,
        "encoder_norm_mean": (0.5, 0.5, 0.5),
        "encoder_norm_std": (0.5, 0.5, 0.5),
    }


@part("latent_space/rae_mae_b")
class RAEMAEBSpaceConfig(RAESpaceConfig):
    """RAE with MAE-B of patch 16: 768 channels."""

    published: ClassVar[tuple[str, str]] = ("nyu-visionx/RAE-mae-base-p16-ViTXL-n08", "")
    architecture: ClassVar[Mapping[str, Any]] = _RAE | {
        "encoder_type": "mae",
        "encoder_patch_size": 16,
        "encoder_input_size": 256,
    }


@part("latent_space/va_vae")
class VAVAESpaceConfig(KLSpaceConfig):
    """VA-VAE f16d32: (z - mean)/std per channel by ``statistics='latents_stats.pt'``; 32 channels at stride 16.

    LightningDiT caches a sample of the posterior, and has its statistics of samples: take ``posterior="sample"`` for
    latents as in its caches.
    """

    published: ClassVar[tuple[str, str]] = ("hustvl/vavae-imagenet256-f16d32-dinov2", "")
    published_file: ClassVar[str] = "vavae-imagenet256-f16d32-dinov2.pt"
    architecture: ClassVar[Mapping[str, Any]] = _VA_VAE
    attention: ClassVar[bool] = True
    latent: int = 32
    reduction: int = 16
    norm: LatentNormConfig = ChannelNormConfig()

    def constants(self, model: nn.Module, raw: Raw) -> tuple[LatentNormConfig, Statistics | None]:
        # 0.18215 in a converted config is the default of diffusers' class, not this autoencoder's.
        given = {name: value for name, value in raw.items() if name != "scaling_factor"}
        return super().constants(model, given)


@part("latent_space/e2e_sd")
class E2ESDSpaceConfig(GeneratorNormSpaceConfig):
    """SD's autoencoder trained with its generator (REPA-E): another space of SD's shapes."""

    published: ClassVar[tuple[str, str]] = ("REPA-E/e2e-sdvae-hf", "")
    architecture: ClassVar[Mapping[str, Any]] = _PLAIN
    norm: LatentNormConfig = WhiteningConfig()


@part("latent_space/e2e_vavae")
class E2EVAVAESpaceConfig(GeneratorNormSpaceConfig):
    """VA-VAE trained with its generator (REPA-E): another space of VA-VAE's shapes."""

    published: ClassVar[tuple[str, str]] = ("REPA-E/e2e-vavae-hf", "")
    architecture: ClassVar[Mapping[str, Any]] = _VA_VAE
    attention: ClassVar[bool] = True
    latent: int = 32
    reduction: int = 16
    norm: LatentNormConfig = WhiteningConfig()


PUBLISHED: dict[str, AutoencoderSpaceConfig] = {
    "sd": SDSpaceConfig(),
    "sd1": SDSpaceConfig(),
    "sd2": SDSpaceConfig(),
    "sdxl": SDXLSpaceConfig(),
    "sd3": SD3SpaceConfig(),
    "flux": FluxSpaceConfig(),
    "flux2": Flux2SpaceConfig(),
    "sana": SanaSpaceConfig(),
    "sana_1_0": Sana10SpaceConfig(),
    "dc_ae_f32c32_in": DCAEf32InSpaceConfig(),
    "dc_ae_f32c32_mix": DCAEf32MixSpaceConfig(),
    "dc_ae_f64c128_in": DCAEf64InSpaceConfig(),
    "dc_ae_f64c128_mix": DCAEf64MixSpaceConfig(),
    "dc_ae_f128c512_in": DCAEf128InSpaceConfig(),
    "dc_ae_f128c512_mix": DCAEf128MixSpaceConfig(),
    "rae_dinov2_s": RAEDinov2SSpaceConfig(),
    "rae_dinov2_b": RAEDinov2BSpaceConfig(),
    "rae_dinov2_l": RAEDinov2LSpaceConfig(),
    "rae_siglip2_b": RAESigLIP2BSpaceConfig(),
    "rae_mae_b": RAEMAEBSpaceConfig(),
    "va_vae": VAVAESpaceConfig(),
    "e2e_sd": E2ESDSpaceConfig(),
    "e2e_vavae": E2EVAVAESpaceConfig(),
}
"""The spaces by name; ``sd1`` and ``sd2`` are ``sd``."""
