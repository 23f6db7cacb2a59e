"""FLUX.2's autoencoder as a teacher: its patchified, normalised latents as tokens (extra ``peers``).

z = (mode patchified 2x2, ordered c·4 + i·2 + j, minus running mean) / sqrt(running variance + eps): the space in which
FLUX.2's transformer works, 128 channels at stride 16. The arithmetic after the encoder is float32.
"""

from importlib.metadata import version
from typing import Any

from .backbones import weights_hash
from .latent_norm import whiten
from .patch import patchify
from .registry import part
from .resize import SizeError
from .shapes import Image
from .slots import TeacherConfig, TeacherOutput
from .teacher_spec import TeacherSpec
from .teachers import Teacher


class Flux2Latents(Teacher):
    """Normalised FLUX.2 latents ``[b, h*w, 128]`` of images in [0, 1] whose sides divide by 16."""

    def __init__(self, vae: Any) -> None:
        super().__init__("teacher/flux2_latents")
        self.vae = vae.eval().requires_grad_(False)
        self.spec = TeacherSpec(
            library="diffusers",
            version=version("diffusers"),
            model="AutoencoderKLFlux2, normalised patchified mode",
            weights=weights_hash(self.vae.state_dict()),
            licence="of the weights: see black-forest-labs/FLUX.2-dev",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            patch=16,
            features=128,
        )

    def describe(self, images: Image) -> TeacherOutput:
        height, width = images.shape[2:]
        _check_size(height, width)
        mode = self.vae.encode(2 * images - 1, return_dict=False)[0].mode()
        bn = self.vae.bn
        z = whiten(patchify(mode.float(), 2), bn.running_mean, bn.running_var, eps=self.vae.config.batch_norm_eps)
        return TeacherOutput(patches=z.flatten(2).transpose(1, 2), grid=(z.shape[2], z.shape[3]))


def _check_size(height: int, width: int) -> None:
    if height % 16 or width % 16:
        raise SizeError(f"image sides must be divisible by 16, got {height}x{width}")


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

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        _check_size(*size)
        return size[0] // 16, size[1] // 16

    def build(self) -> Flux2Latents:
        try:
            from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
        except ImportError as error:
            raise ImportError("teacher/flux2_latents: needs diffusers; pip install 'latelier[peers]'") from error
        if self.weights is None:
            return Flux2Latents(AutoencoderKLFlux2())
        return Flux2Latents(AutoencoderKLFlux2.from_pretrained(self.weights, subfolder=self.subfolder or None))
