"""The transformer blocks: the sandwich of DINAC-AE and adaLN-Zero, against their formulas, and their parts."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from latelier.blocks import (
    DiTBlock,
    DiTBlockConfig,
    PartError,
    RoPEAttention,
    SandwichDiTBlock,
    rope_angles,
    rope_periods,
    rotate,
)

WIDTH, COND = 64, 8
CONFIGS = [
    DiTBlockConfig(head_width=16, activation=activation, rope=rope, expand=1.5)
    for activation in ("gelu", "silu", "relu", "swiglu")
    for rope in ("indices", "normalised")
]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.activation}-{c.rope}")
sides, head_widths, seeds = st.integers(1, 7), st.sampled_from([4, 16, 64]), st.integers(0, 2**31)


def awake(module: nn.Module) -> Any:
    """Add noise to every parameter, so that nothing is as it was at birth."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def rms(x: Tensor, weight: Tensor | None = None) -> Tensor:
    y = x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    return y if weight is None else y * weight


def plain_attention(attn: RoPEAttention, x: Tensor, grid: tuple[int, int], *, prefix: int = 0) -> Tensor:
    """Softmax attention written out, head by head; the first tokens are not turned."""
    width, d = x.shape[-1], attn.head_width
    convention = attn.rope.convention
    base = {"indices": 10_000.0, "normalised": 100.0}[convention]
    angles = rope_angles(grid, rope_periods(d, base=base), convention=convention)
    heads = []
    for head in range(width // d):
        rows = [slice(part * width + head * d, part * width + (head + 1) * d) for part in range(3)]
        q, k, v = (F.linear(x, attn.qkv.weight[row]) for row in rows)
        q, k = rms(q, attn.q_norm.weight), rms(k, attn.k_norm.weight)
        q, k = (
            torch.cat([y[:, :prefix], rotate(y[:, None, prefix:], angles, convention=convention)[:, 0]], dim=1)
            for y in (q, k)
        )
        heads.append((q @ k.mT / d**0.5).softmax(dim=-1) @ v)
    return F.linear(torch.cat(heads, dim=-1), attn.proj_out.weight)


def plain_mlp(mlp: Any, x: Tensor) -> Tensor:
    y = F.linear(x, mlp.up.weight)
    if mlp.activation == "swiglu":
        half = y.shape[-1] // 2
        y = y[..., :half] * y[..., :half].sigmoid() * y[..., half:]
    else:
        y = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}[mlp.activation](y)
    return F.linear(y, mlp.down.weight)


def plain_sandwich(block: SandwichDiTBlock, x: Tensor, grid: tuple[int, int], *, prefix: int = 0) -> Tensor:
    """x + R2(Attn(R1(x))), then x + R4(MLP(R3(x)))."""
    y = plain_attention(block.attn, rms(x, block.attn_norm1.weight), grid, prefix=prefix)
    x = x + rms(y, block.attn_norm2.weight)
    return x + rms(plain_mlp(block.mlp, rms(x, block.mlp_norm1.weight)), block.mlp_norm2.weight)


def plain_conditioned(block: DiTBlock, x: Tensor, numbers: Tensor, grid: tuple[int, int]) -> Tensor:
    """x + g·Attn(norm(x)·(1 + s) + b), then the same with the MLP."""
    shift1, scale1, gate1, shift2, scale2, gate2 = (part[:, None] for part in numbers.chunk(6, dim=1))
    x = x + gate1 * plain_attention(block.attn, rms(x) * (1 + scale1) + shift1, grid)
    return x + gate2 * plain_mlp(block.mlp, rms(x) * (1 + scale2) + shift2)


def as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)


# --- the formulas -----------------------------------------------------------------------------------------------------


@given(h=sides, w=sides, head_width=head_widths, seed=seeds)
def test_a_block_without_a_condition_is_a_sandwich_of_norms(h: int, w: int, head_width: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, block = torch.randn(2, WIDTH, h, w), awake(DiTBlockConfig(head_width=head_width).build(WIDTH))
    expected = as_map(plain_sandwich(block, x.flatten(2).mT, (h, w)), (h, w))
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)


