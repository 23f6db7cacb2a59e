"""Models on disk: ``config.json`` (the encoded config) beside ``model.safetensors`` (every tensor).

The safetensors header repeats the config, so that a lone file still loads, and carries whatever travels with the
weights (recipe, licence). Loading builds on ``meta`` and assigns; unknown, missing and misshapen tensors are errors.
Files are written under a temporary name, flushed to disk, and renamed: a reader sees the old file or the new one.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from ..blocks.latent_space import LatentSpec, complete
from ..blocks.registry import Part, PartError, decode, differences, encode
from ..blocks.slots import FamilyConfig
from ..blocks.teacher_spec import TeacherSpec
from ..blocks.weights import CheckpointError as CheckpointError
from ..blocks.weights import assign as assign
from ..blocks.weights import read_tensors as read_tensors

CONFIG, WEIGHTS = "config.json", "model.safetensors"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
"""What diffusers calls the weights in its folders."""

SPEC = "latelier.latent_spec"
"""Entry of the header that names the space of the latents."""

TEACHER_SPEC = "latelier.teacher_spec"
"""Entry of the header that says which teacher the weights learned from."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""In which a model can be stored."""

M = TypeVar("M", bound=nn.Module)
S = TypeVar("S", bound=Part)

Published = Callable[[dict[str, Any], dict[str, Tensor]], tuple[FamilyConfig, dict[str, Tensor], Mapping[str, str]]]
"""Translates a config and tensors that somebody else wrote into ours; the mapping has the names that ours had there."""


# --- writing ------------------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that becomes ``path`` when the block ends well, and goes when it does not.

    It has a temporary name in the same folder; fsync, rename, fsync of the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_atomically(path: Path, content: bytes | str) -> Path:
    """Write a whole file or none; see :func:`replacing`."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return path


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> Path:
    """Write a safetensors file atomically."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_atomically(path, save(ready, dict(header)))


def save_folder(model: nn.Module, folder: str | Path, *, header: Mapping[str, Any] | None = None) -> Path:
    """Write a model that has a ``config`` as a folder, and return the folder."""
    folder = Path(folder)
    config = json.dumps(encode(model.config), indent=2)
    specs = {SPEC: getattr(model, "latent_spec", None), TEACHER_SPEC: getattr(model, "teacher_spec", None)}
    known = {"format": "pt", "latelier.config": config}
    known |= {name: json.dumps(encode(spec)) for name, spec in specs.items() if spec is not None}
    extra = {name: value if isinstance(value, str) else json.dumps(value) for name, value in (header or {}).items()}
    write_tensors(folder / WEIGHTS, model.state_dict(), known | extra)
    write_atomically(folder / CONFIG, config + "\n")
    return folder


# --- reading ------------------------------------------------------------------------------------------------------


def read_config(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds; raises :class:`CheckpointError` for anything else."""
    return _parse(path.read_bytes(), str(path))


def map_npy(path: Path) -> NDArray[Any]:
    """Map a ``.npy`` file, to be read alone.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is cut short, or something else; archives and pickles are.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError, OverflowError, SyntaxError, TokenError) as error:  # numpy parses its header
        raise CheckpointError(f"{path}: is no whole .npy file ({' '.join(str(error).split())})") from None


def _parse(text: str | bytes, where: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{where}: is no JSON ({error})") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{where}: holds {type(config).__name__}; a config is a JSON object")
    return config


@runtime_checkable
class TakesSpecs(Protocol):
    """A model whose weights do not say which latents and which teacher they are of."""

    def take_specs(self, *, latent: LatentSpec | None = None, teacher: TeacherSpec | None = None) -> None: ...


def spec_in(header: Mapping[str, str], entry: str, kind: type[S], *, where: str) -> S | None:
    """A spec that the header of a file of weights has, or None."""
    return (
        None if entry not in header else decode(_parse(header[entry], where), kind, where=f"{where} (header): {entry}")
    )


