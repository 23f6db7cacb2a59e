"""Posteriors over latents: the variance-preserving law, safety at the ends, and reproducible samples."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from latelier.blocks import (
    EncoderPosterior,
    PointPosteriorConfig,
    PosteriorConfig,
    VPPosteriorConfig,
    alpha_sigma,
    channel_rms_norm,
    decode,
    parts,
)

POSTERIORS = [decode(cls.kind, PosteriorConfig) for cls in parts(PosteriorConfig)]
every_posterior = pytest.mark.parametrize("config", POSTERIORS, ids=lambda config: config.kind)
batches, latents, sides = st.integers(1, 3), st.integers(1, 6), st.integers(1, 5)


@given(logsnr=st.floats(-1e4, 1e4))
def test_alpha_and_sigma_lie_on_the_unit_circle_at_the_given_log_snr(logsnr: float) -> None:
    alpha, sigma = (v.double().item() for v in alpha_sigma(torch.tensor([logsnr])))
    assert math.isclose(alpha**2 + sigma**2, 1, abs_tol=1e-6)
    if abs(logsnr) < 80:
        assert math.isclose(2 * math.log(alpha / sigma), logsnr, rel_tol=1e-5, abs_tol=1e-5)


@pytest.mark.parametrize("logsnr", [math.inf, 1e4])
def test_extreme_log_snr_is_all_signal_or_all_noise_with_finite_gradients(logsnr: float) -> None:
    for sign, expected in ((1, (1.0, 0.0)), (-1, (0.0, 1.0))):
        value = torch.tensor([sign * logsnr], requires_grad=True)
        alpha, sigma = alpha_sigma(value)
        assert (alpha.item(), sigma.item()) == expected
        (alpha + sigma).sum().backward()
        assert value.grad is not None
        assert value.grad.isfinite().all()


def test_alpha_and_sigma_are_float32_whatever_comes_in() -> None:
    logsnr = torch.randn(100).bfloat16()
    for half, full in zip(alpha_sigma(logsnr), alpha_sigma(logsnr.float()), strict=True):
        assert half.dtype == torch.float32
        assert torch.equal(half, full)


@given(b=batches, z=latents, h=sides, w=sides)
def test_mode_and_samples_are_alpha_mu_and_alpha_mu_plus_sigma_noise(b: int, z: int, h: int, w: int) -> None:
    mean, logsnr, noise = (torch.randn(b, z, h, w) for _ in range(3))
    posterior = EncoderPosterior(mean, logsnr)
    alpha, sigma = logsnr.sigmoid().sqrt(), (-logsnr).sigmoid().sqrt()
    torch.testing.assert_close(posterior.alpha, alpha)
    torch.testing.assert_close(posterior.sigma, sigma)
    torch.testing.assert_close(posterior.mode(), alpha * mean)
    torch.testing.assert_close(posterior.at(noise), alpha * mean + sigma * noise)
    torch.testing.assert_close(posterior.at(torch.zeros_like(noise)), posterior.mode())


def test_samples_have_the_mean_and_the_spread_of_the_posterior() -> None:
    shape = (1, 3, 200, 200)
    mean = torch.tensor([-2.0, 0.0, 1.0])[:, None, None].expand(shape)
    logsnr = torch.tensor([-3.0, 0.0, 2.0])[:, None, None].expand(shape)
    posterior = EncoderPosterior(mean, logsnr)
    samples = posterior.sample(generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(samples.mean(dim=(0, 2, 3)), posterior.mode()[0, :, 0, 0], atol=0.02, rtol=0)
    torch.testing.assert_close(samples.std(dim=(0, 2, 3)), posterior.sigma[0, :, 0, 0], atol=0.02, rtol=0)


def test_a_generator_fixes_the_sample() -> None:
    posterior = EncoderPosterior(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))
    first, again, other = (posterior.sample(generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(1)
    assert torch.equal(posterior.sample(), first)


def test_a_bfloat16_posterior_computes_in_float32_and_casts_once() -> None:
    mean, logsnr, noise = (torch.randn(2, 3, 4, 4) for _ in range(3))
    half = EncoderPosterior(mean.bfloat16(), logsnr.bfloat16())
    full = EncoderPosterior(mean.bfloat16().float(), logsnr.bfloat16().float())
    for ours, reference in ((half.mode(), full.mode()), (half.at(noise), full.at(noise))):
        assert ours.dtype == torch.bfloat16
        assert torch.equal(ours, reference.bfloat16())
    assert half.sample().dtype == torch.bfloat16


@every_posterior
@given(b=batches, latent=latents, h=sides, w=sides)
def test_a_head_reads_a_posterior_off_its_channels(
    config: PosteriorConfig, b: int, latent: int, h: int, w: int
) -> None:
    head = config.build(latent)
    posterior = head(torch.randn(b, head.channels, h, w).bfloat16())
    for value in (posterior.mean, posterior.logsnr, posterior.mode(), posterior.sample()):
        assert (value.shape, value.dtype) == ((b, latent, h, w), torch.bfloat16)
    assert posterior.sample().isfinite().all()


def test_the_first_half_of_the_channels_is_the_mean_and_the_second_the_log_snr() -> None:
    moments = 1e3 * torch.randn(2, 6, 4, 4)  # the log-SNR is not clamped
    posterior = VPPosteriorConfig().build(3)(moments)
    assert torch.equal(posterior.mean, moments[:, :3])
    assert torch.equal(posterior.logsnr, moments[:, 3:])


def test_every_sample_of_a_point_is_the_point() -> None:
    moments = torch.randn(2, 3, 4, 4)
    posterior = PointPosteriorConfig().build(3)(moments)
    assert torch.equal(posterior.mode(), moments)
    assert torch.equal(posterior.sample(), moments)


@pytest.mark.parametrize("config", [VPPosteriorConfig, PointPosteriorConfig])
def test_the_mean_may_be_normalised_over_channels(config: type[VPPosteriorConfig | PointPosteriorConfig]) -> None:
    head = config(mean_norm="channel_wise").build(3)
    moments = torch.randn(2, head.channels, 4, 4)
    assert torch.equal(head(moments).mean, channel_rms_norm(moments[:, :3]))
    assert not list(head.parameters())
