"""Networks of timm and transformers as teachers: equal where the libraries agree, and the field named where not.

All networks are tiny ones with random weights; the same tensors go through both libraries.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from safetensors.torch import save_file
from torch import Tensor

from latelier.blocks import (
    DINOv2Config,
    FixedResizeConfig,
    NetworkTeacher,
    PartError,
    TeacherConfig,
    TimmConfig,
    TransformersConfig,
    decode,
    differences,
    encode,
    last_layers,
    weights_hash,
)

VIT: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPE: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2}
MAPS: dict[str, Any] = {"hidden_sizes": (8, 16, 24, 32), "depths": (1, 1, 2, 1)}

# name -> (type and config of transformers, name and settings of timm, patch, whether sizes other than its own agree)
PAIRS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], int, bool]] = {
    "dinov2": (
        "dinov2",
        {**VIT, "patch_size": 14, "image_size": 70},
        "vit_small_patch14_dinov2.lvd142m",
        {**SHAPE, "img_size": 70},
        14,
        False,
    ),
    "dinov2_reg": (
        "dinov2_with_registers",
        {**VIT, "patch_size": 14, "image_size": 70},
        "vit_small_patch14_reg4_dinov2.lvd142m",
        {**SHAPE, "img_size": 70},
        14,
        True,
    ),
    "dinov2_giant": (
        "dinov2",
        {**VIT, "patch_size": 14, "image_size": 70, "mlp_ratio": 4, "use_swiglu_ffn": True},
        "vit_giant_patch14_dinov2.lvd142m",
        {**SHAPE, "img_size": 70, "mlp_ratio": 2.75 * 2},
        14,
        False,
    ),
    "dinov3": (
        "dinov3_vit",
        {**VIT, "patch_size": 16, "intermediate_size": 128, "num_register_tokens": 4},
        "vit_small_patch16_dinov3_qkvb.lvd1689m",
        SHAPE,
        16,
        True,
    ),
    "dinov3_plus": (
        "dinov3_vit",
        {
            **VIT,
            "patch_size": 16,
            "intermediate_size": 128,
            "num_register_tokens": 4,
            "use_gated_mlp": True,
            "hidden_act": "silu",
        },
        "vit_small_plus_patch16_dinov3_qkvb.lvd1689m",
        SHAPE,
        16,
        True,
    ),
    "dinov3_convnext": (
        "dinov3_convnext",
        MAPS,
        "convnext_tiny.dinov3_lvd1689m",
        {"dims": MAPS["hidden_sizes"], "depths": MAPS["depths"]},
        32,
        True,
    ),
    "siglip2": (
        "siglip_vision_model",
        {**VIT, "patch_size": 16, "image_size": 80, "intermediate_size": 128},
        "vit_so400m_patch16_siglip_256.v2_webli",
        {**SHAPE, "img_size": 80, "mlp_ratio": 4.0},
        16,
        False,
    ),
    "siglip2_naflex": (
        "siglip2_vision_model",
        {**VIT, "patch_size": 16, "num_patches": 25, "intermediate_size": 128},
        "naflexvit_base_patch16_siglip.v2_webli",
        {**SHAPE, "pos_embed_grid_size": (5, 5)},
        16,
        True,
    ),
    "mae": (
        "vit_mae",
        {**VIT, "patch_size": 16, "image_size": 80, "intermediate_size": 128, "layer_norm_eps": 1e-6},
        "vit_base_patch16_224.mae",
        {**SHAPE, "img_size": 80},
        16,
        False,
    ),
}
TABLES = ["dinov2", "dinov2_reg", "siglip2", "siglip2_naflex", "mae"]
"""Networks with a learned table of positions."""

pairs = pytest.mark.parametrize("name", PAIRS)


def pictures(height: int, width: int, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A file of weights, in transformers' names, in which nothing is at its initial zero or one."""
    folder, done = tmp_path_factory.mktemp("weights"), {}

    def of(name: str) -> Path:
        if name not in done:
            kind, config, *_ = PAIRS[name]
            network: Any = TransformersConfig(model=kind, settings=tuple(config.items()), random_init=True)
            generator = torch.Generator().manual_seed(0)
            tensors = {
                key: value + 0.05 * torch.randn(value.shape, generator=generator)
                for key, value in network.backbone().network.state_dict().items()
            }
            done[name] = folder / f"{name}.safetensors"
            save_file(tensors, str(done[name]))
        return done[name]

    return of


