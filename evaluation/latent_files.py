"""Files of latents: pictures of any size to one safetensors file, and that file to pictures or to a teacher's tokens.

A file of latents holds one tensor ``[z, h, w]`` a picture, under the picture's name. Its header has ``format`` "pt",
``latelier.latent_spec`` (whose latents they are), ``latelier.images`` (for each name the source file and the height and
width to crop back to) and ``latelier.model`` (kind and id of the config). Whoever writes latents of his own needs the
spec alone: a latent without an entry in ``latelier.images`` is decoded at its full size.

Sizes of pictures are read first, so that a file's head can be written before its first latent; then no more than a
batch is in memory.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..blocks.latent_space import LatentSpec, complete
from ..blocks.registry import PartError, decode, encode
from ..blocks.shapes import Image, Latent
from ..blocks.slots import TeacherOutput
from ..families.files import SPEC, CheckpointError, write_atomically
from ..families.images import image_size, open_image, to_pixels, to_signed
from ..families.inference import InferenceConfig
from ..families.streams import TYPES, read_stream, write_stream
from .pictures import png, to_picture
from .protocols import frozen
from .reconstruct import pad_to_multiple, placed_at, unique_names

IMAGES, MODEL, SOURCE = "latelier.images", "latelier.model", "latelier.source"

BATCH, BATCH_PIXELS = 8, 2**22
"""Most images in a batch, and most pixels, unless a single image has more."""

OnImage = Callable[[str, int, int], None]
"""Called after each image with its name, how many are done, and how many there are."""


# --- writing latents ------------------------------------------------------------------------------------------------


def encode_files(
    model: Any,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    batch: int = BATCH,
    batch_pixels: int = BATCH_PIXELS,
    dtype: Literal["float32", "float16", "bfloat16"] | torch.dtype = torch.float32,
    on_image: OnImage | None = None,
) -> Path:
    """Write the latents of pictures of any size as one safetensors file, whole or not at all; return its path.

    A picture is mirrored at its lower and right edge until its sides divide by the model's stride. Its latent is
    called by the file's stem, or by its name where stems coincide. Pictures of one padded size share a batch of at
    most ``batch`` pictures and ``batch_pixels`` pixels; a picture with more pixels goes alone.

    Args:
        dtype: of the stored latents; float32 keeps every model's.

    Raises:
        ImageReadError: a file is no picture, or a damaged one.
        ValueError: no pictures, a folder, two of the same name, an output that would replace an input, or a latent
            that is not finite in ``dtype``.
    """
    sources, target = [Path(path) for path in paths], Path(out)
    named = dict(zip(unique_names(sources, advice="encode them into two files"), sources, strict=True))
    for source in sources:
        if source.is_dir():
            raise ValueError(f"{source}: is a folder; name the pictures in it, such as {source / '*.jpg'}")
    _check_target(target, sources)
    precision = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    sizes = {name: image_size(source) for name, source in named.items()}
    spec: LatentSpec = model.latent_spec
    padded = {name: _padded(size, spec.stride) for name, size in sizes.items()}
    shapes = {
        name: (precision, (spec.channels, height // spec.stride, width // spec.stride))
        for name, (height, width) in padded.items()
    }
    images = {
        name: {"file": named[name].name, "height": height, "width": width} for name, (height, width) in sizes.items()
    }
    header = {"format": "pt", SPEC: json.dumps(encode(spec)), IMAGES: json.dumps(images), MODEL: _identity(model)}
    done, batches = 0, _batches(padded, batch=batch, batch_pixels=batch_pixels)
    with frozen(model), write_stream(target, shapes, header) as writer:
        for names in batches:
            pixels = torch.cat([_read(named[name], sizes[name], spec.stride) for name in names])
            latents = model.encode(placed_at(model, pixels)).to("cpu", precision)
            for name, latent in zip(names, latents, strict=True):
                if not latent.isfinite().all():
                    raise ValueError(
                        f"{named[name]}: its latent is not finite in {str(precision).partition('.')[2]}; "
                        "take float32, or look whether the model is damaged"
                    )
                writer.write(name, latent)
                done += 1
                if on_image is not None:
                    on_image(name, done, len(named))
    return target


def _read(path: Path, size: tuple[int, int], stride: int) -> Image:
    picture = open_image(path)
    if (picture.height, picture.width) != size:
        raise ValueError(
            f"{path}: its head says {size[0]}x{size[1]} and its pixels are {picture.height}x{picture.width}; "
            "save it again, or leave it out"
        )
    return pad_to_multiple(to_signed(to_pixels([picture])), stride)


def _padded(size: tuple[int, int], stride: int) -> tuple[int, int]:
    height, width = (side + -side % stride for side in size)
    return height, width


def _batches(sizes: Mapping[str, tuple[int, int]], *, batch: int, batch_pixels: int) -> list[list[str]]:
    """Names in batches of one size (height, width), in the order in which the sizes first come."""
    for name, value in (("batch", batch), ("batch_pixels", batch_pixels)):
        if value < 1:
            raise ValueError(f"{name}: must be at least 1, got {value}")
    alike: dict[tuple[int, int], list[str]] = {}
    for name, size in sizes.items():
        alike.setdefault(size, []).append(name)
    batches = []
    for (height, width), names in alike.items():
        count = min(batch, max(batch_pixels // (height * width), 1))
        batches += [names[i : i + count] for i in range(0, len(names), count)]
    return batches


def _check_target(target: Path, inputs: Sequence[Path]) -> None:
    if target.is_dir():
        raise ValueError(f"{target}: is a folder; name a file, such as {target / 'latents.safetensors'}")
    for source in inputs:
        if source.resolve() == target.resolve():
            raise ValueError(f"{source}: writing {target} would replace an input; choose another --out")


def _identity(model: Any) -> str:
    return f"{model.config.kind} {model.config.id}"


# --- reading latents ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """A latent of ``h`` x ``w`` positions, and the height and width of its picture, or None where nobody says."""

    h: int
    w: int
    size: tuple[int, int] | None


class _Latents:
    """An open file of latents of the model's space, whose head has been checked."""

    def __init__(self, file: Any, path: Path, model: Any) -> None:
        self._file, self._path = file, path
        self.header: dict[str, str] = dict(file.metadata() or {})
        self.spec = self._read_spec(model.latent_spec)
        model.latent_spec.check(self.spec, where=str(path))
        sizes = self._read_sizes()
        self.entries = {name: self._entry(name, sizes.get(name)) for name in list(file.keys())}
        if not self.entries:
            raise ValueError(f"{path}: holds no latents")

    def batches(self, *, batch: int, batch_pixels: int) -> list[list[str]]:
        """Names in batches of one shape; see :func:`encode_files`."""
        side = self.spec.stride
        sizes = {name: (entry.h * side, entry.w * side) for name, entry in self.entries.items()}
        return _batches(sizes, batch=batch, batch_pixels=batch_pixels)

    def read(self, names: Sequence[str]) -> Latent:
        """The latents of those names, which have one shape, as float32."""
        latents = [self._file.get_tensor(name).float() for name in names]
        for name, latent in zip(names, latents, strict=True):
            if not latent.isfinite().all():
                raise CheckpointError(f"{self._path}: {name!r} holds values that are not finite; encode it again")
        return torch.stack(latents)  # a copy: the file is mapped

    def _read_spec(self, like: LatentSpec) -> LatentSpec:
        if SPEC not in self.header:
            raise CheckpointError(
                f"{self._path}: does not say whose latents it holds; `latelier encode` writes {SPEC!r} into its header"
            )
        try:
            return decode(complete(self._json(SPEC), like), LatentSpec, where=SPEC)
        except PartError as error:
            raise PartError(f"{self._path} (header): {error.where}", error.what) from None

    def _read_sizes(self) -> dict[str, tuple[int, int]]:
        images = self._json(IMAGES) if IMAGES in self.header else {}
        sizes = {}
        for name, image in images.items():
            size = tuple(image.get(side) if isinstance(image, dict) else None for side in ("height", "width"))
            if not all(type(side) is int and side > 0 for side in size):
                raise CheckpointError(
                    f"{self._path} (header): {IMAGES!r} gives {name!r} no whole height and width; encode it again"
                )
            sizes[name] = size
        return sizes

    def _json(self, key: str) -> dict[str, Any]:
        try:
            value = json.loads(self.header[key])
        except json.JSONDecodeError as error:
            raise CheckpointError(f"{self._path} (header): {key!r} is no JSON ({error}); encode again") from None
        if not isinstance(value, dict):
            raise CheckpointError(f"{self._path} (header): {key!r} is {type(value).__name__}, not an object")
        return value

    def _entry(self, name: str, size: tuple[int, int] | None) -> _Entry:
        tensor = self._file.get_slice(name)
        shape, kind = tensor.get_shape(), tensor.get_dtype()
        if len(shape) != 3 or shape[0] != self.spec.channels or 0 in shape or kind not in TYPES.values():
            raise CheckpointError(
                f"{self._path}: {name!r} is {kind} {shape}; a latent is {', '.join(TYPES.values())} "
                f"[{self.spec.channels}, h, w]"
            )
        _, h, w = shape
        stride = self.spec.stride
        if size is not None and _padded(size, stride) != (h * stride, w * stride):
            raise CheckpointError(
                f"{self._path}: {name!r} has {h}x{w} positions of {stride} pixels, which is not what an image of "
                f"{size[0]}x{size[1]} has; encode it again"
            )
        return _Entry(h, w, size)


