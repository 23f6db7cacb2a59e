"""Folders that others published: flat configs and tensor names, in all the forms that the loader accepts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import latelier
from latelier.blocks import (
    FCDMBlockConfig,
    NoNormConfig,
    PartError,
    PointPosteriorConfig,
    SkipDecoderConfig,
    StackEncoderConfig,
    VPScheduleConfig,
    WhiteningConfig,
)
from latelier.families import CheckpointError, DiffAEConfig, FlatDiffAE, InferenceConfig, SemDisDiffAE

FLAT: dict[str, Any] = {
    "in_channels": 3,
    "patch_size": 4,
    "model_dim": 8,
    "encoder_depth": 1,
    "decoder_depth": 3,
    "decoder_start_blocks": 1,
    "decoder_end_blocks": 1,
    "bottleneck_dim": 3,
    "mlp_ratio": 4.0,
    "depthwise_kernel_size": 7,
    "adaln_low_rank_rank": 2,
    "bottleneck_posterior_kind": "diagonal_gaussian",
    "bottleneck_norm_mode": "disabled",
    "logsnr_min": -10.0,
    "logsnr_max": 10.0,
    "pixel_noise_std": 0.558,
}
"""The sixteen fields of semdisdiffae's config.json, at a small size."""

IMAGES = torch.linspace(-1, 1, 2 * 3 * 8 * 12).reshape(2, 3, 8, 12)


def tensors(flat: dict[str, Any] = FLAT) -> dict[str, Tensor]:
    model = FlatDiffAE(**flat).ours(has_encoder=True, has_statistics=True).build()
    for value in (*model.parameters(), *model.latent_statistics.values()):
        value.data.add_(0.1 * torch.rand_like(value))
    return {name: value.clone() for name, value in model.state_dict().items()}


def publish(folder: Path, values: dict[str, Tensor], flat: dict[str, Any] = FLAT) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(flat))
    save_file(values, folder / "model.safetensors")
    return folder


def results(model: SemDisDiffAE) -> list[Tensor]:
    latents = model.encode(IMAGES)
    return [latents, model.decode(latents, 8, 12, InferenceConfig(seed=1, num_steps=2))]


def assert_same_results(ours: SemDisDiffAE, theirs: SemDisDiffAE) -> None:
    assert all(torch.equal(a, b) for a, b in zip(results(ours), results(theirs), strict=True))


def refusal(path: Path, error: type[Exception]) -> str:
    with pytest.raises(error) as caught:
        SemDisDiffAE.from_pretrained(path)
    return str(caught.value)


# --- configs --------------------------------------------------------------------------------------------------------


def test_the_defaults_of_the_flat_config_are_the_published_semdisdiffae() -> None:
    assert FlatDiffAE().ours(has_encoder=True, has_statistics=True) == DiffAEConfig()


def test_every_flat_field_reaches_its_place() -> None:
    flat = FlatDiffAE(
        in_channels=4,
        patch_size=8,
        model_dim=24,
        encoder_depth=3,
        decoder_depth=9,
        decoder_start_blocks=1,
        decoder_end_blocks=3,
        bottleneck_dim=6,
        mlp_ratio=2.0,
        depthwise_kernel_size=5,
        adaln_low_rank_rank=7,
        bottleneck_posterior_kind="deterministic",
        bottleneck_norm_mode="channel_wise",
        logsnr_min=-8.0,
        logsnr_max=9.0,
        pixel_noise_std=0.5,
        latent_running_stats_eps=1e-3,
        bottleneck_patchify_mode="patch_2x2",
    )
    block = FCDMBlockConfig(kernel=5, expand=2.0)
    assert flat.ours(has_encoder=True, has_statistics=True) == DiffAEConfig(
        channels=4,
        patch=8,
        width=24,
        latent=6,
        latent_patch=2,
        encoder=StackEncoderConfig(block=block, depth=3),
        decoder=SkipDecoderConfig(block=block, start=1, middle=5, end=3, rank=7),
        posterior=PointPosteriorConfig(mean_norm="channel_wise"),
        latent_norm=WhiteningConfig(eps=1e-3),
        schedule=VPScheduleConfig(logsnr_max=9.0, logsnr_min=-8.0, noise_std=0.5),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_sise": 8}, "'published/fcdm_diffae' has no field 'patch_sise'; did you mean 'patch_size'?"),
        ({"model_depth": 8}, "'published/fcdm_diffae' has no field 'model_depth'; did you mean 'encoder_depth'?"),
    ],
)
def test_an_unknown_flat_field_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = publish(tmp_path, tensors(), FLAT | change)
    assert refusal(folder, PartError) == f"{folder / 'config.json'}: config: {message}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_dim": "8"}, "config.model_dim: takes int, got '8'"),
        (
            {"bottleneck_norm_mode": "channelwise"},
            "config.bottleneck_norm_mode: takes 'disabled' or 'channel_wise', got 'channelwise'; "
            "did you mean 'channel_wise'?",
        ),
        (
            {"decoder_depth": 1},
            "config.decoder_depth: must be at least decoder_start_blocks + decoder_end_blocks, got 1 with 1 and 1",
        ),
    ],
)
def test_a_wrong_flat_value_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = publish(tmp_path, tensors(), FLAT | change)
    assert refusal(folder, PartError) == f"{folder / 'config.json'}: {message}"


def test_fields_that_a_file_leaves_out_have_their_defaults(tmp_path: Path) -> None:
    short = {name: value for name, value in FLAT.items() if value != getattr(FlatDiffAE(), name)}
    assert len(short) < len(FLAT)
    values = tensors()
    assert_same_results(
        SemDisDiffAE.from_pretrained(publish(tmp_path / "short", values, short)),
        SemDisDiffAE.from_pretrained(publish(tmp_path / "full", values)),
    )