@pytest.fixture
def two(weights: Callable[[str], Path]) -> Callable[..., tuple[NetworkTeacher, NetworkTeacher]]:
    """The same weights through timm and through transformers."""

    def build(name: str, **choices: Any) -> tuple[NetworkTeacher, NetworkTeacher]:
        kind, config, model, shape, *_ = PAIRS[name]
        path = str(weights(name))
        ours = TimmConfig(model=model, settings=tuple(shape.items()), weights=path, **choices)
        theirs = TransformersConfig(model=kind, settings=tuple(config.items()), weights=path, **choices)
        return ours.build(), theirs.build()

    return build


def compare(first: NetworkTeacher, second: NetworkTeacher, images: Tensor) -> float:
    """The largest relative error of patches, class token and registers."""
    a, b = first(images), second(images)
    assert a.grid == b.grid
    errors = []
    for x, y in ((a.patches, b.patches), (a.cls, b.cls), (a.registers, b.registers)):
        assert (x is None) == (y is None)
        if x is not None and y is not None:
            errors.append(((x - y).norm() / y.norm()).item())
    return max(errors)


# --- two libraries, one network -----------------------------------------------------------------------------------


@pairs
def test_two_libraries_agree_at_the_native_size(name: str, two: Any) -> None:
    patch = PAIRS[name][4]
    assert compare(*two(name), images=pictures(5 * patch, 5 * patch)) < 1e-5


@pytest.mark.parametrize("name", [name for name in PAIRS if PAIRS[name][5]])
def test_two_libraries_agree_at_other_sizes_where_they_fit_positions_alike(name: str, two: Any) -> None:
    patch, (first, second) = PAIRS[name][4], two(name)
    assert first.spec.position == second.spec.position
    for rows, columns in ((4, 4), (2, 5), (7, 3)):
        assert compare(first, second, pictures(rows * patch, columns * patch)) < 1e-5


@pytest.mark.parametrize("name", ["dinov2", "siglip2", "mae"])
def test_where_they_fit_positions_otherwise_the_spec_names_the_field(name: str, two: Any) -> None:
    patch, (first, second) = PAIRS[name][4], two(name)
    assert compare(first, second, pictures(3 * patch, 3 * patch)) > 1e-3
    assert ".position: 'bicubic_antialias', not 'bicubic'" in differences(first.spec, second.spec, where="")


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("position", ["bicubic", "bicubic_antialias", "bicubic_offset"])
def test_one_rule_for_positions_makes_both_libraries_agree(name: str, position: Any, two: Any) -> None:
    patch, (first, second) = PAIRS[name][4], two(name, position=position)
    for rows, columns in ((5, 5), (3, 3), (2, 7), (8, 8)):
        assert compare(first, second, pictures(rows * patch, columns * patch)) < 1e-5
    assert first.spec.position == second.spec.position == position


def test_dinov2_at_224_and_112_is_one_teacher_only_under_one_rule(tmp_path: Path) -> None:
    """The published table of 37 x 37 positions, at the sizes of bridges."""
    config = (*VIT.items(), ("patch_size", 14), ("image_size", 518), ("num_hidden_layers", 1))
    shape = (*SHAPE.items(), ("img_size", 518), ("depth", 1))
    network: Any = TransformersConfig(model="dinov2", settings=config, random_init=True).backbone()
    path = tmp_path / "weights.safetensors"
    save_file(network.network.state_dict(), path)

    def both(position: Any) -> tuple[NetworkTeacher, NetworkTeacher]:
        return (
            TimmConfig(
                model="vit_small_patch14_dinov2.lvd142m", settings=shape, weights=str(path), position=position
            ).build(),
            TransformersConfig(model="dinov2", settings=config, weights=str(path), position=position).build(),
        )

    for side in (224, 112):
        images = pictures(side, side, batch=1)
        assert compare(*both(None), images) > 1e-2
        for position in ("bicubic", "bicubic_antialias", "bicubic_offset"):
            assert compare(*both(position), images) < 1e-5
    line = differences(both(None)[0].spec, both(None)[1].spec, where="")
    assert ".position: 'bicubic_antialias', not 'bicubic'" in line


