"""Latent normalisers: inverses, statistics that parts of a batch agree on, and the float32 island."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from latelier.blocks import LatentNormConfig, PartError, WhiteningConfig, decode, dewhiten, parts, whiten

NORMS = [decode(cls.kind, LatentNormConfig) for cls in parts(LatentNormConfig)]
every_norm = pytest.mark.parametrize("config", NORMS, ids=lambda config: config.kind)
batches, channels, sides = st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)


def skewed(b: int, z: int, h: int, w: int) -> torch.Tensor:
    """Latents whose channels differ in mean and spread."""
    steps = torch.arange(1.0, z + 1)[:, None, None]
    return steps * torch.randn(b, z, h, w) - 2 * steps


@every_norm
@given(b=batches, z=channels, h=sides, w=sides)
def test_denormalise_undoes_normalise(config: LatentNormConfig, b: int, z: int, h: int, w: int) -> None:
    statistics = config.statistics(z)
    config.fit(statistics, config.observe(skewed(8, z, 8, 8)), momentum=1.0)
    latent = skewed(b, z, h, w)
    normal = config.normalise(latent, statistics)
    assert normal.shape == latent.shape
    torch.testing.assert_close(config.denormalise(normal, statistics), latent, rtol=1e-5, atol=1e-5)


@every_norm
def test_a_newborn_normaliser_changes_next_to_nothing(config: LatentNormConfig) -> None:
    latent = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(config.normalise(latent, config.statistics(5)), latent, rtol=1e-4, atol=0)


@every_norm
@given(share=st.integers(1, 3), count=st.integers(2, 4), z=channels, h=sides, w=sides)
def test_moments_of_equal_parts_average_to_the_moments_of_the_whole(
    config: LatentNormConfig, share: int, count: int, z: int, h: int, w: int
) -> None:
    latent = skewed(share * count, z, h, w)
    whole = config.observe(latent)
    averaged = torch.stack([config.observe(part) for part in latent.split(share)]).mean(dim=0)
    torch.testing.assert_close(averaged, whole)


@every_norm
@given(momentum=st.floats(0, 1))
def test_fitting_is_in_place_in_float32_and_without_gradient(config: LatentNormConfig, momentum: float) -> None:
    statistics = config.statistics(3)
    kept = dict(statistics)
    config.fit(statistics, config.observe(skewed(2, 3, 4, 4).requires_grad_()), momentum=momentum)
    for name, value in statistics.items():
        assert value is kept[name]
        assert value.dtype == torch.float32
        assert not value.requires_grad


@every_norm
def test_normalising_keeps_dtype_and_lets_gradients_through(config: LatentNormConfig) -> None:
    statistics = config.statistics(3)
    config.fit(statistics, config.observe(skewed(8, 3, 8, 8)), momentum=1.0)
    latent = skewed(2, 3, 4, 4).bfloat16()
    for function in (config.normalise, config.denormalise):
        once = function(latent, statistics)
        assert once.dtype == torch.bfloat16
        assert torch.equal(once, function(latent.float(), statistics).bfloat16())  # one rounding, at the end
    latent = skewed(2, 3, 4, 4).requires_grad_()
    config.normalise(latent, statistics).sum().backward()
    assert latent.grad is not None
    assert latent.grad.all()


# --- whitening ----------------------------------------------------------------------------------------------------


@given(b=batches, z=channels, h=sides, w=sides, eps=st.sampled_from([1e-6, 1e-4, 0.1]))
def test_whitening_equals_its_formula(b: int, z: int, h: int, w: int, eps: float) -> None:
    latent, mean, var = skewed(b, z, h, w), torch.randn(z), torch.rand(z) + 0.1
    std = (var + eps).sqrt()[:, None, None]
    torch.testing.assert_close(whiten(latent, mean, var, eps=eps), (latent - mean[:, None, None]) / std)
    torch.testing.assert_close(dewhiten(latent, mean, var, eps=eps), latent * std + mean[:, None, None])


def test_a_channel_without_variance_is_scaled_by_the_root_of_eps() -> None:
    latent, zero = torch.ones(1, 1, 2, 2), torch.zeros(1)
    torch.testing.assert_close(whiten(latent, zero, zero), 100 * latent)
    torch.testing.assert_close(WhiteningConfig(eps=1e-2).normalise(latent, _statistics(zero, zero)), 10 * latent)


def _statistics(mean: torch.Tensor, var: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"running_mean": mean, "running_var": var}


@given(b=batches, z=channels, h=sides, w=sides)
def test_statistics_are_those_of_the_batch_at_momentum_one(b: int, z: int, h: int, w: int) -> None:
    config, latent = WhiteningConfig(), 1e3 + skewed(b, z, h, w)  # a mean far from zero costs no digits
    statistics = config.statistics(z)
    config.fit(statistics, config.observe(latent), momentum=1.0)
    exact = latent.double()
    torch.testing.assert_close(statistics["running_mean"].double(), exact.mean(dim=(0, 2, 3)), rtol=1e-6, atol=0)
    var = exact.var(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(statistics["running_var"].double(), var, rtol=1e-5, atol=1e-8)


def test_whitened_latents_have_zero_mean_and_unit_variance() -> None:
    config, latent = WhiteningConfig(), skewed(8, 4, 16, 16)
    statistics = config.statistics(4)
    config.fit(statistics, config.observe(latent), momentum=1.0)
    normal = config.normalise(latent, statistics)
    torch.testing.assert_close(normal.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.var(dim=(0, 2, 3), correction=0), torch.ones(4), atol=1e-3, rtol=0)


def test_statistics_move_a_share_of_the_way() -> None:
    config, latent = WhiteningConfig(), skewed(8, 2, 8, 8)
    moved, replaced = config.statistics(2), config.statistics(2)
    config.fit(moved, config.observe(latent), momentum=0.1)
    config.fit(replaced, config.observe(latent), momentum=1.0)
    for name, born in config.statistics(2).items():
        torch.testing.assert_close(moved[name], 0.9 * born + 0.1 * replaced[name])


def test_a_constant_channel_has_no_negative_variance() -> None:
    config = WhiteningConfig()
    statistics = config.statistics(1)
    config.fit(statistics, config.observe(torch.full((1, 1, 7, 7), 0.1)), momentum=1.0)
    assert statistics["running_var"].item() >= 0


def test_eps_must_be_positive() -> None:
    with pytest.raises(PartError) as error:
        WhiteningConfig(eps=0.0)
    assert str(error.value) == "config.eps: must be positive, got 0.0"
