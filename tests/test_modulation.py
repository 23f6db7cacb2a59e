"""Modulations, the time embedding behind them, and the float32 buffers that it keeps."""

import copy
import math
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import nn

from latelier.blocks import MLP, AdaLN, LowRankDelta, SkipDecoderConfig, TimeEmbedding, sinusoids

FREQUENCIES = [10_000 ** (-i / 127) for i in range(128)]


def test_modulations_are_born_as_zero_and_can_learn() -> None:
    cond = torch.randn(3, 8)
    for modulation in (AdaLN(8, 10), LowRankDelta(8, 10, rank=4)):
        out = modulation(cond)
        assert torch.equal(out, torch.zeros(3, 10))
        (out * torch.randn(3, 10)).sum().backward()
        grads = [p.grad for p in modulation.parameters() if p.grad is not None]
        assert any(grad.any() for grad in grads)


def test_modulations_equal_their_formulas() -> None:
    cond = torch.randn(3, 8)
    base, delta = AdaLN(8, 10), LowRankDelta(8, 10, rank=4)
    for parameter in (*base.parameters(), *delta.parameters()):
        nn.init.normal_(parameter)
    a = F.silu(cond)
    torch.testing.assert_close(base(cond), a @ base.proj.weight.T + base.proj.bias)
    torch.testing.assert_close(delta(cond), a @ delta.down.weight.T @ delta.up.weight.T)


def test_the_inner_half_of_a_low_rank_delta_is_born_small() -> None:
    delta = LowRankDelta(256, 512, rank=128)
    assert 0.0195 < delta.down.weight.std() < 0.0205
    assert [name for name, _ in delta.named_parameters()] == ["down.weight", "up.weight"]


def test_all_blocks_of_a_decoder_share_one_modulation_and_differ_by_their_deltas() -> None:
    decoder = SkipDecoderConfig(start=1, middle=1, end=1, rank=2).build(channels=3, patch=2, width=4, latent=2)
    for parameter in (*decoder.adaln_base.parameters(), *decoder.adaln_deltas[1].parameters()):
        nn.init.normal_(parameter)
    cond = torch.randn(2, 4)
    first, second, third = decoder._modulations(cond)
    assert torch.equal(first, decoder.adaln_base(cond))
    assert torch.equal(first, third)
    torch.testing.assert_close(second - first, decoder.adaln_deltas[1](cond), rtol=1e-4, atol=1e-5)


def test_the_mlp_is_linear_exact_gelu_linear() -> None:
    mlp, x = MLP(6, 12), torch.randn(2, 5, 6)
    y = x @ mlp.up.weight.T
    expected = (y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))) @ mlp.down.weight.T
    torch.testing.assert_close(mlp(x), expected)
    assert [name for name, _ in mlp.named_parameters()] == ["up.weight", "down.weight"]


# --- time -------------------------------------------------------------------------------------------------------------


def test_frequencies_run_from_one_to_a_ten_thousandth_with_divisor_127() -> None:
    torch.testing.assert_close(TimeEmbedding(4).freqs.double(), torch.tensor(FREQUENCIES).double(), rtol=1e-6, atol=0)


@given(t=st.floats(0, 1))
def test_times_become_sines_then_cosines_of_a_thousand_t_f(t: float) -> None:
    waves = sinusoids(torch.tensor([t]), torch.tensor(FREQUENCIES))[0].double()
    angles = [1000 * t * f for f in FREQUENCIES]
    expected = torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
    torch.testing.assert_close(waves, expected.double(), rtol=0, atol=2e-4)  # 1000 in float32 is known to 6e-5


def test_the_embedding_is_two_linear_maps_with_silu_between() -> None:
    embed, t = TimeEmbedding(6, frequencies=4), torch.rand(3)
    waves = sinusoids(t, embed.freqs)
    torch.testing.assert_close(embed(t), embed.proj_out(F.silu(embed.proj_in(waves))))
    assert set(embed.state_dict()) == {"freqs", *(f"proj_{n}.{p}" for n in ("in", "out") for p in ("weight", "bias"))}


def test_times_are_embedded_in_float32_by_a_half_precision_model() -> None:
    embed, t = TimeEmbedding(16).bfloat16(), torch.linspace(0, 1, 50)
    waves = sinusoids(t, embed.freqs)
    assert waves.dtype == torch.float32
    out = embed(t)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, embed.proj_out(F.silu(embed.proj_in(waves.bfloat16()))))


CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "to(bfloat16)": lambda m: m.to(torch.bfloat16),
    "to(cpu, float16)": lambda m: m.to("cpu", torch.float16),
    "half()": lambda m: m.half(),
    "double()": lambda m: m.double(),
    "bfloat16() and back": lambda m: m.bfloat16().float(),
    "a deep copy in bfloat16": lambda m: copy.deepcopy(m).bfloat16(),
    "inside another module": lambda m: nn.Sequential(m).bfloat16()[0],
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_frequencies_keep_float32_and_every_bit_under(cast: Callable[[nn.Module], nn.Module]) -> None:
    before = TimeEmbedding(4).freqs
    after = cast(TimeEmbedding(4))
    assert isinstance(after, TimeEmbedding)
    assert after.freqs.dtype == torch.float32
    assert torch.equal(after.freqs, before)


def test_frequencies_move_to_another_device_and_keep_float32() -> None:
    for moved in (TimeEmbedding(4).to("meta"), TimeEmbedding(4).to("meta", torch.bfloat16)):
        assert moved.freqs.is_meta
        assert moved.freqs.dtype == torch.float32
    born_there = TimeEmbedding(4).to("meta").bfloat16()
    assert (born_there.freqs.dtype, born_there.proj_in.weight.dtype) == (torch.float32, torch.bfloat16)
    assert born_there.to_empty(device="cpu").freqs.dtype == torch.float32


def test_frequencies_are_saved_with_the_model_and_loaded() -> None:
    source, target = TimeEmbedding(4).bfloat16(), TimeEmbedding(4)
    nn.init.zeros_(target.freqs)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.freqs, TimeEmbedding(4).freqs)
