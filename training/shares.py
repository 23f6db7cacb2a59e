"""How hard each term of an objective pulls on what the model predicts.

    share of a term = |w dL/dp| / sum over terms of |w dL/dp|

with p the prediction (patches, and the class token where there is one) of a whole batch and w the weight. Terms of very
different values may pull alike, and the other way round. The derivative stops at the prediction: it passes through no
layer and into no parameter, so that nothing that is learned changes by it.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..blocks.slots import TeacherOutput


class GradientShares:
    """Gathers the gradients of the parts of a batch; samples are independent, so that their squares add up."""

    def __init__(self) -> None:
        self.squares: dict[str, Tensor] = {}

    def take(self, values: Mapping[str, Tensor], prediction: TeacherOutput) -> None:
        """Add a part, whose graph stays: the unweighted values of the terms, and what they are of."""
        predicted = [tokens for tokens in (prediction.patches, prediction.cls) if tokens is not None]
        for name, value in values.items():
            square = value.new_zeros(())
            if value.requires_grad:
                gradients = torch.autograd.grad(value, predicted, retain_graph=True, allow_unused=True)
                square = square + sum(g.float().square().sum() for g in gradients if g is not None)
            self.squares[name] = self.squares.get(name, value.new_zeros(())) + square.detach()

    def of(self, weights: Mapping[str, float], average: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The share of each term that was taken; ``average`` takes means over processes."""
        if not self.squares:
            return {}
        squares = average(torch.stack(list(self.squares.values())))
        pulls = squares.sqrt() * squares.new_tensor([abs(weights[name]) for name in self.squares])
        total = pulls.sum()
        shares = pulls / total if total > 0 else pulls
        return dict(zip(self.squares, shares.tolist(), strict=True))
