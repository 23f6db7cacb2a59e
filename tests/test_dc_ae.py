"""DC-AE against diffusers with the same random weights, its files, its surface, and its published counts."""

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import latelier
from latelier.blocks import (
    ChannelNormConfig,
    CheckpointError,
    EfficientViTBlockConfig,
    FCDMBlockConfig,
    PartError,
    PyramidDecoderConfig,
    PyramidEncoderConfig,
    ScaleShiftConfig,
    mark,
    spec_of,
)
from latelier.families import DCAE, DCAEConfig, DiffAE
from latelier.recipes import dc_ae

SANA, IMAGENET, LITE = (
    dc_ae.dc_ae_f32c32_sana_1_0().model,
    dc_ae.dc_ae_f32c32_in_1_0().model,
    dc_ae.dc_ae_lite_f32c32().model,
)


def shrunk(config: Any) -> Any:
    """The same structure eight times as narrow and at most two blocks deep; one width doubles, one stays."""

    def narrow(half: Any) -> Any:
        widths = tuple(max(width // 8, 32) for width in half.widths)
        return replace(half, widths=widths, depths=tuple(min(depth, 1 + i % 2) for i, depth in enumerate(half.depths)))

    return replace(config, latent=8, encoder=narrow(config.encoder), decoder=narrow(config.decoder))


CONFIGS = {"sana": shrunk(SANA), "in": shrunk(IMAGENET), "lite": shrunk(LITE)}


def awake(model: nn.Module) -> nn.Module:
    """Random weights, with norms, biases and statistics that are not those of birth."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in [*model.parameters(), *model.buffers()]:
            if parameter.is_floating_point() and parameter.ndim == 1:
                parameter.add_(0.3 * torch.rand_like(parameter))
    return model.eval()


def in_diffusers(config: DCAEConfig) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC

    return AutoencoderDC(**settings_of(config))


def settings_of(config: DCAEConfig) -> dict[str, Any]:
    """diffusers' settings, written by hand, so that our own translation is not what it is tested with."""
    encoder, decoder = config.encoder, config.decoder
    assert isinstance(encoder, PyramidEncoderConfig)
    assert isinstance(decoder, PyramidDecoderConfig)
    assert isinstance(config.latent_norm, ScaleShiftConfig)
    sana = config in (CONFIGS["sana"], CONFIGS["lite"])
    third, scales = ("ResBlock",) * 3, ((), (), (), (5,), (5,), (5,))
    lite = config == CONFIGS["lite"]
    norms, acts = ("batch_norm",) * 3 + ("rms_norm",) * 3, ("relu",) * 3 + ("silu",) * 3
    return {
        "latent_channels": config.latent,
        "encoder_block_types": third + ("EfficientViTBlock",) * 3,
        "decoder_block_types": third * 2 if lite else third + ("EfficientViTBlock",) * 3,
        "encoder_block_out_channels": encoder.widths,
        "decoder_block_out_channels": decoder.widths,
        "encoder_layers_per_block": encoder.depths,
        "decoder_layers_per_block": decoder.depths,
        "encoder_qkv_multiscales": scales if sana else ((),) * 6,
        "decoder_qkv_multiscales": scales if sana and not lite else ((),) * 6,
        "downsample_block_type": "Conv" if sana else "pixel_unshuffle",
        "upsample_block_type": "interpolate" if sana and not lite else "pixel_shuffle",
        "decoder_norm_types": "rms_norm" if sana else norms,
        "decoder_act_fns": "silu" if sana else acts,
        "decoder_conv_act_fn": "silu" if lite else "relu",
        "scaling_factor": config.latent_norm.scale,
    }


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[DCAE, Any, Path]:
    """Ours, diffusers', and the folder that diffusers saved and ours was read from."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs: Any = awake(in_diffusers(CONFIGS[request.param]))
    theirs.save_pretrained(folder)
    return DCAE.from_pretrained(folder), theirs, folder


def relative_error(value: Tensor, reference: Tensor) -> float:
    return ((value.double() - reference.double()).norm() / reference.double().norm()).item()


def images(height: int = 64, width: int = 96, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width) * 2 - 1


# --- against diffusers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (96, 32), (192, 256)], ids=str)
def test_a_folder_of_diffusers_gives_what_diffusers_gives(pair: tuple[DCAE, Any, Path], size: tuple[int, int]) -> None:
    ours, theirs, _ = pair
    x = images(*size)
    assert {n: t.shape for n, t in ours.state_dict().items()} == {n: t.shape for n, t in theirs.state_dict().items()}
    with torch.no_grad():
        z = theirs.encode(x).latent
        y = theirs.decode(z).sample
    assert relative_error(ours.encode_raw(x), z) < 1e-5
    assert relative_error(ours.decode_raw(z), y) < 1e-5
    assert relative_error(ours.encode(x), z * theirs.config.scaling_factor) < 1e-5
    assert relative_error(ours.decode(z * theirs.config.scaling_factor), y) < 1e-5
    assert relative_error(ours.posterior(x).mean, z) < 1e-5  # the path of training
    assert relative_error(ours.render(z), y) < 1e-5


def test_a_folder_that_we_export_gives_the_same_in_diffusers(pair: tuple[DCAE, Any, Path], tmp_path: Path) -> None:
    ours, theirs, _ = pair
    ours.export_diffusers(tmp_path)
    again = type(theirs).from_pretrained(tmp_path, low_cpu_mem_usage=False).eval()
    x = images()
    with torch.no_grad():
        z = theirs.encode(x).latent
        assert torch.equal(again.encode(x).latent, z)
        assert torch.equal(again.decode(z).sample, theirs.decode(z).sample)
    for name, value in settings_of(ours.config).items():
        written = again.config[name]
        same = json.dumps(written) == json.dumps(value)
        assert same or set(written) == {value}, name  # a lone word stands for all stages


def test_ours_and_any_loader_read_it_back(pair: tuple[DCAE, Any, Path], tmp_path: Path) -> None:
    ours, _, folder = pair
    ours.save_pretrained(tmp_path)
    x = images()
    for again in (DCAE.from_pretrained(tmp_path), latelier.load(tmp_path), latelier.load(folder)):
        assert again.config == ours.config
        assert torch.equal(again.encode(x), ours.encode(x))
    with pytest.raises(PartError, match="holds 'family/dc_ae', a DCAE, not a DiffAE"):
        DiffAE.from_pretrained(folder)


def test_the_ordinary_split_of_heads_is_not_what_diffusers_computes(pair: tuple[DCAE, Any, Path]) -> None:
    ours, theirs, _ = pair
    x = images()
    state = ours.state_dict()
    regrouped = dict(state)
    for name in [name for name in state if name.endswith("to_q.weight")]:
        stem = name.removesuffix("to_q.weight")
        fused = torch.cat([state[f"{stem}to_{part}.weight"] for part in "qkv"])
        # rows in the order in which an ordinary split would have had to have them
        heads = fused.unflatten(0, (3, -1, 32)).transpose(0, 1).flatten(0, 2)
        for part, third in zip("qkv", heads.chunk(3), strict=True):
            regrouped[f"{stem}to_{part}.weight"] = third
    wrong = ours.config.build().eval()
    wrong.load_state_dict(regrouped)
    with torch.no_grad():
        z = theirs.encode(x).latent
    assert relative_error(wrong.encode_raw(x), z) > 0.01


@pytest.mark.parametrize(
    ("config", "parameters", "stored"),
    [
        (SANA, 312_250_275, 312_250_275),
        (dc_ae.dc_ae_f32c32_sana_1_1().model, 312_250_275, 312_250_275),
        (IMAGENET, 323_356_460, 323_369_260),
        (dc_ae.dc_ae_f32c32_mix_1_0().model, 323_356_460, 323_369_260),
        (dc_ae.dc_ae_f64c128().model, 676_896_140, 676_908_940),
        (dc_ae.dc_ae_f64c128_mix_1_0().model, 676_896_140, 676_908_940),
        (dc_ae.dc_ae_f128c512().model, 1_120_682_252, 1_120_695_052),
        (dc_ae.dc_ae_f128c512_mix_1_0().model, 1_120_682_252, 1_120_695_052),
        (LITE, 153_027_104 + 268_154_124, 153_027_104 + 268_154_124),
    ],
)
def test_published_models_have_the_published_numbers_of_parameters(
    config: DCAEConfig, parameters: int, stored: int
) -> None:
    with torch.device("meta"):
        model = config.build()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(t.numel() for t in model.state_dict().values() if t.is_floating_point()) == stored
    z = model.encode(torch.empty(1, 3, 256, 256, device="meta"))
    assert z.shape == (1, config.latent, 256 // config.stride, 256 // config.stride)


# --- files ------------------------------------------------------------------------------------------------------------


def as_efficientvit(config: DCAEConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names as efficientvit writes them, by hand."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(("to_k.weight", "to_v.weight")):
            continue
        new = name
        if name.endswith("to_q.weight"):
            stem = name.removesuffix("to_q.weight")
            tensor = torch.cat([tensors[f"{stem}to_{part}.weight"] for part in "qkv"])[:, :, None, None]
            new = f"{stem}qkv.conv.weight"
        elif name.endswith("to_out.weight"):
            tensor, new = tensor[:, :, None, None], name.replace("to_out.weight", "proj.conv.weight")
        new = new.replace("norm_out.", "proj.norm.") if ".attn." in new else new
        new = new.replace("to_qkv_multiscale.0.proj_in", "aggreg.0.0").replace(
            "to_qkv_multiscale.0.proj_out", "aggreg.0.1"
        )
        for ours, theirs in (
            ("conv_inverted", "inverted_conv.conv"),
            ("conv_depth", "depth_conv.conv"),
            ("conv_point", "point_conv.conv"),
            ("conv_out.norm", "conv_out.point_conv.norm"),
            ("conv1.", "conv1.conv."),
            ("conv2.", "conv2.conv."),
        ):
            new = new.replace(ours, theirs)
        half, part, *rest = new.split(".")
        if part in ("down_blocks", "up_blocks"):
            stage, block, *inner = rest
            if inner[0] == "conv":  # a down or an up
                inner = ["conv", "conv", *inner[1:]]
            elif inner[0] == "norm":
                inner = ["conv2", *inner]
            inner = [
                {"attn": "context_module.main", "conv_out": "local_module.main"}.get(inner[0], inner[0]),
                *inner[1:],
            ]
            main = [] if inner[0].endswith(".main") else ["main"]
            new = ".".join([half, "stages", stage, "op_list", block, *main, *inner])
        else:
            place = {
                "encoder.conv_in": "encoder.project_in",
                "encoder.conv_out": "encoder.project_out.op_list.0.main",
                "decoder.conv_in": "decoder.project_in.main",
                "decoder.norm_out": "decoder.project_out.op_list.0",
                "decoder.conv_out": "decoder.project_out.op_list.2",
            }[f"{half}.{part}"]
            inner = rest if part == "norm_out" else ["conv", *(rest if rest[0] != "conv" else ["conv", *rest[1:]])]
            new = ".".join([place, *inner])
        assert new not in out
        out[new] = tensor.clone().contiguous()
    return out


@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_a_file_of_efficientvit_is_read_name_by_name(pair: tuple[DCAE, Any, Path], tmp_path: Path, prefix: str) -> None:
    ours, _, _ = pair
    theirs = as_efficientvit(ours.config, ours.state_dict())
    assert not set(theirs) & set(ours.state_dict())
    path = tmp_path / "model.safetensors"
    save_file({prefix + name: value for name, value in theirs.items()}, path)
    again = DCAE.from_pretrained(path, config=ours.config)
    for name, value in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_diffusers_own_converter_agrees_about_efficientvits_names(pair: tuple[DCAE, Any, Path]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers.loaders.single_file_utils import convert_autoencoder_dc_checkpoint_to_diffusers

    ours, theirs, _ = pair
    if ours.config == CONFIGS["lite"]:
        return  # it knows none of that kind, and takes it for sana
    original = as_efficientvit(ours.config, ours.state_dict())
    converted = convert_autoencoder_dc_checkpoint_to_diffusers(dict(original))
    assert set(converted) == set(theirs.state_dict())


def test_what_a_file_lacks_is_called_as_the_file_calls_it(tmp_path: Path) -> None:
    config = CONFIGS["sana"]
    tensors = as_efficientvit(config, config.build().state_dict())
    tensors["decoder.project_in.main.conv.weight"] = torch.zeros(3)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has 'decoder.project_in.main.conv.weight' of shape \[3\] where the"):
        DCAE.from_pretrained(tmp_path / "model.safetensors", config=config)
    del tensors["decoder.project_in.main.conv.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks tensor 'decoder.conv_in.weight'"):
        DCAE.from_pretrained(tmp_path / "model.safetensors", config=config)


def changed_folder(tmp_path: Path, **fields: Any) -> Path:
    CONFIGS["sana"].build().export_diffusers(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return tmp_path


def test_unknown_fields_and_words_of_a_config_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PartError, match="'published/autoencoder_dc' has no field 'scale_factor'; did you mean"):
        DCAE.from_pretrained(changed_folder(tmp_path, scale_factor=2.0))
    with pytest.raises(PartError, match=r"downsample_block_type: takes .*'pixel_unshuffle'.* got 'strided'"):
        DCAE.from_pretrained(changed_folder(tmp_path / "b", downsample_block_type="strided"))
    (tmp_path / "b" / "config.json").write_text('{"model_name": "dc-ae-f32"}')
    with pytest.raises(PartError, match=r"no DC-AE is named 'dc-ae-f32'; there are dc-ae-f32c32-sana-1\.0, "):
        DCAE.from_pretrained(tmp_path / "b")


@pytest.mark.parametrize("spelling", ["Conv", "conv"])
def test_both_published_spellings_of_the_strided_convolution_are_read(tmp_path: Path, spelling: str) -> None:
    assert DCAE.from_pretrained(changed_folder(tmp_path, downsample_block_type=spelling)).config == CONFIGS["sana"]


def test_statistics_of_channels_are_read_from_a_config_that_has_them(tmp_path: Path) -> None:
    mean, std = [0.1 * i for i in range(8)], [1 + 0.1 * i for i in range(8)]
    model = DCAE.from_pretrained(changed_folder(tmp_path, latents_mean=mean, latents_std=std, scaling_factor=0.5))
    x = images(32, 32)
    column = torch.tensor([mean, std])[:, :, None, None]
    torch.testing.assert_close(model.encode(x), (model.encode_raw(x) - column[0]) * 0.5 / column[1])
    torch.testing.assert_close(model.dewhiten(model.encode(x)), model.encode_raw(x))
    model.export_diffusers(tmp_path / "again")
    assert DCAE.from_pretrained(tmp_path / "again").config == model.config


def test_a_model_that_diffusers_has_no_words_for_is_not_exported(tmp_path: Path) -> None:
    base = CONFIGS["sana"]
    wide = replace(base.encoder, blocks=(*base.encoder.blocks[:5], EfficientViTBlockConfig(expand=2.0, kernels=(5,))))
    other = replace(base.encoder, blocks=(FCDMBlockConfig(), *base.encoder.blocks[1:]))
    for config, message in (
        (replace(base, encoder=wide), "the layout has no words for some of its parts (encoder.blocks.5.expand"),
        (replace(base, encoder=other), "model.encoder.blocks.0: the layout has no words for 'block/fcdm'"),
        (replace(base, latent_norm=ChannelNormConfig()), "model.latent_norm: the layout has no words for"),
    ):
        with pytest.raises(PartError) as error:
            config.build().export_diffusers(tmp_path)
        assert message in str(error.value)
    assert not list(tmp_path.iterdir())


# --- the surface ------------------------------------------------------------------------------------------------------


def test_latents_know_their_space_and_another_scale_is_another_space() -> None:
    model = CONFIGS["sana"].build().eval()
    z = model.encode(images(32, 32))
    assert spec_of(z) == model.latent_spec
    assert (model.latent_spec.posterior, model.latent_spec.stride, model.latent_spec.channels) == (
        "deterministic",
        32,
        8,
    )
    other = replace(CONFIGS["sana"], latent_norm=ScaleShiftConfig(scale=0.5)).build()
    with pytest.raises(ValueError, match="decode: these latents are of another space"):
        model.decode(mark(z.clone(), other.latent_spec))


def test_wrong_images_and_latents_are_told() -> None:
    model = CONFIGS["lite"].build().eval()
    for call, message in (
        (
            lambda: model.encode(images(33, 64)),
            "encode: image height and width must be divisible by 32, got 33x64; pad or crop to 32x64",
        ),
        (lambda: model.encode(torch.zeros(1, 1, 32, 32)), "encode: takes images [b, 3, H, W], got [1, 1, 32, 32]"),
        (lambda: model.decode(torch.zeros(1, 4, 1, 1)), "decode: takes latents [b, 8, h, w], got [1, 4, 1, 1]"),
        (
            lambda: model.decode(torch.zeros(1, 8, 1, 2), 32, 32),
            "decode: latents of 1x2 positions become images of 32x64, not 32x32",
        ),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value) == message


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_finite_at_1024_pixels(dtype: torch.dtype) -> None:
    blocks = (*CONFIGS["sana"].encoder.blocks[1:4], EfficientViTBlockConfig(kernels=(5,)))
    half = {"widths": (8, 8, 32, 32), "depths": (0, 1, 1, 1), "blocks": blocks}
    config = DCAEConfig(latent=8, encoder=PyramidEncoderConfig(**half), decoder=PyramidDecoderConfig(**half))
    model = config.build().eval()
    x = images(1024, 1024, batch=1)
    expected = model.reconstruct(x)
    found = model.to(dtype).reconstruct(x)
    assert found.isfinite().all()
    assert relative_error(found, expected) < 0.05


@pytest.mark.parametrize("pixels", [64, 128, 256])
def test_small_presets_have_latents_of_8x8_and_statistics_to_fit(pixels: int) -> None:
    config = getattr(dc_ae, f"dc_ae_small_{pixels}")().model
    with torch.device("meta"):
        model = config.build()
    assert model.encode(torch.empty(1, 3, pixels, pixels, device="meta")).shape == (1, config.latent, 8, 8)
    assert sum(p.numel() for p in model.parameters()) < 20e6
    tiny = replace(config, encoder=CONFIGS["lite"].encoder, decoder=CONFIGS["lite"].decoder, latent=8).build()
    raw = tiny.encode_raw(images(64, 64))
    tiny.fit_latent_norm(tiny.latent_moments(raw), momentum=1.0)
    z = tiny.encode(images(64, 64))
    assert math.isclose(tiny.whiten(raw).std(dim=(0, 2, 3), correction=0).mean().item(), 1, abs_tol=1e-3)
    assert z.shape == (2, 8, 2, 2)


def test_every_parameter_learns_and_encoding_takes_no_gradient() -> None:
    model = CONFIGS["sana"].build()
    x = images(64, 64)
    model.render(model.posterior(x).mode()).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    assert not model.encode(x).requires_grad
