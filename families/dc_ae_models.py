"""The published DC-AE models as configs, by the names of their repositories (``mit-han-lab/<name>``).

Depths, blocks, norms and scaling factors: diffusers' conversion script, and the model zoo of efficientvit.
"""

from dataclasses import replace

from ..blocks.efficientvit import EfficientViTBlockConfig, ResBlockConfig
from ..blocks.latent_norm import ChannelNormConfig, ScaleShiftConfig
from ..blocks.pyramid import PyramidDecoderConfig, PyramidEncoderConfig
from ..blocks.resample import ShuffleUpConfig, UnshuffleDownConfig
from ..blocks.slots import BlockConfig
from .dc_ae import DCAEConfig

CONV, ATTENTION = ResBlockConfig(), EfficientViTBlockConfig()
BATCH_RELU = ResBlockConfig(norm="batch", activation="relu")


def sana() -> DCAEConfig:
    """312,250,275 parameters. The second version has the first one's encoder and another decoder's weights."""
    return DCAEConfig()


def imagenet(*, coarser: int, latent: int, scale: float) -> DCAEConfig:
    """The models "in" and "mix" of stride 32, 64 (``coarser`` = 1) and 128 (2); their first stage is empty."""
    widths = (128, 256, 512, 512, 1024, 1024) + (2048,) * coarser
    attention: tuple[BlockConfig, ...] = (ATTENTION,) * (3 + coarser)
    return DCAEConfig(
        latent=latent,
        encoder=PyramidEncoderConfig(
            widths=widths,
            depths=(0, 4, 8, 2, 2, 2) + (2,) * coarser,
            blocks=(CONV, CONV, CONV, *attention),
            down=UnshuffleDownConfig(),
        ),
        decoder=PyramidDecoderConfig(
            widths=widths,
            depths=(0, 5, 10, 2, 2, 2) + (2,) * coarser,
            blocks=(BATCH_RELU, BATCH_RELU, BATCH_RELU, *attention),
            up=ShuffleUpConfig(),
        ),
        latent_norm=ScaleShiftConfig(scale=scale),
    )


def lite() -> DCAEConfig:
    """The encoder of sana, and a decoder of convolutions alone that was distilled from its decoder."""
    decoder = PyramidDecoderConfig(
        depths=(0, 3, 5, 4, 4, 4), blocks=(CONV,) * 6, up=ShuffleUpConfig(), activation="silu"
    )
    return replace(sana(), decoder=decoder)


PUBLISHED: dict[str, DCAEConfig] = {
    "dc-ae-f32c32-sana-1.0": sana(),
    "dc-ae-f32c32-sana-1.1": sana(),
    "dc-ae-f32c32-in-1.0": imagenet(coarser=0, latent=32, scale=0.3189),
    "dc-ae-f32c32-mix-1.0": imagenet(coarser=0, latent=32, scale=0.4552),
    "dc-ae-f64c128-in-1.0": imagenet(coarser=1, latent=128, scale=0.2889),
    "dc-ae-f64c128-mix-1.0": imagenet(coarser=1, latent=128, scale=0.4538),
    "dc-ae-f128c512-in-1.0": imagenet(coarser=2, latent=512, scale=0.4883),
    "dc-ae-f128c512-mix-1.0": imagenet(coarser=2, latent=512, scale=0.3620),
    "dc-ae-lite-f32c32-sana-1.1": lite(),
}


def small(pixels: int) -> DCAEConfig:
    """A model for images of 64, 128 or 256 pixels, whose latents are 8x8: f8c4, f16c16 or f32c32.

    Its latents are normalised per channel by statistics that training fits, since nothing else knows their scale.

    Raises:
        ValueError: another size.
    """
    if pixels not in SMALL:
        raise ValueError(f"pixels: there are presets for {', '.join(map(str, SMALL))}, got {pixels}")
    latent, widths, convolutions = SMALL[pixels]
    attention = EfficientViTBlockConfig(kernels=(5,))
    blocks = (CONV,) * convolutions + (attention,) * (len(widths) - convolutions)
    depths = (1,) * convolutions + (2,) * (len(widths) - convolutions)
    return DCAEConfig(
        latent=latent,
        encoder=PyramidEncoderConfig(widths=widths, depths=depths, blocks=blocks),
        decoder=PyramidDecoderConfig(widths=widths, depths=depths, blocks=blocks),
        latent_norm=ChannelNormConfig(),
    )


SMALL: dict[int, tuple[int, tuple[int, ...], int]] = {
    64: (4, (32, 64, 128, 128), 2),
    128: (16, (32, 64, 128, 128, 256), 3),
    256: (32, (32, 64, 128, 128, 256, 256), 3),
}
"""Side of the images to latent channels, widths from fine to coarse, and how many stages are convolutions."""
