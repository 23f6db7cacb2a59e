"""Files of weights that metrics need: given by a field, or found in the folder ``LATELIER_WEIGHTS``; never downloaded.

Metrics whose libraries download at first use get their networks empty, and their weights from here. The hash of the
file is stored with the number.
"""

import hashlib
import os
from pathlib import Path

FOLDER = "LATELIER_WEIGHTS"
"""Environment variable: a folder with files under the names that their projects gave them."""

ORIGINS = {
    "alexnet-owt-7be5be79.pth": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "vgg16-397923af.pth": "https://download.pytorch.org/models/vgg16-397923af.pth",
    "weights-inception-2015-12-05-6726825d.pth": (
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
    ),
}


def find_weights(given: str | None, name: str, *, where: str) -> Path:
    """The path of a file of weights.

    Raises:
        FileNotFoundError: it is not there; says where it was looked for and where it can be had.
    """
    if given is not None:
        path = Path(given).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{where}: weights: {path}: no such file; it is {name} of {ORIGINS[name]}")
        return path
    folder = os.environ.get(FOLDER)
    if folder is not None and (path := Path(folder).expanduser() / name).is_file():
        return path
    looked = f"{FOLDER} is not set" if folder is None else f"{FOLDER}={folder} has no such file"
    raise FileNotFoundError(
        f"{where}: needs the file {name} ({looked}); download {ORIGINS[name]} and set {FOLDER} to its folder, "
        "or name the file in 'weights'"
    )


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
