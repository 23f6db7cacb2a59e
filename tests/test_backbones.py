"""The steps that make a network a teacher, each against the same computed by hand on our small network."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import hypothesis.strategies as st
import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from latelier.blocks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
    ChannelZScoreConfig,
    FixedResizeConfig,
    Hidden,
    NearestResizeConfig,
    NetworkTeacher,
    SpatialZScoreConfig,
    StrideResizeConfig,
    TinyViTConfig,
    as_edm2,
    as_irepa,
    as_rae,
    as_repa,
    as_va_vae,
    last_layers,
    resample_rows,
    resample_table,
    weights_hash,
)

SMALL = TinyViTConfig(width=16, head_width=8, depth=3, patch=8, registers=2)
IMAGES = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def normalised(images: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def raw(config: TinyViTConfig, pixels: Tensor) -> list[Hidden]:
    """What the blocks give for normalised pixels, before any norm."""
    with torch.no_grad():
        return config.build().backbone.hidden(pixels, range(config.depth))


def norm(x: Tensor) -> Tensor:
    """Our network's final norm, whose weight is one and bias zero at birth."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


# --- layers, norms, prefixes --------------------------------------------------------------------------------------


def test_the_default_is_the_last_layer_under_the_final_norm() -> None:
    out, last = SMALL.build()(IMAGES), raw(SMALL, normalised(IMAGES))[-1]
    assert out.grid == (4, 6)
    assert out.cls is not None and out.registers is not None and last.cls is not None and last.registers is not None
    torch.testing.assert_close(out.patches, norm(last.patches))
    torch.testing.assert_close(out.cls, norm(last.cls))
    torch.testing.assert_close(out.registers, norm(last.registers))


@pytest.mark.parametrize("layers", [(0,), (0, 2), (2, 0), (-1, -3), last_layers(3)])
@pytest.mark.parametrize("combine", ["concat", "sum"])
def test_layers_are_taken_in_the_order_given_each_under_the_norm(layers: tuple[int, ...], combine: Any) -> None:
    config = replace(SMALL, layers=layers, combine=combine)
    out, hidden = config.build()(IMAGES), raw(SMALL, normalised(IMAGES))
    for name in ("patches", "cls", "registers"):
        chosen = [norm(getattr(hidden[layer], name)) for layer in layers]
        expected = torch.cat(chosen, dim=-1) if combine == "concat" else sum(chosen)
        torch.testing.assert_close(getattr(out, name), expected)
    assert out.patches.shape[-1] == config.features == config.build().spec.features
    assert config.build().spec.layers == tuple(layer % 3 for layer in layers)


class Given(Backbone):
    """A backbone of made-up tokens: two blocks, the second with twice the numbers of the first."""

    library, version, model, licence, weights, position = "test", "1", "given", "none needed", None, "none"
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    width, depth, patch, has_cls, has_pool = 4, 2, 8, True, True

    def __init__(self, *, cls: bool = True, pool: bool = True, final: bool = True) -> None:
        super().__init__()
        self.has_cls, self.has_pool = cls, pool
        self.scale = nn.Parameter(torch.tensor(3.0))
        final_norm = nn.LayerNorm(4)
        nn.init.constant_(final_norm.weight, 2)
        nn.init.constant_(final_norm.bias, 5)
        self.final_norm = final_norm if final else None
        self.pixels: Tensor | None = None

    def hidden(self, pixels: Tensor, layers: Sequence[int]) -> list[Hidden]:
        self.pixels = pixels
        count = pixels.shape[2] * pixels.shape[3] // 64
        ramp = torch.arange(count * 4.0).reshape(1, count, 4).expand(len(pixels), -1, -1).square()
        ramp = self.scale * (ramp.to(pixels.dtype) + pixels.mean(dim=(1, 2, 3))[:, None, None])
        first = Hidden(ramp, ramp[:, 0] + 7 if self.has_cls else None)
        found = [first, Hidden(2 * ramp, None if first.cls is None else 2 * first.cls)]
        return [found[layer] for layer in layers]

    def pool(self, last: Hidden, norm: Any) -> Tensor:
        return norm(last.patches).amax(dim=1)


def teacher(backbone: Backbone | None = None, **settings: Any) -> NetworkTeacher:
    return NetworkTeacher(backbone or Given(), replace(SMALL, patch=8, **settings), name="given")


def test_affine_plain_and_no_norm() -> None:
    images = torch.rand(1, 3, 8, 16)
    none, plain, affine = (teacher(norm=name)(images) for name in ("none", "plain", "affine"))
    centred = none.patches - none.patches.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(plain.patches, expected)
    torch.testing.assert_close(affine.patches, 2 * expected + 5)


