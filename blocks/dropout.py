"""Dropout whose masks have addresses, as all random numbers of training have (``draws.py``).

torch's own dropout consumes the state of a global generator: a run that was resumed, or that other numbers of processes
share, would drop other activations. Under :func:`addressed` the mask of a sample belongs to the seed, the step, its
position in the global batch, and which dropout of the forward it is. Each process draws the mask of the whole batch and
takes its own rows, one call where a generator for each sample would be thousands.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .draws import Draws


class _Calls:
    """The draws of a forward, and how many dropouts it has had."""

    def __init__(self, draws: Draws) -> None:
        self.draws, self.count = draws, 0

    def next_stream(self) -> str:
        self.count += 1
        return f"dropout {self.count}"


_calls: ContextVar[_Calls | None] = ContextVar("dropout", default=None)


@contextmanager
def addressed(draws: Draws) -> Iterator[None]:
    """Let the :class:`Dropout` of one forward draw from ``draws``, whose samples are those of the forward."""
    token = _calls.set(_Calls(draws))
    try:
        yield
    finally:
        _calls.reset(token)


class Dropout(nn.Module):
    """x·mask/(1 - p) in training; outside of :func:`addressed` with torch's global generator."""

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout: must be in [0, 1), got {p}")
        self.p = p

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        if not self.training or self.p == 0:
            return x
        calls = _calls.get()
        if calls is None:
            return F.dropout(x, self.p)
        kept = calls.draws.chance(calls.next_stream(), *x.shape[1:], p=1 - self.p)
        return x * (kept / (1 - self.p)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"p={self.p}"
