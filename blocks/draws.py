"""Random numbers of training, addressed instead of consumed.

Each number belongs to (seed, stream, step, position of the sample in the global batch). No generator state is ever
saved: a run that was killed, or that goes on with another number of processes, draws the same numbers.
"""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def address(*key: int | str) -> int:
    """Return a 63-bit seed for an address, the same on every machine."""
    text = "/".join(map(str, key))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


class Draws:
    """Random tensors for ``batch`` samples that stand at ``first``, ``first + 1``, ... in the global batch of ``step``.

    One stream name must be used once a step: the same name gives the same numbers again. ``whole`` is the size of the
    global batch, None where nothing comes after these samples.
    """

    def __init__(
        self,
        seed: int,
        step: int,
        *,
        first: int,
        batch: int,
        device: torch.device | str = "cpu",
        whole: int | None = None,
    ) -> None:
        self.seed, self.step, self.first, self.batch = seed, step, first, batch
        self.device = torch.device(device)
        self.whole = first + batch if whole is None else whole

    def _generators(self, stream: str) -> list[torch.Generator]:
        positions = range(self.first, self.first + self.batch)
        return [
            torch.Generator(self.device).manual_seed(address(self.seed, stream, self.step, position))
            for position in positions
        ]

    def normal(self, stream: str, *shape: int) -> Float[Tensor, "b ..."]:
        """Standard normal numbers ``[batch, *shape]``, float32."""
        rows = [torch.randn(shape, generator=g, device=self.device) for g in self._generators(stream)]
        return torch.stack(rows)

    def uniform(self, stream: str, *shape: int) -> Float[Tensor, "b ..."]:
        """Uniform numbers in [0, 1) ``[batch, *shape]``, float32."""
        rows = [torch.rand(shape, generator=g, device=self.device) for g in self._generators(stream)]
        return torch.stack(rows)

    def chance(self, stream: str, *shape: int, p: float) -> Float[Tensor, "b ..."]:
        """Ones with probability ``p``, else zeros, ``[batch, *shape]``, float32: for masks as large as activations.

        They are drawn for the whole global batch at once, and belong to (seed, stream, step) and its size.
        """
        generator = torch.Generator(self.device).manual_seed(address(self.seed, stream, self.step))
        drawn = torch.empty((self.whole, *shape), dtype=torch.bool, device=self.device)
        return drawn.bernoulli_(p, generator=generator)[self.first : self.first + self.batch].float()


@torch.library.custom_op("latelier::cpu_normal", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def cpu_normal(shape: Sequence[int], seed: int | None) -> Tensor:
    """Standard normal numbers drawn on the CPU, float32: the same for every device, and an opaque step of a graph.

    ``seed`` None draws from torch's global generator.
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator)


@cpu_normal.register_fake
def _(shape: Sequence[int], seed: int | None) -> Tensor:
    return torch.empty(tuple(shape))
