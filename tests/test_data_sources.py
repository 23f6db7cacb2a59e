"""Folders and photographs: which files count, in which order, what is held out, and what is said of broken ones."""

import importlib.util
import pickle
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latelier.blocks import ImageSource, PartError, decode, encode
from latelier.families import images
from latelier.training import sources

Folder = sources.FolderDataConfig


def fill(folder: Path, *names: str, size: tuple[int, int] = (12, 8)) -> Path:
    """Write a picture of (width, height) under each name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", size).save(path)
    return folder


def message(call: Callable[[], object]) -> str:
    with pytest.raises(PartError) as caught:
        call()
    return str(caught.value)


# --- folders ------------------------------------------------------------------------------------------------------


def test_pictures_are_found_at_any_depth_in_the_order_of_their_paths(tmp_path: Path) -> None:
    names = ["B.png", "a/b/c.webp", "a/z.JPG", "a.jpeg", "b/x.png", "\u00e9.png"]
    fill(tmp_path, *names, ".hidden.png", ".thumbnails/d.png", "a/.e.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    assert sources.list_images(tmp_path) == ["B.png", "a.jpeg", "a/b/c.webp", "a/z.JPG", "b/x.png", "\u00e9.png"]


def test_linked_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    fill(tmp_path / "real", "a.png")
    fill(tmp_path / "elsewhere", "b.png")
    (tmp_path / "real" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "real")
    assert sources.list_images(tmp_path / "real") == ["a.png", "linked/b.png"]


def test_a_folder_source_gives_names_sizes_and_pictures(tmp_path: Path) -> None:
    fill(tmp_path, "a/b.png", "c.png")
    source = sources.FolderSource(tmp_path, sources.list_images(tmp_path))
    assert isinstance(source, ImageSource)
    assert len(source) == 2 and source.name(0) == "a/b.png" and source.size(0) == (8, 12)
    assert source.read(1).size == (12, 8) and source.read(1).mode == "RGB"
    assert pickle.loads(pickle.dumps(source)).names == source.names


def test_a_path_may_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path / "pictures", "a.png", "b.png")
    data = Folder(path="~/pictures")
    assert data.training().read(0).size == data.held_out().read(0).size == (12, 8)


def test_folders_without_pictures_are_refused_word_for_word(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("no picture")
    kinds = ".avif, .bmp, .jpeg, .jpg, .png, .tif, .tiff, .webp"
    assert message(Folder().training) == (
        "data.path: is not given; name a folder of images (on the command line: --data DIR)"
    )
    assert message(Folder(path=f"{tmp_path}/none").training) == (
        f"data.path: there is no folder '{tmp_path}/none'; name one that holds images"
    )
    assert message(Folder(path=f"{empty}/notes.txt").held_out) == (
        f"data.path: '{empty}/notes.txt' is a file; name the folder that holds it"
    )
    assert message(Folder(path=str(empty)).held_out) == (
        f"data.path: no images under '{empty}'; it takes {kinds} at any depth"
    )
    fill(tmp_path / "full", "a.png")
    assert message(Folder(path=f"{tmp_path}/full", held_out_path=str(empty)).training) == (
        f"data.held_out_path: no images under '{empty}'; it takes {kinds} at any depth"
    )
    assert message(Folder(path=f"{tmp_path}/full").training) == (
        f"data.path: 'a.png' is the only image under '{tmp_path}/full' and none can be held out; "
        "add images, or name another folder in data.held_out_path"
    )


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 2.0])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    said = message(lambda: Folder(held_out_share=share))
    assert said == f"config.held_out_share: must lie between 0 and 1, got {share}"


def test_the_config_goes_through_json() -> None:
    data = Folder(path="x", held_out_share=0.1, on_error="skip")
    assert decode(encode(data)) == data


# --- what is held out ---------------------------------------------------------------------------------------------


def split(monkeypatch: pytest.MonkeyPatch, names: set[str], share: float) -> tuple[set[str], set[str]]:
    monkeypatch.setattr(sources, "list_images", lambda *_, **__: sorted(names))
    data = Folder(path="x", held_out_share=share)
    return set(data.training().names), set(data.held_out().names)


names = st.sets(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=2, max_size=40)


@given(names=names, share=st.floats(0.01, 0.99))
def test_a_split_uses_each_picture_once_and_leaves_no_side_empty(names: set[str], share: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        training, held_out = split(patch, names, share)
    assert training | held_out == names and not training & held_out and training and held_out


def test_the_share_is_kept_and_stays_when_pictures_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {f"{i:04}.png" for i in range(1000)}
    more = few | {f"{i:04}.png" for i in range(1000, 3000)}
    training, held_out = split(monkeypatch, few, 0.05)
    more_training, more_held_out = split(monkeypatch, more, 0.05)
    assert 30 < len(held_out) < 70 and 110 < len(more_held_out) < 190
    assert training <= more_training and held_out <= more_held_out


def test_the_split_is_the_same_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    _, held_out = split(monkeypatch, {f"{i:02}.png" for i in range(60)}, 0.05)
    assert sorted(held_out) == ["26.png", "42.png", "50.png"]


def test_another_folder_is_held_out_whole(tmp_path: Path) -> None:
    fill(tmp_path / "train", "a.png")
    fill(tmp_path / "val", "b.png", "c.png")
    data = Folder(path=f"{tmp_path}/train", held_out_path=f"{tmp_path}/val")
    assert data.training().names == ["a.png"] and data.held_out().names == ["b.png", "c.png"]
    assert data.held_out().read(1).size == (12, 8)


def test_a_held_out_folder_inside_the_other_is_not_trained_on(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "val/b.png", "valley/c.png")
    data = Folder(path=str(tmp_path), held_out_path=f"{tmp_path}/./val")
    assert data.training().names == ["a.png", "valley/c.png"] and data.held_out().names == ["b.png"]
    everything = Folder(path=str(tmp_path), held_out_path=str(tmp_path))
    assert everything.training().names == everything.held_out().names


def test_nothing_left_to_train_on_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, "val/b.png")
    data = Folder(path=str(tmp_path), held_out_path=f"{tmp_path}/val")
    assert message(data.training) == f"data.path: all images under '{tmp_path}' are in '{tmp_path}/val'; add others"


# --- broken files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_broken_file_is_named_and_skippable_only_if_the_settings_say_so(tmp_path: Path, on_error: str) -> None:
    fill(tmp_path, "a.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    data = Folder(path=str(tmp_path), held_out_path=str(tmp_path), on_error=on_error)  # type: ignore[arg-type]
    for read in (data.training().read, data.held_out().size):
        with pytest.raises(images.ImageReadError) as caught:
            read(1)
        assert str(caught.value) == (
            f'{tmp_path}/b.png: cannot be read as an image (no known image format); remove it or pass on_error="skip"'
        )
        assert caught.value.skippable == (on_error == "skip")


# --- photographs --------------------------------------------------------------------------------------------------


def test_all_photographs_are_bundled_and_of_a_useful_size() -> None:
    data = sources.PhotographsConfig()
    for source in (data.training(), data.held_out()):
        assert isinstance(source, ImageSource)
        for index in range(len(source)):
            image = source.read(index)
            assert image.mode == "RGB" and min(image.size) >= 300
            assert source.size(index) == (image.height, image.width)
            assert source.read(index) is image


def test_no_scene_is_both_trained_on_and_held_out() -> None:
    data = sources.PhotographsConfig()
    training, held_out = (
        {name.split(".")[0].split("_")[0] for name in s.names} for s in (data.training(), data.held_out())
    )
    assert len(data.training()) == 12 and len(data.held_out()) == 3
    assert not training & held_out


def test_photographs_without_scikit_image_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError) as caught:
        sources.PhotographsConfig().training()
    assert str(caught.value) == 'data/photographs: needs scikit-image; pip install "latelier[demo]"'
