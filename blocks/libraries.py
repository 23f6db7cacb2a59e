"""Libraries of pretrained networks, imported when a teacher is built (extra ``teachers``), with errors that help.

timm imports torchvision, and a torchvision of another torch fails with ``RuntimeError: operator torchvision::nms does
not exist`` (pytorch#157648, vision#8985): the message names the pair that was found and one that works.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

WORKS = {"torch": "2.15.0", "torchvision": "0.29.2"}
"""A pair that was tried with timm 1.0.31 and transformers 5.24.0."""


def import_library(name: str, *, where: str) -> ModuleType:
    """Import timm or transformers.

    Raises:
        ImportError: it is not installed, or does not import with this torch and torchvision.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if installed(name) is None:
            raise ImportError(f"{where}: needs {name}; pip install 'latelier[teachers]'") from error
        found, works = (
            " and ".join(f"{package} {pair[package] or 'missing'}" for package in WORKS)
            for pair in ({package: installed(package) for package in WORKS}, WORKS)
        )
        raise ImportError(
            f"{where}: {name} {installed(name)} does not import with {found} ({reason}); these two must fit each "
            f"other, as {works} do: pip install 'latelier[teachers]' anew, both from one index"
        ) from error


def installed(package: str) -> str | None:
    """The version of a package, or None where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
