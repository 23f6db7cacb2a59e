"""A new bridge that begins with parts of another: its body and head, to learn a stem for another latent space.

    Recipe(..., start=BridgePartsConfig(path="runs/first"), stages=(StageConfig(frozen=("body.*", "head.*"), ...),))

swaps the stem and leaves everything else as it was, to the bit.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..blocks.registry import part
from .starts import StartConfig

_OF_A_RUN = "model"
"""Where a run folder has its finished model."""


@part("start/bridge_parts")
class BridgePartsConfig(StartConfig):
    """Some parts of a trained bridge; the others keep their random birth.

    Attributes:
        path: a run folder, a model folder, a file or a hub id.
        parts: which of them to take over. A head is its teacher's: that of another teacher is refused.
    """

    shorthand: ClassVar[str] = "path"

    path: str
    parts: tuple[Literal["stem", "body", "head"], ...] = ("body", "head")
    batches: int = 0

    def __post_init__(self) -> None:
        if not self.parts or len(set(self.parts)) != len(self.parts):
            raise ValueError(f"parts: names each of 'stem', 'body' and 'head' at most once, and one, got {self.parts}")

    def apply(self, model: Any, images: Iterable[Tensor]) -> None:
        if not hasattr(model, "load_parts"):
            raise ValueError(f"start/bridge_parts: needs a bridge, and the recipe's model is {model.config.kind!r}")
        inside = Path(self.path).expanduser() / _OF_A_RUN
        model.load_parts(inside if inside.is_dir() else self.path, parts=self.parts)
