"""How known projects feed and read their teacher, as changes to any teacher that is a network.

Each has other settings (code read in 2026); a comparison with their numbers starts from these. The network is chosen
separately: REPA takes ``dinov2:vitb14``, RAE ``dinov2:vitb14_reg`` of transformers, dgm-eval and EDM2
``dinov2:vitl14``, VA-VAE ``dinov2:vitl14`` or ``mae:vitl16``.
"""

from dataclasses import replace
from typing import TypeVar

from .backbones import IMAGENET_MEAN, IMAGENET_STD, NetworkTeacherConfig
from .resize import FixedResizeConfig
from .standardise import SpatialZScoreConfig, StandardiseConfig

Config = TypeVar("Config", bound=NetworkTeacherConfig)


def as_repa(teacher: Config, *, resolution: int = 256) -> Config:
    """REPA and REPA-E: normalised, then resized to 224·(resolution/256) without antialias.

    Their code resamples the table of positions as timm does: take ``position="bicubic_antialias"`` with DINOv2.
    """
    if resolution % 256:
        raise ValueError(f"resolution: must be a multiple of 256, got {resolution}")
    side = 224 * resolution // 256
    resize = FixedResizeConfig(height=side, width=side, mode="bicubic", antialias=False, order="normalise_first")
    return replace(teacher, resize=resize, mean=IMAGENET_MEAN, std=IMAGENET_STD, prefix="drop")


def as_irepa(teacher: Config) -> Config:
    """iREPA: patch tokens z-scored over the positions of each image; its resizing is not known to us and stays."""
    return replace(teacher, mean=IMAGENET_MEAN, std=IMAGENET_STD, standardise=SpatialZScoreConfig())


def as_rae(teacher: Config, *, standardise: StandardiseConfig | None = None) -> Config:
    """RAE: resized to 224 without antialias, the final norm without weight and bias, no prefix.

    Then come the mean and variance of a data set: ``standardise`` as :func:`fit_channels` measures it.
    """
    resize = FixedResizeConfig(height=224, width=224, mode="bicubic", antialias=False)
    return replace(teacher, resize=resize, norm="plain", prefix="drop", standardise=standardise)


def as_va_vae(teacher: Config) -> Config:
    """VA-VAE: bilinear to 224, and no normalisation of images in [-1, 1] (LightningDiT#78), as its paper's numbers are.

    For images in [0, 1] that is a mean and deviation of 0.5.
    """
    resize = FixedResizeConfig(height=224, width=224, mode="bilinear", antialias=False)
    return replace(teacher, resize=resize, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), prefix="drop")


def as_edm2(teacher: Config) -> Config:
    """EDM2's DINOv2 distance: antialiased bicubic to 224, then ImageNet's statistics; read ``cls``.

    dgm-eval (FDD) resizes with PIL, whose bicubic is antialiased as well but gives bytes: equal to this up to rounding
    and the clipping of overshoots.
    """
    resize = FixedResizeConfig(height=224, width=224, mode="bicubic", antialias=True)
    return replace(teacher, resize=resize, mean=IMAGENET_MEAN, std=IMAGENET_STD)
