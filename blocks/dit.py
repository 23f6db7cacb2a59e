"""Transformer blocks for maps.

Attention with per-head RMSNorm on queries and keys before axial RoPE, and an MLP, on residual paths, without biases:

- with a condition, x + g·Attn(norm(x)·(1 + s) + b), then the same with the MLP; shifts, scales and gates come from the
  condition, the norms have no weights (DiT, arXiv 2212.09748, fig. 3, adaLN-Zero);
- without one, x + R2(Attn(R1(x))), then x + R4(MLP(R3(x))): RMSNorms with weights on both sides of attention and MLP,
  no gate (the encoder and head of DINAC-AE, data-archetype/dinac_ae).
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from .attention import attend
from .mlp import MLP, Activation
from .modulation import AdaLN
from .norm import RMSNorm
from .registry import part
from .rope import AxialRoPE, Convention
from .shapes import Cond, Map, Tokens
from .slots import BlockConfig


class RoPEAttention(nn.Module):
    """Self-attention of tokens on a grid; queries and keys are normalised per head, then turned by their position."""

    def __init__(self, width: int, *, head_width: int = 64, rope: Convention = "indices") -> None:
        super().__init__()
        if width % head_width:
            raise ValueError(f"width: must be divisible by the head width {head_width}, got {width}")
        self.head_width = head_width
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj_out = nn.Linear(width, width, bias=False)
        self.q_norm = RMSNorm(head_width)
        self.k_norm = RMSNorm(head_width)
        self.rope = AxialRoPE(head_width, convention=rope)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.xavier_uniform_(self.proj_out.weight)

    def forward(self, x: Tokens, grid: tuple[int, int], *, prefix: int = 0) -> Tokens:
        q, k, v = rearrange(self.qkv(x), "b n (three g d) -> three b g n d", three=3, d=self.head_width)
        q, k = self.rope(self.q_norm(q), self.k_norm(k), grid, prefix=prefix)
        return self.proj_out(rearrange(attend(q, k, v), "b g n d -> b n (g d)"))


class DiTBlock(nn.Module):
    """Attention, then MLP, each shifted, scaled and gated by a condition. Born as the identity."""

    modulate: nn.Module

    def __init__(
        self,
        width: int,
        *,
        cond: int,
        head_width: int = 64,
        expand: float = 4.0,
        activation: Activation = "gelu",
        rope: Convention = "indices",
    ) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(width, affine=False)
        self.attn = RoPEAttention(width, head_width=head_width, rope=rope)
        self.mlp_norm = RMSNorm(width, affine=False)
        self.mlp = MLP(width, int(width * expand), activation=activation)
        self.modulate = AdaLN(cond, 6 * width)

    def forward(self, x: Map, cond: Cond) -> Map:
        grid = (x.shape[2], x.shape[3])
        tokens = rearrange(x, "b c h w -> b (h w) c")
        shift1, scale1, gate1, shift2, scale2, gate2 = rearrange(
            self.modulate(cond).to(x.dtype), "b (six c) -> six b 1 c", six=6
        )
        tokens = tokens + gate1 * self.attn(_modulated(self.attn_norm(tokens), shift1, scale1), grid)
        tokens = tokens + gate2 * self.mlp(_modulated(self.mlp_norm(tokens), shift2, scale2))
        return rearrange(tokens, "b (h w) c -> b c h w", h=grid[0])


def _modulated(x: Tokens, shift: Tensor, scale: Tensor) -> Tokens:
    return x * (1 + scale) + shift


class SandwichDiTBlock(nn.Module):
    """Attention, then MLP, each between two RMSNorms with weights; takes no condition."""

    def __init__(
        self,
        width: int,
        *,
        head_width: int = 64,
        expand: float = 4.0,
        activation: Activation = "gelu",
        rope: Convention = "indices",
    ) -> None:
        super().__init__()
        self.attn_norm1, self.attn_norm2 = RMSNorm(width), RMSNorm(width)
        self.mlp_norm1, self.mlp_norm2 = RMSNorm(width), RMSNorm(width)
        self.attn = RoPEAttention(width, head_width=head_width, rope=rope)
        self.mlp = MLP(width, int(width * expand), activation=activation)

    @torch.no_grad()
    def become_identity(self) -> None:
        """Set the weights of the norms behind attention and MLP to 0, from where they learn."""
        for norm in (self.attn_norm2, self.mlp_norm2):
            assert norm.weight is not None
            norm.weight.zero_()

    def forward(self, x: Map, cond: None = None) -> Map:
        grid = (x.shape[2], x.shape[3])
        tokens = self.mix(rearrange(x, "b c h w -> b (h w) c"), grid)
        return rearrange(tokens, "b (h w) c -> b c h w", h=grid[0])

    def mix(self, tokens: Tokens, grid: tuple[int, int], *, prefix: int = 0) -> Tokens:
        """The block on a sequence; its first ``prefix`` tokens have no place on the grid."""
        tokens = tokens + self.attn_norm2(self.attn(self.attn_norm1(tokens), grid, prefix=prefix))
        return tokens + self.mlp_norm2(self.mlp(self.mlp_norm1(tokens)))


@part("block/dit")
class DiTBlockConfig(BlockConfig):
    """Transformer block with axial RoPE: adaLN-Zero with a condition, sandwich norms without.

    Attributes:
        head_width: of the attention; divides the width of the block.
        expand: hidden width of the MLP over the width of the block (SwiGLU: 8/3 costs what 4 costs the others).
        activation: of the MLP; "gelu" is exact.
        rope: "indices" as DINAC-AE has it, "normalised" as DINOv3 (see ``rope.py``).
    """

    head_width: int = 64
    expand: float = 4.0
    activation: Activation = "gelu"
    rope: Convention = "indices"

    modulations = 6
    global_context = True
    shorthand = "head_width"

    def __post_init__(self) -> None:
        if self.head_width < 4 or self.head_width % 4:
            raise ValueError(f"head_width: must be a positive multiple of 4 (axial RoPE), got {self.head_width}")
        if self.expand <= 0:
            raise ValueError(f"expand: must be positive, got {self.expand}")

    def build(self, width: int, *, cond: int | None = None) -> DiTBlock | SandwichDiTBlock:
        if cond is None:
            return self.build_plain(width)
        return DiTBlock(
            width,
            cond=cond,
            head_width=self.head_width,
            expand=self.expand,
            activation=self.activation,
            rope=self.rope,
        )

    def build_plain(self, width: int) -> SandwichDiTBlock:
        """Build without a condition; heads that put tokens before the grid run its ``mix``."""
        return SandwichDiTBlock(
            width, head_width=self.head_width, expand=self.expand, activation=self.activation, rope=self.rope
        )
