"""Linear probes: how well a linear map of standardised features tells classes apart.

Features are standardised by mean and standard deviation of the training items (a constant feature becomes 0).
``ridge`` solves min_W mean_i |y_i - W x_i|² + penalty |W|² for targets y of 0 and 1, with the classes' frequencies
as bias: in closed form, from sums that add over parts. ``sgd`` is multinomial logistic regression by 90 epochs of
batches of 1,024, from zero, with momentum 0.9, no weight decay, and a rate that falls as a cosine: a named variant,
as published figures are made by it (evaluation.md, section 6; projects share no protocol, and penalty and rate are
ours).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..blocks.draws import address
from .latents import Sum, Sums

PENALTY, RATE, EPOCHS, BATCH, MOMENTUM = 1e-3, 0.1, 90, 1024, 0.9
CONSTANT = 1e-12
"""Variance relative to the mean square below which a feature is constant."""


@dataclass
class FeatureSums(Sums):
    """Moments of features, and their products with the classes' indicators."""

    count: int = 0
    sums: Sum = 0
    products: Sum = 0
    classes: Sum = 0
    by_class: Sum = 0

    def update(self, features: Float[Tensor, "n f"], labels: Int[Tensor, " n"], *, classes: int) -> None:
        x, y = features.detach().cpu().double(), F.one_hot(labels, classes).double()
        self.count += len(x)
        self.sums, self.products = self.sums + x.sum(dim=0), self.products + x.T @ x
        self.classes, self.by_class = self.classes + y.sum(dim=0), self.by_class + x.T @ y

    def scale(self) -> "Scale":
        mean = torch.as_tensor(self.sums) / self.count
        square = torch.as_tensor(self.products).diagonal() / self.count
        return _scale(mean, square - mean.square(), square)


@dataclass(frozen=True)
class Scale:
    """Standardises features: (x - mean) · factor."""

    mean: Float[Tensor, " f"]
    factor: Float[Tensor, " f"]

    def __call__(self, features: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        return (features.detach().cpu().double() - self.mean) * self.factor


@dataclass(frozen=True)
class LinearClassifier:
    """Scores of the classes: scale(x) W + bias."""

    scale: Scale
    weight: Float[Tensor, "f classes"]
    bias: Float[Tensor, " classes"]

    def __call__(self, features: Float[Tensor, "n f"]) -> Float[Tensor, "n classes"]:
        return self.scale(features) @ self.weight + self.bias


def ridge(sums: FeatureSums, *, penalty: float = PENALTY) -> LinearClassifier:
    scale, n = sums.scale(), sums.count
    products, by_class, classes = (torch.as_tensor(s) for s in (sums.products, sums.by_class, sums.classes))
    bias = classes / n
    covariance = (products / n - torch.outer(scale.mean, scale.mean)) * torch.outer(scale.factor, scale.factor)
    cross = (by_class / n - torch.outer(scale.mean, bias)) * scale.factor[:, None]
    ridged = covariance + penalty * torch.eye(len(covariance), dtype=torch.float64)
    return LinearClassifier(scale, torch.linalg.solve(ridged, cross), bias)


@torch.no_grad()
def sgd(
    features: Float[Tensor, "n f"],
    labels: Int[Tensor, " n"],
    *,
    classes: int,
    epochs: int = EPOCHS,
    batch: int = BATCH,
    rate: float = RATE,
    seed: int = 0,
) -> LinearClassifier:
    """Logistic regression by gradient descent; the order of items is drawn anew for each epoch, from ``seed``."""
    x = features.detach().cpu().double()
    mean = x.mean(dim=0)
    scale = _scale(mean, x.var(dim=0, correction=0), x.square().mean(dim=0))
    x, y = scale(x), F.one_hot(labels, classes).double()
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)  # the bias
    weight, velocity = (torch.zeros(x.shape[1], classes, dtype=x.dtype) for _ in range(2))
    steps, step = epochs * math.ceil(len(x) / batch), 0
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(address(seed, "linear_probe", epoch)))
        for rows in order.split(batch):
            error = (x[rows] @ weight).softmax(dim=1) - y[rows]
            velocity = MOMENTUM * velocity + x[rows].T @ error / len(rows)
            weight -= 0.5 * rate * (1 + math.cos(math.pi * step / steps)) * velocity
            step += 1
    return LinearClassifier(scale, weight[:-1], weight[-1])


def top_k_accuracy(
    scores: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], *, ks: Sequence[int] = (1, 5)
) -> dict[int, float]:
    """Share of items whose class is among the k of the highest scores; of equal scores the first classes lead."""
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return {k: (order[:, :k] == labels[:, None]).any(dim=1).double().mean().item() for k in ks}


def _scale(mean: Tensor, variance: Tensor, square: Tensor) -> Scale:
    varies = variance > CONSTANT * square
    return Scale(mean, torch.where(varies, variance.clamp_min(0).rsqrt(), 0.0))
