"""Stems, body, heads and noise of bridges: laws for every declared part, and what each is."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import nn

from latelier.blocks import (
    BridgeNoiseConfig,
    DINOv2Config,
    DINOv3Config,
    Draws,
    FeatureHeadConfig,
    FixedResizeConfig,
    Flux2LatentsConfig,
    HOGConfig,
    LatentStemConfig,
    LinearHeadConfig,
    LinearNoiseConfig,
    PartError,
    PatchifyStemConfig,
    ResidualStemConfig,
    SigmaNoiseConfig,
    SizeError,
    SpatialHeadConfig,
    StridedConvStemConfig,
    TeacherConfig,
    TinyViTConfig,
    TokenBodyConfig,
    TokensHeadConfig,
    TransformerBodyConfig,
    decode,
    encode,
    parts,
)

SMALL: dict[str, dict[str, Any]] = {
    "stem/residual": {"mid": 8, "out": 16},
    "stem/strided_conv": {"mid": 8, "out": 16},
    "body/transformer": {"width": 16, "depth": 2, "heads": 2, "table": 3},
    "feature_head/tokens": {"head_width": 8, "registers": 2},
}


def small(slot: type[Any]) -> list[Any]:
    return [decode({"kind": cls.kind} | SMALL.get(cls.kind, {}), slot) for cls in parts(slot)]


BODIES: list[TransformerBodyConfig] = [
    *small(TokenBodyConfig),
    TransformerBodyConfig(width=16, depth=1, heads=2, positions="rope"),
]
every_stem = pytest.mark.parametrize("config", small(LatentStemConfig), ids=lambda config: config.kind)
every_body = pytest.mark.parametrize("config", BODIES, ids=lambda config: f"{config.kind} {config.positions}")
every_head = pytest.mark.parametrize("config", small(FeatureHeadConfig), ids=lambda config: config.kind)
every_noise = pytest.mark.parametrize("config", small(BridgeNoiseConfig), ids=lambda config: config.kind)
noisy = pytest.mark.parametrize("noise", [False, True], ids=["clean", "told of noise"])


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def awake(module: nn.Module) -> nn.Module:
    """With gates that are not zero, so that everything has a part in the result."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def outputs(module: nn.Module, *inputs: Any) -> list[torch.Tensor]:
    found = module(*inputs)
    if isinstance(found, torch.Tensor):
        return [found]
    return [x for x in (found.patches, found.cls, found.registers) if x is not None]


def check_laws(module: nn.Module, *inputs: torch.Tensor) -> None:
    """Samples do not see one another; gradients of everything are finite and there; bfloat16 is near float32."""
    awake(module)
    together = outputs(module, *inputs)
    for i in range(len(inputs[0])):
        alone = outputs(module, *(x[i : i + 1] for x in inputs))
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a, b[i : i + 1], rtol=1e-4, atol=1e-5)
    torch.stack([(x.square() * torch.rand_like(x)).sum() for x in together]).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    halves = (x.bfloat16() if x.ndim == 4 else x for x in inputs)
    for a, b in zip(outputs(module.bfloat16(), *halves), together, strict=True):
        assert a.isfinite().all()
        assert (a.float() - b).norm() <= 0.05 * b.norm()


# --- stems ----------------------------------------------------------------------------------------------------------


@every_stem
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_stem_divides_the_grid_by_its_stride_and_keeps_the_laws(config: LatentStemConfig, stride: int) -> None:
    stem = config.build(channels=5, width=16, stride=stride)
    assert stem(torch.randn(2, 5, 4 * stride, 2 * stride)).shape == (2, 16, 4, 2)
    check_laws(stem, torch.randn(2, 5, 4 * stride, 2 * stride))
    assert decode(encode(config), LatentStemConfig) == config


