"""Files of weights that somebody else wrote, read without pickles and matched with a network name by name.

A source is a local file (safetensors, or what ``torch.load(weights_only=True)`` reads), a local folder, or a
repository of the hub. Matching is strict both ways: missing, extra and misshapen tensors are errors, and so are values
that are not finite.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
WRAPPERS = ("state_dict", "model", "teacher", "model_ema")
"""Entries under which training code stores the tensors that are wanted."""

PREFIXES = ("module.", "foundation_model.", "backbone.", "model.")
"""What wrappers put before every name."""


class CheckpointError(ValueError):
    """A file of weights is damaged, or does not fit the model that it is for."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the header of a safetensors file.

    Raises:
        CheckpointError: the file is cut short or is no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            # Copies: the file is mapped, and a process that uses it dies when somebody rewrites it in place.
            tensors = {name: file.get_tensor(name).clone() for name in list(file.keys())}
            return tensors, dict(file.metadata() or {})
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is no whole safetensors file ({error}); copy or download it again") from None


def assign(
    model: nn.Module, tensors: Mapping[str, Tensor], *, where: str, names: Mapping[str, str] | None = None
) -> None:
    """Give a model built on ``meta`` its tensors; ``names`` has what messages call them, where the file does.

    Raises:
        CheckpointError: names or shapes differ, or a value is not finite; nothing is assigned then.
    """
    wanted = model.state_dict()
    called = {name: (names or {}).get(name, name) for name in wanted}
    missing = sorted({called[name] for name in wanted.keys() - tensors.keys()})
    extra = sorted(tensors.keys() - wanted.keys())
    problems = []
    if missing:
        problems.append(f"lacks {listed(missing)}")
    if extra:
        problems.append(f"has {listed(extra)} that the model has not")
    for name, ours in wanted.items():
        given = tensors.get(name, ours)
        if given.shape != ours.shape:
            problems.append(f"has {called[name]!r} of shape {list(given.shape)} where the model has {list(ours.shape)}")
        elif given.is_floating_point() != ours.is_floating_point():
            problems.append(f"has {called[name]!r} of {given.dtype} where the model has {ours.dtype}")
    if not problems:
        ready = {name: tensors[name].to(ours.dtype) for name, ours in wanted.items()}
        broken = [called[name] for name, value in ready.items() if not value.isfinite().all()]
        if broken:
            problems = [f"holds values that are not finite in {listed(broken)}"]
        negative = [called[name] for name, value in ready.items() if name.endswith("running_var") and (value < 0).any()]
        if negative:
            problems.append(f"holds negative variances in {listed(negative)}")
    if problems:
        rest = [f"and {len(problems) - 3} more"] if len(problems) > 3 else []
        raise CheckpointError(f"{where}: {'; '.join(problems[:3] + rest)}")
    model.load_state_dict(ready, assign=True)


def listed(names: Iterable[str], *, most: int = 5) -> str:
    names = list(names)
    shown = ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
    return f"tensor{'s' if len(names) > 1 else ''} {shown}"


# --- where weights are --------------------------------------------------------------------------------------------


def read_weights(source: str, *, where: str, instead: str = "") -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a local file or folder, or of a hub repository, and what messages call that source.

    ``where`` starts the messages; ``instead`` says where the same weights are without a gate.

    Raises:
        FileNotFoundError: neither exists, or the hub does not give it.
        CheckpointError: the file holds no tensors, or is damaged.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _unwrapped(_read_file(path), str(path)), str(path)
    if path.is_dir():
        names = [name for name in (SAFETENSORS, f"{SAFETENSORS}.index.json", PICKLED) if (path / name).is_file()]
        if not names:
            raise FileNotFoundError(f"{where}: {path} holds no {SAFETENSORS} and no {PICKLED}")
        return _unwrapped(_read_parts(names[0], lambda name: path / name), str(path)), str(path)
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{where}: {source}: no such file or folder, and no hub repository 'owner/name'")
    for name in (SAFETENSORS, f"{SAFETENSORS}.index.json", PICKLED):
        try:
            tensors = _read_parts(name, lambda name: fetch(source, name, where=where, instead=instead))
        except FileNotFoundError as error:
            if name == PICKLED or not is_absent(error):
                raise
        else:
            return _unwrapped(tensors, source), source
    raise AssertionError("the last file is read or raises")


def fetch(repository: str, name: str, *, where: str, instead: str = "") -> Path:
    """The local path of a file of a hub repository, downloaded if need be; errors say what can be done."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RemoteEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, name))
    except GatedRepoError as error:
        other = f", or take {instead}, which has no gate" if instead else ""
        raise FileNotFoundError(
            f"{where}: {repository} is gated; accept its terms on the hub, then `hf auth login`{other}"
        ) from error
    except (OSError, HFValidationError) as error:  # every other error of the hub is an OSError
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        if constants.HF_HUB_OFFLINE and not isinstance(error, RemoteEntryNotFoundError):
            reason = "HF_HUB_OFFLINE is set, and it is not in the cache"
        raise FileNotFoundError(
            f"{where}: {repository} is no local file or folder, and the hub did not give it ({reason}); "
            "check the name and the network, or download it elsewhere and pass the file or folder"
        ) from error


def is_absent(error: FileNotFoundError) -> bool:
    """Whether :func:`fetch` failed because the repository is there and the file is not."""
    from huggingface_hub.errors import RemoteEntryNotFoundError

    return isinstance(error.__cause__, RemoteEntryNotFoundError)


def _read_parts(name: str, find: Callable[[str], Path]) -> dict[str, Any]:
    """One file, or all those that an index names."""
    path = find(name)
    if not name.endswith(".index.json"):
        return _read_file(path)
    try:
        parts = sorted(set(json.loads(path.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: is no index of safetensors files ({error})") from None
    return {key: value for part in parts for key, value in read_tensors(find(part))[0].items()}


def _read_file(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        return dict(read_tensors(path)[0])
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # damaged files fail in many ways, and pickles of code are refused in one of them
        raise CheckpointError(
            f"{path}: holds more than tensors, or is damaged: torch.load(weights_only=True) refuses it; "
            "convert it to safetensors where you trust it"
        ) from None
    for name in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds {type(found).__name__}; takes a mapping of names to tensors")
    return found


def _unwrapped(tensors: dict[str, Any], where: str) -> dict[str, Tensor]:
    """The tensors alone, without a prefix that all their names share."""
    kept = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    if not kept:
        raise CheckpointError(f"{where}: holds no tensors")
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in kept)), None):
        kept = {name.removeprefix(prefix): value for name, value in kept.items()}
    return kept


# --- licences -----------------------------------------------------------------------------------------------------

_told: set[str] = set()


def tell_licence(model: str, licence: str) -> None:
    """Say once in a process, on stderr, under which licence weights are; keeping it is up to the user."""
    line = f"{model}: these weights are under the licence {licence!r}\n"
    if line not in _told:
        _told.add(line)
        sys.stderr.write(line)
