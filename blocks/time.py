"""Sinusoidal embedding of times, then a two-layer MLP.

e = [sin(1000 t f), cos(1000 t f)] with f_i = 10000^(-i/(n-1)), i = 0 .. n-1: the divisor is n-1, not n as in DiT
(arXiv 2212.09748), as in the published autoencoders.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .precision import Float32Buffers
from .shapes import Times


def sinusoids(t: Times, freqs: Float[Tensor, " n"], *, scale: float = 1000.0) -> Float[Tensor, "b 2*n"]:
    """Embed times in float32: sines first, then cosines."""
    angle = t.float()[:, None] * scale * freqs
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class TimeEmbedding(Float32Buffers):
    """Times in [0, 1] to conditions ``[b, width]``; the frequencies are a persistent float32 buffer."""

    freqs: Tensor

    def __init__(self, width: int, *, frequencies: int = 128) -> None:
        super().__init__()
        steps = torch.arange(frequencies, dtype=torch.float32) / (frequencies - 1)
        self.register_buffer("freqs", torch.exp(-math.log(10_000.0) * steps))
        self.proj_in = nn.Linear(2 * frequencies, width)
        self.proj_out = nn.Linear(width, width)

    def forward(self, t: Times) -> Float[Tensor, "b e"]:
        waves = sinusoids(t, self.freqs).to(self.proj_in.weight.dtype)
        return self.proj_out(F.silu(self.proj_in(waves)))
