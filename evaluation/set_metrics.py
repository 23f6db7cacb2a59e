"""Measures of a population of images beside a reference: parts that protocols list.

Each reads a stream of the extractor: its moments, which are sums, or its rows, which the evaluation keeps on disk for
the parts that need them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ..blocks.frechet import Moments
from ..blocks.registry import Part, part
from .extractors import ExtractorConfig
from .populations import frechet, inception_score, kid, prdc


@dataclass(frozen=True)
class Population:
    """Moments and rows of a set by stream; either raises ``ValueError`` where it has none."""

    name: str
    moments: Callable[[str], Moments]
    rows: Callable[[str], Tensor]


class SetMetricConfig(Part, ABC):
    """A measure of a whole set."""

    slot: ClassVar[str] = "set_metric"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    needs_rows: ClassVar[bool] = False
    needs_moments: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = True

    @property
    def stream(self) -> str:
        """The extractor's stream that it reads."""
        return "features"

    @abstractmethod
    def measure(self, ours: Population, theirs: Population | None, extractor: ExtractorConfig) -> dict[str, float]:
        """Numbers by the names of their columns."""


def check_widths(where: str, ours: int, theirs: int, *, reference: str) -> None:
    """Raise ``ValueError`` where a reference is of another width."""
    if ours != theirs:
        raise ValueError(
            f"{where}: the reference {reference} has {theirs} features, and the extractor gives {ours}; take one that "
            "this extractor made"
        )


@part("set_metric/frechet")
class FrechetConfig(SetMetricConfig):
    """Fréchet distance: FID on Inception's features, sFID on its spatial ones, FDD on DINOv2's."""

    needs_moments = True

    of: Literal["features", "spatial"] = "features"

    @property
    def stream(self) -> str:
        return self.of

    def measure(self, ours: Population, theirs: Population | None, extractor: ExtractorConfig) -> dict[str, float]:
        assert theirs is not None
        name = extractor.column("frechet" if self.of == "features" else "sfrechet")
        a, b = ours.moments(self.of), theirs.moments(self.of)
        check_widths(name, len(a.mean), len(b.mean), reference=theirs.name)
        return {name: frechet(a, b)}


@part("set_metric/kid")
class KIDConfig(SetMetricConfig):
    """Kernel distance, mean over subsets; the reference must have its rows."""

    needs_rows = True

    subsets: int = 100
    subset_size: int = 1000
    seed: int = 2020

    def measure(self, ours: Population, theirs: Population | None, extractor: ExtractorConfig) -> dict[str, float]:
        assert theirs is not None
        found = kid(
            ours.rows("features"),
            theirs.rows("features"),
            subsets=self.subsets,
            subset_size=self.subset_size,
            seed=self.seed,
        )
        name = extractor.column("kid")
        return {name: found["mean"], f"{name}_std": found["std"]}


@part("set_metric/prdc")
class PRDCConfig(SetMetricConfig):
    """Precision and recall, and with ``density`` also density and coverage; the reference must have its rows.

    ADM and Kynkäänniemi et al. take k = 3; density and coverage are published with k = 5.
    """

    better = "higher"
    needs_rows = True

    k: int = 3
    density: bool = False

    def measure(self, ours: Population, theirs: Population | None, extractor: ExtractorConfig) -> dict[str, float]:
        assert theirs is not None
        found = prdc(ours.rows("features"), theirs.rows("features"), k=self.k)
        wanted = found if self.density else ("precision", "recall")
        return {extractor.column(name): found[name] for name in wanted}


@part("set_metric/inception_score")
class InceptionScoreConfig(SetMetricConfig):
    """Inception Score over ``splits`` parts; ``shuffle_seed`` None keeps the order, as ADM does."""

    better = "higher"
    needs_rows = True
    needs_reference = False

    splits: int = 10
    shuffle_seed: int | None = 2020

    @property
    def stream(self) -> str:
        return "logits"

    def measure(self, ours: Population, theirs: Population | None, extractor: ExtractorConfig) -> dict[str, float]:
        found = inception_score(ours.rows("logits"), splits=self.splits, shuffle_seed=self.shuffle_seed)
        name = extractor.column("inception_score")
        return {name: found["mean"], f"{name}_std": found["std"]}
