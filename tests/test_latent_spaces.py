"""Latent spaces: the arithmetic of diffusers' pipelines both ways, whose constants win, and what is refused."""

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import save_file
from torch import Tensor

from latelier.blocks import (
    KNOWN_SPACES,
    RAW,
    UNKNOWN,
    AutoencoderSpaceConfig,
    ChannelNormConfig,
    CheckpointError,
    LatentNormConfig,
    LatentScaleWarning,
    LatentSpace,
    LatentSpaceConfig,
    LatentSpec,
    LatentsTeacherConfig,
    PartError,
    PositionNormConfig,
    ScaleShiftConfig,
    WhiteningConfig,
    check_scale,
    decode,
    differences,
    encode,
    fingerprint,
    latent_space,
    mark,
    space_config,
    spec_of,
)
from latelier.families import DiffAEConfig, ModelSpaceConfig, save_folder

diffusers = pytest.importorskip("diffusers")

SMALL: dict[str, Any] = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
TINY = tuple(SMALL.items())
DC: dict[str, Any] = {
    "attention_head_dim": 4,
    "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
    "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
    "encoder_block_out_channels": (8, 16),
    "decoder_block_out_channels": (8, 16),
    "encoder_layers_per_block": (1, 1),
    "decoder_layers_per_block": (1, 1),
    "encoder_qkv_multiscales": ((), (5,)),
    "decoder_qkv_multiscales": ((), (5,)),
}
RAE: dict[str, Any] = {
    "encoder_hidden_size": 64,
    "encoder_num_hidden_layers": 1,
    "encoder_input_size": 28,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
    "patch_size": 4,
}


def tiny(space: str, **changes: Any) -> LatentSpace:
    """A known KL space with tiny random weights of stride 2."""
    return latent_space(space, **{"random_init": True, "settings": TINY, "reduction": 2} | changes)


def model_of(space: LatentSpace) -> Any:
    """The autoencoder of diffusers inside of a space."""
    codec: Any = space.load()
    return codec.model


def images(b: int = 2, side: int = 8) -> Tensor:
    return torch.rand(b, 3, side, side) * 2 - 1


def equal(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-6, atol=1e-6)


def plain(x: Tensor) -> Tensor:
    """The same numbers without a mark."""
    return x.clone()


# --- pipelines ----------------------------------------------------------------------------------------------------


