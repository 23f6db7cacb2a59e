"""Projectors, and which latents a term reads."""

import pytest
import torch
import torch.nn.functional as F

from latelier.blocks import (
    Beta22TimesConfig,
    ConvProjectorConfig,
    Draws,
    LinearProjectorConfig,
    MLPProjectorConfig,
    ModeReadingConfig,
    NoisedReadingConfig,
    NoProjectorConfig,
    PartError,
    ProjectorConfig,
    ReadingConfig,
    ReverseProjectorConfig,
    SampleReadingConfig,
    SkipDecoderConfig,
    StackEncoderConfig,
    StepState,
    UniformTimesConfig,
    decode,
    encode,
    parts,
)
from latelier.families import DiffAEConfig

MODEL = DiffAEConfig(
    patch=8,
    width=16,
    latent=4,
    encoder=StackEncoderConfig(depth=1),
    decoder=SkipDecoderConfig(start=1, middle=1, end=1, rank=4),
)
PROJECTORS = [decode(cls.kind, ProjectorConfig) for cls in parts(ProjectorConfig)]
READINGS = [decode(cls.kind, ReadingConfig) for cls in parts(ReadingConfig)]
every_projector = pytest.mark.parametrize("config", PROJECTORS, ids=lambda config: config.kind)
every_reading = pytest.mark.parametrize("config", READINGS, ids=lambda config: config.kind)


# --- projectors ---------------------------------------------------------------------------------------------------


@every_projector
def test_a_projector_gives_one_token_a_position_as_wide_as_it_says(config: ProjectorConfig) -> None:
    projector = config.build(latent=6, features=10)
    assert projector(torch.randn(2, 6, 3, 5)).shape == (2, 15, projector.width)
    assert projector.target(torch.randn(2, 7, 10)).shape == (2, 7, projector.target_width)
    assert decode(encode(config), ProjectorConfig) == config


