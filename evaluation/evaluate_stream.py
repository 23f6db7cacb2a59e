"""Results of protocols that stream: what ``save_result`` writes and tables show, from a folder that can be resumed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..blocks.registry import Part
from ..blocks.slots import ImageSource, Measured
from .reconstruction import ReconstructingConfig
from .results import Result, identify, origin, plain, versions
from .samples import SamplingConfig

Progress = Callable[[str, int, int], None]


def evaluate_stream(
    model: Any,
    images: ImageSource,
    protocol: ReconstructingConfig,
    *,
    folder: Path | None = None,
    recipe: Part | None = None,
    every: int = 64,
    on_progress: Progress | None = None,
) -> Result:
    """Measure a model on images under a protocol, with constant memory, and return a result.

    Partial results stand in ``folder``: the same call after a kill, or after an error that was put right, goes on from
    there. In a ``torch.distributed`` group every process calls it, and each gets the whole result.

    Raises:
        FileNotFoundError: weights or a reference are not there.
        ValueError: see :meth:`~.reconstruction.ReconstructingConfig.measure`.
    """

    def visit(measured: Measured) -> None:
        if on_progress is not None:
            on_progress("measure", measured.index + 1, measured.total)

    numbers = protocol.measure(model, images, visit=visit, folder=folder, every=every)
    start = origin(model, protocol, recipe=recipe)
    start["model"] |= {"stride": model.stride}
    return plain(start | {"set": identify(numbers["images"]) | {"asked": numbers.pop("asked")}} | numbers)


def evaluate_samples(
    images: ImageSource,
    protocol: SamplingConfig,
    *,
    name: str,
    folder: Path | None = None,
    every: int = 64,
    device: torch.device | str = "cpu",
) -> Result:
    """Measure what a generator wrote; ``name`` is the generator's, for tables. Otherwise as :func:`evaluate_stream`."""
    numbers = protocol.measure(None, images, folder=folder, every=every, device=device)
    rows = numbers.pop("images")  # names and sizes of samples say nothing
    start = versions(protocol, dtype="float32", device=torch.device(device))
    start |= {"model": {"kind": "samples", "name": name}, "recipe": None}
    known = {"n": len(rows), "id": "samples", "asked": numbers.pop("asked")}
    return plain(start | {"set": known} | numbers)
