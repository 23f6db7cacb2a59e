"""Files of latents, on the command line and from Python: there and back, whole or not at all, one line a mistake."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import latelier
from latelier.blocks import (
    DINOTokenHeadConfig,
    DiTBlockConfig,
    LatentSpec,
    SkipDecoderConfig,
    StackEncoderConfig,
    decode,
    encode,
)
from latelier.cli import main
from latelier.evaluation import decode_files, encode_files, feature_files, latent_files, reconstruct_files
from latelier.families import DiffAEConfig, DinacAEConfig, ImageReadError, InferenceConfig, open_image

DECODER = SkipDecoderConfig(start=1, middle=1, end=1, rank=2)
PLAIN = DiffAEConfig(patch=4, width=16, latent=3, encoder=StackEncoderConfig(depth=1), decoder=DECODER)
PACKED = replace(PLAIN, patch=2, latent_patch=2)
DINAC = DinacAEConfig(
    patch=4,
    width=16,
    latent=3,
    encoder=StackEncoderConfig(block=DiTBlockConfig(head_width=8), depth=1),
    decoder=DECODER,
    token_head=DINOTokenHeadConfig(features=24, head_width=12),
)
MODELS = {"plain": PLAIN, "packed": PACKED, "dinac": DINAC}
SIZES = {"a.png": (9, 14), "b.jpg": (9, 14), "c.webp": (12, 16), "d.png": (11, 15), "e.png": (1, 3), "f.png": (8, 4)}
"""(height, width); three share the padded size 12 x 16."""

every_model = pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)


def awake(config: DiffAEConfig = PLAIN, *, seed: int = 0) -> Any:
    """A model whose parameters are noisy, and whose statistics are not those of birth."""
    torch.manual_seed(seed)
    model = config.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for statistic in model.latent_statistics.values():
            statistic.add_(0.5 * torch.rand_like(statistic))
    return model.eval()


def paint(path: Path, height: int, width: int, *, seed: int = 0, **options: Any) -> Path:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    PIL.Image.fromarray(levels).save(path, **options)
    return path


@dataclass
class Said:
    code: int
    out: str
    err: str


Latelier = Callable[..., Said]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and pictures; tests work on copies."""
    folder = tmp_path_factory.mktemp("user")
    for name, config in MODELS.items():
        awake(config).save_pretrained(folder / name)
    (folder / "pictures").mkdir()
    for seed, (name, size) in enumerate(SIZES.items()):
        paint(folder / "pictures" / name, *size, seed=seed)
    return folder


@pytest.fixture
def here(user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(user, tmp_path / "user")
    monkeypatch.chdir(tmp_path / "user")
    return tmp_path / "user"


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Latelier:
    """Call the command in this process, in the user's folder."""

    def call(*arguments: str) -> Said:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Said(caught.value.code, captured.out, captured.err)

    return call


def good(said: Said) -> list[str]:
    assert (said.code, said.err) == (0, "")
    return said.out.splitlines()


PICTURES = [f"pictures/{name}" for name in SIZES]
STEMS = [Path(name).stem for name in SIZES]


def read_header(path: str | Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def rewrite(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], Any]) -> Path:
    """Change the tensors and the header of a file."""
    header = read_header(path)
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors, header)
    save_file(tensors, path, header)
    return path


# --- encode -------------------------------------------------------------------------------------------------------


@every_model
def test_latents_are_those_of_the_mirrored_picture(config: DiffAEConfig, here: Path) -> None:
    model = awake(config)
    written = encode_files(model, PICTURES, here / "latents.safetensors", batch=1)
    assert written == here / "latents.safetensors"
    latents = load_file(written)
    assert sorted(latents) == STEMS
    for path in PICTURES:
        levels = np.asarray(open_image(path)).transpose(2, 0, 1)
        height, width = levels.shape[1:]
        padded = np.pad(levels, ((0, 0), (0, -height % 4), (0, -width % 4)), mode="reflect")
        wanted = model.encode(torch.from_numpy(padded.copy())[None].float() / 127.5 - 1)[0]
        assert latents[Path(path).stem].dtype == torch.float32
        torch.testing.assert_close(latents[Path(path).stem], wanted, rtol=0, atol=1e-6)


