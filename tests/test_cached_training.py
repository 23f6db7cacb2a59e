"""Training from a cache is training with the teacher, to the rounding of what is stored."""

import os
import shutil
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import PIL.Image
import pytest
import torch

from latelier.blocks import (
    DiTBlockConfig,
    HOGConfig,
    NoisyLatentHeadConfig,
    PartError,
    SkipDecoderConfig,
    StackEncoderConfig,
    TeacherConfig,
    TinyViTConfig,
    decode,
    encode,
)
from latelier.families import DiffAEConfig, FeatureCache, FeatureCacheError, read_tensors
from latelier.training import (
    AdamWConfig,
    AlignmentConfig,
    CachedTeacherConfig,
    CentralCropConfig,
    FolderDataConfig,
    ImageLoader,
    RandomCropConfig,
    Recipe,
    StageConfig,
    VPReconstructionConfig,
    cache_features,
    every_picture,
    held_out_batches,
    load_run,
    read_records,
    train,
)

HOG = HOGConfig(patch=8)
SIDE = 32


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that need resampling, with two to hold out."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(10):
        small = PIL.Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        small.resize((60 + i, 50), PIL.Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def recipe_of(pictures: Path, teacher: TeacherConfig, *, data: dict[str, Any] | None = None, **stage: Any) -> Recipe:
    head = NoisyLatentHeadConfig(width=16, block=DiTBlockConfig(head_width=8))
    split: dict[str, Any] = {"held_out_share": 0.2} | (data or {})
    settings: dict[str, Any] = {
        "steps": 4,
        "batch": 4,
        "accumulate": 2,
        "resolution": SIDE,
        "crop": CentralCropConfig(),
        "objective": (VPReconstructionConfig(), AlignmentConfig(head=head, weight=1.0)),
        "optimiser": AdamWConfig(rate=1e-3),
        "recalibrate": 1,
        "log_every": 1,
        "validate_every": 2,
    }
    return Recipe(
        name="cached",
        model=DiffAEConfig(
            patch=8,
            width=16,
            latent=4,
            encoder=StackEncoderConfig(depth=1),
            decoder=SkipDecoderConfig(start=1, middle=1, end=1, rank=4),
        ),
        teacher=teacher,
        data=FolderDataConfig(path=str(pictures), **split),
        stages=(StageConfig(**settings | stage),),
    )


def cache_of(pictures: Path, out: Path, teacher: TeacherConfig = HOG, **options: Any) -> CachedTeacherConfig:
    data = FolderDataConfig(path=str(pictures))
    settings = {"resolution": SIDE, "shard_images": 4, "dtype": "float32", "device": "cpu"} | options
    cache_features(teacher, every_picture(data), out, **settings)
    return CachedTeacherConfig(path=str(out))


def message(error: type[Exception], work: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        work()
    return str(caught.value)


def no_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HOGConfig, "build", lambda self: pytest.fail("the teacher was built"))


@pytest.fixture(scope="module")
def cached(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> CachedTeacherConfig:
    return cache_of(pictures, tmp_path_factory.mktemp("cached") / "features")


# --- the same run -------------------------------------------------------------------------------------------------


def test_with_exact_features_training_is_the_same_to_the_bit(
    pictures: Path, cached: CachedTeacherConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(recipe_of(pictures, HOG), tmp_path / "live")
    no_teacher(monkeypatch)
    train(recipe_of(pictures, cached), tmp_path / "cached")
    curves = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in ("live", "cached")]
    assert curves[0] == curves[1]
    assert b"validation_loss" in curves[0]
    live, ours = (read_tensors(tmp_path / run / "model" / "model.safetensors")[0] for run in ("live", "cached"))
    assert all(torch.equal(ours[name], tensor) for name, tensor in live.items())


@pytest.mark.parametrize(
    ("teacher", "dtype", "tolerance"),
    [
        (HOG, "float16", 1e-3),
        (HOG, "bfloat16", 1e-2),
        (TinyViTConfig(width=16, head_width=8, patch=8), "float16", 1e-3),
    ],
)
def test_with_rounded_features_losses_are_the_same_to_the_rounding(
    teacher: TeacherConfig, dtype: str, tolerance: float, pictures: Path, tmp_path: Path
) -> None:
    train(recipe_of(pictures, teacher), tmp_path / "live")
    train(recipe_of(pictures, cache_of(pictures, tmp_path / "features", teacher, dtype=dtype)), tmp_path / "cached")
    live, ours = (read_records(tmp_path / run / "metrics.jsonl") for run in ("live", "cached"))
    assert [line.keys() for line in ours] == [line.keys() for line in live]
    for line, other in zip(ours, live, strict=True):
        for name in ("loss", "vp_reconstruction", "alignment"):
            assert line[name] == pytest.approx(other[name], rel=tolerance, abs=tolerance)


def test_a_run_from_a_cache_is_resumed_to_the_same_bits(
    pictures: Path, cached: CachedTeacherConfig, tmp_path: Path
) -> None:
    recipe = recipe_of(pictures, cached, checkpoint_every=2)
    train(recipe, tmp_path / "whole", keep=9)
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "model")
    for path in (tmp_path / "half" / "checkpoints").iterdir():
        if path.name != "step-00000002.safetensors":
            path.unlink()
    train(recipe, tmp_path / "half", resume=True)
    whole, half = (read_tensors(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "half"))
    assert half[1] == whole[1] and all(torch.equal(half[0][name], tensor) for name, tensor in whole[0].items())
    assert (tmp_path / "half" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning", "ignore:This DataLoader will create:UserWarning"
)
def test_workers_read_the_same_views(pictures: Path, cached: CachedTeacherConfig) -> None:
    source = FolderDataConfig(path=str(pictures)).training()

    def batches(workers: int) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        made = ImageLoader(source, CentralCropConfig(), resolution=SIDE, batch=4, seed=0, workers=workers)
        with made.iterate(0, 6) as loaded:
            return [(batch.names, batch.views) for _, batch in loaded]

    alone = batches(0)
    assert {view for _, views in alone for view in views} == {"central", "mirrored"}
    assert batches(2) == alone


def one_of_two(rank: int, port: int, work: Callable[[], object]) -> int:
    """Fork the process ``rank`` of a group of two, in the place of torchrun, which takes longer to start."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads, which sleep here
        child = os.fork()
    if child:
        return child
    try:
        warnings.simplefilter("ignore")  # under the command line, too, warnings of torch end nothing
        jaxtyping.config.update("jaxtyping_disable", True)
        group = {"WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in group.items()}
        work()
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        os._exit(1)
    os._exit(0)


def test_two_processes_train_from_a_cache_as_one_does(
    pictures: Path, cached: CachedTeacherConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(pictures, cached, accumulate=1, precision="float32")
    no_teacher(monkeypatch)
    train(recipe, tmp_path / "alone")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [one_of_two(rank, port, lambda: train(recipe, tmp_path / "both", device="cpu")) for rank in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    alone, both = (read_records(tmp_path / run / "metrics.jsonl") for run in ("alone", "both"))
    assert len(alone) == 4
    for line, other in zip(both, alone, strict=True):
        assert line.keys() == other.keys()
        for name in line.keys() & {"loss", "alignment", "validation_loss"}:
            assert line[name] == pytest.approx(other[name], rel=1e-4)


# --- the crop -----------------------------------------------------------------------------------------------------


def test_a_central_crop_is_what_is_held_out_and_its_mirror_image(pictures: Path) -> None:
    source = FolderDataConfig(path=str(pictures)).training()
    squares = {}
    for batch in held_out_batches(source, resolution=SIDE, batch=3):
        assert batch.views == ("central",) * len(batch.names)
        squares |= dict(zip(batch.names, batch.images, strict=True))
    loader = ImageLoader(source, CentralCropConfig(), resolution=SIDE, batch=4, seed=1)
    with loader.iterate(0, 8) as loaded:
        for _, batch in loaded:
            for image, name, view in zip(batch.images, batch.names, batch.views, strict=True):
                assert torch.equal(image if view == "central" else image.flip(-1), squares[name])
    assert CentralCropConfig(flip=False).views() == ("central",)


# --- what is not in the cache -------------------------------------------------------------------------------------


def test_held_out_pictures_beyond_the_cache_are_computed_by_the_teacher(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two are in the cache, one has another name, and one that of a picture for training."""
    held_out = tmp_path / "held out"
    held_out.mkdir()
    for name in ("3.png", "8.png"):
        shutil.copy(pictures / name, held_out / name)
    shutil.copy(pictures / "4.png", held_out / "new.png")
    shutil.copy(pictures / "6.png", held_out / "5.png")
    teacher = cache_of(pictures, tmp_path / "features")
    asked: list[int] = []
    real = HOGConfig.build

    def build(self: HOGConfig) -> Any:
        built = real(self)
        describe = built.describe
        monkeypatch.setattr(built, "describe", lambda images: asked.append(len(images)) or describe(images))
        return built

    other = {"held_out_path": str(held_out)}
    train(recipe_of(pictures, HOG, data=other), tmp_path / "live")
    monkeypatch.setattr(HOGConfig, "build", build)
    train(recipe_of(pictures, teacher, data=other), tmp_path / "cached")
    assert asked == [2, 2]  # twice validated
    live, ours = (tmp_path / run / "metrics.jsonl" for run in ("live", "cached"))
    assert live.read_bytes() == ours.read_bytes()


def test_a_teacher_that_is_not_the_caches_is_refused_when_it_has_to_compute(
    pictures: Path, cached: CachedTeacherConfig
) -> None:
    images = torch.rand(1, 3, SIDE, SIDE)
    other = replace(cached, teacher=HOGConfig(patch=8, clip=0.3))
    assert message(ValueError, lambda: other.build()(images)) == (
        f"{cached.path}: is of another teacher (model: 'hog(cells=2, orientations=9, clip=0.2)', not "
        "'hog(cells=2, orientations=9, clip=0.3)'); take the teacher that it was made with, or make it anew"
    )
    accepted = replace(other, accept=("model",))
    assert torch.equal(accepted.build()(images).patches, HOGConfig(patch=8, clip=0.3).build()(images).patches)
    assert torch.equal(cached.build()(images).patches, HOG.build()(images).patches)


def test_the_cached_teacher_computes_with_gradients_when_asked(cached: CachedTeacherConfig) -> None:
    images = torch.rand(1, 3, SIDE, SIDE, requires_grad=True)
    built = cached.build()
    assert not built(images).patches.requires_grad
    built(images, differentiable=True).patches.sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert not list(built.parameters())


def test_of_two_pictures_with_one_name_that_for_training_is_cached(pictures: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "held out"
    held_out.mkdir()
    shutil.copy(pictures / "6.png", held_out / "5.png")
    shutil.copy(pictures / "7.png", held_out / "new.png")
    joined = every_picture(FolderDataConfig(path=str(pictures), held_out_path=str(held_out)))
    assert sorted(joined.name(index) for index in range(len(joined))) == [*(f"{i}.png" for i in range(10)), "new.png"]
    for index in range(len(joined)):
        name = joined.name(index)
        expected = PIL.Image.open(pictures / name.replace("new", "7"))
        assert joined.read(index).tobytes() == expected.tobytes()
        assert joined.size(index) == (expected.height, expected.width)


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "problem"),
    [
        (
            {"crop": RandomCropConfig()},
            "crop: 'crop/random' cuts another part of a picture each time, and {0} has features of central squares; "
            "take 'crop/central'",
        ),
        (
            {"resolution": 16},
            "resolution: must be 32, that of the features in {0}, got 16; or make a cache with --resolution 16",
        ),
    ],
)
def test_a_stage_that_sees_something_else_is_refused(
    stage: dict[str, Any], problem: str, pictures: Path, cached: CachedTeacherConfig, tmp_path: Path
) -> None:
    text = message(ValueError, lambda: train(recipe_of(pictures, cached, **stage), tmp_path))
    assert text == f"stage 'main': {problem.format(cached.path)}"
    assert not (tmp_path / "checkpoints").exists()


