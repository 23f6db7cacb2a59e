"""Projectors: where latents and a teacher's tokens meet before they are compared.

A projector maps latents ``[b, z, h, w]`` to tokens ``[b, h*w, f]``, one a position. It is small on purpose: what it
cannot read off one position (or, for the convolution, its neighbours) has to stand in the latent.

==================== ==================================================== ==========================================
projector/linear     1x1 convolution                                      VA-VAE's VF loss (arXiv 2501.01423), no bias
projector/mlp        Linear, SiLU, Linear, SiLU, Linear; 2048 wide inside REPA (arXiv 2410.06940)
projector/conv       3x3 convolution, zero padding                        iREPA (arXiv 2512.10794)
projector/none       the latent's channels as they are                    losses that compare relations of tokens
projector/reverse    1x1 convolution of the *teacher's* tokens instead    VA-VAE with ``reverse_proj: false``
==================== ==================================================== ==========================================
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .registry import Part, part
from .shapes import Latent, Map, Tokens


class Projector(nn.Module, ABC):
    """Latents to tokens of ``width``; the teacher's become ``target_width`` wide, which is their own in most."""

    width: int
    target_width: int
    predicts = True
    """Whether the tokens stand for the teacher's own, so that they can be shown and measured as its prediction."""

    @abstractmethod
    def forward(self, latent: Latent) -> Tokens:
        """One token a position, rows first, float32 or the dtype of autocast."""

    def target(self, tokens: Tokens) -> Float[Tensor, "b n z"]:
        """What a prediction is compared with, of the teacher's tokens."""
        return tokens


class ProjectorConfig(Part, ABC):
    """Brings latents of ``latent`` channels and tokens of ``features`` into one space."""

    slot: ClassVar[str] = "projector"

    @abstractmethod
    def build(self, *, latent: int, features: int) -> Projector: ...


class Projected(Projector):
    """Latents through layers that keep the grid."""

    def __init__(self, layers: nn.Module, *, features: int) -> None:
        super().__init__()
        self.layers = layers
        self.width = self.target_width = features

    def forward(self, latent: Latent) -> Tokens:
        return _as_tokens(self.layers(latent.to(next(self.layers.parameters()).dtype)))


@part("projector/linear")
class LinearProjectorConfig(ProjectorConfig):
    """One 1x1 convolution. VA-VAE's has no bias."""

    bias: bool = True

    def build(self, *, latent: int, features: int) -> Projected:
        return Projected(nn.Conv2d(latent, features, 1, bias=self.bias), features=features)


@part("projector/mlp")
class MLPProjectorConfig(ProjectorConfig):
    """REPA's three linear layers with SiLU between them, for each position by itself."""

    hidden: int = 2048

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise ValueError(f"hidden: must be at least 1, got {self.hidden}")

    def build(self, *, latent: int, features: int) -> Projected:
        layers = nn.Sequential(
            nn.Conv2d(latent, self.hidden, 1),
            nn.SiLU(),
            nn.Conv2d(self.hidden, self.hidden, 1),
            nn.SiLU(),
            nn.Conv2d(self.hidden, features, 1),
        )
        return Projected(layers, features=features)


@part("projector/conv")
class ConvProjectorConfig(ProjectorConfig):
    """iREPA's one convolution, which sees the neighbours of a position; zeros lie beyond the border."""

    kernel: int = 3

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel: must be odd and positive, got {self.kernel}")

    def build(self, *, latent: int, features: int) -> Projected:
        return Projected(nn.Conv2d(latent, features, self.kernel, padding=self.kernel // 2), features=features)


class NoProjector(Projector):
    """Positions of the latent as tokens."""

    def __init__(self, *, latent: int, features: int) -> None:
        super().__init__()
        self.width, self.target_width = latent, features
        self.predicts = latent == features

    def forward(self, latent: Latent) -> Tokens:
        return _as_tokens(latent)


@part("projector/none")
class NoProjectorConfig(ProjectorConfig):
    """No parameters: tokens of the latent's channels.

    Enough for losses that compare relations among tokens; others need a teacher of as many features.
    """

    def build(self, *, latent: int, features: int) -> NoProjector:
        return NoProjector(latent=latent, features=features)


class ReverseProjector(Projector):
    """The teacher's tokens, mapped to the latent's channels, are the target of the latents themselves."""

    predicts = False

    def __init__(self, *, latent: int, features: int, bias: bool) -> None:
        super().__init__()
        self.layers = nn.Linear(features, latent, bias=bias)
        self.width = self.target_width = latent

    def forward(self, latent: Latent) -> Tokens:
        return _as_tokens(latent)

    def target(self, tokens: Tokens) -> Float[Tensor, "b n z"]:
        return self.layers(tokens.to(self.layers.weight.dtype))


@part("projector/reverse")
class ReverseProjectorConfig(ProjectorConfig):
    """Maps the teacher down to the latent by a learned linear map, with a bias in VA-VAE.

    The target learns too: nothing but the loss keeps it from giving up what is hard to match. There is no prediction
    of the teacher's tokens to be measured.
    """

    bias: bool = True

    def build(self, *, latent: int, features: int) -> ReverseProjector:
        return ReverseProjector(latent=latent, features=features, bias=self.bias)


def _as_tokens(x: Map) -> Tokens:
    return rearrange(x, "b c h w -> b (h w) c")
