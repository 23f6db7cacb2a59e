"""Pairs as data: what is held out, and the `.npy` files of somebody else."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from packs import HOG, SIDE, SPACE, make, message

from latelier.blocks import (
    LatentScaleWarning,
    PairSource,
    PartError,
    decode,
    encode,
    latent_space,
    spec_of,
)
from latelier.families import PairFolder
from latelier.training import NpyPairsConfig, PairsConfig


def names_of(source: PairSource) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def pictures_of(names: Sequence[str]) -> set[str]:
    return {name.partition("#")[0] for name in names}


# --- a pack -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three crops of each of eight pictures."""
    folder = tmp_path_factory.mktemp("packed") / "pack"
    make(pictures, folder, crops=3)
    return folder


FEWER = settings(max_examples=12)


@given(share=st.floats(0.001, 0.999))
@FEWER
def test_no_picture_is_on_both_sides_and_every_row_is_on_one(share: float, packed: Path) -> None:
    data = PairsConfig(path=str(packed), held_out_share=share)
    training, held_out = names_of(data.training()), names_of(data.held_out())
    assert training and held_out
    assert not pictures_of(training) & pictures_of(held_out)
    everything = names_of(data.everything())
    assert sorted(training + held_out) == sorted(everything) and len(everything) == 24
    assert len(training) % 3 == len(held_out) % 3 == 0
    more = PairsConfig(path=str(packed), held_out_share=min(0.9995, share * 1.5))
    assert set(held_out) <= set(names_of(more.held_out()))


def test_rows_of_one_side_are_those_of_the_pack(packed: Path) -> None:
    pack, data = PairFolder(packed), PairsConfig(path=str(packed), held_out_share=0.3)
    for source in (data.training(), data.held_out()):
        assert isinstance(source, PairSource)
        assert source.latent_spec == SPACE.build().spec and source.teacher_spec == HOG.build().spec
        assert (source.resolution, source.grid, source.features) == (SIDE, (4, 4), 9)
        assert source.latent_shape == (4, 4, 4) and source.has_cls
        rows = [pack.names.index(name) for name in names_of(source)]
        order = list(range(len(source)))[::-1]
        latents, features = source.read(order)
        expected, described = pack.read(rows[::-1])
        assert torch.equal(latents, expected) and torch.equal(features.patches, described.patches)
        assert features.cls is not None and described.cls is not None and torch.equal(features.cls, described.cls)
        small, theirs = source.thumbnail(1), pack.thumbnail(rows[1])
        assert small is not None and theirs is not None and torch.equal(small, theirs)


def test_what_is_held_out_stays_so_whatever_the_order_and_the_size_of_shards(pictures: Path, tmp_path: Path) -> None:
    make(pictures, tmp_path / "a", flips=True)
    make(pictures, tmp_path / "b", flips=True, shard_pictures=5, batch=2)
    sides = [names_of(PairsConfig(path=str(tmp_path / name), held_out_share=0.3).held_out()) for name in "ab"]
    assert sides[0] == sides[1] and len(sides[0]) % 2 == 0


def test_patterns_choose_what_is_held_out(packed: Path) -> None:
    data = PairsConfig(path=str(packed), held_out_names=("0*", "[67].png"))
    assert pictures_of(names_of(data.held_out())) == {"0.png", "6.png", "7.png"}
    assert pictures_of(names_of(data.training())) == {"1.png", "2.png", "3.png", "4.png", "5.png"}


@pytest.mark.parametrize(("patterns", "count"), [(("a*", "*.PNG"), 0), (("*",), 8), (("*.png", "0*"), 8)])
def test_patterns_that_match_nothing_or_everything_are_refused(
    patterns: tuple[str, ...], count: int, packed: Path
) -> None:
    data = PairsConfig(path=str(packed), held_out_names=patterns)
    for side in (data.training, data.held_out):
        assert message(PartError, side) == (
            f"data.held_out_names: the patterns match {count} of 8 pictures, such as '0.png'; they must match some and "
            "leave some"
        )


