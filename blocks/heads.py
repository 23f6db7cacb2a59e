"""Alignment heads: latents to what a teacher says of the same image.

The token head of DINAC-AE reads clean raw latents and belongs to the model (inference package of
data-archetype/dinac_ae): a class token and registers join the latent's tokens, one transformer block mixes them, and a
class token is read out of registers and patches by cross-attention.

The noisy-latent head follows SemDisDiffAE (technical report, sec. 4.3; after Send-VAE, arXiv 2601.05823): latents are
noised along a linear path, z·(1 - tau) + eps·tau, and the head is told tau. Its inside is not published; ours is a 1x1
projection, transformer blocks with AdaLN on tau, and an RMSNorm without weights.
"""

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from .attention import attend
from .dit import DiTBlockConfig
from .mlp import MLP, Activation
from .norm import RMSNorm
from .registry import part
from .shapes import Latent, Times, Tokens
from .slots import BlockConfig, HeadConfig, TeacherOutput, TokenHeadConfig
from .time import TimeEmbedding


class NoisyLatentHead(nn.Module):
    """Teacher tokens ``[b, h*w, features]`` from noised latents and their noise level."""

    def __init__(self, *, latent: int, features: int, width: int, block: BlockConfig, depth: int) -> None:
        super().__init__()
        self.in_proj = nn.Conv2d(latent, width, 1)
        self.time_embed = TimeEmbedding(width)
        self.blocks = nn.ModuleList(block.build(width, cond=width) for _ in range(depth))
        self.out_proj = nn.Conv2d(width, features, 1) if width != features else nn.Identity()
        self.norm = RMSNorm(features, affine=False)

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


class ReadoutAttention(nn.Module):
    """Cross-attention of a few queries to a context; per-head RMSNorm on queries and keys, no positions."""

    def __init__(self, width: int, *, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.q_proj = nn.Linear(width, width, bias=False)
        self.kv_proj = nn.Linear(width, 2 * width, bias=False)
        self.proj_out = nn.Linear(width, width, bias=False)
        self.q_norm, self.k_norm = RMSNorm(head_width), RMSNorm(head_width)
        for linear in (self.q_proj, self.kv_proj, self.proj_out):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, query: Tokens, context: Float[Tensor, "b m c"]) -> Tokens:
        q = rearrange(self.q_proj(query), "b n (g d) -> b g n d", d=self.head_width)
        k, v = rearrange(self.kv_proj(context), "b m (two g d) -> two b g m d", two=2, d=self.head_width)
        y = attend(self.q_norm(q), self.k_norm(k), v)
        return self.proj_out(rearrange(y, "b g n d -> b n (g d)"))


class ClassReadout(nn.Module):
    """query + Attn(R(query), R(context)), then an MLP on a residual path of its own."""

    def __init__(self, width: int, *, head_width: int, expand: float, activation: Activation) -> None:
        super().__init__()
        self.query_norm, self.context_norm, self.mlp_norm = RMSNorm(width), RMSNorm(width), RMSNorm(width)
        self.attn = ReadoutAttention(width, head_width=head_width)
        self.mlp = MLP(width, int(width * expand), activation=activation)

    def forward(self, query: Tokens, context: Float[Tensor, "b m c"]) -> Tokens:
        tokens = query + self.attn(self.query_norm(query), self.context_norm(context))
        return tokens + self.mlp(self.mlp_norm(tokens))


class DINOTokenHead(nn.Module):
    """Raw latents to a teacher's patch and class tokens, each of root mean square 1."""

    def __init__(
        self,
        *,
        latent: int,
        features: int,
        width: int,
        head_width: int,
        expand: float,
        activation: Activation,
        registers: int,
    ) -> None:
        super().__init__()
        self.in_proj = nn.Conv2d(latent, width, 1)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, width))
        self.register_tokens = nn.Parameter(0.02 * torch.randn(registers, width))
        self.block = DiTBlockConfig(head_width=head_width, expand=expand, activation=activation).build_plain(width)
        self.readout = ClassReadout(width, head_width=head_width, expand=expand, activation=activation)
        self.out_proj = nn.Linear(width, features, bias=False) if width != features else nn.Identity()
        self.norm = RMSNorm(features, affine=False)

    def forward(self, latent: Latent) -> TeacherOutput:
        """``patches`` one a position of the latent, ``cls`` one an image."""
        x = self.in_proj(latent.to(self.in_proj.weight.dtype))
        grid = (x.shape[2], x.shape[3])
        extra = torch.cat([token.to(x.dtype) for token in (self.class_token, self.register_tokens)])
        tokens = torch.cat([repeat(extra, "n c -> b n c", b=x.shape[0]), rearrange(x, "b c h w -> b (h w) c")], dim=1)
        tokens = self.block.mix(tokens, grid, prefix=len(extra))
        cls = self.readout(tokens[:, :1], tokens[:, 1:])
        patches, cls = (self.norm(self.out_proj(part)) for part in (tokens[:, len(extra) :], cls))
        return TeacherOutput(patches=patches, grid=grid, cls=cls[:, 0])


@part("token_head/dino")
class DINOTokenHeadConfig(TokenHeadConfig):
    """One transformer block over class token, registers and latent, and a cross-attention read-out of the class.

    Attributes:
        features: width of the teacher's tokens.
        width: inside, None for that of the teacher; other widths are projected to it at the end.
        head_width: of the attention; divides the width.
        expand, activation: of the MLPs.
        registers: extra tokens, 4 in the releases.
    """

    features: int = 768
    width: int | None = None
    head_width: int = 64
    expand: float = 4.0
    activation: Activation = "gelu"
    registers: int = 4

    def __post_init__(self) -> None:
        for name, least in (("features", 1), ("registers", 0), ("width", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: must be at least {least}, got {value}")
        if self.head_width < 4 or self.head_width % 4:
            raise ValueError(f"head_width: must be a positive multiple of 4 (axial RoPE), got {self.head_width}")
        if (self.width or self.features) % self.head_width:
            raise ValueError(
                f"width: must be divisible by the head width {self.head_width}, got {self.width or self.features}"
            )
        if self.expand <= 0:
            raise ValueError(f"expand: must be positive, got {self.expand}")

    def build(self, *, latent: int) -> DINOTokenHead:
        return DINOTokenHead(
            latent=latent,
            features=self.features,
            width=self.width or self.features,
            head_width=self.head_width,
            expand=self.expand,
            activation=self.activation,
            registers=self.registers,
        )
