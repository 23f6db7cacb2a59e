"""The family of diffusion autoencoders: its surface, its noise, its precision, and parts swapped into it."""

from dataclasses import asdict
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from latelier.blocks import (
    DecoderConfig,
    DiTBlockConfig,
    NoNormConfig,
    PartError,
    PointPosteriorConfig,
    SkipDecoderConfig,
    StackEncoderConfig,
    linear_grid,
    override,
    part,
    patchify,
)
from latelier.families import DiffAEConfig, InferenceConfig, SemDisDiffAE

DECODER = SkipDecoderConfig(start=1, middle=1, end=1, rank=2)
CONFIGS = {
    "fcdm": DiffAEConfig(patch=4, width=16, latent=6, encoder=StackEncoderConfig(depth=1), decoder=DECODER),
    "packed latents": DiffAEConfig(
        patch=2, width=16, latent=3, latent_patch=2, encoder=StackEncoderConfig(depth=1), decoder=DECODER
    ),
    "dit encoder": DiffAEConfig(
        patch=4,
        width=16,
        latent=6,
        encoder=StackEncoderConfig(block=DiTBlockConfig(head_width=8), depth=1),
        decoder=DECODER,
    ),
    "point, no norm": DiffAEConfig(
        patch=4,
        width=16,
        latent=6,
        encoder=StackEncoderConfig(depth=1),
        decoder=DECODER,
        posterior=PointPosteriorConfig(),
        latent_norm=NoNormConfig(),
    ),
}
TINY = CONFIGS["fcdm"]

every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def awake(config: DiffAEConfig = TINY) -> SemDisDiffAE:
    """A model whose parameters are noisy, and whose statistics are not those of birth."""
    model = config.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for statistic in model.latent_statistics.values():
            statistic.add_(0.5 * torch.rand_like(statistic))
    return model


def images(b: int = 2, height: int = 16, width: int = 24) -> Tensor:
    return torch.rand(b, 3, height, width) * 2 - 1


def relative_error(value: Tensor, reference: Tensor) -> float:
    return ((value.float() - reference.float()).norm() / reference.float().norm()).item()


# --- the surface --------------------------------------------------------------------------------------------------


@every_config
@settings(max_examples=8)
@given(b=st.integers(1, 3), h=st.integers(1, 5), w=st.integers(1, 5))
def test_sizes_and_dtypes_are_as_promised(config: DiffAEConfig, b: int, h: int, w: int) -> None:
    model = awake(config)
    x = images(b, 4 * h, 4 * w)
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        latents = model.encode(x)
        assert (model.stride, model.latent_channels) == (4, config.latent_channels)
        assert (latents.shape, latents.dtype) == ((b, model.latent_channels, h, w), dtype)
        posterior = model.encode_posterior(x)
        assert posterior.mean.shape == posterior.logsnr.shape == latents.shape
        for out in (model.decode(latents, 4 * h, 4 * w), model.reconstruct(x)):
            assert (out.shape, out.dtype) == (x.shape, torch.float32)
            assert out.isfinite().all()


@every_config
def test_encode_is_the_whitened_mode_and_decode_takes_it_back(config: DiffAEConfig) -> None:
    model, x = awake(config), images()
    latents, mode = model.encode(x), model.encode_posterior(x).mode()
    torch.testing.assert_close(latents, model.whiten(mode))
    torch.testing.assert_close(model.dewhiten(latents), mode)
    settings = InferenceConfig(seed=1)
    assert torch.equal(model.reconstruct(x, settings), model.decode(latents, 16, 24, settings))


@every_config
def test_the_surface_is_without_gradient_and_training_is_with_it(config: DiffAEConfig) -> None:
    model, x = awake(config), images()
    latents = model.encode(x)
    assert not latents.requires_grad
    assert not model.encode_posterior(x).mean.requires_grad
    assert not model.decode(latents, 16, 24).requires_grad
    raw = model.posterior(x).sample()
    model.predict(torch.randn_like(x), torch.rand(2), raw).square().sum().backward()
    assert model.encoder is not None
    for name, parameter in model.encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_the_statistics_follow_the_latents_that_they_are_fitted_to() -> None:
    model, x = awake(), images(8)
    model.fit_latent_norm(model.latent_moments(model.encode_posterior(x).mode()), momentum=1.0)
    latents = model.encode(x)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(6), atol=1e-4, rtol=0)
    var = model.latent_statistics["running_var"]
    torch.testing.assert_close(latents.var(dim=(0, 2, 3), correction=0), var / (var + 1e-4), rtol=1e-3, atol=0)


