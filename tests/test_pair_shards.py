"""Files of pairs: what is in them, and that damage is found and named."""

import json
import pickle
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from packs import HOG, SIDE, SPACE, contents, make, message

from latelier.blocks import HOGConfig, PairSource
from latelier.families import PairFolder, PairLayout, PairsError, pair_shards, pairs
from latelier.training import PairsConfig

LAYOUT = PairLayout(
    space=SPACE,
    latent_spec=SPACE.build().spec,
    teacher=HOG,
    teacher_spec=HOG.build().spec,
    resolution=SIDE,
    views=("central",),
    seed=0,
    dtype="float16",
    latent_shape=(4, 4, 4),
    grid=(4, 4),
    features=9,
    has_cls=True,
    has_thumbnails=True,
    shard_pictures=3,
)
AGAIN = "`latelier pack` with the same arguments"
ANEW = "makes it anew and leaves the others as they are"
CHANGED = "has other bytes than were written (its SHA-256 differs)"


def drawn(layout: PairLayout, rows: int, *, seed: int = 0) -> dict[str, Any]:
    """Arrays of a shard with numbers of a generator."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, 256, shape).astype(dtype) if dtype == "uint8" else rng.normal(size=shape).astype(dtype)
        for name, (dtype, shape) in layout.shapes(rows).items()
    }


@pytest.fixture(scope="module")
def made(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole pack of eight pictures in shards of three; tests that change one change a copy."""
    folder = tmp_path_factory.mktemp("made") / "pack"
    make(pictures, folder)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "pack"))


def array(folder: Path, name: str, number: int) -> Path:
    return folder / LAYOUT.file(name, number)


# --- what is in them ----------------------------------------------------------------------------------------------


