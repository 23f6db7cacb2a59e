"""What training is delivered of images and teacher features, from a cache and with ViT-S/16 on the fly, on one thread.

Pictures are JPEG files of 500 x 375 pixels; their central squares become 256 x 256. A cache has to deliver at least
five times as many.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from measuring import DEVICE, Table, interleaved, settled

from latelier.blocks import DINOv3Config, TeacherOutput
from latelier.training import (
    Batch,
    CachedTeacherConfig,
    CentralCropConfig,
    FolderSource,
    ImageLoader,
    PhotographsConfig,
    cache_features,
    list_images,
)

TEACHER = DINOv3Config(size="vits16", random_init=True)
SIDE, BATCH, PICTURES = 256, 8, 32
AT_LEAST = 5

Deliver = Callable[[], tuple[Batch, TeacherOutput | None]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FolderSource:
    folder, photographs = tmp_path_factory.mktemp("pictures"), PhotographsConfig().training()
    for number in range(PICTURES):
        image = photographs.read(number % len(photographs))
        cut = 8 * (number // len(photographs))
        part = image.crop((cut, cut, image.width - cut, image.height - cut))
        part.resize((500, 375)).save(folder / f"{number:02d}.jpg", quality=90)
    return FolderSource(folder, list_images(folder))


@pytest.fixture(scope="module")
def cached(source: FolderSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "features"
    cache_features(TEACHER, source, folder, resolution=SIDE, device=DEVICE)
    return folder


@pytest.fixture
def ways(source: FolderSource, cached: Path) -> Iterator[dict[str, Deliver]]:
    """Each gives the next batch; all give the same batches."""
    teacher, cache = TEACHER.build().to(DEVICE), CachedTeacherConfig(path=str(cached)).build().to(DEVICE)
    with ExitStack() as stack:

        def way(features: Callable[[Batch], TeacherOutput | None]) -> Deliver:
            loader = ImageLoader(source, CentralCropConfig(), resolution=SIDE, batch=BATCH, seed=0, device=DEVICE)
            batches = stack.enter_context(loader.iterate(0, 10**6))

            def deliver() -> tuple[Batch, TeacherOutput | None]:
                _, batch = next(batches)
                return batch, features(batch)

            return settled(deliver)

        yield {
            "pictures alone": way(lambda batch: None),
            "from a cache": way(lambda batch: cache.read(batch.images, batch.names, batch.views)),
            "on the fly": way(lambda batch: teacher((batch.images + 1) / 2)),
        }


def bench_a_cache_delivers_what_the_teacher_says(ways: dict[str, Deliver]) -> None:
    for _ in range(3):
        (batch, found), (other, expected) = ways["from a cache"](), ways["on the fly"]()
        assert batch.names == other.names and torch.equal(batch.images, other.images)
        assert found is not None and expected is not None
        assert found.grid == expected.grid
        for name in ("patches", "cls", "registers"):
            ours, theirs = getattr(found, name), getattr(expected, name)
            assert (ours - theirs).norm() <= 2**-10 * theirs.norm()


def bench_a_cache_delivers_at_least_five_times_as_fast(ways: dict[str, Deliver], table: Table) -> None:
    times = interleaved(ways, rounds=7, warm_up=1)
    for name, spread in times.items():
        table.add(
            features=name,
            a_batch_of_8=spread,
            images_a_second=BATCH / spread.median,
            times_as_fast=times["on the fly"].over(spread),
        )
    assert times["on the fly"].over(times["from a cache"]).median >= AT_LEAST
