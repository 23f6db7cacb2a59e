"""Crops and batches: the same for any number of workers and processes, and clear about broken files."""

import multiprocessing
import random
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latelier.blocks import PartError, decode, encode, parts
from latelier.families import images
from latelier.training import crops, loader, sources

multiprocess = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning", "ignore:This DataLoader will create:UserWarning"
)
every_crop = pytest.mark.parametrize(
    "crop", [decode(part.kind, crops.CropConfig) for part in parts(crops.CropConfig)], ids=lambda crop: crop.kind
)


class Pictures:
    """Pictures of given (height, width) in memory; those in ``broken`` cannot be read."""

    def __init__(self, *sizes: tuple[int, int], broken: tuple[int, ...] = (), skippable: bool = True) -> None:
        self.sizes, self.broken, self.skippable = sizes, broken, skippable

    def __len__(self) -> int:
        return len(self.sizes)

    def name(self, index: int) -> str:
        return f"{index}.png"

    def size(self, index: int) -> tuple[int, int]:
        self._check(index)
        return self.sizes[index]

    def read(self, index: int) -> PIL.Image.Image:
        self._check(index)
        levels = np.random.default_rng(index).integers(0, 256, (*self.sizes[index], 3), dtype=np.uint8)
        return PIL.Image.fromarray(levels)

    def _check(self, index: int) -> None:
        if index in self.broken:
            raise images.ImageReadError(self.name(index), "broken", "remove it", skippable=self.skippable)


def run(made: loader.ImageLoader, first: int, stop: int) -> list[loader.Batch]:
    with made.iterate(first, stop) as batches:
        steps, found = zip(*batches, strict=True)
    assert steps == tuple(range(first, stop))
    return list(found)


def equal(some: list[loader.Batch], others: list[loader.Batch]) -> bool:
    return [b.names for b in some] == [b.names for b in others] and all(
        torch.equal(a.images, b.images) for a, b in zip(some, others, strict=True)
    )


# --- crops --------------------------------------------------------------------------------------------------------

side = st.integers(1, 50)


@every_crop
@given(height=side, width=side, resolution=st.sampled_from([8, 24]), seed=st.integers(0, 1000))
def test_a_crop_of_any_picture_has_its_shape_and_depends_on_its_generator_alone(
    crop: crops.CropConfig, height: int, width: int, resolution: int, seed: int
) -> None:
    source = Pictures((height, width))
    image = source.read(0)
    (group,) = crop.groups(source, resolution=resolution, stride=8, batch=1)
    made = crop.cut(image, group.shape, random.Random(seed))
    assert (made.height, made.width) == group.shape and made.mode == "RGB"
    assert made.tobytes() == crop.cut(image, group.shape, random.Random(seed)).tobytes()


@every_crop
def test_crops_are_mirrored_half_the_time(crop: crops.CropConfig) -> None:
    levels = np.repeat(np.linspace(0, 255, 40, dtype=np.uint8)[None, :, None], 40, 0).repeat(
        3, 2
    )  # brighter rightwards
    image = PIL.Image.fromarray(levels)

    def rightwards(crop: crops.CropConfig) -> int:
        made = (np.asarray(crop.cut(image, (16, 16), random.Random(seed)), int) for seed in range(200))
        return sum(bool(levels[0, -1, 0] > levels[0, 0, 0]) for levels in made)

    assert 70 < rightwards(crop) < 130
    assert rightwards(decode(encode(crop) | {"flip": False})) == 200  # type: ignore[arg-type]


