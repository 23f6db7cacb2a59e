"""Feature heads: what the body of a bridge gives, as a teacher's tokens.

==================== =========================================================================================
feature_head/linear  a linear map of each position
feature_head/tokens  the same, and class and register tokens read out of all positions by cross-attention
feature_head/spatial a linear map to squares of positions, where the teacher's grid is finer than the body's
==================== =========================================================================================

Class and register tokens are learned queries of the head, not tokens that pass through the body: so a head can be added
to a body that stays, and patches are the same numbers with and without it (``ClassReadout``, as in DINAC-AE's head).

Outputs are normalised on request, without weights, in float32: to mean 0 and variance 1 ("layer_norm", DINOv2's final
norm but for its weights), to root mean square 1 ("rms"), or to length 1 ("unit").
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from .heads import ClassReadout
from .patch import unpatchify
from .registry import part
from .shapes import Map, Tokens
from .slots import FeatureHeadConfig, TeacherOutput

OutputNorm = Literal["none", "layer_norm", "rms", "unit"]

EPSILON = 1e-6


def output_norm(tokens: Float[Tensor, "b n f"], norm: OutputNorm) -> Float[Tensor, "b n f"]:
    """Tokens as the module's text says, at least float32."""
    tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    if norm == "layer_norm":
        return F.layer_norm(tokens, tokens.shape[-1:], eps=EPSILON)
    if norm == "rms":
        return F.rms_norm(tokens, tokens.shape[-1:], eps=EPSILON)
    return F.normalize(tokens, dim=-1) if norm == "unit" else tokens


class PatchHead(nn.Module):
    """A linear map of each position to ``factor²`` tokens, a square of them where ``factor`` is more than 1."""

    def __init__(self, *, width: int, features: int, factor: int = 1, norm: OutputNorm) -> None:
        super().__init__()
        self.factor = factor
        self.norm: OutputNorm = norm
        self.proj = nn.Linear(width, features * factor**2)

    def forward(self, x: Map) -> TeacherOutput:
        y = self.proj(rearrange(x, "b c h w -> b h w c"))
        if self.factor > 1:
            y = rearrange(unpatchify(rearrange(y, "b h w f -> b f h w"), self.factor), "b f h w -> b h w f")
        return TeacherOutput(patches=output_norm(y.flatten(1, 2), self.norm), grid=(y.shape[1], y.shape[2]))


@part("feature_head/linear")
class LinearHeadConfig(FeatureHeadConfig):
    """One linear map for all positions; patches alone."""

    norm: OutputNorm = "none"

    def build(self, *, width: int, features: int, factor: int = 1) -> PatchHead:
        _no_factor(self, factor)
        return PatchHead(width=width, features=features, norm=self.norm)


class TokensHead(nn.Module):
    """A linear map for patches; learned queries, read out of all positions, and another for class and registers."""

    def __init__(
        self, *, width: int, features: int, registers: int, head_width: int, expand: float, norm: OutputNorm
    ) -> None:
        super().__init__()
        self.norm: OutputNorm = norm
        self.queries = nn.Parameter(0.02 * torch.randn(1 + registers, width))
        self.readout = ClassReadout(width, head_width=head_width, expand=expand, activation="gelu")
        self.proj = nn.Linear(width, features)
        self.proj_tokens = nn.Linear(width, features)

    def forward(self, x: Map) -> TeacherOutput:
        """``registers`` is None where there are none."""
        tokens: Tokens = rearrange(x, "b c h w -> b (h w) c")
        queries = repeat(self.queries.to(tokens.dtype), "n c -> b n c", b=len(tokens))
        found = output_norm(self.proj_tokens(self.readout(queries, tokens)), self.norm)
        return TeacherOutput(
            patches=output_norm(self.proj(tokens), self.norm),
            grid=(x.shape[2], x.shape[3]),
            cls=found[:, 0],
            registers=found[:, 1:] if len(self.queries) > 1 else None,
        )


@part("feature_head/tokens")
class TokensHeadConfig(FeatureHeadConfig):
    """Patches, the class token, and registers if they are asked for.

    Attributes:
        registers: how many of the teacher's registers are predicted.
        head_width: of the cross-attention; divides the body's width.
        expand: hidden width of its MLP over the width.
    """

    has_cls = True

    registers: int = 0
    head_width: int = 64
    expand: float = 4.0
    norm: OutputNorm = "none"

    def __post_init__(self) -> None:
        if self.registers < 0:
            raise ValueError(f"registers: must not be negative, got {self.registers}")
        if self.head_width < 1:
            raise ValueError(f"head_width: must be at least 1, got {self.head_width}")
        if not self.expand > 0:
            raise ValueError(f"expand: must be positive, got {self.expand}")

    def build(self, *, width: int, features: int, factor: int = 1) -> TokensHead:
        _no_factor(self, factor)
        if width % self.head_width:
            raise ValueError(f"{self.kind}: head_width: must divide the width {width}, got {self.head_width}")
        return TokensHead(
            width=width,
            features=features,
            registers=self.registers,
            head_width=self.head_width,
            expand=self.expand,
            norm=self.norm,
        )


@part("feature_head/spatial")
class SpatialHeadConfig(FeatureHeadConfig):
    """A linear map of each position to a square of tokens, by pixel-shuffle: for targets finer than the body's grid.

    The side of the square is what the grids ask for, 1 where they are equal. Between latent spaces it gives the map.
    """

    upsamples = True

    norm: OutputNorm = "none"

    def build(self, *, width: int, features: int, factor: int = 1) -> PatchHead:
        return PatchHead(width=width, features=features, factor=factor, norm=self.norm)


def _no_factor(config: FeatureHeadConfig, factor: int) -> None:
    if factor != 1:
        raise ValueError(f"{config.kind}: has one token a position, and {factor} a side are needed")
