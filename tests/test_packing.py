"""Packs of pairs: what is in one, that it survives kills and damage, and what it refuses."""

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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from children import in_a_child, killed
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL.Image import Transpose

from latelier.blocks import (
    Codec,
    HOGConfig,
    LatentScaleWarning,
    LatentSpace,
    LatentSpaceConfig,
    LatentSpec,
    Loaded,
    NoNormConfig,
    TeacherConfig,
    TeacherOutput,
    part,
)
from latelier.families import FeatureCacheError, ImageReadError, PairFolder, PairsError, pair_shards
from latelier.training import FolderSource, list_images, pack

HOG = HOGConfig(patch=8)
SIDE = 32


class Pooled(Codec):
    """Mean colours of squares of eight pixels."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def moments(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        mode = self.gain * F.avg_pool2d(images.float(), 8)
        return mode, torch.full_like(mode, 0.1)

    def reconstruct(self, raw: torch.Tensor) -> torch.Tensor:
        return F.interpolate(raw / self.gain, scale_factor=8)


@part("latent_space/pooled")
class PooledConfig(LatentSpaceConfig):
    gain: float = 2.5
    name: str = "pooled"
    sampled: bool = False

    @property
    def spec(self) -> LatentSpec:
        return LatentSpec(source=self.name, channels=3, stride=8, posterior="sample" if self.sampled else "mode")

    def build(self) -> LatentSpace:
        return LatentSpace(self, lambda: Loaded(Pooled(self.gain)), norm=NoNormConfig())


SPACE = PooledConfig()


class Memory:
    """Pictures that follow from their names."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def size(self, index: int) -> tuple[int, int]:
        return 32, 32

    def read(self, index: int) -> PIL.Image.Image:
        seed = int.from_bytes(hashlib.sha256(self.names[index].encode()).digest()[:4], "big")
        colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        return PIL.Image.fromarray(colours.repeat(8, 0).repeat(8, 1))


def folder_of(pictures: Path, **options: Any) -> FolderSource:
    return FolderSource(pictures, list_images(pictures), **options)


def make(
    pictures: Path,
    out: Path,
    teacher: TeacherConfig = HOG,
    space: LatentSpaceConfig = SPACE,
    on_error: Any = "raise",
    **options: Any,
) -> PairFolder:
    """Eight pictures in shards of three."""
    chosen = {"resolution": SIDE, "flips": True, "shard_pictures": 3, "batch": 4, "device": "cpu"} | options
    return pack(space, teacher, folder_of(pictures, on_error=on_error), out, **chosen)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}


def message(error: type[Exception], work: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        work()
    return str(caught.value)


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file and the digest in it, as somebody who knows the format would."""
    content = json.loads(path.read_text())
    edit(content)
    if content.pop("own_sha256", None):
        content["own_sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def made(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole pack; tests that change one change a copy."""
    folder = tmp_path_factory.mktemp("made") / "pairs"
    make(pictures, folder)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "pairs"))


AGAIN = "`latelier pack` with the same arguments makes it anew and leaves the others as they are"

