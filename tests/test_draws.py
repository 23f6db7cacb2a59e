"""Addressed random numbers: what each belongs to, and what it does not depend on."""

from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from latelier.blocks import Draws, address, cpu_normal

every_kind = pytest.mark.parametrize("kind", ["normal", "uniform"])


def draw(kind: str, *, seed: int = 3, step: int = 5, first: int = 0, batch: int = 4, stream: str = "noise") -> Tensor:
    return getattr(Draws(seed, step, first=first, batch=batch), kind)(stream, 2, 3)


@every_kind
@given(seed=st.integers(0, 2**63 - 1), step=st.integers(0, 10**9), cuts=st.lists(st.integers(0, 6)))
def test_a_split_batch_draws_what_the_whole_batch_draws(kind: str, seed: int, step: int, cuts: list[int]) -> None:
    edges = sorted({0, 6, *cuts})
    parts = [draw(kind, seed=seed, step=step, first=first, batch=last - first) for first, last in pairwise(edges)]
    assert torch.equal(torch.cat(parts), draw(kind, seed=seed, step=step, batch=6))


@every_kind
def test_the_same_address_gives_the_same_numbers_whatever_was_drawn_before(kind: str) -> None:
    first = draw(kind)
    torch.manual_seed(1)
    draws = Draws(3, 5, first=0, batch=4)
    draws.normal("other", 7)
    assert torch.equal(getattr(draws, kind)("noise", 2, 3), first)
    assert torch.equal(getattr(draws, kind)("noise", 2, 3), first)


@every_kind
def test_seed_step_stream_and_position_each_matter(kind: str) -> None:
    draws = [draw(kind), draw(kind, seed=4), draw(kind, step=6), draw(kind, stream="times"), draw(kind, first=4)]
    numbers = torch.stack(draws).flatten()
    assert len(numbers.unique()) == len(numbers)


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    draw("normal")
    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_follow_their_distributions() -> None:
    draws = Draws(0, 0, first=0, batch=2000)
    normal, uniform = draws.normal("n", 10), draws.uniform("u", 10)
    assert (normal.shape, normal.dtype) == ((2000, 10), torch.float32)
    assert abs(normal.mean().item()) < 0.03
    assert abs(normal.std().item() - 1) < 0.03
    assert abs(uniform.mean().item() - 0.5) < 0.01
    assert 0 <= uniform.min() < 0.001 < 0.999 < uniform.max() < 1
    assert abs(torch.corrcoef(normal.T).triu(1)).max() < 0.12  # columns of a sample do not follow each other
    assert abs(torch.corrcoef(torch.stack([normal[:-1, 0], normal[1:, 0]]))[0, 1]) < 0.1  # nor do samples


def test_a_number_without_shape_is_one_a_sample() -> None:
    assert Draws(0, 0, first=0, batch=3).uniform("t").shape == (3,)


@given(key=st.lists(st.integers() | st.text(max_size=5), max_size=4))
def test_addresses_are_seeds_that_a_generator_takes(key: list[int | str]) -> None:
    seed = address(*key)
    assert 0 <= seed < 2**63
    torch.Generator().manual_seed(seed)


def test_addresses_never_change() -> None:
    """A run that another release resumes, or another machine joins, draws the same numbers."""
    assert address(1, "noise", 2, 3) == 6544455103643798162


# --- an opaque step of a graph ----------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**63 - 1), shape=st.lists(st.integers(0, 5), max_size=4))
def test_normal_numbers_of_a_seed_are_those_of_torch(seed: int, shape: list[int]) -> None:
    before = torch.get_rng_state()
    numbers = cpu_normal(shape, seed)
    assert (numbers.dtype, numbers.device.type) == (torch.float32, "cpu")
    assert torch.equal(numbers, torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", [0, 2**31, 2**32, 2**53 + 1, 2**63 - 1])
def test_seeds_of_up_to_63_bits_are_taken_whole(seed: int) -> None:
    """None goes through a float or an int32. (Torch's CPU generator itself uses the lower 32 bits.)"""
    expected = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(cpu_normal((3, 4), seed), expected)
    assert not torch.equal(cpu_normal((3, 4), seed - 1 if seed else 1), expected)


def test_without_a_seed_the_global_generator_is_drawn_from() -> None:
    torch.manual_seed(7)
    expected = torch.randn(2, 3), torch.randn(2, 3)
    torch.manual_seed(7)
    drawn = cpu_normal((2, 3), None), cpu_normal((2, 3), None)
    assert all(torch.equal(x, y) for x, y in zip(drawn, expected, strict=True))
    assert not torch.equal(*drawn)


def test_drawing_is_one_node_of_a_graph_and_never_folded_into_a_constant() -> None:
    torch.library.opcheck(torch.ops.latelier.cpu_normal.default, ([2, 3], 5), test_utils="test_schema")
    torch.library.opcheck(torch.ops.latelier.cpu_normal.default, ([2, 3], 5), test_utils="test_faketensor")
    with FakeTensorMode():
        fake = cpu_normal((2, 3), None)
    assert isinstance(fake, FakeTensor)
    assert (fake.shape, fake.dtype, fake.device.type) == ((2, 3), torch.float32, "cpu")
    assert torch.Tag.nondeterministic_seeded in torch.ops.latelier.cpu_normal.default.tags
