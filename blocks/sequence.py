"""A block made of blocks, so that any mixture fits wherever one block does."""

from typing import Any

from torch import nn

from .dit import DiTBlockConfig
from .fcdm import FCDMBlockConfig
from .modulation import AdaLN
from .registry import part
from .shapes import Cond, Map
from .slots import BlockConfig


class SequenceBlock(nn.Module):
    """Blocks one after another; with a condition, one modulation makes the numbers of all."""

    modulate: nn.Module | None

    def __init__(self, width: int, blocks: tuple[BlockConfig, ...], *, cond: int | None = None) -> None:
        super().__init__()
        self.sizes = [block.modulations * width for block in blocks]
        built: list[Any] = [block.build(width, cond=cond) for block in blocks]
        self.modulate = None
        if cond is not None:
            self.modulate = AdaLN(cond, sum(self.sizes))
            for block in built:
                block.modulate = nn.Identity()
        self.blocks = nn.ModuleList(built)

    def forward(self, x: Map, cond: Cond | None = None) -> Map:
        if self.modulate is None:
            for block in self.blocks:
                x = block(x)
            return x
        for block, numbers in zip(self.blocks, self.modulate(cond).split(self.sizes, dim=1), strict=True):
            x = block(x, numbers)
        return x


@part("block/sequence")
class SequenceBlockConfig(BlockConfig):
    """Blocks one after another, as one block: ``blocks=4 * (FCDMBlockConfig(),) + (DiTBlockConfig(),)``."""

    blocks: tuple[BlockConfig, ...] = (FCDMBlockConfig(), DiTBlockConfig())

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ValueError("blocks: is empty; name one or more blocks")

    @property
    def modulations(self) -> int:
        return sum(block.modulations for block in self.blocks)

    @property
    def global_context(self) -> bool:
        return any(block.global_context for block in self.blocks)

    def build(self, width: int, *, cond: int | None = None) -> SequenceBlock:
        return SequenceBlock(width, self.blocks, cond=cond)