# --- what is in it ------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(
    count=st.integers(1, 7),
    shard=st.integers(1, 8),
    batch=st.integers(1, 9),
    flips=st.booleans(),
    dtype=st.sampled_from(["float16", "float32"]),
    cls=st.booleans(),
    thumbnails=st.booleans(),
)
def test_every_row_is_what_space_and_teacher_say_of_its_view(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    shard: int,
    batch: int,
    flips: bool,
    dtype: Any,
    cls: bool,
    thumbnails: bool,
) -> None:
    source, out = Memory([f"deep/{i}.png" for i in range(count)]), tmp_path_factory.mktemp("pack")
    options: dict[str, Any] = {"flips": flips, "dtype": dtype, "cls": cls, "thumbnails": thumbnails}
    found = pack(SPACE, HOG, source, out, resolution=SIDE, shard_pictures=shard, batch=batch, device="cpu", **options)
    views = ["central", "mirrored"] if flips else ["central"]
    assert len(found) == count * len(views) and len(found.shards) == -(-count // shard)
    assert found.names == [f"{name}#{view}" if flips else name for name in source.names for view in views]
    assert found.pictures == [name for name in source.names for _ in views]
    rows = list(range(len(found)))
    latents, features = found.read(rows)
    assert latents.dtype == features.patches.dtype == torch.float32 and (features.cls is not None) is cls
    space, teacher, kind = SPACE.build(), HOG.build(), getattr(torch, dtype)
    for row in rows:
        square = torch.from_numpy(np.asarray(source.read(row // len(views))).copy()).permute(2, 0, 1)[None]
        pixels = square.flip(-1) if row % len(views) else square
        images = pixels.float() / 127.5 - 1
        said = teacher((images + 1) / 2)
        pairs = [(latents, space.encode(images)), (features.patches, said.patches)]
        for ours, theirs in pairs + ([(features.cls, said.cls)] if cls else []):
            assert torch.equal(ours[row], theirs[0].to(kind).float())  # rounded once, and nothing else
        small = found.thumbnail(row)
        assert (small is not None) is thumbnails
        if small is not None:
            assert small.dtype == torch.uint8 and small.shape == (3, 64, 64)
            torch.testing.assert_close(small[:, 8::16, 8::16], pixels[0, :, 4::8, 4::8], atol=1, rtol=0)


def test_views_are_the_central_square_and_its_mirror_image(pictures: Path, made: Path) -> None:
    found, source = PairFolder(made), folder_of(pictures)
    latents, features = found.read(range(16))
    space, teacher = SPACE.build(), HOG.build()
    for index in range(8):
        # 40 x 32 pixels: the central square is cut, not resampled
        square = torch.from_numpy(np.asarray(source.read(index).crop((4, 0, 36, 32))).copy()).permute(2, 0, 1)[None]
        for view, pixels in enumerate((square, square.flip(-1))):
            images, row = pixels.float() / 127.5 - 1, 2 * index + view
            said = teacher((images + 1) / 2)
            assert said.cls is not None and features.cls is not None
            for ours, theirs in (
                (latents, space.encode(images)),
                (features.patches, said.patches),
                (features.cls, said.cls),
            ):
                assert torch.equal(ours[row], theirs[0].half().float())
    assert found.latent_spec == space.spec and found.teacher_spec == teacher.spec and features.grid == (4, 4)


def test_crops_are_pixels_of_the_picture_at_places_that_follow_from_name_and_seed(
    pictures: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"flips": False, "crops": 3, "dtype": "float32"}
    found = make(pictures, tmp_path / "a", **options)
    assert len(found) == 24 and found.names[:4] == ["0.png#crop-0", "0.png#crop-1", "0.png#crop-2", "1.png#crop-0"]
    latents = found.read(range(24))[0]
    source, space = folder_of(pictures), SPACE.build()
    for row in range(24):
        image = source.read(row // 3)
        places = [image.crop((left, 0, left + SIDE, SIDE)) for left in range(9)]
        places += [place.transpose(Transpose.FLIP_LEFT_RIGHT) for place in places]
        pixels = torch.stack([torch.from_numpy(np.asarray(place).copy()).permute(2, 0, 1) for place in places])
        there = space.encode(pixels.float() / 127.5 - 1)
        assert (there - latents[row]).abs().amax((1, 2, 3)).min() < 1e-6
    assert len({tuple(row.flatten().tolist()) for row in latents}) > 16
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy(pictures / "5.png", few)
    assert torch.equal(make(few, tmp_path / "b", batch=1, **options).read(range(3))[0], latents[15:18])
    assert not torch.equal(make(few, tmp_path / "c", seed=1, **options).read(range(3))[0], latents[15:18])


def test_a_sampled_posterior_is_the_same_in_every_run_and_another_for_every_row(pictures: Path, tmp_path: Path) -> None:
    same = tmp_path / "same"
    same.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        shutil.copy(pictures / "0.png", same / name)
    options: dict[str, Any] = {"space": PooledConfig(sampled=True), "flips": False, "dtype": "float32", "batch": 1}
    latents = make(same, tmp_path / "x", **options).read(range(3))[0]
    make(same, tmp_path / "y", **options)
    assert contents(tmp_path / "x") == contents(tmp_path / "y")
    assert not torch.equal(latents[0], latents[1]) and not torch.equal(latents[1], latents[2])
    assert not torch.equal(latents, make(same, tmp_path / "z", seed=1, **options).read(range(3))[0])


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


def test_latents_of_another_scale_than_they_should_have_are_warned_of(pictures: Path, tmp_path: Path) -> None:
    with pytest.warns(LatentScaleWarning, match=r"^pack: 3 of 3 channels of these latents of 'pooled' have a standard"):
        make(pictures, tmp_path, space=PooledConfig(gain=0.1))


# --- killed, and started again ------------------------------------------------------------------------------------


def test_a_pack_killed_at_random_moments_ends_with_the_same_bytes(pictures: Path, tmp_path: Path, made: Path) -> None:
    start = time.perf_counter()
    assert not killed(in_a_child(lambda: make(pictures, tmp_path / "whole")))
    seconds = time.perf_counter() - start
    rng, kills, tries = random.Random(0), 0, 0
    while kills < 12:
        folder, running = tmp_path / str(tries), True
        tries += 1
        while running:
            child = in_a_child(lambda folder=folder: make(pictures, folder))
            if kills < 12:
                time.sleep(rng.uniform(0, seconds))
                os.kill(child, signal.SIGKILL)
            running = killed(child)
            kills += running
        assert contents(folder) == contents(made)


@pytest.mark.parametrize(
    ("call", "count"), [("fsync", 2), ("fsync", 5), ("replace", 1), ("replace", 4), ("replace", 6)]
)
def test_a_pack_killed_while_it_writes_ends_with_the_same_bytes(
    call: str, count: int, pictures: Path, tmp_path: Path, made: Path
) -> None:
    """Killed just before the ``count``-th system call: before plan, array or sidecar has its name."""

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
    whole = {number for number in range(3) if (tmp_path / f"pairs-{number:05d}.json").is_file()}
    before = {name: time for name, time in times(tmp_path).items() if int(name[-9:-4]) in whole}
    make(pictures, tmp_path)
    assert contents(tmp_path) == contents(made)
    assert before.items() <= times(tmp_path).items()


def test_two_processes_finish_what_one_began(pictures: Path, tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "pairs"
    make(pictures, whole)
    shutil.copytree(whole, folder)
    for number in (0, 2):
        (folder / f"pairs-{number:05d}.json").unlink()
    script = tmp_path / "work.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\nfrom test_packing import HOG, make\n"
        "make(Path(sys.argv[2]), Path(sys.argv[3]), HOG)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    command += [str(Path(__file__).parent), str(pictures), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert contents(folder) == contents(whole)


# --- again --------------------------------------------------------------------------------------------------------


def test_a_whole_pack_is_left_as_it_is(pictures: Path, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, expected = times(copied), contents(copied)
    monkeypatch.setattr(FolderSource, "read", lambda *_: pytest.fail("a picture was read"))
    make(pictures, copied, shard_pictures=None)
    assert times(copied) == before and contents(copied) == expected


def test_new_pictures_get_new_shards_and_the_others_stay(pictures: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "pairs"
    shutil.copytree(pictures, data)
    make(data, out)
    before = contents(out)
    for name in ("00.png", "9.png", "10.png", "11.png"):
        shutil.copy(pictures / "3.png", data / name)
    found = make(data, out)
    assert [shard.pictures for shard in found.shards.values()][3:] == [("00.png", "10.png", "11.png"), ("9.png",)]
    after = contents(out)
    assert all(after[name] == before[name] for name in before if name != "pairs.json")
    assert torch.equal(found.read([found.names.index("00.png#central")])[0], found.read([6])[0])


def test_pictures_that_are_gone_stay_unless_their_shard_has_to_be_made(pictures: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "pairs"
    shutil.copytree(pictures, data)
    make(data, out)
    (data / "0.png").unlink()
    assert "0.png" in make(data, out).pictures
    (out / "pairs-00000.json").unlink()
    found = make(data, out)
    assert [shard.pictures for shard in found.shards.values()] == [
        ("1.png", "2.png"),
        ("3.png", "4.png", "5.png"),
        ("6.png", "7.png"),
    ]
    found.check(verify=True)


def test_a_lost_index_is_rebuilt_from_the_shards(pictures: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "pairs"
    shutil.copytree(pictures, data)
    (data / "4.png").write_bytes(b"no picture")
    make(data, out, on_error="skip")
    expected, before = contents(out), times(out)
    (out / "pairs.json").unlink()
    assert message(PairsError, lambda: PairFolder(out)) == (
        f"{out}: has shards of pairs but no pairs.json; `latelier pack` with the same arguments rebuilds it from them"
    )
    make(data, out, shard_pictures=None, on_error="skip")
    assert contents(out) == expected and times(out) == before


# --- damage -------------------------------------------------------------------------------------------------------

FILES = ("latents", "features", "cls", "thumbnails")


@pytest.mark.parametrize("rest", [0, 5, 200, -1])
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named_and_its_shard_alone_is_made_anew(
    name: str, rest: int, pictures: Path, copied: Path, made: Path
) -> None:
    damaged = next(copied.glob(f"{name}-*00001.npy"))
    damaged.write_bytes(damaged.read_bytes()[:rest])
    text = message(PairsError, lambda: PairFolder(copied))
    sidecar = re.escape(f"{copied / 'pairs-00001.json'}: {damaged.name}: is no whole .npy file (")
    assert re.fullmatch(rf"(?s){sidecar}.*\); {re.escape(AGAIN)}", text)
    before = {file: time for file, time in times(copied).items() if "00001" not in file}
    said: list[str] = []
    make(pictures, copied, say=said.append)
    assert len(said) == 1 and said[0].startswith(f"pairs-00001.json: {damaged.name}: is no whole .npy file (")
    assert contents(copied) == contents(made) and before.items() <= times(copied).items()


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, pictures: Path, copied: Path, made: Path) -> None:
    damaged = next(copied.glob(f"{name}-*00002.npy"))
    damaged.unlink()
    assert message(PairsError, lambda: PairFolder(copied)) == (
        f"{copied / 'pairs-00002.json'}: {damaged.name}: is missing; {AGAIN}"
    )
    make(pictures, copied)
    assert contents(copied) == contents(made)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_of_an_array_is_found_when_checksums_are_compared(
    name: str, pictures: Path, copied: Path, made: Path
) -> None:
    damaged = next(copied.glob(f"{name}-*00000.npy"))
    whole, rng = damaged.read_bytes(), random.Random(0)
    for place in [128, len(whole) - 1, *(rng.randrange(128, len(whole)) for _ in range(5))]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.randrange(8)
        damaged.write_bytes(flipped)
        found = PairFolder(copied)  # looks at types and shapes
        found.check()
        assert message(PairsError, lambda found=found: found.check(verify=True)) == (
            f"{copied / 'pairs-00000.json'}: {damaged.name}: has other bytes than were written (its SHA-256 differs); "
            "`latelier pack` with the same arguments and --verify makes it anew and leaves the others as they are"
        )
    said: list[str] = []
    make(pictures, copied, verify=True, say=said.append)
    assert said == [
        f"pairs-00000.json: {damaged.name}: has other bytes than were written (its SHA-256 differs); it is made anew"
    ]
    assert contents(copied) == contents(made)


def test_a_sidecar_of_other_pictures_is_made_anew(pictures: Path, copied: Path, made: Path) -> None:
    change(copied / "pairs-00000.json", lambda content: content.update(planned=["2.png", "1.png", "0.png"]))
    assert message(PairsError, lambda: PairFolder(copied)) == (
        f"{copied / 'pairs-00000.json'}: is not the one that the index knows; {AGAIN}"
    )
    said: list[str] = []
    make(pictures, copied, say=said.append)
    assert said == ["pairs-00000.json: is not the one that the index knows; it is made anew"]
    assert contents(copied) == contents(made)


# --- what it refuses ----------------------------------------------------------------------------------------------


def test_another_space_or_teacher_is_refused_and_nothing_is_touched(pictures: Path, copied: Path, made: Path) -> None:
    other = PooledConfig(name="other")
    assert message(ValueError, lambda: make(pictures, copied, space=other)) == (
        f"{copied}: these latents are of another space (source: 'pooled', not 'other'); use the model that encoded them"
    )
    clip = HOGConfig(patch=8, clip=0.3)
    text = message(ValueError, lambda: make(pictures, copied, clip))
    assert text.startswith(f"{copied}: is of another teacher (") and "clip=0.2" in text and "clip=0.3" in text
    assert contents(copied) == contents(made)


@pytest.mark.parametrize("index", [True, False], ids=["with its index", "without an index"])
@pytest.mark.parametrize("number", [1, 3], ids=["in the place of ours", "beside ours"])
def test_mixed_specs_in_one_folder_are_refused_with_both(
    number: int, index: bool, pictures: Path, copied: Path, tmp_path: Path
) -> None:
    make(pictures, tmp_path / "other", space=PooledConfig(name="other"))
    for path in (tmp_path / "other").glob("*-00001.*"):
        shutil.copy(path, copied / path.name.replace("00001", f"{number:05d}"))
    stray = copied / f"pairs-{number:05d}.json"
    change(
        stray,
        lambda content: content.update(
            sha256={name.replace("00001", f"{number:05d}"): digest for name, digest in content["sha256"].items()}
        ),
    )
    expected = (
        f"{stray}: these latents are of another space (source: 'other', not 'pooled'); use the model that encoded them"
    )
    assert message(ValueError, lambda: PairFolder(copied)) == expected
    if not index:
        (copied / "pairs.json").unlink()
    before = times(copied)
    assert message(ValueError, lambda: make(pictures, copied)) == expected
    assert times(copied) == before and stray.is_file()


def test_a_shard_whose_pictures_another_holds_is_refused(pictures: Path, copied: Path) -> None:
    for path in copied.glob("*-00001.*"):
        shutil.copy(path, copied / path.name.replace("00001", "00003"))
    stray = copied / "pairs-00003.json"
    assert message(PairsError, lambda: make(pictures, copied)) == (
        f"{stray}: holds '3.png', which another shard holds too; move it elsewhere"
    )
    assert stray.is_file()


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"resolution": 64}, "resolution: 32, not 64; latent_shape.1: 4, not 8"),
        ({"flips": False}, "views: ('central', 'mirrored'), not ('central',)"),
        ({"flips": False, "crops": 2}, "views.0: 'central', not 'crop-0'; views.1: 'mirrored', not 'crop-1'"),
        ({"dtype": "float32"}, "dtype: 'float16', not 'float32'"),
        ({"seed": 1}, "seed: 0, not 1"),
        ({"cls": False}, "has_cls: True, not False"),
        ({"thumbnails": False}, "has_thumbnails: True, not False"),
        ({"shard_pictures": 4}, "shard_pictures: 3, not 4"),
    ],
)
def test_other_settings_are_refused(options: dict[str, Any], difference: str, pictures: Path, copied: Path) -> None:
    text = message(PairsError, lambda: make(pictures, copied, **options))
    assert text.startswith(f"{copied}: was made with other settings (") and difference in text
    assert text.endswith("); ask for the same, or choose another --out")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"resolution": 0}, "resolution: must be at least 1, got 0"),
        ({"resolution": 36}, "resolution: must be divisible by the stride 8 of the latents, got 36"),
        ({"shard_pictures": 0}, "shard_pictures: must be at least 1, got 0"),
        (
            {"crops": 2},
            "crops: takes a number of crops, some of them mirrored, in place of flips; got 2",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    options: dict[str, Any], problem: str, pictures: Path, tmp_path: Path
) -> None:
    assert message(ValueError, lambda: make(pictures, tmp_path / "new", **options)) == problem
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("as_users_run_it")
def test_bfloat16_is_refused_because_npy_has_none(pictures: Path, tmp_path: Path) -> None:
    assert message(ValueError, lambda: make(pictures, tmp_path, dtype="bfloat16")) == (
        "dtype: .npy files of pairs hold float16 or float32, got 'bfloat16'"
    )


@part("teacher/unread")
class UnreadConfig(HOGConfig):
    def build(self) -> Any:
        raise AssertionError("its weights were read")


def test_a_resolution_that_the_teacher_does_not_take_is_refused_before_weights_are_read(
    pictures: Path, tmp_path: Path
) -> None:
    text = message(ValueError, lambda: make(pictures, tmp_path / "new", UnreadConfig(patch=12)))
    assert "12" in text and not (tmp_path / "new").exists()


def test_two_writers_at_once_are_refused(pictures: Path, tmp_path: Path, made: Path) -> None:
    refused: list[str] = []

    def second(*_: object) -> None:
        if not refused:
            refused.append(message(FeatureCacheError, lambda: make(pictures, tmp_path)))

    make(pictures, tmp_path, on_image=second)
    assert refused == [f"{tmp_path}: another process is writing to it; wait for its end, or choose another --out"]
    assert contents(tmp_path) == contents(made)


def test_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    assert message(ValueError, lambda: pack(SPACE, HOG, Memory(["a", "b", "a"]), tmp_path, resolution=SIDE)) == (
        "data: two pictures are called 'a'; pairs are told apart by name"
    )


@part("teacher/loud_pairs")
class LoudConfig(HOGConfig):
    """HOG, with the first token of what is not grey at ``level``."""

    level: float = 1e5

    def build(self) -> Any:
        level = self.level

        class Loud(type(super().build())):
            def describe(self, images: torch.Tensor) -> TeacherOutput:
                found = super().describe(images)
                found.patches[images.flatten(1).std(1) > 0, 0] = torch.tensor(level)
                return found

        return Loud(patch=self.patch, cells=self.cells, orientations=self.orientations, clip=self.clip)


def test_values_beyond_float16_are_refused(pictures: Path, tmp_path: Path) -> None:
    loud = LoudConfig(patch=8)
    assert message(PairsError, lambda: make(pictures, tmp_path / "a", loud)) == (
        "0.png#central: its features reach 1e+05, which is not finite in float16; take --dtype float32"
    )
    assert not list((tmp_path / "a").glob("*.npy"))
    assert make(pictures, tmp_path / "b", loud, dtype="float32").read([0])[1].patches.amax() > 9e4
    assert message(PairsError, lambda: make(pictures, tmp_path / "c", LoudConfig(patch=8, level=1e39))) == (
        "0.png#central: its features reach inf, which is not finite in float16; look whether the weights are damaged"
    )


def test_a_picture_that_cannot_be_read_stops_or_is_passed_over(pictures: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "pairs"
    shutil.copytree(pictures, data)
    (data / "4.png").write_bytes(b"no picture")
    text = message(ImageReadError, lambda: make(data, out))
    assert text.startswith(f"{data / '4.png'}: cannot be read as an image (no known image format)")
    assert len(list(out.glob("pairs-*.json"))) == 1
    said: list[str] = []
    found = make(data, out, say=said.append, on_error="skip")
    assert said == ["skipped 4.png: no known image format"]
    assert len(found) == 14 and "4.png" not in found.pictures and found.names[8] == "5.png#central"
    alone = make(pictures, tmp_path / "all")
    assert torch.equal(found.read([8])[0], alone.read([10])[0])
    found.check(verify=True)


def test_a_shard_of_which_no_picture_can_be_read_has_no_rows(pictures: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    for name in ("0.png", "1.png", "2.png"):
        (data / name).write_bytes(b"no picture")
    found = make(data, tmp_path / "pairs", on_error="skip")
    assert len(found) == 10 and found.names[0] == "3.png#central" and found.read([0, 9])[0].isfinite().all()
    found.check(verify=True)


# --- a full disk --------------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_and_a_rerun_goes_on(
    pictures: Path, tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = pair_shards.write_pair_shard, []

    def full(folder: Path, number: int, *arguments: Any) -> None:
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        real(folder, number, *arguments)
        written.append(number)

    with monkeypatch.context() as patch:
        patch.setattr("latelier.training.packing.write_pair_shard", full)
        text = message(FeatureCacheError, lambda: make(pictures, tmp_path))
    assert text == (
        f"{tmp_path}: pairs-00002.json cannot be written (No space left on device); 2 shards are there and stay good; "
        "make room and run the same command again, which goes on with the next"
    )
    before = times(tmp_path)
    make(pictures, tmp_path)
    assert contents(tmp_path) == contents(made) and before.items() <= times(tmp_path).items()


def test_a_write_that_the_kernel_refuses_leaves_nothing_half_written(
    pictures: Path, tmp_path: Path, made: Path
) -> None:
    """The limit on the size of a file takes the place of a disk that is full in the middle of a shard."""
    told, folder = tmp_path / "told", tmp_path / "pairs"
    sizes = {path.name.partition("-")[0]: path.stat().st_size for path in made.glob("*00000.npy")}
    limit = sizes["thumbnails"] - 1000

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        told.write_text(message(FeatureCacheError, lambda: make(pictures, folder)))

    assert all(size < limit for name, size in sizes.items() if name != "thumbnails")
    assert not killed(in_a_child(work))
    assert told.read_text() == (
        f"{folder}: pairs-00000.json cannot be written (File too large); 0 shards are there and stay good; make "
        "room and run the same command again, which goes on with the next"
    )
    assert not [name for name in contents(folder) if name.endswith(".part") or name.startswith("thumbnails")]
    make(pictures, folder)
    assert contents(folder) == contents(made)
