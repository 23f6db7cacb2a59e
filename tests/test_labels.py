"""Labelled images: the digits, and folders split by a hash or by hand."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from sklearn.datasets import load_digits

from latelier.blocks import LabelledSource, LabelsConfig, PartError, decode, encode, parts
from latelier.evaluation import DigitsConfig
from latelier.training import FolderDataConfig, LabelledFolderConfig


def folder(root: Path, *names: str) -> str:
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (12 + i, 9), (i, 0, 0)).save(path)
    return str(root)


def names(source: LabelledSource) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def labelled(source: LabelledSource) -> dict[str, str]:
    return {source.name(i): source.classes[source.label(i)] for i in range(len(source))}


def many(count: int, *classes: str) -> Sequence[str]:
    return [f"{name}/{i:02d}.png" for name in classes for i in range(count)]


# --- digits ---------------------------------------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn_in_their_order() -> None:
    data: Any = load_digits()
    train, test = DigitsConfig(side=8).training(), DigitsConfig(side=8).held_out()
    assert (len(train), len(test), train.classes) == (1437, 360, tuple("0123456789"))
    assert [train.label(i) for i in range(1437)] + [test.label(i) for i in range(360)] == data.target.tolist()
    for source, first in ((train, 0), (test, 1437)):
        pixels = np.asarray(source.read(5))
        assert pixels.shape == (8, 8, 3)
        np.testing.assert_array_equal(pixels[:, :, 1], np.rint(data.images[first + 5] * 255 / 16))
        assert source.name(5) == f"digits/{first + 5:04d}"


def test_digits_are_enlarged_to_the_side_that_is_asked_for() -> None:
    source = DigitsConfig(side=40).training()
    assert source.size(0) == (40, 40)
    assert source.read(0).size == (40, 40)
    assert source.read(0).mode == "RGB"
    assert isinstance(source, LabelledSource)


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from latelier.evaluation import labels

    labels._digits.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    message = 'labels/digits: needs scikit-learn; pip install "latelier[probes]"'
    with pytest.raises(ImportError, match=f"^{re.escape(message)}$"):
        DigitsConfig().held_out()


# --- folders --------------------------------------------------------------------------------------------------------


def test_classes_are_the_sub_folders_and_each_is_split(tmp_path: Path) -> None:
    path = folder(tmp_path, *many(20, "cat", "ant"), "bee/deep/a.png", "bee/b.png")
    config = LabelledFolderConfig(path=path)
    train, test = config.training(), config.held_out()
    assert train.classes == test.classes == ("ant", "bee", "cat")
    assert {*names(train)} | {*names(test)} == {*many(20, "cat", "ant"), "bee/deep/a.png", "bee/b.png"}
    assert not {*names(train)} & {*names(test)}
    for source in (train, test):
        assert names(source) == sorted(names(source))
        assert labelled(source) == {name: name.split("/")[0] for name in names(source)}
        assert {*labelled(source).values()} == {"ant", "bee", "cat"}


def test_each_class_is_split_by_the_hash_that_splits_data(tmp_path: Path) -> None:
    path = folder(tmp_path, *many(30, "a", "b"))
    held_out = names(LabelledFolderConfig(path=path, held_out_share=0.3).held_out())
    data = FolderDataConfig(path=path, held_out_share=0.3).held_out()
    assert held_out == [data.name(i) for i in range(len(data))]
    assert 5 < len(held_out) < 30


def test_pictures_that_are_added_move_no_others(tmp_path: Path) -> None:
    path = folder(tmp_path, *many(30, "a", "b"))
    before = names(LabelledFolderConfig(path=path).held_out())
    folder(tmp_path, *[f"c/{i}.png" for i in range(9)], "a/new.png")
    assert {*before} <= {*names(LabelledFolderConfig(path=path).held_out())}


def test_folders_train_and_test_split_by_hand(tmp_path: Path) -> None:
    path = folder(tmp_path, "train/b/1.png", "train/a/2.png", "test/a/3.png", "test/b/1.png", "test/b/4.png")
    config = LabelledFolderConfig(path=path)
    assert labelled(config.training()) == {"a/2.png": "a", "b/1.png": "b"}
    assert labelled(config.held_out()) == {"a/3.png": "a", "b/1.png": "b", "b/4.png": "b"}
    assert config.training().read(1).width == 12  # train's 1.png, not test's
    assert config.held_out().read(1).width == 15


def test_pictures_are_cut_to_a_square_when_a_side_is_given(tmp_path: Path) -> None:
    path = folder(tmp_path, *many(3, "a", "b"))
    native, square = (LabelledFolderConfig(path=path, side=side).training() for side in (None, 7))
    assert (native.size(0)[0], native.read(0).height) == (9, 9)
    assert (square.size(0), square.read(0).size) == ((7, 7), (7, 7))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a/1.png", "2.png", "b/3.png"], "labels.path: '2.png' in '{}' belongs to no class; put it into a sub-folder"),
        (["a/1.png", "a/2.png"], "labels.path: '{}' has one class, 'a'; it takes two at least"),
        (
            ["a/1.png", "a/2.png", "b/3.png"],
            "labels.path: the class 'b' has one picture, and none can be held out; add some, or leave the class out",
        ),
        (["train/a/1.png", "test/a/2.png"], "labels.path: '{}/train' has one class, 'a'; it takes two at least"),
        (
            ["train/a/1.png", "train/b/1.png", "train/c/1.png", "test/a/2.png", "test/b/2.png"],
            "labels.path: the class 'c' has pictures in 'train' and none in 'test'; each class needs some in both",
        ),
        (
            ["train/a/1.png", "train/b/1.png", "test/c/1.png", "test/a/2.png", "test/b/2.png"],
            "labels.path: the class 'c' has pictures in 'test' and none in 'train'; each class needs some in both",
        ),
    ],
)
def test_folders_that_do_not_tell_classes_apart_are_refused(tmp_path: Path, files: list[str], message: str) -> None:
    config = LabelledFolderConfig(path=folder(tmp_path, *files))
    for part_of in (config.training, config.held_out):
        with pytest.raises(PartError, match=f"^{re.escape(message.format(tmp_path))}$"):
            part_of()


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    for path, message in (
        ("", "labels.path: is not given; name a folder that has a sub-folder for each class"),
        (str(tmp_path), f"labels.path: no images under '{tmp_path}'; it takes "),
    ):
        with pytest.raises(PartError, match=f"^{re.escape(message)}"):
            LabelledFolderConfig(path=path).training()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DigitsConfig(side=7), "config.side: must be at least 8, got 7"),
        (lambda: LabelledFolderConfig(side=0), "config.side: must be at least 1, got 0"),
        (
            lambda: LabelledFolderConfig(held_out_share=1.0),
            "config.held_out_share: must lie between 0 and 1, got 1.0",
        ),
    ],
)
def test_settings_are_checked(make: Any, message: str) -> None:
    with pytest.raises(PartError, match=f"^{re.escape(message)}$"):
        make()


def test_labels_travel_as_json_and_have_short_forms() -> None:
    assert {cls.kind for cls in parts(LabelsConfig)} >= {"labels/digits", "labels/folder"}
    for config in (DigitsConfig(side=32), LabelledFolderConfig(path="/x", side=9)):
        assert decode(encode(config), LabelsConfig) == config
    assert decode("digits:32", LabelsConfig) == DigitsConfig(side=32)
    assert decode("folder:/data/x", LabelsConfig) == LabelledFolderConfig(path="/data/x")