@contextmanager
def _opened(path: Path, model: Any) -> Iterator[_Latents]:
    with read_stream(path) as file:
        yield _Latents(file, path, model)


def decode_files(
    model: Any,
    latents: str | Path,
    out: str | Path,
    *,
    inference: InferenceConfig | None = None,
    batch: int = BATCH,
    batch_pixels: int = BATCH_PIXELS,
    on_image: Callable[[Path, int, int], None] | None = None,
) -> list[Path]:
    """Write ``OUT/<name>.png`` for each latent of a file, cropped to its picture's size; return the paths.

    The noise of each picture is drawn by itself from the seed, as :func:`reconstruct_files` draws it: the picture is
    the same whatever else the file holds and, with a batch of one, is that of ``reconstruct`` bit for bit. Larger
    batches compute in another order, which may move a value by 1e-5. The seed is 0 unless ``inference`` gives another.

    Raises:
        ValueError: latents of another model's space, a header or a latent that is no latent's, or a name that is no
            file's: nothing is written.
        CheckpointError: the file is cut short or is no safetensors file, or a value is not finite.
    """
    path, folder = Path(latents), Path(out)
    inference = inference or InferenceConfig(seed=0)
    with _opened(path, model) as file, frozen(model):
        targets = {name: folder / f"{_file_name(name, path)}.png" for name in file.entries}
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder}: is a file; --out names the folder for the pictures")
        done = 0
        for names in file.batches(batch=batch, batch_pixels=batch_pixels):
            entry = file.entries[names[0]]
            full = (entry.h * file.spec.stride, entry.w * file.spec.stride)
            images = _decoded(model, placed_at(model, file.read(names)), *full, inference).float().cpu()
            for name, image in zip(names, images, strict=True):
                height, width = file.entries[name].size or full
                write_atomically(targets[name], png(to_picture(image[None, :, :height, :width])))
                done += 1
                if on_image is not None:
                    on_image(targets[name], done, len(targets))
    return list(targets.values())