class Arithmetic:
    """The lines of a pipeline of diffusers around its autoencoder, from those that encode images and decode latents."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae

    def into(self, x: Tensor) -> Tensor:
        return self.vae.encode(x).latent_dist.mode() * self.vae.config.scaling_factor

    def back(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]


class Shifted(Arithmetic):
    def into(self, x: Tensor) -> Tensor:
        mode = self.vae.encode(x).latent_dist.mode()
        return (mode - self.vae.config.shift_factor) * self.vae.config.scaling_factor

    def back(self, latents: Tensor) -> Tensor:
        latents = (latents / self.vae.config.scaling_factor) + self.vae.config.shift_factor
        return self.vae.decode(latents, return_dict=False)[0]


class WithStatistics(Arithmetic):
    def _statistics(self) -> tuple[Tensor, Tensor]:
        mean = torch.tensor(self.vae.config.latents_mean).view(1, 4, 1, 1)
        return mean, torch.tensor(self.vae.config.latents_std).view(1, 4, 1, 1)

    def into(self, x: Tensor) -> Tensor:
        latents_mean, latents_std = self._statistics()
        init_latents = self.vae.encode(x).latent_dist.mode()
        return (init_latents - latents_mean) * self.vae.config.scaling_factor / latents_std

    def back(self, latents: Tensor) -> Tensor:
        latents_mean, latents_std = self._statistics()
        latents = latents * latents_std / self.vae.config.scaling_factor + latents_mean
        return self.vae.decode(latents, return_dict=False)[0]


class Flux2(Arithmetic):
    @staticmethod
    def _patchify_latents(latents: Tensor) -> Tensor:
        b, c, h, w = latents.shape
        latents = latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
        return latents.reshape(b, c * 4, h // 2, w // 2)

    @staticmethod
    def _unpatchify_latents(latents: Tensor) -> Tensor:
        b, c, h, w = latents.shape
        latents = latents.reshape(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
        return latents.reshape(b, c // 4, h * 2, w * 2)

    def _bn(self) -> tuple[Tensor, Tensor]:
        mean = self.vae.bn.running_mean.view(1, -1, 1, 1)
        return mean, torch.sqrt(self.vae.bn.running_var.view(1, -1, 1, 1) + self.vae.config.batch_norm_eps)

    def into(self, x: Tensor) -> Tensor:
        mean, std = self._bn()
        return (self._patchify_latents(self.vae.encode(x).latent_dist.mode()) - mean) / std

    def back(self, latents: Tensor) -> Tensor:
        mean, std = self._bn()
        return self.vae.decode(self._unpatchify_latents(latents * std + mean), return_dict=False)[0]


class Sana(Arithmetic):
    def into(self, x: Tensor) -> Tensor:
        return self.vae.encode(x).latent * self.vae.config.scaling_factor


class Representation(Arithmetic):
    """diffusers normalises inside, and its pixels are in [0, 1]."""

    def into(self, x: Tensor) -> Tensor:
        return self.vae.encode((x + 1) / 2).latent

    def back(self, latents: Tensor) -> Tensor:
        return 2 * self.vae.decode(latents).sample - 1


QUANT = {"use_quant_conv": False, "use_post_quant_conv": False}
KL_TYPES = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
STATISTICS = {"latents_mean": (0.5, -1.0, 2.0, 0.1), "latents_std": (2.0, 0.5, 3.0, 1.5)}


def small_kl(**changes: Any) -> Any:
    torch.manual_seed(1)
    return diffusers.AutoencoderKL(**SMALL | KL_TYPES | changes).eval()


def small_flux2() -> Any:
    torch.manual_seed(1)
    vae = diffusers.AutoencoderKLFlux2(**SMALL | KL_TYPES, latent_channels=4, batch_norm_eps=1e-4).eval()
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(2.9, 3.5)
    return vae


def small_dc() -> Any:
    torch.manual_seed(1)
    return diffusers.AutoencoderDC(**DC, latent_channels=4, scaling_factor=0.41407).eval()


def small_rae() -> Any:
    torch.manual_seed(1)
    mean, std = torch.randn(64, 2, 2), torch.rand(64, 2, 2) + 0.5
    return diffusers.AutoencoderRAE(**RAE, latents_mean=mean, latents_std=std).eval()


CASES: dict[str, tuple[str, Callable[[], Any], type[Arithmetic], dict[str, Any]]] = {
    "sd": ("sd", lambda: small_kl(scaling_factor=0.18215), Arithmetic, {}),
    "sdxl": ("sdxl", lambda: small_kl(scaling_factor=0.13025), Arithmetic, {}),
    "sdxl with statistics": ("sdxl", lambda: small_kl(scaling_factor=0.13025, **STATISTICS), WithStatistics, {}),
    "sd3": (
        "sd3",
        lambda: small_kl(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, **QUANT),
        Shifted,
        {},
    ),
    "flux": (
        "flux",
        lambda: small_kl(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, **QUANT),
        Shifted,
        {},
    ),
    "flux2": ("flux2", small_flux2, Flux2, {"latent": 4}),
    "sana": ("sana", lambda: small_dc(), Sana, {"latent": 4}),
    "rae": ("rae_dinov2_b", small_rae, Representation, {"latent": 64, "reduction": 4}),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_latents_equal_those_of_the_pipeline_both_ways(case: str, tmp_path: Path) -> None:
    name, make, arithmetic, changes = CASES[case]
    vae = make()
    vae.save_pretrained(tmp_path)
    pipeline, x = arithmetic(vae), images()
    space = latent_space(name, weights=str(tmp_path), **{"reduction": 2} | changes)
    z = space.encode(x)
    equal(z, pipeline.into(x))
    equal(space.decode(z), pipeline.back(plain(z)))
    assert spec_of(z) == space.spec
    assert space.spec.normalisation not in (UNKNOWN, RAW)
    equal(space.normalise(space.denormalise(z)), plain(z))
    raw = space.encode_raw(x)
    equal(space.denormalise(space.normalise(raw)), raw)
    assert spec_of(raw) == space.raw_spec


@pytest.mark.parametrize("case", ["sd", "sdxl", "sd3", "flux", "sana"])
def test_published_constants_make_the_space_that_the_table_says(case: str, tmp_path: Path) -> None:
    name, make, _, changes = CASES[case]
    make().save_pretrained(tmp_path)
    space = latent_space(name, weights=str(tmp_path), reduction=2, **changes)
    assert space.spec.normalisation == UNKNOWN  # a file may say otherwise
    space.load()
    assert space.spec.normalisation == space_config(name).spec.normalisation


def test_our_constants_are_the_defaults_of_diffusers_where_it_has_some() -> None:
    kl, flux2 = diffusers.AutoencoderKL, diffusers.AutoencoderKLFlux2
    import inspect

    default = {name: p.default for name, p in inspect.signature(kl.__init__).parameters.items()}
    assert ScaleShiftConfig(scale=default["scaling_factor"]) == config("sd").norm
    default = {name: p.default for name, p in inspect.signature(flux2.__init__).parameters.items()}
    assert WhiteningConfig(eps=default["batch_norm_eps"]) == config("flux2").norm
    assert default["latent_channels"] == config("flux2").latent
    assert default["patch_size"] == (config("flux2").patch,) * 2


def config(name: str) -> AutoencoderSpaceConfig:
    found = KNOWN_SPACES[name]
    assert isinstance(found, AutoencoderSpaceConfig)
    return found


SCALES = {
    "sd": 0.18215, "sdxl": 0.13025, "sd3": 1.5305, "flux": 0.3611, "sana": 0.41407, "sana_1_0": 0.41407,
    "dc_ae_f32c32_in": 0.3189, "dc_ae_f32c32_mix": 0.4552, "dc_ae_f64c128_in": 0.2889, "dc_ae_f64c128_mix": 0.4538,
    "dc_ae_f128c512_in": 0.4883, "dc_ae_f128c512_mix": 0.3620,
}  # fmt: skip


@pytest.mark.parametrize("name", SCALES)
def test_one_number_scales_these_spaces(name: str) -> None:
    shift = {"sd3": 0.0609, "flux": 0.1159}.get(name, 0.0)
    assert config(name).norm == ScaleShiftConfig(scale=SCALES[name], shift=shift)
    assert config(name).spec.normalisation == fingerprint(
        {"scale": torch.tensor(SCALES[name]), "shift": torch.tensor(shift)}
    )


COUNTS = {
    "sd": 83_653_863, "flux2": 84_046_115, "sana": 312_250_275, "dc_ae_f32c32_in": 323_356_460,
    "dc_ae_f64c128_in": 676_896_140, "dc_ae_f128c512_in": 1_120_682_252,
}  # fmt: skip
SHAPES = {
    "sd": (4, 8), "sd1": (4, 8), "sd2": (4, 8), "sdxl": (4, 8), "sd3": (16, 8), "flux": (16, 8), "flux2": (128, 16),
    "sana": (32, 32), "sana_1_0": (32, 32), "dc_ae_f32c32_in": (32, 32), "dc_ae_f32c32_mix": (32, 32),
    "dc_ae_f64c128_in": (128, 64), "dc_ae_f64c128_mix": (128, 64), "dc_ae_f128c512_in": (512, 128),
    "dc_ae_f128c512_mix": (512, 128), "rae_dinov2_s": (384, 16), "rae_dinov2_b": (768, 16),
    "rae_dinov2_l": (1024, 16), "rae_siglip2_b": (768, 16), "rae_mae_b": (768, 16), "va_vae": (32, 16),
    "e2e_sd": (4, 8), "e2e_vavae": (32, 16), "semdisdiffae": (128, 16), "semdisdiffae_p32": (512, 32),
    "semdisdiffae_p32_v2": (384, 32), "full_capacitor": (128, 16), "dinac_ae": (128, 16), "dinac_ae_d2": (128, 16),
    "capacitor_decoder": (128, 16),
}  # fmt: skip


def test_every_known_space_has_the_shape_of_its_publication() -> None:
    assert {name: (known.channels, known.stride) for name, known in KNOWN_SPACES.items()} == SHAPES


@pytest.mark.parametrize("name", [name for name in SHAPES if isinstance(KNOWN_SPACES[name], AutoencoderSpaceConfig)])
def test_the_architecture_at_full_size_fits_the_space(name: str) -> None:
    ours = space_config(name, random_init=True)
    assert isinstance(ours, AutoencoderSpaceConfig)
    if name == "rae_siglip2_b" and int(version("transformers").partition(".")[0]) >= 5:
        with (
            torch.device("meta"),
            pytest.raises(ImportError, match=r"diffusers .* and transformers .* do not fit each"),
        ):
            ours.read()
        return  # diffusers 0.42 knows the SigLIP of transformers 4 only
    with torch.device("meta"):
        model = ours.read()[0]
    assert ours.sizes(model) == (ours.latent, ours.reduction, ours.patch)
    if name in COUNTS:
        assert sum(p.numel() for p in model.parameters()) == COUNTS[name]


@pytest.mark.parametrize("name", SHAPES)
def test_known_spaces_survive_json(name: str) -> None:
    known = space_config(name)
    assert decode(json.loads(json.dumps(encode(known))), LatentSpaceConfig) == known
    assert space_config(json.dumps(encode(known))) == known


def test_a_space_is_found_by_name_by_the_short_form_of_its_part_and_is_told_if_misspelt() -> None:
    assert decode("sdxl", LatentSpaceConfig) == space_config("sdxl") == space_config("latent_space/sdxl")
    assert space_config("model:runs/x") == ModelSpaceConfig(path="runs/x")
    assert space_config("sd", seed=3, random_init=True).spec.source == "sd (random:3)"
    for call, text in (
        (lambda: space_config("va_vea"), "space: no latent space is named 'va_vea'; did you mean 'va_vae'?"),
        (lambda: space_config("sd", sede=1), "space: 'latent_space/sd' has no field 'sede'; did you mean 'seed'?"),
        (lambda: space_config('{"kind": '), "space: is no whole JSON, got '{\"kind\": '"),
    ):
        with pytest.raises(PartError) as error:
            call()
        assert str(error.value) == text


# --- whose constants win ------------------------------------------------------------------------------------------


def silence(folder: Path, *names: str, **changes: Any) -> None:
    """Take names out of a config.json, as files of older versions lack them."""
    path = folder / "config.json"
    written = {name: value for name, value in json.loads(path.read_text()).items() if name not in names}
    path.write_text(json.dumps(written | changes))


def test_the_table_fills_in_where_a_file_is_silent_and_not_the_default_of_a_class(tmp_path: Path) -> None:
    small_kl(latent_channels=16, **QUANT).save_pretrained(tmp_path)
    silence(tmp_path, "scaling_factor", "shift_factor")
    space = latent_space("sd3", weights=str(tmp_path), reduction=2)
    space.load()
    assert space.spec.normalisation == space_config("sd3").spec.normalisation


def test_the_file_wins_over_the_table(tmp_path: Path) -> None:
    small_kl(scaling_factor=0.5, shift_factor=0.25).save_pretrained(tmp_path)
    space = latent_space("sd", weights=str(tmp_path), reduction=2)
    raw = torch.randn(1, 4, 2, 2)
    equal(space.normalise(raw), (raw - 0.25) * 0.5)  # it looked into the file first
    assert space.spec.normalisation == fingerprint({"scale": torch.tensor(0.5), "shift": torch.tensor(0.25)})


@pytest.mark.parametrize("name", ["va_vae", "e2e_sd", "e2e_vavae"])
def test_a_scale_of_the_class_is_no_scale_of_these_spaces(name: str, tmp_path: Path) -> None:
    attention = {
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    }
    channels = config(name).latent
    kinds = KL_TYPES if name == "e2e_sd" else attention
    small_kl(latent_channels=channels, scaling_factor=0.18215, **kinds).save_pretrained(tmp_path)
    space = latent_space(name, weights=str(tmp_path), reduction=2)
    with pytest.raises(ValueError) as error:
        space.encode(images())
    assert str(error.value) == (
        f"{name}: its latents are normalised by statistics that its weights do not hold; "
        "give statistics=FILE, or fit them to raw latents with fit(...)"
    )
    silence(tmp_path, latents_mean=[1.0] * channels, latents_std=[2.0] * channels)
    space = latent_space(name, weights=str(tmp_path), reduction=2)
    raw = torch.randn(1, channels, 2, 2)
    equal(space.normalise(raw), (raw - 1) / 2)


def test_weights_of_another_shape_or_class_are_refused(tmp_path: Path) -> None:
    small_kl().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^sd: this autoencoder has reduction=2, not 8; set what it has$"):
        latent_space("sd", weights=str(tmp_path)).load()
    with pytest.raises(ValueError, match=r"^sd3: this autoencoder has latent=4, not 16; set what it has$"):
        latent_space("sd3", weights=str(tmp_path), reduction=2).load()
    with pytest.raises(CheckpointError, match=r"^flux2: .* holds a AutoencoderKL, not a AutoencoderKLFlux2"):
        latent_space("flux2", weights=str(tmp_path), reduction=2, latent=4).load()
    with pytest.raises(FileNotFoundError, match=r"^sd: nowhere: no such file or folder, and no hub repository"):
        latent_space("sd", weights="nowhere").load()


def test_a_folder_that_lacks_tensors_is_refused(tmp_path: Path) -> None:
    vae = small_kl()
    vae.save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    kept = {name: value for name, value in vae.state_dict().items() if name != "quant_conv.bias"}
    save_file(kept, weights, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks tensor 'quant_conv.bias'$"):
        latent_space("sd", weights=str(tmp_path), reduction=2).load()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub whose repositories are folders."""
    import huggingface_hub
    from huggingface_hub.errors import RemoteEntryNotFoundError

    def download(repository: str, name: str) -> str:
        path = tmp_path / repository / name
        if path.is_file():
            return str(path)
        raise RemoteEntryNotFoundError(f"{name} is absent", response=MagicMock())

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return tmp_path


