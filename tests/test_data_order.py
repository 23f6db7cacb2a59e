"""The order of training is a function of the seed and the step, and treats all pictures alike."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from latelier.training import order

seed = st.integers(0, 2**63 - 1)


def groups_of(*sizes: int) -> list[order.Group]:
    """Groups that divide 0 .. sum - 1 among them."""
    bounds = np.cumsum([0, *sizes])
    return [order.Group(np.arange(a, b), (8, 8 * j + 8)) for j, (a, b) in enumerate(pairwise(bounds))]


def batches(made: order.Order, first: int, stop: int) -> list[list[int]]:
    """Indices of the pictures of each batch."""
    found = []
    for step in range(first, stop):
        group, members = made.samples(step, 0, made.batch)
        found.append(group.members[members].tolist())
    return found


@st.composite
def settings(draw: st.DrawFn) -> tuple[list[int], int]:
    """Sizes of groups that hold at least a batch, and the batch."""
    batch = draw(st.integers(1, 12))
    return draw(st.lists(st.integers(batch, 40), min_size=1, max_size=4)), batch


@given(n=st.integers(1, 200), seed=seed)
def test_a_permutation_holds_each_number_once(n: int, seed: int) -> None:
    assert sorted(order.permutation(n, seed, "x").tolist()) == list(range(n))


def test_permutations_are_the_same_on_every_machine() -> None:
    assert order.permutation(10, 0, "members", 0, 0).tolist() == [2, 0, 1, 5, 6, 4, 9, 8, 3, 7]


@given(n=st.integers(1, 30), seed=seed, first=st.integers(0, 100), count=st.integers(1, 50))
def test_a_shuffled_sequence_can_be_entered_anywhere(n: int, seed: int, first: int, count: int) -> None:
    whole = order.Shuffled(n, seed).take(0, first + count)
    assert order.Shuffled(n, seed).take(first, count).tolist() == whole[first:].tolist()
    for turn in range(len(whole) // n):
        assert sorted(whole[turn * n : (turn + 1) * n].tolist()) == list(range(n))


@given(settings=settings(), seed=seed, step=st.integers(0, 60))
def test_a_batch_depends_on_seed_and_step_alone(settings: tuple[list[int], int], seed: int, step: int) -> None:
    sizes, batch = settings
    run = order.Order(groups_of(*sizes), batch=batch, seed=seed)
    before = batches(run, 0, step + 3)
    resumed = order.Order(groups_of(*sizes), batch=batch, seed=seed)
    assert batches(resumed, step, step + 3) == before[step:]
    assert batches(run, step, step + 1) == before[step : step + 1]


@given(settings=settings(), seed=seed, step=st.integers(0, 100), local=st.integers(1, 4))
def test_processes_divide_the_same_global_batch(
    settings: tuple[list[int], int], seed: int, step: int, local: int
) -> None:
    sizes, batch = settings[0], 4 * local
    whole_group, whole = order.Order(groups := groups_of(*sizes), batch=batch, seed=seed).samples(step, 0, batch)
    for world in (1, 2, 4):
        count = batch // world
        parts = [order.Order(groups, batch=batch, seed=seed).samples(step, r * count, count) for r in range(world)]
        assert all(group is whole_group for group, _ in parts)
        assert np.concatenate([members for _, members in parts]).tolist() == whole.tolist()


@given(settings=settings(), seed=seed, epochs=st.integers(1, 12))
def test_every_picture_is_seen_once_an_epoch_give_or_take_one(
    settings: tuple[list[int], int], seed: int, epochs: int
) -> None:
    sizes, batch = settings
    made = order.Order(groups_of(*sizes), batch=batch, seed=seed)
    seen = np.bincount(np.concatenate(batches(made, 0, made.begun(epochs)) or [[]]).astype(int), minlength=sum(sizes))
    assert len(seen) == sum(sizes) and seen.min() >= epochs - 1 and seen.max() <= epochs + 1


@given(n=st.integers(1, 50), batch=st.integers(1, 80), seed=seed, steps=st.integers(1, 20))
def test_one_group_is_seen_evenly_at_every_step_even_where_it_is_smaller_than_a_batch(
    n: int, batch: int, seed: int, steps: int
) -> None:
    made = order.Order(groups_of(n), batch=batch, seed=seed)
    seen = np.bincount(np.concatenate(batches(made, 0, steps)), minlength=n)
    assert seen.sum() == steps * batch and seen.max() - seen.min() <= 1


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), batch=st.integers(1, 20), seed=seed)
def test_small_groups_have_their_share_in_the_long_run(sizes: list[int], batch: int, seed: int) -> None:
    made = order.Order(groups_of(*sizes), batch=batch, seed=seed)
    epochs = 4 * batch
    counts = np.zeros(len(sizes), int)
    for step in range(made.begun(epochs)):
        group, _ = made.samples(step, 0, 1)
        counts[group.shape[1] // 8 - 1] += 1
    assert counts.tolist() == [4 * size for size in sizes]


@given(settings=settings(), seed=seed, step=st.integers(0, 10**12))
def test_epochs_are_found_far_out_and_hold_their_steps(settings: tuple[list[int], int], seed: int, step: int) -> None:
    made = order.Order(groups_of(*settings[0]), batch=settings[1], seed=seed)
    epoch = made.epoch(step)
    assert made.begun(epoch) <= step < made.begun(epoch + 1)


@given(settings=settings(), seed=seed)
def test_batches_of_one_group_come_in_the_same_shape_and_groups_are_mixed(
    settings: tuple[list[int], int], seed: int
) -> None:
    sizes, batch = settings
    groups = groups_of(*sizes)
    made = order.Order(groups, batch=batch, seed=seed)
    for step in range(10):
        group, members = made.samples(step, 0, batch)
        assert any(group is known for known in groups)
        assert members.min() >= 0 and members.max() < len(group.members)


def test_groups_alternate_within_an_epoch() -> None:
    made = order.Order(groups_of(400, 400), batch=4, seed=0)
    widths = [made.samples(step, 0, 1)[0].shape[1] for step in range(made.begun(1))]
    assert sum(a != b for a, b in pairwise(widths)) > 60


def test_seeds_and_epochs_differ() -> None:
    first, other = (order.Order(groups_of(100), batch=100, seed=seed) for seed in (0, 1))
    assert batches(first, 0, 1) != batches(other, 0, 1)
    assert batches(first, 0, 1) != batches(first, 1, 2)


def test_a_million_pictures_are_no_burden() -> None:
    made = order.Order(groups_of(n := 1_000_000), batch=256, seed=0)
    _, members = made.samples(3 * n // 256, 0, 256)
    assert len(set(members.tolist())) == 256
    assert [made.epoch(epoch * n // 256 + 1) for epoch in range(10)] == list(range(10))
