"""Which pictures make up each batch, as a function of the seed and the step alone: there is no state to save.

Every batch comes from one group of pictures. Group ``j`` with ``n_j`` members gives ``floor((e n_j + o_j) / B)``
batches of ``B`` in its first ``e`` epochs, ``o_j`` being a fixed offset below ``B``: its share of an epoch is exact in
the long run. The batches of an epoch come in random order; the members of a group come in one permutation after the
other, also across the bounds of batches and epochs. With at least ``B`` members in each group, every picture has been
seen ``e - 1`` to ``e + 1`` times after ``e`` epochs.

Permutations sort the raw output of Philox (Salmon et al. 2011), which numpy keeps the same in all versions.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from ..blocks.draws import address

Indices = Int64[np.ndarray, "n"]


@dataclass(frozen=True, eq=False)
class Group:
    """Pictures that share batches: their indices in the source, and (height, width) of their crops."""

    members: Indices
    shape: tuple[int, int]


def permutation(n: int, *key: int | str) -> Indices:
    """A permutation of 0 .. n - 1 that belongs to an address, the same on every machine."""
    return np.argsort(np.random.Philox(key=address(*key)).random_raw(n), kind="stable")


class Shuffled:
    """The numbers 0 .. n - 1 over and over, each time in another order."""

    def __init__(self, n: int, *key: int | str) -> None:
        self.n, self.key = n, key
        self._last: tuple[int, Indices] | None = None

    def take(self, first: int, count: int) -> Indices:
        """Return the elements ``first`` .. ``first + count - 1`` of the endless sequence."""
        found = []
        while count:
            turn, start = divmod(first, self.n)
            piece = self._turn(turn)[start : start + count]
            found.append(piece)
            first, count = first + len(piece), count - len(piece)
        return np.concatenate(found)

    def _turn(self, turn: int) -> Indices:
        if self._last is None or self._last[0] != turn:
            self._last = turn, permutation(self.n, *self.key, turn)
        return self._last[1]


class Order:
    """The batches of a training run over groups of pictures."""

    def __init__(self, groups: Sequence[Group], *, batch: int, seed: int) -> None:
        self.groups, self.batch, self.seed = groups, batch, seed
        self._sizes = np.array([len(group.members) for group in groups])
        self._offsets = np.array([address(seed, "offset", j) % batch for j in range(len(groups))])
        self._members = [Shuffled(len(group.members), seed, "members", j) for j, group in enumerate(groups)]
        self._epoch: tuple[int, Indices] | None = None

    def begun(self, epoch: int) -> int:
        """Return how many batches come before an epoch."""
        return int(self._begun(epoch).sum())

    def epoch(self, step: int) -> int:
        """Return the epoch to which a step belongs; one smaller than a batch may have no step."""
        beyond = (step + 1 + len(self.groups)) * self.batch // int(self._sizes.sum()) + 2
        return bisect_right(range(beyond), step, key=self.begun) - 1

    def samples(self, step: int, first: int, count: int) -> tuple[Group, Indices]:
        """Return the group of a step's batch, and which of its members stand at ``first`` .. in that batch."""
        epoch = self.epoch(step)
        before, turns = self._begun(epoch), self._turns(epoch)
        place = step - int(before.sum())
        group = int(turns[place])
        number = int(before[group]) + int(np.count_nonzero(turns[:place] == group))
        return self.groups[group], self._members[group].take(number * self.batch + first, count)

    def _begun(self, epoch: int) -> Indices:
        """Batches of each group before an epoch."""
        return (epoch * self._sizes + self._offsets) // self.batch

    def _turns(self, epoch: int) -> Indices:
        """The groups of an epoch's batches, in their order."""
        if self._epoch is None or self._epoch[0] != epoch:
            counts = self._begun(epoch + 1) - self._begun(epoch)
            turns = np.repeat(np.arange(len(counts)), counts)
            self._epoch = epoch, turns[permutation(len(turns), self.seed, "epoch", epoch)]
        return self._epoch[1]
