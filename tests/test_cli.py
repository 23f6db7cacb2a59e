"""The command as a user meets it: what it prints and writes, and one line for each mistake."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import latelier
from latelier.blocks import BlockConfig, differences, encode, parts, registry
from latelier.cli import main
from latelier.families import open_image, read_tensors, write_tensors
from latelier.recipes import RECIPES, STUDIES, find
from latelier.training import read_records

MINE = '''
from dataclasses import replace
from latelier.blocks import BlockConfig, FCDMBlock, HOGConfig, SkipDecoderConfig, StackEncoderConfig, part
from latelier.evaluation import ArchetypePSNRConfig
from latelier.families import DiffAEConfig
from latelier.recipes import Recipe, StageConfig
from latelier.recipes import semdisdiffae as published
from latelier.training import AlignmentConfig, FolderDataConfig, VPReconstructionConfig


@part("block/{block}")
class MineConfig(BlockConfig):
    """A block of mine."""

    def build(self, width, *, cond=None):
        return FCDMBlock(width, cond=cond, kernel=3)


def tiny(block=None):
    blocks = {{}} if block is None else {{"block": block}}
    objective = published(teacher=HOGConfig(patch=8)).stages[0].objective
    return Recipe(
        name="tiny",
        model=DiffAEConfig(
            patch=8,
            width=16,
            latent=4,
            encoder=StackEncoderConfig(depth=1, **blocks),
            decoder=SkipDecoderConfig(start=1, middle=1, end=1, rank=4, **blocks),
        ),
        teacher=HOGConfig(patch=8),
        data=FolderDataConfig(path="pictures"),
        stages=(StageConfig(steps=2, batch=2, resolution=16, objective=objective, recalibrate=1, log_every=1),),
        evaluation=(ArchetypePSNRConfig(),),
    )


def mine():
    return tiny(MineConfig())
'''


@dataclass
class Said:
    code: int
    out: str
    err: str


Latelier = Callable[..., Said]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, a user's file, and a run that was trained from it; tests work on copies."""
    folder = tmp_path_factory.mktemp("user")
    rng = np.random.default_rng(0)
    (folder / "pictures" / "deep").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "c.webp", "deep/d.png"):
        small = PIL.Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
        small.resize((37, 31), PIL.Image.Resampling.BICUBIC).save(folder / "pictures" / name)
    (folder / "mine.py").write_text(MINE.format(block="of_a_user"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(SystemExit) as caught:
            main(["train", "./mine.py:tiny"])
    assert caught.value.code == 0
    del registry._declared["block/of_a_user"]
    return folder


@pytest.fixture
def here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(folder, tmp_path / "user")
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


def good(said: Said) -> str:
    assert (said.code, said.err) == (0, "")
    return said.out


# --- list and show ------------------------------------------------------------------------------------------------


def test_list_names_every_recipe_and_part(run: Latelier) -> None:
    lines = good(run("list")).splitlines()
    names = [line.split()[0] for line in lines if line]
    assert names == ["recipe", *RECIPES, "part", *(cls.kind for cls in parts())]
    assert all(line == line.rstrip() and "``" not in line for line in lines)
    assert all(len(line.split()) > 3 for line in lines if line)


def test_list_names_the_studies_that_are_ready(run: Latelier) -> None:
    lines = good(run("list", "--studies")).splitlines()
    assert [line.split()[0] for line in lines] == ["study", *STUDIES]
    assert all(len(line.split()) > 3 for line in lines)


def test_show_and_train_swap_a_part_and_what_depends_on_it(run: Latelier, here: Path) -> None:
    shown = json.loads(good(run("show", "demo/dinac_ae", "--swap", "teacher=tiny_vit:96", "--json")))
    assert (shown["teacher"]["patch"], shown["model"]["token_head"]["features"]) == (8, 96)
    words = ("--swap", "teacher=tiny_vit", "--set", "stages.main.batch=2", "--set", "stages.main.recalibrate=1")
    said = run(
        "train", "demo/dinac_ae", "--data", "pictures", *words, "--set", "stages.main.steps=1", "--out", "swapped"
    )
    assert said.code == 0
    assert json.loads((here / "swapped" / "recipe.json").read_text())["teacher"]["kind"] == "teacher/tiny_vit"


def test_show_gives_config_sizes_and_costs(run: Latelier) -> None:
    out = good(run("show", "semdisdiffae"))
    config, _, table = out.partition("\n}\n")
    assert json.loads(config + "}") == encode(find("semdisdiffae"))
    assert table.splitlines() == [
        "",
        f"semdisdiffae ({find('semdisdiffae').id})",
        "parameters of encoder     26,838,144",
        "parameters of decoder     61,933,184",
        "parameters                88,771,328",
        "latent at 256 px          128 x 16 x 16, 6x fewer numbers than the image",
        "encode at 256 px          13.71 GFLOP",
        "decode, 1 step at 256 px  28.90 GFLOP",
    ]


def test_show_counts_at_the_resolution_asked_for(run: Latelier) -> None:
    lines = good(run("show", "capacitor_decoder", "--resolution", "64")).splitlines()
    assert lines[-3:] == [
        "latent at 64 px          128 x 4 x 4, 6x fewer numbers than the image",
        "encode at 64 px          -",
        "decode, 1 step at 64 px  1.82 GFLOP",
    ]


def test_show_writes_json_that_is_a_recipe_again(run: Latelier, here: Path) -> None:
    settings = ("--set", "model.encoder.depth=2", "--set", "model.encoder.block=dit")
    out = good(run("show", "semdisdiffae", "--json", *settings))
    (here / "mine.json").write_text(out)
    assert good(run("show", "mine.json", "--json")) == out
    assert differences(find("mine.json"), find("semdisdiffae"), where="recipe") == [
        "recipe.model.encoder.block: 'block/dit', not 'block/fcdm'",
        "recipe.model.encoder.depth: 2, not 4",
    ]


def test_show_reads_a_file_and_a_run(run: Latelier) -> None:
    assert good(run("show", "./mine.py:tiny")) == good(run("show", "runs/tiny"))


# --- train --------------------------------------------------------------------------------------------------------


def test_train_leaves_a_run_and_says_what_to_do_with_it(run: Latelier, here: Path) -> None:
    lines = good(run("train", "./mine.py:tiny", "--out", "new", "--set", "stages.main.steps=3")).splitlines()
    recipe = find("new")
    assert lines[0] == f"recipe tiny ({recipe.id}) -> new"
    assert [line.split("loss")[0].strip() for line in lines[1:-1]] == [
        "step      1 of 3",
        "step      2 of 3",
        "step      3 of 3",
    ]
    assert lines[-1] == "finished: new/model; measure it with: latelier eval new"
    assert differences(recipe, find("runs/tiny")) == ["config.stages.0.steps: 3, not 2"]
    assert [line["step"] for line in read_records(here / "new/metrics.jsonl")] == [1, 2, 3]


def test_train_takes_other_data_and_settings_of_theirs(run: Latelier, here: Path) -> None:
    good(run("train", "demo/semdisdiffae", "--data", "pictures", "--out", "new", "--set", "stages.main.steps=1",
             "--set", "stages.main.batch=2", "--set", "start=null", "--set", "data.held_out_share=0.3",
             "--set", "stages.main.resolution=16", "--set", "stages.main.recalibrate=1"))  # fmt: skip
    data = json.loads((here / "new/recipe.json").read_text())["data"]
    assert (data["kind"], data["path"], data["held_out_share"]) == ("data/folder", "pictures", 0.3)


def test_train_keeps_the_settings_of_a_recipe_for_its_other_data(run: Latelier, here: Path) -> None:
    good(run("show", "mine.py:tiny"))
    out = good(run("show", "mine.py:tiny", "--json", "--set", "data.on_error=skip"))
    (here / "skipping.json").write_text(out)
    good(run("train", "skipping.json", "--data", "pictures/../pictures", "--out", "new"))
    assert json.loads((here / "new/recipe.json").read_text())["data"]["on_error"] == "skip"


def test_a_finished_run_resumes_to_itself(run: Latelier, here: Path) -> None:
    before = read_tensors(here / "runs/tiny/model/model.safetensors")
    lines = good(run("train", "runs/tiny", "--resume")).splitlines()
    assert lines[1:] == [
        "going on from step 2 of 2",
        "finished: runs/tiny/model; measure it with: latelier eval runs/tiny",
    ]
    after = read_tensors(here / "runs/tiny/model/model.safetensors")
    assert before[1] == after[1]
    assert all(torch.equal(tensor, after[0][name]) for name, tensor in before[0].items())


def test_a_run_that_failed_before_its_first_checkpoint_may_be_started_again(run: Latelier) -> None:
    command = ("train", "mine.py:tiny", "--out", "new")
    assert run(*command, "--data", "nowhere").code == 1
    good(run(*command))


def test_a_stopped_run_says_how_to_go_on(run: Latelier, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("latelier.training.train", interrupted)
    said = run("train", "mine.py:tiny", "--out", "new")
    assert (said.code, said.err) == (
        130,
        "\nstopped; the same command with --resume goes on from the newest checkpoint\n",
    )
    said = run("demo", "--out", "demo")
    assert (said.code, said.err) == (130, "\nstopped; the same command goes on from the newest checkpoint\n")


def test_a_part_of_a_users_file_lives_in_runs(run: Latelier, here: Path) -> None:
    (here / "other.py").write_text(MINE.format(block="of_another_user"))
    good(run("train", "other.py:mine", "--out", "mine"))
    del registry._declared["block/of_another_user"]  # as in a new process
    said = run("show", "mine")
    known = ", ".join(repr(cls.kind) for cls in parts(BlockConfig))
    assert (said.code, said.err) == (
        1,
        "error: mine/recipe.json: config.model.encoder.block: no part is named 'block/of_another_user'; "
        f"known: {known}\n",
    )
    assert "parameters of encoder" in good(run("--import", "other.py", "show", "mine"))


# --- what is trained ----------------------------------------------------------------------------------------------


def test_eval_measures_a_run_on_what_it_held_out(run: Latelier, here: Path) -> None:
    out = good(run("eval", "runs/tiny"))
    result = json.loads((here / "runs/tiny/evaluation/archetype_psnr.json").read_text())
    assert result["recipe"]["id"] == find("runs/tiny").id
    assert result["set"]["n"] == 1
    assert {"psnr", "ssim", "alignment", "baseline", "latents"} <= result.keys()
    assert "head_cosine" in result["alignment"]
    assert out.splitlines()[-1] == "written: runs/tiny/evaluation/archetype_psnr.json"
    assert f"{result['psnr']['mean']:.2f} dB" in out


def test_eval_measures_a_bare_model_on_a_folder(run: Latelier, here: Path) -> None:
    shutil.move(here / "runs/tiny/model", here / "model")
    out = good(run("eval", "model", "--data", "pictures"))
    result = json.loads((here / "evaluation/archetype_psnr.json").read_text())
    assert (result["recipe"], result["set"]["n"]) == (None, 4)
    assert "family/semdisdiffae" in out
    good(run("eval", "model/model.safetensors", "--data", "pictures", "--out", "elsewhere"))
    again = json.loads((here / "elsewhere/archetype_psnr.json").read_text())
    assert again["psnr"] == result["psnr"]


def test_eval_asks_a_bare_model_what_probes_name(run: Latelier, here: Path) -> None:
    unit = json.dumps({"kind": "probe/token_robustness", "relative_to": "unit", "offsets": [2]})
    model = ("eval", "runs/tiny/model", "--data", "pictures")
    out = good(run(*model, "--probe", "token_robustness", "--probe", unit))
    answers = json.loads((here / "evaluation/archetype_psnr.json").read_text())["probes"]
    assert [answer["relative_to"] for answer in answers.values()] == ["posterior", "unit"]
    assert [name.partition("-")[0] for name in answers] == ["token_robustness"] * 2
    assert f"{answers['token_robustness']['offsets'][1]['whole']['mean']:.2f} dB" in out
    said = run(*model, "--probe", "token_robustnes")
    message = "error: --probe: no part is named 'probe/token_robustnes'; did you mean 'probe/token_robustness'?\n"
    assert (said.code, said.err) == (1, message)


def test_eval_and_report_ask_what_a_recipe_names(run: Latelier, here: Path) -> None:
    path = here / "runs/tiny/recipe.json"
    tree = json.loads(path.read_text())
    assert tree["probes"] == []
    path.write_text(json.dumps(tree | {"probes": [{"kind": "probe/token_robustness", "offsets": [3.0]}]}))
    (asked,) = json.loads(path.read_text())["probes"]
    good(run("eval", "runs/tiny", "--probe", json.dumps(asked)))
    answers = json.loads((here / "runs/tiny/evaluation/archetype_psnr.json").read_text())["probes"]
    assert [[n["offset"] for n in answer["offsets"]] for answer in answers.values()] == [[3.0]]
    good(run("report", "runs/tiny", "--probe", "pca_maps:hog"))
    page = (here / "runs/tiny/report.html").read_text()
    assert "Robustness to wrong tokens" in page and "Maps of principal components" in page


@pytest.mark.parametrize("options", [(), ("--side-by-side",)])
def test_reconstruct_keeps_odd_sizes(options: Sequence[str], run: Latelier, here: Path) -> None:
    for name, size in (("wide", (45, 3)), ("tall", (9, 20))):
        PIL.Image.new("RGB", size, "orange").save(here / f"{name}.png")
    lines = good(run("reconstruct", "runs/tiny", "wide.png", "tall.png", "--out", "out", *options)).splitlines()
    assert lines == ["out/wide.png", "out/tall.png"]
    twice = 2 if options else 1
    assert open_image(here / "out/wide.png").size == (45 * twice, 3)
    assert open_image(here / "out/tall.png").size == (9 * twice, 20)


def test_reconstruct_follows_its_settings(run: Latelier, here: Path) -> None:
    def picture(*options: str) -> bytes:
        good(run("reconstruct", "runs/tiny", "pictures/a.png", "--out", "out", *options))
        return (here / "out/a.png").read_bytes()

    assert picture() == picture("--seed", "0", "--steps", "1")
    assert len({picture(), picture("--seed", "1"), picture("--steps", "3"), picture("--guidance", "2")}) == 4


def test_report_writes_a_page(run: Latelier, here: Path) -> None:
    lines = good(run("report", "runs/tiny")).splitlines()
    assert lines[-1] == "runs/tiny/report.html"
    page = (here / "runs/tiny/report.html").read_text()
    assert "tiny" in page and find("runs/tiny").id in page


def test_demo_ends_with_a_page_and_starts_where_it_stopped(
    run: Latelier, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = find("mine.py:tiny")  # small, in place of the demo
    monkeypatch.setitem(RECIPES, "demo/semdisdiffae", lambda: recipe)
    arguments = ("demo", "--out", "demo", "--set", "stages.main.steps=3")
    lines = good(run(*arguments)).splitlines()
    assert lines[-3:] == [
        f"report:  {here / 'demo/report.html'}",
        "model:   demo/model",
        "try it:  latelier reconstruct demo PICTURE.jpg --out pictures",
    ]
    assert (here / "demo/report.html").stat().st_size > 10_000
    assert "going on from step 3 of 3" in good(run(*arguments))


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("show semdisdifae", "recipe: none is named 'semdisdifae'; did you mean 'semdisdiffae'?"),
        ("train mine.py:tny", "mine.py: has no function 'tny'; it has 'tiny', 'mine'"),
        (
            "train mine.py:tiny --set stages.main.stpes=3",
            "config.stages.main: 'stage/joint' has no field 'stpes'; did you mean 'steps'?",
        ),
        ("demo --set seeed=3", "config: 'recipe/staged' has no field 'seeed'; did you mean 'seed'?"),
        ("show semdisdiffae --resolution 250", "resolution: must be divisible by the model's stride 16, got 250"),
        (
            "train semdisdiffae --set model.width=16",
            "data.path: is not given; name a folder of images (on the command line: --data DIR)",
        ),
        (
            "train mine.py:tiny --out new --data nowhere",
            "data.path: there is no folder 'nowhere'; name one that holds images",
        ),
        (
            "train mine.py:tiny --out new --data empty",
            "data.path: no images under 'empty'; it takes .avif, .bmp, .jpeg, .jpg, .png, .tif, .tiff, .webp at any "
            "depth",
        ),
        ("eval runs/tiny --data nowhere", "--data: there is no folder 'nowhere'; name one that holds images"),
        (
            "eval runs/tiny --data broken",
            "broken/a.png: cannot be read as an image (no known image format); "
            'remove it or pass on_error="skip"',
        ),
        (
            "reconstruct runs/tiny broken/a.png --out out",
            "broken/a.png: cannot be read as an image (no known image format); restore it or leave it out",
        ),
        ("train mine.py:tiny", "runs/tiny: holds a run already; go on with --resume, or choose another --out"),
        ("eval runs/tyni", "runs/tyni: no such file or folder; 'runs' holds 'tiny'"),
        ("eval nowhere", "nowhere: no such file or folder, and no hub repository 'owner/name'"),
        ("eval pictures", "pictures: holds no model.safetensors; a model folder has config.json and model.safetensors"),
        ("report pictures", "pictures: holds no run; a run folder has recipe.json"),
        ("eval runs/tiny/model", "eval: a model by itself has no data; name a folder of images with --data"),
        ("--import nope.py list", "--import: there is no Python file 'nope.py'"),
        ("eval runs/tiny --device gpu", "--device: takes cpu, cuda, cuda:1 and so on, got 'gpu'"),
        (
            "train mine.py:tiny --out new --set stages.main.batch=3 --set stages.main.accumulate=2",
            "stage 'main': a batch of 3 does not divide into 2 parts on each of 1 processes",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(command: str, message: str, run: Latelier, here: Path) -> None:
    (here / "empty").mkdir()
    (here / "broken").mkdir()
    (here / "broken/a.png").write_text("no picture")
    said = run(*command.split())
    assert (said.code, said.err) == (1, f"error: {message}\n")


@pytest.mark.parametrize("name", ["cuda", "cuda:3"])
def test_a_device_that_is_not_there_is_one_line(name: str, run: Latelier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    said = run("eval", "runs/tiny", "--device", name)
    assert (said.code, said.err) == (1, f"error: --device: there are 0 CUDA devices here, got {name!r}; try cpu\n")


def test_an_unreadable_picture_stops_training_or_is_skipped(run: Latelier, here: Path) -> None:
    for name in ("a.png", "b.jpg", "c.webp"):
        path = here / "pictures" / name
        path.write_bytes(path.read_bytes()[:60])
    said = run("train", "mine.py:tiny", "--out", "new", "--set", "stages.main.batch=8")
    assert said.code == 1
    line, end = said.err.split("\n")
    assert line.startswith("error: pictures/") and ": cannot be read as an image (" in line and not end
    assert line.endswith('); remove it or pass on_error="skip"')


def test_resuming_with_another_recipe_is_one_line(run: Latelier) -> None:
    ours, theirs = find("mine.py:tiny", ["seed=3"]), find("runs/tiny")
    said = run("train", "mine.py:tiny", "--resume", "--set", "seed=3")
    assert (said.code, said.err) == (
        1,
        f"error: runs/tiny/checkpoints/step-00000002.safetensors: was written by another recipe ({theirs.id}, "
        f"this is {ours.id}): recipe.seed: 3, not 0; resume with the same recipe, or start a new run in another "
        "folder\n",
    )


def test_truncated_and_foreign_weights_are_one_line(run: Latelier, here: Path) -> None:
    path = here / "runs/tiny/model/model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    said = run("eval", "runs/tiny")
    assert said.code == 1
    assert said.err.startswith("error: runs/tiny/model/model.safetensors: is no whole safetensors file (")
    assert said.err.endswith("); copy or download it again\n") and said.err.count("\n") == 1
    path.write_bytes(whole)
    tensors, header = read_tensors(path)
    missing = sorted(tensors)[0]
    write_tensors(path, {name: tensor for name, tensor in tensors.items() if name != missing}, header)
    said = run("reconstruct", "runs/tiny", "pictures/a.png", "--out", "out")
    assert (said.code, said.err) == (1, f"error: runs/tiny/model/model.safetensors: lacks tensor {missing!r}\n")


def test_a_run_that_has_not_finished_says_how_to_go_on(run: Latelier, here: Path) -> None:
    shutil.rmtree(here / "runs/tiny/model")
    said = run("eval", "runs/tiny")
    assert (said.code, said.err) == (
        1,
        "error: runs/tiny: has not finished; "
        "go on with latelier train runs/tiny/recipe.json --resume --out runs/tiny\n",
    )
    good(run("train", "runs/tiny/recipe.json", "--resume", "--out", "runs/tiny"))
    good(run("eval", "runs/tiny"))


def test_an_error_of_ours_is_no_users_mistake(run: Latelier, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise AssertionError("ours")

    monkeypatch.setattr("latelier.training.train", broken)
    with pytest.raises(AssertionError, match="ours"):
        main(["train", "mine.py:tiny", "--out", "new"])


def test_the_traceback_can_be_had(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATELIER_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        main(["eval", "nowhere"])


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("", "A workshop for image latents"),
        ("trian x", "Did you mean 'train'?"),
        ("show", "Missing argument 'RECIPE'"),
        ("train x --keep 0", "--keep"),
        ("reconstruct runs/tiny a.png", "Missing option '--out'"),
    ],
)
def test_a_command_that_is_none_is_answered_with_its_usage(command: str, hint: str, run: Latelier) -> None:
    said = run(*command.split())
    assert said.code == 2
    assert hint in said.out + said.err


# --- the script ---------------------------------------------------------------------------------------------------


def test_the_script_is_installed_and_needs_no_torch_to_help(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("latelier")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == f"{latelier.__version__}\n"
    code = (
        "import sys, contextlib\n"
        "from latelier.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['train', '--help'])\n"
        "assert not {'torch', 'numpy'} & sys.modules.keys()\n"
    )
    env = os.environ | {"COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "run folder; default: runs/RECIPE" in done.stdout


def test_the_module_runs_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "latelier", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.strip()
