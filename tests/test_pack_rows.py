"""A row of a pack follows from the picture's name and the settings: no order, batch or shard changes it."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from packs import HOG, SIDE, SPACE, ColourSpaceConfig, contents, make, message

from latelier.blocks import address
from latelier.families import PairFolder, PairsError
from latelier.training import FolderSource, list_images, pack

SAMPLED = ColourSpaceConfig(sampled=True)
VIEWS: dict[str, dict[str, Any]] = {"central": {}, "flips": {"flips": True}, "crops": {"crops": 2, "seed": 3}}


def rows_of(folder: PairFolder) -> dict[str, bytes]:
    """Digests of all that is stored of each row, by its name."""
    found = {}
    for row, name in enumerate(folder.names):
        latents, features = folder.read([row])
        small = folder.thumbnail(row)
        assert features.cls is not None and small is not None
        arrays = (latents, features.patches, features.cls, small)
        found[name] = hashlib.sha256(b"".join(array.numpy().tobytes() for array in arrays)).digest()
    return found


@pytest.fixture(scope="module", params=VIEWS)
def reference(
    request: pytest.FixtureRequest, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, bytes]]:
    options = VIEWS[request.param]
    return options, rows_of(make(pictures, tmp_path_factory.mktemp("reference") / "pack", SAMPLED, **options))


@given(data=st.data(), batch=st.integers(1, 9), shard=st.integers(1, 9))
@settings(max_examples=6)
def test_rows_follow_from_the_names_of_pictures(
    data: st.DataObject,
    batch: int,
    shard: int,
    reference: tuple[dict[str, Any], dict[str, bytes]],
    pictures: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    options, expected = reference
    names = data.draw(st.lists(st.sampled_from(list_images(pictures)), min_size=1, unique=True))
    source, out = FolderSource(pictures, names), tmp_path_factory.mktemp("rows")
    fields: dict[str, Any] = {"resolution": SIDE, "batch": batch, "shard_pictures": shard, "device": "cpu"} | options
    found = rows_of(pack(SAMPLED, HOG, source, out, **fields))
    assert {name.partition("#")[0] for name in found} == set(names)
    assert found.items() <= expected.items()


def test_a_picture_that_cannot_be_read_changes_no_other_row(pictures: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(pictures, tmp_path / "data"))
    expected = rows_of(make(data, tmp_path / "whole", SAMPLED, flips=True))
    for name in ("0.png", "4.png"):
        (data / name).write_bytes(b"no picture")
    found = rows_of(make(data, tmp_path / "less", SAMPLED, flips=True, on_error="skip"))
    assert len(found) == 12 and found.items() <= expected.items()


def test_a_sampled_posterior_has_the_noise_of_its_name_and_its_spread(pictures: Path, tmp_path: Path) -> None:
    sampled = make(pictures, tmp_path / "a", SAMPLED, dtype="float32", flips=True, seed=5)
    rows = range(len(sampled))
    assert sampled.latent_spec.posterior == "sample"
    mode = make(pictures, tmp_path / "b", dtype="float32", flips=True).read(rows)[0]
    noise = torch.stack(
        [
            torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(address(5, "posterior", name)))
            for name in sampled.names
        ]
    )
    torch.testing.assert_close(sampled.read(rows)[0], mode + 2 * 0.1 * noise)


def test_each_image_can_have_a_seed_of_its_own() -> None:
    space, images = SAMPLED.build(), torch.rand(3, 3, 16, 24) * 2 - 1
    together = space.encode(images, seed=[4, 2**62, 4])
    for row, seed in enumerate((4, 2**62, 4)):
        assert torch.equal(together[row : row + 1], space.encode(images[row : row + 1], seed=seed))
    assert not torch.equal(space.encode(images[:1], seed=[1]), space.encode(images[:1], seed=[2]))
    assert message(ValueError, lambda: space.encode(images, seed=[1, 2])) == (
        "colours: seed: takes a number, or one for each of 3 images, got 2"
    )
    assert space.encode(images[:0], seed=[]).shape == (0, 4, 2, 3)
    assert torch.equal(SPACE.build().encode(images, seed=[1]), SPACE.build().encode(images))


def test_arrays_of_a_shard_that_is_no_longer_planned_go(pictures: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(pictures, tmp_path / "data"))
    out = tmp_path / "pack"
    make(data, out)
    (out / "notes-00002.npy").write_bytes(b"of somebody else")
    (out / "pairs-00002.json").unlink()
    for name in ("6.png", "7.png"):
        (data / name).unlink()
    assert make(data, out).pictures == ["0.png", "1.png", "2.png", "3.png", "4.png", "5.png"]
    assert [name for name in contents(out) if "00002" in name] == ["notes-00002.npy"]


def test_a_folder_that_cannot_be_made_or_is_in_use_is_an_error_of_pairs(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert message(PairsError, lambda: make(pictures, tmp_path / "file" / "pack")) == (
        f"{tmp_path / 'file' / 'pack'}: the folder cannot be written (Not a directory); 0 shards are there and stay "
        "good; make room and run the same command again, which goes on with the next"
    )
    refused: list[str] = []

    def second(*_: object) -> None:
        if not refused:
            refused.append(message(PairsError, lambda: make(pictures, tmp_path / "pack")))

    make(pictures, tmp_path / "pack", on_image=second)
    assert refused == [
        f"{tmp_path / 'pack'}: another process is writing to it; wait for its end, or choose another --out"
    ]