def test_taking_the_norm_without_weights_leaves_the_network_as_it_was() -> None:
    backbone = Given()
    teacher(backbone, norm="plain")
    assert backbone.final_norm is not None
    assert torch.equal(cast(Tensor, backbone.final_norm.weight), torch.full((4,), 2.0))


def test_a_network_without_a_final_norm_is_declared_as_such() -> None:
    built = teacher(Given(final=False))
    assert built.spec.norm == "none"
    torch.testing.assert_close(built(IMAGES).patches, teacher(norm="none")(IMAGES).patches)
    with pytest.raises(ValueError) as error:
        teacher(Given(final=False), norm="plain")
    assert str(error.value) == "given: norm: must be 'none', got 'plain'; this network has no final norm over tokens"


def test_what_stands_for_the_class() -> None:
    token, mean, pooled, none = (teacher(cls=name)(IMAGES) for name in ("token", "mean", "pooled", "none"))
    assert none.cls is None
    assert token.cls is not None and mean.cls is not None and pooled.cls is not None
    torch.testing.assert_close(mean.cls, mean.patches.mean(dim=1))
    torch.testing.assert_close(pooled.cls, pooled.patches.amax(dim=1))
    given = Given().hidden(IMAGES, [1])[0].cls
    torch.testing.assert_close(token.cls, F.layer_norm(cast(Tensor, given), (4,)) * 2 + 5)
    assert teacher(Given(cls=False)).spec.cls == "none"
    assert teacher(Given(cls=False))(IMAGES).cls is None


def test_a_dropped_prefix_is_gone_but_a_mean_that_was_asked_for_is_not() -> None:
    dropped = replace(SMALL, prefix="drop").build()
    out = dropped(IMAGES)
    assert out.cls is None and out.registers is None
    assert (dropped.spec.prefix, dropped.spec.cls) == ("drop", "none")
    kept = replace(SMALL, prefix="drop", cls="mean").build()(IMAGES)
    assert kept.cls is not None and kept.registers is None
    torch.testing.assert_close(kept.cls, out.patches.mean(dim=1))


@pytest.mark.parametrize(
    ("backbone", "settings", "message"),
    [
        (
            Given(cls=False),
            {"cls": "token"},
            "given: cls: must be 'mean', 'pooled' or 'none', got 'token'; this network has no class token",
        ),
        (
            Given(pool=False),
            {"cls": "pooled"},
            "given: cls: cannot be 'pooled'; this network has no pooling layer of its own, try 'mean'",
        ),
        (
            Given(),
            {"cls": "pooled", "layers": (0,)},
            "given: cls: 'pooled' reads the last block alone; leave 'layers' at (-1,), or try 'mean'",
        ),
        (Given(), {"layers": (2,)}, "given: layers: has 2 blocks, numbered 0 to 1 or -2 to -1, got 2"),
        (Given(), {"layers": (-3,)}, "given: layers: has 2 blocks, numbered 0 to 1 or -2 to -1, got -3"),
        (Given(), {"layers": (1, -1)}, "given: layers: must name each block once, got (1, -1)"),
    ],
)
def test_what_a_network_does_not_have_is_told(backbone: Backbone, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        teacher(backbone, **settings)
    assert str(error.value) == message


def test_tokens_are_standardised_last_and_only_the_patches() -> None:
    plain, spatial = SMALL.build()(IMAGES), replace(SMALL, standardise=SpatialZScoreConfig()).build()(IMAGES)
    torch.testing.assert_close(spatial.patches, SpatialZScoreConfig().build(16)(plain.patches))
    torch.testing.assert_close(spatial.cls, plain.cls)
    statistics = ChannelZScoreConfig(mean=tuple(range(32)), variance=tuple(range(1, 33)))
    both = replace(SMALL, layers=(0, 1))
    channels = replace(both, standardise=statistics).build()(IMAGES).patches
    mean, variance = torch.arange(32.0), torch.arange(1.0, 33)
    torch.testing.assert_close(channels, (both.build()(IMAGES).patches - mean) / (variance + 1e-5).sqrt())


def test_the_mean_is_that_of_tokens_before_they_are_standardised() -> None:
    config = replace(SMALL, cls="mean")
    torch.testing.assert_close(
        replace(config, standardise=SpatialZScoreConfig()).build()(IMAGES).cls, config.build()(IMAGES).cls
    )


# --- pictures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["resize_first", "normalise_first"])
def test_colours_are_normalised_before_or_after_resizing(order: Any) -> None:
    rule = FixedResizeConfig(height=16, width=8, antialias=False, order=order)
    backbone = Given()
    teacher(backbone, resize=rule, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))(IMAGES)

    def small(x: Tensor) -> Tensor:
        return F.interpolate(x, (16, 8), mode="bicubic", align_corners=False)

    def colours(x: Tensor) -> Tensor:
        return normalised(x, (0.1, 0.2, 0.3), (0.5, 0.25, 2.0))

    expected = colours(small(IMAGES)) if order == "resize_first" else small(colours(IMAGES))
    assert backbone.pixels is not None
    assert torch.equal(backbone.pixels, expected)


