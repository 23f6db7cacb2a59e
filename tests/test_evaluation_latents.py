"""Latent statistics, the linear yardsticks and latent colours, on data whose answers are known."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from latelier.evaluation import (
    LatentStatistics,
    PatchPCA,
    PosteriorStatistics,
    RidgeReadout,
    difference,
    latent_colours,
    latents,
    pictures,
    to_picture,
    token_cosine,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- statistics ---------------------------------------------------------------------------------------------------


def test_moments_are_those_of_numpy() -> None:
    z = 3 * normal(4, 5, 6, 7) ** 3 - 1
    statistics = LatentStatistics()
    statistics.update(z)
    found = statistics.report()
    rows = z.double().permute(1, 0, 2, 3).reshape(5, -1).numpy()
    centred = rows - rows.mean(1, keepdims=True)
    np.testing.assert_allclose(found["mean"], rows.mean(1), atol=1e-12)
    np.testing.assert_allclose(found["std"], rows.std(1), rtol=1e-12)
    np.testing.assert_allclose(found["kurtosis"], (centred**4).mean(1) / rows.var(1) ** 2, rtol=1e-9)
    token = np.linalg.norm(rows, axis=0)
    image = z.double().flatten(1).norm(dim=1).numpy()
    assert found["norm_variation"]["token"] == pytest.approx(token.std() / token.mean())
    assert found["norm_variation"]["image"] == pytest.approx(image.std() / image.mean())
    values = np.linalg.eigvalsh(np.cov(rows, bias=True))[::-1]
    np.testing.assert_allclose(found["spectrum"], values / values.sum(), atol=1e-12)
    assert found["variance_fractions"].keys() == {"1", "2", "4", "5"}
    assert found["variance_fractions"]["2"] == pytest.approx(values[:2].sum() / values.sum())


def test_a_gaussian_has_kurtosis_three_and_full_rank() -> None:
    statistics = LatentStatistics()
    statistics.update(normal(8, 4, 64, 64))
    found = statistics.report()
    assert found["effective_rank"] == pytest.approx(4, abs=0.01)
    np.testing.assert_allclose(found["kurtosis"], 3, atol=0.15)


def test_effective_rank_counts_the_directions_that_vary() -> None:
    two = normal(8, 2, 64, 64)
    statistics = LatentStatistics()
    statistics.update(torch.cat([two, two.flip(1), torch.zeros_like(two)], dim=1))
    found = statistics.report()
    assert found["effective_rank"] == pytest.approx(2, abs=0.01)
    assert found["kurtosis"][4:] == [None, None]
    assert found["variance_fractions"]["2"] == pytest.approx(1)


@given(parts=st.integers(1, 3), seed=st.integers(0, 99))
def test_sums_over_parts_add_up(parts: int, seed: int) -> None:
    z, sigma = normal(6, 3, 4, 4, seed=seed), 0.1 + normal(6, 3, 4, 4, seed=seed + 1000).abs()
    whole, whole_posterior = LatentStatistics(), PosteriorStatistics()
    whole.update(z)
    whole_posterior.update(z, sigma)
    merged, merged_posterior = LatentStatistics(), PosteriorStatistics()
    for part in range(parts):
        one, posterior = LatentStatistics(), PosteriorStatistics()
        one.update(z[part::parts])
        posterior.update(z[part::parts], sigma[part::parts])
        merged, merged_posterior = merged.merge(one), merged_posterior.merge(posterior)
    expected, found = whole.report(), merged.report()
    for key in ("mean", "std", "kurtosis", "spectrum"):
        np.testing.assert_allclose(found[key], expected[key], atol=1e-9)
    assert found["norm_variation"] == pytest.approx(expected["norm_variation"], abs=1e-9)
    assert merged_posterior.report(values_per_pixel=0.5) == pytest.approx(
        whole_posterior.report(values_per_pixel=0.5), abs=1e-9
    )


def test_information_is_that_of_a_gaussian_channel() -> None:
    signal, noise = 3.0, 0.5
    statistics = PosteriorStatistics()
    statistics.update(signal * normal(4, 2, 128, 128), torch.full((4, 2, 128, 128), noise))
    found = statistics.report(values_per_pixel=0.25)
    expected = 0.5 * math.log2(1 + signal**2 / noise**2)
    assert found["bits_per_value"] == pytest.approx(expected, abs=0.01)
    assert found["bits_per_pixel"] == pytest.approx(found["bits_per_value"] / 4)
    divergence = 0.5 * (signal**2 + noise**2 - 1) / math.log(2) - math.log2(noise)
    assert found["kl_bits_per_value"] == pytest.approx(divergence, abs=0.05)
    assert found["sigma"] == pytest.approx(noise)


def test_information_does_not_depend_on_scale_and_vanishes_without_signal() -> None:
    mode, sigma = normal(2, 2, 32, 32), torch.full((2, 2, 32, 32), 0.3)
    bits = []
    for scale in (1.0, 10.0):
        statistics = PosteriorStatistics()
        statistics.update(scale * mode, scale * sigma)
        bits.append(statistics.report(values_per_pixel=1.0)["bits_per_value"])
    assert bits[0] == pytest.approx(bits[1])
    silent = PosteriorStatistics()
    silent.update(torch.zeros(1, 2, 8, 8), torch.ones(1, 2, 8, 8))
    found = silent.report(values_per_pixel=1.0)
    assert found["bits_per_value"] == found["kl_bits_per_value"] == 0


def test_a_deterministic_posterior_has_no_bound() -> None:
    statistics = PosteriorStatistics()
    statistics.update(normal(1, 2, 8, 8), torch.zeros(1, 2, 8, 8))
    found = statistics.report(values_per_pixel=1.0)
    assert found == {"bits_per_value": None, "bits_per_pixel": None, "kl_bits_per_value": None, "sigma": 0.0}


def test_statistics_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^latents: none were seen; update first$"):
        LatentStatistics().report()
    with pytest.raises(ValueError, match=r"^posteriors: none were seen; update first$"):
        PosteriorStatistics().report(values_per_pixel=1.0)


@given(total=st.integers(1, 200), most=st.integers(1, 80))
def test_evenly_spaced_indices_are_distinct_and_in_range(total: int, most: int) -> None:
    found = list(latents.evenly_spaced(total, most))
    assert len(found) == min(total, most)
    assert found == sorted(set(found))
    assert found[0] == 0
    assert found[-1] < total


# --- the linear baseline ------------------------------------------------------------------------------------------


def test_the_baseline_is_the_principal_components_of_patches() -> None:
    patches = normal(40, 3, 4, 4).clamp(-1, 1)  # an image of one patch has no second grid
    pca = PatchPCA(stride=4, values=6)
    for patch in patches:
        pca.observe(patch[None])
    pca.solve()
    rows = torch.cat([patches, patches.flip(3)]).reshape(80, -1).double().numpy()
    centred = rows - rows.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:6]
    expected = centred[:40] @ axes.T @ axes + rows.mean(0)
    found = pca.decode(pca.encode(patches), 4, 4)
    np.testing.assert_allclose(found.reshape(40, -1).numpy(), expected, atol=1e-5)


def test_a_second_grid_is_moved_by_half_a_patch() -> None:
    image = normal(1, 3, 8, 12)
    pca = PatchPCA(stride=4, values=1)
    pca.observe(image)
    assert pca.count == 2 * 3 + 1 * 2
    shifted = image[:, :, 2:6, 2:10]
    grid = image.unfold(2, 4, 4).unfold(3, 4, 4).sum(dim=(0, 2, 3)) + shifted.unfold(2, 4, 4).unfold(3, 4, 4).sum(
        dim=(0, 2, 3)
    )
    torch.testing.assert_close(pca.sums.reshape(3, 4, 4), grid.double(), atol=1e-5, rtol=0)


def test_as_many_values_as_pixels_reconstruct_exactly() -> None:
    pca = PatchPCA(stride=2, values=500)
    images = normal(3, 3, 16, 16)
    pca.observe(images)
    pca.solve()
    assert pca.encode(images).shape == (3, 12, 8, 8)
    torch.testing.assert_close(pca.decode(pca.encode(images), 16, 16), images, atol=1e-5, rtol=0)


def test_more_values_never_reconstruct_worse() -> None:
    images = normal(4, 3, 32, 32).cumsum(dim=2)
    errors = []
    for values in (1, 4, 16, 48):
        pca = PatchPCA(stride=4, values=values)
        pca.observe(images)
        pca.solve()
        errors.append((pca.decode(pca.encode(images), 32, 32) - images).square().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-8


# --- the ridge readout --------------------------------------------------------------------------------------------


def test_the_readout_finds_a_linear_relation() -> None:
    weight, bias = normal(5, 9, seed=1), normal(9, seed=2)

    def tokens(z: torch.Tensor) -> torch.Tensor:
        return z.flatten(2).transpose(1, 2) @ weight + bias

    readout = RidgeReadout(latent=5, features=9)
    for seed in (3, 4):
        z = normal(2, 5, 16, 16, seed=seed)
        readout.observe(z, tokens(z))
    readout.solve()
    unseen = normal(1, 5, 8, 8, seed=5)
    cosine = token_cosine(readout.predict(unseen), tokens(unseen))
    assert cosine == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(readout.weight, weight.double(), atol=2e-2, rtol=0)


def test_the_readout_of_unrelated_tokens_answers_their_mean() -> None:
    readout = RidgeReadout(latent=3, features=2)
    readout.observe(normal(8, 3, 32, 32), normal(8, 1024, 2, seed=1) + torch.tensor([5.0, 1.0]))
    found = readout.solve().predict(normal(1, 3, 4, 4, seed=2))
    torch.testing.assert_close(found, readout.mean_token.expand(1, 16, 2), atol=0.1, rtol=0)


def test_a_constant_latent_does_not_break_the_readout() -> None:
    readout = RidgeReadout(latent=3, features=2)
    readout.observe(torch.ones(1, 3, 4, 4), normal(1, 16, 2))
    assert torch.isfinite(readout.solve().predict(torch.ones(1, 3, 4, 4))).all()


def test_tokens_that_are_zero_have_no_cosine() -> None:
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    assert token_cosine(torch.tensor([[[2.0, 0.0], [1.0, 1.0]]]), tokens) == pytest.approx(1)
    assert token_cosine(tokens, torch.zeros(1, 2, 2)) is None


# --- pictures -----------------------------------------------------------------------------------------------------


def test_axes_are_orthonormal_and_signed_by_their_largest_loading() -> None:
    rows = normal(200, 6).double() * torch.tensor([1, 5, 2, 4, 3, 0.5])
    axes = pictures.principal_axes(rows - rows.mean(0), 3)
    torch.testing.assert_close(axes.T @ axes, torch.eye(3, dtype=torch.float64))
    assert (axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)) > 0).all()
    assert axes.abs().argmax(dim=0).tolist() == [1, 3, 4]


def test_a_colour_means_the_same_in_every_picture() -> None:
    z = normal(2, 5, 6, 8)
    apart = latent_colours([z[:1], z[1:]])
    swapped = latent_colours([z[1:], z[:1]])
    assert apart[0].size == (8, 6)
    for a, b in zip(apart, reversed(swapped), strict=True):
        difference_of_levels = np.asarray(a).astype(int) - np.asarray(b).astype(int)
        assert np.abs(difference_of_levels).max() <= 1


@pytest.mark.parametrize("channels", [1, 2])
def test_fewer_channels_than_colours_are_shown_too(channels: int) -> None:
    picture = np.asarray(latent_colours([normal(1, channels, 4, 4)])[0])
    assert picture.shape == (4, 4, 3)
    assert np.ptp(picture[..., 0]) == 255
    assert np.ptp(picture[..., 2]) == 0


def test_the_difference_is_amplified_around_grey() -> None:
    original = torch.zeros(1, 3, 2, 2)
    assert torch.equal(difference(original + 0.1, original), torch.full((1, 3, 2, 2), 0.4))
    assert np.asarray(to_picture(difference(original, original))).tolist() == np.full((2, 2, 3), 128).tolist()