@torch.no_grad()
def test_published_places_are_read_with_their_folders(hub: Path) -> None:
    vae, x = small_flux2(), images()
    vae.save_pretrained(hub / "black-forest-labs/FLUX.2-dev/vae")
    space = latent_space("flux2", latent=4, reduction=2)
    equal(space.encode(x), Flux2(vae).into(x))
    vae.save_pretrained(hub / "me/mine", safe_serialization=False)
    other = latent_space("flux2", latent=4, reduction=2, weights="me/mine", name="mine")
    equal(other.encode(x), space.encode(x))
    assert other.spec.source == "mine"
    vae.save_pretrained(hub / "whole/vae")
    equal(latent_space("flux2", latent=4, reduction=2, weights=str(hub / "whole")).encode(x), space.encode(x))
    reference = tiny("va_vae")
    place = hub / "hustvl/vavae-imagenet256-f16d32-dinov2"
    place.mkdir(parents=True)
    torch.save(to_ldm(model_of(reference).state_dict(), 2), place / "vavae-imagenet256-f16d32-dinov2.pt")
    equal(latent_space("va_vae", settings=TINY, reduction=2).encode_raw(x), reference.encode_raw(x))
    with pytest.raises(FileNotFoundError, match=r"^sd: stabilityai/sd-vae-ft-mse is no local file or folder"):
        latent_space("sd").encode(x)


