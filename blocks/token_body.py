"""The body of a bridge: a transformer on the grid of a teacher's tokens, which knows of no autoencoder and no teacher.

Pre-norm blocks x + D(Attn(R(x))), then x + D(MLP(R(x))), with RMSNorms R and dropout D; an RMSNorm ends it. Positions
are a learned table, added once, which is resampled bicubically off its own grid (ViT, arXiv 2010.11929, sec. 3.2), or
RoPE in every block. Told a noise level tau, blocks are modulated by it, x + g·D(Attn(R(x)·(1 + s) + b)), where gates g
start at zero: they are born as identities (adaLN-Zero of DiT, arXiv 2212.09748, fig. 3).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .attention import attend
from .dropout import Dropout
from .mlp import MLP
from .modulation import AdaLN
from .norm import RMSNorm
from .registry import part
from .rope import AxialRoPE
from .shapes import Cond, Map, Times, Tokens
from .slots import TokenBodyConfig
from .time import TimeEmbedding

Positions = Literal["learned", "rope"]


class TokenAttention(nn.Module):
    """Self-attention of tokens; queries and keys are normalised per head, and turned by their place with RoPE."""

    def __init__(self, width: int, *, heads: int, rope: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj_out = nn.Linear(width, width, bias=False)
        self.q_norm, self.k_norm = RMSNorm(width // heads), RMSNorm(width // heads)
        self.rope = AxialRoPE(width // heads, convention="normalised") if rope else None
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.xavier_uniform_(self.proj_out.weight)

    def forward(self, x: Tokens, grid: tuple[int, int]) -> Tokens:
        q, k, v = rearrange(self.qkv(x), "b n (three g d) -> three b g n d", three=3, g=self.heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            q, k = self.rope(q, k, grid)
        return self.proj_out(rearrange(attend(q, k, v), "b g n d -> b n (g d)"))


class TokenBlock(nn.Module):
    """Attention, then MLP, on residual paths; with a condition, born as the identity."""

    def __init__(
        self, width: int, *, heads: int, expand: float, dropout: float, rope: bool, cond: int | None = None
    ) -> None:
        super().__init__()
        plain = cond is None
        self.attn_norm, self.mlp_norm = RMSNorm(width, affine=plain), RMSNorm(width, affine=plain)
        self.attn = TokenAttention(width, heads=heads, rope=rope)
        self.mlp = MLP(width, int(width * expand))
        self.attn_dropout, self.mlp_dropout = Dropout(dropout), Dropout(dropout)
        self.modulate = None if cond is None else AdaLN(cond, 6 * width)

    def forward(self, x: Tokens, grid: tuple[int, int], cond: Cond | None = None) -> Tokens:
        if self.modulate is None:
            x = x + self.attn_dropout(self.attn(self.attn_norm(x), grid))
            return x + self.mlp_dropout(self.mlp(self.mlp_norm(x)))
        shift1, scale1, gate1, shift2, scale2, gate2 = rearrange(
            self.modulate(cond).to(x.dtype), "b (six c) -> six b 1 c", six=6
        )
        x = x + gate1 * self.attn_dropout(self.attn(self.attn_norm(x) * (1 + scale1) + shift1, grid))
        return x + gate2 * self.mlp_dropout(self.mlp(self.mlp_norm(x) * (1 + scale2) + shift2))


class TransformerBody(nn.Module):
    """Maps ``[b, width, h, w]`` on the grid of tokens to such maps, of root mean square near 1 over channels."""

    def __init__(
        self,
        width: int,
        *,
        depth: int,
        heads: int,
        expand: float,
        dropout: float,
        table: int | None,
        noise: bool,
    ) -> None:
        """``table`` is the side of the grid of learned positions, None for RoPE."""
        super().__init__()
        self.positions = None if table is None else nn.Parameter(0.02 * torch.randn(width, table, table))
        self.time_embed = TimeEmbedding(width) if noise else None
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            TokenBlock(
                width,
                heads=heads,
                expand=expand,
                dropout=dropout,
                rope=table is None,
                cond=width if noise else None,
            )
            for _ in range(depth)
        )
        self.norm = RMSNorm(width)

    def forward(self, x: Map, tau: Times | None = None) -> Map:
        """``tau`` is how noisy the latents were, in [0, 1]; None is clean. Only a body made for noise takes one."""
        cond = None
        if self.time_embed is not None:
            cond = self.time_embed(x.new_zeros(len(x), dtype=torch.float32) if tau is None else tau)
        grid = (x.shape[2], x.shape[3])
        if self.positions is not None:
            x = x + positions_on(self.positions, grid).to(x.dtype)
        tokens = self.dropout(rearrange(x, "b c h w -> b (h w) c"))
        for block in self.blocks:
            tokens = block(tokens, grid, cond)
        return rearrange(self.norm(tokens), "b (h w) c -> b c h w", h=grid[0])


def positions_on(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """A table of positions ``[c, h, w]`` on a grid of (rows, columns), in float32; on its own it is as it was."""
    if grid == (table.shape[1], table.shape[2]):
        return table
    return F.interpolate(table[None].float(), grid, mode="bicubic", align_corners=False)[0]


@part("body/transformer")
class TransformerBodyConfig(TokenBodyConfig):
    """Pre-norm transformer blocks; the sizes are those of the card kingsidharth/sd_vae_2_dino_v2_bridge.

    Attributes:
        heads: of the attention; they divide the width.
        expand: hidden width of the MLP over the width.
        dropout: of what each attention and MLP adds, and of what goes in, in training.
        positions: a "learned" table, or "rope", which is DINOv3's and fits any grid.
        table: side of the grid that the learned positions belong to; it stays when another teacher's grid is taken.
    """

    width: int = 768
    depth: int = 8
    heads: int = 12
    expand: float = 4.0
    dropout: float = 0.02
    positions: Positions = "learned"
    table: int = 8

    def __post_init__(self) -> None:
        for name, least in (("width", 1), ("depth", 0), ("heads", 1), ("table", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be at least {least}, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"heads: must divide the width {self.width}, got {self.heads}")
        if self.positions == "rope" and self.width // self.heads % 4:
            raise ValueError(
                f"heads: must leave each head a multiple of 4 for 'rope', and the width {self.width} leaves "
                f"{self.width // self.heads}, got {self.heads}"
            )
        if not self.expand > 0:
            raise ValueError(f"expand: must be positive, got {self.expand}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: must be in [0, 1), got {self.dropout}")

    def build(self, *, noise: bool = False) -> TransformerBody:
        return TransformerBody(
            self.width,
            depth=self.depth,
            heads=self.heads,
            expand=self.expand,
            dropout=self.dropout,
            table=self.table if self.positions == "learned" else None,
            noise=noise,
        )
