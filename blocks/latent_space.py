"""What a latent tensor is, beside its numbers: the space that it lives in.

Two models whose latents have the same shape still do not read each other's. A :class:`LatentSpec` names the space; it
stands in the header of every file of latents and of every checkpoint. In memory, ``encode`` puts it on the tensor
that it returns, where it stays until the first operation makes another tensor of it; ``decode`` compares what it
finds and takes tensors without a spec on trust.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from .registry import Part, decode, differences, encode, part
from .shapes import Latent

_ATTRIBUTE = "latelier_spec"

RAW = "raw"
"""The normalisation of latents that are not normalised yet."""

UNKNOWN = "unknown"
"""The normalisation by statistics that live in weights which have not been read."""

Posterior = Literal["deterministic", "mode", "sample"]


@part("latent_spec/model")
class LatentSpec(Part):
    """The space of a model's latents.

    Attributes:
        source: kind of the family that encodes into it.
        channels: of a latent ``[b, channels, H/stride, W/stride]``.
        stride: pixels a side of an image that become one position.
        normalisation: fingerprint of the statistics by which latents are normalised (see :func:`fingerprint`), "none",
            ``RAW``, or ``UNKNOWN``.
        posterior: what is taken of what the encoder says: its only answer, the mode, or a sample.
        image_range: of pixels as the autoencoder itself takes and gives them.
        patch: positions a side that are packed into channels, ordered c·p² + i·p + j; ``channels`` and ``stride`` are
            those after packing.
        version: date of the space, where it changed under one name.
    """

    source: str
    channels: int
    stride: int
    normalisation: str = "none"
    posterior: Posterior = "mode"
    image_range: tuple[float, float] = (-1.0, 1.0)
    patch: int = 1
    version: str = ""

    def check(self, other: "LatentSpec", *, where: str) -> None:
        """Raise ``ValueError`` where latents of the space ``other`` are given in the place of ours.

        Statistics that are ``UNKNOWN`` on one side may be any, but raw latents are never normalised ones.
        """
        pair = {self.normalisation, other.normalisation}
        ours = replace(self, normalisation=other.normalisation) if UNKNOWN in pair and RAW not in pair else self
        found = differences(other, ours, where="")
        if found and replace(ours, normalisation=RAW) == other:
            raise ValueError(f"{where}: these latents are raw, not normalised; give them to space.normalise(raw) first")
        if found:
            raise ValueError(
                f"{where}: these latents are of another space ({', '.join(line.lstrip('.') for line in found)}); "
                "use the model that encoded them"
            )


def complete(described: Mapping[str, Any], like: LatentSpec) -> dict[str, Any]:
    """The JSON form of a spec with the fields that its writer did not know yet, as ``like`` has them."""
    known = encode(like)
    later = ("posterior", "image_range", "patch", "version")
    return {name: known[name] for name in later if name not in described} | dict(described)


def fingerprint(statistics: Mapping[str, Tensor]) -> str:
    """Twelve hexadecimal digits of the float32 values of named statistics; "none" where there are none."""
    if not statistics:
        return "none"
    digest = hashlib.sha256()
    for name, value in sorted(statistics.items()):
        digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def mark(latents: Latent, spec: LatentSpec) -> Latent:
    """Put ``spec`` on a tensor, as text, which ``torch.save`` keeps and ``torch.load`` reads; return the tensor."""
    setattr(latents, _ATTRIBUTE, json.dumps(encode(spec)))
    return latents


def spec_of(latents: Latent) -> LatentSpec | None:
    """The spec that :func:`mark` put on a tensor, or None."""
    text = getattr(latents, _ATTRIBUTE, None)
    return None if text is None else decode(json.loads(text), LatentSpec)


class LatentScaleWarning(UserWarning):
    """Latents do not have the scale that normalised latents have."""


def check_scale(latents: Latent, spec: LatentSpec, *, where: str) -> None:
    """Warn where the standard deviation of a channel of normalised latents is outside 0.5 to 2.

    Give it many positions: a few say little about a standard deviation.
    """
    if spec.normalisation == RAW or latents.shape[0] * latents.shape[2] * latents.shape[3] < 2:
        return
    deviations = latents.detach().double().std(dim=(0, 2, 3))
    outside = ~((deviations >= 0.5) & (deviations <= 2))
    if outside.any():
        worst = int((deviations.clamp_min(1e-30).log().abs() * outside).argmax())
        warnings.warn(
            f"{where}: {int(outside.sum())} of {len(deviations)} channels of these latents of {spec.source!r} have a "
            f"standard deviation outside 0.5 to 2 (channel {worst}: {deviations[worst].item():.3g}); usual causes: "
            "they are raw and were never normalised, they were normalised twice, by another space's constants or in "
            "another order, the images were in [0, 1] and not in [-1, 1], or the autoencoder is not what its name says",
            LatentScaleWarning,
            stacklevel=2,
        )
