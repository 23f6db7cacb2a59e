"""The published layout of dinac_ae: its config, its names and aliases, read and written; and files that are wrong."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import latelier
from latelier.blocks import (
    DINOTokenHeadConfig,
    DiTBlockConfig,
    FCDMBlockConfig,
    NoNormConfig,
    PartError,
    PointPosteriorConfig,
    SkipDecoderConfig,
    StackEncoderConfig,
    VPScheduleConfig,
    WhiteningConfig,
    part,
)
from latelier.families import (
    CheckpointError,
    DiffAEConfig,
    DinacAE,
    DinacAEConfig,
    FlatDiffAE,
    FlatDinacAE,
    SemDisDiffAE,
    published_tensors,
)

FLAT: dict[str, Any] = {
    "in_channels": 3,
    "patch_size": 4,
    "model_dim": 64,
    "encoder_depth": 2,
    "decoder_depth": 3,
    "decoder_start_blocks": 1,
    "decoder_end_blocks": 1,
    "bottleneck_dim": 3,
    "mlp_ratio": 1.0,
    "encoder_mlp_type": "gelu",
    "depthwise_kernel_size": 7,
    "adaln_low_rank_rank": 2,
    "bottleneck_posterior_kind": "diagonal_gaussian",
    "bottleneck_norm_mode": "disabled",
    "logsnr_min": -10.0,
    "logsnr_max": 10.0,
    "pixel_noise_std": 0.558,
    "latent_running_stats_eps": 1e-4,
    "class_head_feature_dim": 64,
    "class_head_model_dim": 64,
    "class_head_head_dim": 64,
    "class_head_mlp_ratio": 1.0,
    "class_head_mlp_type": "gelu",
    "class_head_register_token_count": 4,
}
"""The twenty-four fields of dinac_ae's config.json, in their order, at a small size."""

IMAGES = torch.linspace(-1, 1, 2 * 3 * 8 * 12).reshape(2, 3, 8, 12)
QKV, ALIAS = "encoder.blocks.0.attn_core.qkv.weight", "encoder.blocks.0.qkv.weight"
HEAD = "dino_token_alignment_head"


def model() -> DinacAE:
    made = FlatDinacAE(**FLAT).ours().build()
    with torch.no_grad():
        for value in (*made.parameters(), *made.latent_statistics.values()):
            value.add_(0.1 * torch.rand_like(value))
    return made.eval()


def publish(folder: Path, values: dict[str, Tensor], flat: dict[str, Any] = FLAT) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(flat))
    save_file(values, folder / "model.safetensors")
    return folder


def refusal(folder: Path, error: type[Exception]) -> str:
    with pytest.raises(error) as caught:
        DinacAE.from_pretrained(folder)
    return str(caught.value)


# --- configs --------------------------------------------------------------------------------------------------------


def test_the_flat_config_has_the_published_fields_in_their_order() -> None:
    assert list(FlatDinacAE.__dataclass_fields__) == list(FLAT)
    published = FlatDinacAE()
    assert (published.model_dim, published.encoder_depth, published.class_head_feature_dim) == (896, 6, 768)


def test_every_flat_field_reaches_our_config() -> None:
    flat = FlatDinacAE(
        in_channels=4,
        patch_size=8,
        model_dim=128,
        encoder_depth=3,
        decoder_depth=9,
        decoder_start_blocks=1,
        decoder_end_blocks=3,
        bottleneck_dim=6,
        mlp_ratio=2.0,
        encoder_mlp_type="silu",
        depthwise_kernel_size=5,
        adaln_low_rank_rank=7,
        bottleneck_posterior_kind="deterministic",
        logsnr_min=-8.0,
        logsnr_max=9.0,
        pixel_noise_std=0.5,
        latent_running_stats_eps=1e-3,
        class_head_feature_dim=96,
        class_head_model_dim=96,
        class_head_head_dim=32,
        class_head_mlp_ratio=3.0,
        class_head_mlp_type="relu",
    )
    assert flat.ours() == DinacAEConfig(
        channels=4,
        patch=8,
        width=128,
        latent=6,
        encoder=StackEncoderConfig(block=DiTBlockConfig(expand=2.0, activation="silu"), depth=3),
        decoder=SkipDecoderConfig(block=FCDMBlockConfig(kernel=5, expand=2.0), start=1, middle=5, end=3, rank=7),
        posterior=PointPosteriorConfig(),
        latent_norm=WhiteningConfig(eps=1e-3),
        schedule=VPScheduleConfig(logsnr_max=9.0, logsnr_min=-8.0, noise_std=0.5),
        token_head=DINOTokenHeadConfig(features=96, head_width=32, expand=3.0, activation="relu"),
    )