@every_stem
def test_a_stem_takes_any_latents_by_their_channels(config: LatentStemConfig) -> None:
    for channels, stride, side in ((4, 4, 32), (16, 4, 32), (128, 1, 16)):
        stem = config.build(channels=channels, width=24, stride=stride)
        assert stem(torch.randn(1, channels, side, side)).shape == (1, 24, side // stride, side // stride)


def test_the_stems_of_the_card_have_the_sizes_of_the_two_candidates() -> None:
    with torch.device("meta"):
        strided = StridedConvStemConfig().build(channels=4, width=768, stride=4)
        residual = ResidualStemConfig().build(channels=4, width=768, stride=4)
    assert count(strided) == 1_583_616
    assert count(residual) == 3_943_424 + 2 * (256 + 512)  # the norms are ours


def test_a_residual_stage_without_its_convolution_averages_squares_or_repeats() -> None:
    stem = ResidualStemConfig(mid=4, out=8).build(channels=2, width=3, stride=2)
    stages: Any = stem.stages
    first, second = stages
    for stage in (first, second):
        nn.init.zeros_(stage.conv.weight)
        nn.init.zeros_(stage.conv.bias)
    x = torch.randn(1, 4, 6, 4)
    pairs = F.pixel_unshuffle(x, 2).unflatten(1, (8, 2)).mean(dim=2)  # 16 numbers of a square become 8
    torch.testing.assert_close(first(x), pairs)
    torch.testing.assert_close(second(pairs), pairs)
    wide: Any = ResidualStemConfig(mid=2, out=4, depth=1).build(channels=2, width=3, stride=1).stages[0]
    nn.init.zeros_(wide.conv.weight)
    nn.init.zeros_(wide.conv.bias)
    y = torch.randn(1, 2, 3, 3)
    torch.testing.assert_close(wide(y), y.repeat_interleave(2, dim=1))


def test_the_patchify_stem_reads_each_square_by_itself() -> None:
    stem = PatchifyStemConfig().build(channels=3, width=8, stride=2)
    x = torch.randn(1, 3, 6, 6)
    moved = x.clone()
    moved[:, :, 2, 3] += 1
    changed = (stem(moved) != stem(x)).any(dim=1)[0]
    assert changed.nonzero().tolist() == [[1, 1]]


def test_settings_of_stems_that_do_not_fit_are_told() -> None:
    for make, message in (
        (lambda: ResidualStemConfig(stride=3), "config.stride: convolutions make powers of 2, got 3; 'stem/patchify'"),
        (
            lambda: ResidualStemConfig(depth=1, stride=4),
            "config.depth: a stride of 4 halves the grid 2 times, one",
        ),
        (
            lambda: ResidualStemConfig(mid=8, out=12),
            "config.out: must divide 8 or be divisible by it, for the",
        ),
        (lambda: StridedConvStemConfig(depth=0), "config.depth: must be at least 1, got 0"),
        (lambda: StridedConvStemConfig(depth=1, stride=8), "config.depth: a stride of 8 halves the grid 3 times, once"),
        (lambda: PatchifyStemConfig(stride=0), "config.stride: must be at least 1, got 0"),
    ):
        with pytest.raises(PartError) as error:
            make()
        assert str(error.value).startswith(message)


# --- body -----------------------------------------------------------------------------------------------------------


@every_body
@noisy
def test_a_body_keeps_its_map_and_the_laws(config: TransformerBodyConfig, noise: bool) -> None:
    body = config.build(noise=noise)
    x, tau = torch.randn(3, 16, 3, 5), (torch.rand(3),) if noise else ()
    assert body(x, *tau).shape == x.shape
    check_laws(body, x, *tau)
    assert decode(encode(config), TokenBodyConfig) == config


@every_body
def test_blocks_that_are_told_of_noise_are_born_as_the_identity(config: TransformerBodyConfig) -> None:
    body = config.build(noise=True)
    x = torch.randn(2, 15, 16)
    for block in body.blocks:
        torch.testing.assert_close(block(x, (3, 5), torch.randn(2, 16)), x)


def test_no_tau_is_clean_and_another_tau_is_not() -> None:
    body = awake(BODIES[0].build(noise=True))
    x = torch.randn(2, 16, 3, 3)
    torch.testing.assert_close(body(x), body(x, torch.zeros(2)))
    assert not torch.allclose(body(x), body(x, torch.full((2,), 0.5)))


def test_positions_tell_places_apart_on_every_grid() -> None:
    for config in BODIES:
        body = awake(config.build())
        for grid in ((3, 3), (2, 4), (7, 6)):
            x = torch.randn(1, 16, *grid)
            turned = body(x.flip(2)).flip(2)
            assert not torch.allclose(turned, body(x), atol=1e-3)


def test_learned_positions_are_their_table_on_its_own_grid_and_smooth_on_others() -> None:
    body = BODIES[0].build().eval()
    assert body.positions is not None and body.positions.shape == (16, 3, 3)
    seen = []
    body.dropout.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    for grid in ((3, 3), (5, 4)):
        body(torch.zeros(1, 16, *grid))
        table = body.positions[None]
        expected = table if grid == (3, 3) else F.interpolate(table, grid, mode="bicubic", align_corners=False)
        torch.testing.assert_close(seen.pop(), expected.flatten(2).transpose(1, 2))


def test_dropout_is_of_training_alone_and_repeats_from_a_seed() -> None:
    config = TransformerBodyConfig(width=16, depth=1, heads=2, dropout=0.5)
    body, x = config.build(), torch.randn(2, 16, 3, 3)
    body.train()
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(body(x))
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2])
    body.eval()
    assert torch.equal(body(x), body(x))
    sure = TransformerBodyConfig(width=16, depth=1, heads=2, dropout=0.0).build()
    sure.load_state_dict(body.state_dict())
    assert torch.equal(sure.train()(x), body(x))