def test_packed_latents_are_those_of_the_finer_grid() -> None:
    config = CONFIGS["packed latents"]
    model = awake(config)
    fine = DiffAEConfig(patch=2, width=16, latent=3, encoder=config.encoder, decoder=DECODER).build()
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("latent_norm")}
    fine.load_state_dict(weights, strict=False)
    x = images()
    ours, theirs = model.encode_posterior(x), fine.encode_posterior(x)
    assert torch.equal(ours.mode(), patchify(theirs.mode(), 2))
    assert torch.equal(ours.logsnr, patchify(theirs.logsnr, 2))
    t, noise = torch.rand(2), torch.randn_like(x)
    assert torch.equal(model.predict(noise, t, ours.mode()), fine.predict(noise, t, theirs.mode()))


# --- decoding -----------------------------------------------------------------------------------------------------


def test_the_settings_of_decoding_are_the_published_ones() -> None:
    assert asdict(InferenceConfig()) == {
        "num_steps": 1,
        "sampler": "ddim",
        "schedule": "linear",
        "pdg": False,
        "pdg_strength": 2.0,
        "seed": None,
        "strength": 1.0,
    }


@every_config
def test_a_batch_decodes_as_the_rows_of_one_draw_of_noise(config: DiffAEConfig) -> None:
    model = awake(config)
    noise = model.draw_noise(2, 16, 24, seed=7)
    assert torch.equal(noise, 0.558 * torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(7)))
    latents = model.encode(images())
    latents = latents[:1].expand_as(latents)
    decoded = model.decode(latents, 16, 24, InferenceConfig(seed=7))
    assert not torch.equal(decoded[0], decoded[1])  # two rows, not one draw twice
    for i in range(2):
        with torch.no_grad():
            alone = model.denoise(noise[i : i + 1], model.dewhiten(latents[:1]), InferenceConfig())
        torch.testing.assert_close(decoded[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_a_seed_fixes_the_picture_and_none_follows_the_global_generator() -> None:
    model = awake()
    latents = model.encode(images())

    def decode(seed: int | None) -> Tensor:
        return model.decode(latents, 16, 24, InferenceConfig(seed=seed))

    state = torch.get_rng_state()
    assert torch.equal(decode(3), decode(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(decode(3), decode(4))
    first, second = decode(None), decode(None)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(decode(None), first)


def test_noise_does_not_depend_on_the_dtype_of_the_model() -> None:
    model = awake()
    noise = model.draw_noise(2, 16, 24, seed=1)
    assert torch.equal(model.bfloat16().draw_noise(2, 16, 24, seed=1), noise)
    assert noise.dtype == torch.float32


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
@pytest.mark.parametrize(("pdg", "strength", "evaluations"), [(False, 2.0, 3), (True, 2.0, 6), (True, 1.0, 3)])
def test_num_steps_counts_evaluations_and_guidance_doubles_them(
    sampler: Any, pdg: bool, strength: float, evaluations: int
) -> None:
    model = awake()
    calls: list[bool] = []
    model.decoder.register_forward_pre_hook(lambda module, args: calls.append(args[3]))
    settings = InferenceConfig(num_steps=3, sampler=sampler, pdg=pdg, pdg_strength=strength)
    model.decode(model.encode(images()), 16, 24, settings)
    assert len(calls) == evaluations
    assert sum(calls) == evaluations - 3  # the additional ones drop the middle blocks


def test_guidance_at_strength_one_is_none_and_beyond_it_changes_the_picture() -> None:
    model = awake()
    latents = model.encode(images())
    plain = model.decode(latents, 16, 24, InferenceConfig(num_steps=2, seed=1))
    guided = {
        strength: model.decode(latents, 16, 24, InferenceConfig(num_steps=2, seed=1, pdg=True, pdg_strength=strength))
        for strength in (1.0, 1.0001, 2.0)
    }
    assert torch.equal(guided[1.0], plain)
    torch.testing.assert_close(guided[1.0001], plain, rtol=1e-3, atol=1e-3)
    assert relative_error(guided[2.0], plain) > 1e-3


def test_strength_starts_from_a_later_time_with_less_noise() -> None:
    model = awake()
    raw = model.encode_posterior(images()).mode()
    started: list[tuple[Tensor, Tensor]] = []
    model.decoder.register_forward_pre_hook(lambda module, args: started.append((args[0], args[1])))
    model.decode(model.whiten(raw), 16, 24, InferenceConfig(num_steps=4, strength=0.5, seed=1))
    assert torch.equal(torch.stack([t for _, t in started]), 0.5 * linear_grid(4)[:-1, None].expand(4, 2))
    sigma = model.noise_schedule.alpha_sigma(torch.tensor(0.5))[1]
    assert torch.equal(started[0][0], sigma * model.draw_noise(2, 16, 24, seed=1))


@every_config
def test_dropping_the_middle_by_image_equals_dropping_it_by_batch(config: DiffAEConfig) -> None:
    model, x, t = awake(config), images(3), torch.rand(3)
    raw = model.encode_posterior(x).mode()
    full, dropped = (model.predict(x, t, raw, drop_middle_blocks=drop) for drop in (False, True))
    mixed = model.predict(x, t, raw, drop_middle_blocks=torch.tensor([True, False, True]))
    torch.testing.assert_close(mixed, torch.stack([dropped[0], full[1], dropped[2]]))


# --- precision ----------------------------------------------------------------------------------------------------


@every_config
def test_a_bfloat16_model_agrees_within_a_few_per_cent(config: DiffAEConfig) -> None:
    model, x, decoding = awake(config), images(), InferenceConfig(seed=1)
    latents, pictures = model.encode(x), model.reconstruct(x, decoding)
    model.bfloat16()
    assert relative_error(model.encode(x), latents) < 0.03
    assert relative_error(model.decode(latents, 16, 24, decoding), pictures) < 0.03


@pytest.mark.parametrize("cast", [nn.Module.bfloat16, nn.Module.half, nn.Module.double], ids=lambda f: f.__name__)
def test_statistics_stay_float32_to_the_last_bit(cast: Any) -> None:
    model = awake()
    before = {name: value.clone() for name, value in model.latent_statistics.items()}
    cast(model)
    assert set(model.latent_statistics) == {"running_mean", "running_var"}
    for name, value in model.latent_statistics.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])
    assert model.state_dict()["decoder.time_embed.freqs"].dtype == torch.float32


def test_a_cast_model_can_still_be_fitted() -> None:
    model = awake().bfloat16()
    model.fit_latent_norm(model.latent_moments(torch.full((1, 6, 2, 2), 3.0)), momentum=1.0)
    assert torch.equal(model.latent_statistics["running_mean"], torch.full((6,), 3.0))
    assert torch.equal(model.state_dict()["latent_norm_running_mean"], torch.full((6,), 3.0))


# --- parts of one's own -----------------------------------------------------------------------------------------------


class OneConvolution(nn.Module):
    def __init__(self, channels: int, patch: int, latent: int) -> None:
        super().__init__()
        self.only = nn.ConvTranspose2d(latent, channels, patch, stride=patch)

    def forward(self, x_t: Tensor, t: Tensor, latent: Tensor, drop_middle_blocks: bool | Tensor = False) -> Tensor:
        return self.only(latent)


def test_a_decoder_of_ones_own_needs_only_what_its_slot_asks() -> None:
    @part("decoder/test_one_convolution")
    class OneConvolutionConfig(DecoderConfig):
        def build(self, *, channels: int, patch: int, width: int, latent: int) -> OneConvolution:
            return OneConvolution(channels, patch, latent)

    model = awake(DiffAEConfig(patch=4, width=16, latent=6, encoder=TINY.encoder, decoder=OneConvolutionConfig()))
    x = images()
    for dtype in (torch.float32, torch.bfloat16):
        assert model.to(dtype).dtype == dtype
        assert model.encode(x).dtype == dtype
        assert model.reconstruct(x).shape == x.shape


# --- errors -----------------------------------------------------------------------------------------------------------


def refusal(function: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ValueError) as error:
        function(*args, **kwargs)
    return str(error.value)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_steps": 0}, "num_steps: counts decoder evaluations and must be at least 1, got 0"),
        ({"sampler": "euler"}, "sampler: takes 'ddim' or 'dpmpp_2m', got 'euler'"),
        ({"schedule": "karras"}, "schedule: takes 'linear' or 'cosine', got 'karras'"),
        ({"pdg_strength": float("nan")}, "pdg_strength: must be finite, got nan"),
        ({"strength": 0.0}, "strength: must be in (0, 1], got 0.0"),
        ({"strength": 1.5}, "strength: must be in (0, 1], got 1.5"),
    ],
)
def test_settings_of_decoding_are_checked(values: dict[str, Any], message: str) -> None:
    assert refusal(InferenceConfig, **values) == message