def _decoded(model: Any, latents: Latent, height: int, width: int, inference: InferenceConfig) -> Image:
    """As ``model.decode`` of each latent by itself."""
    if len(latents) == 1 or inference.seed is None:
        return model.decode(latents, height, width, inference)
    if not hasattr(model, "denoise"):  # nobody knows whether it draws noise for a whole batch
        return torch.cat([model.decode(latent[None], height, width, inference) for latent in latents])
    noise = model.draw_noise(1, height, width, seed=inference.seed).to(latents.device)
    return model.denoise(noise.expand(len(latents), -1, -1, -1), model.dewhiten(latents), inference)


def _file_name(name: str, path: Path) -> str:
    """The name of a latent, which comes from a file that anybody may have written, if it leads nowhere else."""
    if name in ("", ".", "..") or any(sign in name for sign in "/\\\0"):
        raise ValueError(f"{path}: {name!r} is no name for a picture's file; name the latent anew")
    return name


def feature_files(
    model: Any,
    latents: str | Path,
    out: str | Path,
    *,
    batch: int = BATCH,
    batch_pixels: int = BATCH_PIXELS,
    on_image: OnImage | None = None,
) -> Path:
    """Write what the model's token head reads off each latent of a file, as one safetensors file; return its path.

    A latent NAME gives ``NAME.class`` [f] and ``NAME.patches`` [h, w, f], float32, at all its positions, padding
    included. The header says what that of the latents says, and ``latelier.source`` has the name of their file.

    Raises:
        ValueError: a model without a token head, latents of another space, or an output that would replace an input.
        CheckpointError: as :func:`decode_files` raises it.
    """
    path, target = Path(latents), Path(out)
    if getattr(model, "token_head", None) is None:
        raise ValueError(
            f"features: a model {model.config.kind!r} has no token head; take one that has, such as 'family/dinac_ae'"
        )
    _check_target(target, [path])
    width: int = model.config.token_head.features
    with _opened(path, model) as file, frozen(model):
        shapes: dict[str, tuple[torch.dtype, Sequence[int]]] = {}
        for name, entry in file.entries.items():
            shapes[f"{name}.class"] = torch.float32, (width,)
            shapes[f"{name}.patches"] = torch.float32, (entry.h, entry.w, width)
        kept = {key: file.header[key] for key in (SPEC, IMAGES) if key in file.header}
        header = {"format": "pt", **kept, MODEL: _identity(model), SOURCE: path.name}
        done, batches = 0, file.batches(batch=batch, batch_pixels=batch_pixels)
        with write_stream(target, shapes, header) as writer:
            for names in batches:
                output = model.predict_features(placed_at(model, file.read(names)))
                for name, cls, patches in zip(names, *_tokens(output), strict=True):
                    writer.write(f"{name}.class", cls)
                    writer.write(f"{name}.patches", patches)
                    done += 1
                    if on_image is not None:
                        on_image(name, done, len(file.entries))
    return target


def _tokens(output: TeacherOutput) -> tuple[Float[Tensor, "b f"], Float[Tensor, "b h w f"]]:
    assert output.cls is not None
    return output.cls.float().cpu(), output.patches.float().cpu().unflatten(1, output.grid)
