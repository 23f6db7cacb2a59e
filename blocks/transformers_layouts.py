"""Where the vision models of transformers keep their blocks, norms, prefixes and tables of positions (as of 5.24)."""

from dataclasses import dataclass

from .backbones import IMAGENET_MEAN, IMAGENET_STD, Colour

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Layout:
    """Where a type of model keeps what a backbone needs; paths are attributes with dots.

    Attributes:
        blocks, norm: the list of blocks; the final norm over tokens, or None.
        cls: whether a class token leads.
        registers: the setting that counts the tokens behind it, or how many there are.
        position: how the library fits positions to a grid.
        table: where a learned table is; None for RoPE and for rules that are not ours to replace.
        interpolates: whether ``forward`` must be asked to fit positions.
        mean, std: where no preprocessor_config.json says otherwise.
        extra: names in published files that are no part of the vision model.
    """

    blocks: str
    norm: str | None
    cls: bool = True
    registers: str | int = 0
    position: str = "bicubic"
    table: str | None = "embeddings.position_embeddings"
    interpolates: bool = False
    mean: Colour = IMAGENET_MEAN
    std: Colour = IMAGENET_STD
    extra: str = r"(?!)"


LAYOUTS = {
    "dinov2": Layout("encoder.layer", "layernorm"),
    "dinov2_with_registers": Layout(
        "encoder.layer", "layernorm", registers="num_register_tokens", position="bicubic_antialias"
    ),
    "dinov3_vit": Layout("model.layer", "norm", registers="num_register_tokens", position="rope", table=None),
    "vit": Layout("layers", "layernorm", interpolates=True, mean=HALF, std=HALF, extra=r"^(vit\.)?pooler|^classifier"),
    "ijepa": Layout("layers", "layernorm", cls=False, interpolates=True),
    "vit_mae": Layout("layers", "layernorm", interpolates=True, extra=r"decoder"),
    "siglip_vision_model": Layout(
        "encoder.layers",
        "post_layernorm",
        cls=False,
        table="embeddings.position_embedding",
        interpolates=True,
        mean=HALF,
        std=HALF,
        extra=r"^text_model|^logit_",
    ),
    "siglip2_vision_model": Layout(
        "encoder.layers",
        "post_layernorm",
        cls=False,
        position="bilinear_antialias",
        table="embeddings.position_embedding",
        mean=HALF,
        std=HALF,
        extra=r"^text_model|^logit_",
    ),
    "clip_vision_model": Layout(
        "encoder.layers",
        None,
        table="embeddings.position_embedding",
        interpolates=True,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        extra=r"^text_model|^logit_|_projection",
    ),
    "aimv2_vision_model": Layout(
        "encoder.layers",
        "rms_norm",
        cls=False,
        position="native",
        table="embeddings.position_embedding",
        mean=CLIP_MEAN,
        std=CLIP_STD,
        extra=r"^text_model|^logit_|_projection",
    ),
    "radio": Layout("encoder.layer", None, position="bilinear_square", table=None, mean=CLIP_MEAN, std=CLIP_STD),
    "tipsv2_vision_model": Layout(
        "encoder.layer",
        "layernorm",
        registers="num_register_tokens",
        position="bilinear_antialias",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        extra=r"^text_model|^temperature",
    ),
}
"""By ``model_type`` of the vision model."""

CONVNEXT = "dinov3_convnext"