def test_the_statistics_of_a_network_are_used_where_none_are_chosen() -> None:
    backbone = Given()
    built = teacher(backbone)
    built(IMAGES)
    assert backbone.pixels is not None
    assert torch.equal(backbone.pixels, IMAGES)
    assert (built.spec.mean, built.spec.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@settings(max_examples=25)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    stride=st.sampled_from([4, 8, 12]),
    positions=st.sampled_from(["rope", "learned"]),
    seed=st.integers(0, 9),
)
def test_the_grid_follows_the_image_and_no_image_sees_its_batch(
    rows: int, columns: int, stride: int, positions: Any, seed: int
) -> None:
    config = replace(SMALL, positions=positions, table=3, resize=StrideResizeConfig(stride=stride), seed=seed)
    images = torch.rand(3, 3, rows * stride, columns * stride)
    out = config.build()(images)
    assert out.grid == (rows, columns)
    assert out.patches.shape == (3, rows * columns, 16)
    for i, image in enumerate(images):
        alone = config.build()(image[None])
        torch.testing.assert_close(alone.patches[0], out.patches[i], atol=1e-5, rtol=1e-5)


@settings(max_examples=15)
@given(height=st.integers(1, 60), width=st.integers(1, 60))
def test_pictures_of_any_size_are_taken_under_a_rule_that_takes_them(height: int, width: int) -> None:
    out = replace(SMALL, resize=NearestResizeConfig()).build()(torch.rand(1, 3, height, width))
    assert out.grid == (max(round(height / 8), 1), max(round(width / 8), 1))
    assert out.patches.shape[1] == out.grid[0] * out.grid[1]
    assert out.patches.isfinite().all()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            torch.linspace(-1, 1.25, 192).reshape(1, 3, 8, 8),
            "teacher/tiny_vit: takes images in [0, 1], got values from -1 to 1.25; map them with (x + 1) / 2",
        ),
        (
            torch.full((1, 3, 8, 8), 255.0),
            "teacher/tiny_vit: takes images in [0, 1], got values from 255 to 255; map bytes with x / 255",
        ),
        (
            torch.full((1, 3, 8, 8), torch.nan),
            "teacher/tiny_vit: takes images in [0, 1], got values from nan to nan; map them with (x + 1) / 2",
        ),
        (
            torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
            "teacher/tiny_vit: takes images in [0, 1], got torch.uint8; map bytes with x / 255",
        ),
        (
            torch.zeros(1, 1, 8, 8),
            "teacher/tiny_vit: takes images of 3 colours, got 1; repeat a grey one with x.expand(-1, 3, -1, -1)",
        ),
        (
            torch.zeros(1, 3, 12, 16),
            "teacher/tiny_vit: takes sizes divisible by 8, got 12x16; 8x16 would do, and so would another 'resize'",
        ),
    ],
)
@pytest.mark.usefixtures("as_users_run_it")
def test_images_that_a_teacher_cannot_take_are_refused(images: Tensor, message: str) -> None:
    with pytest.raises(ValueError) as error:
        SMALL.build()(images)
    assert str(error.value) == message


def test_rounding_beyond_the_range_is_forgiven() -> None:
    SMALL.build()(torch.tensor([-5e-4, 1.0005]).repeat(96).reshape(1, 3, 8, 8))


# --- frozen -------------------------------------------------------------------------------------------------------


def test_a_teacher_never_leaves_evaluation_and_gives_no_gradient_to_weights() -> None:
    built = SMALL.build()
    built.train()
    assert not any(module.training for module in built.modules())
    assert not any(parameter.requires_grad for parameter in built.parameters())
    images = IMAGES.clone().requires_grad_()
    assert not built(images).patches.requires_grad


def test_the_image_gets_its_gradient_only_when_asked() -> None:
    built = replace(SMALL, resize=StrideResizeConfig(stride=16), standardise=SpatialZScoreConfig()).build()
    images = IMAGES.clone().requires_grad_()
    out = built(images, differentiable=True)
    assert out.cls is not None
    (gradient,) = torch.autograd.grad(out.patches.square().mean() + out.cls.sum(), images)
    assert gradient.isfinite().all()
    assert (gradient.abs().amax(dim=(1, 2, 3)) > 0).all()