def test_a_rule_that_is_the_librarys_own_changes_nothing(two: Any) -> None:
    images = pictures(42, 56)
    for chosen, plain in zip(two("dinov2"), (0, 1), strict=True):
        again = two("dinov2", position=chosen.spec.position)[plain]
        torch.testing.assert_close(again(images).patches, chosen(images).patches, atol=1e-6, rtol=1e-6)


def test_metas_rule_divides_by_a_side_that_is_a_tenth_longer(two: Any) -> None:
    first, _ = two("dinov2", position="bicubic_offset")
    owner: Any = first.backbone
    table = owner.network.pos_embed
    square = table[0, 1:].T.reshape(1, 32, 5, 5)
    scaled = F.interpolate(square, scale_factor=(3.1 / 5, 7.1 / 5), mode="bicubic")
    with owner._table((3, 7)):
        assert torch.equal(owner.network.pos_embed[0, 0], table[0, 0])
        torch.testing.assert_close(owner.network.pos_embed[0, 1:], scaled[0].flatten(1).T)
    assert owner.network.pos_embed is table


@pytest.mark.parametrize("name", ["siglip2", "siglip2_naflex", "dinov3_convnext"])
def test_pooling_of_the_networks_own_agrees(name: str, two: Any) -> None:
    patch, (first, second) = PAIRS[name][4], two(name, cls="pooled")
    out = first(pictures(5 * patch, 5 * patch))
    assert out.cls is not None
    assert compare(first, second, pictures(5 * patch, 5 * patch)) < 1e-5
    assert (out.cls - out.patches.mean(dim=1)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["dinov2_reg", "dinov3", "siglip2"])
def test_layers_and_norms_agree(name: str, two: Any) -> None:
    patch = PAIRS[name][4]
    for choices in (
        {"layers": (0,)},
        {"layers": last_layers(2), "combine": "sum"},
        {"norm": "plain"},
        {"norm": "none"},
    ):
        assert compare(*two(name, **choices), images=pictures(5 * patch, 5 * patch)) < 1e-5


# --- a library's own call -----------------------------------------------------------------------------------------


@pairs
def test_the_default_is_what_timm_gives(name: str, two: Any) -> None:
    patch, (teacher, _) = PAIRS[name][4], two(name)
    images = pictures(4 * patch, 3 * patch)
    network: Any = teacher.backbone
    with torch.no_grad():
        features = network.network.forward_features((images - teacher.mean) / teacher.std)
        features = features["patches"] if isinstance(features, dict) else features
    out = teacher(images)
    if features.ndim == 4:  # ConvNeXt, whose norm over tokens is timm's over the pooled map
        features = network.network.head.norm(features).flatten(2).transpose(1, 2)
    tokens = [x if x.ndim == 3 else x[:, None] for x in (out.cls, out.registers, out.patches) if x is not None]
    torch.testing.assert_close(torch.cat(tokens, dim=1), features, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["dinov2", "dinov2_reg", "dinov3", "dinov3_convnext", "siglip2", "mae"])
def test_the_default_is_what_transformers_gives(name: str, two: Any) -> None:
    patch, (_, teacher) = PAIRS[name][4], two(name)
    images = pictures(5 * patch, 5 * patch)
    network: Any = teacher.backbone
    with torch.no_grad():
        given = network.network((images - teacher.mean) / teacher.std, **_order(name))
    out = teacher(images)
    last = given.last_hidden_state
    prefix = last.shape[1] - 25
    torch.testing.assert_close(out.patches, last[:, prefix:], atol=1e-5, rtol=1e-5)
    if out.cls is not None:
        torch.testing.assert_close(out.cls, last[:, 0], atol=1e-5, rtol=1e-5)


def _order(name: str) -> dict[str, Tensor]:
    return {"noise": torch.arange(25.0).expand(2, -1)} if name == "mae" else {}


