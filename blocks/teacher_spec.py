"""What a teacher is, to the last thing that changes a number.

Two projects that align "with DINOv2-B at 224" rarely have the same targets: resize, statistics, position table, layer,
final norm and prefix all differ (dinov2#378, LightningDiT#78, RADIO#87). A :class:`TeacherSpec` says all of it. It
stands in the header of checkpoints and of caches of features, and is compared when they are read.
"""

from collections.abc import Collection

from .registry import Part, differences, part
from .resize import ResizeConfig
from .standardise import StandardiseConfig


@part("teacher_spec/model")
class TeacherSpec(Part):
    """A teacher, resolved: no field is a default that a library could change.

    Attributes:
        library, version: what computes it: "timm", "transformers", "latelier", ...
        model: the library's name of the network, or our description of a function.
        weights: "none" for a fixed function, "random:SEED", or "sha256:" and the hash of the tensors.
        licence: of the weights.
        images: the range of what callers give; the teacher normalises.
        resize: what the network sees of an image; None where it must be taken as it is.
        mean, std: subtracted from and divided into each colour, after resizing or before it; () is neither.
        position: how a position table is fitted to a grid: "rope", "none", or the name of the resampling.
        layers: blocks whose outputs are taken, counted from 0; () for what has no blocks.
        combine: of several layers: "concat" along features, or their "sum".
        norm: the final norm over each layer: "affine", "plain" (without weight and bias), or "none".
        prefix: whether class and register tokens are returned ("return") or dropped ("drop").
        cls: what the class token is: "token", "mean" of the patches, "pooled" by a layer of its own, or "none".
        standardise: what is done to patch tokens last, or None.
        dtype: in which the network computes.
        patch: pixels of the network's input a side that become one token.
        features: width of a token.
    """

    library: str
    version: str
    model: str
    weights: str
    licence: str
    images: str = "[0, 1]"
    resize: ResizeConfig | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    position: str = "none"
    layers: tuple[int, ...] = ()
    combine: str = "concat"
    norm: str = "none"
    prefix: str = "return"
    cls: str = "none"
    standardise: StandardiseConfig | None = None
    dtype: str = "float32"
    patch: int
    features: int

    def check(self, found: "TeacherSpec", *, where: str, accept: Collection[str] = ()) -> None:
        """Raise ``ValueError`` where ``found`` is another teacher; ``accept`` names fields that may differ.

        Only differences that are known to be harmless should be accepted, such as a ``version``.
        """
        lines = [line.lstrip(".") for line in differences(found, self, where="")]
        lines = [line for line in lines if line.partition(":")[0].partition(".")[0] not in accept]
        if lines:
            raise ValueError(
                f"{where}: is of another teacher ({'; '.join(lines)}); take the teacher that it was made with, "
                "or make it anew"
            )
