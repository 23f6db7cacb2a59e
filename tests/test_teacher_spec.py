"""The description of a teacher: what it holds, and what differs."""

from dataclasses import fields, replace

import pytest

from latelier.blocks import (
    FixedResizeConfig,
    SpatialZScoreConfig,
    StrideResizeConfig,
    TeacherSpec,
    TinyViTConfig,
    decode,
    encode,
    last_layers,
)

SPEC = TeacherSpec(
    library="timm",
    version="1.0.31",
    model="vit_small_patch14_dinov2.lvd142m",
    weights="random:0",
    licence="apache-2.0",
    resize=FixedResizeConfig(),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    position="bicubic",
    layers=(11,),
    norm="affine",
    cls="token",
    patch=14,
    features=384,
)
CHANGES = {
    "library": "transformers",
    "version": "2",
    "model": "other",
    "weights": "sha256:0123456789abcdef",
    "licence": "mit",
    "images": "[-1, 1]",
    "resize": FixedResizeConfig(antialias=False),
    "mean": (0.4, 0.5, 0.5),
    "std": (0.5, 0.5, 0.4),
    "position": "bicubic_antialias",
    "layers": (10, 11),
    "combine": "sum",
    "norm": "plain",
    "prefix": "drop",
    "cls": "mean",
    "standardise": SpatialZScoreConfig(),
    "dtype": "bfloat16",
    "patch": 16,
    "features": 768,
}


def test_every_field_is_among_the_changes_that_are_tried() -> None:
    assert {field.name for field in fields(TeacherSpec)} == CHANGES.keys()


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_any_field_is_told_by_name_and_changes_the_id(name: str) -> None:
    other = replace(SPEC, **{name: CHANGES[name]})
    assert other.id != SPEC.id
    with pytest.raises(ValueError) as error:
        SPEC.check(other, where="cache")
    told = str(error.value).removeprefix("cache: is of another teacher (")
    assert told.startswith(name)
    SPEC.check(other, where="cache", accept=(name,))


def test_messages_say_what_was_found_and_what_was_wanted() -> None:
    other = replace(SPEC, position="bicubic_antialias", resize=FixedResizeConfig(antialias=False))
    with pytest.raises(ValueError) as error:
        SPEC.check(other, where="features.json")
    assert str(error.value) == (
        "features.json: is of another teacher (resize.antialias: False, not True; "
        "position: 'bicubic_antialias', not 'bicubic'); take the teacher that it was made with, or make it anew"
    )


def test_equal_specs_pass_and_survive_json() -> None:
    SPEC.check(replace(SPEC), where="cache")
    assert decode(encode(SPEC), TeacherSpec) == SPEC
    assert decode(encode(SPEC), TeacherSpec).id == SPEC.id


def test_a_field_that_is_not_accepted_is_told_beside_one_that_is() -> None:
    with pytest.raises(ValueError, match=r"\(norm: 'plain', not 'affine'\)"):
        SPEC.check(replace(SPEC, version="2", norm="plain"), where="cache", accept=("version",))


def test_whatever_changes_numbers_changes_the_spec_of_a_built_teacher() -> None:
    variants = [
        TinyViTConfig(),
        TinyViTConfig(seed=1),
        TinyViTConfig(width=32),
        TinyViTConfig(depth=3),
        TinyViTConfig(head_width=16),
        TinyViTConfig(expand=2.0),
        TinyViTConfig(patch=8),
        TinyViTConfig(registers=0),
        TinyViTConfig(positions="learned"),
        TinyViTConfig(positions="learned", table=8),
        TinyViTConfig(layers=(0,)),
        TinyViTConfig(layers=(0, 1)),
        TinyViTConfig(layers=(1, 0)),
        TinyViTConfig(layers=last_layers(2), combine="sum"),
        TinyViTConfig(norm="plain"),
        TinyViTConfig(norm="none"),
        TinyViTConfig(prefix="drop"),
        TinyViTConfig(cls="mean"),
        TinyViTConfig(cls="none"),
        TinyViTConfig(resize=StrideResizeConfig()),
        TinyViTConfig(mean=(0.5, 0.5, 0.5)),
        TinyViTConfig(std=(0.5, 0.5, 0.5)),
        TinyViTConfig(standardise=SpatialZScoreConfig()),
        TinyViTConfig(dtype="bfloat16"),
    ]
    ids = [variant.build().spec.id for variant in variants]
    assert len(set(ids)) == len(variants)
    assert TinyViTConfig(layers=(1,), norm="affine", cls="token").build().spec == TinyViTConfig().build().spec