def test_the_gradient_to_the_image_is_that_of_small_steps() -> None:
    built = replace(SMALL, resize=StrideResizeConfig(stride=16), dtype="float32").build()
    images = (0.5 * IMAGES + 0.25).requires_grad_()
    direction = torch.rand(IMAGES.shape, generator=torch.Generator().manual_seed(1)) - 0.5

    def loss(images: Tensor, *, differentiable: bool = False) -> Tensor:
        out = built(images, differentiable=differentiable)
        assert out.cls is not None
        return out.patches.pow(3).mean() + out.cls.pow(3).mean()

    (gradient,) = torch.autograd.grad(loss(images, differentiable=True), images)
    few, many = (loss(images.detach() + step * direction).item() for step in (-0.02, 0.02))
    assert (many - few) / 0.04 == pytest.approx((gradient * direction).sum().item(), rel=0.02, abs=2e-3)


def test_autocast_around_a_teacher_changes_nothing() -> None:
    built = SMALL.build()
    with torch.autocast("cpu", torch.bfloat16):
        inside = built(IMAGES.bfloat16().float())
    assert torch.equal(inside.patches, built(IMAGES.bfloat16().float()).patches)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close_and_its_tokens_are_float32(dtype: Any) -> None:
    built = replace(SMALL, dtype=dtype).build()
    half, full = built(IMAGES), SMALL.build()(IMAGES)
    assert {parameter.dtype for parameter in built.backbone.parameters()} == {getattr(torch, dtype)}
    assert half.patches.dtype == torch.float32
    error = (half.patches - full.patches).norm() / full.patches.norm()
    assert 0 < error < 0.03


def test_tables_of_rope_stay_float32_in_half_precision() -> None:
    built = replace(SMALL, dtype="bfloat16").build()
    buffers = {name: buffer for name, buffer in built.backbone.named_buffers() if buffer.is_floating_point()}
    assert buffers
    assert {buffer.dtype for buffer in buffers.values()} == {torch.float32}


# --- hashes and tables --------------------------------------------------------------------------------------------


def test_the_hash_of_weights_sees_names_shapes_dtypes_and_values() -> None:
    tensors = {"a": torch.arange(6.0), "b": torch.tensor(1, dtype=torch.int64)}
    variants = [
        tensors,
        {"c": tensors["a"], "b": tensors["b"]},
        {"a": tensors["a"].reshape(2, 3), "b": tensors["b"]},
        {"a": tensors["a"].double(), "b": tensors["b"]},
        {"a": tensors["a"].bfloat16(), "b": tensors["b"]},
        {"a": tensors["a"].flip(0), "b": tensors["b"]},
        {"a": tensors["a"]},
    ]
    hashes = [weights_hash(variant) for variant in variants]
    assert len(set(hashes)) == len(variants)
    assert weights_hash(dict(reversed(tensors.items()))) == hashes[0]
    assert all(len(text) == 7 + 16 and text.startswith("sha256:") for text in hashes)


def test_a_built_teacher_without_a_seed_is_named_by_the_hash_of_its_weights() -> None:
    assert teacher().spec.weights == weights_hash(Given().state_dict())


@pytest.mark.parametrize("grid", [(2, 2), (3, 7), (9, 5)])
def test_tables_follow_the_three_rules(grid: tuple[int, int]) -> None:
    table = torch.randn(4, 5, 5)
    ours = {rule: resample_table(table, grid, rule) for rule in ("bicubic", "bicubic_antialias", "bicubic_offset")}
    plain = F.interpolate(table[None], grid, mode="bicubic", align_corners=False)[0]
    smooth = F.interpolate(table[None], grid, mode="bicubic", align_corners=False, antialias=True)[0]
    scales = tuple((side + 0.1) / 5 for side in grid)
    offset = F.interpolate(table[None], scale_factor=scales, mode="bicubic", align_corners=False)[0]
    assert torch.equal(ours["bicubic"], plain)
    assert torch.equal(ours["bicubic_antialias"], smooth)
    assert torch.equal(ours["bicubic_offset"], offset)
    assert not torch.allclose(plain, offset, atol=1e-3)


@given(side=st.integers(1, 40), rows=st.integers(1, 80), columns=st.integers(1, 80))
def test_every_rule_gives_every_grid_and_leaves_its_own_alone(side: int, rows: int, columns: int) -> None:
    table = torch.randn(1, side, side)
    for rule in ("bicubic", "bicubic_antialias", "bicubic_offset"):
        assert resample_table(table, (rows, columns), rule).shape == (1, rows, columns)
        assert resample_table(table, (side, side), rule) is table


