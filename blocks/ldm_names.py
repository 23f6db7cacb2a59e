"""Tensors of autoencoders in the layout of latent diffusion under diffusers' names, and diffusers' own older names.

``encoder.down.i.block.j`` becomes ``encoder.down_blocks.i.resnets.j``; a decoder's ``up`` counts from fine to coarse
there and from coarse to fine in diffusers. Attention is stored as 1x1 convolutions there and as linear maps here. Older
files of diffusers have ``query``, ``key``, ``value`` and ``proj_attn``. VA-VAE's training checkpoints also hold the
teacher, its projection and the discriminator, which are no part of the autoencoder.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from .weights import CheckpointError

TRAINING = re.compile(r"^(foundation_model|linear_proj|loss|model_ema|discriminator)\.")
"""What training checkpoints hold beside the autoencoder."""

WRAPPED = re.compile(r"^(first_stage_model|vae)\.")

RULES = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
        (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
        (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
        (r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
        (r"^encoder\.down\.(\d+)\.attn\.", r"encoder.down_blocks.\1.attentions."),
        (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
        (r"^decoder\.up\.(\d+)\.block\.", r"decoder.up_blocks.\1.resnets."),
        (r"^decoder\.up\.(\d+)\.attn\.", r"decoder.up_blocks.\1.attentions."),
        (r"^decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.\1.upsamplers.0."),
        (r"\.nin_shortcut\.", ".conv_shortcut."),
        (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
        (r"(\.attentions\.\d+)\.norm\.", r"\1.group_norm."),
        (r"(\.attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
        (r"(\.attentions\.\d+)\.(proj_out|proj_attn)\.", r"\1.to_out.0."),
        (r"(\.attentions\.\d+)\.query\.", r"\1.to_q."),
        (r"(\.attentions\.\d+)\.key\.", r"\1.to_k."),
        (r"(\.attentions\.\d+)\.value\.", r"\1.to_v."),
    )
)


def to_diffusers(tensors: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """The tensors of an autoencoder under diffusers' names; names that no rule knows stay.

    Raises:
        CheckpointError: there is no autoencoder among them.
    """
    named: dict[str, Tensor] = {}
    names = [name for name in tensors if WRAPPED.match(name)] or list(tensors)
    for name in names:
        plain = WRAPPED.sub("", name)
        if not TRAINING.match(plain):
            named[plain] = tensors[name]
    if not any(name.startswith(("encoder.", "decoder.")) for name in named):
        raise CheckpointError(f"{where}: holds no tensors of an autoencoder, 'encoder.' and 'decoder.'")
    levels = {int(found[1]) for name in named if (found := re.match(r"decoder\.up\.(\d+)\.", name))}
    renamed = {}
    for name, value in named.items():
        is_ldm = name.startswith("decoder.up.")
        for pattern, new in RULES:
            name = pattern.sub(new, name)
        if is_ldm:
            name = re.sub(r"up_blocks\.(\d+)", lambda found: f"up_blocks.{max(levels) - int(found[1])}", name)
        if re.search(r"\.attentions\.\d+\.to_(q|k|v|out\.0)\.weight$", name) and value.ndim == 4:
            value = value[:, :, 0, 0]
        renamed[name] = value
    return renamed