@given(
    scale=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(sorted),
    ratio=st.tuples(st.floats(0.3, 3), st.floats(0.3, 3)).map(sorted),
    seed=st.integers(0, 1000),
)
def test_a_random_crop_keeps_to_its_ranges_and_inside_the_picture(
    scale: list[float], ratio: list[float], seed: int
) -> None:
    crop = crops.RandomCropConfig(scale=(scale[0], scale[1]), ratio=(ratio[0], ratio[1]))
    image = PIL.Image.new("RGB", (300, 200))
    height, width = crop.extent(image, (8, 8), random.Random(seed))
    share, form = height * width / (300 * 200), width / height
    touches = max(height / 200, width / 300) > 1 - 1e-9
    assert max(height / 200, width / 300) < 1 + 1e-9
    assert share <= scale[1] + 1e-9 and (share >= scale[0] - 1e-9 or touches)
    assert ratio[0] - 1e-9 <= form <= ratio[1] + 1e-9


def test_a_native_crop_shows_pixels_as_they_are() -> None:
    image = Pictures((40, 60)).read(0)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(image), (16, 16), axis=(0, 1))
    for seed in range(20):
        made = np.asarray(crops.NativeCropConfig(flip=False).cut(image, (16, 16), random.Random(seed)))
        assert (windows == made.transpose(2, 0, 1)).all((2, 3, 4)).sum() == 1


def test_a_native_crop_reaches_every_place_alike() -> None:
    image = PIL.Image.fromarray(np.arange(3, dtype=np.uint8)[None, :, None].repeat(2, 0).repeat(3, 2))
    made = [crops.NativeCropConfig(flip=False).cut(image, (2, 2), random.Random(seed)) for seed in range(400)]
    assert 150 < sum(crop.getpixel((0, 0)) == (0, 0, 0) for crop in made) < 250


@given(seed=st.integers(0, 1000), height=st.integers(10, 200))
def test_a_native_crop_reduces_within_its_range_and_enlarges_what_is_too_small(seed: int, height: int) -> None:
    crop = crops.NativeCropConfig(reduce=(1.0, 3.0))
    side, other = crop.extent(PIL.Image.new("RGB", (200, height)), (50, 50), random.Random(seed))
    assert side == other and (50 <= side <= min(150, height) if height >= 50 else side == height)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: crops.RandomCropConfig(scale=(0.0, 1.0)), "scale: takes shares 0 < low <= high <= 1, got (0.0, 1.0)"),
        (lambda: crops.RandomCropConfig(scale=(0.5, 2.0)), "scale: takes shares 0 < low <= high <= 1, got (0.5, 2.0)"),
        (lambda: crops.RandomCropConfig(ratio=(2.0, 0.5)), "ratio: takes factors 0 < low <= high, got (2.0, 0.5)"),
        (lambda: crops.NativeCropConfig(reduce=(0.0, 1.0)), "reduce: takes factors 0 < low <= high, got (0.0, 1.0)"),
        (lambda: crops.BucketCropConfig(largest_ratio=0.5), "largest_ratio: must be at least 1, got 0.5"),
        (
            lambda: crops.BucketCropConfig(shapes=((8, 0),)),
            "shapes: takes (height, width) of at least 1, got ((8, 0),)",
        ),
    ],
)
def test_settings_that_make_no_crop_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(PartError) as caught:
        make()
    assert str(caught.value) == f"config.{said}"


# --- buckets ------------------------------------------------------------------------------------------------------


@given(
    stride=st.sampled_from([1, 8, 16, 32]),
    times=st.integers(1, 40),
    largest=st.floats(1, 4),
)
def test_bucket_shapes_keep_to_stride_budget_and_ratio(stride: int, times: int, largest: float) -> None:
    resolution = stride * times
    shapes = crops.bucket_shapes(resolution, stride, largest)
    assert (resolution, resolution) in shapes and len(set(shapes)) == len(shapes) < 70
    assert {(width, height) for height, width in shapes} == set(shapes)
    ratios = [height / width for height, width in shapes]
    assert ratios == sorted(ratios) and max(ratios) <= largest
    for height, width in shapes:
        assert height % stride == width % stride == 0 and height * width <= resolution**2


def test_bucket_shapes_of_common_resolutions() -> None:
    assert crops.bucket_shapes(64, 8, 2.0) == ((48, 80), (56, 72), (64, 64), (72, 56), (80, 48))
    wide = ((704, 1408), (768, 1344), (832, 1216), (896, 1152), (960, 1088), (1024, 1024))
    assert crops.bucket_shapes(1024, 16, 2.0)[:6] == wide