def test_a_call_leaves_the_network_as_it_was(two: Any) -> None:
    """No hook, no table and no method of ours stays behind, whether the call went well or not."""
    for teacher in two("dinov2", position="bicubic"):
        backbone: Any = teacher.backbone
        before = weights_hash(backbone.network.state_dict())
        teacher(pictures(42, 56))
        with pytest.raises(ValueError):
            teacher(pictures(41, 56))
        with pytest.raises((RuntimeError, ValueError)):
            backbone.hidden(torch.zeros(1, 4, 42, 42), [0])
        assert weights_hash(backbone.network.state_dict()) == before
        assert not any(module._forward_hooks for module in backbone.modules())
        assert not any("interpolate_pos_encoding" in vars(module) for module in backbone.modules())
        assert all(module.grid_size == (5, 5) for module in backbone.modules() if hasattr(module, "grid_size"))


def test_patches_of_mae_are_all_there_and_in_order(two: Any) -> None:
    """A change in one patch changes the token of that place the most, image for image and call for call."""
    _, teacher = two("mae")
    images = pictures(80, 80)
    assert torch.equal(teacher(images).patches, teacher(images).patches)
    for place in (0, 7, 24):
        row, column = divmod(place, 5)
        changed = images.clone()
        changed[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 0
        moved = (teacher(changed).patches - teacher(images).patches).norm(dim=-1)
        assert (moved.argmax(dim=1) == place).all()


# --- layouts ------------------------------------------------------------------------------------------------------

TIMM_LAYOUTS = {
    # name: (settings, class token, registers, final norm, position)
    "vit_small_patch14_dinov2": (SHAPE, True, 0, True, "bicubic_antialias"),
    "vit_small_patch14_reg4_dinov2": (SHAPE, True, 4, True, "bicubic_antialias"),
    "vit_small_patch16_dinov3": (SHAPE, True, 4, True, "rope"),
    "vit_base_patch16_siglip_224": (SHAPE, False, 0, True, "bicubic_antialias"),
    "naflexvit_base_patch16_radio_v3": (
        {**SHAPE, "pos_embed_grid_size": (8, 8)},
        True,
        7,
        False,
        "bilinear_square_corners",
    ),
    "vit_so400m_patch16_radio_v4": (SHAPE, True, 9, False, "bicubic_antialias"),
    "vit_pe_spatial_tiny_patch16_512": (SHAPE, True, 0, False, "rope, bicubic_antialias"),
    "vit_pe_core_tiny_patch16_384": (SHAPE, True, 0, True, "rope, bicubic_antialias"),
    "aimv2_large_patch14_224": (SHAPE, False, 0, True, "bicubic_antialias"),
    "eva02_tiny_patch14_224": (SHAPE, True, 0, False, "rope, bicubic_antialias"),
    "vit_base_patch14_reg1_tipsv2": (SHAPE, True, 1, True, "bicubic_antialias"),
    "vit_huge_patch14_gap_224": (SHAPE, False, 0, True, "bicubic_antialias"),
    "convnext_tiny": ({"dims": (8, 8, 8, 32), "depths": (1, 1, 1, 1)}, False, 0, True, "none"),
    "resnet18": ({}, False, 0, False, "none"),
    "swin_tiny_patch4_window7_224": (
        {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "strict_img_size": False},
        False,
        0,
        False,
        "none",
    ),
}


@pytest.mark.parametrize("model", TIMM_LAYOUTS)
def test_prefixes_norms_and_positions_of_timm_are_known(model: str) -> None:
    shape, cls, registers, norm, position = TIMM_LAYOUTS[model]
    config = TimmConfig(model=model, settings=tuple(shape.items()), random_init=True)
    teacher = config.build()
    patch = config.token_pixels
    out = teacher(pictures(3 * patch, 2 * patch))
    assert out.grid == (3, 2)
    assert out.patches.shape == (2, 6, config.features)
    assert (out.cls is not None) == cls
    assert (0 if out.registers is None else out.registers.shape[1]) == registers
    assert (teacher.spec.norm == "affine") == norm
    assert teacher.spec.position == position
    assert teacher.spec.patch == patch


TRANSFORMERS_LAYOUTS = {
    "dinov2": ({**VIT, "patch_size": 14, "image_size": 56}, True, 0, True, "bicubic"),
    "dinov2_with_registers": ({**VIT, "patch_size": 14, "image_size": 56}, True, 4, True, "bicubic_antialias"),
    "dinov3_vit": ({**VIT, "intermediate_size": 64}, True, 0, True, "rope"),
    "vit": ({**VIT, "intermediate_size": 64, "image_size": 64}, True, 0, True, "bicubic"),
    "ijepa": ({**VIT, "intermediate_size": 64, "image_size": 64}, False, 0, True, "bicubic"),
    "clip_vision_model": ({**VIT, "intermediate_size": 64, "image_size": 64}, True, 0, False, "bicubic"),
    "radio": ({**VIT, "max_img_size": 128}, True, 9, False, "bilinear_square"),
    "tipsv2_vision_model": ({**VIT, "patch_size": 14, "image_size": 56}, True, 1, True, "bilinear_antialias"),
}


@pytest.mark.parametrize("kind", TRANSFORMERS_LAYOUTS)
def test_prefixes_norms_and_positions_of_transformers_are_known(kind: str) -> None:
    shape, cls, registers, norm, position = TRANSFORMERS_LAYOUTS[kind]
    config = TransformersConfig(model=kind, settings=tuple(shape.items()), random_init=True)
    teacher = config.build()
    images = pictures(3 * config.token_pixels, 2 * config.token_pixels)
    out = teacher(images)
    assert out.grid == (3, 2)
    assert out.patches.shape == (2, 6, 32)
    assert (out.cls is not None) == cls
    assert (0 if out.registers is None else out.registers.shape[1]) == registers
    assert (teacher.spec.norm == "affine") == norm
    assert teacher.spec.position == position
    network: Any = teacher.backbone
    extra = {"interpolate_pos_encoding": True} if kind in ("vit", "ijepa", "clip_vision_model") else {}
    with torch.no_grad():
        last = network.network((images - teacher.mean) / teacher.std, **extra).last_hidden_state
    torch.testing.assert_close(out.patches, last[:, -6:], atol=1e-5, rtol=1e-5)
    if out.cls is not None:
        torch.testing.assert_close(out.cls, last[:, 0], atol=1e-5, rtol=1e-5)


def test_networks_of_one_size_say_so() -> None:
    config = TimmConfig(model="beit_base_patch16_224", settings=tuple(SHAPE.items()), random_init=True)
    teacher = config.build()
    assert teacher(pictures(224, 224, batch=1)).grid == (14, 14)
    with pytest.raises(ValueError) as error:
        teacher(pictures(32, 64))
    assert str(error.value) == "teacher/timm: takes 224x224 pixels only, got 32x64"


def test_radio_normalises_once() -> None:
    shape = (*VIT.items(), ("max_img_size", 128))
    teacher = TransformersConfig(model="radio", settings=shape, random_init=True, seed=4).build()
    torch.manual_seed(4)
    whole: Any = transformers.RadioModel(transformers.RadioConfig(**VIT, max_img_size=128)).eval()
    images = pictures(48, 32)
    with torch.no_grad():
        expected = whole(images)
    out = teacher(images)
    torch.testing.assert_close(out.patches, expected.features, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.cls, expected.last_hidden_state[:, 0], atol=1e-5, rtol=1e-5)


def test_aimv2_of_transformers_takes_other_sizes_only_under_a_rule_that_is_named() -> None:
    shape = (*VIT.items(), ("patch_size", 14), ("image_size", 56), ("intermediate_size", 64))
    config = TransformersConfig(model="aimv2_vision_model", settings=shape, random_init=True)
    assert config.build()(pictures(56, 56)).patches.shape == (2, 16, 32)
    with pytest.raises(ValueError) as error:
        config.build()(pictures(28, 56))
    assert str(error.value) == (
        "teacher/transformers: takes 56x56 pixels only, got 28x56; a 'resize' to that size would do, and so would a "
        "'position' such as 'bicubic_antialias'"
    )
    named = TransformersConfig(
        model="aimv2_vision_model", settings=shape, random_init=True, position="bicubic_antialias"
    ).build()
    assert named(pictures(28, 56)).grid == (2, 4)
    torch.testing.assert_close(named(pictures(56, 56)).patches, config.build()(pictures(56, 56)).patches)


def test_the_class_token_is_the_first_row_and_registers_follow() -> None:
    kind, config, model, shape, *_ = PAIRS["dinov3"]
    for choice in (
        TransformersConfig(model=kind, settings=tuple(config.items()), random_init=True),
        TimmConfig(model=model, settings=tuple(shape.items()), random_init=True),
    ):
        teacher = choice.build()
        network: Any = teacher.backbone
        seen = []
        block = network.network.blocks[0] if hasattr(network.network, "blocks") else network.network.model.layer[0]
        handle = block.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        teacher(pictures(32, 32))
        handle.remove()
        tokens = dict(network.network.named_parameters())
        cls = next(value for name, value in tokens.items() if name.endswith("cls_token"))
        registers = next(value for name, value in tokens.items() if name.endswith(("reg_token", "register_tokens")))
        assert torch.equal(seen[0][0, 0], cls[0, 0])
        assert torch.equal(seen[0][0, 1:5], registers[0])


# --- what every teacher promises ----------------------------------------------------------------------------------


@pairs
def test_sizes_that_the_patch_does_not_divide_are_refused_in_both_libraries(name: str, two: Any) -> None:
    """transformers would crop them in silence."""
    patch = PAIRS[name][4]
    for teacher in two(name):
        with pytest.raises(ValueError) as error:
            teacher(pictures(5 * patch + 6, 5 * patch))
        assert str(error.value) == (
            f"{teacher.name}: takes sizes divisible by {patch}, got {5 * patch + 6}x{5 * patch}; "
            f"{5 * patch}x{5 * patch} would do, and so would another 'resize'"
        )


@pytest.mark.parametrize("name", ["dinov2_reg", "dinov3", "dinov3_convnext", "siglip2_naflex"])
def test_frozen_with_gradients_for_images_alone(name: str, two: Any) -> None:
    patch = PAIRS[name][4]
    for teacher in two(name):
        teacher.train()
        assert not any(module.training for module in teacher.modules())
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        images = pictures(2 * patch, 2 * patch).requires_grad_()
        assert not teacher(images).patches.requires_grad
        (gradient,) = torch.autograd.grad(teacher(images, differentiable=True).patches.square().sum(), images)
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0
        with torch.autocast("cpu", torch.bfloat16):
            inside = teacher(images.detach())
        assert torch.equal(inside.patches, teacher(images.detach()).patches)


@pytest.mark.parametrize("name", ["dinov2", "dinov3", "dinov3_convnext", "siglip2_naflex", "mae"])
def test_half_precision_is_close(name: str, two: Any) -> None:
    patch = PAIRS[name][4]
    images = pictures(5 * patch, 4 * patch)
    for half, full in zip(two(name, dtype="bfloat16"), two(name), strict=True):
        a, b = half(images).patches, full(images).patches
        assert a.dtype == torch.float32
        assert 0 < (a - b).norm() / b.norm() < 0.03


@pytest.mark.parametrize("model", ["vit_pe_spatial_tiny_patch16_512", "eva02_tiny_patch14_224", "dinov3_vit"])
def test_tables_of_rope_stay_float32_in_half_precision(model: str) -> None:
    def build(dtype: Any) -> NetworkTeacher:
        if model == "dinov3_vit":  # timm keeps them, transformers does not
            shape = tuple(PAIRS["dinov3"][1].items())
            return TransformersConfig(model=model, settings=shape, random_init=True, dtype=dtype).build()
        return TimmConfig(model=model, settings=tuple(SHAPE.items()), random_init=True, dtype=dtype).build()

    half, full = build("bfloat16"), build("float32")
    tables = {name: x for name, x in half.named_buffers() if "rope" in name}
    assert tables
    assert {x.dtype for x in tables.values()} == {torch.float32}
    patch = half.spec.patch
    a, b = (teacher(pictures(8 * patch, 8 * patch)).patches for teacher in (half, full))
    assert 0 < (a - b).norm() / b.norm() < 0.03


def _some(name: str) -> NetworkTeacher:
    kind, config, model, shape, *_ = PAIRS[name]
    if name in ("dinov2_reg", "siglip2_naflex", "dinov3_convnext"):
        return TimmConfig(model=model, settings=tuple(shape.items()), random_init=True).build()
    return TransformersConfig(model=kind, settings=tuple(config.items()), random_init=True).build()


@settings(max_examples=12)
@given(name=st.sampled_from(sorted(PAIRS)), rows=st.integers(1, 4), columns=st.integers(1, 4), seed=st.integers(0, 9))
def test_the_grid_follows_the_image_and_no_image_sees_its_batch(name: str, rows: int, columns: int, seed: int) -> None:
    teacher, patch = _some(name), PAIRS[name][4]
    images = pictures(rows * patch, columns * patch, batch=3, seed=seed)
    out = teacher(images)
    assert out.grid == (rows, columns)
    assert out.patches.shape == (3, rows * columns, 32)
    for i in range(3):
        torch.testing.assert_close(teacher(images[i : i + 1]).patches[0], out.patches[i], atol=1e-4, rtol=1e-4)


def test_random_weights_belong_to_the_seed_and_leave_the_global_generator_alone() -> None:
    for config, value in ((TimmConfig, "vit_small_patch16_dinov3"), (TransformersConfig, "dinov3_vit")):
        shape = SHAPE if config is TimmConfig else {**VIT, "intermediate_size": 64}

        def tokens(seed: int, config: Any = config, value: str = value, shape: Any = shape) -> Tensor:
            teacher = config(model=value, settings=tuple(shape.items()), random_init=True, seed=seed).build()
            assert teacher.spec.weights == f"random:{seed}"
            return teacher(pictures(32, 32)).patches

        before = torch.get_rng_state()
        first, again, other = tokens(1), tokens(1), tokens(2)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(first, again)
        assert not torch.allclose(first, other)


def test_specs_say_library_model_licence_and_hash(two: Any, weights: Any, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (teacher.spec for teacher in two("dinov3"))
    assert (first.library, first.version) == ("timm", timm.__version__)
    assert (second.library, second.version) == ("transformers", transformers.__version__)
    assert first.model == "vit_small_patch16_dinov3_qkvb.lvd1689m(embed_dim=32, depth=2, num_heads=2)"
    assert first.licence == "dinov3-license"
    assert second.licence == "see the model card"
    assert first.weights.startswith("sha256:")
    assert second.weights.startswith("sha256:")
    assert first.weights != second.weights  # hashes are of tensors under a library's own names
    assert decode(encode(first)) == first


def test_settings_survive_json_and_short_forms_name_a_model() -> None:
    config = TimmConfig(model="convnext_tiny", settings=(("dims", (8, 8, 8, 8)), ("depths", (1, 1, 1, 1))))
    assert decode(encode(config), TeacherConfig) == config
    assert decode("timm:resnet18", TeacherConfig) == TimmConfig(model="resnet18")
    hub = TransformersConfig(model="facebook/dinov2-small")
    assert decode("transformers:facebook/dinov2-small", TeacherConfig) == hub


def test_random_weights_and_a_file_exclude_each_other() -> None:
    with pytest.raises(PartError) as error:
        DINOv2Config(random_init=True, weights="x.safetensors")
    assert str(error.value) == "config.weights: must stay None with random_init=True, got 'x.safetensors'"


def test_a_stride_places_a_patch_of_14_by_resizing_and_one_of_16_by_nothing() -> None:
    config = TimmConfig(model="vit_small_patch14_dinov2", settings=(*SHAPE.items(), ("img_size", 28)), random_init=True)
    out = config.for_stride(16).build()(pictures(32, 48))
    assert out.grid == (2, 3)
    same = TimmConfig(model="vit_small_patch16_dinov3", settings=tuple(SHAPE.items()))
    assert same.for_stride(16) is same
    chosen = TimmConfig(model="vit_small_patch14_dinov2", resize=FixedResizeConfig())
    assert chosen.for_stride(16) is chosen


@pytest.fixture(autouse=True)
def _quiet(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Nothing is printed but licences."""
    yield
    out, err = capsys.readouterr()
    assert out == ""
    assert all(": these weights are under the licence " in line for line in err.splitlines()), err
