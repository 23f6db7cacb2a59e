"""Fréchet distance: its formula, gradients of singular covariances, queues, and two processes that act as one."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from latelier.blocks import FeatureQueue, FrechetLoss, Moments, frechet_distance, moments
from latelier.families import read_tensors, write_tensors

widths, seeds = st.integers(1, 8), st.integers(0, 2**31)


def covariance(width: int, rank: int) -> Tensor:
    factor = torch.randn(width, rank, dtype=torch.float64)
    return factor @ factor.T / rank


def plain_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """The textbook form, tr (S S')^½ from the eigenvalues of a product that is not symmetric."""
    values = np.linalg.eigvals((cov_a @ cov_b).numpy())
    overlap = np.sqrt(values.real.clip(0)).sum()
    return ((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace()).item() - 2 * overlap


# --- the distance -------------------------------------------------------------------------------------------------


@given(width=widths, seed=seeds)
def test_the_distance_is_that_of_the_textbook(width: int, seed: int) -> None:
    torch.manual_seed(seed)
    a, b = ((torch.randn(width, dtype=torch.float64), covariance(width, width + 3)) for _ in range(2))
    found = frechet_distance(*a, *b)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(plain_distance(*a, *b), rel=1e-6, abs=1e-7)
    assert found.item() == pytest.approx(frechet_distance(*b, *a).item(), rel=1e-9, abs=1e-9)
    assert frechet_distance(*a, *a).item() == pytest.approx(0, abs=1e-9)


def test_the_distance_of_commuting_covariances_is_that_of_their_roots() -> None:
    mean, a, b = torch.zeros(3), torch.tensor([4.0, 9.0, 0.0]), torch.tensor([1.0, 16.0, 25.0])
    assert frechet_distance(mean, a.diag(), mean + 2, b.diag()).item() == pytest.approx(12 + 1 + 1 + 25)


@pytest.mark.parametrize(("rank_a", "rank_b"), [(2, 6), (6, 2), (2, 2), (0, 6), (6, 0), (0, 0)])
def test_gradients_of_singular_covariances_are_finite(rank_a: int, rank_b: int) -> None:
    """Of rows, too: the gradient of a covariance alone would say nothing of a population smaller than its width."""
    cov_a, cov_b = (
        covariance(6, rank) if rank else torch.zeros(6, 6, dtype=torch.float64) for rank in (rank_a, rank_b)
    )
    mean = torch.zeros(6, requires_grad=True)
    cov_a.requires_grad_()
    frechet_distance(mean, cov_a, torch.ones(6), cov_b).backward()
    rows = torch.randn(rank_a + 1, 6, requires_grad=True)
    ours = moments(rows)
    frechet_distance(ours.mean, ours.cov, torch.ones(6), cov_b).backward()
    for leaf in (mean, cov_a, rows):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().max() < 1e3


def test_gradients_are_those_of_finite_differences() -> None:
    reference = moments(torch.randn(20, 3))

    def distance(rows: Tensor) -> Tensor:
        ours = moments(rows)
        return frechet_distance(ours.mean, ours.cov, reference.mean, reference.cov)

    assert torch.autograd.gradcheck(distance, torch.randn(9, 3, dtype=torch.float64, requires_grad=True))


def test_the_reference_gets_no_gradient() -> None:
    mean, cov = torch.zeros(2, requires_grad=True), torch.eye(2).requires_grad_()
    assert not frechet_distance(torch.ones(2), torch.eye(2), mean, cov).requires_grad


@pytest.mark.parametrize("place", range(4))
def test_moments_that_are_not_finite_give_nan(place: int) -> None:
    given = [torch.zeros(2), torch.eye(2), torch.zeros(2), torch.eye(2)]
    given[place] = given[place] + torch.tensor([torch.inf, 0.0])
    assert frechet_distance(*given).isnan()


@given(n=st.integers(2, 12), width=widths, seed=seeds)
def test_moments_are_mean_and_unbiased_covariance(n: int, width: int, seed: int) -> None:
    rows = torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) + 5
    found = moments(rows)
    np.testing.assert_allclose(found.mean, rows.double().numpy().mean(0))
    np.testing.assert_allclose(found.cov, np.cov(rows.double().numpy(), rowvar=False).reshape(width, width))


def test_one_row_has_no_covariance_and_no_row_is_refused() -> None:
    assert not moments(torch.randn(1, 3)).cov.any()
    with pytest.raises(ValueError) as caught:
        moments(torch.randn(0, 3))
    assert str(caught.value) == "moments: takes at least one row of features, got none"


# --- the queue ----------------------------------------------------------------------------------------------------


@given(size=st.integers(1, 9), batches=st.lists(st.integers(0, 12), max_size=8), seed=seeds)
def test_a_queue_keeps_the_newest_rows_and_their_moments(size: int, batches: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    queue, everything = FeatureQueue(3, size=size), torch.zeros(0, 3)
    for count in batches:
        rows = torch.randn(count, 3) + 2
        queue.push(rows)
        everything = torch.cat([everything, rows])
    newest, batch = everything[-size:], torch.randn(4, 3)
    assert len(queue) == len(newest)
    assert torch.equal(queue.contents(), newest)
    found, plain = queue.moments(batch), moments(torch.cat([newest, batch]))
    torch.testing.assert_close(found.mean, plain.mean)
    torch.testing.assert_close(found.cov, plain.cov, rtol=1e-9, atol=1e-12)


def test_sums_that_follow_the_queue_stay_exact_over_many_steps() -> None:
    queue = FeatureQueue(4, size=50)
    for _ in range(3000):
        queue.push(3 * torch.randn(7, 4) + 10)
    batch = torch.randn(5, 4)
    plain = moments(torch.cat([queue.contents(), batch]))
    torch.testing.assert_close(queue.moments(batch).cov, plain.cov, rtol=1e-9, atol=0)


def test_a_saved_queue_goes_on_with_the_same_bits() -> None:
    loss = FrechetLoss(3, size=7)
    for _ in range(4):
        loss(torch.randn(3, 3), torch.randn(3, 3))
    again = FrechetLoss(3, size=7)
    again.load_state_dict(copy.deepcopy(loss.state_dict()))
    for _ in range(4):
        ours, theirs = torch.randn(3, 3), torch.randn(3, 3)
        assert torch.equal(loss(ours, theirs), again(ours, theirs))
    for name, tensor in loss.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_loss_that_changes_its_dtype_keeps_its_statistics() -> None:
    for reference in (None, moments(torch.randn(9, 3))):
        loss = FrechetLoss(3, size=7, reference=reference)
        before = {name: tensor.dtype for name, tensor in loss.state_dict().items()}
        assert {name: tensor.dtype for name, tensor in loss.bfloat16().state_dict().items()} == before


# --- the loss -----------------------------------------------------------------------------------------------------


def test_the_loss_is_the_distance_of_queue_and_batch_to_the_reference() -> None:
    loss, seen, seen_reference = FrechetLoss(3, size=8), torch.zeros(0, 3), torch.zeros(0, 3)
    for _ in range(5):
        ours, theirs = torch.randn(4, 3), 2 * torch.randn(5, 3)
        a = moments(torch.cat([seen[-8:], ours]))
        b = moments(torch.cat([seen_reference[-8:], theirs]))
        value = loss(ours, theirs)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, frechet_distance(a.mean, a.cov, b.mean, b.cov).float())
        seen, seen_reference = torch.cat([seen, ours]), torch.cat([seen_reference, theirs])


def test_fixed_moments_go_through_a_file(tmp_path: Path) -> None:
    known = moments(torch.randn(30, 3))
    write_tensors(tmp_path / "reference.safetensors", vars(known), {})
    loss = FrechetLoss(3, size=8, reference=Moments(**read_tensors(tmp_path / "reference.safetensors")[0]))
    rows = torch.randn(6, 3)
    ours = moments(rows)
    expected = frechet_distance(ours.mean, ours.cov, known.mean, known.cov).float()
    torch.testing.assert_close(loss(rows), expected)


@pytest.mark.parametrize(("gradient", "factor"), [("batch", 1.0), ("population", 4 / 20)])
def test_the_gradient_is_of_the_batch_alone_and_scales_as_the_class_says(
    gradient: Literal["batch", "population"], factor: float
) -> None:
    """Where the queue holds copies of the batch, the whole population moving alike is the batch's own distance."""
    loss = FrechetLoss(2, size=100, reference=moments(torch.randn(30, 2)), gradient=gradient)
    batch = torch.randn(4, 2, requires_grad=True)
    for _ in range(4):
        loss(batch.detach())
    value = loss(batch)
    value.backward()
    copies = [batch.detach().clone().requires_grad_() for _ in range(5)]
    ours = moments(torch.cat(copies))
    root = loss.reference_root
    plain = frechet_distance(ours.mean, ours.cov, loss.reference_mean, root @ root)
    plain.backward()
    torch.testing.assert_close(value, plain.float())
    assert batch.grad is not None
    together = torch.stack([c.grad for c in copies if c.grad is not None]).sum(0)
    torch.testing.assert_close(batch.grad, factor * together)


def test_evaluation_measures_and_changes_nothing() -> None:
    loss = FrechetLoss(3, size=7)
    loss(torch.randn(4, 3), torch.randn(4, 3))
    before = copy.deepcopy(loss.state_dict())
    ours, theirs = torch.randn(2, 3), torch.randn(2, 3)
    loss.eval()
    assert torch.equal(loss(ours, theirs), loss(ours, theirs))
    assert all(torch.equal(tensor, before[name]) for name, tensor in loss.state_dict().items())


def test_descent_brings_a_population_to_its_reference() -> None:
    reference = moments(torch.randn(500, 4) @ torch.randn(4, 4) + 3)
    loss = FrechetLoss(4, size=64, reference=reference)
    generator = torch.nn.Linear(4, 4)
    optimiser = torch.optim.Adam(generator.parameters(), lr=0.05)
    values = []
    for _ in range(300):
        value = loss(generator(torch.randn(16, 4)))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < 0.1 * values[0]


@pytest.mark.parametrize(
    ("fixed", "ours", "theirs", "message"),
    [
        (True, 3, 3, "FrechetLoss: has a fixed reference; give it no other"),
        (False, 3, None, "FrechetLoss: has no fixed reference; give features of the reference with each call"),
        (False, 4, 4, "FrechetLoss: takes features of width 3, got 4"),
    ],
)
def test_what_a_loss_cannot_take_is_refused(fixed: bool, ours: int, theirs: int | None, message: str) -> None:
    loss = FrechetLoss(3, size=4, reference=moments(torch.randn(9, 3)) if fixed else None)
    with pytest.raises(ValueError) as caught:
        loss(torch.randn(2, ours), None if theirs is None else torch.randn(2, theirs))
    assert str(caught.value) == message
    assert len(loss.queue) == 0


def test_a_loss_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        FrechetLoss(3, size=0)
    assert str(caught.value) == "size: must be at least 1, got 0"
    with pytest.raises(ValueError) as caught:
        FrechetLoss(3, reference=moments(torch.randn(9, 4)))
    assert str(caught.value) == "reference: must be of 3 features, got 4"


# --- processes ----------------------------------------------------------------------------------------------------

LOOP = """
import os, pathlib, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from latelier.blocks import FrechetLoss
from latelier.families import write_tensors

torch.set_num_threads(1)
size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
if size > 1:
    dist.init_process_group("gloo")
torch.manual_seed(0)
generator, loss = torch.nn.Linear(3, 3), FrechetLoss(3, size=20)
module = DistributedDataParallel(generator) if size > 1 else generator
optimiser = torch.optim.SGD(generator.parameters(), lr=0.05)
draws = torch.Generator().manual_seed(1)
for _ in range(6):
    ours, theirs = (torch.randn(8, 3, generator=draws).chunk(size)[rank] for _ in range(2))
    value = loss(module(ours), 2 * theirs + 1)
    optimiser.zero_grad()
    value.backward()
    optimiser.step()
write_tensors(pathlib.Path(f"{sys.argv[1]}-{rank}.safetensors"), loss.state_dict() | generator.state_dict(), {})
if size > 1:
    dist.destroy_process_group()
"""


def test_two_processes_descend_as_one_and_hold_the_same_queue(tmp_path: Path) -> None:
    (tmp_path / "loop.py").write_text(LOOP)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    for start, out in ((torchrun, "both"), ([], "alone")):
        done = subprocess.run(
            [sys.executable, *start, "loop.py", out],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    first, second, alone = (
        read_tensors(tmp_path / f"{name}.safetensors")[0] for name in ("both-0", "both-1", "alone-0")
    )
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