def shapes_of(
    source: Pictures, *, batch: int, crop: crops.BucketCropConfig | None = None
) -> dict[tuple[int, int], list[int]]:
    groups = (crop or crops.BucketCropConfig()).groups(source, resolution=64, stride=8, batch=batch)
    return {group.shape: group.members.tolist() for group in groups}


def test_pictures_go_to_the_bucket_of_the_nearest_ratio() -> None:
    source = Pictures((100, 100), (90, 150), (1000, 1700), (150, 90), (70, 69))
    assert shapes_of(source, batch=1) == {(48, 80): [1, 2], (64, 64): [0, 4], (80, 48): [3]}


def test_a_bucket_smaller_than_a_batch_is_closed() -> None:
    source = Pictures((100, 100), (90, 150), (1000, 1700), (150, 90), (70, 69))
    assert shapes_of(source, batch=2) == {(48, 80): [1, 2], (64, 64): [0, 3, 4]}
    assert list(shapes_of(source, batch=9).values()) == [[0, 1, 2, 3, 4]]


@given(sizes=st.lists(st.tuples(side, side), min_size=1, max_size=30), batch=st.integers(1, 8))
def test_buckets_hold_each_picture_once_and_at_least_a_batch(sizes: list[tuple[int, int]], batch: int) -> None:
    buckets = list(shapes_of(Pictures(*sizes), batch=batch).values())
    assert sorted(chain(*buckets)) == list(range(len(sizes)))
    assert len(buckets) == 1 or min(map(len, buckets)) >= batch


def test_given_shapes_are_taken_and_must_fit_the_stride() -> None:
    source = Pictures((100, 100), (100, 300))
    wide = crops.BucketCropConfig(shapes=((64, 64), (32, 96)))
    assert shapes_of(source, batch=1, crop=wide) == {(64, 64): [0], (32, 96): [1]}
    with pytest.raises(ValueError) as caught:
        shapes_of(source, batch=1, crop=crops.BucketCropConfig(shapes=((64, 64), (36, 3))))
    assert str(caught.value) == "crop.shapes: 36x3 does not divide by the model's stride 8; take 32x8"


def test_a_bucket_cuts_as_little_as_possible() -> None:
    crop = crops.BucketCropConfig()
    assert crop.extent(PIL.Image.new("RGB", (100, 90)), (40, 50), random.Random(0)) == (80, 100)


def test_a_picture_whose_size_cannot_be_read_stops_the_run_unless_it_may_be_skipped() -> None:
    assert shapes_of(Pictures((9, 9), (9, 9), broken=(1,)), batch=1) == {(64, 64): [0, 1]}
    with pytest.raises(images.ImageReadError):
        shapes_of(Pictures((9, 9), (9, 9), broken=(1,), skippable=False), batch=1)


# --- batches ------------------------------------------------------------------------------------------------------

some = Pictures(*[(20 + i, 34 - i) for i in range(15)])


