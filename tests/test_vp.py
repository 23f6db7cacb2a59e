"""The variance-preserving schedule, SiD2's weight, and the distributions of times."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from latelier.blocks import (
    Beta22TimesConfig,
    Draws,
    PartError,
    TimesConfig,
    UniformTimesConfig,
    VPSchedule,
    VPScheduleConfig,
    WithPureNoiseConfig,
    decode,
    parts,
    sid2_weight,
)

TIMES = [decode(cls.kind, TimesConfig) for cls in parts(TimesConfig)]
every_times = pytest.mark.parametrize("config", TIMES, ids=lambda config: config.kind)
ends = st.tuples(st.floats(1, 15), st.floats(-15, -1))


# --- schedule -------------------------------------------------------------------------------------------------------


def test_the_constants_of_the_published_schedule() -> None:
    schedule = VPSchedule()
    assert math.isclose(schedule.slope, 1.557320636726051, abs_tol=1e-12)
    assert math.isclose(schedule.offset, 0.006737845034422798, abs_tol=1e-12)


def test_log_snr_runs_from_ten_through_zero_to_minus_ten() -> None:
    logsnr = VPSchedule().logsnr(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(logsnr, torch.tensor([10.0, 0.0, -10.0]), atol=1e-4, rtol=0)


@given(ends=ends)
def test_log_snr_falls_between_its_ends(ends: tuple[float, float]) -> None:
    schedule = VPSchedule(logsnr_max=ends[0], logsnr_min=ends[1])
    logsnr = schedule.logsnr(torch.linspace(0, 1, 50))
    torch.testing.assert_close(logsnr[[0, -1]], torch.tensor(ends), atol=2e-3, rtol=1e-3)
    assert (logsnr.diff() < 0).all()


@given(t=st.floats(0.01, 0.99), ends=ends, shift=st.tuples(st.floats(-2, 2), st.floats(-4, -2)))
def test_the_slope_is_the_derivative_of_log_snr(
    t: float, ends: tuple[float, float], shift: tuple[float, float]
) -> None:
    schedule = VPSchedule(logsnr_max=ends[0], logsnr_min=ends[1], shift_high=shift[0], shift_low=shift[1])
    time = torch.tensor([t], requires_grad=True)
    (derivative,) = torch.autograd.grad(schedule.logsnr(time), time)
    torch.testing.assert_close(schedule.logsnr_slope(time.detach()), derivative, rtol=1e-4, atol=1e-4)


@given(high=st.floats(-3, 3), low=st.floats(-3, 3))
def test_the_resolution_shift_goes_linearly_from_high_to_low(high: float, low: float) -> None:
    t = torch.linspace(0, 1, 11)
    shifted, plain = VPSchedule(shift_high=high, shift_low=low).logsnr(t), VPSchedule().logsnr(t)
    torch.testing.assert_close(shifted, plain + (1 - t) * high + t * low)


@given(t=st.floats(0, 1), std=st.floats(0.1, 2))
def test_corrupted_images_are_alpha_x_plus_sigma_s_noise(t: float, std: float) -> None:
    schedule = VPSchedule(noise_std=std)
    x0, noise, times = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.tensor([t, 1 - t])
    logsnr = schedule.logsnr(times)[:, None, None, None]
    expected = logsnr.sigmoid().sqrt() * x0 + (-logsnr).sigmoid().sqrt() * std * noise
    torch.testing.assert_close(schedule.corrupt(x0, times, noise), expected, rtol=1e-4, atol=1e-5)


def test_the_schedule_is_float32_in_half_precision() -> None:
    schedule, t, image = VPSchedule(), torch.rand(2).bfloat16(), torch.randn(2, 3, 4, 4).bfloat16()
    for value in (schedule.logsnr(t), schedule.logsnr_slope(t), *schedule.alpha_sigma(t), sid2_weight(schedule, t)):
        assert value.dtype == torch.float32
    assert schedule.corrupt(image, t, torch.randn(2, 3, 4, 4)).dtype == torch.float32


def test_a_config_builds_the_schedule_that_it_describes() -> None:
    assert VPScheduleConfig().build() == VPSchedule()
    config = VPScheduleConfig(logsnr_max=8.0, logsnr_min=-6.0, noise_std=1.0, shift_high=0.5, shift_low=-0.5)
    expected = VPSchedule(logsnr_max=8.0, logsnr_min=-6.0, noise_std=1.0, shift_high=0.5, shift_low=-0.5)
    assert config.build() == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"logsnr_max": -10.0}, "config.logsnr_max: must exceed logsnr_min, got -10.0 and -10.0"),
        ({"noise_std": 0.0}, "config.noise_std: must be positive, got 0.0"),
    ],
)
def test_settings_of_the_schedule_are_checked(values: dict[str, float], message: str) -> None:
    with pytest.raises(PartError) as error:
        VPScheduleConfig(**values)
    assert str(error.value) == message


# --- weight ---------------------------------------------------------------------------------------------------------


def test_the_weight_at_the_ends_in_the_middle_and_on_average() -> None:
    weight = sid2_weight(VPSchedule(), torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(weight, torch.tensor([31.28, 0.3713, 0.01049]), rtol=5e-4, atol=0)
    middles = (torch.arange(100_000) + 0.5) / 100_000
    assert abs(sid2_weight(VPSchedule(), middles).mean().item() - 0.812) < 5e-4


@given(t=st.floats(0, 1), bias=st.floats(-4, 2))
def test_the_weight_is_sid2s_noise_weight_written_for_images(t: float, bias: float) -> None:
    schedule, times = VPSchedule(), torch.tensor([t])
    logsnr = schedule.logsnr(times)
    expected = -0.5 * schedule.logsnr_slope(times) * logsnr.exp() * torch.sigmoid(bias - logsnr)
    torch.testing.assert_close(sid2_weight(schedule, times, bias=bias), expected, rtol=1e-4, atol=0)


# --- times ----------------------------------------------------------------------------------------------------------


def sample(config: TimesConfig, batch: int = 20_000, first: int = 0) -> torch.Tensor:
    return config.sample(Draws(0, 0, first=first, batch=batch), "t")


@every_times
def test_times_lie_in_the_unit_interval_and_belong_to_their_sample(config: TimesConfig) -> None:
    times = sample(config, 6)
    assert (times.shape, times.dtype) == ((6,), torch.float32)
    assert ((times >= 0) & (times <= 1)).all()
    assert torch.equal(torch.cat([sample(config, 2), sample(config, 4, first=2)]), times)


def test_times_follow_their_distributions() -> None:
    for config, distribution in (
        (UniformTimesConfig(), lambda t: t),
        (Beta22TimesConfig(), lambda t: 3 * t**2 - 2 * t**3),
    ):
        times = sample(config).sort().values
        steps = (torch.arange(len(times)) + 0.5) / len(times)
        assert (distribution(times) - steps).abs().max() < 0.0138  # Kolmogorov and Smirnov at a thousandth
    beta = sample(Beta22TimesConfig())
    assert abs(beta.mean().item() - 0.5) < 0.005
    assert abs(beta.var().item() - 0.05) < 0.002


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_times_is_pure_noise_and_the_rest_is_uniform(share: float) -> None:
    times = sample(WithPureNoiseConfig(share=share))
    pure = times == 1
    assert abs(pure.float().mean().item() - share) < 0.012
    if share < 1:
        assert abs(times[~pure].mean().item() - 0.5) < 0.012


def test_a_share_lies_in_the_unit_interval() -> None:
    with pytest.raises(PartError) as error:
        WithPureNoiseConfig(share=1.5)
    assert str(error.value) == "config.share: must be in [0, 1], got 1.5"
