"""Checkpoints that others published: their flat configs and tensor names, translated to ours and back.

Two layouts are known. That of the package fcdm_diffae (semdisdiffae, semdisdiffae_p32, semdisdiffae_p32_v2) and its
relatives full_capacitor and capacitor_decoder has our tensor names, so that reading it is renaming older buffers and
reshaping the patch embedding, which some versions may store as a 1x1 convolution. That of dinac_ae and dinac_ae_d2
wraps its norms, keeps one table of RoPE periods for all blocks, and stores attention projections a second time under
short names, its aliases.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..blocks.dit import DiTBlockConfig
from ..blocks.fcdm import FCDMBlockConfig
from ..blocks.heads import DINOTokenHeadConfig
from ..blocks.latent_norm import NoNormConfig, WhiteningConfig
from ..blocks.posterior import PointPosteriorConfig, VPPosteriorConfig
from ..blocks.registry import Part, PartError, decode, differences, encode, part
from ..blocks.stack import SkipDecoderConfig, StackEncoderConfig
from ..blocks.vp import VPScheduleConfig
from .diffae import DiffAE, DiffAEConfig, DinacAEConfig
from .files import CONFIG, WEIGHTS, CheckpointError, write_atomically, write_tensors

STATISTICS = ("latent_norm_running_mean", "latent_norm_running_var")
OLD_NAMES = {"running_mean": "latent_norm_running_mean", "running_var": "latent_norm_running_var"}
"""Names that the whitening statistics may have had before the first release."""

Tensors = dict[str, Tensor]


class FlatConfig(Part, ABC):
    """A published config.json: all of its fields, with the defaults for those that a file leaves out."""

    slot: ClassVar[str] = "published"

    @classmethod
    @abstractmethod
    def of(cls, config: DiffAEConfig) -> "FlatConfig":
        """The nearest published config to one of ours; :func:`flatten` checks that nothing is lost."""

    @abstractmethod
    def ours(self, *, has_encoder: bool, has_statistics: bool) -> DiffAEConfig:
        """The same model as our config."""


@part("published/fcdm_diffae")
class FlatDiffAE(FlatConfig):
    """The config of the package fcdm_diffae."""

    in_channels: int = 3
    patch_size: int = 16
    model_dim: int = 896
    encoder_depth: int = 4
    decoder_depth: int = 8
    decoder_start_blocks: int = 2
    decoder_end_blocks: int = 2
    bottleneck_dim: int = 128
    mlp_ratio: float = 4.0
    depthwise_kernel_size: int = 7
    adaln_low_rank_rank: int = 128
    bottleneck_posterior_kind: Literal["diagonal_gaussian", "deterministic"] = "diagonal_gaussian"
    bottleneck_norm_mode: Literal["disabled", "channel_wise"] = "disabled"
    logsnr_min: float = -10.0
    logsnr_max: float = 10.0
    pixel_noise_std: float = 0.558
    latent_running_stats_eps: float = 1e-4
    bottleneck_patchify_mode: Literal["off", "patch_2x2"] = "off"

    def __post_init__(self) -> None:
        _check_depth(self)

    @classmethod
    def of(cls, config: DiffAEConfig) -> "FlatDiffAE":
        encoder, posterior = config.encoder, config.posterior
        depth = {} if encoder is None else {"encoder_depth": _only(encoder, StackEncoderConfig, "encoder").depth}
        return cls(
            **_shared_fields(config),
            **depth,
            bottleneck_norm_mode=_only(posterior, (VPPosteriorConfig, PointPosteriorConfig), "posterior").mean_norm,
            bottleneck_patchify_mode="off" if config.latent_patch == 1 else "patch_2x2",
        )

    def ours(self, *, has_encoder: bool, has_statistics: bool) -> DiffAEConfig:
        block = FCDMBlockConfig(kernel=self.depthwise_kernel_size, expand=self.mlp_ratio)
        return DiffAEConfig(
            **_shared_parts(self),
            latent_patch=2 if self.bottleneck_patchify_mode == "patch_2x2" else 1,
            encoder=StackEncoderConfig(block=block, depth=self.encoder_depth) if has_encoder else None,
            latent_norm=WhiteningConfig(eps=self.latent_running_stats_eps) if has_statistics else NoNormConfig(),
        )


@part("published/dinac_ae")
class FlatDinacAE(FlatConfig):
    """The config of the package dinac_ae; its encoder has heads of 64."""

    in_channels: int = 3
    patch_size: int = 16
    model_dim: int = 896
    encoder_depth: int = 6
    decoder_depth: int = 8
    decoder_start_blocks: int = 2
    decoder_end_blocks: int = 2
    bottleneck_dim: int = 128
    mlp_ratio: float = 4.0
    encoder_mlp_type: Literal["gelu", "silu", "relu"] = "gelu"
    depthwise_kernel_size: int = 7
    adaln_low_rank_rank: int = 128
    bottleneck_posterior_kind: Literal["diagonal_gaussian", "deterministic"] = "diagonal_gaussian"
    bottleneck_norm_mode: Literal["disabled"] = "disabled"
    logsnr_min: float = -10.0
    logsnr_max: float = 10.0
    pixel_noise_std: float = 0.558
    latent_running_stats_eps: float = 1e-4
    class_head_feature_dim: int = 768
    class_head_model_dim: int = 768
    class_head_head_dim: int = 64
    class_head_mlp_ratio: float = 4.0
    class_head_mlp_type: Literal["gelu", "silu", "relu"] = "gelu"
    class_head_register_token_count: int = 4

    def __post_init__(self) -> None:
        _check_depth(self)
        if self.class_head_feature_dim != self.class_head_model_dim:
            raise ValueError(
                f"class_head_model_dim: must equal class_head_feature_dim, got {self.class_head_model_dim} and "
                f"{self.class_head_feature_dim}"
            )
        if self.class_head_register_token_count != 4:
            raise ValueError(
                f"class_head_register_token_count: must be 4 in this layout, got {self.class_head_register_token_count}"
            )

    @classmethod
    def of(cls, config: DiffAEConfig) -> "FlatDinacAE":
        encoder = _only(config.encoder, StackEncoderConfig, "encoder")
        head = _only(getattr(config, "token_head", None), DINOTokenHeadConfig, "token_head")
        return cls(
            **_shared_fields(config),
            encoder_depth=encoder.depth,
            encoder_mlp_type=_only(encoder.block, DiTBlockConfig, "encoder.block").activation,
            class_head_feature_dim=head.features,
            class_head_model_dim=head.width or head.features,
            class_head_head_dim=head.head_width,
            class_head_mlp_ratio=head.expand,
            class_head_mlp_type=head.activation,
            class_head_register_token_count=head.registers,
        )

    def ours(self, *, has_encoder: bool = True, has_statistics: bool = True) -> DinacAEConfig:
        block = DiTBlockConfig(expand=self.mlp_ratio, activation=self.encoder_mlp_type)
        return DinacAEConfig(
            **_shared_parts(self),
            encoder=StackEncoderConfig(block=block, depth=self.encoder_depth),
            latent_norm=WhiteningConfig(eps=self.latent_running_stats_eps),
            token_head=DINOTokenHeadConfig(
                features=self.class_head_feature_dim,
                head_width=self.class_head_head_dim,
                expand=self.class_head_mlp_ratio,
                activation=self.class_head_mlp_type,
                registers=self.class_head_register_token_count,
            ),
        )


LAYOUTS: dict[type[DiffAEConfig], type[FlatConfig]] = {DiffAEConfig: FlatDiffAE, DinacAEConfig: FlatDinacAE}


def flatten(config: DiffAEConfig) -> FlatConfig:
    """The published config of a model.

    Raises:
        PartError: the published layout cannot say what the config says; the message names the first such field.
    """
    if type(config) not in LAYOUTS:
        raise PartError("config", f"nobody has published a layout for {config.kind!r}; save_pretrained keeps it")
    config = _named_once(config)
    flat = LAYOUTS[type(config)].of(config)
    again = flat.ours(has_encoder=config.encoder is not None, has_statistics=config.latent_norm != NoNormConfig())
    lost = differences(config, again)
    if lost:
        where, _, what = lost[0].partition(": ")
        raise PartError(where, f"is {what} as the published layout has it; save_pretrained keeps it")
    return flat


def _named_once(config: DiffAEConfig) -> DiffAEConfig:
    """The same model, without the width of a token head that is what None would give."""
    head = getattr(config, "token_head", None)
    if isinstance(config, DinacAEConfig) and isinstance(head, DINOTokenHeadConfig) and head.width == head.features:
        return replace(config, token_head=replace(head, width=None))
    return config


def _only(value: Any, known: Any, where: str) -> Any:
    """The value, where it is of a class that the published layout has."""
    if not isinstance(value, known):
        classes = known if isinstance(known, tuple) else (known,)
        got = repr(value.kind) if isinstance(value, Part) else repr(value)
        kinds = " or ".join(repr(cls.kind) for cls in classes)
        raise PartError(f"config.{where}", f"the published layout has {kinds} there, got {got}")
    return value


def _shared_fields(config: DiffAEConfig) -> dict[str, Any]:
    """What both layouts say in the same words."""
    decoder = _only(config.decoder, SkipDecoderConfig, "decoder")
    block = _only(decoder.block, FCDMBlockConfig, "decoder.block")
    posterior = _only(config.posterior, (VPPosteriorConfig, PointPosteriorConfig), "posterior")
    schedule = _only(config.schedule, VPScheduleConfig, "schedule")
    norm = _only(config.latent_norm, (WhiteningConfig, NoNormConfig), "latent_norm")
    return {
        "in_channels": config.channels,
        "patch_size": config.patch,
        "model_dim": config.width,
        "decoder_depth": decoder.start + decoder.middle + decoder.end,
        "decoder_start_blocks": decoder.start,
        "decoder_end_blocks": decoder.end,
        "bottleneck_dim": config.latent,
        "mlp_ratio": block.expand,
        "depthwise_kernel_size": block.kernel,
        "adaln_low_rank_rank": decoder.rank,
        "bottleneck_posterior_kind": POSTERIORS[type(posterior)],
        "logsnr_min": schedule.logsnr_min,
        "logsnr_max": schedule.logsnr_max,
        "pixel_noise_std": schedule.noise_std,
    } | ({"latent_running_stats_eps": norm.eps} if isinstance(norm, WhiteningConfig) else {})


def _shared_parts(flat: FlatDiffAE | FlatDinacAE) -> dict[str, Any]:
    """The same words as parts."""
    posterior = {name: cls for cls, name in POSTERIORS.items()}[flat.bottleneck_posterior_kind]
    return {
        "channels": flat.in_channels,
        "patch": flat.patch_size,
        "width": flat.model_dim,
        "latent": flat.bottleneck_dim,
        "decoder": SkipDecoderConfig(
            block=FCDMBlockConfig(kernel=flat.depthwise_kernel_size, expand=flat.mlp_ratio),
            start=flat.decoder_start_blocks,
            middle=flat.decoder_depth - flat.decoder_start_blocks - flat.decoder_end_blocks,
            end=flat.decoder_end_blocks,
            rank=flat.adaln_low_rank_rank,
        ),
        "posterior": posterior(mean_norm=flat.bottleneck_norm_mode),
        "schedule": VPScheduleConfig(
            logsnr_max=flat.logsnr_max, logsnr_min=flat.logsnr_min, noise_std=flat.pixel_noise_std
        ),
    }


POSTERIORS: dict[type[VPPosteriorConfig | PointPosteriorConfig], str] = {
    VPPosteriorConfig: "diagonal_gaussian",
    PointPosteriorConfig: "deterministic",
}


def _check_depth(flat: FlatDiffAE | FlatDinacAE) -> None:
    if flat.decoder_depth < flat.decoder_start_blocks + flat.decoder_end_blocks:
        raise ValueError(
            f"decoder_depth: must be at least decoder_start_blocks + decoder_end_blocks, got {flat.decoder_depth} "
            f"with {flat.decoder_start_blocks} and {flat.decoder_end_blocks}"
        )


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


def read_published(flat: dict[str, Any], tensors: Tensors) -> tuple[DiffAEConfig, Tensors, Mapping[str, str]]:
    """Translate a published config and its tensors; return with them the published names of those that we renamed.

    A file of fcdm_diffae without encoder tensors is a decoder for another model's latents; there the presence of
    whitening statistics decides whether its input is dewhitened. The patch embedding is accepted in both shapes, and
    aliases present or absent.

    Raises:
        PartError: a field is unknown or of a wrong type; the message names it.
        CheckpointError: an alias holds other values than its original.
    """
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
    depth = _only(model.config.encoder, StackEncoderConfig, "encoder").depth
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