def test_without_diffusers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    space = latent_space("sd")
    assert space.normalise(torch.ones(1, 4, 2, 2)).unique().item() == pytest.approx(0.18215)  # nothing is loaded
    with pytest.raises(ImportError) as error:
        space.load()
    assert str(error.value) == "latent_space/sd: needs diffusers with AutoencoderKL; pip install 'latelier[vae]'"


def test_unknown_settings_are_told() -> None:
    with pytest.raises(ValueError, match=r"has no 'layer_per_block'; did you mean 'layers_per_block'\?$"):
        tiny("sd", settings=(("layer_per_block", 2),)).load()


# --- other layouts ------------------------------------------------------------------------------------------------


def to_ldm(tensors: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """diffusers' names as latent diffusion writes them."""
    import re

    written = {}
    for name, value in tensors.items():
        up = re.match(r"decoder\.up_blocks\.(\d+)", name)
        if up:
            name = name.replace(up[0], f"decoder.up.{levels - 1 - int(up[1])}")
        name = re.sub(r"down_blocks\.(\d+)", r"down.\1", name)
        name = re.sub(r"((?:up|down)\.\d+)\.resnets", r"\1.block", name)
        name = re.sub(r"((?:up|down)\.\d+)\.attentions", r"\1.attn", name)
        name = name.replace("upsamplers.0", "upsample").replace("downsamplers.0", "downsample")
        name = name.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_shortcut", "nin_shortcut")
        name = name.replace("conv_norm_out", "norm_out").replace("group_norm", "norm")
        if ".attn" in name:
            if re.search(r"to_(q|k|v|out\.0)\.weight", name):
                value = value[:, :, None, None]
            name = re.sub(r"to_([qkv])\b", r"\1", name).replace("to_out.0", "proj_out")
        written[name] = value.contiguous()
    return written


@torch.no_grad()
def test_va_vae_is_read_in_its_published_layout_without_its_teacher(tmp_path: Path) -> None:
    reference = tiny("va_vae")
    vae = model_of(reference)
    written = to_ldm(vae.state_dict(), 2)
    assert {
        "encoder.down.1.attn.0.q.weight",
        "decoder.up.1.attn.1.proj_out.bias",
        "encoder.mid.attn_1.norm.weight",
    } <= (written.keys())
    assert not any("blocks" in name or "to_q" in name for name in written)
    extra = {
        "foundation_model.cls_token": torch.ones(1),
        "linear_proj.weight": torch.ones(2, 2),
        "loss.logvar": torch.ones(1),
    }
    torch.save({"state_dict": written | extra}, tmp_path / "vavae.pt")
    torch.save(
        {"mean": torch.full((1, 32, 1, 1), 0.5), "std": torch.full((1, 32, 1, 1), 2.0)}, tmp_path / "latents_stats.pt"
    )
    space = latent_space(
        "va_vae",
        weights=str(tmp_path / "vavae.pt"),
        statistics=str(tmp_path / "latents_stats.pt"),
        settings=TINY,
        reduction=2,
    )
    x = images()
    equal(space.encode_raw(x), reference.encode_raw(x))
    equal(space.encode(x), (reference.encode_raw(x) - 0.5) / 2)
    del written["decoder.up.1.block.0.conv1.bias"]
    torch.save(written, tmp_path / "vavae.pt")
    with pytest.raises(CheckpointError, match=r"lacks tensor 'decoder.up_blocks.0.resnets.0.conv1.bias'$"):
        latent_space("va_vae", weights=str(tmp_path / "vavae.pt"), settings=TINY, reduction=2).load()


def norm(x: Tensor, t: dict[str, Tensor], name: str) -> Tensor:
    return torch.nn.functional.group_norm(x, 4, t[f"{name}.weight"], t[f"{name}.bias"], eps=1e-6)


def convolve(x: Tensor, t: dict[str, Tensor], name: str, **how: Any) -> Tensor:
    return torch.nn.functional.conv2d(x, t[f"{name}.weight"], t[f"{name}.bias"], **how)


def ldm_block(x: Tensor, t: dict[str, Tensor], name: str) -> Tensor:
    silu = torch.nn.functional.silu
    h = convolve(silu(norm(x, t, f"{name}.norm1")), t, f"{name}.conv1", padding=1)
    h = convolve(silu(norm(h, t, f"{name}.norm2")), t, f"{name}.conv2", padding=1)
    return h + (convolve(x, t, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in t else x)


def ldm_attention(x: Tensor, t: dict[str, Tensor], name: str) -> Tensor:
    h = norm(x, t, f"{name}.norm")
    q, k, v = (convolve(h, t, f"{name}.{part}").flatten(2) for part in "qkv")
    weights = torch.softmax(q.transpose(1, 2) @ k * q.shape[1] ** -0.5, dim=2)
    return x + convolve((v @ weights.transpose(1, 2)).reshape(x.shape), t, f"{name}.proj_out")


def ldm_middle(x: Tensor, t: dict[str, Tensor], name: str) -> Tensor:
    return ldm_block(ldm_attention(ldm_block(x, t, f"{name}.block_1"), t, f"{name}.attn_1"), t, f"{name}.block_2")


@torch.no_grad()
def test_the_layout_of_latent_diffusion_computes_what_latent_diffusion_computes(tmp_path: Path) -> None:
    """Written out after the equations of latent diffusion's Encoder and Decoder, for two levels and one block each."""
    t = to_ldm(model_of(tiny("va_vae")).state_dict(), 2)
    save_file(t, tmp_path / "ldm.safetensors")
    space = latent_space("va_vae", weights=str(tmp_path / "ldm.safetensors"), settings=TINY, reduction=2)
    silu, pad, x = torch.nn.functional.silu, torch.nn.functional.pad, images()
    h = ldm_block(convolve(x, t, "encoder.conv_in", padding=1), t, "encoder.down.0.block.0")
    h = convolve(pad(h, (0, 1, 0, 1)), t, "encoder.down.0.downsample.conv", stride=2)
    h = ldm_attention(ldm_block(h, t, "encoder.down.1.block.0"), t, "encoder.down.1.attn.0")
    h = silu(norm(ldm_middle(h, t, "encoder.mid"), t, "encoder.norm_out"))
    mean = convolve(convolve(h, t, "encoder.conv_out", padding=1), t, "quant_conv").chunk(2, dim=1)[0]
    torch.testing.assert_close(plain(space.encode_raw(x)), mean, rtol=1e-5, atol=1e-5)
    h = convolve(convolve(mean, t, "post_quant_conv"), t, "decoder.conv_in", padding=1)
    h = ldm_middle(h, t, "decoder.mid")
    for i in range(2):
        h = ldm_attention(ldm_block(h, t, f"decoder.up.1.block.{i}"), t, f"decoder.up.1.attn.{i}")
    h = convolve(h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), t, "decoder.up.1.upsample.conv", padding=1)
    for i in range(2):
        h = ldm_block(h, t, f"decoder.up.0.block.{i}")
    picture = convolve(silu(norm(h, t, "decoder.norm_out")), t, "decoder.conv_out", padding=1)
    torch.testing.assert_close(space.load().reconstruct(mean), picture, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lone", [False, True])
@torch.no_grad()
def test_old_names_of_attention_are_read(lone: bool, tmp_path: Path) -> None:
    vae, x = small_kl(), images()
    vae.save_pretrained(tmp_path)
    renamed = {}
    for name, value in vae.state_dict().items():
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        renamed[name] = value
    assert "encoder.mid_block.attentions.0.query.weight" in renamed
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(renamed, weights, {"format": "pt"})
    space = latent_space("sd", weights=str(weights if lone else tmp_path), reduction=2)
    equal(space.encode_raw(x), vae.encode(x).latent_dist.mode())


# --- what is refused ----------------------------------------------------------------------------------------------


def test_latents_of_another_space_are_refused_with_what_differs() -> None:
    sd, sdxl = tiny("sd"), tiny("sdxl")
    z = sd.encode(images())
    assert (z.shape, sd.decode(z).shape) == ((2, 4, 4, 4), (2, 3, 8, 8))
    with pytest.raises(ValueError) as error:
        sdxl.decode(z)
    ours, theirs = sdxl.spec.normalisation, sd.spec.normalisation
    assert str(error.value) == (
        "sdxl (random:0): decode: these latents are of another space (source: 'sd (random:0)', not 'sdxl (random:0)', "
        f"normalisation: '{theirs}', not '{ours}'); use the model that encoded them"
    )


@pytest.mark.parametrize(("ours", "theirs"), [("e2e_sd", "sd"), ("sd", "e2e_sd"), ("e2e_vavae", "va_vae")])
def test_spaces_trained_end_to_end_refuse_latents_of_where_they_started(ours: str, theirs: str) -> None:
    """Shapes agree, and their statistics are not known yet: the name tells them apart."""
    wanted, given = space_config(ours).spec, space_config(theirs).spec
    assert (wanted.channels, wanted.stride) == (given.channels, given.stride)
    with pytest.raises(ValueError, match=rf"source: '{theirs}', not '{ours}'"):
        wanted.check(given, where="x")


def test_raw_latents_are_never_taken_for_normalised_ones() -> None:
    space = tiny("sd")
    raw = space.encode_raw(images())
    with pytest.raises(ValueError) as error:
        space.decode(raw)
    assert str(error.value) == (
        "sd (random:0): decode: these latents are raw, not normalised; give them to space.normalise(raw) first"
    )
    with pytest.raises(ValueError, match=r"of another space \(normalisation: .*, not 'raw'\)"):
        space.normalise(space.normalise(raw))


SPEC = LatentSpec(source="x", channels=4, stride=8, normalisation="0123456789ab")


@pytest.mark.parametrize("pair", [(UNKNOWN, "0123456789ab"), ("0123456789ab", UNKNOWN), (UNKNOWN, UNKNOWN), (RAW, RAW)])
def test_unknown_statistics_may_be_any(pair: tuple[str, str]) -> None:
    a, b = (decode(encode(SPEC) | {"normalisation": value}, LatentSpec) for value in pair)
    a.check(b, where="x")
    with pytest.raises(ValueError, match="channels: 5, not 4"):
        a.check(decode(encode(b) | {"channels": 5}, LatentSpec), where="x")


@pytest.mark.parametrize(
    "pair", [(UNKNOWN, RAW), (RAW, UNKNOWN), (RAW, "none"), ("none", RAW), ("none", "0123456789ab")]
)
def test_other_pairs_of_normalisations_are_refused(pair: tuple[str, str]) -> None:
    a, b = (decode(encode(SPEC) | {"normalisation": value}, LatentSpec) for value in pair)
    with pytest.raises(ValueError):
        a.check(b, where="x")


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (torch.zeros(1, 3, 9, 8), "image sides must be divisible by 2, got 9x8; pad or crop to 8x8"),
        (torch.zeros(1, 3, 8, 8).byte(), "takes images in [-1, 1], got torch.uint8; map bytes with x / 127.5 - 1"),
        (
            torch.full((1, 3, 8, 8), 255.0),
            "takes images in [-1, 1], got values from 255 to 255; map bytes with x / 127.5 - 1",
        ),
        (torch.zeros(1, 1, 8, 8), "takes images [b, 3, H, W], got [1, 1, 8, 8]"),
        (torch.zeros(3, 8, 8), "takes images [b, 3, H, W], got [3, 8, 8]"),
    ],
)
@pytest.mark.usefixtures("as_users_run_it")
def test_images_that_do_not_fit_are_refused_and_never_cropped(x: Tensor, text: str) -> None:
    with pytest.raises(ValueError) as error:
        tiny("sd").encode(x)
    assert str(error.value) == f"sd (random:0): {text}"


