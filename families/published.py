"""Checkpoints that others published: their flat configs and tensor names, translated to ours.

Known layout: that of the package fcdm_diffae (semdisdiffae, semdisdiffae_p32, semdisdiffae_p32_v2) and its relatives
full_capacitor and capacitor_decoder. Our tensors carry the published names, so that translation is renaming older
buffers and reshaping the patch embedding, which some versions may store as a 1x1 convolution.
"""

from typing import Any, Literal

from torch import Tensor

from ..blocks.fcdm import FCDMBlockConfig
from ..blocks.latent_norm import NoNormConfig, WhiteningConfig
from ..blocks.posterior import PointPosteriorConfig, VPPosteriorConfig
from ..blocks.registry import Part, decode, part
from ..blocks.stack import SkipDecoderConfig, StackEncoderConfig
from ..blocks.vp import VPScheduleConfig
from .diffae import DiffAEConfig

STATISTICS = ("latent_norm_running_mean", "latent_norm_running_var")
OLD_NAMES = {"running_mean": "latent_norm_running_mean", "running_var": "latent_norm_running_var"}
"""Names that the whitening statistics may have had before the first release."""


@part("published/fcdm_diffae")
class FlatDiffAE(Part):
    """The published config.json: all of its fields, with the defaults for those that a file leaves out."""

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
        if self.decoder_depth < self.decoder_start_blocks + self.decoder_end_blocks:
            raise ValueError(
                f"decoder_depth: must be at least decoder_start_blocks + decoder_end_blocks, got {self.decoder_depth} "
                f"with {self.decoder_start_blocks} and {self.decoder_end_blocks}"
            )

    def ours(self, *, has_encoder: bool, has_statistics: bool) -> DiffAEConfig:
        """The same model as our config."""
        block = FCDMBlockConfig(kernel=self.depthwise_kernel_size, expand=self.mlp_ratio)
        posterior = VPPosteriorConfig if self.bottleneck_posterior_kind == "diagonal_gaussian" else PointPosteriorConfig
        return DiffAEConfig(
            channels=self.in_channels,
            patch=self.patch_size,
            width=self.model_dim,
            latent=self.bottleneck_dim,
            latent_patch=2 if self.bottleneck_patchify_mode == "patch_2x2" else 1,
            encoder=StackEncoderConfig(block=block, depth=self.encoder_depth) if has_encoder else None,
            decoder=SkipDecoderConfig(
                block=block,
                start=self.decoder_start_blocks,
                middle=self.decoder_depth - self.decoder_start_blocks - self.decoder_end_blocks,
                end=self.decoder_end_blocks,
                rank=self.adaln_low_rank_rank,
            ),
            posterior=posterior(mean_norm=self.bottleneck_norm_mode),
            latent_norm=WhiteningConfig(eps=self.latent_running_stats_eps) if has_statistics else NoNormConfig(),
            schedule=VPScheduleConfig(
                logsnr_max=self.logsnr_max, logsnr_min=self.logsnr_min, noise_std=self.pixel_noise_std
            ),
        )


def read_published(flat: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[DiffAEConfig, dict[str, Tensor]]:
    """Translate a published config and its tensors.

    A file without encoder tensors is a decoder for another model's latents; there the presence of whitening
    statistics decides whether its input is dewhitened. The patch embedding is accepted in both shapes.

    Raises:
        PartError: a field is unknown or of a wrong type; the message names it.
    """
    layout = decode({"kind": FlatDiffAE.kind, **flat}, FlatDiffAE)
    old_names = {old: new for old, new in OLD_NAMES.items() if new not in tensors}  # with both, one is refused as extra
    named = {old_names.get(name, name): tensor for name, tensor in tensors.items()}
    has_encoder = any(name.startswith("encoder.") for name in named)
    has_statistics = has_encoder or any(name in named for name in STATISTICS)
    for name in ("encoder.patchify.proj.weight", "decoder.patchify.proj.weight"):
        weight = named.get(name)
        if weight is not None and weight.shape[1:] == (layout.in_channels * layout.patch_size**2, 1, 1):
            named[name] = weight.reshape(-1, layout.in_channels, layout.patch_size, layout.patch_size)
    return layout.ours(has_encoder=has_encoder, has_statistics=has_statistics), named
