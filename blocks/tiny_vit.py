"""A small vision transformer of our own, with random weights from a seed: a teacher for tests, demos and notebooks.

It has everything that makes teachers differ: a class token, registers, and positions by RoPE as in DINOv3 or by a
learned table as in DINOv2. Blocks are x + Attn(LN(x)), then x + MLP(LN(x)) (ViT, arXiv 2010.11929, eq. 2 and 3); a
LayerNorm over all tokens ends it. Weights are normal with standard deviation 0.02 in embeddings and 1/sqrt(inputs) in
matrices, biases zero: tokens of a random network differ from patch to patch, and depend on the picture.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from .attention import attend
from .backbones import (
    AS_IT_IS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
    Hidden,
    NetworkTeacher,
    NetworkTeacherConfig,
)
from .registry import part
from .rope import AxialRoPE
from .shapes import Image, Tokens

VERSION = "1"
"""Of the network and of how its weights are drawn."""


class ViTBlock(nn.Module):
    """Pre-norm attention and MLP; tokens before the grid are not turned by RoPE."""

    def __init__(self, width: int, *, head_width: int, expand: float, rope: bool) -> None:
        super().__init__()
        self.head_width = head_width
        self.attn_norm, self.mlp_norm = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, int(width * expand)), nn.Linear(int(width * expand), width)
        self.rope = AxialRoPE(head_width, convention="normalised") if rope else None

    def forward(self, x: Tokens, grid: tuple[int, int], *, prefix: int) -> Tokens:
        q, k, v = rearrange(self.qkv(self.attn_norm(x)), "b n (three g d) -> three b g n d", three=3, d=self.head_width)
        if self.rope is not None:
            q, k = self.rope(q, k, grid, prefix=prefix)
        x = x + self.proj(rearrange(attend(q, k, v), "b g n d -> b n (g d)"))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class TinyViT(Backbone):
    """The network; see the module's text."""

    library, version, licence = "latelier", VERSION, "none needed"
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    has_cls = True

    def __init__(self, config: "TinyViTConfig") -> None:
        super().__init__()
        self.width, self.depth, self.patch = config.width, config.depth, config.patch
        self.model = (
            f"tiny_vit(width={config.width}, depth={config.depth}, head_width={config.head_width}, "
            f"expand={config.expand:g}, registers={config.registers}, positions={config.positions})"
        )
        self.weights = f"random:{config.seed}"
        self.position = "rope" if config.positions == "rope" else f"bicubic from {config.table}x{config.table}"
        self.embed = nn.Conv2d(3, config.width, config.patch, stride=config.patch)
        self.prefix = nn.Parameter(torch.empty(1 + config.registers, config.width))
        learned = config.positions == "learned"
        self.table = nn.Parameter(torch.empty(config.width, config.table, config.table)) if learned else None
        self.blocks = nn.ModuleList(
            ViTBlock(config.width, head_width=config.head_width, expand=config.expand, rope=not learned)
            for _ in range(config.depth)
        )
        self.final_norm = nn.LayerNorm(config.width, eps=1e-6)
        self._draw(config.seed)

    @torch.no_grad()
    def _draw(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name in ("prefix", "table"):
                parameter.normal_(0, 0.02, generator=generator)
            elif parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()

    def hidden(self, pixels: Image, layers: Sequence[int]) -> list[Hidden]:
        x = self.embed(pixels)
        grid = (x.shape[2], x.shape[3])
        if self.table is not None:
            x = x + self._positions(grid)
        count = len(self.prefix)
        prefix = repeat(self.prefix, "n c -> b n c", b=len(x))
        tokens = torch.cat([prefix, rearrange(x, "b c h w -> b (h w) c")], dim=1)
        found = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, grid, prefix=count)
            if index in layers:
                registers = tokens[:, 1:count] if count > 1 else None
                found.append(Hidden(tokens[:, count:], tokens[:, 0], registers))
        return found

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        assert self.table is not None
        if grid == tuple(self.table.shape[1:]):
            return self.table[None]
        table = F.interpolate(self.table[None].float(), grid, mode="bicubic", align_corners=False)
        return table.to(self.table.dtype)


@part("teacher/tiny_vit")
class TinyViTConfig(NetworkTeacherConfig):
    """A small ViT with random weights that belong to a seed; nothing to download.

    Attributes:
        width, depth, head_width, expand: of the transformer.
        patch: pixels a side of a token; its weights differ for each patch, as do those of each seed.
        registers: tokens beside the class token.
        positions: "rope", which fits any grid, or a "learned" table, resampled bicubically off its own grid.
        table: side of that grid.
    """

    shorthand = "width"

    width: int = 64
    depth: int = 2
    head_width: int = 32
    expand: float = 4.0
    patch: int = 16
    registers: int = 4
    positions: Literal["rope", "learned"] = "rope"
    table: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        self.check_common()
        for name, least in (("width", 1), ("depth", 1), ("patch", 1), ("registers", 0), ("table", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be at least {least}, got {getattr(self, name)}")
        if self.head_width < 4 or self.head_width % 4:
            raise ValueError(f"head_width: must be a positive multiple of 4 (axial RoPE), got {self.head_width}")
        if self.width % self.head_width:
            raise ValueError(f"width: must be divisible by the head width {self.head_width}, got {self.width}")
        if int(self.width * self.expand) < 1:
            raise ValueError(f"expand: must leave the MLP at least one unit, got {self.expand}")

    @property
    def token_pixels(self) -> int:
        return self.patch

    def for_stride(self, stride: int) -> "TinyViTConfig":
        """With patches of ``stride`` pixels, unless a rule of resizing is chosen; weights are random in any case."""
        return replace(self, patch=stride) if self.resize == AS_IT_IS else self

    def build(self) -> NetworkTeacher:
        with torch.random.fork_rng(devices=[]):  # layers draw weights that nobody keeps
            return NetworkTeacher(TinyViT(self), self, name="teacher/tiny_vit")
