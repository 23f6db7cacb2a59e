"""Pictures of what a model does: images, amplified differences, latents as colours; and their bytes."""

import base64
import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
import PIL.Image
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..blocks.shapes import Image

AMPLIFICATION = 4.0


def to_picture(image: Image) -> PIL.Image.Image:
    """The first image of a batch in [-1, 1] as an 8-bit picture, clamped and rounded."""
    levels = ((image[0].detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round()
    return PIL.Image.fromarray(levels.to(torch.uint8).permute(1, 2, 0).numpy())


def difference(reconstruction: Image, original: Image, *, factor: float = AMPLIFICATION) -> Image:
    """``factor`` times reconstruction minus original, around mid-grey: brighter where the reconstruction is."""
    return (factor * (reconstruction - original)).clamp(-1, 1)


def latent_colours(
    latents: Sequence[Float[Tensor, "_ z _ _"]], *, fitted_on: Sequence[Float[Tensor, "_ z _ _"]] | None = None
) -> list[PIL.Image.Image]:
    """Three principal components of the latents as red, green and blue, a pixel for each latent position.

    The basis is fitted on all positions of the whole set, or of another one, so that a colour means the same in every
    picture. A component's sign makes its largest loading positive; its colour spans its 1st to 99th percentile.
    """
    rows = [rearrange(z.detach().cpu().double(), "b z h w -> (b h w) z") for z in latents]
    others = latents if fitted_on is None else fitted_on
    together = torch.cat([rearrange(z.detach().cpu().double(), "b z h w -> (b h w) z") for z in others])
    mean = together.mean(dim=0)
    basis = principal_axes(together - mean, 3)
    scores = (together - mean) @ basis
    low, high = np.percentile(scores.numpy(), [1, 99], axis=0)
    spread = np.maximum(high - low, 1e-12)
    pictures = []
    for z, positions in zip(latents, rows, strict=True):
        share = np.clip((((positions - mean) @ basis).numpy() - low) / spread, 0, 1)
        if share.shape[1] < 3:  # fewer channels than colours
            share = np.pad(share, ((0, 0), (0, 3 - share.shape[1])), constant_values=0.5)
        grid = share.reshape(len(z), *z.shape[2:], 3)[0]
        pictures.append(PIL.Image.fromarray((grid * 255).round().astype(np.uint8)))
    return pictures


def pca_maps(
    maps: Sequence[Float[Tensor, "_ z _ _"]], *, fitted_on: Literal["set", "image"] = "set"
) -> list[PIL.Image.Image]:
    """:func:`latent_colours` of maps of any kind, with one basis for the set or a basis for each image."""
    return latent_colours(maps) if fitted_on == "set" else [latent_colours([m])[0] for m in maps]


def principal_axes(rows: Float[Tensor, "n z"], count: int) -> Float[Tensor, "z k"]:
    """Leading eigenvectors of the second moments of centred rows, each with its largest loading positive."""
    axes = torch.linalg.eigh(rows.T @ rows / len(rows)).eigenvectors.flip(1)[:, :count]
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    return axes * largest.sign()


def png(picture: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def webp(picture: PIL.Image.Image, *, quality: int | None = None) -> bytes:
    """A WebP, lossless (a quarter smaller than a PNG) unless it has a quality."""
    buffer = io.BytesIO()
    lossless = quality is None
    picture.save(buffer, "WEBP", lossless=lossless, quality=50 if quality is None else quality, method=4, exact=True)
    return buffer.getvalue()


def data_uri(data: bytes) -> str:
    """The bytes of a PNG or a WebP as an address that needs no file."""
    kind = "png" if data.startswith(b"\x89PNG") else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
