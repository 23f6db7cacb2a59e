"""The blocks of DC-AE: two convolutions, or linear attention and a gated convolution (EfficientViT, arXiv 2205.14756).

LiteMLA: o = q (sum_n k_n v_nᵀ) / (q · sum_n k_n + eps) with q and k behind a ReLU, so that the work grows with the
number of positions and not with its square; as written, sum_n (q·k_n) v_n / (sum_n q·k_n + eps), it is the quadratic
form, which is the cheaper one on maps with no more positions than a head has channels. Sums are float32.

Queries, keys and values are interleaved: of the fused map, channels 3d·h to 3d·h + d - 1 are the queries of head h, the
next d its keys, the next d its values. The published weights are stored in three thirds named ``to_q``, ``to_k`` and
``to_v``, which cut across heads: these names are nominal.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .mlp import ACTIVATIONS, IN_PLACE, may_overwrite
from .modulation import AdaLN
from .norm import PixelBatchNorm, PixelRMSNorm
from .precision import without_autocast
from .registry import part
from .shapes import Cond, Map
from .slots import BlockConfig

NormName = Literal["rms", "batch"]

EPS = 1e-15
"""In the denominator of attention."""

Heads = Float[Tensor, "b n g d"]


def _norm(width: int, name: NormName) -> PixelRMSNorm | PixelBatchNorm:
    return PixelRMSNorm(width) if name == "rms" else PixelBatchNorm(width)


# --- attention --------------------------------------------------------------------------------------------------------


def linear_attention(q: Heads, k: Heads, v: Heads) -> Heads:
    """Sum keys and values first: ``n d²`` products a head. ``q`` and ``k`` are not negative."""
    summed = torch.einsum("bngd,bnge->bgde", k, v)
    weight = torch.einsum("bngd,bgd->bng", q, k.sum(dim=1))
    return torch.einsum("bngd,bgde->bnge", q, summed) / (weight + EPS)[..., None]


def quadratic_attention(q: Heads, k: Heads, v: Heads) -> Heads:
    """Compare every pair of positions first: ``n² d`` products a head; the same function."""
    weights = torch.einsum("bngd,bmgd->bgnm", q, k)
    weights = weights / (weights.sum(dim=-1, keepdim=True) + EPS)
    return torch.einsum("bgnm,bmgd->bngd", weights, v)


def pointwise(linear: nn.Module, x: Map) -> Float[Tensor, "b o h w"]:
    """A linear map of each position's channels, as the 1x1 convolution that it is.

    Convolutions have the better kernels of the two on CPUs: two to three times as fast in float32 on those of AMD.
    """
    if type(linear) is nn.Linear and not linear._forward_hooks and not linear._forward_pre_hooks:
        return F.conv2d(x, linear.weight[:, :, None, None], linear.bias)
    return rearrange(linear(rearrange(x, "b c h w -> b h w c")), "b h w c -> b c h w")


class Multiscale(nn.Module):
    """Queries, keys and values of a neighbourhood: a depthwise convolution, then one over each head's channels."""

    def __init__(self, width: int, *, heads: int, kernel: int) -> None:
        super().__init__()
        self.proj_in = nn.Conv2d(3 * width, 3 * width, kernel, padding=kernel // 2, groups=3 * width, bias=False)
        self.proj_out = nn.Conv2d(3 * width, 3 * width, 1, groups=3 * heads, bias=False)

    def forward(self, qkv: Map) -> Map:
        return self.proj_out(self.proj_in(qkv))


class LiteMLA(nn.Module):
    """ReLU linear attention at one scale and, for each kernel, at that of a neighbourhood; without its residual."""

    def __init__(self, width: int, *, head_width: int = 32, kernels: tuple[int, ...] = (), norm: NormName = "rms"):
        super().__init__()
        if width % head_width:
            raise ValueError(f"head_width: must divide the width {width} of the block, got {head_width}")
        self.head_width = head_width
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_qkv_multiscale = nn.ModuleList(
            Multiscale(width, heads=width // head_width, kernel=kernel) for kernel in kernels
        )
        self.to_out = nn.Linear(width * (1 + len(kernels)), width, bias=False)
        self.norm_out = _norm(width, norm)

    def forward(self, x: Map) -> Map:
        qkv = torch.cat([pointwise(each, x) for each in (self.to_q, self.to_k, self.to_v)], dim=1)
        scales = [qkv, *(make(qkv) for make in self.to_qkv_multiscale)]
        mixed = self._attend(torch.cat(scales, dim=1) if len(scales) > 1 else qkv)
        y = pointwise(self.to_out, rearrange(mixed, "b (h w) c -> b c h w", h=x.shape[2]))
        return self.norm_out(y, inplace=may_overwrite(self.to_out))

    def _attend(self, qkv: Map) -> Float[Tensor, "b n v"]:
        with without_autocast(qkv.device):
            wide = torch.promote_types(qkv.dtype, torch.float32)
            heads = rearrange(qkv, "b (g d) h w -> b (h w) g d", d=3 * self.head_width).to(wide)
            d, overwrite = self.head_width, wide != qkv.dtype and may_overwrite(self.to_q)
            q, k = (F.relu_ if overwrite else F.relu)(heads[..., : 2 * d]).split(d, dim=-1)
            attend = linear_attention if heads.shape[1] > d else quadratic_attention
            return attend(q, k, heads[..., 2 * d :]).flatten(2).to(qkv.dtype)


# --- convolutions -----------------------------------------------------------------------------------------------------


class GLUMBConv(nn.Module):
    """Widen, mix each channel over 3x3, gate one half by the other, narrow and normalise; without its residual."""

    def __init__(self, width: int, *, expand: float = 4.0) -> None:
        super().__init__()
        hidden = max(int(width * expand), 1)
        self.conv_inverted = nn.Conv2d(width, 2 * hidden, 1)
        self.conv_depth = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.conv_point = nn.Conv2d(hidden, width, 1, bias=False)
        self.norm = PixelRMSNorm(width)

    def forward(self, x: Map) -> Map:
        y = self.conv_inverted(x)
        y = self.conv_depth((IN_PLACE if may_overwrite(self.conv_inverted) else ACTIVATIONS)["silu"](y))
        value, gate = y.chunk(2, dim=1)
        if y.dtype == torch.float16:
            y, factor = self._gated_within_range(value, gate)
        else:
            gate = F.silu(gate)  # in memory of its own, whoever gave the map
            y, factor = gate.mul_(value) if may_overwrite(self.conv_depth) else gate * value, None
        return self.norm(self.conv_point(y), inplace=may_overwrite(self.conv_point), factor=factor)

    @staticmethod
    def _gated_within_range(value: Map, gate: Map) -> tuple[Map, Float[Tensor, "b 1 h w"]]:
        """A product of two float16 numbers may be past the largest: shrink positions; the norm undoes it."""
        product = value.float() * F.silu(gate.float())
        factor = 16 / product.detach().abs().amax(dim=1, keepdim=True).clamp_min(16)
        return (product * factor).to(value.dtype), factor


class _Gated(nn.Module):
    """What both blocks share: residual branches, which a condition scales and gates."""

    modulate: nn.Module | None

    def __init__(self, width: int, *, cond: int | None, modulations: int) -> None:
        super().__init__()
        self.modulations = modulations
        if cond is None:
            self.modulate = None
        else:
            self.modulate = AdaLN(cond, modulations * width)

    def numbers(self, x: Map, cond: Cond | None) -> list[Tensor | None]:
        """Scale and gate of each branch, ``[b, c, 1, 1]``, or None."""
        if self.modulate is None:
            return [None] * self.modulations
        packed = self.modulate(cond).to(x.dtype)
        return list(rearrange(packed, "b (m c) -> m b c 1 1", m=self.modulations))


def _scaled(x: Map, scale: Tensor | None) -> Map:
    return x if scale is None else x * (1 + scale)


def _added(x: Map, y: Map, gate: Tensor | None, *makers: nn.Module) -> Map:
    """``x + gate·y``; over ``y``, where those that it went through last, convolution first, leave it to nobody else."""
    if gate is not None:
        return x + gate * y
    free = may_overwrite(makers[0]) and not any(maker._forward_hooks for maker in makers) and y.dtype == x.dtype
    return y.add_(x) if free else x + y


class ResBlock(_Gated):
    """Convolution, activation, convolution, norm, add. With a condition it is born as the identity."""

    def __init__(
        self,
        width: int,
        *,
        cond: int | None = None,
        norm: NormName = "rms",
        activation: Literal["silu", "relu"] = "silu",
    ) -> None:
        super().__init__(width, cond=cond, modulations=2)
        self.activation = activation
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = _norm(width, norm)

    def forward(self, x: Map, cond: Cond | None = None) -> Map:
        scale, gate = self.numbers(x, cond)
        y = self.conv1(_scaled(x, scale))
        y = self.conv2((IN_PLACE if may_overwrite(self.conv1) else ACTIVATIONS)[self.activation](y))
        y = self.norm(y, inplace=may_overwrite(self.conv2))
        return _added(x, y, gate, self.conv2, self.norm)


class EfficientViTBlock(_Gated):
    """Linear attention, then a gated convolution, both residual. With a condition it is born as the identity."""

    def __init__(
        self,
        width: int,
        *,
        cond: int | None = None,
        head_width: int = 32,
        kernels: tuple[int, ...] = (),
        norm: NormName = "rms",
        expand: float = 4.0,
    ) -> None:
        super().__init__(width, cond=cond, modulations=4)
        self.attn = LiteMLA(width, head_width=head_width, kernels=kernels, norm=norm)
        self.conv_out = GLUMBConv(width, expand=expand)

    def forward(self, x: Map, cond: Cond | None = None) -> Map:
        scale, gate, scale_conv, gate_conv = self.numbers(x, cond)
        x = _added(x, self.attn(_scaled(x, scale)), gate, self.attn.to_out, self.attn.norm_out, self.attn)
        mix = self.conv_out
        return _added(x, mix(_scaled(x, scale_conv)), gate_conv, mix.conv_point, mix.norm, mix)


@part("block/res")
class ResBlockConfig(BlockConfig):
    """Two convolutions of 3x3 and a norm: "rms" of each pixel, or "batch"."""

    norm: NormName = "rms"
    activation: Literal["silu", "relu"] = "silu"

    modulations = 2

    def build(self, width: int, *, cond: int | None = None) -> ResBlock:
        return ResBlock(width, cond=cond, norm=self.norm, activation=self.activation)


@part("block/efficientvit")
class EfficientViTBlockConfig(BlockConfig):
    """ReLU linear attention and a gated convolution.

    Attributes:
        head_width: of the attention; divides the width of the block.
        kernels: sides of neighbourhoods, odd, at whose scales attention looks as well.
        norm: behind attention; that behind the convolution is always "rms".
        expand: of the gated convolution.
    """

    head_width: int = 32
    kernels: tuple[int, ...] = ()
    norm: NormName = "rms"
    expand: float = 4.0

    modulations = 4
    global_context = True
    shorthand = "head_width"

    def __post_init__(self) -> None:
        if self.head_width < 1:
            raise ValueError(f"head_width: must be at least 1, got {self.head_width}")
        if any(kernel < 1 or kernel % 2 == 0 for kernel in self.kernels):
            raise ValueError(f"kernels: must be odd and positive, got {list(self.kernels)}")
        if self.expand <= 0:
            raise ValueError(f"expand: must be positive, got {self.expand}")

    def build(self, width: int, *, cond: int | None = None) -> EfficientViTBlock:
        return EfficientViTBlock(
            width, cond=cond, head_width=self.head_width, kernels=self.kernels, norm=self.norm, expand=self.expand
        )
