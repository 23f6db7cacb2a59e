"""Laws of every declared block, and of every stack of blocks; then the mathematics of each block."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from latelier.blocks import (
    BlockConfig,
    DecoderConfig,
    DiTBlockConfig,
    EncoderConfig,
    FCDMBlock,
    FCDMBlockConfig,
    PartError,
    SequenceBlockConfig,
    SkipDecoderConfig,
    StackEncoderConfig,
    decode,
    parts,
)

CHANNELS, PATCH, WIDTH, LATENT, COND = 3, 4, 64, 5, 8
DEFAULTS = [decode(cls.kind, BlockConfig) for cls in parts(BlockConfig)]
VARIANTS = [
    DiTBlockConfig(head_width=32, expand=1.0, activation="relu", rope="normalised"),
    DiTBlockConfig(head_width=16, expand=8 / 3, activation="swiglu", rope="normalised"),
    SequenceBlockConfig(blocks=(SequenceBlockConfig(), DiTBlockConfig(head_width=8, activation="silu"))),
]
BLOCKS = [*DEFAULTS, *VARIANTS]
ENCODERS = [decode(cls.kind, EncoderConfig) for cls in parts(EncoderConfig)] + [
    StackEncoderConfig(block=block, depth=2) for block in DEFAULTS
]
DECODERS = [decode(cls.kind, DecoderConfig) for cls in parts(DecoderConfig)] + [
    SkipDecoderConfig(block=block, start=1, middle=1, end=1, rank=4) for block in DEFAULTS
]

every_block = pytest.mark.parametrize("config", BLOCKS, ids=lambda config: config.kind)
every_decoder = pytest.mark.parametrize("config", DECODERS, ids=lambda config: config.kind)
every_stack = pytest.mark.parametrize("config", [*ENCODERS, *DECODERS], ids=lambda config: config.kind)
conditions = pytest.mark.parametrize("cond", [None, COND], ids=["plain", "conditioned"])
precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
batches, sides, seeds = st.integers(1, 3), st.integers(1, 9), st.integers(0, 2**31)


def awake(module: nn.Module) -> nn.Module:
    """Add noise to every parameter, so that nothing is as it was at birth."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def block_inputs(b: int, h: int, w: int, *, cond: int | None, seed: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(seed)
    x = torch.randn(b, WIDTH, h, w)
    return (x,) if cond is None else (x, torch.randn(b, cond))


def built_stack(config: EncoderConfig | DecoderConfig) -> nn.Module:
    if isinstance(config, EncoderConfig):
        return awake(config.build(channels=CHANNELS, patch=PATCH, width=WIDTH, out=LATENT))
    return awake(config.build(channels=CHANNELS, patch=PATCH, width=WIDTH, latent=LATENT))


def stack_inputs(config: EncoderConfig | DecoderConfig, b: int, h: int, w: int) -> tuple[Tensor, ...]:
    images = torch.randn(b, CHANNELS, PATCH * h, PATCH * w)
    return (images,) if isinstance(config, EncoderConfig) else (images, torch.rand(b), torch.randn(b, LATENT, h, w))


