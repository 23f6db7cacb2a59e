"""What protocols of narrow parts have in common: crop, quantisation, extractor, measures of the set, reference, count.

``reconstruction.py`` measures so what a model makes of images, ``samples.py`` what a generator wrote.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ..blocks.draws import address
from ..blocks.registry import encode
from ..blocks.shapes import Image
from ..blocks.slots import ImageSource, ProtocolConfig
from .extractors import Extractor, ExtractorConfig
from .framing import FramingConfig, NativeFramingConfig
from .quantise import NoQuantiseConfig, QuantiseConfig
from .reference_statistics import (
    ADM_PREFIX,
    FileReferenceConfig,
    OriginalsConfig,
    ReferenceConfig,
    ReferenceStatistics,
)
from .set_metrics import Population, SetMetricConfig, check_widths
from .streaming import Described, Row, Tally, agreed, shared_folder, stream, world

Numbers = dict[str, Any]
NATIVE, EXACT, ORIGINALS = NativeFramingConfig(), NoQuantiseConfig(), OriginalsConfig()


@dataclass(frozen=True, kw_only=True)
class StreamedConfig(ProtocolConfig):
    """What protocols of reconstructions and of samples have in common.

    Attributes:
        crop: what becomes of a picture.
        quantise: what the numbers see of images.
        extractor: what describes images for ``set_metrics``.
        set_metrics: measures of the whole set.
        reference: what the set is compared with.
        count: images that the protocol asks for, the first ones; fewer are measured all the same, and the result says
            so. None takes all.
    """

    crop: FramingConfig = NATIVE
    quantise: QuantiseConfig = EXACT
    extractor: ExtractorConfig | None = None
    set_metrics: tuple[SetMetricConfig, ...] = ()
    reference: ReferenceConfig = ORIGINALS
    count: int | None = None
    refuses_adm: ClassVar[bool] = False

    def check_common(self) -> None:
        if self.count is not None and self.count < 1:
            raise ValueError(f"count: must be at least 1, got {self.count}")
        if self.set_metrics and self.extractor is None:
            raise ValueError(f"extractor: {self.set_metrics[0].kind!r} needs one; take 'extractor/teacher'")
        for metric in self.set_metrics:
            if self.extractor is not None and metric.stream not in self.extractor.streams:
                raise ValueError(
                    f"set_metrics: {metric.kind!r} reads {metric.stream!r}, which {self.extractor.kind!r} does not "
                    f"give; it gives {', '.join(map(repr, self.extractor.streams))}"
                )
        named = self.reference.name if isinstance(self.reference, FileReferenceConfig) else ""
        if self.refuses_adm and Path(named).name.startswith(ADM_PREFIX):
            raise ValueError(f"reference: {_ADM.format(name=named)}")

    def prepare(self, image: Any, *, stride: int) -> Image:
        return self.crop.prepare(image, stride=stride)

    # --- the set --------------------------------------------------------------------------------------------------

    @property
    def _summed(self) -> list[str]:
        return list(dict.fromkeys(metric.stream for metric in self.set_metrics))

    @property
    def _own_reference(self) -> bool:
        return isinstance(self.reference, OriginalsConfig) and any(m.needs_reference for m in self.set_metrics)

    @property
    def _kept(self) -> list[str]:
        """Streams whose rows are kept, of the images and of their originals."""
        wanted = [m for m in self.set_metrics if m.needs_rows]
        return self._sides(wanted)

    @property
    def _added(self) -> list[str]:
        """Streams whose moments are wanted, as sums."""
        return self._sides([m for m in self.set_metrics if m.needs_moments])

    def _sides(self, metrics: list[SetMetricConfig]) -> list[str]:
        sides = ["ours/" + m.stream for m in metrics]
        if self._own_reference:
            sides += ["theirs/" + m.stream for m in metrics if m.needs_reference]
        return list(dict.fromkeys(sides))

    def _load_reference(self) -> ReferenceStatistics | None:
        """Read before anything is measured."""
        if not isinstance(self.reference, FileReferenceConfig) or self.extractor is None:
            return None
        found = self.reference.load()
        if found.adm and self.refuses_adm:
            raise ValueError(f"{self.kind}: reference: {_ADM.format(name=found.name)}")
        found.check(extractor=self.extractor.id, preparation=self.crop.id if self.refuses_adm else None)
        return found

    def _describe(self, extractor: Extractor | None, ours: Image, theirs: Image | None) -> dict[str, Tensor]:
        if extractor is None or not self.set_metrics:
            return {}
        found = {f"ours/{name}": rows for name, rows in extractor(ours).items() if name in self._summed}
        if theirs is not None and self._own_reference:
            wanted = [m.stream for m in self.set_metrics if m.needs_reference]
            found |= {f"theirs/{name}": rows for name, rows in extractor(theirs).items() if name in wanted}
        return found

    def _check_widths(self, described: Described, reference: ReferenceStatistics | None) -> None:
        """Before a second image is measured in vain."""
        for name, rows in described.items():
            side, stream_name = name.split("/")
            if reference is not None and side == "ours" and stream_name in reference.moments:
                width = len(reference.moments[stream_name].mean)
                check_widths(self.kind, rows.shape[1], width, reference=reference.name)

    def _set_numbers(self, tally: Tally, reference: ReferenceStatistics | None) -> dict[str, float]:
        if self.extractor is None:
            return {}
        ours = Population("images", lambda s: tally.sums[f"ours/{s}"].moments(), lambda s: tally.features(f"ours/{s}"))
        theirs = None
        if self._own_reference:
            theirs = Population(
                "originals", lambda s: tally.sums[f"theirs/{s}"].moments(), lambda s: tally.features(f"theirs/{s}")
            )
        elif reference is not None:
            theirs = _population(reference)
        numbers: dict[str, float] = {}
        for metric in self.set_metrics:
            numbers |= metric.measure(ours, theirs, self.extractor)
        return numbers

    def _origin(self, extractor: Extractor | None, reference: ReferenceStatistics | None) -> Numbers:
        """What numbers depend on beside the settings; tables compare it."""
        known: Numbers = {}
        if extractor is not None and self.extractor is not None:
            known["extractor"] = {"id": self.extractor.id, **extractor.provenance}
        if reference is not None:
            known["reference"] = {"name": reference.name, "sha256": reference.sha256[:12], "n": reference.n}
        return known

    @property
    def _partial_id(self) -> str:
        """Of what partial results depend on: the protocol but for the file that is the reference."""
        settings = encode(self)
        if not isinstance(self.reference, OriginalsConfig):
            settings["reference"] = "reference/file"
        return f"{self.kind} {address(json.dumps(settings, sort_keys=True)):016x}"

    def _taken(self, images: ImageSource) -> int:
        if not len(images):
            raise ValueError("images: there are none to measure")
        return len(images) if self.count is None else min(self.count, len(images))

    def _run(
        self,
        images: ImageSource,
        work: Callable[[int], tuple[Row, Described]],
        finish: Callable[[Tally], Numbers],
        *,
        folder: Path | None,
        key: Mapping[str, Any],
        every: int,
    ) -> Numbers:
        count = self._taken(images)
        names = [images.name(index) for index in range(count)]
        key = {"protocol": self._partial_id, "images": f"{address(*names):016x}", **key}
        with shared_folder(folder) as place:
            tally = stream(count, work, folder=place, key=key, keep=self._kept, add=self._added, every=every)
            numbers, problem = None, None
            if world()[0] == 0:
                try:
                    numbers = finish(tally) | {"asked": self.count or count}
                except ValueError as error:
                    problem = error
            numbers, text = agreed((numbers, None if problem is None else str(problem)))
            if text is not None:
                raise problem or ValueError(text)
        return numbers


_ADM = (
    "{name} is ADM's file for generated samples, of training images; a reconstruction FID is taken to the same "
    "validation images: leave 'reference/originals'"
)


def _population(reference: ReferenceStatistics) -> Population:
    def moments(name: str) -> Any:
        if name not in reference.moments:
            raise ValueError(f"{reference.name}: the reference has no statistics of {name!r}")
        return reference.moments[name]

    def rows(name: str) -> Tensor:
        if name not in reference.rows:
            raise ValueError(
                f"{reference.name}: the reference has no rows of {name!r}, only moments; make one that keeps them"
            )
        return reference.rows[name]

    return Population(reference.name, moments, rows)


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """Errors of an image start with its name, once."""
    try:
        yield
    except ValueError as error:
        if f"{name}: " in str(error):
            raise
        raise ValueError(f"{name}: {error}") from error
