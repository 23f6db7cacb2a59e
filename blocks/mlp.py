"""Token-wise MLPs."""

import torch.nn.functional as F
from torch import nn

from .shapes import Tokens


class MLP(nn.Module):
    """Linear, exact GELU, linear, without biases (the transformer blocks of DINAC-AE have none)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        nn.init.xavier_uniform_(self.up.weight)
        nn.init.xavier_uniform_(self.down.weight)

    def forward(self, x: Tokens) -> Tokens:
        return self.down(F.gelu(self.up(x)))