def test_rows_of_a_prefix_stay_as_they_are() -> None:
    table = torch.randn(4, 3, 3)
    rows = torch.cat([torch.randn(2, 4), table.flatten(1).T])
    moved = resample_rows(rows, (2, 5), (3, 3), "bicubic")
    assert torch.equal(moved[:2], rows[:2])
    torch.testing.assert_close(moved[2:], resample_table(table, (2, 5), "bicubic").flatten(1).T)


# --- how known projects do it -------------------------------------------------------------------------------------


def test_as_rae() -> None:
    statistics = ChannelZScoreConfig(mean=(0.5,) * 4, variance=(4.0,) * 4)
    backbone = Given()
    config = as_rae(replace(SMALL, patch=8), standardise=statistics)
    out = NetworkTeacher(backbone, config, name="given")(IMAGES)
    pixels = F.interpolate(IMAGES, (224, 224), mode="bicubic", align_corners=False)
    assert backbone.pixels is not None
    assert torch.equal(backbone.pixels, pixels)
    tokens = F.layer_norm(Given().hidden(pixels, [1])[0].patches, (4,))
    torch.testing.assert_close(out.patches, (tokens - 0.5) / (4 + 1e-5) ** 0.5, atol=1e-5, rtol=1e-4)
    assert out.cls is None and out.registers is None


def test_as_va_vae_feeds_images_in_minus_one_to_one() -> None:
    backbone = Given()
    out = NetworkTeacher(backbone, as_va_vae(replace(SMALL, patch=8)), name="given")(IMAGES)
    pixels = F.interpolate(2 * IMAGES - 1, (224, 224), mode="bilinear", align_corners=False)
    torch.testing.assert_close(backbone.pixels, pixels, atol=1e-6, rtol=0)
    assert out.cls is None


def test_as_repa_normalises_first_and_grows_with_the_resolution() -> None:
    for resolution, side in ((256, 224), (512, 448)):
        backbone = Given()
        NetworkTeacher(backbone, as_repa(replace(SMALL, patch=8), resolution=resolution), name="given")(IMAGES)
        pixels = F.interpolate(normalised(IMAGES), (side, side), mode="bicubic", align_corners=False)
        assert backbone.pixels is not None
        assert torch.equal(backbone.pixels, pixels)
    with pytest.raises(ValueError) as error:
        as_repa(SMALL, resolution=300)
    assert str(error.value) == "resolution: must be a multiple of 256, got 300"


def test_as_irepa_scores_each_image_over_its_positions() -> None:
    out = as_irepa(SMALL).build()(IMAGES)
    torch.testing.assert_close(out.patches.mean(dim=1), torch.zeros(2, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.patches.std(dim=1, correction=0), torch.ones(2, 16), atol=1e-3, rtol=0)


def test_as_edm2_antialiases_and_keeps_the_class_token() -> None:
    backbone = Given()
    out = NetworkTeacher(backbone, as_edm2(replace(SMALL, patch=8)), name="given")(torch.rand(1, 3, 512, 500))
    assert out.cls is not None
    images = torch.rand(1, 3, 512, 500)
    NetworkTeacher(backbone, as_edm2(replace(SMALL, patch=8)), name="given")(images)
    pixels = normalised(F.interpolate(images, (224, 224), mode="bicubic", align_corners=False, antialias=True))
    assert backbone.pixels is not None
    assert torch.equal(backbone.pixels, pixels)


def test_dgm_evals_resizing_by_pil_is_that_of_edm2_up_to_its_bytes() -> None:
    picture = np.random.default_rng(0).integers(80, 176, (300, 260, 3), dtype=np.uint8)  # nothing to clip
    resized = PIL.Image.fromarray(picture).resize((224, 224), PIL.Image.Resampling.BICUBIC)
    theirs = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
    images = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    ours = as_edm2(SMALL).resize.apply(images, 14)[0]
    assert (ours - theirs).abs().max() < 1.5 / 255


def test_a_single_image_without_a_batch_is_told(as_users_run_it: None) -> None:
    with pytest.raises(ValueError) as error:
        TinyViTConfig().build()(torch.rand(3, 32, 32))
    assert str(error.value) == "teacher/tiny_vit: takes images [b, 3, H, W], got [3, 32, 32]"
    with pytest.raises(ValueError) as error:
        last_layers(0)
    assert str(error.value) == "last_layers: must be at least 1, got 0"
