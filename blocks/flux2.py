"""FLUX.2's autoencoder as a teacher: its patchified, normalised latents as tokens (extra ``peers``).

z = (mode patchified 2x2, ordered c·4 + i·2 + j, minus running mean) / sqrt(running variance + eps): the space in which
FLUX.2's transformer works, 128 channels at stride 16. The arithmetic after the encoder is float32.
"""

from typing import Any

import torch
from torch import nn

from .latent_norm import whiten
from .patch import patchify
from .registry import part
from .shapes import Image
from .slots import TeacherConfig, TeacherOutput


class Flux2Latents(nn.Module):
    """Normalised FLUX.2 latents ``[b, h*w, 128]`` of images in [0, 1] whose sides divide by 16."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Image) -> TeacherOutput:
        height, width = images.shape[2:]
        if height % 16 or width % 16:
            raise ValueError(f"teacher/flux2_latents: image sides must be divisible by 16, got {height}x{width}")
        mode = self.vae.encode(2 * images - 1, return_dict=False)[0].mode()
        bn = self.vae.bn
        z = whiten(patchify(mode.float(), 2), bn.running_mean, bn.running_var, eps=self.vae.config.batch_norm_eps)
        return TeacherOutput(patches=z.flatten(2).transpose(1, 2), grid=(z.shape[2], z.shape[3]))


@part("teacher/flux2_latents")
class Flux2LatentsConfig(TeacherConfig):
    """FLUX.2's normalised latents as tokens, 128 channels at stride 16.

    ``weights`` is a hub id or local folder of an ``AutoencoderKLFlux2``; None builds it with random weights.
    """

    weights: str | None = "black-forest-labs/FLUX.2-dev"
    subfolder: str = "vae"

    @property
    def features(self) -> int:
        return 128

    def build(self) -> Flux2Latents:
        try:
            from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
        except ImportError as error:
            raise ImportError("teacher/flux2_latents: needs diffusers; pip install 'latelier[peers]'") from error
        if self.weights is None:
            return Flux2Latents(AutoencoderKLFlux2())
        return Flux2Latents(AutoencoderKLFlux2.from_pretrained(self.weights, subfolder=self.subfolder or None))