def test_the_defaults_are_the_published_model() -> None:
    assert FlatDinacAE().ours() == DinacAEConfig()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_head_dim": 768}, "config: 'published/dinac_ae' has no field 'class_head_dim'; did you mean"),
        ({"bottleneck_norm_mode": "channel_wise"}, "config.bottleneck_norm_mode: takes 'disabled', got 'channel_wise'"),
        (
            {"class_head_model_dim": 128},
            "config.class_head_model_dim: must equal class_head_feature_dim, got 128 and 64",
        ),
        (
            {"class_head_register_token_count": 8},
            "config.class_head_register_token_count: must be 4 in this layout, got 8",
        ),
        ({"encoder_mlp_type": "swiglu"}, "config.encoder_mlp_type: takes 'gelu' or 'silu' or 'relu', got 'swiglu'"),
        ({"model_dim": 100}, "its parts do not fit together (width: must be divisible by the head width 64, got 100)"),
        (
            {"decoder_depth": 1},
            "config.decoder_depth: must be at least decoder_start_blocks + decoder_end_blocks, got 1 with 1 and 1",
        ),
    ],
)
def test_a_config_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = publish(tmp_path, published_tensors(model()), FLAT | change)
    assert refusal(folder, PartError).startswith(f"{folder / 'config.json'}: {message}")


# --- reading and writing ----------------------------------------------------------------------------------------------


def test_a_model_is_exported_and_read_again(tmp_path: Path) -> None:
    ours = model()
    folder = ours.export_published(tmp_path / "made")
    assert json.loads((folder / "config.json").read_text()) == FLAT
    again = DinacAE.from_pretrained(folder)
    assert torch.equal(again.encode(IMAGES), ours.encode(IMAGES))
    assert isinstance(latelier.load(folder), DinacAE)


