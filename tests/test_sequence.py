"""Blocks in sequence: equal to running them in turn, one modulation for all, a block wherever one is asked for."""

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latelier.blocks import (
    BlockConfig,
    DiTBlockConfig,
    FCDMBlockConfig,
    NoisyLatentHeadConfig,
    PartError,
    SequenceBlock,
    SequenceBlockConfig,
    SkipDecoder,
    SkipDecoderConfig,
    StackEncoderConfig,
    decode,
    encode,
    override,
)

WIDTH, COND = 32, 8
FCDM, DIT = FCDMBlockConfig(kernel=3), DiTBlockConfig(head_width=16)
MIXED = SequenceBlockConfig(blocks=(FCDM, DIT, FCDM))
NESTED = SequenceBlockConfig(blocks=(MIXED, SequenceBlockConfig(blocks=(DIT,)), FCDM))

every_sequence = pytest.mark.parametrize("config", [MIXED, NESTED, SequenceBlockConfig(blocks=(DIT,))])


def awake(module: nn.Module) -> Any:
    """Add noise to every parameter, so that nothing is as it was at birth."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def leaves(block: Any) -> list[Any]:
    """List the blocks of a sequence, those of sequences inside it in their place."""
    return [leaf for inner in block.blocks for leaf in (leaves(inner) if isinstance(inner, SequenceBlock) else [inner])]


@every_sequence
def test_a_sequence_runs_its_blocks_in_turn(config: SequenceBlockConfig) -> None:
    block, x = awake(config.build(WIDTH)), torch.randn(2, WIDTH, 3, 4)
    expected = x
    for leaf in leaves(block):
        expected = leaf(expected)
    assert torch.equal(block(x), expected)


@every_sequence
def test_a_conditioned_sequence_hands_its_numbers_out_in_order(config: SequenceBlockConfig) -> None:
    block, x, cond = awake(config.build(WIDTH, cond=COND)), torch.randn(2, WIDTH, 3, 4), torch.randn(2, COND)
    numbers = F.linear(F.silu(cond), block.modulate.proj.weight, block.modulate.proj.bias)
    expected, start = x, 0
    for leaf in leaves(block):
        size = (6 if hasattr(leaf, "attn") else 2) * WIDTH
        expected, start = leaf(expected, numbers[:, start : start + size]), start + size
    assert start == numbers.shape[1] == config.modulations * WIDTH
    assert torch.equal(block(x, cond), expected)


@every_sequence
def test_a_conditioned_sequence_is_born_as_the_identity_and_its_gates_learn(config: SequenceBlockConfig) -> None:
    block, x = config.build(WIDTH, cond=COND), torch.randn(2, WIDTH, 3, 4)
    out = block(x, torch.randn(2, COND))
    assert torch.equal(out, x)
    (out * torch.randn_like(out)).sum().backward()
    assert isinstance(block.modulate, nn.Module)
    for parameter in block.modulate.parameters():
        assert parameter.grad is not None
        assert parameter.grad.any()


@every_sequence
def test_only_the_outermost_sequence_has_a_modulation_of_its_own(config: SequenceBlockConfig) -> None:
    conditioned, plain = config.build(WIDTH, cond=COND), config.build(WIDTH)
    modulations = [name for name, _ in conditioned.named_parameters() if "modulate" in name]
    assert modulations == ["modulate.proj.weight", "modulate.proj.bias"]
    assert plain.modulate is None
    assert not [name for name, _ in plain.named_parameters() if "modulate" in name]


def test_a_sequence_of_one_equals_its_block() -> None:
    one, block = (awake(c.build(WIDTH, cond=COND)) for c in (SequenceBlockConfig(blocks=(DIT,)), DIT))
    block.load_state_dict({k.removeprefix("blocks.0."): v for k, v in one.state_dict().items()})
    x, cond = torch.randn(2, WIDTH, 3, 4), torch.randn(2, COND)
    assert torch.equal(one(x, cond), block(x, cond))


def test_a_sequence_sums_modulations_and_sees_the_whole_map_when_a_block_does() -> None:
    assert (MIXED.modulations, MIXED.global_context) == (10, True)
    assert (NESTED.modulations, NESTED.global_context) == (18, True)
    local = SequenceBlockConfig(blocks=(FCDM,))
    assert local.global_context == FCDM.global_context
    assert SequenceBlockConfig().blocks == (FCDMBlockConfig(), DiTBlockConfig())


# --- wherever a block fits --------------------------------------------------------------------------------------------


@every_sequence
def test_a_stack_of_sequences_equals_a_stack_of_their_blocks(config: SequenceBlockConfig) -> None:
    encoder = awake(StackEncoderConfig(block=config, depth=2).build(channels=3, patch=4, width=WIDTH, out=5))
    image = torch.randn(2, 3, 12, 16)
    x = encoder.patchify(image)
    for block in encoder.blocks:
        for leaf in leaves(block):
            x = leaf(x)
    assert torch.equal(encoder(image), encoder.to_bottleneck(x))


@every_sequence
def test_a_decoder_modulates_the_blocks_of_its_sequences(config: SequenceBlockConfig) -> None:
    decoder = SkipDecoderConfig(block=config, start=1, middle=1, end=1, rank=4).build(
        channels=3, patch=4, width=WIDTH, latent=5
    )
    assert isinstance(decoder, SkipDecoder)
    assert [name for name, _ in decoder.named_parameters() if "modulate" in name] == []
    assert decoder.adaln_base.proj.out_features == config.modulations * WIDTH
    inputs = torch.randn(2, 3, 12, 16), torch.rand(2), torch.randn(2, 5, 3, 4)
    full, dropped = awake(decoder)(*inputs), decoder(*inputs, True)
    assert (full.shape, full.isfinite().all().item()) == ((2, 3, 12, 16), True)
    mixed = decoder(*inputs, torch.tensor([True, False]))
    torch.testing.assert_close(mixed, torch.stack([dropped[0], full[1]]), rtol=1e-4, atol=1e-4)
    mixed.square().sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@every_sequence
def test_a_head_conditions_sequences_on_its_noise_level(config: SequenceBlockConfig) -> None:
    head, latent = NoisyLatentHeadConfig(block=config).build(latent=5, features=WIDTH), torch.randn(2, 5, 3, 4)
    assert torch.equal(head(latent, torch.zeros(2)), head(latent, torch.ones(2)))
    awake(head)
    clean, noisy = head(latent, torch.zeros(2)), head(latent, torch.ones(2))
    assert clean.shape == (2, 12, WIDTH)
    assert not torch.allclose(clean, noisy, rtol=1e-2, atol=1e-2)


# --- files and the command line ---------------------------------------------------------------------------------------


@every_sequence
def test_a_sequence_survives_json(config: SequenceBlockConfig) -> None:
    text = json.dumps(encode(config))
    assert decode(json.loads(text), BlockConfig) == config
    assert [block["kind"] for block in json.loads(text)["blocks"]] == [block.kind for block in config.blocks]


def test_a_sequence_is_set_from_the_command_line() -> None:
    setting = 'block={"kind": "block/sequence", "blocks": ["fcdm", {"kind": "block/dit", "rope": "normalised"}]}'
    expected = SequenceBlockConfig(blocks=(FCDMBlockConfig(), DiTBlockConfig(rope="normalised")))
    config = override(StackEncoderConfig(), [setting])
    assert config == StackEncoderConfig(block=expected)
    changed = override(config, ["block.blocks.1.activation=swiglu", "block.blocks.0.kernel=3"])
    blocks = FCDMBlockConfig(kernel=3), DiTBlockConfig(rope="normalised", activation="swiglu")
    assert changed == StackEncoderConfig(block=SequenceBlockConfig(blocks=blocks))
    assert override(config, ["block=sequence"]) == StackEncoderConfig(block=SequenceBlockConfig())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("block.blocks=[]", "config.block.blocks: is empty; name one or more blocks"),
        ('block.blocks=["fcmd"]', "config.block.blocks.0: no part is named 'block/fcmd'; did you mean 'block/fcdm'?"),
        ("block.blocks=fcdm", "config.block.blocks: takes tuple[a part of slot 'block', ...], got 'fcdm'"),
        ("block.blocks.2.kernel=3", "config.block.blocks: has no item '2'; known: 'fcdm', 'dit'"),
    ],
)
def test_a_wrong_sequence_from_the_command_line_is_refused(setting: str, message: str) -> None:
    with pytest.raises(PartError) as error:
        override(StackEncoderConfig(block=SequenceBlockConfig()), [setting])
    assert str(error.value) == message


def test_a_sequence_without_blocks_is_refused() -> None:
    with pytest.raises(PartError) as error:
        SequenceBlockConfig(blocks=())
    assert str(error.value) == "config.blocks: is empty; name one or more blocks"


def test_a_width_that_a_block_refuses_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^width: must be divisible by the head width 16, got 24$"):
        MIXED.build(24)
