"""Encoders and decoders made of stages, each half as large and as a rule wider than the one before (DC-AE).

A stage is blocks of one kind; between two stages stands a residual down or up. Stages count from fine to coarse. An
empty first stage becomes a down (up) without shortcut straight between pixels and the width of the second: the first
convolution of the models "in" and "mix".
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from .efficientvit import EfficientViTBlockConfig, ResBlockConfig
from .mlp import ACTIVATIONS, IN_PLACE
from .norm import PixelRMSNorm
from .registry import part
from .resample import NearestUpConfig, StridedDownConfig, average_channels, check_groups, repeat_channels
from .shapes import Image, Latent
from .slots import BlockConfig, DownConfig, PixelDecoderConfig, PixelEncoderConfig, UpConfig


class PyramidEncoder(nn.Module):
    """Convolution, stages with downs between them, convolution to latents, whose shortcut averages channels."""

    def __init__(
        self,
        *,
        channels: int,
        latent: int,
        widths: Sequence[int],
        depths: Sequence[int],
        blocks: Sequence[BlockConfig],
        down: DownConfig,
        shortcut: bool,
    ) -> None:
        super().__init__()
        self.latent, self.shortcut = latent, shortcut
        self.conv_in = (
            nn.Conv2d(channels, widths[0], 3, padding=1)
            if depths[0]
            else down.build(channels, widths[1], shortcut=False)
        )
        stages: list[nn.Module] = []
        for i, (width, depth, block) in enumerate(zip(widths, depths, blocks, strict=True)):
            stage: list[nn.Module] = [block.build(width) for _ in range(depth)]
            if depth and i + 1 < len(widths):
                stage.append(down.build(width, widths[i + 1]))
            stages.append(nn.Sequential(*stage))
        self.down_blocks = nn.ModuleList(stages)
        self.conv_out = nn.Conv2d(widths[-1], latent, 3, padding=1)
        if shortcut:
            check_groups(widths[-1], latent)

    def forward(self, image: Image) -> Latent:
        x = self.conv_in(image.contiguous(memory_format=torch.channels_last))
        for stage in self.down_blocks:
            x = stage(x)
        y = self.conv_out(x)
        return y + average_channels(x, self.latent) if self.shortcut else y


class PyramidDecoder(nn.Module):
    """Convolution from latents, whose shortcut repeats channels; stages with ups between them; norm; convolution."""

    def __init__(
        self,
        *,
        channels: int,
        latent: int,
        widths: Sequence[int],
        depths: Sequence[int],
        blocks: Sequence[BlockConfig],
        up: UpConfig,
        shortcut: bool,
        activation: Literal["relu", "silu"],
    ) -> None:
        super().__init__()
        self.shortcut, self.activation = shortcut, activation
        self.conv_in = nn.Conv2d(latent, widths[-1], 3, padding=1)
        if shortcut:
            check_groups(widths[-1], latent)
        stages: list[nn.Module] = []
        for i, (width, depth, block) in enumerate(zip(widths, depths, blocks, strict=True)):
            stage = [up.build(widths[i + 1], width)] if depth and i + 1 < len(widths) else []
            stages.append(nn.Sequential(*stage, *(block.build(width) for _ in range(depth))))
        self.up_blocks = nn.ModuleList(stages)
        last = widths[0] if depths[0] else widths[1]
        self.norm_out = PixelRMSNorm(last)
        self.conv_out = (
            nn.Conv2d(last, channels, 3, padding=1) if depths[0] else up.build(last, channels, shortcut=False)
        )

    def forward(self, latent: Latent) -> Image:
        x = self.conv_in(latent)
        if self.shortcut:
            x = x + repeat_channels(latent, x.shape[1])
        for stage in reversed(self.up_blocks):
            x = stage(x)
        x = self.norm_out(x)  # in memory of its own
        overwrite = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        return self.conv_out((IN_PLACE if overwrite else ACTIVATIONS)[self.activation](x))


_R, _E = ResBlockConfig(), EfficientViTBlockConfig(kernels=(5,))
SANA = (_R, _R, _R, _E, _E, _E)
WIDTHS = (128, 256, 512, 512, 1024, 1024)


def _check(widths: Sequence[int], depths: Sequence[int], blocks: Sequence[BlockConfig]) -> None:
    if len(widths) < 2:
        raise ValueError(f"widths: must have at least two stages, got {list(widths)}")
    for name, values in (("depths", depths), ("blocks", blocks)):
        if len(values) != len(widths):
            raise ValueError(f"{name}: must have one entry for each of the {len(widths)} widths, got {len(values)}")
    if min(widths) < 1:
        raise ValueError(f"widths: must be at least 1, got {list(widths)}")
    if min(depths) < 0 or 0 in depths[1:]:
        raise ValueError(f"depths: must be at least 1, and 0 at the first stage only, got {list(depths)}")


@part("pixel_encoder/pyramid")
class PyramidEncoderConfig(PixelEncoderConfig):
    """Stages of blocks, from fine to coarse; the defaults are dc-ae-f32c32-sana's.

    Attributes:
        widths, depths, blocks: of each stage: channels, number of blocks (0 only at the first), and their kind.
        shortcut: averages of the last stage's channels are added to the latents.
    """

    widths: tuple[int, ...] = WIDTHS
    depths: tuple[int, ...] = (2, 2, 2, 3, 3, 3)
    blocks: tuple[BlockConfig, ...] = SANA
    down: DownConfig = StridedDownConfig()
    shortcut: bool = True

    def __post_init__(self) -> None:
        _check(self.widths, self.depths, self.blocks)

    @property
    def stride(self) -> int:
        return 2 ** (len(self.widths) - 1)

    @property
    def global_context(self) -> bool:
        return any(block.global_context for block, depth in zip(self.blocks, self.depths, strict=True) if depth)

    def build(self, *, channels: int, latent: int) -> PyramidEncoder:
        return PyramidEncoder(
            channels=channels,
            latent=latent,
            widths=self.widths,
            depths=self.depths,
            blocks=self.blocks,
            down=self.down,
            shortcut=self.shortcut,
        )


@part("pixel_decoder/pyramid")
class PyramidDecoderConfig(PixelDecoderConfig):
    """Stages of blocks, listed from fine to coarse as the encoder's are; the defaults are dc-ae-f32c32-sana's.

    Attributes:
        widths, depths, blocks: of each stage: channels, number of blocks (0 only at the first), and their kind.
        shortcut: copies of the latents are added to the input of the coarsest stage.
        activation: before the last convolution.
    """

    widths: tuple[int, ...] = WIDTHS
    depths: tuple[int, ...] = (3, 3, 3, 3, 3, 3)
    blocks: tuple[BlockConfig, ...] = SANA
    up: UpConfig = NearestUpConfig()
    shortcut: bool = True
    activation: Literal["relu", "silu"] = "relu"

    def __post_init__(self) -> None:
        _check(self.widths, self.depths, self.blocks)

    @property
    def stride(self) -> int:
        return 2 ** (len(self.widths) - 1)

    @property
    def global_context(self) -> bool:
        return any(block.global_context for block, depth in zip(self.blocks, self.depths, strict=True) if depth)

    def build(self, *, channels: int, latent: int) -> PyramidDecoder:
        return PyramidDecoder(
            channels=channels,
            latent=latent,
            widths=self.widths,
            depths=self.depths,
            blocks=self.blocks,
            up=self.up,
            shortcut=self.shortcut,
            activation=self.activation,
        )