def test_settings_of_bodies_that_do_not_fit_are_told() -> None:
    make: Any = TransformerBodyConfig
    cases: tuple[tuple[Any, str], ...] = (
        ({"width": 10, "heads": 3}, "config.heads: must divide the width 10, got 3"),
        (
            {"width": 12, "heads": 2, "positions": "rope"},
            "config.heads: must leave each head a multiple of 4",
        ),
        ({"dropout": 1.0}, "config.dropout: must be in [0, 1), got 1.0"),
        ({"table": 0}, "config.table: must be at least 1, got 0"),
        ({"expand": 0.0}, "config.expand: must be positive, got 0.0"),
    )
    for settings, message in cases:
        with pytest.raises(PartError) as error:
            make(**settings)
        assert str(error.value).startswith(message)


# --- heads ----------------------------------------------------------------------------------------------------------


@every_head
@pytest.mark.parametrize("norm", ["none", "layer_norm", "rms", "unit"])
def test_a_head_gives_tokens_of_the_teachers_width_and_keeps_the_laws(config: FeatureHeadConfig, norm: str) -> None:
    config = decode(encode(config) | {"norm": norm}, FeatureHeadConfig)
    head = config.build(width=16, features=6)
    found = head(torch.randn(2, 16, 3, 4))
    assert found.patches.shape == (2, 12, 6)
    assert found.grid == (3, 4)
    assert (found.cls is not None) == config.has_cls
    check_laws(head, torch.randn(2, 16, 3, 4))
    for tokens in outputs(head.float(), torch.randn(2, 16, 3, 4)):
        tokens = tokens.detach()
        if norm == "layer_norm":
            torch.testing.assert_close(tokens.mean(dim=-1), torch.zeros(tokens.shape[:-1]), atol=1e-5, rtol=0)
        if norm in ("layer_norm", "rms"):
            torch.testing.assert_close(tokens.square().mean(dim=-1), torch.ones(tokens.shape[:-1]), atol=1e-3, rtol=0)
        if norm == "unit":
            torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(tokens.shape[:-1]))


def test_the_linear_head_is_one_matrix_in_rows() -> None:
    head, x = LinearHeadConfig().build(width=8, features=5), torch.randn(2, 8, 3, 4)
    expected = x.flatten(2).transpose(1, 2) @ head.proj.weight.T + head.proj.bias
    torch.testing.assert_close(head(x).patches, expected)


@given(factor=st.sampled_from([1, 2, 3]), rows=st.integers(1, 3), columns=st.integers(1, 3))
def test_the_spatial_head_shuffles_each_position_into_a_square(factor: int, rows: int, columns: int) -> None:
    head = SpatialHeadConfig().build(width=8, features=5, factor=factor)
    x = torch.randn(2, 8, rows, columns)
    found = head(x)
    assert found.grid == (rows * factor, columns * factor)
    numbers = torch.einsum("bchw,fc->bfhw", x, head.proj.weight) + head.proj.bias[:, None, None]
    expected = F.pixel_shuffle(numbers, factor) if factor > 1 else numbers
    torch.testing.assert_close(found.patches, expected.flatten(2).transpose(1, 2))


