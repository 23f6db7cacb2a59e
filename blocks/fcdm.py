"""The FCDM block: a modulated ConvNeXt block (FCDM, arXiv 2603.09408; as in the package fcdm_diffae).

y = down(GRN(GELU(up(RMSNorm(dw7x7(x))·(1 + scale))))), out = x + gate·y. There is no shift. Without a condition the
gate is a learned ``layer_scale``, born at 1e-3, and the scale is absent.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from .mlp import may_overwrite
from .modulation import AdaLN
from .norm import GRN, channel_rms_norm
from .registry import part
from .shapes import Cond, Map
from .slots import BlockConfig


class FCDMBlock(nn.Module):
    """Mix, normalise, expand, gate, add. With a condition it is born as the identity: the gate starts at zero."""

    modulate: nn.Module | None

    def __init__(self, width: int, *, cond: int | None = None, kernel: int = 7, expand: float = 4.0) -> None:
        super().__init__()
        hidden = max(int(width * expand), 1)
        self.dwconv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.pwconv1 = nn.Conv2d(width, hidden, 1)
        self.grn = GRN(hidden)
        self.pwconv2 = nn.Conv2d(hidden, width, 1)
        if cond is None:
            self.modulate = None
            self.layer_scale = nn.Parameter(torch.full((width,), 1e-3))
        else:
            self.modulate = AdaLN(cond, 2 * width)

    def forward(self, x: Map, cond: Cond | None = None) -> Map:
        y = channel_rms_norm(self.dwconv(x))
        if self.modulate is None:
            gate = self.layer_scale.to(x.dtype)[:, None, None]
        else:
            scale, gate = rearrange(self.modulate(cond).to(x.dtype), "b (two c) -> two b c 1 1", two=2)
            y = y * (1 + scale)
        y = self.pwconv1(y)  # y is bound anew so that no map outlives its use
        y = self.pwconv2(self._activate(y))
        return x + gate * y

    def _activate(self, hidden: Map) -> Map:
        """GELU, then GRN; in the memory of ``hidden``, the largest map by far, where nobody else may hold it."""
        if may_overwrite(self.pwconv1):
            return self.grn(torch.ops.aten.gelu_(hidden), inplace=True)
        return self.grn(F.gelu(hidden))


@part("block/fcdm")
class FCDMBlockConfig(BlockConfig):
    """Modulated ConvNeXt block: depthwise ``kernel`` (odd), then an MLP ``expand`` times as wide with GRN."""

    kernel: int = 7
    expand: float = 4.0

    modulations = 2
    global_context = True

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel: must be odd and positive, got {self.kernel}; an even kernel would move the map")
        if self.expand <= 0:
            raise ValueError(f"expand: must be positive, got {self.expand}")

    def build(self, width: int, *, cond: int | None = None) -> FCDMBlock:
        return FCDMBlock(width, cond=cond, kernel=self.kernel, expand=self.expand)
