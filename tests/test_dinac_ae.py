"""DinacAE: its surface, its precision island by island, and latents that know whose they are."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import latelier
from latelier.blocks import (
    DINOTokenHeadConfig,
    DiTBlockConfig,
    FCDMBlockConfig,
    LatentSpec,
    SequenceBlockConfig,
    SkipDecoderConfig,
    StackEncoderConfig,
    decode,
    fingerprint,
    spec_of,
)
from latelier.families import (
    CheckpointError,
    DiffAEConfig,
    DinacAE,
    DinacAEConfig,
    InferenceConfig,
    SemDisDiffAE,
)

ROOT = Path(__file__).resolve().parents[1]
DECODER = SkipDecoderConfig(start=1, middle=1, end=1, rank=2)
SMALL = DinacAEConfig(
    patch=4,
    width=32,
    latent=6,
    encoder=StackEncoderConfig(block=DiTBlockConfig(head_width=16), depth=2),
    decoder=DECODER,
    token_head=DINOTokenHeadConfig(features=24, width=32, head_width=16),
)
MIXED = DinacAEConfig(
    patch=4,
    width=32,
    latent=6,
    encoder=StackEncoderConfig(
        block=SequenceBlockConfig(blocks=(FCDMBlockConfig(), DiTBlockConfig(head_width=16))), depth=1
    ),
    decoder=DECODER,
    token_head=DINOTokenHeadConfig(features=32, head_width=16),
)
RELATIVE = DiffAEConfig(patch=4, width=16, latent=6, encoder=StackEncoderConfig(depth=1), decoder=DECODER)

every_config = pytest.mark.parametrize("config", [SMALL, MIXED], ids=["transformer", "mixture"])


def awake(config: DiffAEConfig) -> Any:
    model = config.build().eval()
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


# --- the surface ----------------------------------------------------------------------------------------------------


@every_config
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_output_has_the_size_and_dtype_that_is_promised(config: DinacAEConfig, dtype: torch.dtype) -> None:
    model, x = awake(config).to(dtype), images()
    latents, posterior = model.encode(x), model.encode_posterior(x)
    assert (latents.shape, latents.dtype) == ((2, 6, 4, 6), torch.float32)
    for value in (posterior.mean, posterior.logsnr, posterior.mode()):
        assert (value.shape, value.dtype) == (latents.shape, torch.float32)
    for out in (model.decode(latents, 16, 24), model.reconstruct(x)):
        assert (out.shape, out.dtype) == (x.shape, torch.float32)
        assert out.isfinite().all()
    tokens = model.predict_features(latents)
    features = config.token_head.features
    assert (tokens.patches.shape, tokens.grid) == ((2, 24, features), (4, 6))
    for value in (tokens.patches, tokens.cls, model.predict_class(latents)):
        assert value.dtype == torch.float32
        assert value.shape[-1] == features
        torch.testing.assert_close(value.square().mean(dim=-1).sqrt(), torch.ones(value.shape[:-1]), atol=0.02, rtol=0)


@pytest.mark.parametrize("config", [SMALL, MIXED, RELATIVE], ids=["transformer", "mixture", "relative"])
def test_an_empty_batch_gives_empty_batches_and_the_smallest_image_one_token(config: DiffAEConfig) -> None:
    model = awake(config)
    assert model.encode(images(0)).shape == (0, 6, 4, 6)
    assert model.reconstruct(images(0)).shape == (0, 3, 16, 24)
    latents = model.encode(images(2, 4, 4))
    assert latents.shape == (2, 6, 1, 1)
    assert model.decode(latents, 4, 4).isfinite().all()
    if isinstance(config, DinacAEConfig):
        assert model.predict_class(latents[:0]).shape == (0, config.token_head.features)
        assert model.predict_features(latents).grid == (1, 1)


@pytest.mark.parametrize("config", [SMALL, MIXED, RELATIVE], ids=["transformer", "mixture", "relative"])
def test_float64_agrees_with_float32(config: DiffAEConfig) -> None:
    model, x, settings = awake(config), images(), InferenceConfig(seed=1)
    latents, again = model.encode(x), model.reconstruct(x, settings)
    model.to(torch.float64)
    torch.testing.assert_close(model.encode(x).float(), latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.reconstruct(x, settings), again, rtol=1e-4, atol=1e-4)


def test_the_head_reads_raw_latents() -> None:
    model = awake(SMALL)
    latents = model.encode(images())
    with torch.no_grad():
        assert torch.equal(model.predict_features(latents).patches, model.token_head(model.dewhiten(latents)).patches)


def test_gradients_flow_through_the_class_and_not_through_encode_and_decode() -> None:
    model = awake(SMALL)
    latents = torch.randn(2, 6, 4, 6, requires_grad=True)
    weights = torch.randn(2, 24)
    for read in (model.predict_class, lambda z: model.predict_features(z).cls):
        latents.grad = None
        (read(latents) * weights).sum().backward()
        assert latents.grad is not None
        assert latents.grad.any()
    assert not model.encode(images().requires_grad_()).requires_grad
    assert not model.decode(latents, 16, 24).requires_grad


def test_the_class_is_computed_in_bfloat16_and_the_features_in_the_models_dtype() -> None:
    model = awake(SMALL)
    latents, seen = model.encode(images()), []
    model.token_head.in_proj.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    close = relative_error(model.predict_class(latents), model.predict_features(latents).cls)
    assert 0 < close < 0.02
    assert seen == [torch.bfloat16, torch.float32]


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("read", ["predict_class", "predict_features"])
@pytest.mark.parametrize("shape", [(2, 5, 4, 4), (6, 4, 4), (2, 6, 0, 4)])
def test_reading_refuses_latents_of_another_shape(read: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        getattr(awake(SMALL), read)(torch.zeros(shape))
    assert str(caught.value) == f"{read}: takes latents [b, 6, h, w], got {list(shape)}"


# --- precision ------------------------------------------------------------------------------------------------------

ISLANDS = {  # beside every norm weight
    "decoder.path_drop_mask_feature",
    "decoder.out_proj.weight",
    "decoder.out_proj.bias",
    *(
        f"decoder.{blocks}.0.grn.{name}"
        for blocks in ("start_blocks", "middle_blocks", "end_blocks")
        for name in ("gamma", "beta")
    ),
}
NORMS = {
    *(
        f"encoder.blocks.{i}.{norm}.weight"
        for i in range(2)
        for norm in ("attn_norm1", "attn_norm2", "mlp_norm1", "mlp_norm2", "attn.q_norm", "attn.k_norm")
    ),
    *(
        f"token_head.block.{norm}.weight"
        for norm in ("attn_norm1", "attn_norm2", "mlp_norm1", "mlp_norm2", "attn.q_norm", "attn.k_norm")
    ),
    *(
        f"token_head.readout.{norm}.weight"
        for norm in ("query_norm", "context_norm", "mlp_norm", "attn.q_norm", "attn.k_norm")
    ),
}
BUFFERS = {
    "latent_norm_running_mean",
    "latent_norm_running_var",
    "decoder.time_embed.freqs",
    "encoder.blocks.0.attn.rope.periods",
    "encoder.blocks.1.attn.rope.periods",
    "token_head.block.attn.rope.periods",
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_islands_of_storage_are_these_and_keep_their_values(dtype: torch.dtype) -> None:
    model = awake(SMALL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = model.to(dtype).state_dict()
    assert {name for name, value in after.items() if value.dtype == torch.float32} == ISLANDS | NORMS | BUFFERS
    assert all(torch.equal(after[name], before[name]) for name in ISLANDS | NORMS | BUFFERS)
    assert {value.dtype for name, value in after.items() if name not in ISLANDS | NORMS | BUFFERS} == {dtype}
    assert (model.dtype, model.wide_dtype) == (dtype, torch.float32)


def test_the_layer_scale_of_convolutional_encoder_blocks_is_an_island_too() -> None:
    model = awake(MIXED).to(torch.bfloat16)
    assert model.get_parameter("encoder.blocks.0.blocks.0.layer_scale").dtype == torch.float32


def test_bfloat16_comes_back_to_float32_with_its_islands_unrounded() -> None:
    model = awake(SMALL)
    exact = {name: value.clone() for name, value in model.state_dict().items()}
    model.to(torch.bfloat16).to(torch.float32)
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        island = name in ISLANDS | NORMS | BUFFERS
        assert torch.equal(value, exact[name] if island else exact[name].bfloat16().float())


def dtypes_inside(model: nn.Module, *calls: Any) -> dict[str, tuple[torch.dtype, torch.dtype]]:
    """Dtypes of the first input and the output of every module that maps a tensor to a tensor."""
    seen = {}

    def hook(name: str) -> Any:
        def note(module: nn.Module, args: Any, out: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
                seen[name] = (args[0].dtype, out.dtype)

        return note

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules()]
    for call in calls:
        call()
    for handle in handles:
        handle.remove()
    return seen


def test_the_islands_of_arithmetic_are_float32_and_the_rest_is_bfloat16() -> None:
    model, x = awake(SMALL).to(torch.bfloat16), images()
    latents = model.encode(x)
    seen = dtypes_inside(
        model, lambda: model.encode(x), lambda: model.decode(latents, 16, 24), lambda: model.predict_features(latents)
    )
    low, full = torch.bfloat16, torch.float32
    assert seen["encoder.blocks.0.attn.qkv"] == (low, low)
    assert seen["encoder.blocks.1.mlp.down"] == (low, low)
    assert seen["encoder.blocks.0"] == (low, low)
    assert seen["decoder"] == (full, full)  # noisy images come in float32, and the read-out gives float32
    assert seen["decoder.patchify"] == (full, low)
    assert seen["decoder.latent_up"] == (full, low)  # so do the latents
    assert seen["decoder.middle_blocks.0.pwconv1"] == (low, low)
    assert seen["decoder.out_proj"] == (low, full)
    assert seen["token_head.in_proj"] == (low, low)
    posterior = model.encode_posterior(x)
    assert {posterior.mean.dtype, posterior.sigma.dtype, posterior.mode().dtype, latents.dtype} == {full}
    assert model.noise_schedule.logsnr(torch.zeros(1, dtype=low)).dtype == full


def test_a_float32_model_computes_nothing_in_half_precision() -> None:
    model, x = awake(SMALL), images()
    seen = dtypes_inside(model, lambda: model.reconstruct(x), lambda: model.predict_features(model.encode(x)))
    assert {dtype for pair in seen.values() for dtype in pair} == {torch.float32}


def test_autocast_around_a_float32_model_stays_in_force() -> None:
    model, x = awake(SMALL), images()
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as the training loop does
        seen = dtypes_inside(model, lambda: model.posterior(x))
    assert seen["encoder.blocks.0.attn.qkv"][1] == torch.bfloat16


@every_config
@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.03), (torch.float16, 0.005)], ids=str)
def test_half_precision_stays_near_float32(config: DinacAEConfig, dtype: torch.dtype, most: float) -> None:
    model, x, settings = awake(config), images(), InferenceConfig(num_steps=2, seed=0)
    latents = model.encode(x)
    exact = [latents, model.decode(latents, 16, 24, settings), model.predict_features(latents).cls]
    model.to(dtype)
    again = [model.encode(x), model.decode(latents, 16, 24, settings), model.predict_features(latents).cls]
    assert max(map(relative_error, again, exact)) < most


def test_a_model_is_loaded_in_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    model = awake(SMALL)
    model.save_pretrained(tmp_path)
    loaded = DinacAE.from_pretrained(tmp_path, dtype=torch.bfloat16)
    expected = model.to(torch.bfloat16).state_dict()
    for name, value in loaded.state_dict().items():
        assert value.dtype == expected[name].dtype
        assert torch.equal(value, expected[name]), name
    assert DinacAE.from_pretrained(tmp_path).dtype == torch.float32  # the default on a CPU


def test_the_readme_names_every_island() -> None:
    text = (ROOT / "README.md").read_text()
    for pattern in DinacAE.islands:
        assert f"`{pattern}`" in text, pattern


# --- latents of another space ---------------------------------------------------------------------------------------


def refusals(model: Any, latents: Tensor) -> Iterator[tuple[str, str]]:
    for name, call in {
        "decode": lambda: model.decode(latents, 16, 24),
        "predict_class": lambda: model.predict_class(latents),
        "predict_features": lambda: model.predict_features(latents),
    }.items():
        if hasattr(model, name):
            with pytest.raises(ValueError) as caught:
                call()
            yield name, str(caught.value)


def test_latents_of_another_family_are_refused_though_their_shape_fits() -> None:
    dinac, relative = awake(SMALL), awake(RELATIVE)
    x = images()
    theirs, ours = relative.encode(x), dinac.encode(x)
    assert theirs.shape == ours.shape
    a, b = (model.latent_spec.normalisation for model in (dinac, relative))
    for where, message in refusals(dinac, theirs):
        assert message == (
            f"{where}: these latents are of another space (source: 'family/semdisdiffae', not 'family/dinac_ae', "
            f"normalisation: {b!r}, not {a!r}); use the model that encoded them"
        )
    (where, message), *rest = refusals(relative, ours)
    assert not rest
    assert message.startswith("decode: these latents are of another space (source: 'family/dinac_ae', not 'family/sem")


def test_latents_of_another_training_are_refused_and_those_of_a_copy_taken(tmp_path: Path) -> None:
    first, second, x = awake(SMALL), awake(SMALL), images()
    latents = first.encode(x)
    assert all("of another space (normalisation: " in message for _, message in refusals(second, latents))
    copy = DinacAE.from_pretrained(first.save_pretrained(tmp_path))
    assert copy.decode(latents, 16, 24).shape == x.shape


def test_latents_from_elsewhere_are_taken_on_trust() -> None:
    model = awake(SMALL)
    assert spec_of(torch.randn(2, 6, 4, 6)) is None
    assert model.decode(torch.randn(2, 6, 4, 6), 16, 24).isfinite().all()
    assert spec_of(model.encode(images()) + 0) is None


def test_the_spec_follows_the_statistics() -> None:
    model = awake(SMALL)
    before = model.latent_spec
    assert before == LatentSpec(source="family/dinac_ae", channels=6, stride=4, normalisation=before.normalisation)
    assert model.latent_spec == before
    latents = model.encode(images())
    model.fit_latent_norm(torch.stack([torch.zeros(6), torch.ones(6)]).double(), momentum=0.5)
    assert model.latent_spec != before
    assert len(list(refusals(model, latents))) == 3
    model.load_state_dict(awake(SMALL).state_dict())
    assert model.latent_spec != before
    in_float32 = model.latent_spec
    assert model.to(torch.bfloat16).latent_spec == in_float32


def test_statistics_that_are_not_those_of_the_header_are_refused(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = awake(SMALL).save_pretrained(tmp_path) / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    tensors["latent_norm_running_mean"] += 1
    save_file(tensors, path, header)
    with pytest.raises(CheckpointError) as caught:
        latelier.load(tmp_path)
    saved = decode(json.loads(header["latelier.latent_spec"]), LatentSpec)
    start = "latent_norm_"
    read = fingerprint({name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)})
    assert str(caught.value) == (
        f"{path}: its latents are of another space than its header says (normalisation: {read!r}, not "
        f"{saved.normalisation!r}); its tensors were changed or rounded after they were saved: save the model again"
    )


def test_the_two_families_are_told_apart_on_loading(tmp_path: Path) -> None:
    awake(SMALL).save_pretrained(tmp_path / "dinac")
    awake(RELATIVE).save_pretrained(tmp_path / "relative")
    for cls, folder, kind, other in (
        (SemDisDiffAE, "dinac", "family/dinac_ae", "DinacAE"),
        (DinacAE, "relative", "family/semdisdiffae", "SemDisDiffAE"),
    ):
        with pytest.raises(ValueError) as caught:
            cls.from_pretrained(tmp_path / folder)
        assert str(caught.value) == (
            f"{tmp_path / folder / 'config.json'}: holds {kind!r}, a {other}, not a {cls.__name__}"
        )
