"""How a decode suffers when some tokens of its latent are wrong.

Some tokens of an image's latent, chosen at random, are drawn anew at a lower log-SNR; the others stay at the
posterior's mode z0 = alpha·mu. A chosen token becomes alpha'·mu + sigma'·eps, where alpha' = sqrt(sigmoid(lambda')),
sigma' = sqrt(sigmoid(-lambda')), and all channels of a token share the offset delta of lambda' = lambda - delta, in
nats: the corruption against which DINAC-AE is regularised (model card of data-archetype/dinac_ae). Both latents are
decoded from the same noise, and what is reported is the PSNR of one decode against the other: no number says how good
the reconstruction is, only how much of it the wrong tokens changed, and where.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..blocks.draws import address
from ..blocks.posterior import EncoderPosterior
from ..blocks.registry import part, short_name
from ..blocks.shapes import Image, Latent
from ..blocks.slots import Columns, ImageSource, ProbeConfig, ProbeContext, ProtocolConfig
from ..families.inference import InferenceConfig
from .metrics import pooled_psnr, summary
from .protocols import DATA_RANGE, frozen, placed_like

REGIONS = ("whole", "untouched", "corrupted")
"""The whole image; the pixels of tokens that were left alone, which tell how far an error spreads; the others."""


class _Base(NamedTuple):
    """What the offsets are subtracted from: ``posterior.at`` gives latents that ``finish`` turns into the decoder's."""

    relative_to: str
    posterior: EncoderPosterior
    clean: Latent
    finish: Callable[[Latent], Latent]


