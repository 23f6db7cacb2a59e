"""A cache of features: what is in it, that it survives kills and damage, and what it refuses."""

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from children import in_a_child, killed

from latelier.blocks import HOGConfig, TeacherConfig, TeacherOutput, TinyViTConfig, part
from latelier.families import FeatureCache, FeatureCacheError, ImageReadError, feature_shards, open_cache
from latelier.training import FolderSource, cache_features, list_images

HOG = HOGConfig(patch=8)
VIT = TinyViTConfig(width=16, head_width=8, patch=8, registers=2)
SIDE = 32


def folder_of(pictures: Path, **options: Any) -> FolderSource:
    return FolderSource(pictures, list_images(pictures), **options)


def make(pictures: Path, out: Path, teacher: TeacherConfig = HOG, **options: Any) -> FeatureCache:
    """Eight pictures in shards of three."""
    settings = {"resolution": SIDE, "shard_images": 3, "batch": 4, "device": "cpu"} | options
    return cache_features(teacher, folder_of(pictures), out, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def message(error: type[Exception], work: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        work()
    return str(caught.value)


@pytest.fixture(scope="module")
def made(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole cache; tests that change one change a copy."""
    folder = tmp_path_factory.mktemp("made") / "features"
    make(pictures, folder)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "features"))


# --- what is in it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("teacher", [HOG, VIT], ids=["hog", "vit"])
def test_it_holds_what_the_teacher_says_of_both_views_rounded(
    teacher: TeacherConfig, dtype: str, pictures: Path, tmp_path: Path
) -> None:
    cache = make(pictures, tmp_path, teacher, dtype=dtype)
    built = teacher.build()
    assert cache.spec == built.spec and cache.teacher == teacher and len(cache) == 8
    source = folder_of(pictures)
    for index in range(8):
        image = source.read(index)
        # 40 x 32 pixels: the central square is cut, not resampled
        square = torch.from_numpy(np.asarray(image.crop((4, 0, 36, 32))).copy()).permute(2, 0, 1)[None]
        for view, pixels in (("central", square), ("mirrored", square.flip(-1))):
            expected = built(((pixels.float() / 127.5 - 1) + 1) / 2)
            found = cache.read([source.name(index)], [view])
            assert found.grid == expected.grid == (4, 4)
            for name in ("patches", "cls", "registers"):
                ours, theirs = getattr(found, name), getattr(expected, name)
                assert (ours is None) == (theirs is None)
                if theirs is not None:
                    rounded = theirs.to(getattr(torch, dtype)).float()
                    if teacher is HOG:
                        assert torch.equal(ours, rounded)
                    else:  # matrix products of another number of rows round otherwise
                        torch.testing.assert_close(
                            ours, rounded, atol=1e-5, rtol=2**-7 if dtype == "bfloat16" else 2**-10
                        )


def test_a_batch_is_read_in_its_order(made: Path) -> None:
    cache = FeatureCache(made)
    names, views = ["5.png", "0.png", "5.png", "7.png"], ["mirrored", "central", "central", "mirrored"]
    together = cache.read(names, views)
    for row, (name, view) in enumerate(zip(names, views, strict=True)):
        assert torch.equal(together.patches[row], cache.read([name], [view]).patches[0])
    assert together.patches.dtype == torch.float32
    assert not torch.equal(together.patches[0], together.patches[2])


def test_the_spec_and_its_hash_are_in_every_name_and_header(made: Path) -> None:
    cache = FeatureCache(made)
    assert [path.name for path in shards(made)] == [
        f"features-{cache.spec.id}-{number:05d}.safetensors" for number in range(3)
    ]
    for path in shards(made):
        shard = feature_shards.read_shard(path)
        assert shard.layout == cache.layout and shard.layout.spec == HOG.build().spec
    assert [entry.names for entry in cache.shards] == [
        ("0.png", "1.png", "2.png"),
        ("3.png", "4.png", "5.png"),
        ("6.png", "7.png"),
    ]


def test_plain_numpy_maps_a_shard(made: Path) -> None:
    cache, path = FeatureCache(made), shards(made)[1]
    length = int.from_bytes(path.read_bytes()[:8], "little")
    head = json.loads(path.read_bytes()[8 : 8 + length])
    entry = head["patches"]
    start = 8 + length + entry["data_offsets"][0]
    mapped = np.memmap(path, dtype="<f2", mode="r", offset=start, shape=tuple(entry["shape"]))
    assert mapped.shape == (3, 2, 16, HOG.features)
    ours = cache.read(["4.png"], ["mirrored"]).patches[0]
    assert np.array_equal(mapped[1, 1].astype(np.float32), ours.numpy())


def test_the_digest_is_the_sha256_of_the_other_entries_and_all_tensors(made: Path) -> None:
    path = shards(made)[0]
    shard = feature_shards.read_shard(path)
    header = dict(shard.header)
    assert header.pop("latelier.sha256") == shard.digest == FeatureCache(made).shards[0].sha256
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in ("cls", "patches", "thumbnails"):
        tensor = shard.tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode() + tensor.numpy().tobytes())
    assert digest.hexdigest() == shard.digest


def test_views_tokens_and_the_size_of_shards_can_be_chosen(pictures: Path, tmp_path: Path) -> None:
    cache = make(pictures, tmp_path / "a", VIT, flips=False, tokens=["patches", "registers"], shard_images=8)
    assert cache.layout.views == ("central",) and cache.layout.tokens == ("patches", "registers")
    assert len(cache.shards) == 1
    found = cache.read(["0.png"], ["central"])
    assert found.cls is None and found.registers is not None and found.registers.shape == (1, 2, 16)
    assert len(make(pictures, tmp_path / "b", shard_images=None).shards) == 1


def test_batches_and_workers_change_no_byte(pictures: Path, tmp_path: Path, made: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make(pictures, tmp_path / "a", workers=2)
    make(pictures, tmp_path / "b", batch=1)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(made)


def test_the_progress_is_told(pictures: Path, tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    make(pictures, tmp_path, on_image=lambda *told: heard.append(told))
    assert heard == [("1.png", 2, 8), ("2.png", 3, 8), ("4.png", 5, 8), ("5.png", 6, 8), ("7.png", 8, 8)]


# --- killed, and started again ------------------------------------------------------------------------------------


def test_a_cache_killed_at_random_moments_ends_with_the_same_bytes(pictures: Path, tmp_path: Path, made: Path) -> None:
    start = time.perf_counter()
    assert not killed(in_a_child(lambda: make(pictures, tmp_path / "whole")))
    seconds = time.perf_counter() - start
    rng, kills, tries = random.Random(0), 0, 0
    while kills < 20:
        folder, running = tmp_path / str(tries), True
        tries += 1
        while running:
            child = in_a_child(lambda folder=folder: make(pictures, folder))
            if kills < 20:
                time.sleep(rng.uniform(0, seconds))
                os.kill(child, signal.SIGKILL)
            running = killed(child)
            kills += running
        assert contents(folder) == contents(made)


@pytest.mark.parametrize(
    ("call", "count"),
    [("fsync", 1), ("fsync", 4), ("fsync", 9), ("replace", 1), ("replace", 2), ("replace", 4), ("replace", 5)],
)
def test_a_cache_killed_while_it_writes_ends_with_the_same_bytes(
    call: str, count: int, pictures: Path, tmp_path: Path, made: Path
) -> None:
    """Killed just before the ``count``-th system call: before the plan, a shard or the result has its name."""

    def work() -> None:
        real, calls = getattr(os, call), 0

        def deadly(*args: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        setattr(os, call, deadly)
        make(pictures, tmp_path)

    assert killed(in_a_child(work))
    there = {path.name: path.stat().st_mtime_ns for path in shards(tmp_path)}
    make(pictures, tmp_path)
    assert contents(tmp_path) == contents(made)
    assert there.items() <= {path.name: path.stat().st_mtime_ns for path in shards(tmp_path)}.items()


def test_two_processes_finish_what_one_began(pictures: Path, tmp_path: Path, made: Path) -> None:
    folder = tmp_path / "features"
    shutil.copytree(made, folder)
    for path in shards(folder)[1:]:
        path.unlink()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "latelier"]
    command += ["cache", json.dumps({"kind": "teacher/hog", "patch": 8}), "--data", str(pictures), "--out", str(folder)]
    command += ["--resolution", str(SIDE), "--shard-images", "3", "--batch", "4", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("written: ") == 1
    assert contents(folder) == contents(made)


# --- again --------------------------------------------------------------------------------------------------------


def test_a_whole_cache_is_left_as_it_is(pictures: Path, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in shards(copied)}
    expected = contents(copied)
    monkeypatch.setattr(FolderSource, "read", lambda *_: pytest.fail("a picture was read"))
    make(pictures, copied, shard_images=None)
    assert {path.name: path.stat().st_mtime_ns for path in shards(copied)} == before
    assert contents(copied) == expected


def test_new_pictures_get_new_shards_and_the_others_stay(pictures: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "features"
    shutil.copytree(pictures, data)
    make(data, out)
    before = contents(out)
    for name in ("00.png", "9.png", "10.png", "11.png"):
        shutil.copy(pictures / "3.png", data / name)
    cache = make(data, out)
    assert [entry.names for entry in cache.shards[3:]] == [("00.png", "10.png", "11.png"), ("9.png",)]
    after = contents(out)
    assert all(after[name] == before[name] for name in before if name != "index.json")
    assert torch.equal(cache.read(["00.png"], ["central"]).patches, cache.read(["3.png"], ["central"]).patches)


def test_pictures_that_are_gone_stay_in_the_cache_unless_their_shard_has_to_be_made(
    pictures: Path, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "features"
    shutil.copytree(pictures, data)
    make(data, out)
    (data / "0.png").unlink()
    assert "0.png" in make(data, out)
    shards(out)[0].unlink()
    cache = make(data, out)
    assert "0.png" not in cache and len(cache) == 7
    assert [entry.names for entry in cache.shards] == [
        ("1.png", "2.png"),
        ("3.png", "4.png", "5.png"),
        ("6.png", "7.png"),
    ]
    cache.check(verify=True)


def test_a_lost_index_is_rebuilt_from_the_shards(pictures: Path, copied: Path, made: Path) -> None:
    (copied / "index.json").unlink()
    assert message(FeatureCacheError, lambda: FeatureCache(copied)) == (
        f"{copied}: has shards of features but no index.json; `latelier cache` with the same arguments rebuilds it "
        "from them"
    )
    before = {path.name: path.stat().st_mtime_ns for path in shards(copied)}
    make(pictures, copied, shard_images=None)
    assert contents(copied) == contents(made)
    assert {path.name: path.stat().st_mtime_ns for path in shards(copied)} == before


def test_a_lost_index_and_a_damaged_shard_are_made_anew_together(pictures: Path, copied: Path, made: Path) -> None:
    (copied / "index.json").unlink()
    damaged = shards(copied)[1]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    before = {path.name: path.stat().st_mtime_ns for path in shards(copied) if path != damaged}
    make(pictures, copied)
    assert contents(copied) == contents(made)
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in shards(copied)}.items()


def test_a_damaged_shard_whose_pictures_are_gone_goes_too(pictures: Path, copied: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    for name in FeatureCache(copied).shards[2].names:
        (data / name).unlink()
    damaged = shards(copied)[2]
    damaged.write_bytes(b"")
    (copied / "index.json").unlink()
    assert len(make(data, copied)) == 6
    assert not damaged.exists()


@pytest.mark.parametrize("rest", [0, 5, 1000, -1])
def test_a_truncated_shard_is_named_and_it_alone_is_made_anew(
    rest: int, pictures: Path, copied: Path, made: Path
) -> None:
    damaged = shards(copied)[1]
    size = damaged.stat().st_size
    damaged.write_bytes(damaged.read_bytes()[:rest])
    cache = FeatureCache(copied)
    expected = (
        f"{damaged}: has {damaged.stat().st_size:,} bytes where the index says {size:,}; "
        "`latelier cache` with the same arguments makes it anew and leaves the others as they are"
    )
    assert message(FeatureCacheError, cache.check) == expected
    assert message(FeatureCacheError, lambda: cache.read(["4.png"], ["central"])) == expected
    cache.check(["0.png", "7.png"])
    assert cache.read(["0.png"], ["central"]).patches.isfinite().all()
    before = {path.name: path.stat().st_mtime_ns for path in shards(copied) if path != damaged}
    said: list[str] = []
    make(pictures, copied, say=said.append)
    assert len(said) == 1 and re.fullmatch(
        rf"{damaged.name}: is no whole safetensors file \(.*\); it is made anew", said[0]
    )
    assert contents(copied) == contents(made)
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in shards(copied)}.items()


def test_a_missing_shard_is_named(copied: Path) -> None:
    shards(copied)[2].unlink()
    assert message(FeatureCacheError, FeatureCache(copied).check) == (
        f"{copied / FeatureCache(copied).shards[2].file}: is missing; "
        "`latelier cache` with the same arguments makes it anew and leaves the others as they are"
    )


def test_a_flipped_bit_anywhere_is_found_when_checksums_are_compared(pictures: Path, copied: Path, made: Path) -> None:
    damaged, rng = shards(copied)[0], random.Random(0)
    whole = damaged.read_bytes()
    head = 8 + int.from_bytes(whole[:8], "little")
    places = [rng.randrange(head, len(whole)) for _ in range(30)] + [rng.randrange(head) for _ in range(60)]
    for place in [*places, head, len(whole) - 1]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.randrange(8)
        damaged.write_bytes(flipped)
        text = message(FeatureCacheError, lambda: FeatureCache(copied).check(verify=True))
        assert text.startswith(f"{damaged}: "), place
        if place >= head:
            FeatureCache(copied).check()  # the size is right
            assert text == (
                f"{damaged}: has other bytes than were written (its SHA-256 differs); `latelier cache` with the same "
                "arguments and --verify makes it anew and leaves the others as they are"
            )
    said: list[str] = []
    make(pictures, copied, verify=True, say=said.append)
    assert said == [f"{damaged.name}: has other bytes than were written (its SHA-256 differs); it is made anew"]
    assert contents(copied) == contents(made)


def test_a_shard_of_another_cache_is_not_taken_for_one_of_this(pictures: Path, copied: Path, tmp_path: Path) -> None:
    make(pictures, tmp_path / "other", HOGConfig(patch=8, clip=0.3))
    ours, theirs = shards(copied)[0], shards(tmp_path / "other")[0]
    assert ours.stat().st_size == theirs.stat().st_size
    shutil.copy(theirs, ours)
    cache = FeatureCache(copied)
    cache.check()  # looks at sizes
    assert message(FeatureCacheError, lambda: cache.read(["0.png"], ["central"])) == (
        f"{ours}: is not the one that the index knows; `latelier cache` with the same arguments makes it anew and "
        "leaves the others as they are"
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            "{",
            r"is no JSON \(.*\); delete it, and `latelier cache` with the same arguments rebuilds it from the shards",
        ),
        ("[]", "holds list; a config is a JSON object; delete it, and .* rebuilds it from the shards"),
        ("{}", r"describes no cache of features \(.*\); make the cache anew"),
    ],
)
def test_a_damaged_index_is_named(content: str, problem: str, copied: Path) -> None:
    (copied / "index.json").write_text(content)
    assert re.fullmatch(f"{copied / 'index.json'}: {problem}", message(FeatureCacheError, lambda: FeatureCache(copied)))


# --- what it refuses ----------------------------------------------------------------------------------------------


def test_a_changed_spec_is_refused_with_the_field_that_differs(pictures: Path, tmp_path: Path) -> None:
    make(pictures, tmp_path, VIT)
    before = contents(tmp_path)
    learned = replace(VIT, positions="learned")
    for other, difference in (
        (
            learned,
            f"model: '{VIT.build().spec.model}', not '{learned.build().spec.model}'; position: 'rope', not "
            "'bicubic from 16x16'",
        ),
        (replace(VIT, layers=(0,)), "layers.0: 1, not 0"),
        (replace(VIT, seed=3), "weights: 'random:0', not 'random:3'"),
        (replace(VIT, norm="plain"), "norm: 'affine', not 'plain'"),
    ):
        assert message(ValueError, lambda other=other: make(pictures, tmp_path, other)) == (
            f"{tmp_path}: is of another teacher ({difference}); take the teacher that it was made with, or make it anew"
        )
    assert contents(tmp_path) == before


def test_a_difference_that_is_known_to_be_harmless_can_be_accepted(
    pictures: Path, copied: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latelier.blocks.hog.VERSION", "2")
    assert message(ValueError, lambda: make(pictures, copied)) == (
        f"{copied}: is of another teacher (version: '1', not '2'); take the teacher that it was made with, or make it "
        "anew"
    )
    shards(copied)[1].unlink()
    make(pictures, copied, accept=["version"])
    assert contents(copied) == contents(made)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"resolution": 16}, "resolution: 32, not 16"),
        ({"dtype": "bfloat16"}, "dtype: 'float16', not 'bfloat16'"),
        ({"flips": False}, "views: ('central', 'mirrored'), not ('central',)"),
        ({"tokens": ["patches"]}, "tokens: ('patches', 'cls'), not ('patches',)"),
        ({"shard_images": 4}, "shard_images: 3, not 4"),
    ],
)
@pytest.mark.parametrize("indexed", [True, False])
def test_other_settings_are_refused(
    indexed: bool, options: dict[str, Any], difference: str, pictures: Path, copied: Path
) -> None:
    if not indexed:
        (copied / "index.json").unlink()
    before = contents(copied)
    assert message(FeatureCacheError, lambda: make(pictures, copied, **options)) == (
        f"{copied}: was made with other settings ({difference}); ask for the same, or choose another --out"
    )
    assert contents(copied) == before


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"resolution": 30}, "HOG: takes sizes divisible by 8, got 30x30; 24x24 would do"),
        ({"resolution": 0}, "resolution: must be at least 1, got 0"),
        ({"shard_images": 0}, "shard_images: must be at least 1, got 0"),
        ({"tokens": ["patch"]}, "tokens: takes patches, cls, registers, got 'patch'"),
        ({"tokens": ["registers"]}, "tokens: 'teacher/hog' gives no 'registers'; it gives patches, cls"),
        ({"tokens": ["cls"]}, "tokens: must hold 'patches', got cls"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    options: dict[str, Any], problem: str, pictures: Path, tmp_path: Path
) -> None:
    assert message(ValueError, lambda: make(pictures, tmp_path / "new", **options)) == problem
    assert not (tmp_path / "new").exists()


def test_what_is_not_in_the_cache_is_refused(made: Path, pictures: Path, tmp_path: Path) -> None:
    cache = FeatureCache(made)
    assert message(FeatureCacheError, lambda: cache.read(["new.png"], ["central"])) == (
        f"{made}: has no features of 'new.png'; `latelier cache` with the same arguments adds new pictures"
    )
    plain = make(pictures, tmp_path, flips=False)
    assert message(FeatureCacheError, lambda: plain.read(["0.png"], ["mirrored"])) == (
        f"{tmp_path}: has no view 'mirrored' of its pictures; it has central"
    )


def test_a_folder_without_a_cache_is_refused(tmp_path: Path, pictures: Path) -> None:
    assert message(FileNotFoundError, lambda: open_cache(tmp_path)) == (
        f"{tmp_path}: holds no cache of features; latelier cache TEACHER --data DIR --out {tmp_path} makes one"
    )
    (tmp_path / "file").touch()
    assert message(FeatureCacheError, lambda: make(pictures, tmp_path / "file")) == (
        f"{tmp_path / 'file'}: is a file; --out names the folder for the features"
    )


def test_two_writers_at_once_are_refused(pictures: Path, tmp_path: Path, made: Path) -> None:
    refused: list[str] = []

    def second(*_: object) -> None:
        if not refused:
            refused.append(message(FeatureCacheError, lambda: make(pictures, tmp_path)))

    make(pictures, tmp_path, on_image=second)
    assert refused == [
        f"{tmp_path}: another process is writing to it; wait for its end, or choose another --out",
    ]
    assert contents(tmp_path) == contents(made)


@part("teacher/loud")
class LoudConfig(HOGConfig):
    """HOG, with the first token of what is not grey at 1e5."""

    level: float = 1e5

    def build(self) -> Any:
        level = self.level

        class Loud(type(super().build())):
            def describe(self, images: torch.Tensor) -> TeacherOutput:
                found = super().describe(images)
                found.patches[images.flatten(1).amax(1) > 0, 0] = torch.tensor(level)
                return found

        return Loud(patch=self.patch, cells=self.cells, orientations=self.orientations, clip=self.clip)


def test_features_beyond_float16_are_refused(pictures: Path, tmp_path: Path) -> None:
    loud = LoudConfig(patch=8)
    assert message(FeatureCacheError, lambda: make(pictures, tmp_path / "a", loud)) == (
        "0.png: its patches reach 1e+05, which is not finite in float16; take --dtype bfloat16"
    )
    assert not shards(tmp_path / "a")
    assert make(pictures, tmp_path / "b", loud, dtype="bfloat16").read(["0.png"], ["central"]).patches.amax() > 9e4
    assert message(
        FeatureCacheError, lambda: make(pictures, tmp_path / "c", replace(loud, level=1e30), dtype="float16")
    )


def test_a_picture_that_cannot_be_read_stops_or_is_passed_over(pictures: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "features"
    shutil.copytree(pictures, data)
    (data / "4.png").write_bytes(b"no picture")
    text = message(ImageReadError, lambda: make(data, out))
    assert text.startswith(f"{data / '4.png'}: cannot be read as an image (no known image format)")
    assert len(shards(out)) == 1
    said: list[str] = []
    settings: dict[str, Any] = {"resolution": SIDE, "shard_images": 3, "batch": 4, "device": "cpu"}
    cache = cache_features(HOG, folder_of(data, on_error="skip"), out, say=said.append, **settings)
    assert said == ["skipped 4.png: no known image format"]
    assert "4.png" not in cache and len(cache) == 7
    cache.check(["3.png", "4.png", "5.png"], verify=True)
    assert message(FeatureCacheError, lambda: cache.read(["4.png"], ["central"])) == (
        f"{out}: '4.png' could not be read when it was made; delete {cache.shards[1].file} there, and `latelier cache` "
        "with the same arguments makes it anew"
    )


# --- a full disk --------------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_and_a_rerun_goes_on(
    pictures: Path, tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = feature_shards.write_shard, []

    def full(path: Path, *arguments: Any) -> None:
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        real(path, *arguments)
        written.append(path)

    with monkeypatch.context() as patch:
        patch.setattr("latelier.training.caching.write_shard", full)
        text = message(FeatureCacheError, lambda: make(pictures, tmp_path))
    third = FeatureCache(tmp_path).shards[2].file
    assert text == (
        f"{tmp_path}: {third} cannot be written (No space left on device); 2 shards are there and stay good; make room "
        "and run the same command again, which goes on with the next"
    )
    before = {path.name: path.stat().st_mtime_ns for path in shards(tmp_path)}
    assert len(before) == 2
    make(pictures, tmp_path)
    assert contents(tmp_path) == contents(made)
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in shards(tmp_path)}.items()


def test_a_write_that_the_kernel_refuses_leaves_nothing_half_written(
    pictures: Path, tmp_path: Path, made: Path
) -> None:
    """The limit on the size of a file takes the place of a disk that is full in the middle of a shard."""
    told = tmp_path / "told"

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))
        told.write_text(message(FeatureCacheError, lambda: make(pictures, tmp_path / "features")))

    assert shards(made)[0].stat().st_size > 9_000 > (made / "index.json").stat().st_size
    assert not killed(in_a_child(work))
    first = FeatureCache(tmp_path / "features").shards[0].file
    assert told.read_text() == (
        f"{tmp_path / 'features'}: {first} cannot be written (File too large); 0 shards are there and stay good; make "
        "room and run the same command again, which goes on with the next"
    )
    assert set(contents(tmp_path / "features")) == {"index.json"}
    make(pictures, tmp_path / "features")
    assert contents(tmp_path / "features") == contents(made)