def test_rae_takes_images_of_one_size_only() -> None:
    space = latent_space("rae_dinov2_b", random_init=True, latent=64, reduction=4, settings=tuple(RAE.items()))
    assert space.encode(images(1, 8)).shape == (1, 64, 2, 2)
    with pytest.raises(ValueError, match=r"^rae_dinov2_b \(random:0\): takes images of 8x8, got 16x16; "):
        space.encode(images(1, 16))


def test_packed_latents_are_told_from_raw_ones() -> None:
    space = tiny("flux2", latent=4)
    z = space.encode(images())
    assert (z.shape, space.encode_raw(images()).shape) == ((2, 16, 2, 2), (2, 4, 4, 4))
    with pytest.raises(ValueError) as error:
        space.normalise(torch.zeros(1, 16, 2, 2))
    assert str(error.value) == (
        "flux2 (random:0): normalise: takes raw latents [b, 4, h, w], got [1, 16, 2, 2]; "
        "raw ones have 4 channels, and packed and normalised ones 16"
    )


def test_impossible_configs_are_refused() -> None:
    for changes, text in (
        ({"weights": "x/y", "random_init": True}, "config.weights: must stay None with random_init=True, got 'x/y'"),
        ({"posterior": "deterministic"}, "config.posterior: must be 'mode' or 'sample', got 'deterministic'"),
        ({"latent": 0}, "config.latent: must be at least 1, got 0"),
        (
            {"norm": ChannelNormConfig(mean=(0.0,), std=(1.0,))},
            "config: latent_norm/channels: has statistics of 1 channels, where latents have 4",
        ),
    ):
        with pytest.raises(PartError) as error:
            space_config("sd", **changes)
        assert str(error.value) == text
    with pytest.raises(PartError, match=r"must be 'deterministic', as it has no posterior, got 'mode'$"):
        space_config("sana", posterior="mode")