def test_class_and_registers_are_read_out_of_all_positions_and_patches_do_not_see_them() -> None:
    head = awake(TokensHeadConfig(head_width=8, registers=3).build(width=16, features=6))
    plain = LinearHeadConfig().build(width=16, features=6)
    plain.proj.load_state_dict(head.get_submodule("proj").state_dict())
    x = torch.randn(1, 16, 2, 2)
    found = head(x)
    assert torch.equal(found.patches, plain(x).patches)
    assert found.registers.shape == (1, 3, 6)
    queries = head.get_parameter("queries")
    assert queries.grad is None
    found.cls.sum().backward(retain_graph=True)
    assert queries.grad is not None and queries.grad[0].any() and not queries.grad[1:].any()
    queries.grad = None
    found.registers[:, -1].sum().backward()
    assert queries.grad is not None
    assert queries.grad[3].any() and not queries.grad[:3].any()
    for place in range(4):
        moved = x.clone()
        moved.view(1, 16, 4)[:, :, place] += 1
        assert not torch.allclose(head(moved).cls, found.cls, atol=1e-4)


def test_heads_that_do_not_upsample_say_so() -> None:
    with pytest.raises(ValueError, match="feature_head/linear: has one token a position, and 2 a side are needed"):
        LinearHeadConfig().build(width=8, features=4, factor=2)
    with pytest.raises(ValueError, match="feature_head/tokens: head_width: must divide the width 8, got 3"):
        TokensHeadConfig(head_width=3).build(width=8, features=4)


# --- noise ----------------------------------------------------------------------------------------------------------


@every_noise
def test_noise_belongs_to_its_sample_and_tau_says_how_much_there_is(config: BridgeNoiseConfig) -> None:
    z = torch.randn(4, 3, 5, 5)
    noised, tau = config.apply(z, Draws(0, 7, first=0, batch=4))
    assert noised.shape == z.shape
    assert tau.shape == (4,)
    assert ((tau >= 0) & (tau <= 1)).all()
    half, half_tau = config.apply(z[2:], Draws(0, 7, first=2, batch=2))
    assert torch.equal(half, noised[2:])
    assert torch.equal(half_tau, tau[2:])
    assert torch.equal(config.add(z, torch.zeros(4), torch.randn(4, 3, 5, 5)), z)
    assert config.apply(z.bfloat16(), Draws(0, 7, first=0, batch=4))[0].dtype == torch.bfloat16
    assert decode(encode(config), BridgeNoiseConfig) == config


def test_the_two_noises_are_their_formulas() -> None:
    z, eps, tau = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.tensor([0.25, 1.0])
    t = tau[:, None, None, None]
    torch.testing.assert_close(LinearNoiseConfig().add(z, tau, eps), (1 - t) * z + t * eps)
    torch.testing.assert_close(SigmaNoiseConfig(most=3.0).add(z, tau, eps), z + 3 * t * eps)
    with pytest.raises(PartError, match=r"config\.most: must be positive, got 0\.0"):
        SigmaNoiseConfig(most=0.0)


# --- grids of teachers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        HOGConfig(patch=8),
        TinyViTConfig(patch=8, width=32, depth=1),
        TinyViTConfig(patch=8, width=32, depth=1, resize=FixedResizeConfig(height=24, width=40)),
        TinyViTConfig(patch=7, width=32, depth=1).for_stride(16),
    ],
    ids=["hog", "as it is", "fixed", "for stride"],
)
@given(rows=st.integers(1, 3), columns=st.integers(1, 3))
def test_a_teacher_tells_its_grid_before_it_is_built(config: TeacherConfig, rows: int, columns: int) -> None:
    size = (56 * 2 * rows, 56 * 2 * columns) if rows == columns else (16 * rows, 16 * columns)
    said = config.grid_of(size)
    assert said == config.build()(torch.rand(1, 3, *size)).grid


def test_grids_of_published_teachers() -> None:
    assert DINOv2Config(size="vitb14").for_stride(32).grid_of((256, 256)) == (8, 8)
    assert DINOv3Config(size="vitb16").grid_of((256, 512)) == (16, 32)
    assert Flux2LatentsConfig().grid_of((256, 128)) == (16, 8)
    for config, message in (
        (DINOv2Config(), "takes sizes divisible by 14, got 256x256"),
        (HOGConfig(patch=12), "takes sizes divisible by 12, got 256x256"),
        (Flux2LatentsConfig(), "image sides must be divisible by 16, got 250x250"),
    ):
        side = 250 if "250" in message else 256
        with pytest.raises(SizeError, match=message):
            config.grid_of((side, side))
