"""Recipes build what they say, stay what they were, differ in what they are told, and are found by their names."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from latelier.blocks import (
    DINOv2Config,
    DINOv3Config,
    DiTBlockConfig,
    FCDMBlockConfig,
    FixedResizeConfig,
    HOGConfig,
    PartError,
    SequenceBlockConfig,
    StackEncoderConfig,
    StrideResizeConfig,
    TinyViTConfig,
    decode,
    differences,
    encode,
)
from latelier.recipes import RECIPES, Recipe, demo, dinac_ae, dinac_ae_d2, find, semdisdiffae, semdisdiffae_p32
from latelier.training import FolderDataConfig

GOLDENS = Path(__file__).parent / "goldens"

SIZES = {  # parameters, latent channels, stride
    "semdisdiffae": (88_771_328, 128, 16),
    "semdisdiffae_p32": (88_771_328, 512, 32),
    "semdisdiffae_p32_v2": (156_636_928, 384, 32),
    "full_capacitor": (88_771_328, 128, 16),
    "capacitor_decoder": (61_933_184, 128, 16),
    "dinac_ae": (134_941_184, 128, 16),
    "dinac_ae_d2": (154_216_192, 128, 16),
    "sd_to_dinov2": (61_221_888, 4, 8),
    "flux_to_dinov2": (61_249_536, 16, 8),
    "flux2_to_dinov3": (61_507_584, 128, 16),
    "sana_to_dinov3": (61_286_400, 32, 32),
    "dinac_to_dinov3": (61_507_584, 128, 16),
    "sd_to_flux2": (60_729_728, 4, 8),
    "demo/semdisdiffae": (487_840, 32, 8),
    "demo/dinac_ae": (622_752, 32, 8),
    "demo/bridge": (379_476, 32, 8),
    "dc_ae_f32c32_sana_1_0": (312_250_275, 32, 32),
    "dc_ae_f32c32_sana_1_1": (312_250_275, 32, 32),
    "dc_ae_f32c32_in_1_0": (323_356_460, 32, 32),
    "dc_ae_f32c32_mix_1_0": (323_356_460, 32, 32),
    "dc_ae_f64c128_in_1_0": (676_896_140, 128, 64),
    "dc_ae_f64c128_mix_1_0": (676_896_140, 128, 64),
    "dc_ae_f128c512_in_1_0": (1_120_682_252, 512, 128),
    "dc_ae_f128c512_mix_1_0": (1_120_682_252, 512, 128),
    "dc_ae_lite_f32c32": (421_181_228, 32, 32),
    "dc_ae_small_64": (3_173_383, 4, 8),
    "dc_ae_small_128": (7_895_827, 16, 16),
    "dc_ae_small_256": (13_875_491, 32, 32),
    "demo/dc_ae": (1_147_172, 8, 8),
}

every_recipe = pytest.mark.parametrize("name", RECIPES)


def changed(ours: Recipe, theirs: Recipe) -> list[str]:
    return differences(ours, theirs, where="recipe")


# --- what they are ------------------------------------------------------------------------------------------------


@every_recipe
def test_its_model_has_the_published_size(name: str) -> None:
    with torch.device("meta"):
        model: Any = RECIPES[name]().model.build()
    parameters = sum(p.numel() for p in model.parameters())
    assert (parameters, model.latent_channels, model.stride) == SIZES[name]


@every_recipe
def test_its_objective_fits_its_model_and_teacher(name: str) -> None:
    recipe = RECIPES[name]()
    with torch.device("meta"):
        for stage in recipe.stages:
            for term in stage.objective:
                term.build(recipe.model, recipe.teacher)


@every_recipe
def test_it_is_called_by_its_name(name: str) -> None:
    assert RECIPES[name]().name == name


@every_recipe
def test_it_is_what_it_was(name: str) -> None:
    """Runs, checkpoints and caches compare recipes: one that changes should change on purpose."""
    path = GOLDENS / f"{name.replace('/', '-')}.json"
    golden = json.loads(path.read_text())
    assert encode(RECIPES[name]()) == golden, (
        f"if this is meant: latelier show {name} --json > tests/goldens/{path.name}"
    )


def test_no_golden_is_left_of_a_recipe_that_is_gone() -> None:
    assert {path.stem for path in GOLDENS.glob("*.json")} == {name.replace("/", "-") for name in RECIPES}


@every_recipe
def test_json_keeps_it_and_gives_its_id(name: str) -> None:
    recipe = RECIPES[name]()
    tree = json.loads(json.dumps(encode(recipe)))
    again = decode(tree, Recipe)
    assert again == recipe
    assert hash(again) == hash(recipe)
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    assert again.id == recipe.id == hashlib.sha256(text.encode()).hexdigest()[:12]


# --- axes ---------------------------------------------------------------------------------------------------------


def test_the_block_changes_in_encoder_and_decoder_alone() -> None:
    assert changed(semdisdiffae(block=DiTBlockConfig()), semdisdiffae()) == [
        "recipe.model.encoder.block: 'block/dit', not 'block/fcdm'",
        "recipe.model.decoder.block: 'block/dit', not 'block/fcdm'",
    ]


def test_the_encoder_changes_alone() -> None:
    swapped = semdisdiffae(encoder=StackEncoderConfig(block=DiTBlockConfig(), depth=6))
    assert changed(swapped, semdisdiffae()) == [
        "recipe.model.encoder.block: 'block/dit', not 'block/fcdm'",
        "recipe.model.encoder.depth: 6, not 4",
    ]


def test_the_teacher_changes_with_the_width_of_its_head() -> None:
    assert changed(semdisdiffae(teacher=HOGConfig(cells=4)), semdisdiffae(teacher=HOGConfig())) == [
        "recipe.stages.0.objective.1.head.width: 192, not 64",
        "recipe.teacher.cells: 4, not 2",
    ]
    assert changed(semdisdiffae(teacher=DINOv2Config(size="vitb14")), semdisdiffae()) == [
        "recipe.stages.0.objective.1.head.width: 768, not 384",
        "recipe.teacher.size: 'vitb14', not 'vits14'",
    ]


def test_the_teachers_are_the_published_ones_on_the_grid_of_the_latents() -> None:
    on_16, on_32 = StrideResizeConfig(stride=16), StrideResizeConfig(stride=32)
    assert {name: RECIPES[name]().teacher for name in RECIPES if "dis" in name or "dinac_ae" in name} == {
        "semdisdiffae": DINOv2Config(size="vits14", resize=on_16),
        "semdisdiffae_p32": DINOv2Config(size="vits14", resize=on_32),
        "semdisdiffae_p32_v2": DINOv3Config(size="convnext_base"),
        "dinac_ae": DINOv3Config(size="vitb16"),
        "dinac_ae_d2": DINOv2Config(size="vitb14", resize=on_16),
        "demo/semdisdiffae": HOGConfig(patch=8),
        "demo/dinac_ae": HOGConfig(patch=8),
    }


def test_a_recipe_places_its_teacher_on_its_latents_unless_somebody_has() -> None:
    assert semdisdiffae(teacher=HOGConfig(patch=4)).teacher == HOGConfig(patch=16)
    assert demo.semdisdiffae(teacher=TinyViTConfig()).teacher == TinyViTConfig(patch=8)
    assert demo.dinac_ae(teacher=DINOv3Config()).teacher == DINOv3Config(resize=StrideResizeConfig(stride=8))
    chosen = DINOv2Config(resize=FixedResizeConfig(height=224, width=224))
    assert semdisdiffae(teacher=chosen).teacher == chosen


def test_dinac_ae_is_semdisdiffae_with_these_differences() -> None:
    ours = dinac_ae()
    assert ours.teacher is not None
    theirs = semdisdiffae(teacher=ours.teacher)
    assert [line.partition(":")[0] for line in changed(ours, theirs)] == [
        "recipe.name",
        "recipe.model",
        "recipe.stages.0.objective",
        "recipe.stages.0.corruption",
        "recipe.probes",
    ]
    assert [term.kind.partition("/")[2] for term in ours.stages[0].objective] == [
        "vp_reconstruction",
        "patch_alignment",
        "class_alignment",
        "variance_expansion",
        "latent_scale",
    ]


def test_dinac_ae_d2_differs_by_its_depth_and_its_teacher() -> None:
    assert changed(dinac_ae_d2(), dinac_ae()) == [
        "recipe.name: 'dinac_ae_d2', not 'dinac_ae'",
        "recipe.model.encoder.depth: 8, not 6",
        "recipe.teacher: 'teacher/dinov2', not 'teacher/dinov3'",
    ]


def test_the_teacher_of_dinac_ae_changes_with_its_token_head() -> None:
    assert changed(dinac_ae(teacher=HOGConfig()), dinac_ae()) == [
        "recipe.model.token_head.features: 36, not 768",
        "recipe.model.token_head.width: 64, not None",
        "recipe.teacher: 'teacher/hog', not 'teacher/dinov3'",
    ]


def test_the_encoder_of_dinac_ae_may_be_a_mixture() -> None:
    mixture = SequenceBlockConfig(blocks=4 * (FCDMBlockConfig(),) + 2 * (DiTBlockConfig(),))
    swapped = dinac_ae(encoder=StackEncoderConfig(block=mixture, depth=1))
    assert changed(swapped, dinac_ae()) == [
        "recipe.model.encoder.block: 'block/sequence', not 'block/dit'",
        "recipe.model.encoder.depth: 1, not 6",
    ]


def test_the_data_change_alone() -> None:
    assert changed(semdisdiffae(data=FolderDataConfig(path="a")), semdisdiffae()) == ["recipe.data.path: 'a', not ''"]


def test_packing_changes_the_latents_and_the_grid_of_the_teacher() -> None:
    assert changed(semdisdiffae_p32(), semdisdiffae()) == [
        "recipe.name: 'semdisdiffae_p32', not 'semdisdiffae'",
        "recipe.model.latent_patch: 2, not 1",
        "recipe.teacher.resize.stride: 32, not 16",
    ]


def test_every_block_makes_a_demo() -> None:
    for block in (FCDMBlockConfig(kernel=3), DiTBlockConfig(head_width=32), DiTBlockConfig(), SequenceBlockConfig()):
        recipe = demo.semdisdiffae(block=block, steps=8)
        with torch.device("meta"):
            recipe.model.build()
        assert recipe.stages[0].checkpoint_every == 2


def test_the_encoder_of_a_demo_changes_alone_and_its_heads_fit() -> None:
    encoder = StackEncoderConfig(block=SequenceBlockConfig(blocks=(FCDMBlockConfig(), DiTBlockConfig())), depth=1)
    plain: Any = demo.semdisdiffae().model
    for make in (demo.semdisdiffae, demo.dinac_ae):
        model: Any = make(encoder=encoder).model
        assert model.encoder.block.blocks == (FCDMBlockConfig(), DiTBlockConfig(head_width=48))
        assert model.decoder == plain.decoder


# --- find ---------------------------------------------------------------------------------------------------------


MINE = """
from dataclasses import replace
from functools import partial
from latelier.blocks import FCDMBlockConfig
from latelier.recipes import demo

