"""`latelier cache`: what it says, what it takes from a recipe, and one line a mistake."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from latelier.blocks import HOGConfig, TinyViTConfig, encode
from latelier.cli import main
from latelier.families import FeatureCache
from latelier.recipes import find
from latelier.training import read_records


@dataclass
class Said:
    code: int
    out: str
    err: str


Latelier = Callable[..., Said]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Latelier:
    """Call the command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Said:
        with pytest.raises(SystemExit) as caught:
            main([*map(str, arguments), "--device", "cpu"])
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Said(caught.value.code, captured.out, captured.err)

    return call


def good(said: Said) -> str:
    assert (said.code, said.err) == (0, "")
    return said.out


def test_it_says_what_was_written_and_how_to_train_from_it(run: Latelier, pictures: Path) -> None:
    said = good(run("cache", "hog", "--data", pictures, "--out", "features", "--resolution", 32, "--shard-images", 3))
    cache = FeatureCache("features")
    size = sum(path.stat().st_size for path in Path("features").glob("*.safetensors"))
    assert said == (
        f"written: features (8 pictures, 2 views each, 3 shards, {size / 1e6:.1f} MB, teacher {cache.spec.id})\n"
        "train from it: --set teacher=cached:features --set stages.main.crop=central\n"
    )
    assert cache.teacher == HOGConfig() and cache.layout.resolution == 32


def test_what_it_says_to_train_with_does_so(run: Latelier, pictures: Path) -> None:
    good(run("cache", "--recipe", "demo/semdisdiffae", "--data", pictures, "--out", "features"))
    assert FeatureCache("features").layout.resolution == find("demo/semdisdiffae").stages[0].resolution
    settings = [
        f"stages.main.{name}" for name in ("crop=central", "steps=2", "batch=2", "recalibrate=1", "log_every=1")
    ]
    given = [part for setting in ["teacher=cached:features", *settings] for part in ("--set", setting)]
    good(run("train", "demo/semdisdiffae", "--data", pictures, "--out", "run", *given))
    assert [line["step"] for line in read_records(Path("run/metrics.jsonl"))] == [1, 2]
    recipe = json.loads(Path("run/recipe.json").read_text())
    assert recipe["teacher"]["teacher"]["kind"] == "teacher/hog"


@pytest.mark.parametrize(
    ("teacher", "options", "expected"),
    [
        ("tiny_vit:64", [], TinyViTConfig(width=64)),
        ("tiny_vit:64", ["--stride", "8"], TinyViTConfig(width=64, patch=8)),
        ('{"kind": "teacher/hog", "patch": 8}', [], HOGConfig(patch=8)),
    ],
)
def test_a_teacher_is_named_in_short_or_in_json(
    teacher: str, options: list[str], expected: object, run: Latelier, pictures: Path
) -> None:
    good(run("cache", teacher, "--data", pictures, "--out", "f", "--resolution", 32, "--no-flips", *options))
    assert FeatureCache("f").teacher == expected
    assert FeatureCache("f").layout.views == ("central",)


def test_a_recipe_gives_the_pictures_that_it_trains_on_and_holds_out(run: Latelier, pictures: Path) -> None:
    recipe = find("semdisdiffae", [f"data.path={pictures}", "stages.main.resolution=32"])
    settings = ["--set", f"data.path={pictures}", "--set", "stages.main.resolution=32", "--set", "teacher=hog"]
    said = good(run("cache", "--recipe", "semdisdiffae", *settings, "--out", "features", "--tokens", "patches"))
    assert "8 pictures" in said
    cache = FeatureCache("features")
    sources = recipe.data.training(), recipe.data.held_out()
    assert set(cache.names) == {source.name(i) for source in sources for i in range(len(source))}
    assert cache.layout.tokens == ("patches",)


