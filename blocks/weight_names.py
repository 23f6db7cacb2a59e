"""Tensors of transformers' vision models under timm's names: a downloaded ``facebook/...`` folder loads into timm.

DINOv2 with and without registers, DINOv3 (ViT, ConvNeXt), SigLIP and SigLIP 2, ViTMAE. timm fuses the projections of
queries, keys and values into ``qkv``, keeps DINOv3's two biases as ``q_bias`` and ``v_bias`` or, where the released
ones are zero (dinov3#195), not at all; and where its table of positions has no row for the class token (DINOv2 with
registers), that row is added to the class token.
"""

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from .weights import CheckpointError

RULES = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"^(vision_model|vit|model)\.(?=embeddings\.|encoder\.|layers\.|post_layernorm|head\.|layernorm\.)", ""),
        (r"^embeddings\.cls_token$", "cls_token"),
        (r"^embeddings\.register_tokens$", "reg_token"),
        (r"^embeddings\.position_embeddings?(\.weight)?$", "pos_embed"),
        (r"^embeddings\.patch_embeddings?\.(projection\.)?", "patch_embed.proj."),
        (r"^(model\.|encoder\.)?layers?\.(\d+)\.", r"blocks.\2."),
        (r"^(layernorm|post_layernorm)\.", "norm."),
        # attention pooling of SigLIP
        (r"^head\.probe$", "attn_pool.latent"),
        (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
        (r"^head\.layernorm\.", "attn_pool.norm."),
        (r"^head\.mlp\.", "attn_pool.mlp."),
        # transformers 4 called some of them otherwise
        (r"\.(attention\.attention|self_attn)\.", ".attention."),
        (r"\.attention\.(query|key|value)\.", lambda m: f".attention.{m[1][0]}_proj."),
        (r"\.attention\.(output\.dense|o_proj|out_proj)\.", ".attn.proj."),
        (r"\.(norm1|layernorm_before|layer_norm1)\.", ".norm1."),
        (r"\.(norm2|layernorm_after|layer_norm2)\.", ".norm2."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
        # ConvNeXt
        (r"^(model\.)?stages\.0\.downsample_layers\.", "stem."),
        (r"^(model\.)?stages\.(\d+)\.downsample_layers\.", r"stages.\2.downsample."),
        (r"^(model\.)?stages\.(\d+)\.layers\.(\d+)\.", r"stages.\2.blocks.\3."),
        (r"\.depthwise_conv\.", ".conv_dw."),
        (r"^(stages\..*)\.layer_norm\.", r"\1.norm."),
        (r"\.pointwise_conv([12])\.", r".mlp.fc\1."),
        (r"^layer_norm\.", "head.norm."),
    )
)
DROPPED = re.compile(r"mask_token$|^text_model\.|^logit_|^decoder|position_ids$|^pooler\.|inv_freq$")
"""Parts of published files that are no part of the vision model, or are for its training alone."""


def is_of_transformers(tensors: Collection[str]) -> bool:
    """Whether names are those of transformers."""
    return any("embeddings.patch_embedding" in name or "downsample_layers." in name for name in tensors)


def from_transformers(tensors: Mapping[str, Tensor], *, wanted: Collection[str], where: str) -> dict[str, Tensor]:
    """The tensors under timm's names; ``wanted`` are those of the network that they are for.

    Names that no rule knows stay, so that strict loading tells them.

    Raises:
        CheckpointError: biases that the network has no place for are not zero.
    """
    plain: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if DROPPED.search(name):
            continue
        for pattern, new in RULES:
            name = pattern.sub(new, name)
        plain[name] = value
    for found in [name for name in plain if re.search(r"\.attention\.q_proj\.weight$", name)]:
        _fuse(plain, found.removesuffix("attention.q_proj.weight"), wanted, where)
    _rename_scales(plain, wanted)
    _rename_gates(plain, wanted)
    _split_pooling(plain)
    if "pos_embed" in plain:
        _fit_table(plain, wanted)
    if "patch_embed.proj.weight" in plain and plain["patch_embed.proj.weight"].ndim == 2:  # NaFlex in both libraries
        plain["embeds.proj.weight"] = plain.pop("patch_embed.proj.weight")
        plain["embeds.proj.bias"] = plain.pop("patch_embed.proj.bias")
        count, width = plain["pos_embed"].shape[1:]
        side = round(count**0.5)
        plain["embeds.pos_embed"] = plain.pop("pos_embed").reshape(1, side, side, width)
    return plain


