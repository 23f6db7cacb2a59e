"""Transformer block for maps: RoPE attention and MLP, with shift, scale and gate from a condition.

x + g1·Attn(norm(x)·(1 + s1) + b1), then the same with the MLP (DiT, arXiv 2212.09748, fig. 3, adaLN-Zero), with
per-head RMSNorm on queries and keys before axial RoPE, and no biases. Without a condition the shifts, scales and
gates are absent and the norms carry learned weights.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .mlp import MLP
from .modulation import AdaLN
from .registry import part
from .rope import rope_angles, rope_periods, rotate
from .shapes import Cond, Map, Tokens
from .slots import BlockConfig


class RoPEAttention(nn.Module):
    """Self-attention of tokens on a grid; queries and keys are normalised per head, then turned by their position."""

    def __init__(self, width: int, *, head_width: int = 64) -> None:
        super().__init__()
        if width % head_width:
            raise ValueError(f"width: must be divisible by the head width {head_width}, got {width}")
        self.head_width = head_width
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj_out = nn.Linear(width, width, bias=False)
        self.q_norm = nn.RMSNorm(head_width, eps=1e-6)
        self.k_norm = nn.RMSNorm(head_width, eps=1e-6)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.xavier_uniform_(self.proj_out.weight)

    def forward(self, x: Tokens, grid: tuple[int, int]) -> Tokens:
        q, k, v = rearrange(self.qkv(x), "b n (three g d) -> three b g n d", three=3, d=self.head_width)
        angles = rope_angles(grid, rope_periods(self.head_width, device=x.device))
        q, k = rotate(self.q_norm(q), angles), rotate(self.k_norm(k), angles)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj_out(rearrange(y, "b g n d -> b n (g d)"))


class DiTBlock(nn.Module):
    """Attention, then MLP, each on a residual path. With a condition it is born as the identity."""

    modulate: nn.Module | None

    def __init__(self, width: int, *, cond: int | None = None, head_width: int = 64, expand: float = 4.0) -> None:
        super().__init__()
        plain = cond is None
        self.attn_norm = nn.RMSNorm(width, eps=1e-6, elementwise_affine=plain)
        self.attn = RoPEAttention(width, head_width=head_width)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-6, elementwise_affine=plain)
        self.mlp = MLP(width, int(width * expand))
        self.modulate = None if plain else AdaLN(cond, 6 * width)

    def forward(self, x: Map, cond: Cond | None = None) -> Map:
        grid = (x.shape[2], x.shape[3])
        tokens = rearrange(x, "b c h w -> b (h w) c")
        if self.modulate is None:
            tokens = tokens + self.attn(self.attn_norm(tokens), grid)
            tokens = tokens + self.mlp(self.mlp_norm(tokens))
        else:
            shift1, scale1, gate1, shift2, scale2, gate2 = rearrange(
                self.modulate(cond).to(x.dtype), "b (six c) -> six b 1 c", six=6
            )
            tokens = tokens + gate1 * self.attn(_modulated(self.attn_norm(tokens), shift1, scale1), grid)
            tokens = tokens + gate2 * self.mlp(_modulated(self.mlp_norm(tokens), shift2, scale2))
        return rearrange(tokens, "b (h w) c -> b c h w", h=grid[0])


def _modulated(x: Tokens, shift: Tensor, scale: Tensor) -> Tokens:
    return x * (1 + scale) + shift


@part("block/dit")
class DiTBlockConfig(BlockConfig):
    """Transformer block: RoPE attention in heads of ``head_width``, and an MLP ``expand`` times as wide."""

    head_width: int = 64
    expand: float = 4.0

    modulations = 6
    global_context = True

    def __post_init__(self) -> None:
        if self.head_width < 4 or self.head_width % 4:
            raise ValueError(f"head_width: must be a positive multiple of 4 (axial RoPE), got {self.head_width}")
        if self.expand <= 0:
            raise ValueError(f"expand: must be positive, got {self.expand}")

    def build(self, width: int, *, cond: int | None = None) -> DiTBlock:
        return DiTBlock(width, cond=cond, head_width=self.head_width, expand=self.expand)
