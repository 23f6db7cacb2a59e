"""The swap points: abstract configs whose methods are the contract between neighbours.

A part belongs to a slot by subclassing it: ``class FCDMBlockConfig(BlockConfig)``. What a slot's ``build`` is given
is all that its parts may depend on; a part that needs more belongs in another slot.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .adaptive import GradientRatioConfig
from .registry import Part, short_name
from .shapes import Image, Latent, Map, Times

if TYPE_CHECKING:
    from .draws import Draws
    from .posterior import EncoderPosterior
    from .teachers import Teacher
    from .vp import VPSchedule


class BlockConfig(Part, ABC):
    """A block keeps the shape of its map: ``forward(x: Map, cond: Cond | None) -> Map``.

    A conditioned block is born as the identity. It turns its condition into ``modulations * width`` numbers an image
    with its submodule ``modulate``; a stack that computes those numbers itself puts ``nn.Identity`` there.
    """

    slot: ClassVar[str] = "block"
    modulations: ClassVar[int] = 2
    global_context: ClassVar[bool] = False
    """Whether one output position depends on all input positions, so that tiling changes results."""

    @abstractmethod
    def build(self, width: int, *, cond: int | None = None) -> nn.Module:
        """Build for maps of ``width`` channels and conditions of ``cond`` numbers (None: unconditioned)."""


class EncoderConfig(Part, ABC):
    """Image ``[b, channels, H, W]`` to map ``[b, out, H/patch, W/patch]``."""

    slot: ClassVar[str] = "encoder"

    @abstractmethod
    def build(self, *, channels: int, patch: int, width: int, out: int) -> nn.Module: ...


class DecoderConfig(Part, ABC):
    """A denoiser in pixel space: ``forward(x_t: Image, t: Times, latent: Latent, drop_middle_blocks) -> Image``.

    ``drop_middle_blocks`` is a bool for the batch, or a bool tensor ``[b]`` that decides for each image.
    """

    slot: ClassVar[str] = "decoder"

    @abstractmethod
    def build(self, *, channels: int, patch: int, width: int, latent: int) -> nn.Module: ...


class PosteriorHead(nn.Module, ABC):
    """Reads a posterior off the encoder's output, a map of ``channels`` channels."""

    channels: int

    @abstractmethod
    def forward(self, moments: Map) -> "EncoderPosterior": ...


class PosteriorConfig(Part, ABC):
    """What the encoder's output means as a distribution over latents."""

    slot: ClassVar[str] = "posterior"

    @abstractmethod
    def build(self, latent: int) -> PosteriorHead: ...


Statistics = dict[str, Tensor]
"""Named float32 tensors of a latent normaliser; the model keeps them as buffers ``latent_norm_<name>``."""


class LatentNormConfig(Part, ABC):
    """An invertible map between raw latents and the space that ``encode`` returns, and statistics that fix it."""

    slot: ClassVar[str] = "latent_norm"

    @abstractmethod
    def statistics(self, latent: int) -> Statistics:
        """Statistics under which the map is (close to) the identity."""

    @abstractmethod
    def normalise(self, z: Latent, statistics: Statistics) -> Latent: ...

    @abstractmethod
    def denormalise(self, z: Latent, statistics: Statistics) -> Latent: ...

    @abstractmethod
    def observe(self, z: Latent) -> Float[Tensor, "k z"]:
        """Moments of one batch, such that the moments of equal parts average to the moments of the whole."""

    @abstractmethod
    def fit(self, statistics: Statistics, moments: Float[Tensor, "k z"], *, momentum: float) -> None:
        """Move the statistics towards the moments, in place; momentum 1 replaces them."""


class ScheduleConfig(Part, ABC):
    """A noise schedule of diffusion."""

    slot: ClassVar[str] = "schedule"

    @abstractmethod
    def build(self) -> "VPSchedule": ...


class TimesConfig(Part, ABC):
    """A distribution of noise levels over [0, 1] for training."""

    slot: ClassVar[str] = "times"

    @abstractmethod
    def sample(self, draws: "Draws", stream: str) -> Times: ...