def make(
    source: Pictures = some,
    crop: crops.CropConfig | None = None,
    *,
    batch: int = 4,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> loader.ImageLoader:
    crop = crop or crops.RandomCropConfig()
    return loader.ImageLoader(
        source, crop, resolution=16, stride=8, seed=0, batch=batch, workers=workers, rank=rank, world=world
    )


@every_crop
def test_batches_are_float_images_with_names(crop: crops.CropConfig) -> None:
    for batch in run(make(crop=crop), 0, 6):
        assert batch.images.dtype == torch.float32 and batch.images.shape[:2] == (4, 3)
        assert batch.images.min() >= -1 and batch.images.max() <= 1
        assert len(batch.names) == 4 and batch.skipped == ()


@every_crop
def test_a_run_can_be_entered_at_any_step(crop: crops.CropConfig) -> None:
    whole = run(make(crop=crop), 0, 9)
    for first in (1, 4, 8):
        assert equal(run(make(crop=crop), first, 9), whole[first:])


@every_crop
def test_processes_share_the_batch_of_one(crop: crops.CropConfig) -> None:
    whole = run(make(crop=crop), 0, 5)
    for world in (2, 4):
        parts = [run(make(crop=crop, rank=rank, world=world), 0, 5) for rank in range(world)]
        for step, batch in enumerate(whole):
            assert torch.equal(torch.cat([part[step].images for part in parts]), batch.images)
            assert sum((part[step].names for part in parts), ()) == batch.names


@multiprocess
def test_workers_change_nothing_and_report_as_one_process_does() -> None:
    source = Pictures(*some.sizes, broken=(3, 7, 8))
    alone, helped = make(source), make(source, workers=2)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    expected, found = run(alone, 0, 12), run(helped, 0, 12)
    assert equal(found, expected) and [b.skipped for b in found] == [b.skipped for b in expected]
    assert alone.skipped == helped.skipped == dict.fromkeys(("3.png", "7.png", "8.png"), "broken")
    assert torch.equal(torch.get_rng_state(), state)


@multiprocess
@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_stops_the_run_with_its_own_message(tmp_path: Path, workers: int) -> None:
    PIL.Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    source = sources.FolderSource(tmp_path, ["a.png", "b.png"])
    made = loader.ImageLoader(source, resolution=16, batch=2, seed=0, workers=workers)
    with pytest.raises(images.ImageReadError) as caught:
        run(made, 0, 3)
    assert str(caught.value) == (
        f'{tmp_path}/b.png: cannot be read as an image (no known image format); remove it or pass on_error="skip"'
    )


def test_a_skipped_file_is_replaced_by_the_next_and_reported_once() -> None:
    source = Pictures(*some.sizes, broken=(3, 4))
    made = make(source)
    whole, found = run(make(), 0, 15), run(made, 0, 15)
    replaced = {"3.png": "5.png", "4.png": "5.png"}
    assert [b.names for b in found] == [tuple(replaced.get(name, name) for name in b.names) for b in whole]
    reports = [report for batch in found for report in batch.skipped]
    assert sorted(reports) == [("3.png", "broken"), ("4.png", "broken")] and made.skipped == dict(reports)


def test_nothing_readable_at_all_is_an_error() -> None:
    with pytest.raises(images.ImageReadError) as caught:
        run(make(Pictures((9, 9), broken=(0,))), 0, 1)
    assert str(caught.value) == (
        "0.png: cannot be read as an image (broken); nor can any other of the 1 images in its group; restore some"
    )


def test_a_batch_that_processes_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        make(batch=32, world=3)
    assert str(caught.value) == "batch: must divide evenly among 3 processes, got 32; take 30 or 33"


@multiprocess
def test_workers_end_with_the_context() -> None:
    made = make(workers=2)
    with made.iterate(0, 100) as batches:
        next(batches)
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()
    with pytest.raises(StopIteration):
        next(batches)


def test_held_out_crops_are_central_squares_in_order() -> None:
    found = list(loader.held_out_crops(some, resolution=16, batch=4))
    assert [len(batch) for batch in found] == [4, 4, 4, 3]
    expected = images.to_signed(images.to_pixels([images.central_crop(some.read(5), 16, 16)]))
    assert torch.equal(torch.cat(found)[5:6], expected)


def test_held_out_crops_pass_over_what_may_be_skipped() -> None:
    found = list(loader.held_out_crops(Pictures(*some.sizes, broken=(0, 6, 14)), resolution=16, batch=6))
    whole = torch.cat(list(loader.held_out_crops(some, resolution=16, batch=6)))
    assert torch.equal(torch.cat(found), whole[[1, 2, 3, 4, 5, *range(7, 14)]])
    with pytest.raises(images.ImageReadError):
        list(loader.held_out_crops(Pictures((9, 9), broken=(0,), skippable=False), resolution=16, batch=6))
