"""Protocols of what a generator wrote, and the statistics of images that protocols take as their reference."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..blocks.draws import address
from ..blocks.registry import part
from ..blocks.slots import ImageSource, Measured
from .extractors import ExtractorConfig, TeacherExtractorConfig
from .framing import AsIsFramingConfig, FramingConfig
from .quantise import QuantiseConfig, RoundConfig
from .reference_statistics import FileReferenceConfig, OriginalsConfig, ReferenceConfig, ReferenceStatistics
from .set_metrics import FrechetConfig, SetMetricConfig
from .streamed import Numbers, StreamedConfig, named
from .streaming import Described, Row, Tally, shared_folder, stream

AS_IS, ROUND = AsIsFramingConfig(), RoundConfig()


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(StreamedConfig):
    """What a generator wrote, as images; there is no model, and no originals to compare with."""

    crop: FramingConfig = AS_IS
    quantise: QuantiseConfig = ROUND

    def __post_init__(self) -> None:
        self.check_common()
        if not self.set_metrics:
            raise ValueError("set_metrics: is empty; name a measure of the set, such as 'set_metric/frechet'")
        if isinstance(self.reference, OriginalsConfig) and any(m.needs_reference for m in self.set_metrics):
            raise ValueError("reference: samples have no originals; name a file, 'reference/file'")

    def measure(
        self,
        model: Any,
        images: ImageSource,
        *,
        visit: Callable[[Measured], None] | None = None,
        folder: Path | None = None,
        every: int = 64,
        device: torch.device | str = "cpu",
    ) -> Numbers:
        """Return measures of the images as a set; ``model`` is None. Errors and ``folder`` as of reconstructions.

        Raises:
            ValueError: a model is given.
        """
        if model is not None or visit is not None:
            raise ValueError(
                f"{self.kind}: measures images that a generator wrote, not what a model reconstructs; "
                "give them to evaluate_samples, or take 'protocol/rfid_val50k'"
            )
        reference = self._load_reference()
        assert self.extractor is not None
        extractor = self.extractor.build().to(device)

        def work(index: int) -> tuple[Row, Described]:
            name = images.name(index)
            with named(name):
                sample = self.quantise.apply(self.prepare(images.read(index), stride=1))
                described = self._describe(extractor, sample.to(device), None)
            self._check_widths(described, reference)
            return {"name": name, "height": sample.shape[2], "width": sample.shape[3]}, described

        def finish(tally: Tally) -> Numbers:
            rows = [tally.rows[index] for index in sorted(tally.rows)]
            return {
                "images": rows,
                "population": self._set_numbers(tally, reference),
                "provenance": self._origin(extractor, reference),
            }

        with torch.no_grad():
            return self._run(images, work, finish, folder=folder, key={}, every=every)


@part("protocol/samples")
class SamplesConfig(SamplingConfig):
    """A user's own protocol of generated images; the file of its reference is made by :func:`make_reference`."""

    extractor: ExtractorConfig | None = TeacherExtractorConfig()
    set_metrics: tuple[SetMetricConfig, ...] = (FrechetConfig(),)
    reference: ReferenceConfig = FileReferenceConfig(name="reference.safetensors")


def make_reference(
    images: ImageSource,
    protocol: StreamedConfig,
    *,
    name: str,
    folder: Path | None = None,
    rows: bool = True,
    device: torch.device | str = "cpu",
    every: int = 64,
) -> ReferenceStatistics:
    """Statistics of images under a protocol's crop, quantisation and extractor, for :meth:`ReferenceStatistics.save`.

    ``rows`` keeps the rows as well, which KID and precision and recall need. Streams, resumes and divides as
    evaluations do.
    """
    config = protocol.extractor
    if config is None:
        raise ValueError(f"{protocol.kind}: extractor: is None; a reference needs one")
    extractor = config.build().to(device)
    count = protocol._taken(images)
    keep = [f"ours/{s}" for s in config.streams if rows and s == "features"]
    add = [f"ours/{s}" for s in config.streams if s != "logits"]

    def work(index: int) -> tuple[Row, Described]:
        with named(images.name(index)), torch.no_grad():
            image = protocol.quantise.apply(protocol.prepare(images.read(index), stride=1))
            described = extractor(image.to(device))
        row = {"name": images.name(index), "height": image.shape[2], "width": image.shape[3]}
        return row, {f"ours/{name}": found for name, found in described.items()}

    names = [images.name(index) for index in range(count)]
    key = {"reference": name, "extractor": config.id, "crop": protocol.crop.id, "images": f"{address(*names):016x}"}
    with shared_folder(folder) as place:
        tally = stream(count, work, folder=place, key=key, keep=keep, add=add, every=every)
        return ReferenceStatistics(
            name=name,
            moments={key.partition("/")[2]: sums.moments() for key, sums in tally.sums.items()},
            rows={key.partition("/")[2]: tally.features(key) for key in keep},
            extractor=config.id,
            preparation=protocol.crop.id,
            n=count,
        )