def tiny():
    return replace(demo.semdisdiffae(), name="tiny")

def sized(width):
    return tiny()

def misspelt():
    block = FCDMBlockConfig(kernel="5")
    return demo.semdisdiffae(block=block)

def nothing():
    pass

short = partial(demo.semdisdiffae, steps=2)
made = tiny()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a user's file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def test_a_recipe_is_found_by_its_name_and_changed() -> None:
    assert find("semdisdiffae_p32") == semdisdiffae_p32()
    found = find("semdisdiffae", ["model.encoder.depth=8", "stages.main.objective.alignment.weight=0"])
    assert changed(found, semdisdiffae()) == [
        "recipe.model.encoder.depth: 8, not 4",
        "recipe.stages.0.objective.1.weight: 0.0, not 0.01",
    ]


def test_a_recipe_is_found_in_a_file(here: Path) -> None:
    tiny = replace(demo.semdisdiffae(), name="tiny")
    for name in ("mine.py:tiny", "./mine.py:tiny", f"{here}/mine.py:tiny", "mine.py:made"):
        assert find(name) == tiny
    assert find("mine.py:short") == demo.semdisdiffae(steps=2)
    assert find("mine.py:tiny", ["seed=3"]) == replace(tiny, seed=3)


def test_a_recipe_is_found_in_json_yaml_and_run_folders(here: Path) -> None:
    recipe = demo.semdisdiffae(steps=7)
    text = json.dumps(encode(recipe))
    (here / "runs").mkdir()
    for name in ("a.json", "runs/recipe.json", "a.yaml", "a.yml"):  # JSON is YAML
        Path(name).write_text(text)
    for name in ("a.json", "a.yaml", "a.yml", "runs", "runs/recipe.json"):
        assert find(name) == recipe


