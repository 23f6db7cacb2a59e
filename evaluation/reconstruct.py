"""Reconstruct picture files of any size and write what comes out."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..blocks.shapes import Image
from ..families.files import write_atomically
from ..families.images import open_image, to_pixels, to_signed
from ..families.inference import InferenceConfig
from .pictures import png, to_picture
from .protocols import frozen


def reconstruct(model: Any, image: Image, inference: InferenceConfig | None = None) -> Image:
    """Encode and decode images of any size: padded by reflection to the model's stride, cropped back, clamped."""
    height, width = image.shape[2:]
    with frozen(model):
        padded = pad_to_multiple(image, model.stride)
        latent = model.encode(placed_at(model, padded))
        output = model.decode(latent, *padded.shape[2:], inference)
    return output[:, :, :height, :width].float().cpu().clamp(-1, 1)


def placed_at(model: nn.Module, tensor: Tensor) -> Tensor:
    """Move to the device of the model's first tensor; which dtype it computes in, the model knows."""
    return tensor.to(next(chain(model.parameters(), model.buffers())).device)


def pad_to_multiple(image: Image, multiple: int) -> Float[Tensor, "b 3 H_padded W_padded"]:
    """Add rows below and columns at the right, mirrored without repeating the edge, until sizes divide."""
    rows, columns = (_mirrored(side, side + -side % multiple) for side in image.shape[2:])
    return image[:, :, rows][:, :, :, columns]


def _mirrored(size: int, wanted: int) -> Int[Tensor, " n"]:
    """0, 1, ..., size - 1, size - 2, ..., and so on until there are ``wanted``."""
    there_and_back = max(2 * size - 2, 1)
    steps = torch.arange(wanted) % there_and_back
    return torch.minimum(steps, there_and_back - steps)


def reconstruct_files(
    model: Any,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    inference: InferenceConfig | None = None,
    side_by_side: bool = False,
    on_image: Callable[[Path, int, int], None] | None = None,
) -> list[Path]:
    """Write ``OUT/<stem>.png`` for each picture, or ``OUT/<name>.png`` where stems coincide; return the paths.

    ``side_by_side`` puts the original at the left. ``on_image(written, done, total)`` is called after each. Noise is
    seeded with 0 unless ``inference`` says otherwise, so that the same picture gives the same file.

    Raises:
        ValueError: no pictures, two of the same name, or an output that would replace an input: nothing is written.
    """
    sources, folder = [Path(path) for path in paths], Path(out)
    targets = _targets(sources, folder)
    inference = inference or InferenceConfig(seed=0)
    for done, (source, target) in enumerate(zip(sources, targets, strict=True), 1):
        picture = open_image(source)
        result = to_picture(reconstruct(model, to_signed(to_pixels([picture])), inference))
        if side_by_side:
            result = PIL.Image.fromarray(np.concatenate([np.asarray(picture), np.asarray(result)], axis=1))
        write_atomically(target, png(result))
        if on_image is not None:
            on_image(target, done, len(sources))
    return targets


def unique_names(sources: Sequence[Path], *, advice: str) -> list[str]:
    """The stem of each file, or its name where stems coincide.

    Raises:
        ValueError: no files, or two of the same name, which ``advice`` helps to keep apart.
    """
    if not sources:
        raise ValueError("images: there are none; name one or more files")
    stems = Counter(source.stem for source in sources)
    names = [source.stem if stems[source.stem] == 1 else source.name for source in sources]
    counts = Counter(names)
    for source, name in zip(sources, names, strict=True):
        if counts[name] > 1:
            raise ValueError(f"{source}: another input is called {name} too; {advice}")
    return names


def _targets(sources: Sequence[Path], folder: Path) -> list[Path]:
    names = unique_names(sources, advice="reconstruct them into two folders")
    targets = [folder / f"{name}.png" for name in names]
    inputs = {source.resolve() for source in sources}
    for source, target in zip(sources, targets, strict=True):
        if target.resolve() in inputs:
            raise ValueError(f"{source}: writing {target} would replace an input; choose another --out")
    return targets