def test_the_header_says_whose_latents_they_are_and_of_which_pictures(run: Latelier, here: Path) -> None:
    assert good(run("encode", "plain", *PICTURES, "--out", "new/latents.safetensors")) == [
        "written: new/latents.safetensors"
    ]
    header = read_header(here / "new/latents.safetensors")
    assert header.keys() == {"format", "latelier.latent_spec", "latelier.images", "latelier.model"}
    assert header["format"] == "pt"
    assert decode(json.loads(header["latelier.latent_spec"]), LatentSpec) == awake().latent_spec
    assert header["latelier.model"] == f"family/semdisdiffae {PLAIN.id}"
    assert json.loads(header["latelier.images"]) == {
        Path(name).stem: {"file": name, "height": height, "width": width} for name, (height, width) in SIZES.items()
    }


def test_where_stems_coincide_latents_have_the_names_of_files(run: Latelier, here: Path) -> None:
    shutil.copy(here / "pictures/a.png", here / "c.png")
    good(run("encode", "plain", "pictures/a.png", "pictures/c.webp", "c.png", "--out", "l"))
    assert sorted(load_file(here / "l")) == ["a", "c.png", "c.webp"]


@pytest.mark.parametrize("orientation", [6, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_sizes_are_those_of_the_upright_picture(suffix: str, orientation: int, here: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = paint(here / f"turned.{suffix}", 7, 13, exif=exif)
    model = awake()
    assert load_file(encode_files(model, [path], here / "l"))["turned"].shape == (3, 4, 2)
    decode_files(model, here / "l", here / "out")
    assert open_image(here / "out/turned.png").size == (7, 13)


@pytest.mark.parametrize("batch", [2, 3, 50])
def test_a_batch_changes_latents_by_rounding_at_most(batch: int, here: Path) -> None:
    model = awake()
    alone = load_file(encode_files(model, PICTURES, here / "1", batch=1))
    together = load_file(encode_files(model, PICTURES, here / "n", batch=batch))
    for name, latent in alone.items():
        torch.testing.assert_close(together[name], latent, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dtype", "stored"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_latents_are_stored_in_the_precision_asked_for(
    dtype: str, stored: torch.dtype, run: Latelier, here: Path
) -> None:
    whole = load_file(encode_files(awake(), PICTURES, here / "whole"))
    good(run("encode", "plain", *PICTURES, "--out", "half", "--dtype", dtype))
    for name, latent in load_file(here / "half").items():
        assert latent.dtype == stored
        assert (latent.float() - whole[name]).norm() < 0.05 * whole[name].norm()
    good(run("decode", "plain", "half", "--out", "out"))


@given(
    sizes=st.dictionaries(st.text(), st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=20),
    batch=st.integers(1, 5),
    pixels=st.integers(1, 100),
)
def test_batches_hold_everything_once_and_no_more_than_they_may(
    sizes: dict[str, tuple[int, int]], batch: int, pixels: int
) -> None:
    batches = latent_files._batches(sizes, batch=batch, batch_pixels=pixels)
    assert sorted(name for names in batches for name in names) == sorted(sizes)
    for names in batches:
        ((height, width),) = {sizes[name] for name in names}
        assert len(names) <= batch
        assert len(names) == 1 or len(names) * height * width <= pixels


def test_the_model_never_sees_more_than_a_batch(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen, calls = awake(), [], []
    real = model.encode
    monkeypatch.setattr(model, "encode", lambda images: seen.append(tuple(images.shape)) or real(images))
    encode_files(
        model,
        PICTURES,
        here / "l",
        batch=2,
        batch_pixels=12 * 16 * 2,
        on_image=lambda *call: calls.append(call),
    )
    assert seen == [(2, 3, 12, 16), (2, 3, 12, 16), (1, 3, 4, 4), (1, 3, 8, 4)]
    assert calls == [(name, done, 6) for done, name in enumerate(STEMS, 1)]
    seen.clear()
    encode_files(model, PICTURES, here / "l", batch=50, batch_pixels=1)
    assert [shape[0] for shape in seen] == [1] * 6


def test_a_broken_picture_is_named_and_leaves_the_old_file(run: Latelier, here: Path) -> None:
    good(run("encode", "plain", "pictures/a.png", "--out", "out/l"))
    before = (here / "out/l").read_bytes()
    path = here / "pictures/d.png"
    path.write_bytes(path.read_bytes()[:-300])
    said = run("encode", "plain", *PICTURES, "--out", "out/l", "--batch", "1")
    assert said.code == 1
    assert said.err.startswith("error: pictures/d.png: cannot be read as an image (")
    assert said.err.endswith("); restore it or leave it out\n") and said.err.count("\n") == 1
    assert (here / "out/l").read_bytes() == before
    assert [path.name for path in (here / "out").iterdir()] == ["l"]


def test_a_picture_that_changes_while_others_are_encoded_is_named(here: Path) -> None:
    def change(name: str, done: int, total: int) -> None:
        paint(here / "pictures/f.png", 5, 6)

    with pytest.raises(ValueError) as caught:
        encode_files(awake(), PICTURES, here / "l", on_image=change)
    assert str(caught.value) == (
        "pictures/f.png: its head says 8x4 and its pixels are 5x6; save it again, or leave it out"
    )
    assert not (here / "l").exists()


def test_latents_that_are_not_finite_are_not_written(here: Path) -> None:
    model = awake()
    with torch.no_grad():
        model.latent_statistics["running_mean"].fill_(-1e6)
    with pytest.raises(ValueError) as caught:
        encode_files(model, ["pictures/e.png"], here / "l", dtype=torch.float16)
    assert str(caught.value) == (
        "pictures/e.png: its latent is not finite in float16; take float32, or look whether the model is damaged"
    )
    assert not (here / "l").exists()


# --- decode -------------------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize(
    "inference", [None, InferenceConfig(seed=3), InferenceConfig(seed=1, num_steps=3, pdg=True)], ids=str
)
def test_encode_and_decode_are_reconstruct_bit_for_bit(
    config: DiffAEConfig, inference: InferenceConfig | None, here: Path
) -> None:
    model = awake(config)
    wanted = reconstruct_files(model, PICTURES, here / "wanted", inference=inference)
    encode_files(model, PICTURES, here / "l", batch=1)
    written = decode_files(model, here / "l", here / "out", inference=inference, batch=1)
    assert sorted(path.name for path in written) == [f"{stem}.png" for stem in STEMS]
    for path in wanted:
        assert (here / "out" / path.name).read_bytes() == path.read_bytes()
        levels = np.asarray(open_image(path))
        assert ((levels > 0) & (levels < 255)).mean() > 0.9  # black and white would be equal in any case


def test_the_command_decodes_what_the_command_reconstructs(run: Latelier, here: Path) -> None:
    settings = ("--seed", "5", "--steps", "2", "--guidance", "1.5")
    good(run("reconstruct", "dinac", *PICTURES, "--out", "wanted", *settings))
    good(run("encode", "dinac", *PICTURES, "--out", "l.safetensors", "--batch", "1"))
    lines = good(run("decode", "dinac", "l.safetensors", "--out", "out", *settings, "--batch", "1"))
    assert sorted(lines) == [f"out/{stem}.png" for stem in STEMS]
    for stem, (height, width) in zip(STEMS, SIZES.values(), strict=True):
        assert (here / f"out/{stem}.png").read_bytes() == (here / f"wanted/{stem}.png").read_bytes()
        assert open_image(here / f"out/{stem}.png").size == (width, height)


@every_model
def test_a_picture_does_not_depend_on_its_neighbours(config: DiffAEConfig, here: Path) -> None:
    model, inference = awake(config), InferenceConfig(seed=2, num_steps=2, pdg=True)
    latents = torch.randn(5, 3 * config.latent_patch**2, 3, 4)
    together = latent_files._decoded(model, latents, 12, 16, inference)
    for latent, image in zip(latents, together, strict=True):
        torch.testing.assert_close(image[None], model.decode(latent[None], 12, 16, inference), rtol=0, atol=1e-5)


def test_a_model_of_another_make_decodes_one_by_one() -> None:
    class Other(torch.nn.Module):
        def decode(self, latents: Tensor, height: int, width: int, inference: InferenceConfig) -> Tensor:
            assert inference.seed is not None
            generator = torch.Generator().manual_seed(inference.seed)
            return latents.mean((1, 2, 3), keepdim=True) + torch.randn(
                len(latents), 3, height, width, generator=generator
            )

    images = latent_files._decoded(Other(), torch.ones(3, 2, 1, 1), 2, 2, InferenceConfig(seed=0))
    assert torch.equal(images, images[:1].expand(3, -1, -1, -1))


def test_batches_of_pictures_differ_by_a_grey_level_at_most(here: Path) -> None:
    model = awake()
    encode_files(model, PICTURES, here / "l")
    alone = decode_files(model, here / "l", here / "alone", batch=1)
    for path in alone:
        decode_files(model, here / "l", here / "together", batch=50)
        ours, theirs = (np.asarray(open_image(p)).astype(int) for p in (here / "together" / path.name, path))
        assert np.abs(ours - theirs).max() <= 1


def test_latents_of_ones_own_need_only_the_spec(run: Latelier, here: Path) -> None:
    save_file({"sampled": torch.randn(3, 2, 5)}, "l", {"latelier.latent_spec": json.dumps(encode(awake().latent_spec))})
    assert good(run("decode", "plain", "l", "--out", "out")) == ["out/sampled.png"]
    assert open_image("out/sampled.png").size == (20, 8)


def test_a_run_lends_its_model(run: Latelier, here: Path) -> None:
    (here / "run").mkdir()
    (here / "run/recipe.json").write_text("{}")
    said = run("encode", "run", "pictures/a.png", "--out", "l")
    assert (said.code, said.err) == (
        1,
        "error: run: has not finished; go on with latelier train run/recipe.json --resume --out run\n",
    )
    shutil.copytree(here / "plain", here / "run/model")
    good(run("encode", "run", "pictures/a.png", "--out", "l"))
    good(run("decode", "plain", "l", "--out", "out"))


# --- features -----------------------------------------------------------------------------------------------------


def test_features_are_what_the_token_head_says(run: Latelier, here: Path) -> None:
    model = awake(DINAC)
    good(run("encode", "dinac", *PICTURES, "--out", "l.safetensors"))
    lines = good(run("features", "dinac", "l.safetensors", "--out", "new/f.safetensors", "--batch", "2"))
    assert lines == ["written: new/f.safetensors"]
    features, latents = load_file(here / "new/f.safetensors"), load_file(here / "l.safetensors")
    assert features.keys() == {f"{stem}.{kind}" for stem in STEMS for kind in ("class", "patches")}
    for stem, latent in latents.items():
        with torch.no_grad():
            wanted = model.predict_features(latent[None])
        torch.testing.assert_close(features[f"{stem}.class"], wanted.cls[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(
            features[f"{stem}.patches"], wanted.patches[0].reshape(*latent.shape[1:], 24), rtol=0, atol=1e-5
        )
    kept = read_header(here / "l.safetensors")
    assert read_header(here / "new/f.safetensors") == kept | {"latelier.source": "l.safetensors"}


def test_features_take_latents_of_every_size_and_name(here: Path) -> None:
    model = awake(DINAC)
    header = {"latelier.latent_spec": json.dumps(encode(model.latent_spec))}
    save_file({"a": torch.randn(3, 2, 5), "a.class": torch.randn(3, 1, 1)}, "l", header)
    calls: list[tuple[str, int, int]] = []
    feature_files(model, "l", "f", on_image=lambda *call: calls.append(call))
    shapes = {name: list(tensor.shape) for name, tensor in load_file("f").items()}
    assert shapes == {
        "a.class": [24],
        "a.patches": [2, 5, 24],
        "a.class.class": [24],
        "a.class.patches": [1, 1, 24],
    }
    assert sorted(calls, key=lambda call: call[1]) == calls and len(calls) == 2


def test_a_model_without_a_token_head_says_so(run: Latelier) -> None:
    good(run("encode", "plain", "pictures/a.png", "--out", "l"))
    said = run("features", "plain", "l", "--out", "f")
    assert (said.code, said.err) == (
        1,
        "error: features: a model 'family/semdisdiffae' has no token head; take one that has, such as "
        "'family/dinac_ae'\n",
    )


# --- export -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "packed"])
def test_an_exported_model_loads_as_the_published_layout(name: str, run: Latelier, here: Path) -> None:
    assert good(run("export", name, "--out", "new/published")) == ["written: new/published"]
    assert "kind" not in json.loads((here / "new/published/config.json").read_text())
    assert read_header("new/published/model.safetensors") == {"format": "pt"}
    ours, theirs = (latelier.load(folder).state_dict() for folder in (name, "new/published"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


def test_what_nobody_has_published_is_not_exported(run: Latelier, here: Path) -> None:
    said = run("export", "dinac", "--out", "published")  # its head is not that of the releases
    assert said.code == 1
    assert said.err.startswith("error: config.") and said.err.count("\n") == 1
    assert not (here / "published").exists()


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("encode plain pictures --out l", "pictures: is a folder; name the pictures in it, such as pictures/*.jpg"),
        (
            "encode plain nowhere.png --out l",
            "nowhere.png: cannot be read as an image (No such file or directory); restore it or leave it out",
        ),
        (
            "encode plain pictures/a.png config.txt --out l",
            "config.txt: cannot be read as an image (no known image format); restore it or leave it out",
        ),
        (
            "encode plain pictures/a.png --out pictures",
            "pictures: is a folder; name a file, such as pictures/latents.safetensors",
        ),
        (
            "encode plain pictures/a.png --out pictures/../pictures/a.png",
            "pictures/a.png: writing pictures/../pictures/a.png would replace an input; choose another --out",
        ),
        (
            "encode plain pictures/a.png other/a.png --out l",
            "pictures/a.png: another input is called a.png too; encode them into two files",
        ),
        (
            "encode plain __metadata__.png --out l",
            "l: a tensor cannot be called '__metadata__', which the format keeps for itself",
        ),
        (
            "encode plian pictures/a.png --out l",
            "plian: no such file or folder, and no hub repository 'owner/name'",
        ),
        ("decode plain nowhere --out out", "nowhere: no such file"),
        ("decode plain pictures --out out", "pictures: no such file"),
        (
            "decode dinac l --out out",
            "l: these latents are of another space (source: 'family/semdisdiffae', not 'family/dinac_ae'{}); "
            "use the model that encoded them",
        ),
        ("decode plain l --out config.txt", "config.txt: is a file; --out names the folder for the pictures"),
        (
            "decode plain plain/model.safetensors --out out",
            "plain/model.safetensors: ",
        ),
        (
            "features dinac l --out f",
            "l: these latents are of another space (source: 'family/semdisdiffae', not 'family/dinac_ae'{}); "
            "use the model that encoded them",
        ),
        ("features dinac l --out l", "l: writing l would replace an input; choose another --out"),
        ("features dinac l --out out", "out: is a folder; name a file, such as out/latents.safetensors"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_writes_nothing(command: str, message: str, run: Latelier, here: Path) -> None:
    good(run("encode", "plain", "pictures/a.png", "--out", "l"))
    (here / "config.txt").write_text("no picture")
    (here / "out").mkdir()
    (here / "other").mkdir()
    for name in ("other/a.png", "__metadata__.png"):
        shutil.copy(here / "pictures/a.png", here / name)
    before = {path: path.is_dir() or path.read_bytes() for path in here.rglob("*")}
    ours, theirs = awake(PLAIN).latent_spec.normalisation, awake(DINAC).latent_spec.normalisation
    message = message.replace("{}", "" if ours == theirs else f", normalisation: {ours!r}, not {theirs!r}")
    said = run(*command.split())
    assert said.code == 1
    if message.endswith(": "):
        assert said.err.startswith(f"error: {message}") and said.err.count("\n") == 1
    else:
        assert said.err == f"error: {message}\n"
    assert {path: path.is_dir() or path.read_bytes() for path in here.rglob("*")} == before


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("encode plain", "Missing argument 'IMAGES...'"),
        ("encode plain pictures/a.png", "Missing option '--out'"),
        ("encode plain pictures/a.png --out l --batch 0", "--batch"),
        ("encode plain pictures/a.png --out l --dtype int8", "--dtype"),
        ("decode plain", "Missing argument 'LATENTS'"),
    ],
)
def test_a_command_that_is_none_is_answered_with_its_usage(command: str, hint: str, run: Latelier) -> None:
    said = run(*command.split())
    assert said.code == 2
    assert hint in said.err


def test_another_models_statistics_are_another_space(here: Path) -> None:
    first, second = awake(seed=0), awake(seed=1)
    encode_files(first, ["pictures/a.png"], "l")
    for function in (decode_files, feature_files):
        with pytest.raises(ValueError) as caught:
            function(second if function is decode_files else awake(DINAC, seed=1), "l", "out")
        assert str(caught.value).startswith("l: these latents are of another space (")
    assert not (here / "out").exists()


def test_a_decoder_takes_latents_and_encodes_none(here: Path) -> None:
    whole = awake()
    bare = replace(PLAIN, encoder=None).build()
    bare.load_state_dict({name: value for name, value in whole.state_dict().items() if "encoder" not in name})
    encode_files(whole, ["pictures/a.png"], "l")
    decode_files(bare, "l", "bare")
    decode_files(whole, "l", "whole")
    assert (here / "bare/a.png").read_bytes() == (here / "whole/a.png").read_bytes()
    with pytest.raises(ValueError) as caught:
        encode_files(bare, ["pictures/a.png"], "none")
    assert str(caught.value) == "encode: this model has a decoder only; its latents come from another model's encoder"
    assert not (here / "none").exists()


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.99])
def test_a_truncated_file_is_one_line(share: float, run: Latelier, here: Path) -> None:
    good(run("encode", "plain", *PICTURES, "--out", "l"))
    content = (here / "l").read_bytes()
    (here / "l").write_bytes(content[: int(share * len(content))])
    said = run("decode", "plain", "l", "--out", "out")
    assert said.code == 1
    assert said.err.startswith("error: l: is no whole safetensors file (")
    assert said.err.endswith("); copy or download it again\n") and said.err.count("\n") == 1
    assert not (here / "out").exists()


SPEC, IMAGES = "latelier.latent_spec", "latelier.images"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors, header: header.clear(),
            "l: does not say whose latents it holds; `latelier encode` writes 'latelier.latent_spec' into its header",
        ),
        (
            lambda tensors, header: header.update({SPEC: "{"}),
            "l (header): 'latelier.latent_spec' is no JSON (Expecting property name enclosed in double quotes: "
            "line 1 column 2 (char 1)); encode again",
        ),
        (
            lambda tensors, header: header.update({SPEC: "[]"}),
            "l (header): 'latelier.latent_spec' is list, not an object",
        ),
        (
            lambda tensors, header: header.update({SPEC: '{"kind": "block/fcdm"}'}),
            "l (header): latelier.latent_spec: takes 'latent_spec/model', got 'block/fcdm'",
        ),
        (
            lambda tensors, header: header.update({IMAGES: '{"a": {"file": "a.png"}}'}),
            "l (header): 'latelier.images' gives 'a' no whole height and width; encode it again",
        ),
        (
            lambda tensors, header: header.update({IMAGES: '{"a": 3}'}),
            "l (header): 'latelier.images' gives 'a' no whole height and width; encode it again",
        ),
        (
            lambda tensors, header: header.update({IMAGES: '{"a": {"height": 9, "width": 12}}'}),
            "l: 'a' has 3x4 positions of 4 pixels, which is not what an image of 9x12 has; encode it again",
        ),
        (
            lambda tensors, header: tensors.update(a=tensors["a"][None]),
            "l: 'a' is F32 [1, 3, 3, 4]; a latent is F32, F16, BF16 [3, h, w]",
        ),
        (
            lambda tensors, header: tensors.update(a=tensors["a"].long()),
            "l: 'a' is I64 [3, 3, 4]; a latent is F32, F16, BF16 [3, h, w]",
        ),
        (
            lambda tensors, header: tensors.update(b=torch.zeros(3, 0, 4)),
            "l: 'b' is F32 [3, 0, 4]; a latent is F32, F16, BF16 [3, h, w]",
        ),
        (lambda tensors, header: tensors.clear(), "l: holds no latents"),
        (
            lambda tensors, header: tensors["a"][0, 0].fill_(torch.nan),
            "l: 'a' holds values that are not finite; encode it again",
        ),
        (
            lambda tensors, header: tensors.update({"../up": tensors["a"]}) or tensors.pop("a"),
            "l: '../up' is no name for a picture's file; name the latent anew",
        ),
        (
            lambda tensors, header: tensors.update({"..": tensors["a"]}) or tensors.pop("a"),
            "l: '..' is no name for a picture's file; name the latent anew",
        ),
    ],
)
def test_a_file_that_holds_something_else_is_refused(
    change: Callable[[dict[str, Tensor], dict[str, str]], Any], message: str, run: Latelier, here: Path
) -> None:
    good(run("encode", "plain", "pictures/a.png", "--out", "l"))
    rewrite(here / "l", change)
    said = run("decode", "plain", "l", "--out", "out")
    assert (said.code, said.err) == (1, f"error: {message}\n")
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("paths", "batch", "batch_pixels", "message"),
    [
        ([], 1, 1, "images: there are none; name one or more files"),
        (PICTURES, 0, 1, "batch: must be at least 1, got 0"),
        (PICTURES, 1, 0, "batch_pixels: must be at least 1, got 0"),
    ],
)
def test_no_pictures_and_empty_batches_are_refused(
    paths: list[str], batch: int, batch_pixels: int, message: str, here: Path
) -> None:
    with pytest.raises(ValueError) as caught:
        encode_files(awake(), paths, "l", batch=batch, batch_pixels=batch_pixels)
    assert str(caught.value) == message
    assert not (here / "l").exists()


def test_a_name_that_is_no_text_is_refused(here: Path) -> None:
    path = os.fsdecode(os.fsencode("pictures/") + b"\xff.png")
    shutil.copy("pictures/a.png", path)
    with pytest.raises(ValueError) as caught:
        encode_files(awake(), [path], "l")
    assert str(caught.value) == "l: the name '\\udcff' is no Unicode text; rename it"


def test_the_file_of_a_picture_that_is_none_is_in_the_error(here: Path) -> None:
    Path("x.png").write_text("hello")
    with pytest.raises(ImageReadError) as caught:
        encode_files(awake(), ["x.png"], "l")
    assert caught.value.path == "x.png"