def test_yaml_may_leave_out_defaults_and_write_numbers_as_people_do(here: Path) -> None:
    Path("a.yaml").write_text("""
kind: recipe/staged
name: mine
model: {kind: family/semdisdiffae, width: 64}
data: {kind: data/photographs}
stages:
  - kind: stage/joint
    objective: [{kind: objective/vp_reconstruction}]
    optimiser: {kind: optimiser/adamw, rate: 1e-3, eps: 1.5E-8, beta1: .9}
""")
    optimiser: Any = find("a.yaml").stages[0].optimiser
    assert (optimiser.rate, optimiser.eps, optimiser.beta1) == (1e-3, 1.5e-8, 0.9)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("semdisdifae", "recipe: none is named 'semdisdifae'; did you mean 'semdisdiffae'?"),
        (
            "xyz",
            f"recipe: none is named 'xyz'; known: {', '.join(map(repr, RECIPES))}",
        ),
        ("nope.py:tiny", "recipe: there is no Python file 'nope.py'"),
        ("nope.json", "recipe: there is no file 'nope.json'"),
        ("mine.py", "mine.py: is a file of recipes; write mine.py:tiny"),
        ("./empty.py", "empty.py: is a file of recipes; write empty.py:function"),
        ("mine.py:tny", "mine.py: has no function 'tny'; it has 'tiny', 'sized', 'misspelt', 'nothing'"),
        ("empty.py:tiny", "empty.py: has no function 'tiny'; it has none"),
        ("mine.py:nothing", "mine.py: 'nothing' gives None; it must return a Recipe"),
        ("mine.py:misspelt", "mine.py:14: config.kernel: takes int, got '5'"),
        ("mine.py:sized", "mine.py: TypeError: sized() missing 1 required positional argument: 'width'"),
        ("broken.py:tiny", "broken.py:2: SyntaxError: '(' was never closed"),
        ("failing.py:tiny", "failing.py:2: ModuleNotFoundError: No module named 'no_such_module'"),
        ("broken.json", "broken.json: is no JSON (Expecting ',' delimiter: line 1 column 8 (char 7))"),
        (
            "latin.json",
            "latin.json: is no JSON ('utf-8' codec can't decode byte 0xe9 in position 1: invalid continuation byte)",
        ),
        ("list.json", "list.json: config: takes 'recipe/staged', got [1]"),
        ("model.json", "model.json: config: takes 'recipe/staged', got 'family/semdisdiffae'"),
        ("typo.json", "typo.json: config.model: 'family/semdisdiffae' has no field 'widht'; did you mean 'width'?"),
        (
            "broken.yaml",
            'broken.yaml: is no YAML (mapping values are not allowed here in "<unicode string>", line 1, column 5: '
            "a: b: c ^)",
        ),
    ],
)
def test_what_cannot_be_found_is_told(name: str, message: str, here: Path) -> None:
    files = {
        "empty.py": "",
        "broken.py": "x = 1\nf(\n",
        "failing.py": "x = 1\nimport no_such_module\n",
        "broken.json": '{"a": 1',
        "list.json": "[1]",
        "model.json": '{"kind": "family/semdisdiffae"}',
        "typo.json": json.dumps(encode(semdisdiffae()) | {"model": {"kind": "family/semdisdiffae", "widht": 3}}),
        "broken.yaml": "a: b: c",
    }
    for file, text in files.items():
        Path(file).write_text(text)
    Path("latin.json").write_bytes('"é"'.encode("latin-1"))
    with pytest.raises(PartError) as caught:
        find(name)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "model.encoder.dept=8",
            "config.model.encoder: 'encoder/stack' has no field 'dept'; did you mean 'depth'?",
        ),
        ("modle.width=8", "config: 'recipe/staged' has no field 'modle'; did you mean 'model'?"),
        ("model.encoder.depth", "model.encoder.depth: is no setting; write path=value, such as encoder.depth=8"),
        ("model.encoder.depth=8.5", "config.model.encoder.depth: takes int, got 8.5"),
        ("model.encoder.depth=true", "config.model.encoder.depth: takes int, got True"),
        (
            "model.encoder.block=fcmd",
            "config.model.encoder.block: no part is named 'block/fcmd'; did you mean 'block/fcdm'?",
        ),
        ("model.encoder=block/dit", "config.model.encoder: takes a part of slot 'encoder', got 'block/dit'"),
        ("stages.mian.steps=2", "config.stages: has no item 'mian'; did you mean 'main'?"),
        (
            "stages.main.precision=bf16",
            "config.stages.0.precision: takes 'auto' or 'float32' or 'bfloat16' or 'float16', got 'bf16'; "
            "did you mean 'bfloat16'?",
        ),
        (
            "stages.main.resolution=250",
            "config.stages.0.resolution: must be divisible by the model's stride 16, got 250",
        ),
        ("stages.main.steps=0", "config.stages.0.steps: must be at least 1, got 0"),
        ("model.width.depth=8", "config.model.width: is 896 and has no field 'depth'"),
    ],
)
def test_a_setting_that_does_not_fit_is_told(setting: str, message: str) -> None:
    with pytest.raises(PartError) as caught:
        find("semdisdiffae", [setting])
    assert str(caught.value) == message
