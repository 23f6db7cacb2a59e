"""Alignment heads: laws over all that are declared, then the plain parts of the noisy-latent head."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from latelier.blocks import FCDMBlockConfig, HeadConfig, NoisyLatentHeadConfig, PartError, decode, parts

LATENT, FEATURES = 5, 64
HEADS: list[HeadConfig] = [
    *(decode(cls.kind, HeadConfig) for cls in parts(HeadConfig)),
    NoisyLatentHeadConfig(width=128, depth=2),
    NoisyLatentHeadConfig(block=FCDMBlockConfig()),
]

every_head = pytest.mark.parametrize("config", HEADS, ids=lambda config: config.kind)


def awake(config: HeadConfig) -> nn.Module:
    """Build a head and add noise to its parameters, so that its gates are open."""
    head = config.build(latent=LATENT, features=FEATURES)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return head


@every_head
@settings(max_examples=10)
@given(b=st.integers(1, 3), h=st.integers(1, 6), w=st.integers(1, 6))
def test_a_head_gives_one_token_a_position_of_unit_rms(config: HeadConfig, b: int, h: int, w: int) -> None:
    tokens = awake(config)(torch.randn(b, LATENT, h, w), torch.rand(b))
    assert tokens.shape == (b, h * w, FEATURES)
    torch.testing.assert_close(tokens.square().mean(dim=-1).sqrt(), torch.ones(b, h * w), atol=1e-3, rtol=0)


@every_head
def test_a_head_hears_the_noise_level_only_after_birth(config: HeadConfig) -> None:
    latent = torch.randn(2, LATENT, 3, 4)
    for head, hears in ((config.build(latent=LATENT, features=FEATURES), False), (awake(config), True)):
        clean, noisy = head(latent, torch.zeros(2)), head(latent, torch.ones(2))
        assert (not torch.equal(clean, noisy)) == hears


@every_head
def test_images_of_a_batch_do_not_see_each_other_in_a_head(config: HeadConfig) -> None:
    head, latent, tau = awake(config), torch.randn(3, LATENT, 3, 4), torch.rand(3)
    alone = torch.cat([head(latent[i : i + 1], tau[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(head(latent, tau), alone, rtol=1e-4, atol=1e-5)


@every_head
def test_every_parameter_of_a_head_and_the_latent_learn(config: HeadConfig) -> None:
    head, latent = awake(config), torch.randn(2, LATENT, 3, 4, requires_grad=True)
    out = head(latent, torch.rand(2))
    (out * torch.randn(out.shape)).sum().backward()
    for name, tensor in (*head.named_parameters(), ("latent", latent)):
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.any(), name


@every_head
def test_a_half_precision_head_takes_float32_latents(config: HeadConfig) -> None:
    head, latent, tau = awake(config), torch.randn(2, LATENT, 3, 4), torch.rand(2)
    reference = head(latent, tau)
    half = head.bfloat16()(latent, tau)
    assert half.dtype == torch.bfloat16
    assert (half.float() - reference).norm() / reference.norm() < 0.05


def test_a_head_without_blocks_is_a_projection_and_a_norm_in_row_major_order() -> None:
    head, latent = NoisyLatentHeadConfig(depth=0).build(latent=LATENT, features=FEATURES), torch.randn(2, LATENT, 3, 4)
    tokens = head.in_proj(latent).permute(0, 2, 3, 1)
    tokens = tokens / (tokens.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(head(latent, torch.rand(2)), tokens.flatten(1, 2), rtol=1e-4, atol=1e-5)


def test_a_head_of_the_teachers_width_has_no_projection_after_its_blocks() -> None:
    own, other = (NoisyLatentHeadConfig(width=width).build(latent=4, features=64) for width in (None, 128))
    assert isinstance(own.out_proj, nn.Identity)
    assert isinstance(other.out_proj, nn.Conv2d)
    assert (own.in_proj.out_channels, other.in_proj.out_channels) == (64, 128)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 0}, "config.width: must be at least 1, or None for the teacher's, got 0"),
        ({"depth": -1}, "config.depth: must not be negative, got -1"),
    ],
)
def test_settings_of_the_head_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PartError) as error:
        NoisyLatentHeadConfig(**values)
    assert str(error.value) == message
