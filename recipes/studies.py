"""Ready studies at demo scale: variants to compare, on photographs, in minutes on two CPU cores.

    latelier ablate demo/teacher_swap --jobs 2 --out runs/teachers
    latelier ablate demo/encoder_swap --jobs 2 --out runs/encoders
    latelier ablate demo/teachers_and_encoders --jobs 2 --out runs/both

All are the small SemDisDiffAE of ``demo/semdisdiffae`` with fewer steps. Its teachers need no download: histograms of
oriented gradients, and a small ViT with random weights. Cosines to two teachers are not compared; what a teacher does
to reconstruction and to the latents is. Interval and verdict are about other seeds on these photographs.
"""

from collections.abc import Callable

from ..blocks.hog import HOGConfig
from ..blocks.slots import TeacherConfig
from ..blocks.tiny_vit import TinyViTConfig
from . import demo
from .grid import Variant, grid

STEPS = 300


def teacher_swap(
    *, teachers: tuple[TeacherConfig, ...] = (HOGConfig(), TinyViTConfig()), steps: int = STEPS
) -> list[Variant]:
    """One autoencoder, aligned with HOG or with a small ViT."""
    return grid(demo.semdisdiffae, {"teacher": teachers}, arguments={"steps": steps})


def encoder_swap(*, blocks: tuple[str, ...] = ("fcdm", "dit"), steps: int = STEPS) -> list[Variant]:
    """Convolutional or transformer blocks in the encoder alone."""
    return grid(demo.semdisdiffae, {"encoder.block": blocks}, arguments={"steps": steps})


def teachers_and_encoders(*, steps: int = STEPS) -> list[Variant]:
    """Both at once: two teachers by two encoder blocks."""
    axes = {"teacher": (HOGConfig(), TinyViTConfig()), "encoder.block": ("fcdm", "dit")}
    return grid(demo.semdisdiffae, axes, arguments={"steps": steps})


STUDIES: dict[str, Callable[..., list[Variant]]] = {
    "demo/teacher_swap": teacher_swap,
    "demo/encoder_swap": encoder_swap,
    "demo/teachers_and_encoders": teachers_and_encoders,
}
"""Names that ``latelier ablate`` takes; a study in a file of your own is a function that returns variants."""
