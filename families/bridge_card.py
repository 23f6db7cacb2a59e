"""The interface of the bridge that began it: the model card kingsidharth/sd_vae_2_dino_v2_bridge.

Latents [b, 4, 32, 32] of Stable Diffusion's autoencoder become tokens [b, 64, 768] of DINOv2-B. The card gives sizes,
not layers: the number of parameters lies where its sizes put it (58.9 to 61.5 million), names of tensors are our own.
"""

import math

from ..blocks.adapters import ResidualStemConfig
from ..blocks.latent_spaces import space_config
from ..blocks.registry import decode
from ..blocks.slots import LatentSpaceConfig, TeacherConfig
from ..blocks.teacher_families import DINOv2Config
from ..blocks.token_body import TransformerBodyConfig
from .bridge import LatentBridgeConfig

CARD_IMAGE = 256
"""Pixels a side of the card's images: latents of 32x32 at stride 8."""


def card_config(
    *,
    in_ch: int | None = None,
    target_tokens: int = 64,
    target_dim: int | None = None,
    adapter_mid_channels: int = 256,
    adapter_out_channels: int = 512,
    adapter_depth: int = 2,
    width: int = 768,
    depth: int = 8,
    heads: int = 12,
    mlp_ratio: float = 4.0,
    dropout: float = 0.02,
    space: LatentSpaceConfig | None = None,
    teacher: TeacherConfig | None = None,
) -> LatentBridgeConfig:
    """The bridge of the card kingsidharth/sd_vae_2_dino_v2_bridge, by the names of its constructor.

    Args:
        in_ch: channels of the latents, 4 on the card; those of ``space``, which is Stable Diffusion's where it is None.
        target_tokens: patches of an image of 256 pixels, a square number.
        target_dim: width of a token, 768 on the card; the size of DINOv2 follows from it where ``teacher`` is None.

    Raises:
        ValueError: the numbers belong to no space or teacher that is known, or to others than those given.
    """
    space = space or space_config("sd")
    if in_ch not in (None, space.channels):
        raise ValueError(
            f"in_ch: the latents of {space.kind} have {space.channels} channels, got {in_ch}; "
            "name the space that has as many, such as space=space_config('flux')"
        )
    side = math.isqrt(max(target_tokens, 0))
    if side < 1 or side**2 != target_tokens or CARD_IMAGE % side:
        raise ValueError(f"target_tokens: must be the square of a divisor of {CARD_IMAGE}, got {target_tokens}")
    if teacher is None:
        sizes = {network.width: size for size, network in DINOv2Config.networks.items() if "_" not in size}
        size = sizes.get(target_dim or 768)
        if size is None:
            known = ", ".join(map(str, sorted(sizes)))
            raise ValueError(
                f"target_dim: DINOv2 has widths {known}, got {target_dim}; for another teacher give it as 'teacher'"
            )
        teacher = decode(f"{DINOv2Config.kind}:{size}", TeacherConfig)
    elif target_dim not in (None, teacher.features):
        raise ValueError(f"target_dim: {teacher.kind} has {teacher.features} features, got {target_dim}; leave it out")
    return LatentBridgeConfig(
        space=space,
        teacher=teacher.for_stride(CARD_IMAGE // side),
        stem=ResidualStemConfig(mid=adapter_mid_channels, out=adapter_out_channels, depth=adapter_depth),
        body=TransformerBodyConfig(width=width, depth=depth, heads=heads, expand=mlp_ratio, dropout=dropout),
        image=CARD_IMAGE,
    )