def test_encode_refuses_sizes_that_its_stride_does_not_divide() -> None:
    model, packed = TINY.build(), CONFIGS["packed latents"].build()
    message = "encode: image height and width must be divisible by 4, got {}; pad or crop to {}"
    assert refusal(model.encode, images(1, 15, 24)) == message.format("15x24", "16x24")
    assert refusal(model.encode_posterior, images(1, 16, 25)) == message.format("16x25", "16x24")
    assert refusal(packed.encode, images(1, 2, 7)) == message.format("2x7", "4x8")
    assert refusal(model.reconstruct, images(1, 0, 8)) == message.format("0x8", "4x8")


@pytest.mark.usefixtures("as_users_run_it")
def test_encode_refuses_what_is_no_batch_of_images() -> None:
    model = TINY.build()
    assert refusal(model.encode, images()[0]) == "encode: takes images [b, 3, H, W], got [3, 16, 24]"
    assert refusal(model.encode, images()[:, :1]) == "encode: takes images [b, 3, H, W], got [2, 1, 16, 24]"
    bytes_ = torch.zeros(1, 3, 16, 24, dtype=torch.uint8)
    message = "encode: takes images in [-1, 1], got torch.uint8; map bytes with x / 127.5 - 1"
    assert refusal(model.encode, bytes_) == message


