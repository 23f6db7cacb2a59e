"""Autoencoders behind one surface: images in [-1, 1] and raw latents, whatever their own range, posterior and dtype."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .shapes import Image
from .slots import LatentNormConfig, Statistics

RawLatent = Float[Tensor, "b z_raw h_raw w_raw"]
"""What an autoencoder gives, before packing."""


class Codec(nn.Module, ABC):
    """An autoencoder behind one surface: images in [-1, 1], raw latents without packing."""

    @abstractmethod
    def moments(self, images: Image) -> tuple[RawLatent, RawLatent | None]:
        """Mode of the posterior and its standard deviation (None: deterministic), float32."""

    @abstractmethod
    def reconstruct(self, raw: RawLatent) -> Image:
        """Images of raw latents, float32, not clamped."""

    def check_images(self, height: int, width: int) -> None:
        """Raise ``ValueError("what is wrong; what would be right")`` for a size that is not taken."""
        return


@dataclass(frozen=True)
class Loaded:
    """What reading an autoencoder gives: itself, and the statistics that its files hold."""

    codec: Codec
    norm: LatentNormConfig | None = None
    statistics: Statistics | None = None


class _Wrapped(Codec):
    """An autoencoder of diffusers, which computes in its own dtype."""

    def __init__(self, model: nn.Module, *, upcast: bool = False) -> None:
        super().__init__()
        self.model: Any = model
        self.upcast = upcast

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Wrapped":
        """An autoencoder that overflows in float16 stays float32 there (``force_upcast`` of its config)."""
        probe = fn(torch.zeros(0, dtype=self.dtype, device=next(self.model.parameters()).device))
        if self.upcast and probe.dtype == torch.float16:
            device = probe.device
            super()._apply(lambda tensor: tensor.to(device), recurse)
        else:
            super()._apply(fn, recurse)
        return self

    def reconstruct(self, raw: RawLatent) -> Image:
        return self.model.decode(raw.to(self.dtype), return_dict=False)[0].float()


class KLCodec(_Wrapped):
    """A posterior of mean and log-variance, the latter clamped to [-30, 20]."""

    def moments(self, images: Image) -> tuple[RawLatent, RawLatent | None]:
        posterior = self.model.encode(images.to(self.dtype), return_dict=False)[0]
        mean, logvar = (x.float() for x in (posterior.mean, posterior.logvar))
        return mean, torch.exp(0.5 * logvar.clamp(-30, 20))


class DeterministicCodec(_Wrapped):
    """DC-AE: one answer, no posterior."""

    def moments(self, images: Image) -> tuple[RawLatent, RawLatent | None]:
        return self.model.encode(images.to(self.dtype), return_dict=False)[0].float(), None


class RAECodec(_Wrapped):
    """A frozen vision transformer and a decoder; pixels in [0, 1], squares of one size.

    diffusers normalises inside; its statistics become ours, and what remains inside is the identity.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.side: int = model.decoder_image_size
        self.inner = float(model.config.scaling_factor)
        model.register_buffer("_latents_mean", torch.zeros(1))
        model.register_buffer("_latents_std", torch.ones(1) - 1e-5)  # 1e-5 is added to it again

    def moments(self, images: Image) -> tuple[RawLatent, RawLatent | None]:
        z = self.model.encode((images.to(self.dtype) + 1) / 2, return_dict=False)[0]
        return z.float() / self.inner, None

    def reconstruct(self, raw: RawLatent) -> Image:
        return 2 * super().reconstruct(raw * self.inner) - 1

    def check_images(self, height: int, width: int) -> None:
        if (height, width) != (self.side, self.side):
            raise ValueError(
                f"takes images of {self.side}x{self.side}, got {height}x{width}; resize or crop them first"
            )
