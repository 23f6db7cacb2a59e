"""The models of DC-AE at published size, and small ones (``families/dc_ae_models.py``), under the names of recipes.

In "in" a model learned ImageNet, in "mix" a mixture, in "sana" what SANA's autoencoder learned; fFcC is C channels at
stride F.
"""

from ..families.dc_ae import DCAEConfig
from ..families.dc_ae_models import PUBLISHED, small


def dc_ae_f32c32_sana_1_0() -> DCAEConfig:
    """312,250,275 parameters; strided and nearest resampling, attention at two scales."""
    return PUBLISHED["dc-ae-f32c32-sana-1.0"]


def dc_ae_f32c32_sana_1_1() -> DCAEConfig:
    """Sana 1.0 with a decoder that was trained further: the same latents, and serves the same models."""
    return PUBLISHED["dc-ae-f32c32-sana-1.1"]


def dc_ae_f32c32_in_1_0() -> DCAEConfig:
    """323,356,460 parameters; pixel (un)shuffling, batch norm in the decoder's convolutions."""
    return PUBLISHED["dc-ae-f32c32-in-1.0"]


def dc_ae_f32c32_mix_1_0() -> DCAEConfig:
    """As ``dc_ae_f32c32_in_1_0`` but for the scale of its latents."""
    return PUBLISHED["dc-ae-f32c32-mix-1.0"]


def dc_ae_f64c128_in_1_0() -> DCAEConfig:
    """676,896,140 parameters."""
    return PUBLISHED["dc-ae-f64c128-in-1.0"]


def dc_ae_f64c128_mix_1_0() -> DCAEConfig:
    """As ``dc_ae_f64c128_in_1_0`` but for the scale of its latents."""
    return PUBLISHED["dc-ae-f64c128-mix-1.0"]


def dc_ae_f128c512_in_1_0() -> DCAEConfig:
    """1,120,682,252 parameters."""
    return PUBLISHED["dc-ae-f128c512-in-1.0"]


def dc_ae_f128c512_mix_1_0() -> DCAEConfig:
    """As ``dc_ae_f128c512_in_1_0`` but for the scale of its latents."""
    return PUBLISHED["dc-ae-f128c512-mix-1.0"]


dc_ae_f64c128, dc_ae_f128c512 = dc_ae_f64c128_in_1_0, dc_ae_f128c512_in_1_0


def dc_ae_lite_f32c32() -> DCAEConfig:
    """Sana's encoder with a distilled decoder of convolutions alone, of 268,154,124 parameters."""
    return PUBLISHED["dc-ae-lite-f32c32-sana-1.1"]


def dc_ae_small_64() -> DCAEConfig:
    """4 channels at stride 8, for images of 64 pixels."""
    return small(64)


def dc_ae_small_128() -> DCAEConfig:
    """16 channels at stride 16, for images of 128 pixels."""
    return small(128)


def dc_ae_small_256() -> DCAEConfig:
    """32 channels at stride 32, for images of 256 pixels."""
    return small(256)