# --- posterior ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_sample_needs_a_seed_or_a_generator_and_repeats_with_it() -> None:
    space, x = tiny("sd", posterior="sample"), images()
    with pytest.raises(ValueError) as error:
        space.encode(x)
    assert str(error.value) == (
        "sd (random:0): takes a sample of its posterior; give generator= or seed=, one of the two, "
        "or choose posterior='mode'"
    )
    z = space.encode(x, seed=7)
    assert torch.equal(z, space.encode(x, generator=torch.Generator().manual_seed(7)))
    assert not torch.equal(z, space.encode(x, seed=8))
    distribution = model_of(space).encode(x).latent_dist
    sampled = distribution.sample(torch.Generator().manual_seed(7)) * 0.18215
    equal(z, sampled)
    with pytest.raises(ValueError, match="posterior: 'sample', not 'mode'"):
        tiny("sd").decode(z)


# --- precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_gives_no_nan_and_stays_close(case: str, tmp_path: Path) -> None:
    name, make, _, changes = CASES[case]
    make().save_pretrained(tmp_path)
    x = images()
    exact, half = (latent_space(name, weights=str(tmp_path), **{"reduction": 2} | changes) for _ in range(2))
    half.to(torch.bfloat16)
    z, picture = half.encode(x), None
    assert z.dtype == torch.float32
    picture = half.decode(z)
    assert picture.dtype == torch.float32
    assert z.isfinite().all() and picture.isfinite().all()
    assert (z - exact.encode(x)).abs().mean() < 0.1 * exact.encode(x).abs().mean()
    assert half.spec == exact.spec  # statistics keep float32
    assert all(p.dtype == torch.bfloat16 for p in half.load().parameters())


@pytest.mark.parametrize("upcast", [True, False])
def test_an_autoencoder_that_overflows_stays_float32_in_float16(upcast: bool) -> None:
    space = tiny("sdxl", settings=(*TINY, ("force_upcast", upcast)))
    before = space.half().load()
    assert next(before.parameters()).dtype == (torch.float32 if upcast else torch.float16)
    later = tiny("sdxl", settings=(*TINY, ("force_upcast", upcast)))
    later.load()
    later.half()
    assert next(later.load().parameters()).dtype == (torch.float32 if upcast else torch.float16)
    if upcast:
        x = images()
        assert torch.equal(later.encode(x), tiny("sdxl").encode(x))


NORMS: tuple[LatentNormConfig, ...] = (
    ScaleShiftConfig(scale=0.13025, shift=0.5),
    ChannelNormConfig(scale=0.13025, mean=(0.5, -20.0, 3.0), std=(0.01, 40.0, 1.0)),
    WhiteningConfig(),
    PositionNormConfig(grid=(2, 3), scale=0.5),
    PositionNormConfig(grid=(2, 3), form="diffusers"),
)


@pytest.mark.parametrize("config", NORMS, ids=lambda config: config.id)
@given(exponent=st.integers(-3, 4), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=10)
def test_normalisers_invert_and_stay_finite_at_large_activations(
    config: LatentNormConfig, exponent: int, dtype: torch.dtype
) -> None:
    statistics = config.statistics(3)
    for name, value in statistics.items():
        if "var" in name:
            value.uniform_(0.1, 9)
    z = (torch.randn(2, 3, 2, 3) * 10.0**exponent).to(dtype)
    normal = config.normalise(z, statistics)
    back = config.denormalise(normal, statistics)
    assert normal.isfinite().all() and back.isfinite().all()
    once = config.normalise(config.denormalise(z.float(), statistics), statistics)
    allowed = 1e-6 * max(z.abs().max().item(), 1.0) + 1e-6 * 20 / 0.01
    assert (once - z.float()).abs().max() <= allowed


def test_the_two_forms_of_position_statistics_follow_their_formulas() -> None:
    statistics = {"mean": torch.randn(3, 2, 2), "var": torch.rand(3, 2, 2)}
    z, std = torch.randn(1, 3, 2, 2), (statistics["var"] + 1e-5).sqrt()
    official, theirs = (PositionNormConfig(grid=(2, 2), form=form) for form in ("official", "diffusers"))
    equal(official.normalise(z, statistics), (z - statistics["mean"]) / std)
    equal(theirs.normalise(z, statistics), (z - statistics["mean"]) / (std + 1e-5))
    assert not torch.equal(official.normalise(z, statistics), theirs.normalise(z, statistics))


def test_position_statistics_refuse_another_resolution_or_are_reduced_on_request() -> None:
    refusing, reducing = (PositionNormConfig(grid=(2, 2), elsewhere=choice) for choice in ("refuse", "channel"))
    z = 3 * torch.randn(512, 2, 2, 2) + torch.randn(2, 2, 2)
    statistics = refusing.statistics(2)
    refusing.fit(statistics, refusing.observe(z), momentum=1.0)
    for call in (refusing.normalise, refusing.denormalise):
        with pytest.raises(ValueError, match=r"has statistics of a 2x2 grid, and these latents are 4x4; .*'channel'"):
            call(torch.zeros(1, 2, 4, 4), statistics)
    var, mean = z.double().var(dim=(0, 2, 3), correction=0), z.double().mean(dim=(0, 2, 3))
    other = torch.randn(1, 2, 4, 4)
    equal(reducing.normalise(other, statistics), (other - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None])
    equal(reducing.denormalise(reducing.normalise(other, statistics), statistics), other)


# --- statistics ---------------------------------------------------------------------------------------------------