def aliases(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Names of aliases, with those of their originals."""
    found = {}
    for original in tensors:
        head, core, tail = original.rpartition(".attn_core.")
        if core and "norm" not in tail:
            found[f"{head}.{tail}"] = original
    return found


def test_what_is_exported_is_float32_with_an_alias_for_every_projection(tmp_path: Path) -> None:
    tensors = load_file(model().to(torch.bfloat16).export_published(tmp_path) / "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    assert len(aliases(tensors)) == 2 * 2 + 4
    for alias, original in aliases(tensors).items():
        assert torch.equal(tensors[alias], tensors[original])


def test_aliases_may_be_absent(tmp_path: Path) -> None:
    ours = model()
    tensors = published_tensors(ours)
    for alias in aliases(tensors):
        del tensors[alias]
    again = DinacAE.from_pretrained(publish(tmp_path, tensors))
    assert torch.equal(again.encode(IMAGES), ours.encode(IMAGES))


CHANGES = {"value": lambda t: t + 1e-3, "shape": lambda t: t[:-1], "dtype": lambda t: t.double()}


@pytest.mark.parametrize("alias", [ALIAS, f"{HEAD}.block.proj_out.weight", f"{HEAD}.class_readout.kv_proj.weight"])
@pytest.mark.parametrize(
    "change", [lambda t: t + 1e-3, lambda t: t[:-1], lambda t: t.double()], ids=["value", "shape", "dtype"]
)
def test_an_alias_that_is_not_its_original_is_refused(
    tmp_path: Path, alias: str, change: Callable[[Tensor], Tensor]
) -> None:
    tensors = published_tensors(model())
    original = aliases(tensors)[alias]
    tensors[alias] = change(tensors[alias]).contiguous()
    path = publish(tmp_path, tensors) / "model.safetensors"
    assert refusal(tmp_path, CheckpointError) == (
        f"{path}: {alias}: must equal {original!r}, whose alias it is, and does not; "
        "one of the two was changed: drop the alias to keep the original"
    )


def renamed(tensors: dict[str, Tensor]) -> None:
    tensors["encoder.blocks.0.attn_core.qkv_weight"] = tensors.pop(QKV)


def missing(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{HEAD}.initial_class_token"]


def without_periods(tensors: dict[str, Tensor]) -> None:
    del tensors["encoder.rope.periods"]


def misshapen(tensors: dict[str, Tensor]) -> None:
    name = f"{HEAD}.class_readout.attn_core.q_norm_heads._impl.weight"
    tensors[name] = tensors[name][:-1].clone()


def broken(tensors: dict[str, Tensor]) -> None:
    tensors[QKV][3, 5] = torch.nan
    tensors[ALIAS][3, 5] = torch.nan


def negative(tensors: dict[str, Tensor]) -> None:
    tensors["latent_norm_running_var"][1] = -0.5


def deeper(tensors: dict[str, Tensor]) -> None:
    tensors["encoder.blocks.2.mlp.up.weight"] = tensors["encoder.blocks.1.mlp.up.weight"].clone()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            renamed,
            f"lacks tensor {QKV!r}; has tensor 'encoder.blocks.0.attn_core.qkv_weight' that the model has not",
        ),
        (missing, f"lacks tensor '{HEAD}.initial_class_token'"),
        (without_periods, "lacks tensor 'encoder.rope.periods'"),
        (
            misshapen,
            f"has '{HEAD}.class_readout.attn_core.q_norm_heads._impl.weight' of shape [63] where the model has [64]",
        ),
        (broken, f"holds values that are not finite in tensor {QKV!r}"),
        (negative, "holds negative variances in tensor 'latent_norm_running_var'"),
        (deeper, "has tensor 'encoder.blocks.2.mlp.up.weight' that the model has not"),
    ],
)
def test_a_damaged_file_is_told_in_its_own_names(
    tmp_path: Path, damage: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    tensors = published_tensors(model())
    damage(tensors)
    path = publish(tmp_path, tensors) / "model.safetensors"
    assert refusal(tmp_path, CheckpointError) == f"{path}: {message}"


def test_a_truncated_file_is_told(tmp_path: Path) -> None:
    path = model().export_published(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    message = refusal(tmp_path, CheckpointError)
    assert message.startswith(f"{path}: is no whole safetensors file (")
    assert message.endswith("); copy or download it again")


def test_a_folder_of_the_other_family_is_told(tmp_path: Path) -> None:
    flat = {name: FLAT[name] for name in FLAT if name in FlatDiffAE.__dataclass_fields__}
    other = FlatDiffAE(**flat).ours(has_encoder=True, has_statistics=True).build()
    folder = other.export_published(tmp_path / "semdisdiffae")
    where = folder / "config.json"
    assert refusal(folder, PartError) == f"{where}: holds 'family/semdisdiffae', a SemDisDiffAE, not a DinacAE"
    mine = model().export_published(tmp_path / "dinac")
    with pytest.raises(PartError) as caught:
        SemDisDiffAE.from_pretrained(mine)
    assert str(caught.value) == f"{mine / 'config.json'}: holds 'family/dinac_ae', a DinacAE, not a SemDisDiffAE"


def test_a_config_of_the_other_family_beside_these_tensors_is_told(tmp_path: Path) -> None:
    flat = {name: FLAT[name] for name in FLAT if name in FlatDiffAE.__dataclass_fields__} | {
        "bottleneck_patchify_mode": "off"
    }
    folder = publish(tmp_path, published_tensors(model()), flat)
    assert refusal(folder, PartError).startswith(
        f"{folder / 'config.json'}: config: 'published/dinac_ae' has no field 'bottleneck_patchify_mode'; "
    )


def test_a_config_of_dinac_beside_other_tensors_says_what_is_lacking(tmp_path: Path) -> None:
    tensors = {name: value for name, value in published_tensors(model()).items() if not name.startswith(HEAD)}
    message = refusal(publish(tmp_path, tensors), CheckpointError)
    assert message.startswith(f"{tmp_path / 'model.safetensors'}: lacks tensors '{HEAD}._axial_rope2d.periods', ")


def test_blocks_of_different_periods_are_not_exported(tmp_path: Path) -> None:
    ours = model()
    ours.get_buffer("encoder.blocks.1.attn.rope.periods").mul_(2)
    with pytest.raises(PartError) as caught:
        ours.export_published(tmp_path / "made")
    assert str(caught.value) == (
        "model: blocks of its encoder differ in RoPE periods, where the layout has one 'encoder.rope.periods'"
    )
    assert not (tmp_path / "made").exists()


# --- what the published layout cannot say -----------------------------------------------------------------------------

SMALL = FlatDinacAE(**FLAT).ours()


def test_a_head_whose_width_is_written_out_is_exported_as_well(tmp_path: Path) -> None:
    features = SMALL.token_head.features
    made = replace(SMALL, token_head=replace(SMALL.token_head, width=features)).build()
    again = DinacAE.from_pretrained(made.export_published(tmp_path / "made"))
    assert again.config == SMALL


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            replace(SMALL, encoder=StackEncoderConfig(block=FCDMBlockConfig(), depth=1)),
            "config.encoder.block: the published layout has 'block/dit' there, got 'block/fcdm'",
        ),
        (
            replace(SMALL, decoder=SkipDecoderConfig(block=DiTBlockConfig())),
            "config.decoder.block: the published layout has 'block/fcdm' there, got 'block/dit'",
        ),
        (replace(SMALL, encoder=None), "config.encoder: the published layout has 'encoder/stack' there, got None"),
        (
            replace(SMALL, latent_norm=NoNormConfig()),
            "config.latent_norm: is 'latent_norm/none', not 'latent_norm/whitening' as the published layout has it; "
            "save_pretrained keeps it",
        ),
        (
            replace(SMALL, encoder=StackEncoderConfig(block=DiTBlockConfig(head_width=32, expand=1.0), depth=2)),
            "config.encoder.block.head_width: is 32, not 64 as the published layout has it; save_pretrained keeps it",
        ),
        (
            replace(SMALL, schedule=VPScheduleConfig(shift_high=1.0)),
            "config.schedule.shift_high: is 1.0, not 0.0 as the published layout has it; save_pretrained keeps it",
        ),
        (
            replace(SMALL, token_head=DINOTokenHeadConfig(features=36, width=64)),
            "config.class_head_model_dim: must equal class_head_feature_dim, got 64 and 36",
        ),
        (
            DiffAEConfig(patch=4, width=64, latent=3, latent_patch=3, encoder=None),
            "config.latent_patch: is 3, not 2 as the published layout has it; save_pretrained keeps it",
        ),
    ],
)
def test_a_model_that_it_cannot_say_is_not_exported(tmp_path: Path, config: DiffAEConfig, message: str) -> None:
    with torch.device("meta"):
        made = config.build()
    with pytest.raises(PartError) as caught:
        made.export_published(tmp_path / "made")
    assert str(caught.value) == message
    assert not (tmp_path / "made").exists()


def test_a_family_of_ones_own_has_no_published_layout(tmp_path: Path) -> None:
    @part("family/test_mine")
    class MyConfig(DinacAEConfig):
        """A family that its user declares."""

    with torch.device("meta"):
        made = MyConfig().build()
    with pytest.raises(PartError) as caught:
        made.export_published(tmp_path / "made")
    assert str(caught.value) == (
        "config: nobody has published a layout for 'family/test_mine'; save_pretrained keeps it"
    )
