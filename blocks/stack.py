"""Encoders and decoders made of any block.

The decoder is the skip-concatenation topology of SPRINT (arXiv 2510.21986) as the diffusion autoencoders have it: start
blocks, middle blocks that may be dropped for a learned mask feature, a fusion of both, end blocks (2 + 4 + 2).
"""

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from .fcdm import FCDMBlockConfig
from .modulation import AdaLN, LowRankDelta
from .patch import Patchify, Unpatchify
from .registry import part
from .shapes import Cond, Image, Latent, Map, Times
from .slots import BlockConfig, DecoderConfig, EncoderConfig
from .time import TimeEmbedding


class StackEncoder(nn.Module):
    """Patchify, unconditioned blocks, 1x1 convolution. No positions and no norm of its own."""

    def __init__(self, *, channels: int, patch: int, width: int, out: int, block: BlockConfig, depth: int) -> None:
        super().__init__()
        self.patchify = Patchify(channels, width, patch=patch)
        self.blocks = nn.ModuleList(block.build(width) for _ in range(depth))
        self.to_bottleneck = nn.Conv2d(width, out, 1)

    def forward(self, image: Image) -> Map:
        x = self.patchify(image)
        for block in self.blocks:
            x = block(x)
        return self.to_bottleneck(x)


@part("encoder/stack")
class StackEncoderConfig(EncoderConfig):
    """Patchify, then ``depth`` blocks of one kind."""

    block: BlockConfig = FCDMBlockConfig()
    depth: int = 4

    def __post_init__(self) -> None:
        if self.depth < 0:
            raise ValueError(f"depth: must not be negative, got {self.depth}")

    def build(self, *, channels: int, patch: int, width: int, out: int) -> StackEncoder:
        return StackEncoder(channels=channels, patch=patch, width=width, out=out, block=self.block, depth=self.depth)


class SkipDecoder(nn.Module):
    """Denoiser of images given raw latents, conditioned on time by low-rank AdaLN shared among all blocks."""

    def __init__(
        self,
        *,
        channels: int,
        patch: int,
        width: int,
        latent: int,
        block: BlockConfig,
        start: int,
        middle: int,
        end: int,
        rank: int,
    ) -> None:
        super().__init__()
        self.patchify = Patchify(channels, width, patch=patch)
        self.latent_up = nn.Conv2d(latent, width, 1)
        self.fuse_in = nn.Conv2d(2 * width, width, 1)
        self.time_embed = TimeEmbedding(width)
        size = block.modulations * width
        self.adaln_base = AdaLN(width, size)
        self.adaln_deltas = nn.ModuleList(LowRankDelta(width, size, rank=rank) for _ in range(start + middle + end))
        self.start_blocks, self.middle_blocks, self.end_blocks = (
            nn.ModuleList(self._modulated(block, width) for _ in range(count)) for count in (start, middle, end)
        )
        self.fuse_skip = nn.Conv2d(2 * width, width, 1)
        self.path_drop_mask_feature = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.out_proj = Unpatchify(width, channels, patch=patch)

    @staticmethod
    def _modulated(block: BlockConfig, width: int) -> nn.Module:
        built = block.build(width, cond=width)
        built.modulate = nn.Identity()  # the packed numbers come from the shared low-rank modulation
        return built

    def forward(
        self, x_t: Image, t: Times, latent: Latent, drop_middle_blocks: bool | Bool[Tensor, " b"] = False
    ) -> Image:
        start, middle = len(self.start_blocks), len(self.middle_blocks)
        modulations = self._modulations(self.time_embed(t))
        x = self.fuse_in(torch.cat([self.patchify(x_t), self.latent_up(latent)], dim=1))
        x = shallow = _run(self.start_blocks, x, modulations[:start])
        if drop_middle_blocks is not True:
            x = _run(self.middle_blocks, x, modulations[start : start + middle])
        if drop_middle_blocks is not False:
            dropped = torch.as_tensor(drop_middle_blocks, device=x.device).reshape(-1, 1, 1, 1)
            x = torch.where(dropped, self.path_drop_mask_feature.to(x.dtype), x)
        x = self.fuse_skip(torch.cat([shallow, x], dim=1))
        return self.out_proj(_run(self.end_blocks, x, modulations[start + middle :]))

    def _modulations(self, cond: Cond) -> list[Tensor]:
        base = self.adaln_base(cond)
        return [base + delta(cond) for delta in self.adaln_deltas]


def _run(blocks: nn.ModuleList, x: Map, modulations: list[Tensor]) -> Map:
    for block, modulation in zip(blocks, modulations, strict=True):
        x = block(x, modulation)
    return x


@part("decoder/skip")
class SkipDecoderConfig(DecoderConfig):
    """Denoiser with a skip around its middle: ``start + middle + end`` blocks of one kind.

    ``rank`` is that of each block's own part of the modulation.
    """

    block: BlockConfig = FCDMBlockConfig()
    start: int = 2
    middle: int = 4
    end: int = 2
    rank: int = 128

    def __post_init__(self) -> None:
        for name in ("start", "middle", "end"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must not be negative, got {getattr(self, name)}")
        if self.rank < 1:
            raise ValueError(f"rank: must be at least 1, got {self.rank}")

    def build(self, *, channels: int, patch: int, width: int, latent: int) -> SkipDecoder:
        return SkipDecoder(
            channels=channels,
            patch=patch,
            width=width,
            latent=latent,
            block=self.block,
            start=self.start,
            middle=self.middle,
            end=self.end,
            rank=self.rank,
        )