def test_it_goes_on_and_repairs_and_says_so(run: Latelier, pictures: Path) -> None:
    command = ["cache", "hog", "--data", pictures, "--out", "features", "--resolution", 32, "--shard-images", 3]
    good(run(*command))
    path = sorted(Path("features").glob("*.safetensors"))[1]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "made anew" not in good(run(*command))
    assert good(run(*command, "--verify")).splitlines()[0] == (
        f"{path.name}: has other bytes than were written (its SHA-256 differs); it is made anew"
    )
    assert path.read_bytes() == whole


def test_a_harmless_difference_is_accepted_by_name(
    run: Latelier, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["cache", "hog", "--data", pictures, "--out", "features", "--resolution", 32]
    good(run(*command))
    monkeypatch.setattr("latelier.blocks.hog.VERSION", "2")
    assert run(*command).err == (
        "error: features: is of another teacher (version: '1', not '2'); take the teacher that it was made with, "
        "or make it anew\n"
    )
    good(run(*command, "--accept", "version"))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["hog"], "cache: has no pictures; name a folder of them with --data, or a recipe with --recipe"),
        (["--data", "PICTURES"], "cache: no teacher is named; name one, such as hog or dinov3:vits16"),
        (
            ["--recipe", "demo/semdisdiffae", "--set", "teacher=null", "--data", "PICTURES"],
            "cache: no teacher is named and the recipe 'demo/semdisdiffae' has none; name one, such as hog or "
            "dinov3:vits16",
        ),
        (["hogg", "--data", "PICTURES"], "TEACHER: no part is named 'teacher/hogg'; did you mean 'teacher/hog'?"),
        (["hog", "--data", "nowhere"], "--data: there is no folder 'nowhere'; name one that holds images"),
        (
            ["hog", "--data", "PICTURES", "--resolution", "40"],
            "HOG: takes sizes divisible by 16, got 40x40; 32x32 would do",
        ),
        (
            ["hog", "--data", "PICTURES", "--set", "a=1"],
            "--set: changes a recipe, and there is none; name it with --recipe",
        ),
        (
            ["hog", "--data", "PICTURES", "--tokens", "patches, register"],
            "tokens: takes patches, cls, registers, got 'register'",
        ),
        (
            ["cached:nowhere", "--data", "PICTURES"],
            "nowhere: holds no cache of features; latelier cache TEACHER --data DIR --out nowhere makes one",
        ),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], problem: str, run: Latelier, pictures: Path) -> None:
    said = run("cache", *(str(pictures) if text == "PICTURES" else text for text in arguments), "--out", "features")
    assert (said.code, said.err) == (1, f"error: {problem}\n")
    assert not Path("features").exists()


def test_stages_of_several_resolutions_leave_the_choice_to_the_user(run: Latelier, pictures: Path) -> None:
    recipe = encode(find("demo/semdisdiffae"))
    recipe["stages"].append(recipe["stages"][0] | {"name": "large", "resolution": 128})
    Path("two.json").write_text(json.dumps(recipe))
    said = run("cache", "--recipe", "two.json", "--data", pictures, "--out", "features")
    assert said.err == (
        "error: cache: the stages of 'demo/semdisdiffae' have the resolutions 64, 128; choose one with --resolution\n"
    )
    good(run("cache", "--recipe", "two.json", "--data", pictures, "--out", "features", "--resolution", 64))


def test_files_that_cannot_be_read_may_be_passed_over(run: Latelier, pictures: Path) -> None:
    Path("data").mkdir()
    (Path("data") / "a.png").write_bytes((pictures / "0.png").read_bytes())
    (Path("data") / "b.png").write_bytes(b"no picture")
    command = ["cache", "hog", "--data", "data", "--out", "features", "--resolution", 32]
    assert run(*command).err == (
        'error: data/b.png: cannot be read as an image (no known image format); remove it or pass on_error="skip"\n'
    )
    said = good(run(*command, "--on-error", "skip"))
    assert said.splitlines()[0] == "skipped b.png: no known image format"
    assert "1 pictures" in said
