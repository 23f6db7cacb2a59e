"""Families of published networks as teachers, by short names: ``dinov2:vits14``, ``dinov3:vitb16``.

Width and patch stand in tables, so that a recipe can be written, read and compared without timm. DINOv2, DINOv3,
SigLIP 2 and MAE can be computed by transformers as well (``library``).

DINOv3's plain names have no biases of queries and values, since the released ones are zero (dinov3#195): no number
changes. ``timm:vit_base_patch16_dinov3_qkvb`` and its like keep them, for weights trained further.
"""

from typing import Literal

from .pretrained import InBothConfig, PublishedConfig
from .published_networks import AIMV2, C_RADIO, DINOV2, DINOV3, EUPE, EVA02, MAE, PE, SIGLIP2, TIPS
from .registry import part


@part("teacher/dinov2")
class DINOv2Config(InBothConfig):
    """DINOv2 (arXiv 2304.07193), with registers (arXiv 2309.16588) where the size ends in ``_reg``.

    Without registers the two libraries, and Meta's code, fit the table of positions to a grid other than 37 x 37 by
    three rules: see ``position``. With registers all agree at every size.
    """

    shorthand = "size"
    networks = DINOV2

    size: Literal["vits14", "vitb14", "vitl14", "vitg14", "vits14_reg", "vitb14_reg", "vitl14_reg", "vitg14_reg"] = (
        "vitb14"
    )


@part("teacher/dinov3")
class DINOv3Config(InBothConfig):
    """DINOv3 (arXiv 2508.10104): transformers with RoPE, class token and four registers, and ConvNeXts.

    timm has these weights without a gate, under DINOv3's own licence; ``facebook/dinov3-*`` is gated by hand.
    """

    shorthand = "size"
    networks = DINOV3

    size: Literal[
        "vits16",
        "vits16plus",
        "vitb16",
        "vitl16",
        "vith16plus",
        "vit7b16",
        "vitl16_sat",
        "vit7b16_sat",
        "convnext_tiny",
        "convnext_small",
        "convnext_base",
        "convnext_large",
    ] = "vitb16"


@part("teacher/siglip2")
class SigLIP2Config(InBothConfig):
    """The picture towers of SigLIP 2 (arXiv 2502.14786): patches without a class token, and attention pooling.

    ``cls="pooled"`` is what the pooling gives. The sizes that end in ``_naflex`` were trained at many forms of images.

    timm 1.0.31 computes GELU exactly in most of the fixed sizes, transformers by its tanh, as Google's code does:
    tokens of the two differ by some 1e-4 there, and agree in the sizes where timm takes the tanh as well.
    """

    shorthand = "size"
    networks = SIGLIP2

    size: Literal[
        "base_patch16_224",
        "base_patch16_256",
        "base_patch16_384",
        "base_patch16_512",
        "base_patch32_256",
        "large_patch16_256",
        "large_patch16_384",
        "large_patch16_512",
        "so400m_patch14_224",
        "so400m_patch14_378",
        "so400m_patch16_256",
        "so400m_patch16_384",
        "so400m_patch16_512",
        "giantopt_patch16_256",
        "giantopt_patch16_384",
        "base_naflex",
        "so400m_naflex",
    ] = "base_patch16_256"


@part("teacher/mae")
class MAEConfig(InBothConfig):
    """Encoders of masked autoencoders (arXiv 2111.06377), which see every patch, in order. Not for commercial use.

    transformers adds 1e-12 to the variances of its norms where timm, as the original code, adds 1e-6.
    """

    shorthand = "size"
    networks = MAE

    size: Literal["vitb16", "vitl16", "vith14"] = "vitb16"


@part("teacher/c_radio")
class CRADIOConfig(PublishedConfig):
    """C-RADIO v3 and v4 (arXiv 2412.07679, 2601.17237): no final norm; the class token leads seven or nine others.

    timm's NaFlex form is taken, which fits the table of 128 x 128 positions to a grid as RADIO does at every size.
    """

    shorthand = "size"
    networks = C_RADIO

    size: Literal["v3_base", "v3_large", "v3_huge", "v3_giant", "v4_so400m", "v4_huge"] = "v3_base"


@part("teacher/pe")
class PEConfig(PublishedConfig):
    """Perception Encoders (arXiv 2504.13181): "core" has a final norm and attention pooling, "spatial" neither."""

    shorthand = "size"
    networks = PE

    size: Literal[
        "core_tiny",
        "core_small",
        "core_base",
        "core_large",
        "core_gigantic",
        "spatial_tiny",
        "spatial_small",
        "spatial_base",
        "spatial_large",
        "spatial_gigantic",
    ] = "spatial_base"


@part("teacher/aimv2")
class AIMv2Config(PublishedConfig):
    """AIMv2 (arXiv 2411.14402): patches without a class token."""

    shorthand = "size"
    networks = AIMV2

    size: Literal[
        "large_224",
        "large_336",
        "large_448",
        "large_224_dist",
        "large_336_dist",
        "huge_224",
        "huge_336",
        "huge_448",
        "1b_224",
        "1b_336",
        "1b_448",
        "3b_224",
        "3b_336",
        "3b_448",
    ] = "large_224"


@part("teacher/eva02")
class EVA02Config(PublishedConfig):
    """EVA-02 (arXiv 2303.11331): its norm comes after pooling, so that tokens are not normed."""

    shorthand = "size"
    networks = EVA02

    size: Literal["tiny", "small", "base", "large", "large_m38m"] = "base"


@part("teacher/eupe")
class EUPEConfig(PublishedConfig):
    """EUPE (Meta, 2026): small networks of DINOv3's architecture. Not for commercial use."""

    shorthand = "size"
    networks = EUPE

    size: Literal["vitt16", "vits16", "vitb16", "convnext_tiny", "convnext_small", "convnext_base"] = "vitb16"


@part("teacher/tips")
class TIPSConfig(PublishedConfig):
    """TIPS v2: a class token, one register, and colours that are not normalised (mean 0, deviation 1)."""

    shorthand = "size"
    networks = TIPS

    size: Literal["base", "large", "so400m", "giant"] = "base"
