"""Protocols of reconstructions, of narrow parts: range, clamp, quantisation, posterior, averaging, measures.

The presets of the field, in ``presets.py``, are these with other values and names of their own; a user's protocol is
``protocol/reconstruction`` with the values that are wanted.

Numbers of one image depend on that image alone: noise of decoding and of a sampled posterior is seeded by ``seed`` and
the image's name. Per-image and pooled values are always both stored; ``average`` says which one the protocol means.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from ..blocks.backbones import weights_hash
from ..blocks.draws import address
from ..blocks.registry import part
from ..blocks.shapes import Image, Latent
from ..blocks.slots import ImageSource, Measured
from ..families.inference import InferenceConfig
from .metrics import psnr, squared_error, ssim, summary
from .pair_metrics import PairMetric, PairMetricConfig
from .protocols import DATA_RANGE, frozen, placed_like, totals
from .streamed import Numbers, StreamedConfig, named
from .streaming import Described, Row, Tally

SCALES = {"signed": (1.0, 0.0, 2), "unit": (0.5, 0.5, 1), "bytes": (127.5, 127.5, 255)}
"""By range: factor and shift from [-1, 1], and the data range."""


@dataclass(frozen=True, kw_only=True)
class ReconstructingConfig(StreamedConfig):
    """What a model makes of images: PSNR and SSIM always, and what is listed.

    Attributes:
        range: in which images are compared: "signed" [-1, 1], "unit" [0, 1] or "bytes" [0, 255]. PSNR and SSIM are the
            same in all three, up to rounding; ``mse_floor`` is not.
        clamp: reconstructions to the range, before ``quantise``.
        mse_floor: errors below it count as it, in the units of ``range``; None lets a perfect image be infinite,
            which is counted, and kept out of the mean.
        posterior: latents are the posterior's "mode" or a "sample", seeded by ``seed`` and the image's name.
        average: the number that the protocol means; both are stored.
        pair_metrics: further measures of single images.
        num_steps, sampler, pdg_strength, seed: of decoding.
    """

    range: Literal["signed", "unit", "bytes"] = "signed"
    clamp: bool = True
    mse_floor: float | None = None
    posterior: Literal["mode", "sample"] = "mode"
    average: Literal["per_image", "pooled"] = "per_image"
    pair_metrics: tuple[PairMetricConfig, ...] = ()
    num_steps: int = 1
    sampler: Literal["ddim", "dpmpp_2m"] = "ddim"
    pdg_strength: float = 1.0
    seed: int = 0
    refuses_adm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.check_common()
        if self.num_steps < 1:
            raise ValueError(f"num_steps: must be at least 1, got {self.num_steps}")
        if self.mse_floor is not None and self.mse_floor <= 0:
            raise ValueError(f"mse_floor: must be positive, got {self.mse_floor:g}; None is no floor")
        columns = [metric.column for metric in self.pair_metrics]
        if twice := next((name for name in columns if columns.count(name) > 1), None):
            raise ValueError(f"pair_metrics: {twice!r} stands there twice")

    def inference(self, name: str) -> InferenceConfig:
        """How the image of that name is decoded."""
        return InferenceConfig(
            num_steps=self.num_steps,
            sampler=self.sampler,
            pdg=self.pdg_strength != 1,
            pdg_strength=self.pdg_strength,
            seed=address(self.seed, self.kind, name),
        )

    def encode(self, model: Any, original: Image, name: str) -> Latent:
        """The latent that is decoded; a model without ``encode_posterior`` is deterministic."""
        images = placed_like(model, original)
        if self.posterior == "mode" or not hasattr(model, "encode_posterior"):
            return model.encode(images)
        posterior = model.encode_posterior(images)
        generator = torch.Generator().manual_seed(address(self.seed, self.kind, "posterior", name))
        noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean.device)
        sample = posterior.at(noise)
        return model.whiten(sample) if hasattr(model, "whiten") else sample

    def delivered(self, output: Image) -> Image:
        """The reconstruction as the protocol sees it."""
        return self.quantise.apply(output.clamp(-1, 1) if self.clamp else output)

    def score(self, reconstruction: Image, original: Image) -> dict[str, Any]:
        """PSNR, SSIM and squared error (of [-1, 1]) of one image; a PSNR of None stands for infinity."""
        scale, shift, data_range = SCALES[self.range]
        ours, theirs = (x.double() * scale + shift for x in (reconstruction, original))
        decibels = psnr(ours, theirs, data_range=data_range, clamp=self.clamp).item()
        if self.mse_floor is not None:
            decibels = min(decibels, 10 * math.log10(data_range**2 / self.mse_floor))
        return {
            "psnr": decibels if math.isfinite(decibels) else None,
            "ssim": ssim(reconstruction, original, data_range=DATA_RANGE).item(),
            "mse": squared_error(reconstruction, original).item(),
        }

    def measure(
        self,
        model: Any,
        images: ImageSource,
        *,
        visit: Callable[[Measured], None] | None = None,
        folder: Path | None = None,
        every: int = 64,
    ) -> Numbers:
        """Return summaries, measures of the set, and a row for each image.

        With ``folder`` partial results are kept there, and a call that was cut short goes on: ``visit`` then sees the
        images of this call alone. Processes of one group divide the images and all return the same numbers.

        Raises:
            FileNotFoundError: weights or a reference are not there; nothing is measured then.
            ValueError: no images, one that cannot be read or is too small, a reconstruction that is not finite, or a
                reference that does not fit; it says which, and what was done is kept in ``folder``.
        """
        reference = self._load_reference()
        device = next(chain(model.parameters(), model.buffers())).device
        built: dict[str, PairMetric] = {metric.column: metric.build(device) for metric in self.pair_metrics}
        extractor = self.extractor.build().to(device) if self.extractor is not None and self.set_metrics else None
        total = self._taken(images)

        def work(index: int) -> tuple[Row, Described]:
            name = images.name(index)
            with named(name):
                picture = images.read(index)
                original = self.prepare(picture, stride=model.stride)
                latent = self.encode(model, original, name)
                output = model.decode(latent, *original.shape[2:], self.inference(name)).float().cpu()
                if not torch.isfinite(output).all():
                    raise ValueError("the reconstruction is not finite; the model or its statistics are damaged")
                theirs, ours = self.quantise.apply(original), self.delivered(output)
                scores = self.score(ours, theirs)
                for column, metric in built.items():
                    scores[column] = metric(ours.to(device), theirs.to(device)).item()
                described = self._describe(extractor, ours.to(device), theirs.to(device))
            self._check_widths(described, reference)
            height, width = original.shape[2:]
            if visit is not None:
                visit(Measured(index, total, name, theirs, latent, ours, scores))
            return {"name": name, "height": height, "width": width} | scores, described

        def finish(tally: Tally) -> Numbers:
            rows = [tally.rows[index] for index in sorted(tally.rows)]
            found = totals(rows) | {"average": self.average, "posterior": self._posterior(model)}
            found["metrics"] = {name: summary([row[name] for row in rows]) for name in built}
            found["population"] = self._set_numbers(tally, reference)
            found["provenance"] = self._origin(extractor, reference) | {
                metric.column: known for metric in self.pair_metrics if (known := metric.provenance())
            }
            return found

        with frozen(model):
            key = {"model": weights_hash(model.state_dict())}
            return self._run(images, work, finish, folder=folder, key=key, every=every)

    def _posterior(self, model: Any) -> str:
        return self.posterior if hasattr(model, "encode_posterior") else "deterministic"


@part("protocol/reconstruction")
class ReconstructionConfig(ReconstructingConfig):
    """A user's own: every part can be chosen; the defaults are those of ``protocol/archetype_psnr``."""