@given(h=sides, w=sides, head_width=head_widths, seed=seeds)
def test_a_conditioned_block_is_shifted_scaled_and_gated(h: int, w: int, head_width: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, cond = torch.randn(2, WIDTH, h, w), torch.randn(2, COND)
    block = awake(DiTBlockConfig(head_width=head_width).build(WIDTH, cond=COND))
    numbers = F.linear(F.silu(cond), block.modulate.proj.weight, block.modulate.proj.bias)
    expected = as_map(plain_conditioned(block, x.flatten(2).mT, numbers, (h, w)), (h, w))
    torch.testing.assert_close(block(x, cond), expected, rtol=1e-4, atol=1e-4)


@every_config
def test_every_activation_and_convention_runs_in_both_forms(config: DiTBlockConfig) -> None:
    x, cond = torch.randn(2, WIDTH, 3, 5), torch.randn(2, COND)
    plain, conditioned = awake(config.build(WIDTH)), awake(config.build(WIDTH, cond=COND))
    tokens = x.flatten(2).mT
    expected = as_map(plain_sandwich(plain, tokens, (3, 5)), (3, 5))
    torch.testing.assert_close(plain(x), expected, rtol=1e-4, atol=1e-4)
    expected = as_map(plain_conditioned(conditioned, tokens, conditioned.modulate(cond), (3, 5)), (3, 5))
    torch.testing.assert_close(conditioned(x, cond), expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=15)
@given(prefix=st.integers(0, 5), h=st.integers(1, 4), w=st.integers(1, 4), seed=seeds)
def test_tokens_before_the_grid_are_mixed_without_a_place(prefix: int, h: int, w: int, seed: int) -> None:
    torch.manual_seed(seed)
    tokens, block = torch.randn(2, prefix + h * w, WIDTH), awake(DiTBlockConfig(head_width=16).build_plain(WIDTH))
    expected = plain_sandwich(block, tokens, (h, w), prefix=prefix)
    torch.testing.assert_close(block.mix(tokens, (h, w), prefix=prefix), expected, rtol=1e-4, atol=1e-4)


def test_the_order_of_tokens_before_the_grid_does_not_matter_and_that_of_the_grid_does() -> None:
    block, tokens = awake(DiTBlockConfig(head_width=16).build_plain(WIDTH)), torch.randn(1, 9, WIDTH)
    out = block.mix(tokens, (2, 3), prefix=3)
    before, within = [2, 0, 1, 3, 4, 5, 6, 7, 8], [0, 1, 2, 4, 3, 5, 6, 7, 8]
    torch.testing.assert_close(block.mix(tokens[:, before], (2, 3), prefix=3), out[:, before], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(block.mix(tokens[:, within], (2, 3), prefix=3), out[:, within], rtol=1e-2, atol=1e-2)


def test_a_normalised_block_treats_a_picture_and_its_double_alike() -> None:
    """Both see rows from -1 to 1; indices count further in the larger one."""
    small = torch.randn(1, WIDTH, 1, 1).expand(1, WIDTH, 4, 4)
    large = small[..., :1, :1].expand(1, WIDTH, 8, 8)
    block = awake(DiTBlockConfig(head_width=16, rope="normalised").build(WIDTH))
    torch.testing.assert_close(block(large)[..., :4, :4], block(small), rtol=1e-4, atol=1e-4)


# --- what it is made of -----------------------------------------------------------------------------------------------


def test_a_block_without_a_condition_has_the_published_tensors() -> None:
    with torch.device("meta"):
        block = DiTBlockConfig().build(896)
    shapes = {name: tuple(tensor.shape) for name, tensor in block.state_dict().items()}
    assert shapes == {
        "attn_norm1.weight": (896,),
        "attn_norm2.weight": (896,),
        "mlp_norm1.weight": (896,),
        "mlp_norm2.weight": (896,),
        "attn.qkv.weight": (2688, 896),
        "attn.proj_out.weight": (896, 896),
        "attn.q_norm.weight": (64,),
        "attn.k_norm.weight": (64,),
        "attn.rope.periods": (16,),
        "mlp.up.weight": (3584, 896),
        "mlp.down.weight": (896, 3584),
    }
    assert sum(parameter.numel() for parameter in block.parameters()) == 9_637_504


def test_a_conditioned_block_has_biases_in_its_modulation_only() -> None:
    block = DiTBlock(WIDTH, cond=COND)
    assert {name for name, _ in block.named_parameters() if name.endswith("bias")} == {"modulate.proj.bias"}
    assert block.attn_norm.weight is None
    assert block.mlp_norm.weight is None


def test_attention_is_born_within_the_bounds_of_xavier() -> None:
    attn = RoPEAttention(64, head_width=16)
    for linear, ends in ((attn.qkv, 64 + 192), (attn.proj_out, 64 + 64)):
        bound = (6 / ends) ** 0.5
        assert 0.95 * bound < linear.weight.abs().max() <= bound
    for norm in (attn.q_norm, attn.k_norm):
        assert norm.weight is not None
        assert torch.equal(norm.weight, torch.ones(16))


@pytest.mark.parametrize("cond", [None, COND])
def test_the_heads_must_divide_the_width(cond: int | None) -> None:
    with pytest.raises(ValueError, match=r"^width: must be divisible by the head width 64, got 100$"):
        DiTBlockConfig().build(100, cond=cond)


def test_an_mlp_narrower_than_one_is_one_wide() -> None:
    assert DiTBlockConfig(expand=1e-3).build(WIDTH).mlp.down.in_features == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"head_width": 6}, "config.head_width: must be a positive multiple of 4 (axial RoPE), got 6"),
        ({"head_width": 0}, "config.head_width: must be a positive multiple of 4 (axial RoPE), got 0"),
        ({"head_width": -4}, "config.head_width: must be a positive multiple of 4 (axial RoPE), got -4"),
        ({"expand": -1.0}, "config.expand: must be positive, got -1.0"),
        (
            {"activation": "gleu"},
            "config.activation: takes 'gelu' or 'silu' or 'relu' or 'swiglu', got 'gleu'; did you mean 'gelu'?",
        ),
        ({"rope": "axial"}, "config.rope: takes 'indices' or 'normalised', got 'axial'"),
    ],
)
def test_settings_of_the_block_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PartError) as error:
        DiTBlockConfig(**values)
    assert str(error.value) == message
