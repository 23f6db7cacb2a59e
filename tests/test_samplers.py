"""Samplers: against processes whose exact solution is known, and the residual noise of the published path."""

import math
from collections.abc import Callable
from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from latelier.blocks import GRIDS, SAMPLERS, VPSchedule, cosine_grid, ddim, dpmpp_2m, linear_grid, path_drop_guidance

every_sampler = pytest.mark.parametrize("name", SAMPLERS)
schedules = st.builds(VPSchedule, logsnr_max=st.floats(3, 10), logsnr_min=st.floats(-10, -3))
shape = (2, 3, 4, 5)


def linear_denoiser(schedule: VPSchedule, variance: float) -> Callable[[Tensor, Tensor], Tensor]:
    """E[x0 | x_t] for x0 ~ N(0, variance)."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (v[:, None, None, None] for v in schedule.alpha_sigma(t))
        return alpha * variance * x / (alpha**2 * variance + (sigma * schedule.noise_std) ** 2)

    return denoise


def spread(schedule: VPSchedule, variance: float, t: Tensor) -> Tensor:
    """Standard deviation of x_t for x0 ~ N(0, variance); the exact flow scales x in its proportion."""
    alpha, sigma = schedule.alpha_sigma(t)
    return (alpha**2 * variance + (sigma * schedule.noise_std) ** 2).sqrt()


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
def test_the_error_falls_with_the_order_of_the_sampler(name: str, order: int) -> None:
    schedule, x = VPSchedule(), torch.randn(shape)
    errors = []
    for steps in (20, 40, 80):
        grid = torch.linspace(0.8, 0.2, steps + 1)
        out = SAMPLERS[name](linear_denoiser(schedule, 0.5), x, grid, schedule)
        exact = x * spread(schedule, 0.5, grid[-1]) / spread(schedule, 0.5, grid[0])
        errors.append(((out - exact).norm() / exact.norm()).item())
    for coarse, fine in pairwise(errors):
        assert abs(math.log2(coarse / fine) - order) < 0.1
    assert errors[-1] < {1: 1e-2, 2: 1e-4}[order]


@every_sampler
@pytest.mark.parametrize("grid", GRIDS)
@given(schedule=schedules, steps=st.integers(1, 8), start=st.floats(0.3, 1))
def test_a_known_image_is_reached_exactly_in_any_number_of_steps(
    name: str, grid: str, schedule: VPSchedule, steps: int, start: float
) -> None:
    target, noise = torch.randn(shape), torch.randn(shape)
    times = start * GRIDS[grid](steps)
    out = SAMPLERS[name](lambda x, t: target, schedule.corrupt(target, times[:1].expand(2), noise), times, schedule)
    torch.testing.assert_close(out, schedule.corrupt(target, times[-1:].expand(2), noise), rtol=1e-3, atol=1e-3)


@given(schedule=schedules, start=st.floats(0.3, 1))
def test_one_step_of_dpmpp_2m_is_one_step_of_ddim(schedule: VPSchedule, start: float) -> None:
    x, denoise, grid = torch.randn(shape), linear_denoiser(schedule, 0.5), start * linear_grid(1)
    torch.testing.assert_close(
        dpmpp_2m(denoise, x, grid, schedule), ddim(denoise, x, grid, schedule), rtol=1e-3, atol=1e-4
    )


def test_one_step_leaves_the_published_residual_noise() -> None:
    schedule = VPSchedule()
    noise = schedule.alpha_sigma(torch.ones(1))[1] * schedule.noise_std * torch.randn(4, 3, 64, 64)
    target = torch.full_like(noise, 0.5)
    residual = ddim(lambda x, t: target, noise, linear_grid(1), schedule) - 0.9999773 * target
    assert math.isclose(residual.std().item(), 0.00376, abs_tol=2e-5)
    assert abs(residual.mean().item()) < 1e-4
    ceiling = 10 * math.log10(4 / residual.square().mean().item())
    assert math.isclose(ceiling, 54.5, abs_tol=0.05)


@every_sampler
def test_the_network_is_asked_once_an_interval_with_one_time_for_the_batch(name: str) -> None:
    asked: list[Tensor] = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        asked.append(t)
        return torch.zeros_like(x)

    SAMPLERS[name](denoise, torch.randn(shape), linear_grid(4), VPSchedule())
    assert torch.equal(torch.stack(asked), linear_grid(4)[:-1, None].expand(4, 2))


@every_sampler
def test_state_is_float32_under_a_half_precision_network(name: str) -> None:
    schedule, x = VPSchedule(), torch.randn(shape)
    exact = linear_denoiser(schedule, 0.5)
    out = SAMPLERS[name](lambda x, t: exact(x, t).bfloat16(), x, linear_grid(6), schedule)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, SAMPLERS[name](exact, x, linear_grid(6), schedule), rtol=0.02, atol=0.02)


# --- grids and guidance ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRIDS)
@given(steps=st.integers(1, 50))
def test_grids_fall_from_one_to_zero_inclusive(name: str, steps: int) -> None:
    grid = GRIDS[name](steps)
    assert (grid.shape, grid.dtype) == ((steps + 1,), torch.float32)
    assert (grid[0].item(), grid[-1].item()) == (1, 0)
    assert (grid.diff() < 0).all()


@given(steps=st.integers(1, 20))
def test_grids_equal_their_formulas(steps: int) -> None:
    even = torch.tensor([1 - i / steps for i in range(steps + 1)])
    cosine = torch.tensor([0.5 * (1 - math.cos(math.pi * (steps - i) / steps)) for i in range(steps + 1)])
    torch.testing.assert_close(linear_grid(steps), even, rtol=0, atol=1e-6)
    torch.testing.assert_close(cosine_grid(steps), cosine, rtol=0, atol=1e-6)


@given(strength=st.floats(-2, 5))
def test_guidance_extrapolates_from_the_dropped_through_the_full_prediction(strength: float) -> None:
    full, dropped = torch.randn(shape), torch.randn(shape)
    guided = path_drop_guidance(full, dropped, strength)
    torch.testing.assert_close(guided, strength * full + (1 - strength) * dropped)
    torch.testing.assert_close(path_drop_guidance(full, dropped, 1.0), full)
    assert torch.equal(path_drop_guidance(full, dropped, 0.0), dropped)
