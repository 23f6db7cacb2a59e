"""Autoencoders that work tile by tile and image by image, so that memory does not grow with the image.

    view = model.tiled(tile=512, stride=448)
    latents = view.encode(images)
    images = view.decode(latents)

Tiles overlap by ``tile - stride`` and are blended as ``blocks/tiling.py`` says. Batches are cut first, then images.

**Memory.** Beyond its result a view holds what the model itself needs for one tile, whatever the image's size. Decoding
4096 x 4096 pixels with dc-ae-f32c32-sana in bfloat16 takes 0.5 GiB beside the weights at the default tile, of which
192 MiB are the result, and 1.5 GiB at a tile of 1024; as a whole it takes 20 GiB (tensors alive at once; scratch inside
operators is not in it). A decoder that starts from noise also holds the noise of the whole batch, float32 and on the
CPU, as large as the images: it is drawn once as without tiling and cut, so that tiles agree where they overlap. Only a
latent norm with statistics for each position holds the raw latents as well. Where gradients are kept, so are the
activations of all tiles.

**Seams.** A convolution sees a neighbourhood, which the overlap holds at least in part. GRN, linear attention and full
attention see all of a tile, and so a tile differs from the same place of the whole image; making a view of such a model
gives a :class:`GlobalContextWarning`. :func:`seam_error` measures by how much. Two photographs of 512 x 512 that the
demo's models never saw, overlaps of an eighth, latents normalised and images in [-1, 1], largest and mean difference:

| model, what sees everything                        | tile | encode       | decode        | PSNR whole, tiled |
|----------------------------------------------------|------|--------------|---------------|-------------------|
| demo/semdisdiffae, GRN in both halves              |  128 | 0.014 0.0002 | 0.061  0.0007 | 34.52 34.52       |
|                                                    |  256 | 0.004 0.0001 | 0.017  0.0002 | 34.52 34.52       |
| demo/dinac_ae, attention in the encoder, GRN after |  128 | 0.014 0.0007 | 0.061  0.0008 | 34.50 34.50       |
|                                                    |  256 | 0.013 0.0005 | 0.017  0.0002 | 34.50 34.50       |
| dc_ae_small_64 after 1,000 steps, linear attention |  128 | 0.429 0.025  | 0.175  0.0028 | 24.96 24.94       |
|                                                    |  256 | 0.191 0.013  | 0.095  0.0011 | 24.96 24.96       |
|                                                    |  384 | 0.066 0.005  | 0.013  0.0003 | 24.96 24.96       |
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks.latent_space import LatentSpec, mark
from ..blocks.precision import Float32Islands
from ..blocks.registry import Part
from ..blocks.shapes import Image, Latent
from ..blocks.tiling import Side, blend
from .inference import InferenceConfig

TILE = 512
"""Pixels a side of a tile, as in diffusers; with a default overlap of an eighth."""


class GlobalContextWarning(UserWarning):
    """A model that looks at the whole of what it is given is asked to look at tiles."""


class Tileable(Float32Islands, ABC):
    """An autoencoder whose halves can be called on parts of an image, with gradients and without checks."""

    config: Any

    @property
    @abstractmethod
    def stride(self) -> int: ...

    @property
    @abstractmethod
    def latent_channels(self) -> int: ...

    @property
    @abstractmethod
    def latent_spec(self) -> LatentSpec: ...

    @abstractmethod
    def encode(self, images: Image) -> Latent: ...

    @abstractmethod
    def decode(
        self, latents: Latent, height: int, width: int, inference_config: InferenceConfig | None = None
    ) -> Image: ...

    @abstractmethod
    def whiten(self, z: Latent) -> Latent: ...

    def check_images(self, images: Image) -> None:
        """Refuse images that ``encode`` does not take."""
        if images.ndim != 4 or images.shape[1] != self.config.channels:
            raise ValueError(f"encode: takes images [b, {self.config.channels}, H, W], got {list(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(f"encode: takes images in [-1, 1], got {images.dtype}; map bytes with x / 127.5 - 1")
        height, width = images.shape[2:]
        if height % self.stride or width % self.stride or not (height and width):
            raise ValueError(
                f"encode: image height and width must be divisible by {self.stride}, got {height}x{width}; "
                f"pad or crop to {nearest(height, self.stride)}x{nearest(width, self.stride)}"
            )

    @abstractmethod
    def check_latents(self, latents: Latent, height: int, width: int) -> None:
        """Refuse latents that are of another space or do not become images of that size."""

    @abstractmethod
    def raw_latents(self, images: Image) -> Latent:
        """What ``encode`` normalises."""

    @abstractmethod
    def raw_from(self, latents: Latent) -> Latent:
        """Normalised latents to what :meth:`paint` takes."""

    @abstractmethod
    def paint(self, raw_latents: Latent, noise: Image | None, settings: InferenceConfig) -> Image:
        """Images, at least float32, from raw latents and the noise to start from, None where the decoder takes none."""

    def draw_noise(self, batch: int, height: int, width: int, *, seed: int | None) -> Image | None:
        """What the decoder starts from, on the CPU; None: nothing."""
        return None

    def tiled(self, tile: Side = TILE, stride: Side | None = None, *, batch: int = 1) -> "Tiled":
        """This model, working tile by tile; see :class:`Tiled`."""
        return Tiled(self, tile, stride, batch=batch)


class Tiled(nn.Module):
    """A light view of a model with the same surface, which works on ``batch`` images and one tile at a time.

    Gradients flow to images or latents that require them, and then to parameters too; otherwise none are kept, so that
    memory stays bounded. Results lie where the images or latents lie, tiles are moved to where the model lies: a large
    image can stay on the CPU. All tiles of an image have one size, so a model compiled by itself compiles once.

    Args:
        tile: pixels a side that are computed at a time, one number or (height, width); an image that fits is not cut.
        stride: pixels from one tile to the next; None overlaps tiles by an eighth, and at least one latent position.
        batch: images at a time.

    Raises:
        ValueError: sizes that do not divide by the model's stride, or a stride that would leave gaps.
    """

    def __init__(self, model: Tileable, tile: Side = TILE, stride: Side | None = None, *, batch: int = 1) -> None:
        super().__init__()
        ratio = model.stride
        self.model, self.batch = model, batch
        self.tile = _sides("tile", tile, ratio)
        height, width = (max(side - max(side // 8 // ratio, 1) * ratio, ratio) for side in self.tile)
        self.tile_stride = (height, width) if stride is None else _sides("stride", stride, ratio)
        for step, side in zip(self.tile_stride, self.tile, strict=True):
            if step > side:
                raise ValueError(f"stride: must be at most the tile of {side}, or gaps remain; got {step}")
        if batch < 1:
            raise ValueError(f"batch: counts images and must be at least 1, got {batch}")
        self.train(model.training)
        self._warn()

    def _warn(self) -> None:
        halves = {name: list(_global(getattr(self.model.config, name, None))) for name in ("encoder", "decoder")}
        names = [name for name, kinds in halves.items() if kinds]
        if not names:
            return
        kinds = ", ".join(dict.fromkeys(kind for kinds in halves.values() for kind in kinds))
        warnings.warn(
            f"tiled: {' and '.join(names)} {'have' if len(names) > 1 else 'has'} global context ({kinds}), so a tile "
            "differs from the same place of the whole image; larger tiles differ less, and "
            "seam_error(model, images, tile, stride) measures by how much",
            GlobalContextWarning,
            stacklevel=4,
        )

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def stride(self) -> int:
        """The model's: pixels a side that become one position. That of tiles is ``tile_stride``."""
        return self.model.stride

    @property
    def latent_channels(self) -> int:
        return self.model.latent_channels

    @property
    def latent_spec(self) -> LatentSpec:
        return self.model.latent_spec

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def wide_dtype(self) -> torch.dtype:
        return self.model.wide_dtype

    @property
    def overlap(self) -> tuple[int, int]:
        """Pixels that neighbouring tiles share, down and across."""
        return self.tile[0] - self.tile_stride[0], self.tile[1] - self.tile_stride[1]

    def __repr__(self) -> str:
        def times(sides: tuple[int, int]) -> str:
            return "x".join(map(str, sides))

        return (
            f"Tiled({type(self.model).__name__}, tile={times(self.tile)}, stride={times(self.tile_stride)}, "
            f"overlap={times(self.overlap)}, batch={self.batch})"
        )

    # --- the surface ------------------------------------------------------------------------------------------------

    def encode(self, images: Image) -> Latent:
        """As the model's ``encode``: normalised latents."""
        at_end = self.config.latent_norm.by_position
        latents = self._read(images, (lambda raw: raw) if at_end else self.model.whiten)
        if at_end:
            latents = self.model.whiten(latents)
        return latents if torch.compiler.is_compiling() or latents.is_meta else mark(latents, self.latent_spec)

    def encode_raw(self, images: Image) -> Latent:
        """Latents before they are normalised."""
        return self._read(images, lambda raw: raw)

    def decode(
        self,
        latents: Latent,
        height: int | None = None,
        width: int | None = None,
        inference_config: InferenceConfig | None = None,
    ) -> Image:
        """As the model's ``decode``: images, not clamped, from normalised latents."""
        size = self._image_size(latents, height, width)
        self.model.check_latents(latents, *size)
        if self.config.latent_norm.by_position:
            return self._paint(self.model.raw_from(latents), lambda raw: raw, size, inference_config)
        return self._paint(latents, self.model.raw_from, size, inference_config)

    def decode_raw(self, raw_latents: Latent, inference_config: InferenceConfig | None = None) -> Image:
        """Images from latents that were not normalised."""
        size = self._image_size(raw_latents, None, None)
        self.model.check_latents(raw_latents, *size)
        return self._paint(raw_latents, lambda raw: raw, size, inference_config)

    def reconstruct(self, images: Image, inference_config: InferenceConfig | None = None) -> Image:
        """``decode(encode(images))`` at the images' own size."""
        return self.decode(self.encode(images), images.shape[2], images.shape[3], inference_config)

    def forward(self, images: Image, inference_config: InferenceConfig | None = None) -> Image:
        return self.reconstruct(images, inference_config)

    # --- tiles --------------------------------------------------------------------------------------------------------

    def _image_size(self, latents: Latent, height: int | None, width: int | None) -> tuple[int, int]:
        if latents.ndim != 4:
            raise ValueError(f"decode: takes latents [b, {self.latent_channels}, h, w], got {list(latents.shape)}")
        h, w = latents.shape[2:]
        return h * self.stride if height is None else height, w * self.stride if width is None else width

    def _read(self, images: Image, normalise: Callable[[Tensor], Tensor]) -> Latent:
        self.model.check_images(images)
        ratio, device = self.stride, self._device()

        def part(chosen: slice, rows: slice, columns: slice) -> Latent:
            tile = images[chosen, :, _scaled(rows, ratio), _scaled(columns, ratio)]
            return normalise(self.model.raw_latents(tile.to(device)))

        return self._blend(part, images, (images.shape[2] // ratio, images.shape[3] // ratio), unit=ratio)

    def _paint(
        self,
        latents: Latent,
        to_raw: Callable[[Tensor], Tensor],
        size: tuple[int, int],
        inference_config: InferenceConfig | None,
    ) -> Image:
        settings = inference_config or InferenceConfig()
        noise = self.model.draw_noise(len(latents), *size, seed=settings.seed)
        device = self._device()

        def part(chosen: slice, rows: slice, columns: slice) -> Image:
            start = None if noise is None else noise[chosen, :, rows, columns].to(device)
            places = (slice(s.start // self.stride, s.stop // self.stride) for s in (rows, columns))
            return self.model.paint(to_raw(latents[chosen, :, *places].to(device)), start, settings)

        return self._blend(part, latents, size, unit=1)

    def _blend(
        self, part: Callable[[slice, slice, slice], Tensor], given: Tensor, size: tuple[int, int], *, unit: int
    ) -> Tensor:
        """Cut the batch, then its images; ``unit`` is pixels a side of one position of the result."""
        tile, stride = ([side // unit for side in sides] for sides in (self.tile, self.tile_stride))
        with torch.set_grad_enabled(torch.is_grad_enabled() and given.requires_grad):
            return blend(part, size, tile, stride, batch=len(given), at_once=self.batch, device=given.device)

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def _scaled(place: slice, by: int) -> slice:
    return slice(place.start * by, place.stop * by)


def nearest(size: int, stride: int) -> int:
    """The multiple of ``stride``, at least one, that lies nearest."""
    return max(round(size / stride), 1) * stride


def _sides(name: str, value: Side, ratio: int) -> tuple[int, int]:
    height, width = value if isinstance(value, tuple) else (value, value)
    for side in (height, width):
        if side < ratio or side % ratio:
            raise ValueError(
                f"{name}: must divide by the model's stride of {ratio} pixels, got {side}; take {nearest(side, ratio)}"
            )
    return height, width


def _global(config: Any) -> Iterator[str]:
    """Kinds of the innermost parts of a config that look at all of what they are given."""
    if isinstance(config, tuple):
        for item in config:
            yield from _global(item)
    elif isinstance(config, Part) and is_dataclass(config) and getattr(config, "global_context", True):
        inner = [kind for field in fields(config) for kind in _global(getattr(config, field.name))]
        yield from inner
        if not inner and hasattr(config, "global_context"):
            yield config.kind


# --- what tiles cost ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Absolute differences between what tiles give and what the whole image gives."""

    max: float
    mean: float


@dataclass(frozen=True)
class SeamError:
    """What tiling changes: ``encode`` of normalised latents, ``decode`` of images in [-1, 1] from the same latents."""

    encode: Difference
    decode: Difference


@torch.no_grad()
def seam_error(
    model: Tileable,
    images: Image,
    tile: Side = TILE,
    stride: Side | None = None,
    *,
    inference_config: InferenceConfig | None = None,
) -> SeamError:
    """Measure by how much a model's answers change when it works tile by tile; the whole images must fit into memory.

    Noise is seeded with 0 unless ``inference_config`` says otherwise. A tile that holds the images changes nothing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GlobalContextWarning)  # what it warns of is measured here
        view = model.tiled(tile, stride, batch=max(len(images), 1))
    settings = inference_config or InferenceConfig(seed=0)
    size = (images.shape[2], images.shape[3])
    latents = view.encode(images)
    whole = model.encode(images)
    return SeamError(
        encode=_difference(latents, whole),
        decode=_difference(view.decode(whole, *size, settings), model.decode(whole, *size, settings)),
    )


def _difference(a: Tensor, b: Tensor) -> Difference:
    difference = (a.double() - b.double()).abs()
    return Difference(max=difference.max().item(), mean=difference.mean().item())
