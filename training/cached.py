"""A teacher whose features were computed before: training reads them by the picture's name and view.

Only views that are always the same can be looked up, so that stages crop with ``crop/central``. What is not in the
cache (other held-out pictures, evaluation) is computed by the teacher that made it, which is built only then, and whose
spec must be the cache's.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, overload

import torch
from torch import Tensor

from ..blocks.registry import part
from ..blocks.shapes import Image
from ..blocks.slots import ImageSource, TeacherConfig, TeacherOutput
from ..blocks.teachers import Teacher
from ..families.feature_cache import FeatureCache, open_cache
from ..families.feature_shards import FeatureCacheError, thumbnails
from .recipe import Recipe, StageConfig

TOLERANCE = 2 / 127.5
"""Between mean colours of a picture and of its cached self; decoders of one JPEG differ by less."""


class CachedTeacher(Teacher):
    """Reads features; see the module's text.

    ``forward`` computes, as the teacher itself does; :meth:`read` looks up.
    """

    def __init__(self, cache: FeatureCache, config: TeacherConfig, *, accept: Sequence[str]) -> None:
        super().__init__("teacher/cached")
        self.cache, self.config, self.accept = cache, config, accept
        self.spec = cache.spec
        self._live: list[Teacher] = []  # in a list: its weights are no part of this module

    def describe(self, images: Image) -> TeacherOutput:
        return self._computing().to(images.device)(images, differentiable=torch.is_grad_enabled())

    def read(
        self, images: Image, names: Sequence[str], views: Sequence[str], *, compute_others: bool = False
    ) -> TeacherOutput:
        """Features of the named views of pictures; ``images``, in [-1, 1], show that they are what was cached.

        Args:
            compute_others: what is not in the cache, or looks otherwise, is computed instead of being an error.

        Raises:
            FeatureCacheError: a picture that is not in the cache or has changed.
        """
        known = [
            name in self.cache and view in self.cache.layout.views for name, view in zip(names, views, strict=True)
        ]
        if not all(known) and not compute_others:
            first = known.index(False)
            self.cache.thumbnails([names[first]], [views[first]])  # says what is wrong
        same = self._look_alike(images, names, views, known)
        if all(same):
            return self.cache.read(names, views, device=images.device)
        if not compute_others:
            name = names[same.index(False)]
            raise FeatureCacheError(
                f"{self.cache.folder}: {name!r} does not look as it did when it was cached; delete "
                f"{self.cache.file_of(name)} there, and `latelier cache` with the same arguments makes it anew"
            )
        return self._mixed(images, names, views, same)

    def _look_alike(self, images: Image, names: Sequence[str], views: Sequence[str], known: list[bool]) -> list[bool]:
        """Which of the pictures are known and look as they did."""
        there = [i for i, yes in enumerate(known) if yes]
        if there:
            cached = self.cache.thumbnails([names[i] for i in there], [views[i] for i in there]).to(images.device)
            alike = ((thumbnails(images[there]) - cached).abs().amax(dim=(1, 2, 3)) <= TOLERANCE).tolist()
            known = list(known)
            for i, yes in zip(there, alike, strict=True):
                known[i] = yes
        return known

    def _mixed(self, images: Image, names: Sequence[str], views: Sequence[str], known: list[bool]) -> TeacherOutput:
        """Cached features where there are some, computed ones elsewhere."""
        there, others = ([i for i, yes in enumerate(known) if yes is wanted] for wanted in (True, False))
        computed = self((images[others] + 1) / 2)
        if not there:
            return computed
        cached = self.cache.read([names[i] for i in there], [views[i] for i in there], device=images.device)
        if cached.grid != computed.grid:
            raise FeatureCacheError(
                f"{self.cache.folder}: its grid is {cached.grid}, that of the teacher {computed.grid}; make it anew"
            )

        def joined(some: Tensor | None, rest: Tensor | None) -> Tensor | None:
            if some is None or rest is None:
                return None
            whole = some.new_empty(len(known), *some.shape[1:])
            whole[there], whole[others] = some, rest
            return whole

        patches = joined(cached.patches, computed.patches)
        assert patches is not None
        return TeacherOutput(
            patches=patches,
            grid=cached.grid,
            cls=joined(cached.cls, computed.cls),
            registers=joined(cached.registers, computed.registers),
        )

    def _computing(self) -> Teacher:
        if not self._live:
            live = self.config.build()
            live.spec.check(self.cache.spec, where=str(self.cache.folder), accept=self.accept)
            self._live.append(live)
        return self._live[0]

    def check(self, stages: Sequence[StageConfig], source: ImageSource) -> None:
        """Raise ``ValueError`` where stages or pictures are not those of the cache, before anything is trained."""
        cache, layout = self.cache, self.cache.layout
        for stage in stages:
            where = f"stage {stage.name!r}"
            views = stage.crop.views()
            if not views:
                raise ValueError(
                    f"{where}: crop: {stage.crop.kind!r} cuts another part of a picture each time, and {cache.folder} "
                    "has features of central squares; take 'crop/central'"
                )
            if missing := [view for view in views if view not in layout.views]:
                raise ValueError(
                    f"{where}: crop: takes the view {missing[0]!r}, and {cache.folder} has {', '.join(layout.views)} "
                    "alone; set its 'flip' to false, or make a cache with --flips"
                )
            if stage.resolution != layout.resolution:
                raise ValueError(
                    f"{where}: resolution: must be {layout.resolution}, that of the features in {cache.folder}, got "
                    f"{stage.resolution}; or make a cache with --resolution {stage.resolution}"
                )
        cache.check(source.name(index) for index in range(len(source)))


@part("teacher/cached")
class CachedTeacherConfig(TeacherConfig):
    """Features that `latelier cache` computed, in place of the teacher; stages take 'crop/central'.

    Attributes:
        path: the folder of the cache.
        teacher: what computes features that are not in the cache; None is what the cache was made with.
        accept: fields of the teacher's spec in which it may differ from the cache's, such as "version".
    """

    shorthand: ClassVar[str] = "path"

    path: str
    teacher: TeacherConfig | None = None
    accept: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.teacher, CachedTeacherConfig):
            raise ValueError("teacher: must compute, and 'teacher/cached' reads; name the teacher behind it")

    @property
    def features(self) -> int:
        return open_cache(self.path).spec.features if self.teacher is None else self.teacher.features

    def computing(self) -> TeacherConfig:
        """The teacher that computes."""
        return self.teacher or open_cache(self.path).teacher

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int] | None:
        return self.computing().grid_of(size)

    def build(self) -> CachedTeacher:
        return CachedTeacher(open_cache(self.path), self.computing(), accept=self.accept)


@overload
def computing_teacher(teacher: TeacherConfig) -> TeacherConfig: ...
@overload
def computing_teacher(teacher: None) -> None: ...
def computing_teacher(teacher: TeacherConfig | None) -> TeacherConfig | None:
    """The teacher itself or, of one that reads a cache, the one that computed it."""
    return teacher.computing() if isinstance(teacher, CachedTeacherConfig) else teacher


def with_computing_teacher(recipe: Recipe) -> Recipe:
    """The recipe, in which a cached teacher says what computes: a trained model is measured where there is no cache."""
    teacher: Any = recipe.teacher
    if not isinstance(teacher, CachedTeacherConfig) or teacher.teacher is not None:
        return recipe
    return replace(recipe, teacher=replace(teacher, teacher=teacher.computing()))
