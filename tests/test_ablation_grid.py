"""Grids of variants: where an axis acts, what values are called, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from latelier.blocks import (
    DiTBlockConfig,
    FCDMBlockConfig,
    HOGConfig,
    PartError,
    StackEncoderConfig,
    TeacherConfig,
    TinyViTConfig,
    differences,
)
from latelier.recipes import RECIPES, STUDIES, Recipe, demo, find, find_source, grid, parse_axes, semdisdiffae, swap


def block_of(recipe: Recipe) -> Any:
    model: Any = recipe.model
    return model.encoder.block


def test_a_grid_has_every_combination_in_the_order_of_its_axes() -> None:
    axes = parse_axes(["teacher=hog,tiny_vit,dinov3:vits16", "encoder.block=fcdm,dit"])
    variants = grid(demo.semdisdiffae, axes)
    assert [variant.name for variant in variants] == [
        f"teacher={teacher}, encoder.block={block}"
        for teacher in ("hog", "tiny_vit", "dinov3:vits16")
        for block in ("fcdm", "dit")
    ]
    assert variants[3].labels == {"teacher": "tiny_vit", "encoder.block": "dit"}
    assert variants[0].recipe == demo.semdisdiffae()
    fitted = StackEncoderConfig(block=DiTBlockConfig(), depth=1)
    assert variants[3].recipe == demo.semdisdiffae(teacher=TinyViTConfig(), encoder=fitted)


def test_an_argument_of_the_function_changes_what_depends_on_it() -> None:
    wide = grid(semdisdiffae, {"teacher": ["hog", HOGConfig(cells=4)]})[1].recipe
    assert wide == semdisdiffae(teacher=HOGConfig(cells=4))
    term: Any = wide.stages[0].objective[1]
    assert term.head.width == 192


def test_python_values_and_text_give_the_same_variants() -> None:
    texts = grid(demo.semdisdiffae, parse_axes(['teacher=hog,{"kind":"teacher/tiny_vit","width":96},tiny_vit:128']))
    parts = [HOGConfig(), TinyViTConfig(width=96), TinyViTConfig(width=128)]
    values = grid(demo.semdisdiffae, {"teacher": parts})
    assert [v.recipe for v in texts] == [v.recipe for v in values]
    assert [v.name for v in texts] == [v.name for v in values]
    assert [v.labels["teacher"] for v in values] == ["hog", "tiny_vit:96", "tiny_vit:128"]


def test_a_path_inside_an_argument_keeps_the_rest_of_it() -> None:
    given = {"encoder": StackEncoderConfig(depth=2)}
    made = grid(demo.semdisdiffae, {"encoder.block": ["fcdm", "dit:24"]}, arguments=given)
    models: list[Any] = [variant.recipe.model for variant in made]
    assert [model.encoder.depth for model in models] == [2, 2]
    assert block_of(made[1].recipe) == DiTBlockConfig(head_width=24)


def test_other_paths_are_those_of_the_recipe_its_model_and_all_its_stages() -> None:
    def changed(axis: str, value: str) -> list[str]:
        recipe = grid(demo.semdisdiffae, {axis: [value]})[0].recipe
        return differences(recipe, demo.semdisdiffae(), where="")

    assert changed("model.latent", "16") == [".model.latent: 16, not 32"]
    assert changed("latent", "16") == [".model.latent: 16, not 32"]
    assert changed("optimiser.rate", "1e-3") == [".stages.0.optimiser.rate: 0.001, not 0.002"]
    assert changed("objective.alignment.weight", "0") == [".stages.0.objective.1.weight: 0.0, not 0.01"]
    assert changed("stages.main.batch", "8") == [".stages.0.batch: 8, not 16"]
    assert changed("seed", "7") == [".seed: 7, not 0"]
    two_stages = grid(find_source("full_capacitor"), {"resolution": ["128"]})[0].recipe
    assert [stage.resolution for stage in two_stages.stages] == [128, 128]


def test_a_recipe_without_a_function_has_the_paths_of_its_fields() -> None:
    made = grid(find("demo/semdisdiffae"), {"encoder.block": ["fcdm", "dit:32"]})
    assert [block_of(v.recipe) for v in made] == [FCDMBlockConfig(), DiTBlockConfig(head_width=32)]
    assert made[0].recipe.teacher == HOGConfig(patch=8)


def test_settings_and_arguments_hold_for_every_variant() -> None:
    made = grid(
        demo.semdisdiffae, {"teacher": ["hog", "tiny_vit"]}, settings=["model.latent=8"], arguments={"steps": 4}
    )
    for variant in made:
        model: Any = variant.recipe.model
        assert (model.latent, variant.recipe.stages[0].steps) == (8, 4)


def test_no_axes_give_the_recipe_itself() -> None:
    (only,) = grid(demo.semdisdiffae, {})
    assert (only.name, only.recipe, only.labels) == ("demo/semdisdiffae", demo.semdisdiffae(), {})


def test_functions_of_a_users_file_have_axes(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from latelier.recipes import demo\nfrom latelier.blocks import HOGConfig\n"
        "def tiny(*, teacher=HOGConfig(patch=8), steps=3):\n"
        "    return demo.semdisdiffae(teacher=teacher, steps=steps)\n"
    )
    made = grid(find_source(f"{tmp_path}/mine.py:tiny"), parse_axes(["teacher=hog,tiny_vit", "steps=3,4"]))
    assert [type(v.recipe.teacher) for v in made] == [HOGConfig, HOGConfig, TinyViTConfig, TinyViTConfig]
    assert [v.recipe.stages[0].steps for v in made] == [3, 4, 3, 4]


def test_every_published_teacher_family_is_a_value_of_the_teacher_axis() -> None:
    axes = parse_axes(["teacher=dinov2:vits14,dinov2:vitb14_reg,dinov3:convnext_tiny,siglip2,mae,c_radio,pe,aimv2"])
    for variant in grid(semdisdiffae, axes):
        assert isinstance(variant.recipe.teacher, TeacherConfig)
        term: Any = variant.recipe.stages[0].objective[1]
        assert term.head.width == -(-variant.recipe.teacher.features // 64) * 64


@pytest.mark.parametrize("name", STUDIES)
def test_a_ready_study_has_variants_that_build(name: str) -> None:
    variants = STUDIES[name](steps=5)
    assert len(variants) >= 2
    assert len({variant.recipe.id for variant in variants}) == len(variants)
    assert {variant.recipe.stages[0].steps for variant in variants} == {5}
    for variant in variants:
        variant.recipe.model.build()
    assert name not in RECIPES


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (["teacher"], "--axis teacher: is no axis; write path=value,value such as teacher=hog,tiny_vit"),
        (["=hog"], "--axis =hog: is no axis; write path=value,value such as teacher=hog,tiny_vit"),
        (["teacher="], "--axis teacher: has an empty value in ''; write path=value,value"),
        (["teacher=hog,,dit"], "--axis teacher: has an empty value in 'hog,,dit'; write path=value,value"),
        (["teacher=hog", "teacher=dit"], "--axis teacher: is given twice; put all its values behind one"),
        (["teacher=hog,hog"], "axis teacher: has 'hog' twice; give each value once"),
        (["teacher=hogg"], "axis teacher: no part is named 'teacher/hogg'; did you mean 'teacher/hog'?"),
        (["encoder.block=fcmd"], "axis encoder.block: no part is named 'block/fcmd'; did you mean 'block/fcdm'?"),
        (["encoder.blok=fcdm"], "axis encoder: 'encoder/stack' has no field 'blok'; did you mean 'block'?"),
        (["encodr.block=dit"], "axis encodr.block: leads to no argument and no field of 'demo/semdisdiffae'; "
         "did you mean 'encoder'?"),
        (["steps.more=3"], "axis steps.more: the recipe has no 'steps' of its own to change; give 'steps' whole"),
        (["steps=many"], "axis steps: takes int, got 'many'"),
        (["model.latent=0"], "config.model.latent: must be at least 1, got 0"),
        (["teacher=hog,teacher/hog"], "axes: 'teacher=hog' and 'teacher=teacher/hog' are the same recipe; "
         "leave one of them out"),
    ],
)  # fmt: skip
def test_an_axis_that_does_not_fit_is_told(axes: list[str], message: str) -> None:
    with pytest.raises(PartError) as caught:
        grid(demo.semdisdiffae, parse_axes(axes))
    assert str(caught.value) == message


def test_a_setting_that_undoes_an_axis_is_told() -> None:
    with pytest.raises(PartError) as caught:
        grid(demo.semdisdiffae, {"encoder.block": ["fcdm", "dit"]}, settings=["model.encoder.block=fcdm"])
    assert str(caught.value) == (
        "axes: 'encoder.block=fcdm' and 'encoder.block=dit' are the same recipe; leave one of them out"
    )


def test_a_swap_acts_where_an_axis_would() -> None:
    swapped = swap(demo.dinac_ae, ["teacher=tiny_vit:96", "encoder.block=fcdm", "optimiser.rate=1e-3"])
    model: Any = swapped.model
    assert (swapped.teacher, model.token_head.features) == (TinyViTConfig(width=96, patch=8), 96)
    assert block_of(swapped) == FCDMBlockConfig()
    assert swap(demo.dinac_ae, []) == demo.dinac_ae()
    recipe = find("demo/semdisdiffae")
    assert swap(recipe, []) == recipe
    assert block_of(swap(semdisdiffae, ['encoder.block={"kind":"block/fcdm","kernel":3}'])) == FCDMBlockConfig(kernel=3)


@pytest.mark.parametrize(
    ("swaps", "message"),
    [
        (["teacher"], "--swap teacher: is no swap; write path=value, such as teacher=dinov3:vits16"),
        (["teacher="], "--swap teacher=: is no swap; write path=value, such as teacher=dinov3:vits16"),
        (["teacher=hog", "teacher=hog"], "--swap teacher: is given twice; give it once"),
        (["teacher=hogg"], "axis teacher: no part is named 'teacher/hogg'; did you mean 'teacher/hog'?"),
    ],
)
def test_a_swap_that_does_not_fit_is_told(swaps: list[str], message: str) -> None:
    with pytest.raises(PartError) as caught:
        swap(demo.semdisdiffae, swaps)
    assert str(caught.value) == message


def test_commas_inside_of_json_do_not_part_values() -> None:
    text = 'a={"kind":"block/fcdm","kernel":3},[1,2],"x,y",z'
    assert parse_axes([text]) == {"a": ['{"kind":"block/fcdm","kernel":3}', "[1,2]", '"x,y"', "z"]}
