"""Adaptive modulation: numbers by which a condition scales, shifts and gates a block (DiT, arXiv 2212.09748, sec. 3.2).

Low-rank form, as in Z-Image (arXiv 2511.22699): one shared projection, and a low-rank difference for each block,
m_l = W a + b + U_l V_l a with a = SiLU(c). All of it is born as zero, so that gated blocks are born as identities.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .shapes import Cond


class AdaLN(nn.Module):
    """A block's own modulation: SiLU, then a linear map ``cond -> size`` that starts at zero."""

    def __init__(self, cond: int, size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(cond, size)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, cond: Cond) -> Float[Tensor, "b m"]:
        return self.proj(F.silu(cond))


class LowRankDelta(nn.Module):
    """The difference of one block from the shared modulation: ``up(down(SiLU(cond)))``, ``up`` starts at zero."""

    def __init__(self, cond: int, size: int, *, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(cond, rank, bias=False)
        self.up = nn.Linear(rank, size, bias=False)
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.up.weight)

    def forward(self, cond: Cond) -> Float[Tensor, "b m"]:
        return self.up(self.down(F.silu(cond)))
