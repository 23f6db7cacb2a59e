"""Token-wise MLPs.

y = down(f(up(x))) with f = GELU (exact), SiLU or ReLU; or SwiGLU, y = down(SiLU(a)·b) with (a, b) = up(x) (Shazeer,
arXiv 2002.05202, eq. 6).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from .shapes import Tokens

Activation = Literal["gelu", "silu", "relu", "swiglu"]

ACTIVATIONS = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}
IN_PLACE = {"gelu": torch.ops.aten.gelu_, "silu": torch.ops.aten.silu_, "relu": torch.ops.aten.relu_}


def may_overwrite(maker: nn.Module) -> bool:
    """Whether what a module has just given may be written over: no gradient needs it, and nobody else holds it.

    Of a module that somebody put in the place of ours, nobody knows whether it gives memory of its own.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or type(maker) not in (nn.Linear, nn.Conv2d):
        return False
    return not (maker._forward_hooks or nn.modules.module._global_forward_hooks)


class MLP(nn.Module):
    """Linear, activation, linear, without biases (the transformer blocks of DINAC-AE have none).

    SwiGLU has three matrices of ``width`` x ``hidden`` where the others have two. ``hidden`` is at least 1.
    """

    def __init__(self, width: int, hidden: int, *, activation: Activation = "gelu") -> None:
        super().__init__()
        self.activation = activation
        hidden = max(1, hidden)
        self.up = nn.Linear(width, 2 * hidden if activation == "swiglu" else hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        nn.init.xavier_uniform_(self.up.weight)
        nn.init.xavier_uniform_(self.down.weight)

    def forward(self, x: Tokens) -> Tokens:
        y = self.up(x)
        if self.activation == "swiglu":
            gate, value = y.chunk(2, dim=-1)
            return self.down(F.silu(gate) * value)
        # the hidden map is the largest by far
        y = (IN_PLACE if may_overwrite(self.up) else ACTIVATIONS)[self.activation](y)
        return self.down(y)
