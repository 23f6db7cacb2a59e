"""Fréchet distance between populations of features, as an objective (FD-loss, arXiv 2604.28190).

Between Gaussians with the moments (mu, S) and (mu', S') it is

    |mu - mu'|² + tr S + tr S' - 2 tr (S'^½ S S'^½)^½,

where the last trace is the sum of the square roots of the eigenvalues of a symmetric matrix, clamped at 0. A batch from
which gradients come is far too small a sample of a covariance. The statistics are therefore those of a population:
the batch together with a queue of earlier features, which carry no gradient. All sums are float64.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from .losses import Scalar
from .precision import Float32Buffers

Features = Float[Tensor, "b f"]


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a population, float64; ``Moments(**tensors)`` reads back what ``vars`` gives to a file."""

    mean: Float[Tensor, " f"]
    cov: Float[Tensor, "f f"]


def moments(features: Features) -> Moments:
    """Mean and unbiased covariance of rows; a single row has the covariance 0."""
    if not len(features):
        raise ValueError("moments: takes at least one row of features, got none")
    mean = features.double().mean(0)
    centred = features.double() - mean
    return Moments(mean, centred.T @ centred / max(len(features) - 1, 1))


def frechet_distance(
    mean_a: Float[Tensor, " f"], cov_a: Float[Tensor, "f f"], mean_b: Float[Tensor, " f"], cov_b: Float[Tensor, "f f"]
) -> Float[Tensor, ""]:
    """Squared Fréchet distance of two Gaussians, float64; the second is the reference and gets no gradient.

    Gradients are finite for singular covariances too: an eigenvalue that rounding alone keeps from 0 passes none on.
    Moments that are not finite give NaN.
    """
    return _distance(Moments(mean_a.double(), cov_a.double()), mean_b.detach().double(), _root(cov_b.detach().double()))


def _root(cov: Tensor) -> Tensor:
    """The symmetric square root of a covariance."""
    if not cov.isfinite().all():
        return torch.full_like(cov, torch.nan)
    values, vectors = torch.linalg.eigh(cov)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def _distance(ours: Moments, mean: Tensor, root: Tensor) -> Tensor:
    """The distance to a reference of which the covariance's square root is known."""
    product = root @ ours.cov @ root
    if not (product.isfinite().all() and mean.isfinite().all() and ours.mean.isfinite().all()):
        return ours.mean.sum() * torch.nan  # LAPACK would raise where a training loop wants to see a loss
    values = torch.linalg.eigvalsh((product + product.T) / 2)
    rounding = values.detach().abs().max() * len(values) * torch.finfo(values.dtype).eps
    certain = values > rounding
    # sqrt has no finite slope at 0, and 0 · inf would be NaN: the values that pass no gradient on never see its sqrt
    roots = torch.where(certain, values, 1).sqrt()
    overlap = torch.where(certain, roots, values.detach().clamp_min(0).sqrt()).sum()
    return (ours.mean - mean).square().sum() + ours.cov.trace() + root.square().sum() - 2 * overlap