@part("probe/token_robustness")
class TokenRobustnessConfig(ProbeConfig):
    """PSNR of the decode of a latent, some of whose tokens are corrupted, against the untouched decode.

    Tokens and noise are drawn by ``seed`` and the image's name, and are the same for every offset: a number depends
    on no other image and on no other offset, and the curve over offsets is that of one experiment.

    Attributes:
        offsets: nats by which the log-SNR of the corrupted tokens is lowered, rising from 0 or more; at 0 they are
            drawn from what the offsets are relative to.
        share: of the tokens that are corrupted; at least one token is.
        relative_to: "posterior": each value's own log-SNR, as the encoder gives it. Models differ in it, so that
            these numbers compare a model with its own certainty. "unit": the log-SNR ``logsnr`` for every value of
            the latents that ``encode`` returns, which are taken to have unit variance, as whitening makes them: these
            numbers compare models. A model without a posterior, or with one of infinite log-SNR, is always asked by
            "unit"; the answer's own ``relative_to`` says what was done.
        logsnr: of "unit" at offset 0. 6 nats are noise of 5 % of a unit latent's deviation; the offsets 2, 4 and 6
            make it 13, 35 and 71 %.
        num_steps: decoder evaluations, without guidance.
    """

    better = "higher"

    offsets: tuple[float, ...] = (0.0, 2.0, 4.0, 6.0)
    share: float = 0.25
    relative_to: Literal["posterior", "unit"] = "posterior"
    logsnr: float = 6.0
    num_steps: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        rises = all(a < b for a, b in zip(self.offsets, self.offsets[1:], strict=False))
        if not self.offsets or self.offsets[0] < 0 or not rises:
            raise ValueError(f"offsets: must rise from 0 or more, got {list(self.offsets)}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share: must be above 0 and at most 1, got {self.share}")
        if self.num_steps < 1:
            raise ValueError(f"num_steps: must be at least 1, got {self.num_steps}")

    def measure(
        self,
        model: Any,
        images: ImageSource,
        protocol: ProtocolConfig,
        *,
        context: ProbeContext = ProbeContext(),
        on_image: Callable[[int, int], None] | None = None,
    ) -> dict[str, Any]:
        """Return for each offset the PSNR of each region (see :data:`REGIONS`), and a row for each of the ``images``.

        ``model`` needs ``encode``, ``decode`` and ``stride``; with ``encode_posterior`` (and ``whiten``, where the
        posterior is of raw latents) its posterior is used.

        Raises:
            ValueError: no images, one that does not fit, or a decode that is not finite; it says which.
        """
        if not len(images):
            raise ValueError("images: there are none to measure")
        rows = []
        with frozen(model):
            for index in range(len(images)):
                name = images.name(index)
                picture = images.read(index)
                try:
                    rows.append({"name": name} | self._row(model, protocol.prepare(picture, stride=model.stride), name))
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
                if on_image is not None:
                    on_image(index + 1, len(images))
        return robustness(rows, self.offsets)

    def _row(self, model: Any, original: Image, name: str) -> dict[str, Any]:
        """The numbers of one image: lists have an item an offset, and regions without pixels are left out."""
        base = self._base(model, placed_like(model, original))
        height, width = original.shape[2:]
        grid = base.clean.shape[2:]
        chosen = self.chosen(name, *grid)
        noise = self.noise(name, base.clean.shape[1:]).to(base.clean.device)
        inference = InferenceConfig(num_steps=self.num_steps, seed=address(self.seed, self.kind, "decoder", name))

        def decoded(latent: Latent) -> Float[Tensor, "rgb H W"]:
            output = model.decode(base.finish(latent), height, width, inference)[0].double().cpu()
            if not torch.isfinite(output).all():
                raise ValueError("the decode is not finite; the model or its statistics are damaged")
            return output.clamp(-1, 1)

        pixels = chosen.repeat_interleave(height // grid[0], dim=0).repeat_interleave(width // grid[1], dim=1)
        regions = {"whole": torch.ones_like(pixels), "untouched": ~pixels, "corrupted": pixels}
        regions = {region: mask for region, mask in regions.items() if mask.any()}
        untouched, errors = decoded(base.clean), {region: [] for region in regions}
        for offset in self.offsets:
            noisy = EncoderPosterior(base.posterior.mean, base.posterior.logsnr.float() - offset).at(noise)
            error = (decoded(torch.where(chosen.to(noisy.device), noisy, base.clean)) - untouched).square()
            for region, mask in regions.items():
                errors[region].append(error[:, mask].mean().item())
        known = base.posterior.logsnr[base.posterior.logsnr.isfinite()].double()
        return {
            "height": height,
            "width": width,
            "relative_to": base.relative_to,
            "logsnr": known.mean().item() if len(known) else None,
            "tokens": chosen.numel(),
            "corrupted_tokens": int(chosen.sum()),
            "pixels": {region: int(mask.sum()) for region, mask in regions.items()},
            "mse": errors,
            "psnr": {region: [_decibels(error) for error in each] for region, each in errors.items()},
        }

    def _base(self, model: Any, images: Image) -> _Base:
        if self.relative_to == "posterior" and hasattr(model, "encode_posterior"):
            posterior = model.encode_posterior(images)
            if not posterior.logsnr.isposinf().all():
                return _Base("posterior", posterior, posterior.mode(), getattr(model, "whiten", _as_it_is))
        clean = model.encode(images)
        posterior = EncoderPosterior(clean, torch.full(clean.shape, self.logsnr, device=clean.device))
        return _Base("unit", posterior, clean, _as_it_is)

    def columns(self, answer: Mapping[str, Any]) -> Columns:
        """Mean PSNR of each offset: whole image and untouched tokens, of which that of the others follows.

        A label says what its offset is relative to, so that no row of a table mixes two.
        """
        base = "own posterior" if answer["relative_to"] == "posterior" else f"log-SNR {self.logsnr:g}"
        return {
            f"{short_name(self)}, {base} − {numbers['offset']:g}, {region}": (numbers[region]["mean"], "dB")
            for numbers in answer["offsets"]
            for region in ("whole", "untouched")
        }

    def chosen(self, name: str, h: int, w: int) -> Bool[Tensor, "h w"]:
        """Which tokens of the image of that name are corrupted: as many for every image of a size."""
        generator = torch.Generator().manual_seed(address(self.seed, self.kind, "tokens", name))
        mask = torch.zeros(h * w, dtype=torch.bool)
        mask[torch.randperm(h * w, generator=generator)[: max(round(self.share * h * w), 1)]] = True
        return mask.reshape(h, w)

    def noise(self, name: str, shape: Sequence[int]) -> Float[Tensor, "1 z h w"]:
        """The unit Gaussian eps of the image of that name, drawn on the CPU: the same on every device."""
        generator = torch.Generator().manual_seed(address(self.seed, self.kind, "noise", name))
        return torch.randn(1, *shape, generator=generator)


def robustness(rows: Sequence[Mapping[str, Any]], offsets: Sequence[float]) -> dict[str, Any]:
    """Summaries of rows, which may come from several parts of a set in any order.

    Raises:
        ValueError: the offsets of some rows are relative to a posterior, and those of others are not.
    """
    rows = sorted(rows, key=lambda row: row["name"])
    bases = {row["relative_to"]: row["name"] for row in rows}
    if len(bases) > 1:
        raise ValueError(
            f"images: {bases['posterior']!r} has a posterior of finite log-SNR and {bases['unit']!r} has not; "
            "ask with relative_to='unit'"
        )
    known = [row["logsnr"] for row in rows if row["logsnr"] is not None]
    return {
        "relative_to": rows[0]["relative_to"],
        "logsnr": math.fsum(known) / len(known) if known else None,
        "offsets": [
            {"offset": offset} | {region: _statistics(rows, region, i) for region in REGIONS}
            for i, offset in enumerate(offsets)
        ],
        "images": rows,
    }


def _statistics(rows: Sequence[Mapping[str, Any]], region: str, place: int) -> dict[str, Any]:
    rows = [row for row in rows if region in row["psnr"]]
    errors = [{"mse": row["mse"][region][place], "height": row["pixels"][region], "width": 1} for row in rows]
    pooled = pooled_psnr(errors, data_range=DATA_RANGE)
    return summary([row["psnr"][region][place] for row in rows]) | {"pooled": pooled}


def _decibels(error: float) -> float | None:
    """PSNR of a squared error between images in [-1, 1]; None stands for infinity."""
    return 10 * math.log10(DATA_RANGE**2 / error) if error else None


def _as_it_is(latent: Latent) -> Latent:
    return latent
