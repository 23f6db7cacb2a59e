"""Flat configs that others published, and ours as flat configs.

Each published config.json is a part, so that an unknown field is told by its name.
"""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, Literal

from ..blocks.dit import DiTBlockConfig
from ..blocks.fcdm import FCDMBlockConfig
from ..blocks.heads import DINOTokenHeadConfig
from ..blocks.latent_norm import NoNormConfig, WhiteningConfig
from ..blocks.posterior import PointPosteriorConfig, VPPosteriorConfig
from ..blocks.registry import Part, PartError, differences, part
from ..blocks.stack import SkipDecoderConfig, StackEncoderConfig
from ..blocks.vp import VPScheduleConfig
from .diffae import DiffAEConfig, DinacAEConfig


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
        depth = {} if encoder is None else {"encoder_depth": only(encoder, StackEncoderConfig, "encoder").depth}
        return cls(
            **_shared_fields(config),
            **depth,
            bottleneck_norm_mode=only(posterior, (VPPosteriorConfig, PointPosteriorConfig), "posterior").mean_norm,
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
        encoder = only(config.encoder, StackEncoderConfig, "encoder")
        head = only(getattr(config, "token_head", None), DINOTokenHeadConfig, "token_head")
        return cls(
            **_shared_fields(config),
            encoder_depth=encoder.depth,
            encoder_mlp_type=only(encoder.block, DiTBlockConfig, "encoder.block").activation,
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


def only(value: Any, known: Any, where: str) -> Any:
    """The value, where it is of a class that the published layout has."""
    if not isinstance(value, known):
        classes = known if isinstance(known, tuple) else (known,)
        got = repr(value.kind) if isinstance(value, Part) else repr(value)
        kinds = " or ".join(repr(cls.kind) for cls in classes)
        raise PartError(f"config.{where}", f"the published layout has {kinds} there, got {got}")
    return value


def _shared_fields(config: DiffAEConfig) -> dict[str, Any]:
    """What both layouts say in the same words."""
    decoder = only(config.decoder, SkipDecoderConfig, "decoder")
    block = only(decoder.block, FCDMBlockConfig, "decoder.block")
    posterior = only(config.posterior, (VPPosteriorConfig, PointPosteriorConfig), "posterior")
    schedule = only(config.schedule, VPScheduleConfig, "schedule")
    norm = only(config.latent_norm, (WhiteningConfig, NoNormConfig), "latent_norm")
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