def batches() -> list[Tensor]:
    """Raw latents in batches of unequal size whose mean is far from zero."""
    return [100 + 3 * torch.randn(n, 4, h, 4) for n, h in ((3, 4), (1, 2), (5, 4))]


@pytest.mark.parametrize("config", [ScaleShiftConfig(), ChannelNormConfig(), WhiteningConfig()], ids=lambda c: c.kind)
def test_fitted_statistics_are_those_of_all_latents_whatever_the_batches(config: LatentNormConfig) -> None:
    space, data = tiny("e2e_sd", norm=config), batches()
    assert space.fit(iter(data)) is space
    whole = torch.cat([batch.double().permute(1, 0, 2, 3).flatten(1) for batch in data], dim=1)
    mean, std = whole.mean(dim=1), whole.std(dim=1, correction=0)
    if config.kind.endswith("scale_shift"):
        mean, std = whole.mean().expand(4), whole.std(correction=0).expand(4)
    x = torch.randn(1, 4, 2, 2)
    expected = (x - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(plain(space.normalise(x)).double(), expected, rtol=1e-4, atol=1e-3)
    assert space.spec.normalisation != UNKNOWN
    space.load()  # what was fitted stays
    torch.testing.assert_close(plain(space.normalise(x)).double(), expected, rtol=1e-4, atol=1e-3)


def test_flux2_statistics_are_of_packed_channels() -> None:
    space = tiny("flux2", latent=4)
    raw = torch.randn(64, 4, 4, 4) * torch.tensor([1.0, 5.0, 1.0, 5.0])  # columns differ, which packing separates
    packed = space.fit([raw]).normalise(raw)
    torch.testing.assert_close(packed.std(dim=(0, 2, 3)), torch.ones(16), rtol=0.02, atol=0)


def test_fitting_refuses_what_is_not_raw_nothing_and_nan() -> None:
    space = tiny("sd")
    for data, text in (
        ([], "sd (random:0): fit: takes at least one latent, got none"),
        ([torch.full((1, 4, 2, 2), torch.nan)], "sd (random:0): fit: latents hold values that are not finite"),
    ):
        with pytest.raises(ValueError) as error:
            space.fit(data)
        assert str(error.value) == text
    with pytest.raises(ValueError, match="of another space"):
        space.fit([space.encode(images())])


def test_saved_statistics_come_back_with_their_normaliser_and_know_their_space(tmp_path: Path) -> None:
    path = tmp_path / "statistics.safetensors"
    space = tiny("va_vae", latent=4)
    space.fit(batches()).save_statistics(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    again = tiny("va_vae", latent=4, statistics=str(path))
    assert again.spec == space.spec
    x = torch.randn(1, 4, 2, 2)
    assert torch.equal(again.normalise(x), space.normalise(x))
    with pytest.raises(ValueError, match=r"source: 'va_vae \(random:0\)', not 'e2e_sd \(random:0\)'"):
        tiny("e2e_sd", statistics=str(path))
    with pytest.raises(FileNotFoundError, match=r"nothing.pt: no such file of statistics$"):
        tiny("va_vae", latent=4, statistics=str(tmp_path / "nothing.pt"))


def test_statistics_of_rae_and_lightningdit_are_read(tmp_path: Path) -> None:
    mean, var = torch.randn(64, 2, 2), torch.rand(64, 2, 2) + 0.1
    torch.save({"mean": mean, "var": var}, tmp_path / "stat.pt")
    space = latent_space(
        "rae_dinov2_b", latent=64, reduction=4, random_init=True, settings=tuple(RAE.items()),
        statistics=str(tmp_path / "stat.pt"),
    )  # fmt: skip
    x = torch.randn(1, 64, 2, 2)
    equal(space.normalise(x), (x - mean) / torch.sqrt(var + 1e-5))
    with pytest.raises(ValueError, match="has statistics of a 2x2 grid, and these latents are 3x3"):
        space.normalise(torch.randn(1, 64, 3, 3))
    running = {"bn.running_mean": torch.randn(4), "bn.running_var": torch.rand(4) + 1, "blocks.0.weight": torch.ones(2)}
    torch.save({"model": running | {"bn.num_batches_tracked": torch.tensor(3)}}, tmp_path / "generator.pt")
    z, e2e = torch.randn(1, 4, 2, 2), tiny("e2e_sd", statistics=str(tmp_path / "generator.pt"))
    mean4, var4 = (running[f"bn.running_{name}"][:, None, None] for name in ("mean", "var"))
    equal(e2e.normalise(z), (z - mean4) / torch.sqrt(var4 + 1e-4))
    torch.save({"sigma": mean}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"holds no statistics of latents; .*, got 'sigma'$"):
        space.load_statistics(tmp_path / "other.pt")
    torch.save({"mean": torch.zeros(5), "std": torch.ones(5)}, tmp_path / "five.pt")
    with pytest.raises(
        CheckpointError, match=r"its statistics must be mean \[4\], std \[4\], got mean \[5\], std \[5\]$"
    ):
        tiny("va_vae", latent=4, statistics=str(tmp_path / "five.pt"))
    torch.save({"mean": torch.zeros(4), "std": torch.tensor([1.0, 0.0, 1.0, 1.0])}, tmp_path / "zero.pt")
    with pytest.raises(CheckpointError, match=r"must be finite, and spreads positive; std is not$"):
        tiny("va_vae", latent=4, statistics=str(tmp_path / "zero.pt"))


def test_settings_of_a_normaliser_are_part_of_its_fingerprint() -> None:
    data = batches()
    prints = {
        tiny("e2e_sd", norm=norm).fit(data).spec.normalisation
        for norm in (
            ChannelNormConfig(), ChannelNormConfig(scale=0.5), WhiteningConfig(), WhiteningConfig(eps=1e-5),
            PositionNormConfig(), PositionNormConfig(form="diffusers"), PositionNormConfig(eps=1e-3),
        )
    }  # fmt: skip
    assert len(prints) == 7


# --- the scale ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.18215, 5.5])
def test_latents_of_an_unlikely_scale_warn_with_the_usual_causes(factor: float) -> None:
    spec = space_config("sd").spec
    z = torch.randn(4, 4, 8, 8)
    check_scale(z, spec, where="pack")
    z[:, 2] *= factor
    with pytest.warns(LatentScaleWarning) as told:
        check_scale(z, spec, where="pack")
    (warning,) = told
    text = str(warning.message)
    assert text.startswith(
        "pack: 1 of 4 channels of these latents of 'sd' have a standard deviation outside 0.5 to 2 ("
    )
    assert "channel 2" in text
    for cause in ("never normalised", "twice", "another space's constants", "[0, 1]", "another order"):
        assert cause in text
    check_scale(z, tiny("sd").raw_spec, where="pack")  # raw ones may have any


def test_latents_that_are_not_finite_or_constant_warn_too() -> None:
    for z in (torch.full((2, 4, 4, 4), torch.nan), torch.zeros(2, 4, 4, 4)):
        with pytest.warns(LatentScaleWarning, match="4 of 4 channels"):
            check_scale(z, SPEC, where="x")


# --- as a teacher -------------------------------------------------------------------------------------------------


def test_latents_as_a_teacher_are_tokens_in_row_major_order() -> None:
    space = space_config("flux2", latent=4, random_init=True, settings=TINY, reduction=2)
    config = LatentsTeacherConfig(space=space)
    teacher = config.build()
    x = torch.rand(2, 3, 8, 12)
    read = teacher(x)
    z = space.build().encode(2 * x - 1)
    assert (read.grid, read.patches.shape, config.features, config.grid_of((8, 12))) == ((2, 3), (2, 6, 16), 16, (2, 3))
    for row in range(2):
        for column in range(3):
            assert torch.equal(read.patches[:, 3 * row + column], z[:, :, row, column])
    spec = teacher.spec
    assert (spec.library, spec.weights, spec.patch, spec.features) == ("diffusers", "random:0", 4, 16)
    assert decode(encode(config), LatentsTeacherConfig) == config
    x.requires_grad_()
    teacher(x, differentiable=True).patches.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"^teacher/latents: image sides must be divisible by 4, got 9x8$"):
        teacher(torch.rand(1, 3, 9, 8))
    with pytest.raises(
        PartError, match=r"^config.space: must give the same latents each time; choose posterior='mode'$"
    ):
        LatentsTeacherConfig(space=space_config("sd", posterior="sample"))


def test_the_teacher_names_the_weights_that_it_read(tmp_path: Path) -> None:
    small_kl(scaling_factor=0.18215).save_pretrained(tmp_path)
    space = space_config("sd", weights=str(tmp_path), reduction=2)
    assert LatentsTeacherConfig(space=space).build().spec.weights.startswith("sha256:")


# --- models of ours -----------------------------------------------------------------------------------------------


def small_model(**changes: Any) -> Any:
    torch.manual_seed(2)
    model: Any = DiffAEConfig(patch=4, width=16, latent=4, **changes).build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
        model.latent_norm_running_mean.normal_()
        model.latent_norm_running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.parametrize("layout", ["folder", "run", "file"])
@torch.no_grad()
def test_a_model_of_ours_is_a_space(layout: str, tmp_path: Path) -> None:
    model = small_model(latent_patch=2)
    folder = save_folder(model, tmp_path / "model")
    path = {"folder": folder, "run": tmp_path, "file": folder / "model.safetensors"}[layout]
    config = space_config(f"model:{path}")
    assert config.spec == model.latent_spec  # read from the header, before anything is loaded
    space, x = config.build(), images()
    z = space.encode(x)
    equal(z, model.encode(x))
    assert spec_of(z) == model.latent_spec == space.spec
    equal(space.decode(z), model.decode(plain(z), 8, 8, settings_of(0)))
    equal(space.normalise(space.denormalise(z)), plain(z))
    assert model.latent_spec.patch == 2
    fitted = config.build().fit([torch.randn(64, 16, 4, 4) * 3])
    assert fitted.normalise(torch.randn(64, 16, 4, 4) * 3).std().item() == pytest.approx(1, abs=0.05)
    assert fitted.spec.normalisation != model.latent_spec.normalisation


def settings_of(seed: int) -> Any:
    from latelier.families import InferenceConfig

    return InferenceConfig(seed=seed)


def test_a_model_whose_files_differ_from_what_is_known_is_refused(tmp_path: Path) -> None:
    save_folder(small_model(), tmp_path)
    known = LatentSpec(source="family/semdisdiffae", channels=128, stride=16, normalisation=UNKNOWN)
    with pytest.raises(ValueError, match=r"channels: 4, not 128, stride: 4, not 16"):
        ModelSpaceConfig(path=str(tmp_path), known=known).build().load()
    with pytest.raises(FileNotFoundError, match=r"^latent_space/model: nowhere: no such model"):
        _ = ModelSpaceConfig(path="nowhere").spec


@torch.no_grad()
def test_a_decoder_for_flux2_takes_its_latents_and_encodes_nothing(tmp_path: Path) -> None:
    save_folder(small_model(encoder=None), tmp_path)
    flux2 = tiny("flux2", latent=1, name="flux2")
    space = ModelSpaceConfig(path=str(tmp_path), known=space_config(flux2.config).spec, foreign=True).build()
    z = flux2.encode(images())
    assert space.decode(z).shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"is a decoder only; encode with the space whose latents it reads$"):
        space.encode(images())
    with pytest.raises(ValueError, match="of another space"):
        space.decode(tiny("sd").encode(images()))
    assert KNOWN_SPACES["capacitor_decoder"].spec == KNOWN_SPACES["flux2"].spec


