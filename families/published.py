"""Checkpoints that others published: their flat configs and tensor names, translated to ours and back.

Two layouts are known. That of the package fcdm_diffae (semdisdiffae, semdisdiffae_p32, semdisdiffae_p32_v2) and its
relatives full_capacitor and capacitor_decoder has our tensor names, so that reading it is renaming older buffers and
reshaping the patch embedding, which some versions may store as a 1x1 convolution. That of dinac_ae and dinac_ae_d2
wraps its norms, keeps one table of RoPE periods for all blocks, and stores attention projections a second time under
short names, its aliases.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..blocks.registry import PartError, decode, encode
from ..blocks.slots import FamilyConfig
from ..blocks.stack import StackEncoderConfig
from .dc_ae_layout import is_dc_ae, read_dc_ae
from .diffae import DiffAE, DinacAEConfig
from .files import CONFIG, WEIGHTS, CheckpointError, write_atomically, write_tensors
from .flat import FlatConfig, FlatDiffAE, FlatDinacAE, flatten, only

STATISTICS = ("latent_norm_running_mean", "latent_norm_running_var")
OLD_NAMES = {"running_mean": "latent_norm_running_mean", "running_var": "latent_norm_running_var"}
"""Names that the whitening statistics may have had before the first release."""

Tensors = dict[str, Tensor]


# --- names of tensors -----------------------------------------------------------------------------------------------

HEAD = "dino_token_alignment_head"
NORMS = ("attn_norm1", "attn_norm2", "mlp_norm1", "mlp_norm2")


def _dinac_names(depth: int) -> Iterator[tuple[str, str, str]]:
    """Yield (published name, ours, alias or nothing) of encoder and head, where the names differ."""
    for i in range(depth):
        yield from _block_names(f"encoder.blocks.{i}", f"encoder.blocks.{i}")
    yield f"{HEAD}.initial_class_token", "token_head.class_token", ""
    for name in ("register_tokens", "in_proj.weight", "in_proj.bias"):
        yield f"{HEAD}.{name}", f"token_head.{name}", ""
    yield from _block_names(f"{HEAD}.block", "token_head.block")
    theirs, ours = f"{HEAD}.class_readout", "token_head.readout"
    for name in ("query_norm", "context_norm", "mlp_norm"):
        yield f"{theirs}.{name}._impl.weight", f"{ours}.{name}.weight", ""
    yield f"{theirs}.q_proj.weight", f"{ours}.attn.q_proj.weight", ""
    yield f"{theirs}.attn_core.kv_proj.weight", f"{ours}.attn.kv_proj.weight", f"{theirs}.kv_proj.weight"
    yield f"{theirs}.attn_core.out_proj.weight", f"{ours}.attn.proj_out.weight", f"{theirs}.out_proj.weight"
    for name in ("q_norm", "k_norm"):
        yield f"{theirs}.attn_core.{name}_heads._impl.weight", f"{ours}.attn.{name}.weight", ""
    for name in ("up", "down"):
        yield f"{theirs}.mlp.{name}.weight", f"{ours}.mlp.{name}.weight", ""


def _block_names(theirs: str, ours: str) -> Iterator[tuple[str, str, str]]:
    for name in NORMS:
        yield f"{theirs}.{name}._impl.weight", f"{ours}.{name}.weight", ""
    for name in ("q_norm", "k_norm"):
        yield f"{theirs}.attn_core.{name}._impl.weight", f"{ours}.attn.{name}.weight", ""
    for name in ("qkv", "proj_out"):
        yield f"{theirs}.attn_core.{name}.weight", f"{ours}.attn.{name}.weight", f"{theirs}.{name}.weight"
    for name in ("up", "down"):
        yield f"{theirs}.mlp.{name}.weight", f"{ours}.mlp.{name}.weight", ""


def _period_names(depth: int) -> dict[str, list[str]]:
    """A table of periods in the published layout, and the blocks of ours that each have one."""
    return {
        "encoder.rope.periods": [f"encoder.blocks.{i}.attn.rope.periods" for i in range(depth)],
        f"{HEAD}._axial_rope2d.periods": ["token_head.block.attn.rope.periods"],
    }


# --- reading and writing --------------------------------------------------------------------------------------------


def read_published(flat: dict[str, Any], tensors: Tensors) -> tuple[FamilyConfig, Tensors, Mapping[str, str]]:
    """Translate a published config and its tensors; return with them the published names of those that we renamed.

    DC-AE's layouts are told by their config, and read in ``dc_ae_layout.py``.
    A file of fcdm_diffae without encoder tensors is a decoder for another model's latents; there the presence of
    whitening statistics decides whether its input is dewhitened. The patch embedding is accepted in both shapes, and
    aliases present or absent.

    Raises:
        PartError: a field is unknown or of a wrong type; the message names it.
        CheckpointError: an alias holds other values than its original.
    """
    if is_dc_ae(flat):
        return read_dc_ae(flat, tensors)
    has_head = any(name.startswith(f"{HEAD}.") for name in tensors)
    dinac = has_head or any(name == "encoder_mlp_type" or name.startswith("class_head_") for name in flat)
    layout = decode({"kind": (FlatDinacAE if dinac else FlatDiffAE).kind, **flat}, FlatConfig)
    assert isinstance(layout, FlatDinacAE | FlatDiffAE)
    old_names = {old: new for old, new in OLD_NAMES.items() if new not in tensors}  # with both, one is refused as extra
    named = {old_names.get(name, name): tensor for name, tensor in tensors.items()}
    for name in ("encoder.patchify.proj.weight", "decoder.patchify.proj.weight"):
        weight = named.get(name)
        if weight is not None and weight.shape[1:] == (layout.in_channels * layout.patch_size**2, 1, 1):
            named[name] = weight.reshape(-1, layout.in_channels, layout.patch_size, layout.patch_size)
    has_encoder = any(name.startswith("encoder.") for name in named)
    has_statistics = has_encoder or any(name in named for name in STATISTICS)
    config = layout.ours(has_encoder=has_encoder, has_statistics=has_statistics)
    names = _from_dinac(named, layout.encoder_depth) if isinstance(layout, FlatDinacAE) else {}
    return config, named, names


def _from_dinac(named: Tensors, depth: int) -> dict[str, str]:
    """Rename in place, drop aliases, and return ``{ours: theirs}``."""
    names = {}
    for theirs, ours, alias in _dinac_names(depth):
        names[ours] = theirs
        if alias in named and theirs in named and not _same(named[alias], named[theirs]):
            raise CheckpointError(
                f"{alias}: must equal {theirs!r}, whose alias it is, and does not; "
                "one of the two was changed: drop the alias to keep the original"
            )
        named.pop(alias, None)
        if theirs in named:
            named[ours] = named.pop(theirs)
    for theirs, blocks in _period_names(depth).items():
        names |= dict.fromkeys(blocks, theirs)
        if theirs in named:
            periods = named.pop(theirs)
            named |= dict.fromkeys(blocks, periods)
    return names


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def published_tensors(model: DiffAE) -> Tensors:
    """The tensors of a model as its published layout has them: float32, with aliases."""
    tensors = {name: value.detach().cpu().float() for name, value in model.state_dict().items()}
    if not isinstance(model.config, DinacAEConfig):
        return tensors
    depth = only(model.config.encoder, StackEncoderConfig, "encoder").depth
    for theirs, ours, alias in _dinac_names(depth):
        tensors[theirs] = tensors.pop(ours)
        if alias:
            tensors[alias] = tensors[theirs].clone()
    for theirs, blocks in _period_names(depth).items():
        tables = [tensors.pop(ours) for ours in blocks]
        if not all(torch.equal(table, tables[0]) for table in tables):
            raise PartError(
                "model", f"blocks of its encoder differ in RoPE periods, where the layout has one {theirs!r}"
            )
        tensors[theirs] = tables[0]
    return tensors


def export_published(model: DiffAE, folder: str | Path) -> Path:
    """Write a model as the folder that its published package reads, and return the folder.

    Raises:
        PartError: the published layout has no words for the model; nothing is written then.
    """
    folder = Path(folder)
    flat = encode(flatten(model.config))
    flat.pop("kind")
    write_tensors(folder / WEIGHTS, published_tensors(model), {"format": "pt"})
    write_atomically(folder / CONFIG, json.dumps(flat, indent=2) + "\n")
    return folder