def test_a_pack_of_one_picture_cannot_be_divided(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.png").write_bytes((pictures / "0.png").read_bytes())
    make(tmp_path / "data", tmp_path / "pack", crops=4)
    data = PairsConfig(path=str(tmp_path / "pack"))
    assert message(PartError, data.training) == (
        "data.path: has 1 picture, of which none can be held out; it takes two at least"
    )
    assert len(data.everything()) == 4


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_that_leaves_nothing_is_refused(share: float) -> None:
    problem = f"held_out_share: must lie between 0 and 1, got {share}"
    assert problem in message(ValueError, lambda: PairsConfig(path="pack", held_out_share=share))
    assert problem in message(
        ValueError, lambda: NpyPairsConfig(latents="a", features="b", space=SPACE, held_out_share=share)
    )


# --- files of somebody else ---------------------------------------------------------------------------------------


def files(folder: Path, rows: int = 40, *, cls: bool = False, dtype: str = "float16", **changes: Any) -> NpyPairsConfig:
    """Raw latents of the space of colours, of images of 32 pixels, and features of 4 x 4 tokens."""
    rng = np.random.default_rng(0)
    arrays = {"latents": (rows, 4, 4, 4), "features": (rows, 16, 9)} | ({"cls": (rows, 9)} if cls else {})
    for name, shape in arrays.items():
        np.save(folder / f"{name}.npy", rng.normal(size=shape, scale=0.6).astype(dtype))
    fields: dict[str, Any] = {name: str(folder / f"{name}.npy") for name in arrays}
    return NpyPairsConfig(**(fields | {"space": SPACE, "resolution": SIDE} | changes))


def test_raw_latents_are_normalised_as_they_are_read_and_normalised_ones_are_not(tmp_path: Path) -> None:
    raw = files(tmp_path, cls=True)
    stored = np.load(raw.latents)
    source = raw.everything()
    assert isinstance(source, PairSource)
    latents, features = source.read([7, 3, 7])
    assert latents.dtype == features.patches.dtype == torch.float32
    expected = torch.from_numpy(stored[[7, 3, 7]].astype(np.float32))
    assert torch.equal(latents, expected * 2) and spec_of(latents) == SPACE.build().spec
    assert np.array_equal(features.patches.numpy(), np.load(raw.features)[[7, 3, 7]].astype(np.float32))
    assert features.cls is not None and features.grid == (4, 4)
    assert np.array_equal(features.cls.numpy(), np.load(raw.cls)[[7, 3, 7]].astype(np.float32))
    assert (source.latent_shape, source.resolution, source.grid) == ((4, 4, 4), SIDE, (4, 4))
    assert (source.features, source.has_cls, source.teacher_spec) == (9, True, None)
    assert source.latent_spec == SPACE.build().spec and source.thumbnail(0) is None
    plain = replace(raw, stored="normalised", cls="").everything()
    assert torch.equal(plain.read([7, 3, 7])[0], expected)
    assert not plain.has_cls and plain.read([0])[1].cls is None
    assert names_of(plain)[:3] == ["row-0", "row-1", "row-2"]


def test_files_are_mapped_and_not_read(tmp_path: Path) -> None:
    data = files(tmp_path, 500)
    shape = (500, 256, 16_384)  # 4.2 GB, of which the disk holds nothing
    np.lib.format.open_memmap(tmp_path / "features.npy", mode="w+", dtype="float16", shape=shape)
    held_out = data.held_out()
    assert held_out.read([0])[1].patches.shape == (1, 256, 16_384) and held_out.grid == (16, 16)


def test_one_percent_of_the_cards_rows_is_about_what_it_held_out_and_stays_when_rows_are_added(tmp_path: Path) -> None:
    kept: list[set[str]] = []
    for rows in (220_000, 221_000):
        np.lib.format.open_memmap(tmp_path / "latents.npy", mode="w+", dtype="float16", shape=(rows, 4, 1, 1))
        np.lib.format.open_memmap(tmp_path / "features.npy", mode="w+", dtype="float16", shape=(rows, 1, 2))
        data = NpyPairsConfig(
            latents=str(tmp_path / "latents.npy"), features=str(tmp_path / "features.npy"), space=SPACE, resolution=8
        )
        with pytest.warns(LatentScaleWarning):  # zeros
            kept.append(set(names_of(data.held_out())))
    assert abs(len(kept[0]) - 2_200) < 150
    assert kept[0] == {name for name in kept[1] if int(name[4:]) < 220_000}
    quarters = [sum(int(name[4:]) // 55_000 == quarter for name in kept[0]) for quarter in range(4)]
    assert min(quarters) > 450  # not the last rows


@given(rows=st.integers(2, 60), share=st.floats(0.001, 0.999))
def test_every_row_is_on_one_side_and_no_side_is_empty(
    rows: int, share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = files(tmp_path_factory.mktemp("rows"), rows, held_out_share=share)
    training, held_out = names_of(data.training()), names_of(data.held_out())
    assert training and held_out
    assert sorted(training + held_out) == sorted(f"row-{row}" for row in range(rows))


def test_raw_latents_of_a_packed_space_are_packed_as_they_are_read(tmp_path: Path) -> None:
    statistics = tmp_path / "statistics.safetensors"
    space = latent_space("flux2", random_init=True)
    raw = torch.randn(6, 32, 8, 8)
    space.fit([raw]).save_statistics(statistics)
    data = files(tmp_path, 6, space=replace(space.config, statistics=str(statistics)), resolution=64)
    np.save(data.latents, raw.numpy())
    source = data.everything()
    assert source.latent_shape == (128, 4, 4)
    assert torch.equal(source.read([1, 5])[0], space.normalise(raw[[1, 5]]))
    assert source.latent_spec == space.spec
    assert message(PartError, replace(data, stored="normalised").everything) == (
        f"data.latents: normalised latents of {space.name!r} for images of 64 pixels are [128, 4, 4] a row, got "
        "[32, 8, 8]; name their space, resolution and form"
    )


def test_latents_that_look_raw_are_warned_of(tmp_path: Path) -> None:
    data = files(tmp_path, stored="normalised")
    np.save(data.latents, 5 * np.random.default_rng(0).normal(size=(40, 4, 4, 4)))
    with pytest.warns(LatentScaleWarning, match=re.escape(f"{data.latents}: 4 of 4 channels of these latents of ")):
        data.everything()


# --- what is refused ----------------------------------------------------------------------------------------------


def saved(path: Path, shape: tuple[int, ...], dtype: str = "float16") -> str:
    np.save(path, np.ones(shape, dtype))
    return str(path)


@pytest.mark.parametrize(
    ("file", "shape", "problem"),
    [
        (
            "latents",
            (40, 3, 4, 4),
            "data.latents: raw latents of 'colours' for images of 32 pixels are [4, 4, 4] a row, got [3, 4, 4]; name "
            "their space, resolution and form",
        ),
        (
            "latents",
            (40, 4, 8, 8),
            "data.latents: raw latents of 'colours' for images of 32 pixels are [4, 4, 4] a row, got [4, 8, 8]; name "
            "their space, resolution and form",
        ),
        ("features", (39, 16, 9), "data.features: must have a row for each of the 40 latents, got 39"),
        ("features", (40, 15, 9), "data.features: must have a square number of tokens a row, got 15"),
        ("cls", (41, 9), "data.cls: must have a row for each of the 40 latents, got 41"),
        ("cls", (40, 8), "data.cls: must have 9 features as patches do, got 8"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(
    file: str, shape: tuple[int, ...], problem: str, tmp_path: Path
) -> None:
    data = files(tmp_path, cls=True)
    saved(tmp_path / f"{file}.npy", shape)
    assert message(PartError, data.everything) == problem


@pytest.mark.parametrize(
    ("file", "shape", "dtype", "wanted", "got"),
    [
        ("latents", (40, 64), "float16", 4, "float16 [40, 64]"),
        ("latents", (40, 4, 4, 4), "int64", 4, "int64 [40, 4, 4, 4]"),
        ("latents", (0, 4, 4, 4), "float32", 4, "float32 [0, 4, 4, 4]"),
        ("features", (40, 4, 4, 9), "float32", 3, "float32 [40, 4, 4, 9]"),
        ("features", (40, 16, 9), "uint8", 3, "uint8 [40, 16, 9]"),
        ("features", (40, 0, 9), "float16", 3, "float16 [40, 0, 9]"),
        ("cls", (40, 1, 9), "float32", 2, "float32 [40, 1, 9]"),
        ("cls", (40, 9), "complex64", 2, "complex64 [40, 9]"),
    ],
)
def test_arrays_of_another_kind_are_refused(
    file: str, shape: tuple[int, ...], dtype: str, wanted: int, got: str, tmp_path: Path
) -> None:
    data = files(tmp_path, cls=True)
    path = saved(tmp_path / f"{file}.npy", shape, dtype)
    assert message(PartError, data.training) == (
        f"data.{file}: {path}: must hold floating-point rows of {wanted} dimensions in all, got {got}"
    )


def test_files_that_are_no_arrays_are_refused(tmp_path: Path) -> None:
    data = files(tmp_path)
    path = Path(data.latents)
    whole = path.read_bytes()
    for content in (b"", b"no array", whole[:50], whole[:-1], b"PK\x03\x04"):
        path.write_bytes(content)
        text = message(PartError, data.training)
        assert text.startswith(f"data.latents: {path}: is no whole .npy file (") and text.endswith(")")
    with path.open("wb") as file:
        np.savez(file, a=np.ones(3))
    assert message(PartError, data.training).startswith(f"data.latents: {path}: is no whole .npy file (the magic ")
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert message(PartError, data.training).startswith(f"data.latents: {path}: is no whole .npy file (")
    path.unlink()
    assert message(PartError, data.training) == f"data.latents: {path}: no such file"
    path.mkdir()
    assert message(PartError, data.training).startswith(f"data.latents: {path}: is no whole .npy file (")


def test_one_row_cannot_be_divided(tmp_path: Path) -> None:
    assert message(PartError, files(tmp_path, 1).training) == (
        "data.latents: has 1 row, of which none can be held out; it takes two at least"
    )


@pytest.mark.parametrize("resolution", [0, 30, -8])
def test_a_resolution_that_the_space_does_not_take_is_refused(resolution: int) -> None:
    problem = f"resolution: must be divisible by the stride 8 of the latents, got {resolution}"
    assert problem in message(
        ValueError, lambda: NpyPairsConfig(latents="a", features="b", space=SPACE, resolution=resolution)
    )


def test_configs_of_data_go_to_json_and_back(tmp_path: Path) -> None:
    for data in (
        PairsConfig(path="pack", held_out_share=0.02, held_out_names=("a*", "b*")),
        NpyPairsConfig(latents="a.npy", features="b.npy", space=SPACE, stored="normalised", cls="c.npy"),
    ):
        assert decode(encode(data), type(data)) == data
    short = decode(
        {"kind": "data/npy_pairs", "latents": "a", "features": "b", "space": "latent_space/sd"}, NpyPairsConfig
    )
    assert (short.space.channels, short.space.stride, short.resolution, short.stored) == (4, 8, 256, "raw")
