"""What a recipe says: a model, and what it takes to train it and to measure it."""

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Literal

from ..blocks.registry import Part, differences, part
from ..blocks.slots import (
    CorruptionConfig,
    DataConfig,
    FamilyConfig,
    ObjectiveConfig,
    OptimiserConfig,
    ProbeConfig,
    ProtocolConfig,
    RateConfig,
    TeacherConfig,
)
from ..families.bridge import LatentBridgeConfig
from .crops import CropConfig, RandomCropConfig
from .optimisers import AdamWConfig, ConstantRateConfig
from .precision import PrecisionName
from .starts import StartConfig


@part("stage/joint")
class StageConfig(Part):
    """One phase of training, in which all terms act on all trainable parameters at once.

    Attributes:
        steps: optimiser steps; ``batch`` images each over all processes, in ``accumulate`` parts per process.
        resolution: side of the training crops in pixels.
        objective: terms with their weights; a weight of 0 leaves a term out.
        latents: where the latents come from: the model's own "encoder"; the "teacher" (for decoders of another model's
            latents); or the "data", which are then pairs of latents and features for a bridge. Crops, corruptions and
            latent statistics do not concern stages on pairs.
        corruption: of the posteriors that the decoder's latents are drawn from, or None. Latent statistics and terms
            that read the posterior see it clean.
        trainable, frozen: shell patterns over the model's parameter names; what matches ``frozen`` stays.
        clip: largest gradient norm, or None.
        ema: decay of the averaged weights, which are what is saved and measured.
        precision: "auto" is bfloat16 autocast on CUDA and float32 elsewhere; "float16", for CUDA alone, scales the loss
            and leaves out steps whose gradients overflow.
        momentum: of the latent statistics during training; they are measured anew over ``recalibrate`` batches
            at the end.
        checkpoint_every, validate_every, log_every: in steps; 0 validates at the end of the stage only.
        validate_images: how many of the held-out images at most, evenly spaced.
    """

    has_adversary: ClassVar[bool] = False

    name: str = "main"
    steps: int = 1000
    batch: int = 32
    accumulate: int = 1
    resolution: int = 256
    crop: CropConfig = RandomCropConfig()
    objective: tuple[ObjectiveConfig, ...] = ()
    latents: Literal["encoder", "teacher", "data"] = "encoder"
    corruption: CorruptionConfig | None = None
    trainable: tuple[str, ...] = ("*",)
    frozen: tuple[str, ...] = ()
    optimiser: OptimiserConfig = AdamWConfig()
    rate: RateConfig = ConstantRateConfig()
    clip: float | None = 1.0
    ema: float = 0.9995
    precision: PrecisionName = "auto"
    momentum: float = 0.01
    recalibrate: int = 32
    checkpoint_every: int = 1000
    validate_every: int = 0
    validate_images: int = 256
    log_every: int = 10

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "resolution", "checkpoint_every", "validate_images", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        for name in ("ema", "momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: must be in [0, 1], got {getattr(self, name)}")
        if not self.objective:
            raise ValueError("objective: is empty; a stage needs a term to learn from")
        if self.corruption is not None and self.latents == "teacher":
            raise ValueError("corruption: needs an encoder's posterior; a stage on the teacher's latents has none")
        if self.corruption is not None and self.latents == "data":
            raise ValueError("corruption: needs an encoder's posterior; pairs have none, but a bridge may have a noise")
        kinds = [term.kind for term in self.objective]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise ValueError(f"objective: has {kind!r} twice; give each term once")
        for term in self.objective:
            if term.adversarial and not self.has_adversary:
                raise ValueError(
                    f"objective: {term.kind!r} needs an adversary, and {self.kind!r} has none; take 'stage/adversarial'"
                )
            if term.of_pairs and self.latents != "data":
                raise ValueError(
                    f"objective: {term.kind!r} is a term of bridges, which learn from pairs; set latents to 'data', "
                    f"got {self.latents!r}"
                )
            if self.latents == "data" and not term.of_pairs:
                raise ValueError(
                    f"objective: {term.kind!r} needs images, and a stage whose latents are 'data' has pairs of latents "
                    "and features alone; take terms of bridges, such as 'objective/bridge_cosine'"
                )


@part("recipe/staged")
class Recipe(Part):
    """A model with everything that it takes to train and to measure it.

    ``evaluation`` and ``probes`` are what `latelier eval` and the report measure, every probe under every protocol.
    ``seed`` fixes every random number; ``start`` sets the weights of a new model, which are random otherwise.
    """

    name: str
    model: FamilyConfig
    data: DataConfig
    stages: tuple[StageConfig, ...]
    teacher: TeacherConfig | None = None
    evaluation: tuple[ProtocolConfig, ...] = ()
    probes: tuple[ProbeConfig, ...] = ()
    start: StartConfig | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages: have the names {names}; each needs its own")
        if isinstance(self.model, LatentBridgeConfig) and self.teacher not in (None, self.model.teacher):
            lines = differences(self.model.teacher, self.teacher, where="model.teacher")
            raise ValueError(f"teacher: must be the one whose features the bridge predicts ({'; '.join(lines)})")
        for i, stage in enumerate(self.stages):
            if stage.resolution % self.model.stride:
                raise ValueError(
                    f"stages.{i}.resolution: must be divisible by the model's stride {self.model.stride}, "
                    f"got {stage.resolution}"
                )
            self._check_pairs(i, stage)
            features = None if self.teacher is None else self.teacher.features
            if stage.latents == "teacher" and features != self.model.latent_channels:
                raise ValueError(
                    f"stages.{i}.latents: 'teacher' needs a teacher of {self.model.latent_channels} features, the "
                    f"model's latent channels, got {'none' if features is None else features}"
                )

    def _check_pairs(self, number: int, stage: StageConfig) -> None:
        """Bridges learn from pairs, and nothing else does."""
        where, bridge = f"stages.{number}.latents", isinstance(self.model, LatentBridgeConfig)
        if bridge and stage.latents != "data":
            raise ValueError(
                f"{where}: must be 'data' for {self.model.kind!r}, which learns from pairs, got {stage.latents!r}"
            )
        if stage.latents == "data" and not bridge:
            raise ValueError(
                f"{where}: 'data' needs a bridge, and {self.model.kind!r} learns from images; take "
                "'family/latent_bridge', or 'encoder'"
            )


def trainable_names(names: Sequence[str], stage: StageConfig) -> set[str]:
    """Return which of a model's parameters learn in a stage.

    Raises:
        ValueError: a pattern matches no parameter, or nothing is left to learn.
    """

    def matched(patterns: Iterable[str], field: str) -> Iterator[str]:
        for pattern in patterns:
            found = fnmatch.filter(names, pattern)
            if not found:
                raise ValueError(f"stage {stage.name!r}: {field} pattern {pattern!r} matches no parameter")
            yield from found

    learns = set(matched(stage.trainable, "trainable")) - set(matched(stage.frozen, "frozen"))
    if not learns:
        raise ValueError(f"stage {stage.name!r}: every parameter is frozen; nothing is left to learn")
    return learns
