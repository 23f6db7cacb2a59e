"""Labelled images of a folder: its sub-folders are the classes."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import PIL.Image

from ..blocks.registry import PartError, part
from ..blocks.slots import LabelledSource, LabelsConfig
from ..families.images import central_crop
from .sources import FolderSource, hold_out, list_images

TRAIN, TEST = "train", "test"


class LabelledFolderSource(LabelledSource):
    """Pictures by their paths ``class/...`` in a folder."""

    def __init__(self, root: Path, names: Sequence[str], classes: tuple[str, ...], *, side: int | None) -> None:
        self.pictures, self.classes, self.side = FolderSource(root, names), classes, side

    def __len__(self) -> int:
        return len(self.pictures)

    def name(self, index: int) -> str:
        return self.pictures.name(index)

    def size(self, index: int) -> tuple[int, int]:
        return self.pictures.size(index) if self.side is None else (self.side, self.side)

    def read(self, index: int) -> PIL.Image.Image:
        picture = self.pictures.read(index)
        return picture if self.side is None else central_crop(picture, self.side, self.side)

    def label(self, index: int) -> int:
        return self.classes.index(_class_of(self.name(index)))


@part("labels/folder")
class LabelledFolderConfig(LabelsConfig):
    """Pictures in a folder that has a sub-folder for each class, at any depth in it.

    Where its sub-folders are ``train`` and ``test``, those have the classes. Otherwise pictures of each class are held
    out by a hash of their paths, as ``data/folder`` holds them out: at least one, and not all.

    Attributes:
        path: the folder.
        held_out_share: the share of each class to hold out, where there are no folders ``train`` and ``test``.
        side: pictures become their central square of so many pixels; None leaves them as they are.
    """

    shorthand = "path"

    path: str = ""
    held_out_share: float = 0.2
    side: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.held_out_share < 1:
            raise ValueError(f"held_out_share: must lie between 0 and 1, got {self.held_out_share}")
        if self.side is not None and self.side < 1:
            raise ValueError(f"side: must be at least 1, got {self.side}")

    def training(self) -> LabelledFolderSource:
        return self._sources()[0]

    def held_out(self) -> LabelledFolderSource:
        return self._sources()[1]

    def _sources(self) -> tuple[LabelledFolderSource, LabelledFolderSource]:
        if not self.path:
            raise PartError("labels.path", "is not given; name a folder that has a sub-folder for each class")
        names, root = list_images(self.path, where="labels.path"), Path(self.path).expanduser()
        if {_class_of(name) for name in names} == {TRAIN, TEST}:
            parts = [list_images(root / folder, where="labels.path") for folder in (TRAIN, TEST)]
            groups = [self._by_class(part, folder) for part, folder in zip(parts, (TRAIN, TEST), strict=True)]
            self._check_same(*groups)
            roots = [root / TRAIN, root / TEST]
        else:
            every = self._by_class(names, "")
            apart = {name: hold_out(members, self.held_out_share) for name, members in every.items()}
            groups = [
                {name: [n for n in members if (n in apart[name]) == wanted] for name, members in every.items()}
                for wanted in (False, True)
            ]
            roots = [root, root]
        classes = tuple(sorted(groups[0]))
        first, second = (
            LabelledFolderSource(place, sorted(chain.from_iterable(group.values())), classes, side=self.side)
            for place, group in zip(roots, groups, strict=True)
        )
        return first, second

    def _by_class(self, names: Sequence[str], folder: str) -> dict[str, list[str]]:
        here = str(Path(self.path, folder)) if folder else self.path
        classes: dict[str, list[str]] = {}
        for name in names:
            if "/" not in name:
                raise PartError("labels.path", f"{name!r} in {here!r} belongs to no class; put it into a sub-folder")
            classes.setdefault(_class_of(name), []).append(name)
        if len(classes) == 1:
            raise PartError("labels.path", f"{here!r} has one class, {next(iter(classes))!r}; it takes two at least")
        for name, members in classes.items():
            if not folder and len(members) == 1:
                raise PartError(
                    "labels.path",
                    f"the class {name!r} has one picture, and none can be held out; add some, or leave the class out",
                )
        return classes

    def _check_same(self, training: dict[str, list[str]], held_out: dict[str, list[str]]) -> None:
        for ours, theirs, folder, other in ((training, held_out, TEST, TRAIN), (held_out, training, TRAIN, TEST)):
            missing = sorted(ours.keys() - theirs.keys())
            if missing:
                raise PartError(
                    "labels.path",
                    f"the class {missing[0]!r} has pictures in {other!r} and none in {folder!r}; "
                    "each class needs some in both",
                )


def _class_of(name: str) -> str:
    return name.partition("/")[0]
