"""What is done to teacher tokens last: the formulas, and what does not fit."""

import pytest
import torch

from latelier.blocks import ChannelZScoreConfig, PartError, SpatialZScoreConfig, TinyViTConfig, fit_channels


def test_the_spatial_z_score_is_that_of_each_feature_over_the_tokens_of_an_image() -> None:
    tokens = 3 * torch.randn(2, 7, 5) + 10
    ours = SpatialZScoreConfig(gamma=0.75, eps=0.1).build(5)(tokens)
    for image in range(2):
        for feature in range(5):
            column = tokens[image, :, feature]
            mean = sum(column) / 7
            deviation = (sum((x - mean) ** 2 for x in column) / 7) ** 0.5
            expected = torch.stack([(x - 0.75 * mean) / (deviation + 0.1) for x in column])
            torch.testing.assert_close(ours[image, :, feature], expected, rtol=1e-4, atol=1e-5)


def test_tokens_that_do_not_vary_stay_finite() -> None:
    assert torch.equal(SpatialZScoreConfig().build(5)(torch.ones(2, 7, 5)), torch.zeros(2, 7, 5))


def test_fitted_statistics_standardise_what_they_were_fitted_on() -> None:
    tokens = [3 * torch.randn(2, n, 5) + torch.arange(5) for n in (4, 9)]
    config = fit_channels(tokens, eps=1e-12)
    flat = torch.cat([config.build(5)(batch).flatten(0, 1) for batch in tokens])
    torch.testing.assert_close(flat.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(flat.var(0, correction=0), torch.ones(5))


def test_a_teacher_standardises_its_patch_tokens_alone() -> None:
    images = torch.rand(2, 3, 32, 32)
    plain = TinyViTConfig().build()(images)
    ours = TinyViTConfig(standardise=SpatialZScoreConfig()).build()(images)
    torch.testing.assert_close(ours.patches, SpatialZScoreConfig().build(64)(plain.patches))
    assert plain.cls is not None and ours.cls is not None and ours.registers is not None
    assert torch.equal(ours.cls, plain.cls)
    statistics = fit_channels([plain.patches])
    standardised = TinyViTConfig(standardise=statistics).build()(images).patches
    torch.testing.assert_close(standardised, statistics.build(64)(plain.patches))


def test_statistics_that_do_not_fit_are_told() -> None:
    with pytest.raises(PartError) as error:
        ChannelZScoreConfig(mean=(0.0,), variance=(1.0, 2.0))
    assert str(error.value) == "config.variance: has 2 numbers where the mean has 1"
    with pytest.raises(PartError) as error:
        ChannelZScoreConfig(mean=(0.0,), variance=(-1.0,))
    assert str(error.value) == "config.variance: must not be negative, got -1.0"
    with pytest.raises(PartError) as error:
        SpatialZScoreConfig(eps=0.0)
    assert str(error.value) == "config.eps: must be positive, got 0.0"
    with pytest.raises(ValueError) as told:
        TinyViTConfig(standardise=ChannelZScoreConfig(mean=(0.0,), variance=(1.0,))).build()
    assert str(told.value) == "standardise.mean: needs one number for each of 64 features, got 1"
    with pytest.raises(ValueError) as told:
        fit_channels([])
    assert str(told.value) == "fit_channels: got no tokens; give at least one batch"