def find_files(
    path_or_id: str | Path, *, revision: str | None, cache_dir: str | Path | None = None
) -> tuple[Path | None, Path]:
    """Return (config.json or None, weights) of a local folder, a lone safetensors file, or a hub repository."""
    path = Path(path_or_id).expanduser()
    if path.is_file():
        config = path.with_name(CONFIG)
        return (config if config.is_file() else None), path
    if path.is_dir():
        weights = next((path / name for name in (WEIGHTS, DIFFUSERS_WEIGHTS) if (path / name).is_file()), None)
        if weights is None:
            raise FileNotFoundError(f"{path}: holds no {WEIGHTS}; a model folder has {CONFIG} and {WEIGHTS}")
        return (path / CONFIG if (path / CONFIG).is_file() else None), weights
    name = str(path_or_id)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{name}: no such file or folder, and no hub repository 'owner/name'")
    return _download(name, revision, cache_dir)


def _download(repository: str, revision: str | None, cache_dir: str | Path | None) -> tuple[Path, Path]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RemoteEntryNotFoundError

    def fetch(name: str) -> str:
        return hf_hub_download(repository, name, revision=revision, cache_dir=cache_dir)

    try:
        config = fetch(CONFIG)
        try:
            weights = fetch(WEIGHTS)
        except RemoteEntryNotFoundError:
            weights = fetch(DIFFUSERS_WEIGHTS)
    except GatedRepoError as error:
        raise FileNotFoundError(f"{repository}: is gated; accept its terms on the hub, then `hf auth login`") from error
    except (OSError, HFValidationError) as error:  # every other error of the hub is an OSError
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise FileNotFoundError(
            f"{repository}: is no local folder, and the hub did not give it ({reason}); "
            "check the name and the network, or download it elsewhere and pass the folder"
        ) from error
    return Path(config), Path(weights)


def load_folder(
    path_or_id: str | Path,
    model_class: type[M],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    published: Published | None = None,
) -> M:
    """Rebuild the model that a folder, a lone file or a hub repository holds; see the module's text.

    ``dtype`` None is bfloat16 on CUDA and float32 elsewhere; ``revision`` and ``cache_dir`` are the hub's.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype: takes {', '.join(map(str, DTYPES[:-1]))} or {DTYPES[-1]}, got {dtype!r}")
    config_path, weights_path = find_files(path_or_id, revision=revision, cache_dir=cache_dir)
    tensors, header = read_tensors(weights_path)
    if config_path is not None:
        raw, where = read_config(config_path), str(config_path)
    elif "latelier.config" in header:
        where = f"{weights_path} (header)"
        raw = _parse(header["latelier.config"], where)
    else:
        raise CheckpointError(f"{weights_path}: has no {CONFIG} beside it and none in its header")
    names: Mapping[str, str] = {}
    try:
        if "kind" not in raw and published is not None:
            config, tensors, names = published(raw, tensors)
        else:
            config = decode(raw, FamilyConfig)
    except PartError as error:
        raise PartError(f"{where}: {error.where}", error.what) from None
    except CheckpointError as error:
        raise CheckpointError(f"{weights_path}: {error}") from None
    try:
        with torch.device("meta"):
            model = config.build()
    except ValueError as error:
        raise PartError(where, f"its parts do not fit together ({error})") from None
    if not isinstance(model, model_class):
        raise PartError(where, f"holds {config.kind!r}, a {type(model).__name__}, not a {model_class.__name__}")
    assign(model, tensors, where=str(weights_path), names=names)
    if _parse(header.get("latelier.config", "{}"), str(weights_path)) not in ({}, encode(config)):
        raise CheckpointError(
            f"{where}: describes another model than the header of {weights_path.name} does; "
            "one of the two was replaced: save the model again"
        )
    if isinstance(model, TakesSpecs):
        try:
            model.take_specs(
                latent=spec_in(header, SPEC, LatentSpec, where=str(weights_path)),
                teacher=spec_in(header, TEACHER_SPEC, TeacherSpec, where=str(weights_path)),
            )
        except ValueError as error:
            raise CheckpointError(f"{weights_path} (header): {error}") from None
    elif SPEC in header:
        spec, text = getattr(model, "latent_spec", None), _parse(header[SPEC], str(weights_path))
        described = text if spec is None else complete(text, spec)  # files of before have fewer fields
        named = decode(described, LatentSpec, where=f"{weights_path} (header)")
        changed = differences(spec, named, where="")
        if changed:
            raise CheckpointError(
                f"{weights_path}: its latents are of another space than its header says "
                f"({', '.join(line.lstrip('.') for line in changed)}); its tensors were changed or rounded after they "
                "were saved: save the model again"
            )
    if dtype is None:
        dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    return model.to(device=device, dtype=dtype).eval()
