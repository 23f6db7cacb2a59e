"""Discriminators. PatchGAN (pix2pix, arXiv 1611.07004, sec. 3.2 and appendix 6.1.2) judges overlapping patches.

Convolutions of 4x4: the first halves the picture, ``layers - 1`` more halve it and double the width (eight times at
most), one keeps the size, and the last gives a logit a position. LeakyReLU (slope 0.2) follows all but the last. With
three layers a logit sees 70x70 pixels. Weights are born normal with standard deviation 0.02.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from .registry import part
from .shapes import Image
from .slots import DiscriminatorConfig

NormName = Literal["batch", "group", "spectral", "none"]
SLOPE = 0.2
GROUPS = 8


class PatchGAN(nn.Module):
    """Logits of overlapping patches."""

    def __init__(self, *, channels: int, width: int, layers: int, norm: NormName) -> None:
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        parts: list[nn.Module] = []
        for i, (before, after) in enumerate(zip([channels, *widths[:-1]], widths, strict=True)):
            inner = i > 0
            bias = not inner or norm not in ("batch", "group")  # a norm has its own
            parts.append(_born(nn.Conv2d(before, after, 4, stride=2 if i < layers else 1, padding=1, bias=bias)))
            if inner and norm in ("batch", "group"):
                parts.append(nn.BatchNorm2d(after) if norm == "batch" else nn.GroupNorm(GROUPS, after))
            parts.append(nn.LeakyReLU(SLOPE))
        parts.append(_born(nn.Conv2d(widths[-1], 1, 4, padding=1)))
        if norm == "spectral":
            parts = [nn.utils.parametrizations.spectral_norm(p) if isinstance(p, nn.Conv2d) else p for p in parts]
        self.smallest = 2**layers * 3
        self.net = nn.Sequential(*parts)

    def forward(self, image: Image) -> Float[Tensor, "b 1 h w"]:
        if min(image.shape[2:]) < self.smallest:
            raise ValueError(
                f"discriminator/patch: takes images of at least {self.smallest} pixels a side, got "
                f"{image.shape[2]}x{image.shape[3]}; take fewer layers"
            )
        return self.net(image)


def _born(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.normal_(conv.weight, std=0.02)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


@part("discriminator/patch")
class PatchGANConfig(DiscriminatorConfig):
    """PatchGAN of ``layers`` halvings.

    Attributes:
        width: channels after the first convolution.
        norm: "batch" is the published one, whose logits depend on the whole batch of a process; "group" (8 groups)
            does not; "spectral" divides weights by their largest singular value (arXiv 1802.05957); or "none".
    """

    width: int = 64
    layers: int = 3
    norm: NormName = "group"

    def __post_init__(self) -> None:
        for name in ("width", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.norm == "group" and self.width % GROUPS:
            raise ValueError(f"width: must be divisible by the {GROUPS} groups of the norm, got {self.width}")

    def build(self, *, channels: int) -> PatchGAN:
        return PatchGAN(channels=channels, width=self.width, layers=self.layers, norm=self.norm)
