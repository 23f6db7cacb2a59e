"""Decoding: every kind of file that a folder may hold becomes the upright 8-bit picture that a viewer shows."""

import pickle
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latelier.families import images

ORIENTATION = 0x0112


def noise(height: int, width: int, *, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(height: int, width: int) -> PIL.Image.Image:
    """A picture that lossy formats keep, and of which no two orientations are alike."""
    rows, columns = np.mgrid[0:height, 0:width]
    levels = np.stack([rows * 255 / height, columns * 255 / width, (rows + 2 * columns) * 255 / (height + 2 * width)])
    return PIL.Image.fromarray(levels.transpose(1, 2, 0).astype(np.uint8))


def pixels(path: Path) -> np.ndarray:
    image = images.open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def write_png(path: Path, header: tuple[int, int], samples: np.ndarray, *extra: tuple[bytes, bytes]) -> None:
    """Write a PNG by hand: (depth, colour type), samples [H, W, channels], chunks that stand behind the pixels."""
    height, width = samples.shape[:2]
    data = b"".join(b"\0" + row.tobytes() for row in samples)
    size = struct.pack(">IIBBBBB", width, height, *header, 0, 0, 0)
    chunks = [(b"IHDR", size), (b"IDAT", zlib.compress(data)), *extra, (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_lossless_files_keep_every_pixel(tmp_path: Path, suffix: str) -> None:
    levels = noise(9, 14)
    PIL.Image.fromarray(levels).save(tmp_path / f"a.{suffix}", lossless=True)
    assert (pixels(tmp_path / f"a.{suffix}") == levels).all()


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_files_come_close(tmp_path: Path, suffix: str) -> None:
    smooth(40, 64).save(tmp_path / f"a.{suffix}", quality=95)
    assert np.abs(pixels(tmp_path / f"a.{suffix}") - np.asarray(smooth(40, 64))).mean() < 3


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_to_pixels_and_size(tmp_path: Path, suffix: str, orientation: int) -> None:
    upright = smooth(24, 40)
    lying = {  # how a camera stores the upright picture under each orientation
        1: upright,
        2: upright.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.rotate(180),
        4: upright.transpose(PIL.Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(PIL.Image.Transpose.TRANSPOSE),
        6: upright.rotate(90, expand=True),
        7: upright.transpose(PIL.Image.Transpose.TRANSVERSE),
        8: upright.rotate(-90, expand=True),
    }[orientation]
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"a.{suffix}"
    lying.save(path, exif=exif)
    assert images.image_size(path) == (24, 40)
    assert np.abs(pixels(path) - np.asarray(upright)).mean() < 5


def test_orientation_behind_the_pixels_of_a_png_is_applied(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = 6
    levels = noise(4, 7)
    write_png(tmp_path / "a.png", (8, 2), levels, (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    assert (pixels(tmp_path / "a.png") == np.rot90(levels, -1)).all()
    assert images.image_size(tmp_path / "a.png") == (7, 4)


def test_the_size_of_a_png_is_read_without_its_pixels(tmp_path: Path) -> None:
    PIL.Image.fromarray(noise(30, 50)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    assert images.image_size(tmp_path / "a.png") == (30, 50)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    levels = noise(5, 6, channels=1)
    PIL.Image.fromarray(levels[:, :, 0]).save(tmp_path / "a.png")
    assert (pixels(tmp_path / "a.png") == levels).all()


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    PIL.Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").tolist() == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparent_pixels_lie_on_white(tmp_path: Path, mode: str) -> None:
    levels = noise(8, 8, channels=len(mode))
    levels[0, :, -1], levels[1, :, -1] = 0, 255
    PIL.Image.fromarray(levels, mode).save(tmp_path / "a.png")
    share = levels[:, :, -1:] / 255
    expected = share * levels[:, :, :-1] + (1 - share) * 255
    assert np.abs(pixels(tmp_path / "a.png") - expected).max() <= 1
    assert (pixels(tmp_path / "a.png")[0] == 255).all()


def test_a_palette_with_transparency_lies_on_white(tmp_path: Path) -> None:
    image = PIL.Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    image.save(tmp_path / "a.png", transparency=bytes([255, 0, 255, 128]))
    assert pixels(tmp_path / "a.png")[0].tolist() == [[255, 0, 0], [255, 255, 255]]
    assert np.abs(pixels(tmp_path / "a.png")[1, 1] - 131.5).max() < 1.5


def test_a_colour_that_stands_for_transparency_lies_on_white(tmp_path: Path) -> None:
    PIL.Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)).save(tmp_path / "a.png", transparency=(1, 2, 3))
    assert pixels(tmp_path / "a.png").tolist() == [[[255, 255, 255], [4, 5, 6]]]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    smooth(32, 48).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    with PIL.Image.open(tmp_path / "a.jpg") as stored:
        assert stored.mode == "CMYK"
    assert np.abs(pixels(tmp_path / "a.jpg") - np.asarray(smooth(32, 48))).mean() < 4


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
@pytest.mark.parametrize("widen", [256, 257])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str, widen: int) -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    PIL.Image.fromarray(levels * np.uint16(widen)).save(tmp_path / f"a.{suffix}")
    assert (pixels(tmp_path / f"a.{suffix}") == levels[:, :, None]).all()


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)], ids=["RGB", "LA", "RGBA"])
def test_sixteen_bit_colour_and_alpha_are_scaled(tmp_path: Path, colour_type: int, channels: int) -> None:
    levels = noise(6, 5, channels=channels)
    if channels != 3:
        levels[:, :, -1] = 255
    write_png(tmp_path / "a.png", (16, colour_type), levels.astype(">u2") * 257)
    assert (pixels(tmp_path / "a.png") == levels[:, :, : 1 if channels == 2 else 3]).all()


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert (pixels(tmp_path / "a.webp") == (255, 0, 0)).all()


# --- what cannot be read ------------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(images.ImageReadError) as caught:
        images.open_image(path)
    text = str(caught.value)
    prefix, suffix = f"{path}: cannot be read as an image (", "); restore it or leave it out"
    assert text.startswith(prefix) and text.endswith(suffix)
    return text.removeprefix(prefix).removesuffix(suffix)


@pytest.mark.parametrize("content", [b"", b"hello", bytes(1000)])
def test_a_file_that_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert refusal(tmp_path / "a.png") == "no known image format"
    with pytest.raises(images.ImageReadError, match="no known image format"):
        images.image_size(tmp_path / "a.png")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a.png") == "No such file or directory"
    assert refusal(tmp_path) == "Is a directory"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp"])
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    PIL.Image.fromarray(noise(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    reason = refusal(path)
    assert reason
    if suffix in ("png", "jpg"):
        assert reason.startswith("image file is truncated")


@given(seed=st.integers(0, 2**32 - 1), suffix=st.sampled_from(["jpg", "png", "webp", "tif"]))
def test_whatever_is_damaged_gives_a_picture_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, seed: int, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("damaged") / f"a.{suffix}"
    smooth(20, 30).save(path)
    data, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
    for place in rng.integers(0, len(data), 8):
        data[place] = rng.integers(256)
    path.write_bytes(data)
    beginning, said = f"{path}: cannot be read as an image (", ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of some damage
        try:
            mode = images.open_image(path).mode
        except images.ImageReadError as error:
            mode, said = "RGB", str(error)
    assert mode == "RGB" and (not said or said.startswith(beginning))


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    PIL.Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "a.tif")
    assert refusal(tmp_path / "a.tif") == "pixels of 32 bit have no fixed range"


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PIL.Image.new("RGB", (50, 50)).save(tmp_path / "a.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    assert refusal(tmp_path / "a.png") == "more than 2,000 pixels, which may be a decompression bomb"


def test_the_error_survives_the_way_between_processes() -> None:
    error = images.ImageReadError("a.png", "broken", "remove it", skippable=True)
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == "a.png: cannot be read as an image (broken); remove it" == str(error)
    assert (copy.path, copy.reason, copy.advice, copy.skippable) == ("a.png", "broken", "remove it", True)


# --- central crops and tensors ------------------------------------------------------------------------------------

side = st.integers(1, 70)


@given(height=side, width=side, multiple=st.sampled_from([1, 8, 16]), shorter=st.none() | side)
def test_fitted_sides_divide_and_lose_less_than_one_multiple(
    height: int, width: int, multiple: int, shorter: int | None
) -> None:
    fitted = images.fit_to_multiple(PIL.Image.new("RGB", (width, height)), multiple, shorter_side=shorter)
    assert fitted.width % multiple == fitted.height % multiple == 0 and min(fitted.size) > 0
    scale = max(shorter or min(height, width), multiple) / min(height, width)
    for before, after in ((height, fitted.height), (width, fitted.width)):
        assert scale * before - multiple - 0.5 <= after <= scale * before + 0.5


@given(height=st.integers(8, 40), width=st.integers(8, 40))
def test_fitting_keeps_the_central_pixels(height: int, width: int) -> None:
    levels = noise(height, width)
    fitted = np.asarray(images.fit_to_multiple(PIL.Image.fromarray(levels), 8))
    top, left = (height - len(fitted)) // 2, (width - fitted.shape[1]) // 2
    assert (fitted == levels[top : top + fitted.shape[0], left : left + fitted.shape[1]]).all()


@given(height=side, width=side, h=st.integers(1, 32), w=st.integers(1, 32))
def test_a_central_crop_has_the_asked_shape(height: int, width: int, h: int, w: int) -> None:
    assert images.central_crop(PIL.Image.new("RGB", (width, height)), h, w).size == (w, h)


def test_a_central_crop_is_symmetric_and_whole_along_one_axis() -> None:
    levels = noise(16, 16)
    mirrored = PIL.Image.fromarray(np.concatenate([levels, levels[:, ::-1]], 1))
    crop = np.asarray(images.central_crop(mirrored, 8, 8)).astype(int)
    assert np.abs(crop - crop[:, ::-1]).max() <= 1
    square = PIL.Image.fromarray(levels)
    assert (np.asarray(images.central_crop(square, 16, 16)) == levels).all()


def test_bytes_become_numbers_from_minus_one_to_one_and_keep_their_places() -> None:
    levels = noise(4, 6)
    levels[0, 0], levels[0, 1] = 0, 255
    tensor = images.to_signed(images.to_pixels([PIL.Image.fromarray(levels)]))
    assert tensor.shape == (1, 3, 4, 6) and tensor.dtype == torch.float32 and tensor.is_contiguous()
    assert (tensor[0, :, 0, 0] == -1).all() and (tensor[0, :, 0, 1] == 1).all()
    assert (((tensor + 1) * 127.5).round()[0].permute(1, 2, 0).numpy() == levels).all()
