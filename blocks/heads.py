"""Alignment heads: latents to what a teacher says of the same image.

The noisy-latent head follows SemDisDiffAE (technical report, sec. 4.3; after Send-VAE, arXiv 2601.05823): latents are
noised along a linear path, z·(1 - tau) + eps·tau, and the head is told tau. Its inside is not published; ours is a 1x1
projection, transformer blocks with AdaLN on tau, and an RMSNorm without weights.
"""

from einops import rearrange
from torch import nn

from .dit import DiTBlockConfig
from .registry import part
from .shapes import Latent, Times, Tokens
from .slots import BlockConfig, HeadConfig
from .time import TimeEmbedding


class NoisyLatentHead(nn.Module):
    """Teacher tokens ``[b, h*w, features]`` from noised latents and their noise level."""

    def __init__(self, *, latent: int, features: int, width: int, block: BlockConfig, depth: int) -> None:
        super().__init__()
        self.in_proj = nn.Conv2d(latent, width, 1)
        self.time_embed = TimeEmbedding(width)
        self.blocks = nn.ModuleList(block.build(width, cond=width) for _ in range(depth))
        self.out_proj = nn.Conv2d(width, features, 1) if width != features else nn.Identity()
        self.norm = nn.RMSNorm(features, eps=1e-6, elementwise_affine=False)

    def forward(self, latent: Latent, tau: Times) -> Tokens:
        cond = self.time_embed(tau)
        x = self.in_proj(latent.to(self.in_proj.weight.dtype))
        for block in self.blocks:
            x = block(x, cond)
        return self.norm(rearrange(self.out_proj(x), "b f h w -> b (h w) f"))


@part("head/noisy_latent")
class NoisyLatentHeadConfig(HeadConfig):
    """Predicts teacher tokens from noised latents and their noise level.

    ``width`` None takes the teacher's; then there is no projection after the blocks.
    """

    width: int | None = None
    block: BlockConfig = DiTBlockConfig()
    depth: int = 1

    def __post_init__(self) -> None:
        if self.width is not None and self.width < 1:
            raise ValueError(f"width: must be at least 1, or None for the teacher's, got {self.width}")
        if self.depth < 0:
            raise ValueError(f"depth: must not be negative, got {self.depth}")

    def build(self, *, latent: int, features: int) -> NoisyLatentHead:
        width = self.width or features
        return NoisyLatentHead(latent=latent, features=features, width=width, block=self.block, depth=self.depth)
