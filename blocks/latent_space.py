"""What a latent tensor is, beside its numbers: the space that it lives in.

Two models whose latents have the same shape still do not read each other's. A :class:`LatentSpec` names the space; it
stands in the header of every file of latents and of every checkpoint. In memory, ``encode`` puts it on the tensor
that it returns, where it stays until the first operation makes another tensor of it; ``decode`` compares what it
finds and takes tensors without a spec on trust.
"""

import hashlib
import json
from collections.abc import Mapping

from torch import Tensor

from .registry import Part, decode, differences, encode, part
from .shapes import Latent

_ATTRIBUTE = "latelier_spec"


@part("latent_spec/model")
class LatentSpec(Part):
    """The space of a model's latents.

    Attributes:
        source: kind of the family that encodes into it.
        channels: of a latent ``[b, channels, H/stride, W/stride]``.
        stride: pixels a side of an image that become one position.
        normalisation: fingerprint of the statistics by which latents are normalised (see :func:`fingerprint`).
    """

    source: str
    channels: int
    stride: int
    normalisation: str = "none"

    def check(self, other: "LatentSpec", *, where: str) -> None:
        """Raise ``ValueError`` where latents of the space ``other`` are given in the place of ours."""
        found = differences(other, self, where="")
        if found:
            raise ValueError(
                f"{where}: these latents are of another space ({', '.join(line.lstrip('.') for line in found)}); "
                "use the model that encoded them"
            )


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