def assert_learns_everywhere(module: nn.Module, out: Tensor) -> None:
    (out.float() * torch.randn(out.shape)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.isfinite().all(), f"{name} has a gradient that is not finite"
        assert parameter.grad.any(), f"{name} has a gradient of zero"


def relative_error(value: Tensor, reference: Tensor) -> float:
    return ((value.float() - reference.float()).norm() / reference.float().norm()).item()


# --- blocks ---------------------------------------------------------------------------------------------------------


@every_block
@precisions
@given(b=batches, h=sides, w=sides, seed=seeds)
def test_a_conditioned_block_is_born_as_the_identity(
    config: BlockConfig, dtype: torch.dtype, b: int, h: int, w: int, seed: int
) -> None:
    block = config.build(WIDTH, cond=COND).to(dtype)
    x, cond = (v.to(dtype) for v in block_inputs(b, h, w, cond=COND, seed=seed))
    assert torch.equal(block(x, cond), x)


@every_block
@conditions
@precisions
@given(b=batches, h=sides, w=sides)
def test_a_block_keeps_shape_and_dtype(
    config: BlockConfig, cond: int | None, dtype: torch.dtype, b: int, h: int, w: int
) -> None:
    block = awake(config.build(WIDTH, cond=cond)).to(dtype)
    inputs = [v.to(dtype) for v in block_inputs(b, h, w, cond=cond)]
    y = block(*inputs)
    assert (y.shape, y.dtype) == (inputs[0].shape, dtype)
    assert not torch.equal(y, inputs[0])


@every_block
@conditions
@precisions
@given(h=sides, w=sides, seed=seeds)
def test_a_block_computes_the_same_without_gradients_and_leaves_its_inputs_alone(
    config: BlockConfig, cond: int | None, dtype: torch.dtype, h: int, w: int, seed: int
) -> None:
    block = awake(config.build(WIDTH, cond=cond)).to(dtype)
    inputs = [v.to(dtype) for v in block_inputs(2, h, w, cond=cond, seed=seed)]
    kept = [v.clone() for v in inputs]
    learning = block(*inputs)
    with torch.no_grad():
        inferring = block(*inputs)
    assert relative_error(inferring, learning) < {torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    assert all(torch.equal(v, k) for v, k in zip(inputs, kept, strict=True))


@every_block
@conditions
@given(h=sides, w=sides, seed=seeds)
def test_images_of_a_batch_do_not_see_each_other(
    config: BlockConfig, cond: int | None, h: int, w: int, seed: int
) -> None:
    block = awake(config.build(WIDTH, cond=cond))
    inputs = block_inputs(3, h, w, cond=cond, seed=seed)
    alone = torch.cat([block(*(v[i : i + 1] for v in inputs)) for i in range(3)])
    torch.testing.assert_close(block(*inputs), alone, rtol=1e-4, atol=1e-5)


@every_block
@conditions
def test_every_parameter_of_a_block_learns(config: BlockConfig, cond: int | None) -> None:
    block = awake(config.build(WIDTH, cond=cond))
    assert_learns_everywhere(block, block(*block_inputs(2, 4, 5, cond=cond)))


@every_block
def test_the_gate_of_a_newborn_block_learns_at_once(config: BlockConfig) -> None:
    block = config.build(WIDTH, cond=COND)
    block(*block_inputs(2, 4, 5, cond=COND)).square().sum().backward()
    assert isinstance(block.modulate, nn.Module)
    for parameter in block.modulate.parameters():
        assert parameter.grad is not None
        assert parameter.grad.any()


@every_block
@conditions
@given(h=st.integers(2, 9), w=st.integers(2, 9), seed=seeds)
def test_a_block_in_bfloat16_agrees_within_two_per_cent(
    config: BlockConfig, cond: int | None, h: int, w: int, seed: int
) -> None:
    inputs = block_inputs(2, h, w, cond=cond, seed=seed)
    block = awake(config.build(WIDTH, cond=cond))
    reference = block(*inputs) - inputs[0]
    rounded = block.bfloat16()(*(v.bfloat16() for v in inputs)) - inputs[0].bfloat16()
    assert relative_error(rounded, reference) < 0.02


@every_block
def test_a_block_takes_modulations_from_outside(config: BlockConfig) -> None:
    block: Any = awake(config.build(WIDTH, cond=COND))
    x, cond = block_inputs(2, 3, 4, cond=COND)
    own, packed = block(x, cond), block.modulate(cond)
    assert packed.shape == (2, config.modulations * WIDTH)
    block.modulate = nn.Identity()
    assert torch.equal(block(x, packed), own)


@every_block
@conditions
def test_a_block_says_whether_it_sees_the_whole_map(config: BlockConfig, cond: int | None) -> None:
    block = awake(config.build(WIDTH, cond=cond))
    x, *rest = block_inputs(1, 24, 24, cond=cond)
    before = block(x, *rest)
    x[..., 0, 0] += 1
    assert (not torch.equal(block(x, *rest)[..., -1, -1], before[..., -1, -1])) == config.global_context


# --- stacks -----------------------------------------------------------------------------------------------------------


@every_stack
@precisions
@settings(max_examples=10)
@given(b=batches, h=sides, w=sides)
def test_a_stack_has_the_promised_shape_and_dtype(
    config: EncoderConfig | DecoderConfig, dtype: torch.dtype, b: int, h: int, w: int
) -> None:
    images, *rest = (v.to(dtype) for v in stack_inputs(config, b, h, w))
    out = built_stack(config).to(dtype)(images, *rest)
    promised = (b, LATENT, h, w) if isinstance(config, EncoderConfig) else images.shape
    assert (out.shape, out.dtype) == (promised, dtype)


@every_stack
def test_images_of_a_batch_do_not_see_each_other_in_a_stack(config: EncoderConfig | DecoderConfig) -> None:
    stack = built_stack(config)
    inputs = stack_inputs(config, 3, 4, 5)
    alone = torch.cat([stack(*(v[i : i + 1] for v in inputs)) for i in range(3)])
    torch.testing.assert_close(stack(*inputs), alone, rtol=1e-4, atol=1e-5)


@every_stack
def test_every_parameter_of_a_stack_learns(config: EncoderConfig | DecoderConfig) -> None:
    stack = built_stack(config)
    extra = {"drop_middle_blocks": torch.tensor([False, True])} if isinstance(config, DecoderConfig) else {}
    assert_learns_everywhere(stack, stack(*stack_inputs(config, 2, 4, 5), **extra))


@every_decoder
def test_dropping_the_middle_by_image_equals_dropping_it_by_batch(config: DecoderConfig) -> None:
    decoder = built_stack(config)
    inputs = stack_inputs(config, 3, 3, 4)
    full, dropped = decoder(*inputs), decoder(*inputs, True)
    assert relative_error(dropped, full) > 0.01
    mixed = decoder(*inputs, torch.tensor([True, False, True]))
    torch.testing.assert_close(mixed, torch.stack([dropped[0], full[1], dropped[2]]))
    for whole, by_batch in ((torch.zeros(3).bool(), full), (torch.ones(3).bool(), dropped)):
        torch.testing.assert_close(decoder(*inputs, whole), by_batch)


@every_block
def test_a_dropped_middle_is_not_looked_at(config: BlockConfig) -> None:
    decoder_config = SkipDecoderConfig(block=config, start=1, middle=2, end=1, rank=4)
    decoder: Any = built_stack(decoder_config)
    inputs = stack_inputs(decoder_config, 2, 3, 3)
    before = decoder(*inputs, True)
    for parameter in (*decoder.middle_blocks.parameters(), *decoder.adaln_deltas[1:3].parameters()):
        parameter.data.fill_(torch.nan)
    assert torch.equal(decoder(*inputs, True), before)
    assert decoder(*inputs).isnan().any()


@every_block
def test_a_newborn_decoder_is_linear_and_blind_to_time(config: BlockConfig) -> None:
    decoder = SkipDecoderConfig(block=config, start=1, middle=2, end=1).build(
        channels=CHANNELS, patch=PATCH, width=WIDTH, latent=LATENT
    )
    images, t, latent = stack_inputs(SkipDecoderConfig(), 2, 3, 4)
    x = decoder.fuse_in(torch.cat([decoder.patchify(images), decoder.latent_up(latent)], dim=1))
    for dropped, middle in ((False, x), (True, torch.zeros_like(x))):
        plain = decoder.out_proj(decoder.fuse_skip(torch.cat([x, middle], dim=1)))
        torch.testing.assert_close(decoder(images, t, latent, dropped), plain)


def test_stacks_without_blocks_are_linear_maps_of_patches() -> None:
    encoder = built_stack(StackEncoderConfig(depth=0))
    decoder = built_stack(SkipDecoderConfig(start=0, middle=0, end=0))
    images, t, latent = stack_inputs(SkipDecoderConfig(), 2, 3, 4)
    assert encoder(images).shape == (2, LATENT, 3, 4)
    assert decoder(images, t, latent).shape == images.shape


# --- FCDM -------------------------------------------------------------------------------------------------------------


def plain_fcdm(block: FCDMBlock, x: Tensor, scale: Tensor | None, gate: Tensor) -> Tensor:
    """The block as its specification lists it, step by step."""
    y = F.conv2d(x, block.dwconv.weight, block.dwconv.bias, padding="same", groups=x.shape[1])
    y = y / (y.square().mean(dim=1, keepdim=True) + 1e-6).sqrt()
    y = y if scale is None else y * (1 + scale[:, :, None, None])
    y = F.gelu(block.pwconv1(y))
    strength = torch.linalg.vector_norm(y, dim=(2, 3), keepdim=True)
    normalised = strength / (strength.mean(dim=1, keepdim=True) + 1e-6)
    y = block.grn.gamma * (y * normalised) + block.grn.beta + y
    return x + gate[..., None, None] * block.pwconv2(y)


@given(h=sides, w=sides, kernel=st.sampled_from([1, 3, 7]), seed=seeds)
def test_fcdm_equals_its_formula(h: int, w: int, kernel: int, seed: int) -> None:
    x, cond = block_inputs(2, h, w, cond=COND, seed=seed)
    plain = FCDMBlockConfig(kernel=kernel).build(WIDTH)
    awake(plain)
    torch.testing.assert_close(plain(x), plain_fcdm(plain, x, None, plain.layer_scale), rtol=1e-4, atol=1e-4)
    modulated = FCDMBlockConfig(kernel=kernel, expand=2.5).build(WIDTH, cond=COND)
    awake(modulated)
    assert modulated.modulate is not None
    scale, gate = modulated.modulate(cond).chunk(2, dim=1)
    torch.testing.assert_close(modulated(x, cond), plain_fcdm(modulated, x, scale, gate), rtol=1e-4, atol=1e-4)


def test_fcdm_has_the_published_parameter_counts() -> None:
    with torch.device("meta"):
        plain, conditioned = FCDMBlock(896), FCDMBlock(896, cond=896)
    conditioned.modulate = nn.Identity()
    assert sum(p.numel() for p in plain.parameters()) == 6_479_872
    assert sum(p.numel() for p in conditioned.parameters()) == 6_478_976


def test_a_plain_fcdm_is_born_with_a_layer_scale_of_a_thousandth() -> None:
    assert torch.equal(FCDMBlock(8).layer_scale, torch.full((8,), 1e-3))


def test_fcdm_expands_to_at_least_one_channel() -> None:
    assert FCDMBlock(4, expand=0.1).pwconv1.out_channels == 1


@pytest.mark.parametrize(
    ("make", "values", "message"),
    [
        (
            FCDMBlockConfig,
            {"kernel": 4},
            "config.kernel: must be odd and positive, got 4; an even kernel would move the map",
        ),
        (
            FCDMBlockConfig,
            {"kernel": -1},
            "config.kernel: must be odd and positive, got -1; an even kernel would move the map",
        ),
        (FCDMBlockConfig, {"expand": 0.0}, "config.expand: must be positive, got 0.0"),
        (StackEncoderConfig, {"depth": -1}, "config.depth: must not be negative, got -1"),
        (SkipDecoderConfig, {"middle": -2}, "config.middle: must not be negative, got -2"),
        (SkipDecoderConfig, {"rank": 0}, "config.rank: must be at least 1, got 0"),
    ],
)
def test_settings_of_blocks_and_stacks_are_checked(make: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(PartError) as error:
        make(**values)
    assert str(error.value) == message