class HeadConfig(Part, ABC):
    """Predicts teacher tokens from noised latents: ``forward(latent, tau: Times) -> tokens [b, h*w, features]``."""

    slot: ClassVar[str] = "head"

    @abstractmethod
    def build(self, *, latent: int, features: int) -> nn.Module: ...


@dataclass(frozen=True)
class TeacherOutput:
    """What a teacher says of a batch; ``patches`` are in row-major order of ``grid`` = (rows, columns)."""

    patches: Float[Tensor, "b n f"]
    grid: tuple[int, int]
    cls: Float[Tensor, "b f"] | None = None
    registers: Float[Tensor, "b r f"] | None = None


class TeacherConfig(Part, ABC):
    """A frozen network or a fixed function of images in [0, 1], which owns its resizing and normalisation."""

    slot: ClassVar[str] = "teacher"

    @property
    @abstractmethod
    def features(self) -> int:
        """Width of a token."""

    def for_stride(self, stride: int) -> "TeacherConfig":
        """The same teacher, placed so that a token stands for ``stride`` pixels of the image a side.

        Recipes place their teachers on the grid of their latents with it. A teacher whose grid cannot be chosen, or
        has been chosen already, gives itself.
        """
        return self

    @abstractmethod
    def build(self) -> "Teacher":
        """Build the frozen module ``forward(images: Image) -> TeacherOutput``."""


class TokenHeadConfig(Part, ABC):
    """The part of a model that reads raw latents as a teacher reads images: ``forward(latent) -> TeacherOutput``.

    It has one patch token a position of the latent, and a class token.
    """

    slot: ClassVar[str] = "token_head"
    features: int
    """Width of a predicted token."""

    @abstractmethod
    def build(self, *, latent: int) -> nn.Module: ...


class FamilyConfig(Part, ABC):
    """A whole model between images and latents ``[b, latent_channels, H/stride, W/stride]``."""

    slot: ClassVar[str] = "family"
    channels: int
    """Of the images."""

    @property
    @abstractmethod
    def stride(self) -> int:
        """Pixels a side that become one latent position; sizes of images must divide by it."""

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """Channels of the latents that ``encode`` returns."""

    @abstractmethod
    def build(self) -> nn.Module: ...


@dataclass
class StepState:
    """What one training step knows: the terms of an objective read from it.

    ``latent`` is raw: the posterior's sample with gradient or, where there is no posterior, what the teacher gave;
    ``features`` is what the teacher says of ``images``.
    """

    model: Any
    images: Image
    posterior: "EncoderPosterior | None"
    latent: Latent
    draws: "Draws"
    features: TeacherOutput | None
    prediction: TeacherOutput | None = None
    """What the model's own token head says of the clean latents, once a term has asked for it."""


class CorruptionConfig(Part, ABC):
    """Changes the posteriors of a batch before training draws from them the latents that the decoder sees."""

    slot: ClassVar[str] = "corruption"

    @abstractmethod
    def apply(self, posterior: "EncoderPosterior", draws: "Draws") -> "EncoderPosterior": ...


class ObjectiveConfig(Part, ABC):
    """One term of a training objective: ``forward(state: StepState) -> Tensor``, a scalar mean over the batch.

    Terms may own parameters (an alignment head), which learn and are checkpointed, but are no part of the model.
    """

    slot: ClassVar[str] = "objective"
    weight: float
    adaptive: GradientRatioConfig | None = None
    """How the weight follows gradients, for terms that have this as a field; None is a fixed weight."""

    @abstractmethod
    def build(self, model: FamilyConfig, teacher: TeacherConfig | None) -> nn.Module: ...


