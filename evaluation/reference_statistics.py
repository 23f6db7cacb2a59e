"""Reference statistics: what a population of images is compared with, as a file that says where it comes from.

Our files are safetensors: moments (``<stream>.mean``, ``<stream>.cov``, float64) and, where they were kept, rows
(``<stream>.rows``), with a header that names the extractor, the preparation of pixels, and the number of images. Files
of ADM and of pytorch-fid (``.npz`` with ``mu`` and ``sigma``) are read as well; they do not say what made them. No
pickles are read.

The wrong reference is the field's commonest mistake: a reconstruction FID against ADM's file, which is of *training*
images, gives 1.8 to 1.9 where 0.57 is right (RAE#11). A reference knows whether it is ADM's.
"""

import json
import os
import zipfile
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..blocks.frechet import Moments
from ..blocks.registry import Part, part
from ..blocks.weights import CheckpointError, read_tensors
from ..families.files import write_tensors
from .weight_files import file_hash

FOLDER = "LATELIER_REFERENCES"
"""Environment variable: the folder of files that protocols name."""

HEADER = "latelier.reference"
ADM_PREFIX = "VIRTUAL_imagenet"
"""How the names of ADM's files start."""

KEYS = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


@dataclass(frozen=True)
class ReferenceStatistics:
    """Moments of streams, and their rows where they were kept.

    Attributes:
        name: of the population, as tables show it.
        extractor: id of the extractor's config, None where the file does not say.
        preparation: id of the crop that made the pixels, None where the file does not say.
        n: images, None where the file does not say.
        sha256: of the file; empty before it was saved.
        adm: whether it is the reference of ADM's evaluator, or was made of it.
    """

    name: str
    moments: Mapping[str, Moments]
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    extractor: str | None = None
    preparation: str | None = None
    n: int | None = None
    sha256: str = ""
    adm: bool = False

    def save(self, path: Path) -> "ReferenceStatistics":
        """Write whole or not at all, and return the statistics as the file gives them back."""
        tensors = {f"{name}.{key}": x for name, m in self.moments.items() for key, x in vars(m).items()}
        tensors |= {f"{name}.rows": rows.float() for name, rows in self.rows.items()}
        known = {key: getattr(self, key) for key in ("name", "extractor", "preparation", "n", "adm")}
        write_tensors(path, tensors, {HEADER: json.dumps(known)})
        return load_reference(path)

    def check(self, *, extractor: str, preparation: str | None = None) -> None:
        """Raise ``ValueError`` where the file says that another extractor or another crop made it."""
        if self.extractor is not None and self.extractor != extractor:
            raise ValueError(
                f"{self.name}: these statistics were made by the extractor {self.extractor}, and the protocol has "
                f"{extractor}; make them anew"
            )
        if None not in (self.preparation, preparation) and self.preparation != preparation:
            raise ValueError(
                f"{self.name}: these statistics are of pixels that the crop {self.preparation} made, and the protocol "
                f"has {preparation}; make them anew"
            )


def load_reference(path: Path) -> ReferenceStatistics:
    """Read what :meth:`ReferenceStatistics.save` wrote, or an ``.npz`` with ``mu`` and ``sigma``.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, holds no statistics, or ones that do not fit each other.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of reference statistics")
    return _read_npz(path) if path.suffix == ".npz" else _read_ours(path)


def _moments(path: Path, stream: str, mean: Tensor, cov: Tensor) -> Moments:
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        shapes = f"{list(mean.shape)} and {list(cov.shape)}"
        raise CheckpointError(f"{path}: mean and covariance of {stream!r} have the shapes {shapes}, which do not fit")
    if not (mean.isfinite().all() and cov.isfinite().all()):
        raise CheckpointError(f"{path}: the moments of {stream!r} are not finite")
    return Moments(mean.double(), cov.double())


def _read_ours(path: Path) -> ReferenceStatistics:
    tensors, header = read_tensors(path)
    try:
        known = json.loads(header[HEADER])
        streams = dict.fromkeys(name.partition(".")[0] for name in tensors if name.endswith(".mean"))
        pairs = {s: (tensors[f"{s}.mean"], tensors[f"{s}.cov"]) for s in streams}
    except (KeyError, ValueError):
        raise CheckpointError(
            f"{path}: is no file of reference statistics; ReferenceStatistics.save writes one"
        ) from None
    moments = {s: _moments(path, s, *pair) for s, pair in pairs.items()}
    rows = {name.removesuffix(".rows"): x for name, x in tensors.items() if name.endswith(".rows")}
    return ReferenceStatistics(moments=moments, rows=rows, sha256=file_hash(path), **known)


def _read_npz(path: Path) -> ReferenceStatistics:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            pairs = {
                stream: [torch.from_numpy(np.asarray(file[key], dtype=np.float64)) for key in keys]
                for stream, keys in KEYS.items()
                if all(key in file.files for key in keys)
            }
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: is no whole .npz of arrays ({error}); copy or download it again") from None
    if "features" not in pairs:
        raise CheckpointError(f"{path}: has no 'mu' and 'sigma'; it holds no statistics of a population")
    moments = {stream: _moments(path, stream, *pair) for stream, pair in pairs.items()}
    adm = path.name.startswith(ADM_PREFIX) or "spatial" in moments  # pytorch-fid writes no spatial statistics
    return ReferenceStatistics(name=path.name, moments=moments, sha256=file_hash(path), adm=adm)


# --- what protocols name ------------------------------------------------------------------------------------------


class ReferenceConfig(Part, ABC):
    """What a population is compared with."""

    slot: ClassVar[str] = "reference"


@part("reference/originals")
class OriginalsConfig(ReferenceConfig):
    """The same images before the model, after the same crop: the right reference of a reconstruction FID."""


@part("reference/file")
class FileReferenceConfig(ReferenceConfig):
    """A file of statistics.

    Attributes:
        name: of the file in the folder ``LATELIER_REFERENCES``; a path, where it has a slash.
        sha256: that the file must have, or its first digits, at least 12; None takes the file as it is. Its hash is
            stored with the number in any case.
    """

    shorthand = "name"

    name: str
    sha256: str | None = None

    def __post_init__(self) -> None:
        if self.sha256 is not None and (len(self.sha256) < 12 or set(self.sha256) - set("0123456789abcdef")):
            raise ValueError(f"sha256: takes at least 12 hexadecimal digits in small letters, got {self.sha256!r}")

    def load(self) -> ReferenceStatistics:
        """Raises as :func:`load_reference`, and ``ValueError`` where the hash is another."""
        path = Path(self.name).expanduser()
        if "/" not in self.name:
            folder = os.environ.get(FOLDER)
            if folder is None:
                raise FileNotFoundError(
                    f"reference: needs the file {self.name}; set {FOLDER} to its folder, or give a path"
                )
            path = Path(folder).expanduser() / self.name
        found = load_reference(path)
        if self.sha256 is not None and not found.sha256.startswith(self.sha256):
            raise ValueError(f"{path}: has the hash {found.sha256[:12]}, and the protocol names {self.sha256[:12]}")
        return found