# --- tensors --------------------------------------------------------------------------------------------------------


def test_a_published_folder_saved_in_our_layout_gives_the_same_results(tmp_path: Path) -> None:
    published = SemDisDiffAE.from_pretrained(publish(tmp_path / "published", tensors()))
    ours = SemDisDiffAE.from_pretrained(published.save_pretrained(tmp_path / "ours"))
    assert_same_results(ours, published)
    assert_same_results(latelier.load(tmp_path / "published"), published)


def as_1x1_convolution(values: dict[str, Tensor]) -> None:
    for part in ("encoder", "decoder"):
        name = f"{part}.patchify.proj.weight"
        values[name] = values[name].reshape(8, 3 * 4 * 4, 1, 1)


def with_old_names(values: dict[str, Tensor]) -> None:
    for name in ("running_mean", "running_var"):
        values[name] = values.pop(f"latent_norm_{name}")


@pytest.mark.parametrize("change", [as_1x1_convolution, with_old_names])
def test_other_forms_of_the_same_tensors_are_accepted(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], None]
) -> None:
    values = tensors()
    plain = SemDisDiffAE.from_pretrained(publish(tmp_path / "plain", values))
    change(values)
    assert_same_results(SemDisDiffAE.from_pretrained(publish(tmp_path / "changed", values)), plain)


def test_statistics_under_both_names_are_refused(tmp_path: Path) -> None:
    values = tensors()
    values["running_mean"] = values["latent_norm_running_mean"] + 1
    path = publish(tmp_path, values) / "model.safetensors"
    assert refusal(tmp_path, CheckpointError) == f"{path}: has tensor 'running_mean' that the model has not"


@pytest.mark.parametrize("name", ["encoder.to_bottleneck.bias", "latent_norm_running_var", "decoder.time_embed.freqs"])
def test_a_published_file_lacks_nothing(tmp_path: Path, name: str) -> None:
    values = tensors()
    values.pop(name)
    path = publish(tmp_path, values) / "model.safetensors"
    assert refusal(tmp_path, CheckpointError) == f"{path}: lacks tensor {name!r}"


def test_a_published_bfloat16_file_loads_as_float32(tmp_path: Path) -> None:
    values = {name: value.bfloat16() for name, value in tensors().items()}
    model = SemDisDiffAE.from_pretrained(publish(tmp_path, values))
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert all(torch.equal(value, values[name].float()) for name, value in model.state_dict().items())


def test_the_eps_of_the_statistics_is_read(tmp_path: Path) -> None:
    values = tensors()
    near, far = (
        SemDisDiffAE.from_pretrained(publish(tmp_path / str(eps), values, FLAT | {"latent_running_stats_eps": eps}))
        for eps in (1e-4, 1.0)
    )
    var = values["latent_norm_running_var"]
    ratio = ((var + 1) / (var + 1e-4)).sqrt()[:, None, None]
    torch.testing.assert_close(near.encode(IMAGES), far.encode(IMAGES) * ratio)


def test_a_deterministic_bottleneck_has_no_log_snr(tmp_path: Path) -> None:
    flat = FLAT | {"bottleneck_posterior_kind": "deterministic"}
    values = tensors(flat)
    assert values["encoder.to_bottleneck.weight"].shape[0] == 3
    model = SemDisDiffAE.from_pretrained(publish(tmp_path, values, flat))
    posterior = model.encode_posterior(IMAGES)
    assert torch.equal(posterior.sample(), posterior.mean)


def test_latents_of_p32_are_packed_and_statistics_are_four_times_as_long(tmp_path: Path) -> None:
    flat = FLAT | {"bottleneck_patchify_mode": "patch_2x2"}
    values = tensors(flat)
    assert values["latent_norm_running_mean"].shape == (12,)
    model = SemDisDiffAE.from_pretrained(publish(tmp_path, values, flat))
    latents = model.encode(torch.zeros(1, 3, 16, 24))
    assert (model.stride, latents.shape) == (8, (1, 12, 2, 3))
    assert model.decode(latents, 16, 24).shape == (1, 3, 16, 24)


@pytest.mark.parametrize("has_statistics", [True, False], ids=["with statistics", "without statistics"])
def test_a_file_without_encoder_is_a_decoder_whose_statistics_decide_about_whitening(
    tmp_path: Path, has_statistics: bool
) -> None:
    values = tensors()
    whole = SemDisDiffAE.from_pretrained(publish(tmp_path / "whole", values))
    kept = {
        name: value
        for name, value in values.items()
        if name.startswith("decoder.") or (has_statistics and name.startswith("latent_norm"))
    }
    model = SemDisDiffAE.from_pretrained(publish(tmp_path / "decoder", kept))
    assert model.config.encoder is None
    assert isinstance(model.config.latent_norm, WhiteningConfig if has_statistics else NoNormConfig)
    latents = torch.randn(1, 3, 2, 3)
    decoding = InferenceConfig(seed=1)
    expected = whole.decode(latents if has_statistics else whole.whiten(latents), 8, 12, decoding)
    torch.testing.assert_close(model.decode(latents, 8, 12, decoding), expected, rtol=1e-4, atol=1e-5)
    again = SemDisDiffAE.from_pretrained(model.save_pretrained(tmp_path / "ours"))
    assert torch.equal(again.decode(latents, 8, 12, decoding), model.decode(latents, 8, 12, decoding))