class FeatureQueue(Float32Buffers):
    """The newest ``size`` rows of features, without gradient, and their moments.

    Sums of rows and of their outer products follow what enters and leaves, so that a step costs what its batch costs,
    whatever the size. Everything is in buffers: a queue that is saved and loaded goes on with the same bits.
    """

    rows: Tensor
    pushed: Tensor
    total: Tensor
    outer: Tensor

    def __init__(self, features: int, *, size: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, features))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))
        self.register_buffer("total", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("outer", torch.zeros(features, features, dtype=torch.float64))

    def __len__(self) -> int:
        """Rows that are filled."""
        return min(int(self.pushed), len(self.rows))

    def contents(self) -> Float[Tensor, "n f"]:
        """The filled rows, oldest first."""
        end = int(self.pushed)
        return self.rows[torch.arange(end - len(self), end, device=self.rows.device) % len(self.rows)]

    @torch.no_grad()
    def push(self, features: Features) -> None:
        """Take rows in; the oldest leave."""
        end = int(self.pushed) + len(features)
        new = features.to(self.rows.dtype)[-len(self.rows) :]
        places = torch.arange(end - len(new), end, device=self.rows.device) % len(self.rows)
        old = self.rows[places].double()  # rows that were never filled are 0
        self.total += new.double().sum(0) - old.sum(0)
        self.outer += new.double().T @ new.double() - old.T @ old
        self.rows[places] = new
        self.pushed += len(features)

    def moments(self, batch: Features) -> Moments:
        """Moments of the filled rows and a batch together, with the batch's gradient; as :func:`moments`."""
        rows = batch.to(self.rows.dtype).double()
        count = len(self) + len(rows)
        mean = (self.total + rows.sum(0)) / count
        cov = (self.outer + rows.T @ rows - count * torch.outer(mean, mean)) / max(count - 1, 1)
        return Moments(mean, cov)


class FrechetLoss(Float32Buffers):
    """Fréchet distance of a population of features to a reference, whose gradient comes from the batch at hand.

    The population is the batch and a queue of the newest ``size`` features before it. The reference is either given
    once as moments, or gathered in a queue of its own from what comes with each call.

    In training mode a call takes its batch into the queue. Under ``torch.distributed`` it first gathers the batches of
    all processes in the order of their ranks: every process must call it with as many rows, all hold the same queue,
    and gradients that are averaged over processes, as DistributedDataParallel does, are those of one process with the
    whole batch. In evaluation mode it measures the queue with the batch of this process, and changes nothing.

    **Scale of the gradient.** A row of a batch of B moves the statistics of a population of N by 1/N only, so that the
    derivative shrinks as B/N while the queue fills: to 2 % for 1,024 rows before a queue of 50,000. With ``gradient``
    "batch" it is multiplied by N/B, the derivative in the case that the whole population moved as its batch does, so
    that a weight means the same for every size of queue; with "population" it is left as it is. The value is the same.
    What FD-loss itself does is not known to us.

    Args:
        features: width of a row.
        size: rows of the queue; FD-loss takes about 50,000 for gradient batches of about 1,024. With fewer rows than
            ``features`` the covariance is singular; the distance stays defined, but says little.
        reference: fixed moments of the reference.
    """

    reference_mean: Tensor
    reference_root: Tensor

    def __init__(
        self,
        features: int,
        *,
        size: int = 50_000,
        reference: Moments | None = None,
        gradient: Literal["batch", "population"] = "batch",
    ) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size: must be at least 1, got {size}")
        self.features, self.gradient = features, gradient
        self.queue = FeatureQueue(features, size=size)
        self.reference_queue = FeatureQueue(features, size=size) if reference is None else None
        if reference is not None:
            if len(reference.mean) != features:
                raise ValueError(f"reference: must be of {features} features, got {len(reference.mean)}")
            self.register_buffer("reference_mean", reference.mean.detach().double())
            self.register_buffer("reference_root", _root(reference.cov.detach().double()))

    def extra_repr(self) -> str:
        return f"features={self.features}, gradient={self.gradient!r}"

    def forward(self, features: Features, reference: Float[Tensor, "r f"] | None = None) -> Scalar:
        """The distance, float32; ``reference`` are features of the reference, where its moments are not fixed."""
        batch = self._taken(features)
        ours = self.queue.moments(self._scaled(batch))
        if self.reference_queue is None:
            if reference is not None:
                raise ValueError("FrechetLoss: has a fixed reference; give it no other")
            distance = _distance(ours, self.reference_mean, self.reference_root)
        else:
            if reference is None:
                raise ValueError("FrechetLoss: has no fixed reference; give features of the reference with each call")
            theirs_now = self._taken(reference.detach())
            theirs = self.reference_queue.moments(theirs_now)
            distance = _distance(ours, theirs.mean, _root(theirs.cov))
            if self.training:
                self.reference_queue.push(theirs_now)
        if self.training:
            self.queue.push(batch)
        return distance.float()

    def _taken(self, features: Tensor) -> Tensor:
        if features.shape[1] != self.features:
            raise ValueError(f"FrechetLoss: takes features of width {self.features}, got {features.shape[1]}")
        return _gathered(features.float()) if self.training else features.float()

    def _scaled(self, batch: Tensor) -> Tensor:
        """The same numbers, whose gradient is multiplied as the class says."""
        if self.gradient == "population":
            return batch
        fixed = batch.detach()
        return fixed + (len(self.queue) + len(batch)) / len(batch) * (batch - fixed)


def _gathered(rows: Tensor) -> Tensor:
    """The rows of all processes in the order of their ranks."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    return _Gather.apply(rows)  # pyright: ignore[reportReturnType]


class _Gather(torch.autograd.Function):
    """Gathers rows; the gradient of a process's rows is multiplied by the number of processes.

    Every process computes the same loss of the same gathered rows, so that the gradient of its own rows needs no
    further communication; the factor makes up for the average over processes that follows.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        ctx.first, ctx.size = dist.get_rank() * len(rows), len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return dist.get_world_size() * grads[0][ctx.first : ctx.first + ctx.size]