def test_mirror_images_that_are_not_in_the_cache_are_refused(pictures: Path, tmp_path: Path) -> None:
    teacher = cache_of(pictures, tmp_path / "features", flips=False)
    assert message(ValueError, lambda: train(recipe_of(pictures, teacher), tmp_path / "run")) == (
        f"stage 'main': crop: takes the view 'mirrored', and {teacher.path} has central alone; "
        "set its 'flip' to false, or make a cache with --flips"
    )
    train(recipe_of(pictures, teacher, crop=CentralCropConfig(flip=False)), tmp_path / "run", resume=True)


def test_a_picture_that_is_not_in_the_cache_is_named_before_anything_is_trained(pictures: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    teacher = cache_of(data, tmp_path / "features")
    shutil.copy(data / "3.png", data / "a.png")
    assert message(FeatureCacheError, lambda: train(recipe_of(data, teacher), tmp_path / "run")) == (
        f"{teacher.path}: has no features of 'a.png'; `latelier cache` with the same arguments adds new pictures"
    )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    cache_of(data, tmp_path / "features")
    train(recipe_of(data, teacher), tmp_path / "run", resume=True)


def test_a_picture_that_has_changed_is_named(pictures: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    teacher = cache_of(data, tmp_path / "features")
    for path in data.iterdir():
        if path.name != "7.png":
            shutil.copy(pictures / "7.png", path)
    with pytest.raises(FeatureCacheError) as caught:
        train(recipe_of(data, teacher), tmp_path / "run")
    name = str(caught.value).split("'")[1]
    file = FeatureCache(teacher.path).file_of(name)
    assert str(caught.value) == (
        f"{teacher.path}: {name!r} does not look as it did when it was cached; delete {file} there, and `latelier "
        "cache` with the same arguments makes it anew"
    )


def test_a_picture_decoded_a_little_differently_is_the_same(cached: CachedTeacherConfig, pictures: Path) -> None:
    (batch,) = held_out_batches(FolderDataConfig(path=str(pictures)).held_out(), resolution=SIDE, batch=9)
    built = cached.build()
    noise = torch.randint(-1, 2, batch.images.shape, generator=torch.Generator().manual_seed(0)) / 127.5
    expected = built.read(batch.images, batch.names, batch.views).patches
    assert torch.equal(built.read(batch.images + noise, batch.names, batch.views).patches, expected)
    mirrored = message(FeatureCacheError, lambda: built.read(batch.images.flip(-1), batch.names, batch.views))
    assert "does not look as it did" in mirrored
    assert message(FeatureCacheError, lambda: built.read(batch.images, batch.names, ["", *batch.views[1:]])) == (
        f"{cached.path}: has no view '' of its pictures; it has central, mirrored"
    )


def test_a_damaged_shard_is_told_before_anything_is_trained(pictures: Path, tmp_path: Path) -> None:
    teacher = cache_of(pictures, tmp_path / "features")
    damaged = sorted((tmp_path / "features").glob("*.safetensors"))[1]
    damaged.write_bytes(damaged.read_bytes()[:100])
    text = message(FeatureCacheError, lambda: train(recipe_of(pictures, teacher), tmp_path / "run"))
    assert text.startswith(f"{damaged}: has 100 bytes where the index says ")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# --- the part -----------------------------------------------------------------------------------------------------


def test_it_is_a_teacher_like_others_in_json_and_by_its_short_form(cached: CachedTeacherConfig) -> None:
    assert decode(f"cached:{cached.path}", TeacherConfig) == cached
    full = replace(cached, teacher=HOG, accept=("version",))
    assert decode(encode(full), TeacherConfig) == full
    assert cached.features == HOG.features
    assert cached.for_stride(16) == cached
    assert cached.build().spec == HOG.build().spec


def test_it_does_not_read_what_another_one_reads(cached: CachedTeacherConfig) -> None:
    assert message(PartError, lambda: CachedTeacherConfig(path="a", teacher=cached)) == (
        "config.teacher: must compute, and 'teacher/cached' reads; name the teacher behind it"
    )


def test_a_run_is_loaded_and_measured_where_there_is_no_cache(pictures: Path, tmp_path: Path) -> None:
    teacher = cache_of(pictures, tmp_path / "features")
    train(recipe_of(pictures, teacher), tmp_path / "run")
    shutil.rmtree(tmp_path / "features")
    run = load_run(tmp_path / "run")
    assert run.recipe.teacher == replace(teacher, teacher=HOG)
    assert run.teacher == HOG
    assert run.teacher_spec == HOG.build().spec