@pytest.mark.usefixtures("as_users_run_it")
def test_decode_refuses_sizes_and_latents_that_do_not_fit() -> None:
    model, latents = TINY.build(), torch.randn(1, 6, 4, 6)
    divisible = "decode: height and width must be divisible by 4, got {}; try {}"
    assert refusal(model.decode, latents, 15, 24) == divisible.format("15x24", "16x24")
    assert refusal(model.decode, latents, 0, 24) == divisible.format("0x24", "4x24")
    shape = "decode: {} images need latents of shape [b, 6, {}], got {}"
    wide, square = torch.randn(1, 8, 4, 6), torch.randn(6, 4, 6)
    assert refusal(model.decode, wide, 16, 24) == shape.format("16x24", "4, 6", "[1, 8, 4, 6]")
    assert refusal(model.decode, latents, 24, 16) == shape.format("24x16", "6, 4", "[1, 6, 4, 6]")
    assert refusal(model.decode, square, 16, 24) == shape.format("16x24", "4, 6", "[6, 4, 6]")


def test_a_decoder_without_encoder_says_so() -> None:
    model = DiffAEConfig(patch=4, width=16, latent=6, encoder=None, decoder=DECODER).build()
    message = "encode: this model has a decoder only; its latents come from another model's encoder"
    assert refusal(model.encode, images()) == message
    assert model.decode(torch.randn(1, 6, 4, 6), 16, 24).shape == (1, 3, 16, 24)


@pytest.mark.parametrize("field", ["channels", "patch", "width", "latent", "latent_patch"])
def test_sizes_of_the_model_are_at_least_one(field: str) -> None:
    with pytest.raises(PartError) as error:
        override(TINY, [f"{field}=0"])
    assert str(error.value) == f"config.{field}: must be at least 1, got 0"