@every_projector
def test_a_projector_gives_finite_gradients_to_latents_and_parameters(config: ProjectorConfig) -> None:
    projector = config.build(latent=6, features=10)
    latent = torch.randn(2, 6, 3, 5, requires_grad=True)
    (projector(latent).square().sum() + projector.target(torch.randn(2, 15, 10)).square().sum()).backward()
    for tensor in (latent, *projector.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.any()


def test_tokens_stand_in_rows() -> None:
    latent = torch.arange(12.0).reshape(1, 1, 3, 4)
    tokens = NoProjectorConfig().build(latent=1, features=5)(latent)
    assert tokens[0, :, 0].tolist() == list(range(12))


def test_the_linear_projector_is_one_matrix_at_every_position() -> None:
    for bias in (True, False):
        projector = LinearProjectorConfig(bias=bias).build(latent=3, features=5)
        state = projector.state_dict()
        assert ("layers.bias" in state) == bias
        latent = torch.randn(2, 3, 4, 2)
        expected = torch.einsum("bzhw,fz->bhwf", latent, state["layers.weight"][:, :, 0, 0]).flatten(1, 2)
        if bias:
            expected = expected + state["layers.bias"]
        torch.testing.assert_close(projector(latent), expected)


def test_the_mlp_is_repas_three_layers_at_every_position() -> None:
    projector = MLPProjectorConfig(hidden=7).build(latent=3, features=5)
    layers = [(p.weight[:, :, 0, 0], p.bias) for p in projector.modules() if isinstance(p, torch.nn.Conv2d)]
    assert [tuple(w.shape) for w, _ in layers] == [(7, 3), (7, 7), (5, 7)]
    latent = torch.randn(2, 3, 4, 2)
    x = latent.flatten(2).transpose(1, 2)
    for i, (weight, bias) in enumerate(layers):
        x = F.linear(x if i == 0 else F.silu(x), weight, bias)
    torch.testing.assert_close(projector(latent), x)
    assert MLPProjectorConfig().hidden == 2048


def test_the_convolution_sees_the_eight_neighbours_and_nothing_further() -> None:
    projector = ConvProjectorConfig().build(latent=3, features=5)
    latent = torch.randn(1, 3, 5, 5)
    for row, column in ((2, 2), (0, 4)):  # the second at a corner, beyond which there are zeros
        moved = latent.clone()
        moved[:, :, row, column] += 1
        changed = (projector(moved) != projector(latent)).any(dim=-1).reshape(5, 5)
        expected = torch.zeros(5, 5, dtype=torch.bool)
        expected[max(row - 1, 0) : row + 2, column - 1 : column + 2] = True
        assert torch.equal(changed, expected)


def test_the_reverse_projector_maps_the_teacher_to_the_latents_channels() -> None:
    projector = ReverseProjectorConfig().build(latent=3, features=5)
    tokens, latent = torch.randn(2, 8, 5), torch.randn(2, 3, 4, 2)
    layer = projector.get_submodule("layers")
    assert isinstance(layer, torch.nn.Linear)
    torch.testing.assert_close(projector.target(tokens), tokens @ layer.weight.T + layer.bias)
    assert torch.equal(projector(latent), latent.flatten(2).transpose(1, 2))
    assert not projector.predicts and not ReverseProjectorConfig(bias=False).build(latent=3, features=5).layers.bias


def test_a_projector_predicts_the_teachers_tokens_unless_it_is_none_of_its_width() -> None:
    assert LinearProjectorConfig().build(latent=3, features=5).predicts
    assert NoProjectorConfig().build(latent=5, features=5).predicts
    assert not NoProjectorConfig().build(latent=3, features=5).predicts


def test_a_projector_takes_latents_in_half_precision() -> None:
    projector = LinearProjectorConfig().build(latent=3, features=5)
    latent = torch.randn(2, 3, 4, 2).bfloat16()
    torch.testing.assert_close(projector(latent), projector(latent.float()))


def test_sizes_that_make_no_projector_are_refused() -> None:
    with pytest.raises(PartError) as caught:
        MLPProjectorConfig(hidden=0)
    assert str(caught.value) == "config.hidden: must be at least 1, got 0"
    with pytest.raises(PartError) as caught:
        ConvProjectorConfig(kernel=4)
    assert str(caught.value) == "config.kernel: must be odd and positive, got 4"


# --- readings -----------------------------------------------------------------------------------------------------


def state_of(batch: int = 3) -> StepState:
    torch.manual_seed(1)
    model = MODEL.build()
    model.fit_latent_norm(torch.tensor([[0.3] * 4, [0.8] * 4]), momentum=1.0)
    images = torch.rand(batch, 3, 16, 24) * 2 - 1
    posterior = model.posterior(images)
    latent = posterior.at(torch.randn_like(posterior.mean))
    return StepState(model, images, posterior, latent, Draws(0, 0, first=0, batch=batch), None)


def test_sample_and_mode_are_read_whitened_or_raw() -> None:
    state = state_of()
    assert state.posterior is not None
    mode = state.posterior.mode()
    assert torch.equal(SampleReadingConfig(whitened=False).read(state, "x"), state.latent)
    assert torch.equal(SampleReadingConfig().read(state, "x"), state.model.whiten(state.latent))
    assert torch.equal(ModeReadingConfig(whitened=False).read(state, "x"), mode)
    assert torch.equal(ModeReadingConfig().read(state, "x"), state.model.whiten(mode))
    assert not torch.equal(state.model.whiten(mode), mode)


def test_noise_lies_on_the_straight_path_and_belongs_to_the_term() -> None:
    state = state_of()
    for times in (UniformTimesConfig(), Beta22TimesConfig()):
        reading = NoisedReadingConfig(times=times)
        tau = times.sample(state.draws, "vf tau")[:, None, None, None]
        eps = state.draws.normal("vf noise", 4, 2, 3)
        z = state.model.whiten(state.latent)
        torch.testing.assert_close(reading.read(state, "vf"), z + tau * (eps - z))
        assert torch.equal(reading.read(state, "vf"), reading.read(state, "vf"))
        assert not torch.equal(reading.read(state, "vf"), reading.read(state, "gram"))


@every_reading
def test_encoded_latents_are_brought_into_the_space_that_a_term_reads(config: ReadingConfig) -> None:
    state = state_of()
    encoded = state.model.encode(state.images)
    raw = getattr(config, "whitened", True) is False
    expected = state.model.dewhiten(encoded) if raw else encoded
    torch.testing.assert_close(config.of_encoded(state.model, encoded), expected)


@pytest.mark.parametrize("whitened", [True, False])
def test_what_encode_gives_reads_as_the_clean_mode_does(whitened: bool) -> None:
    state, config = state_of(), ModeReadingConfig(whitened=whitened)
    encoded = state.model.encode(state.images)
    torch.testing.assert_close(config.of_encoded(state.model, encoded), config.read(state, "x"))


@every_reading
def test_gradients_flow_through_a_reading_into_the_encoder(config: ReadingConfig) -> None:
    state = state_of()
    config.read(state, "x").square().sum().backward()
    gradient = state.model.get_parameter("encoder.to_bottleneck.weight").grad
    assert gradient is not None and gradient.isfinite().all() and gradient.any()
