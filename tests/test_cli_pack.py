"""`latelier pack`: what it says, what it takes from a recipe, and one line a mistake."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from latelier.blocks import HOGConfig, SkipDecoderConfig, StackEncoderConfig, TinyViTConfig, encode
from latelier.cli import main
from latelier.families import DiffAEConfig, ModelSpaceConfig, PairFolder
from latelier.training import read_records

pytestmark = pytest.mark.filterwarnings("ignore::latelier.blocks.LatentScaleWarning")  # nothing has trained them


@dataclass
class Said:
    code: int
    out: str
    err: str


Latelier = Callable[..., Said]


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny autoencoder of stride 4."""
    torch.manual_seed(0)
    encoder = StackEncoderConfig(depth=1)
    decoder = SkipDecoderConfig(start=1, middle=1, end=1, rank=4)
    folder = tmp_path_factory.mktemp("autoencoder") / "model"
    DiffAEConfig(patch=4, width=8, latent=4, encoder=encoder, decoder=decoder).build().save_pretrained(folder)
    return folder


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pictures: Path
) -> Latelier:
    """Pack the pictures in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, command: str = "pack") -> Said:
        data = ["--data", str(pictures)] if command == "pack" else []
        with pytest.raises(SystemExit) as caught:
            main([command, *map(str, arguments), *data, "--device", "cpu"])
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Said(caught.value.code, captured.out, captured.err)

    return call


def good(said: Said) -> str:
    assert (said.code, said.err) == (0, "")
    return said.out


def test_it_says_what_was_written_and_how_to_train_on_it(run: Latelier, autoencoder: Path) -> None:
    options = ("--teacher", "hog", "--out", "pairs", "--resolution", 32, "--shard-pictures", 3, "--flips")
    said = good(run("--space", f"model:{autoencoder}", *options))
    found = PairFolder("pairs")
    size = sum(path.stat().st_size for path in Path("pairs").iterdir())
    assert said == (
        f"written: pairs (16 pairs of 4 x 8 x 8 latents and 4 tokens of {HOGConfig().features}, 3 shards, "
        f"{size / 1e6:.1f} MB, space {found.latent_spec.id}, teacher {found.teacher_spec.id})\n"
        "train on it: latelier train RECIPE --data pairs\n"
    )
    assert found.space == ModelSpaceConfig(path=str(autoencoder)) and found.teacher == HOGConfig()
    assert found.layout.views == ("central", "mirrored") and found.resolution == 32
    before = {path.name: path.stat().st_mtime_ns for path in Path("pairs").glob("*.npy")}
    assert good(run("--space", f"model:{autoencoder}", *options, "--verify")) == said
    assert {path.name: path.stat().st_mtime_ns for path in Path("pairs").glob("*.npy")} == before


def test_space_and_teacher_are_named_in_json_too_and_the_teacher_is_placed(run: Latelier, autoencoder: Path) -> None:
    space = json.dumps(encode(ModelSpaceConfig(path=str(autoencoder))))
    options = ("--resolution", 32, "--stride", 8, "--crops", 2, "--dtype", "float32", "--no-cls", "--no-thumbnails")
    good(run("--space", space, "--teacher", '{"kind": "teacher/tiny_vit", "width": 64}', "--out", "pairs", *options))
    found = PairFolder("pairs")
    assert found.teacher == TinyViTConfig(width=64, patch=8) and found.layout.grid == (4, 4)
    assert found.space == ModelSpaceConfig(path=str(autoencoder))
    assert found.layout.views == ("crop-0", "crop-1") and found.layout.dtype == "float32"
    assert not found.layout.has_cls and not found.layout.has_thumbnails


def test_a_recipe_gives_space_teacher_and_resolution_and_trains_on_the_pack(run: Latelier, autoencoder: Path) -> None:
    space = json.dumps(encode(ModelSpaceConfig(path=str(autoencoder))))
    recipe = ("--set", f"model.space={space}")
    said = run("--recipe", "demo/bridge", *recipe, "--out", "pairs")
    assert good(said).endswith("train on it: latelier train demo/bridge --data pairs\n")
    found = PairFolder("pairs")
    settings = [f"stages.main.{name}" for name in ("steps=2", "batch=2", "log_every=1")]
    given = [part for setting in settings for part in ("--set", setting)]
    good(run("demo/bridge", *recipe, "--data", "pairs", "--out", "run", *given, command="train"))
    assert [line["step"] for line in read_records(Path("run/metrics.jsonl"))] == [1, 2]
    assert json.loads(Path("run/recipe.json").read_text())["data"]["path"] == "pairs"
    assert encode(found.teacher) == json.loads(Path("run/recipe.json").read_text())["teacher"]


def test_every_mistake_is_one_line(run: Latelier, autoencoder: Path) -> None:
    model, out = f"model:{autoencoder}", ("--out", "pairs")
    for arguments, problem in (
        (("--teacher", "hog"), "pack: no latent space is named; name one with --space, such as sd or model:RUN"),
        (("--space", model), "pack: no teacher is named; name one, such as hog or dinov3:vits16"),
        (
            ("--space", model, "--teacher", "hog", "--resolution", 30),
            "resolution: must be divisible by the stride 4 of the latents, got 30",
        ),
        (
            ("--space", model, "--teacher", "hog", "--crops", 2, "--flips"),
            "crops: takes a number of crops, some of them mirrored, in place of flips; got 2",
        ),
        (
            ("--space", "model:nowhere", "--teacher", "hog"),
            "latent_space/model: nowhere: no such model, and its latents are not described; train it first, or "
            "download it and pass the folder",
        ),
    ):
        said = run(*arguments, *out)
        assert (said.code, said.out, said.err) == (1, "", f"error: {problem}\n")
        assert not Path("pairs").exists()


def test_another_space_or_teacher_in_the_folder_is_one_line_with_both(run: Latelier, autoencoder: Path) -> None:
    model, options = f"model:{autoencoder}", ("--out", "pairs", "--resolution", 32)
    good(run("--space", model, "--teacher", "hog", *options))
    said = run("--space", model, "--teacher", "tiny_vit:64", *options)
    assert said.code == 1 and said.err.count("\n") == 1
    assert said.err.startswith("error: pairs: is of another teacher (") and "'hog(" in said.err and "tiny" in said.err


def test_bfloat16_is_no_type_of_npy_files(run: Latelier, autoencoder: Path) -> None:
    said = run("--space", f"model:{autoencoder}", "--teacher", "hog", "--out", "pairs", "--dtype", "bfloat16")
    assert said.code == 2 and "'bfloat16' is not one of 'float16', 'float32'" in " ".join(
        said.err.replace("│", "").split()
    )