class OptimiserConfig(Part, ABC):
    """What turns gradients into steps."""

    slot: ClassVar[str] = "optimiser"

    @abstractmethod
    def build(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer: ...


class RateConfig(Part, ABC):
    """Learning rate over a stage, as a factor of the optimiser's rate."""

    slot: ClassVar[str] = "rate"

    @abstractmethod
    def factor(self, step: int, steps: int) -> float:
        """Factor for ``step`` = 0 .. steps - 1."""


@runtime_checkable
class ImageSource(Protocol):
    """A fixed sequence of images. ``read`` returns RGB, 8 bit; everything random about it comes from outside."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) after EXIF orientation, read without decoding the pixels where the format allows it."""
        ...

    def read(self, index: int) -> Any:
        """A ``PIL.Image.Image`` of mode RGB."""
        ...


class DataConfig(Part, ABC):
    """Where images come from."""

    slot: ClassVar[str] = "data"

    @abstractmethod
    def training(self) -> ImageSource: ...

    @abstractmethod
    def held_out(self) -> ImageSource: ...


@runtime_checkable
class LabelledSource(ImageSource, Protocol):
    """Images of known classes."""

    classes: tuple[str, ...]

    def label(self, index: int) -> int:
        """The place of its class in ``classes``."""
        ...


class LabelsConfig(Part, ABC):
    """Where labelled images come from: both parts have the same classes, and each class has images in both."""

    slot: ClassVar[str] = "labels"

    @abstractmethod
    def training(self) -> LabelledSource: ...

    @abstractmethod
    def held_out(self) -> LabelledSource: ...


@dataclass(frozen=True)
class Measured:
    """One image under a protocol: what went in, what came out, both in [-1, 1], and the numbers."""

    index: int
    total: int
    name: str
    original: Image
    latent: Latent
    reconstruction: Image
    scores: dict[str, float | None]
    """None is an infinite PSNR, of a perfect reconstruction."""


class ProtocolConfig(Part, ABC):
    """A named way of measuring; its ``id`` is stored with every number that it produced."""

    slot: ClassVar[str] = "protocol"

    @abstractmethod
    def prepare(self, image: Any, *, stride: int) -> Image:
        """Turn a ``PIL.Image.Image`` of mode RGB into ``[1, 3, H, W]``, sized for models of ``stride``."""

    @abstractmethod
    def measure(
        self, model: Any, images: ImageSource, *, visit: Callable[[Measured], None] | None = None
    ) -> dict[str, Any]:
        """Return numbers as JSON holds them; ``visit`` is called after each image."""


@dataclass(frozen=True)
class ProbeContext:
    """What a probe may use beside the model and its images, where there is a run that has it."""

    training: ImageSource | None = None
    """The images that the model learned from."""
    teacher: TeacherConfig | None = None
    predict_tokens: Callable[[Latent], Tensor] | None = None
    """The run's alignment head: latents as ``encode`` gives them, to tokens of that teacher."""
    built: dict[TeacherConfig, Any] = field(default_factory=dict, compare=False, repr=False)
    """Teachers that a probe has built already, so that the next one need not."""


Columns = dict[str, tuple[float | None, str]]
"""Label to (value, unit), for tables: the label says what the number is wherever it stands; None has no number."""


class ProbeConfig(Part, ABC):
    """A further question to a model, asked of the same images as its protocol; its ``id`` stands beside the answer."""

    slot: ClassVar[str] = "probe"
    better: ClassVar[Literal["higher", "lower"] | None] = None
    """Which way the numbers of its columns are better, where that is so for all of them."""

    @abstractmethod
    def measure(
        self,
        model: Any,
        images: ImageSource,
        protocol: ProtocolConfig,
        *,
        context: ProbeContext = ProbeContext(),
        on_image: Callable[[int, int], None] | None = None,
    ) -> dict[str, Any]:
        """Return numbers as JSON holds them; ``on_image(done, total)`` is called after each image."""

    def columns(self, answer: Mapping[str, Any]) -> Columns:
        """The numbers of an answer that stand in tables: here, those that are no deeper in it."""
        name = short_name(self)
        return {f"{name}, {key}": (float(x), "") for key, x in answer.items() if type(x) in (int, float)}


__all__ = [
    "BlockConfig",
    "Columns",
    "CorruptionConfig",
    "DataConfig",
    "DecoderConfig",
    "EncoderConfig",
    "FamilyConfig",
    "HeadConfig",
    "ImageSource",
    "LabelledSource",
    "LabelsConfig",
    "LatentNormConfig",
    "Measured",
    "ObjectiveConfig",
    "OptimiserConfig",
    "PosteriorConfig",
    "PosteriorHead",
    "ProbeConfig",
    "ProbeContext",
    "ProtocolConfig",
    "RateConfig",
    "ScheduleConfig",
    "Statistics",
    "StepState",
    "TeacherConfig",
    "TeacherOutput",
    "TimesConfig",
    "TokenHeadConfig",
]