@given(
    count=st.integers(1, 8),
    shard=st.integers(1, 5),
    views=st.integers(1, 3),
    dtype=st.sampled_from(["float16", "float32"]),
    cls=st.booleans(),
    thumbnails=st.booleans(),
    data=st.data(),
)
@settings(max_examples=12)
def test_what_was_written_is_read_in_any_order(
    count: int,
    shard: int,
    views: int,
    dtype: str,
    cls: bool,
    thumbnails: bool,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("pack")
    names = tuple(f"{i}.png" for i in range(count))
    broken = set(data.draw(st.lists(st.sampled_from(names), max_size=count, unique=True)))
    layout = replace(
        LAYOUT,
        views=tuple(f"crop-{i}" for i in range(views)),
        dtype=dtype,
        has_cls=cls,
        has_thumbnails=thumbnails,
        shard_pictures=shard,
    )
    planned = [names[first : first + shard] for first in range(0, count, shard)]
    written: dict[str, list[Any]] = {name: [] for name in layout.shapes(0)}
    for number, chunk in enumerate(planned):
        unreadable = {name: "why" for name in chunk if name in broken}
        arrays = drawn(layout, (len(chunk) - len(unreadable)) * views, seed=number)
        pair_shards.write_pair_shard(folder, number, layout, chunk, arrays, unreadable)
        for name, values in arrays.items():
            written[name] += list(values)
    pairs.write_index(folder, layout, [pairs.PlannedShard(number, chunk) for number, chunk in enumerate(planned)])
    pack = PairFolder(folder)
    pack.check(verify=True)
    assert len(pack) == (count - len(broken)) * views
    there = [name for name in names if name not in broken]
    assert pack.pictures == [name for name in there for _ in range(views)]
    assert pack.names == (there if views == 1 else [f"{name}#crop-{i}" for name in there for i in range(views)])
    assert isinstance(PairsConfig(path=str(folder)).everything(), PairSource)
    if not len(pack):
        return
    rows = data.draw(st.lists(st.integers(0, len(pack) - 1), min_size=1, max_size=20))
    latents, features = pack.read(rows)
    assert latents.dtype == features.patches.dtype == torch.float32 and features.grid == (4, 4)
    assert (features.cls is not None) == cls and features.registers is None
    for place, row in enumerate(rows):
        assert np.array_equal(latents[place].numpy(), written["latents"][row].astype("float32"))
        assert np.array_equal(features.patches[place].numpy(), written["features"][row].astype("float32"))
        if features.cls is not None:
            assert np.array_equal(features.cls[place].numpy(), written["cls"][row].astype("float32"))
        small = pack.thumbnail(row)
        assert (small is not None) == thumbnails
        if small is not None:
            assert small.dtype == torch.uint8 and np.array_equal(small.numpy(), written["thumbnails"][row])


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        pair_shards.write_pair_shard(folder, 7, LAYOUT, ["0", "1"], drawn(LAYOUT, 1), {"1": "why"})
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != {}


def test_a_pack_goes_to_workers_without_what_it_has_mapped(made: Path) -> None:
    pack = PairFolder(made)
    pack.read([0, 7])
    pickled = pickle.dumps(pack)
    assert len(pickled) < 20_000
    assert torch.equal(pickle.loads(pickled).read([7])[0], pack.read([7])[0])


# --- damage -------------------------------------------------------------------------------------------------------


def test_a_file_of_other_rows_or_another_type_is_named(copied: Path) -> None:
    file = array(copied, "latents", 0)
    np.save(file, np.zeros((2, 4, 4, 4), np.float16))
    start, end = f"{copied / 'pairs-00000.json'}: {file.name}: holds ", f"; {AGAIN} {ANEW}"
    assert message(PairsError, lambda: PairFolder(copied)) == (
        f"{start}float16 [2, 4, 4, 4], not float16 [3, 4, 4, 4]{end}"
    )
    np.save(file, np.zeros((3, 4, 4, 4), np.float32))
    assert message(PairsError, lambda: PairFolder(copied)) == (
        f"{start}float32 [3, 4, 4, 4], not float16 [3, 4, 4, 4]{end}"
    )


def test_no_pickle_is_read(copied: Path) -> None:
    file = array(copied, "latents", 0)
    np.save(file, np.array([{"a": print}], dtype=object), allow_pickle=True)
    assert "is no whole .npy file (" in message(PairsError, lambda: PairFolder(copied))


def test_a_flipped_bit_of_the_head_of_an_array_is_named_whatever_numpy_says_of_it(copied: Path) -> None:
    """Its parser ends in errors of several kinds there, of which ``tokenize.TokenError`` is no ``ValueError``."""
    file, rng, refused = array(copied, "features", 1), random.Random(0), 0
    whole = file.read_bytes()
    assert whole[128:] == np.load(file).tobytes()
    for place in [*range(0, 128, 3), *range(100, 128)]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.randrange(8)
        file.write_bytes(flipped)
        text = message(PairsError, lambda: PairFolder(copied).check(verify=True))
        assert text.startswith(f"{copied / 'pairs-00001.json'}: {file.name}: ") and "\n" not in text, place
        refused += "is no whole .npy file (" in text
    assert refused > 40


def _without(*names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda content: {name: value for name, value in content.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_without("own_sha256"), r"is no sidecar of pairs \(KeyError\('own_sha256'\)\)"),
        (_without("layout"), r"describes no pack of pairs \(.*\); make the pack anew"),
        (lambda content: content | {"planned": ["3.png", "4.png", "6.png"]}, re.escape(CHANGED)),
        (lambda content: content | {"unreadable": {"3.png": "why"}}, re.escape(CHANGED)),
        (lambda content: content | {"sha256": {}}, re.escape(CHANGED)),
        (lambda content: [content], "holds list; a config is a JSON object"),
    ],
)
def test_a_damaged_sidecar_is_named(change: Callable[[Any], Any], problem: str, copied: Path) -> None:
    path = copied / "pairs-00001.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    text = message(PairsError, lambda: PairFolder(copied))
    assert re.fullmatch(f"{re.escape(str(path))}: {problem}; {re.escape(AGAIN)} {ANEW}", text)


def test_a_truncated_sidecar_is_named(copied: Path) -> None:
    path = copied / "pairs-00001.json"
    for rest in (0, 100, -3):
        whole = path.read_text()
        path.write_text(whole[:rest])
        text = message(PairsError, lambda: PairFolder(copied))
        assert text.startswith(f"{path}: is no JSON (") and text.endswith(f"; {AGAIN} {ANEW}")
        path.write_text(whole)


def test_an_index_without_shards_is_named(copied: Path) -> None:
    content = json.loads((copied / "pairs.json").read_text())
    (copied / "pairs.json").write_text(json.dumps(content | {"shards": [{"number": 0}]}))
    assert message(PairsError, lambda: PairFolder(copied)) == (
        f"{copied / 'pairs.json'}: lists no shards (KeyError('pictures')); delete it, and {AGAIN} rebuilds it from the "
        "shards"
    )


# --- of something else --------------------------------------------------------------------------------------------


def test_a_shard_of_another_teacher_in_the_folder_is_refused_with_both_said(
    pictures: Path, copied: Path, tmp_path: Path
) -> None:
    make(pictures, tmp_path / "other", teacher=HOGConfig(patch=8, cells=1, clip=0.3))
    shutil.copy(tmp_path / "other" / "pairs-00001.json", copied)
    assert message(ValueError, lambda: PairFolder(copied)) == (
        f"{copied / 'pairs-00001.json'}: is of another teacher (model: 'hog(cells=1, orientations=9, clip=0.3)', not "
        "'hog(cells=1, orientations=9, clip=0.2)'); take the teacher that it was made with, or make it anew"
    )
