"""Where pictures come from: folders, and the photographs that scikit-image brings along.

A source is a fixed sequence; its order depends on names alone. Sources are pickled to worker processes.
"""

import functools
import hashlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import PIL.Image

from ..blocks.registry import PartError, part
from ..blocks.slots import DataConfig
from ..families.images import SUFFIXES, ImageReadError, image_size, open_image

OnError = Literal["raise", "skip"]


class FolderSource:
    """Pictures of a folder, by their paths in it (with slashes).

    With ``on_error="skip"`` the errors of unreadable files are marked as skippable: training puts another picture in
    the place and reports the file.
    """

    def __init__(self, root: str | Path, names: Sequence[str], *, on_error: OnError = "raise") -> None:
        self.root, self.names, self.on_error = Path(root).expanduser(), names, on_error
        self._sizes: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def size(self, index: int) -> tuple[int, int]:
        if index not in self._sizes:
            try:
                self._sizes[index] = image_size(self.root / self.names[index])
            except ImageReadError as error:
                raise self._advised(error) from error.__cause__
        return self._sizes[index]

    def read(self, index: int) -> PIL.Image.Image:
        try:
            return open_image(self.root / self.names[index])
        except ImageReadError as error:
            raise self._advised(error) from error.__cause__

    def _advised(self, error: ImageReadError) -> ImageReadError:
        advice = 'remove it or pass on_error="skip"'
        return ImageReadError(error.path, error.reason, advice, skippable=self.on_error == "skip")


def list_images(folder: str | Path, *, where: str = "data.path") -> list[str]:
    """Return the pictures of a folder at any depth, as sorted paths in it; hidden files and folders are left out.

    Raises:
        PartError: ``where`` names no folder, or one without pictures.
    """
    root = Path(folder).expanduser()
    if not os.fspath(folder):
        raise PartError(where, "is not given; name a folder of images (on the command line: --data DIR)")
    if not root.exists():
        raise PartError(where, f"there is no folder {str(folder)!r}; name one that holds images")
    if not root.is_dir():
        raise PartError(where, f"{str(folder)!r} is a file; name the folder that holds it")
    found, seen = [], set()
    for parent, folders, files in os.walk(root, followlinks=True):
        here = os.path.realpath(parent)
        folders[:] = [] if here in seen else sorted(name for name in folders if not name.startswith("."))
        if here not in seen:  # a link may lead back up
            found += [Path(parent, name).relative_to(root).as_posix() for name in files if _is_image(name)]
        seen.add(here)
    if not found:
        raise PartError(where, f"no images under {str(folder)!r}; it takes {', '.join(SUFFIXES)} at any depth")
    return sorted(found)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


@part("data/folder")
class FolderDataConfig(DataConfig):
    """Pictures in a folder, at any depth.

    Attributes:
        path: the folder.
        held_out_path: another folder for evaluation; it may lie in the first, which is then used without it.
        held_out_share: where there is no other folder, the share of pictures to hold out, at least one. A hash of
            their paths chooses them, so that pictures that are added later move no others across.
        on_error: what to do with a file that cannot be read: stop there, or train on another in its place and say so.
    """

    path: str = ""
    held_out_path: str = ""
    held_out_share: float = 0.05
    on_error: OnError = "raise"

    def __post_init__(self) -> None:
        if not 0 < self.held_out_share < 1:
            raise ValueError(f"held_out_share: must lie between 0 and 1, got {self.held_out_share}")

    def training(self) -> FolderSource:
        return FolderSource(self.path, self._split()[0], on_error=self.on_error)

    def held_out(self) -> FolderSource:
        return FolderSource(self.held_out_path or self.path, self._split()[1], on_error=self.on_error)

    def _split(self) -> tuple[list[str], list[str]]:
        """Names for training, and names held out."""
        names = list_images(self.path)
        if self.held_out_path:
            return self._without_held_out(names), list_images(self.held_out_path, where="data.held_out_path")
        if len(names) < 2:
            raise PartError(
                "data.path",
                f"{names[0]!r} is the only image under {self.path!r} and none can be held out; "
                "add images, or name another folder in data.held_out_path",
            )
        held_out = hold_out(names, self.held_out_share)
        return [name for name in names if name not in held_out], [name for name in names if name in held_out]

    def _without_held_out(self, names: list[str]) -> list[str]:
        root, apart = (Path(folder).expanduser().resolve() for folder in (self.path, self.held_out_path))
        if root not in apart.parents:
            return names
        inside = f"{apart.relative_to(root).as_posix()}/"
        kept = [name for name in names if not name.startswith(inside)]
        if not kept:
            raise PartError("data.path", f"all images under {self.path!r} are in {self.held_out_path!r}; add others")
        return kept


def hold_out(names: Sequence[str], share: float) -> set[str]:
    """Of two names at least, those to hold out: that share by a hash of each, but at least one, and not all."""
    ranks = {name: _rank(name) for name in names}
    first, *_, last = sorted(names, key=ranks.__getitem__)
    return {name for name in names if ranks[name] < share} - {last} | {first}


def _rank(name: str) -> float:
    """A number in [0, 1) that belongs to a path."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=6).digest(), "big") / 2**48


# --- photographs --------------------------------------------------------------------------------------------------

TRAINING_PHOTOGRAPHS = (
    "brick.png",
    "camera.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
HELD_OUT_PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "ihc.png")


class PhotographSource:
    """Photographs from scikit-image's wheel, which are decoded once and kept."""

    def __init__(self, names: Sequence[str]) -> None:
        package = importlib.util.find_spec("skimage")  # finds it without importing it, which takes longer
        if package is None or package.origin is None:
            raise ImportError('data/photographs: needs scikit-image; pip install "latelier[demo]"')
        self.root, self.names = Path(package.origin).parent / "data", names

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def size(self, index: int) -> tuple[int, int]:
        return image_size(self.root / self.names[index])

    def read(self, index: int) -> PIL.Image.Image:
        return _kept(self.root / self.names[index])


_kept = functools.cache(open_image)


@part("data/photographs")
class PhotographsConfig(DataConfig):
    """The photographs that scikit-image's wheel brings along: 12 for training and 3 held out, nothing to download.

    Held out are a portrait (astronaut), a cat's fur (chelsea) and tissue under a microscope (ihc): in colour, each from
    another camera, and no scene of which training sees another view. Six of those for training are grey. Drawings,
    test patterns, printed pages and blurred or cut-out pictures of the wheel are left out.
    """

    def training(self) -> PhotographSource:
        return PhotographSource(TRAINING_PHOTOGRAPHS)

    def held_out(self) -> PhotographSource:
        return PhotographSource(HELD_OUT_PHOTOGRAPHS)