def _fuse(plain: dict[str, Tensor], block: str, wanted: Collection[str], where: str) -> None:
    weights = [plain.pop(f"{block}attention.{x}_proj.weight") for x in "qkv"]
    plain[f"{block}attn.qkv.weight"] = torch.cat(weights)
    biases = {x: plain.pop(f"{block}attention.{x}_proj.bias", None) for x in "qkv"}
    if f"{block}attn.qkv.bias" in wanted:
        zeros = torch.zeros_like(weights[0][:, 0])
        plain[f"{block}attn.qkv.bias"] = torch.cat([zeros if bias is None else bias for bias in biases.values()])
        return
    for x, bias in biases.items():
        if bias is None:
            continue
        if f"{block}attn.{x}_bias" in wanted:
            plain[f"{block}attn.{x}_bias"] = bias
        elif bias.any():
            raise CheckpointError(
                f"{where}: has a bias '{block}attn.{x}_bias' that is not zero, for which the network has no place; "
                "take its twin whose name ends in _qkvb"
            )


def _rename_scales(plain: dict[str, Tensor], wanted: Collection[str]) -> None:
    for name in [name for name in plain if ".layer_scale" in name]:
        new = re.sub(r"layer_scale([12])\.lambda1", r"ls\1.gamma", name)
        plain[new if new in wanted else re.sub(r"ls([12])\.gamma", r"gamma_\1", new)] = plain.pop(name)


def _rename_gates(plain: dict[str, Tensor], wanted: Collection[str]) -> None:
    """up/gate/down and weights_in/weights_out to fc1 and fc2, packed or apart as the network has them."""
    for name in [name for name in plain if re.search(r"\.mlp\.(down_proj|weights_out)\.", name)]:
        plain[re.sub(r"down_proj|weights_out", "fc2", name)] = plain.pop(name)
    for name in [name for name in plain if ".mlp.weights_in." in name]:
        plain[name.replace("weights_in", "fc1")] = plain.pop(name)
    for name in [name for name in plain if ".mlp.up_proj." in name]:
        gate = name.replace("up_proj", "gate_proj")
        packed = name.replace("up_proj", "fc1")
        if gate not in plain:
            plain[packed] = plain.pop(name)
        elif packed in wanted:
            plain[packed] = torch.cat([plain.pop(gate), plain.pop(name)])
        else:
            plain[name.replace("up_proj", "fc1_x")] = plain.pop(name)
            plain[name.replace("up_proj", "fc1_g")] = plain.pop(gate)


def _split_pooling(plain: dict[str, Tensor]) -> None:
    for kind in ("weight", "bias"):
        joined = plain.pop(f"head.attention.in_proj_{kind}", None)
        if joined is not None:
            third = len(joined) // 3
            plain[f"attn_pool.q.{kind}"], plain[f"attn_pool.kv.{kind}"] = joined[:third], joined[third:]


def _fit_table(plain: dict[str, Tensor], wanted: Collection[str]) -> None:
    table = plain["pos_embed"]
    table = table[None] if table.ndim == 2 else table
    if "reg_token" in wanted and "cls_token" in plain and "pos_embed" in wanted:
        plain["cls_token"], table = plain["cls_token"] + table[:, :1], table[:, 1:]
    plain["pos_embed"] = table
