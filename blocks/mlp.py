"""Token-wise MLPs.

y = down(f(up(x))) with f = GELU (exact), SiLU or ReLU; or SwiGLU, y = down(SiLU(a)·b) with (a, b) = up(x) (Shazeer,
arXiv 2002.05202, eq. 6).
"""

from typing import Literal

import torch.nn.functional as F
from torch import nn

from .shapes import Tokens

Activation = Literal["gelu", "silu", "relu", "swiglu"]

ACTIVATIONS = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}


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
        return self.down(ACTIVATIONS[self.activation](y))