def test_files_of_before_the_new_fields_still_load(tmp_path: Path) -> None:
    from latelier.families import SemDisDiffAE, read_tensors

    model = small_model(latent_patch=2)
    save_folder(model, tmp_path)
    tensors, header = read_tensors(tmp_path / "model.safetensors")
    old = {n: v for n, v in json.loads(header["latelier.latent_spec"]).items() if n in (
        "kind", "source", "channels", "stride", "normalisation")}  # fmt: skip
    save_file(tensors, tmp_path / "model.safetensors", header | {"latelier.latent_spec": json.dumps(old)})
    again = SemDisDiffAE.from_pretrained(tmp_path)
    assert not differences(again.latent_spec, model.latent_spec)
    assert ModelSpaceConfig(path=str(tmp_path)).spec == model.latent_spec
    wrong = old | {"normalisation": "0123456789ab"}
    save_file(tensors, tmp_path / "model.safetensors", header | {"latelier.latent_spec": json.dumps(wrong)})
    with pytest.raises(CheckpointError, match="its latents are of another space than its header says"):
        SemDisDiffAE.from_pretrained(tmp_path)


def test_a_mark_survives_until_the_first_operation() -> None:
    z = mark(torch.zeros(1, 4, 2, 2), SPEC)
    assert spec_of(z) == SPEC
    assert spec_of(z + 0) is None
