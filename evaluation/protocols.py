"""Named protocols: everything between a picture and a number, so that the number can be compared."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import PIL.Image
import torch
from torch import Tensor, nn

from ..blocks.draws import address
from ..blocks.registry import part
from ..blocks.shapes import Image
from ..blocks.slots import ImageSource, Measured, ProtocolConfig
from ..families.images import resized, to_pixels, to_signed
from ..families.inference import InferenceConfig
from .metrics import pooled_psnr, psnr, squared_error, ssim, summary

DATA_RANGE = 2.0


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluate: no gradients, eval mode, and the former mode afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def placed_like(model: nn.Module, images: Tensor) -> Tensor:
    """Move to the device of the model's first tensor, and to its dtype or the wider one that the model takes."""
    first = next(chain(model.parameters(), model.buffers()))
    return images.to(first.device, getattr(model, "wide_dtype", first.dtype))


@part("protocol/archetype_psnr")
class ArchetypePSNRConfig(ProtocolConfig):
    """PSNR and SSIM at native size, as on the cards of data-archetype's models.

    The centre of the picture is cropped to sizes divisible by the model's stride; latents are the posterior's mode;
    one DDIM step decodes, with its residual noise, which is seeded by ``seed`` and the image's name, so that a number
    depends on no other image; the result is clamped to [-1, 1] and not quantised.

    Attributes:
        multiple: sizes are divisible by this as well: 32 gives models of strides 16 and 32 the same pixels.
        longer_side: larger pictures are first reduced to this (bicubic, antialiased); None keeps native size.
        quantise: round the reconstruction to 8 bit.
        num_steps, sampler, pdg_strength: of decoding; 1 is no guidance.
    """

    multiple: int = 1
    longer_side: int | None = None
    quantise: bool = False
    num_steps: int = 1
    sampler: Literal["ddim", "dpmpp_2m"] = "ddim"
    pdg_strength: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("multiple", "longer_side", "num_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: must be at least 1, got {value}")

    def prepare(self, image: PIL.Image.Image, *, stride: int) -> Image:
        """``[1, 3, H, W]`` float32 in [-1, 1]; raises ``ValueError`` for a picture smaller than one stride."""
        if image.mode != "RGB":
            raise ValueError(f'mode: takes RGB pictures, got {image.mode}; use image.convert("RGB")')
        if self.longer_side is not None and max(image.size) > self.longer_side:
            factor = self.longer_side / max(image.size)
            image = resized(image, *(max(round(side * factor), 1) for side in (image.height, image.width)))
        unit = math.lcm(stride, self.multiple)
        width, height = (side // unit * unit for side in image.size)
        if not (width and height):
            raise ValueError(
                f"size: must be at least {unit}x{unit}, got {image.height}x{image.width}; leave the picture out"
            )
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return to_signed(to_pixels([image.crop((left, top, left + width, top + height))]))

    def inference(self, name: str) -> InferenceConfig:
        """How the image of that name is decoded."""
        return InferenceConfig(
            num_steps=self.num_steps,
            sampler=self.sampler,
            pdg=self.pdg_strength != 1,
            pdg_strength=self.pdg_strength,
            seed=address(self.seed, self.kind, name),
        )

    def measure(
        self, model: Any, images: ImageSource, *, visit: Callable[[Measured], None] | None = None
    ) -> dict[str, Any]:
        """Return ``psnr`` and ``ssim`` summaries and a row for each of the ``images``.

        Raises:
            ValueError: no images, one that is too small, or a reconstruction that is not finite; it says which.
        """
        if not len(images):
            raise ValueError("images: there are none to measure")
        rows = []
        with frozen(model):
            for index in range(len(images)):
                name = images.name(index)
                picture = images.read(index)
                try:
                    original = self.prepare(picture, stride=model.stride)
                    latent = model.encode(placed_like(model, original))
                    output = model.decode(latent, *original.shape[2:], self.inference(name)).float().cpu()
                    if not torch.isfinite(output).all():
                        raise ValueError("the reconstruction is not finite; the model or its statistics are damaged")
                    reconstruction = self.delivered(output)
                    scores = self.score(reconstruction, original)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
                height, width = original.shape[2:]
                rows.append({"name": name, "height": height, "width": width} | scores)
                if visit is not None:
                    visit(Measured(index, len(images), name, original, latent, reconstruction, scores))
        return totals(rows)

    def delivered(self, output: Image) -> Image:
        """The reconstruction as the protocol sees it."""
        output = output.clamp(-1, 1)
        return ((output + 1) * 127.5).round() / 127.5 - 1 if self.quantise else output

    def score(self, reconstruction: Image, original: Image) -> dict[str, Any]:
        """Numbers of one image; a PSNR of None stands for infinity."""
        decibels = psnr(reconstruction, original, data_range=DATA_RANGE).item()
        return {
            "psnr": decibels if math.isfinite(decibels) else None,
            "ssim": ssim(reconstruction, original, data_range=DATA_RANGE).item(),
            "mse": squared_error(reconstruction, original).item(),
        }


def totals(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summaries of rows, which may come from several parts of a set in any order."""
    rows = sorted(rows, key=lambda row: row["name"])
    pooled = {"pooled": pooled_psnr(rows, data_range=DATA_RANGE)}
    return {
        "psnr": summary([row["psnr"] for row in rows]) | pooled,
        "ssim": summary([row["ssim"] for row in rows]),
        "images": rows,
    }
