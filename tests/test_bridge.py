"""Bridges: the card's construction, grids, specs, files, other stems, and laws of the whole."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from safetensors import safe_open

import latelier
from latelier.blocks import (
    RAW,
    UNKNOWN,
    CheckpointError,
    DINOv2Config,
    DINOv3Config,
    FamilyConfig,
    FixedResizeConfig,
    Flux2LatentsConfig,
    HOGConfig,
    LatentSpaceConfig,
    LatentsTeacherConfig,
    LatentStemConfig,
    LinearNoiseConfig,
    PartError,
    PatchifyStemConfig,
    ResidualStemConfig,
    SpatialHeadConfig,
    StridedConvStemConfig,
    TinyViTConfig,
    TokensHeadConfig,
    TransformerBodyConfig,
    decode,
    encode,
    mark,
    parts,
    space_config,
    spec_of,
)
from latelier.families import LatentBridge, LatentBridgeConfig

SD, FLUX, FLUX2 = (space_config(name) for name in ("sd", "flux", "flux2"))
TINY_VAE = (("block_out_channels", (8, 8, 8, 8)), ("layers_per_block", 1), ("norm_num_groups", 4))
TINY = LatentBridgeConfig(
    space=SD,
    teacher=HOGConfig(patch=32),
    stem=ResidualStemConfig(mid=8, out=16),
    body=TransformerBodyConfig(width=16, depth=1, heads=2, table=4),
    image=64,
)
CARD: dict[str, Any] = {
    "in_ch": 4,
    "target_tokens": 64,
    "target_dim": 768,
    "adapter_mid_channels": 256,
    "adapter_out_channels": 512,
    "adapter_depth": 2,
    "width": 768,
    "depth": 8,
    "heads": 12,
    "mlp_ratio": 4.0,
    "dropout": 0.02,
}


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


def latents(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def awake(config: LatentBridgeConfig) -> LatentBridge:
    """In evaluation, with gates that are not zero."""
    bridge = config.build()
    with torch.no_grad():
        for parameter in bridge.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return bridge.eval()


def state_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def count(bridge: torch.nn.Module) -> int:
    return sum(p.numel() for p in bridge.parameters())


# --- the card -------------------------------------------------------------------------------------------------------


def test_the_cards_construction_has_its_shapes_and_another_stem_has_the_same_body() -> None:
    bridge = LatentBridge(**CARD).eval()
    assert 58_900_000 <= count(bridge) <= 61_500_000
    with torch.no_grad():
        found = bridge(latents(1, 4, 32, 32))
        assert found.patches.shape == (1, 64, 768)
        assert found.grid == (8, 8)
        assert found.cls is None
        other = bridge.with_stem(FLUX)
        assert other(latents(1, 16, 32, 32)).patches.shape == (1, 64, 768)
    for name in ("body", "head"):
        assert equal(state_of(bridge.get_submodule(name)), state_of(other.get_submodule(name)))
    assert bridge.config.body == TransformerBodyConfig()
    assert bridge.config.stem == ResidualStemConfig()
    assert bridge.config == LatentBridge().config == LatentBridge(bridge.config).config


def test_flux2_latents_meet_a_teacher_of_patch_16_without_a_stride() -> None:
    config = LatentBridgeConfig(space=FLUX2, teacher=DINOv3Config())
    with torch.device("meta"):
        bridge = config.build()
        found = bridge(torch.empty(2, 128, 16, 16))
    assert found.patches.shape == (2, 256, 768)
    assert found.grid == (16, 16)
    assert bridge.grids.stride == 1


@pytest.mark.parametrize("stem", [cls() for cls in parts(LatentStemConfig)], ids=lambda stem: stem.kind)
def test_every_stem_at_its_full_size_keeps_within_the_cards_uncertainty(stem: LatentStemConfig) -> None:
    with torch.device("meta"):
        bridge = replace(LatentBridge(**CARD).config, stem=stem).build()
    assert 57_000_000 <= count(bridge) <= 61_500_000


def test_names_of_the_card_that_do_not_fit_are_told() -> None:
    for names, message in (
        (
            {"adapter_midchannels": 3},
            "LatentBridge: takes no 'adapter_midchannels'; did you mean 'adapter_mid_channels'?",
        ),
        (
            {"in_ch": 16},
            "in_ch: the latents of latent_space/sd have 4 channels, got 16; name the space that has as many, such as "
            "space=space_config('flux')",
        ),
        ({"target_tokens": 60}, "target_tokens: must be the square of a divisor of 256, got 60"),
        (
            {"target_dim": 700},
            "target_dim: DINOv2 has widths 384, 768, 1024, 1536, got 700; for another teacher give it as 'teacher'",
        ),
        (
            {"target_dim": 700, "teacher": HOGConfig()},
            "target_dim: teacher/hog has 36 features, got 700; leave it out",
        ),
    ):
        with pytest.raises(ValueError, match=exactly(message)):
            LatentBridge(None, **names)
    with pytest.raises(ValueError, match="LatentBridge: takes a config or the card's names, got both"):
        LatentBridge(TINY, depth=2)
    with torch.device("meta"):
        bridge = LatentBridge(in_ch=16, space=FLUX, target_tokens=256, target_dim=384)
    assert bridge.config.teacher == DINOv2Config(size="vits14").for_stride(16)


# --- grids ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"teacher": DINOv2Config().for_stride(32), "stem": ResidualStemConfig(stride=2), "image": 256},
            "LatentBridge: latents of a 256 pixel image are 32x32 and the stem's stride 2 makes 16x16 tokens, but "
            "teacher/dinov2 has a grid of 8x8; take a stem stride of 4, or teacher.for_stride(16)",
        ),
        (
            {"teacher": HOGConfig(patch=4)},
            "LatentBridge: latents of a 64 pixel image are 8x8, but teacher/hog has a grid of 16x16; take "
            "'feature_head/spatial', which upsamples, or teacher.for_stride(8)",
        ),
        (
            {"teacher": DINOv2Config(), "image": 256},
            "LatentBridge: teacher/dinov2: takes sizes divisible by 14, got 256x256; 252x252 would do, and so would "
            "another 'resize'; or place it on the grid of tokens with teacher.for_stride(pixels)",
        ),
        (
            {
                "teacher": TinyViTConfig(resize=FixedResizeConfig(height=192, width=192)),
                "head": SpatialHeadConfig(),
            },
            "LatentBridge: latents of a 64 pixel image are 8x8, but teacher/tiny_vit has a grid of 12x12; take "
            "teacher.for_stride(8)",
        ),
        (
            {"teacher": TinyViTConfig(resize=FixedResizeConfig(height=128, width=64))},
            "LatentBridge: latents of a 64 pixel image are 8x8, but teacher/tiny_vit has a grid of 8x4; take "
            "teacher.for_stride(8)",
        ),
        (
            {"image": 60},
            "LatentBridge: an image of 60 pixels has no latents of stride 8; make the bridge for 56 pixels",
        ),
        (
            {"stem": PatchifyStemConfig(stride=3)},
            "LatentBridge: latents of a 64 pixel image are 8x8, which the stem's stride 3 does not divide; "
            "take a stem stride that divides 8",
        ),
        (
            {"image": 24 * 8, "teacher": HOGConfig(patch=24)},
            "LatentBridge: stem/residual: stride: convolutions make powers of 2, got 3; "
            "'stem/patchify' makes any stride",
        ),
        (
            {"stem": StridedConvStemConfig(depth=1)},
            "LatentBridge: stem/strided_conv: depth: a stride of 4 halves the grid 2 times, once in a convolution; "
            "take a depth of 2, got 1",
        ),
        (
            {"head": TokensHeadConfig(head_width=3)},
            "LatentBridge: feature_head/tokens: head_width: must divide the width 16, got 3",
        ),
    ],
)
def test_what_does_not_meet_is_told_with_both_sides(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=exactly(message)):
        replace(TINY, **changes).build()


def test_a_teacher_that_does_not_tell_its_grid_asks_for_a_stride(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HOGConfig, "grid_of", lambda self, size: None)
    with pytest.raises(ValueError, match="teacher/hog tells its grid only once it is built; give the stem its stride"):
        TINY.build()
    bridge = replace(TINY, stem=replace(TINY.stem, stride=2)).build()
    assert bridge.grids.output == (4, 4)


@settings(max_examples=15)
@given(
    latent_stride=st.sampled_from([8, 16, 32]),
    patch=st.sampled_from([4, 8, 16, 32, 64]),
    side=st.sampled_from([128, 256]),
)
def test_the_output_lies_on_the_teachers_grid_for_every_pair(latent_stride: int, patch: int, side: int) -> None:
    space = {8: SD, 16: FLUX2, 32: space_config("sana")}[latent_stride]
    teacher = HOGConfig(patch=patch, cells=1)
    stem, head = PatchifyStemConfig(), SpatialHeadConfig()
    config = replace(TINY, space=space, teacher=teacher, stem=stem, head=head, image=side)
    bridge = config.build().eval()
    found = bridge(torch.randn(1, space.channels, side // latent_stride, side // latent_stride))
    assert found.grid == teacher.grid_of((side, side)) == bridge.grids.output
    assert found.patches.shape == (1, (side // patch) ** 2, teacher.features)
    assert bridge.grid_of(torch.empty(1, 1, *bridge.grids.latent)) == found.grid


@pytest.mark.usefixtures("as_users_run_it")
def test_latents_of_other_forms_than_squares_are_read_and_others_refused() -> None:
    bridge = TINY.build().eval()
    found = bridge(latents(2, 4, 12, 4))
    assert found.grid == (3, 1)
    assert found.patches.shape == (2, 3, 36)
    for given_, message in (
        (latents(2, 5, 8, 8), "LatentBridge: takes latents [b, 4, h, w], got [2, 5, 8, 8]"),
        (latents(4, 8, 8), "LatentBridge: takes latents [b, 4, h, w], got [4, 8, 8]"),
        (latents(1, 4, 0, 8), "LatentBridge: takes latents [b, 4, h, w], got [1, 4, 0, 8]"),
        (
            latents(2, 4, 8, 6),
            "LatentBridge: latents of 8x6 do not divide by the stem's stride 4; "
            "take images whose sides divide by 32 pixels",
        ),
        (latents(1, 4, 8, 8).long(), "LatentBridge: takes latents of floating point, got torch.int64"),
    ):
        with pytest.raises(ValueError, match=exactly(message)):
            bridge.check(given_)
    assert bridge(latents(0, 4, 8, 8)).patches.shape == (0, 4, 36)


# --- specs ----------------------------------------------------------------------------------------------------------


def test_latents_of_another_space_and_raw_ones_are_refused() -> None:
    bridge = TINY.build().eval()
    z = latents(1, 4, 8, 8)
    assert torch.equal(bridge(mark(z.clone(), SD.spec)).patches, bridge(z).patches)
    with pytest.raises(
        ValueError, match=r"LatentBridge: these latents are of another space \(source: 'e2e_sd', not 'sd'"
    ):
        bridge(mark(z.clone(), space_config("e2e_sd").spec))
    with pytest.raises(ValueError, match="LatentBridge: these latents are raw, not normalised; give them to space"):
        bridge(mark(z.clone(), replace(SD.spec, normalisation=RAW)))


def test_a_bridge_keeps_the_more_specific_spec_and_refuses_another() -> None:
    config = replace(TINY, space=FLUX2, image=64)
    bridge = config.build()
    assert bridge.latent_spec.normalisation == UNKNOWN
    assert bridge.teacher_spec is None
    measured = replace(FLUX2.spec, normalisation="abcdefabcdef")
    teacher = HOGConfig(patch=32).build().spec
    bridge.take_specs(latent=measured, teacher=teacher)
    bridge.take_specs(latent=FLUX2.spec)
    bridge.take_specs()
    assert bridge.latent_spec == measured
    assert bridge.teacher_spec == teacher
    with pytest.raises(ValueError, match=r"normalisation: 'other', not 'abcdefabcdef'"):
        bridge.take_specs(latent=replace(FLUX2.spec, normalisation="other"))
    with pytest.raises(ValueError, match=r"LatentBridge: is of another teacher \(patch: 16, not 32\)"):
        bridge.take_specs(teacher=HOGConfig(patch=16).build().spec)
    assert bridge.teacher_spec == teacher
    with pytest.raises(ValueError, match=r"predicts 36 features of teacher/hog, and these are 64 of tiny_vit"):
        config.build().take_specs(teacher=TinyViTConfig(depth=1).build().spec)


def test_both_specs_stand_in_the_header_and_come_back(tmp_path: Path) -> None:
    bridge = awake(replace(TINY, space=FLUX2))
    measured, teacher = replace(FLUX2.spec, normalisation="abcdefabcdef"), HOGConfig(patch=32).build().spec
    bridge.take_specs(latent=measured, teacher=teacher)
    bridge.save_pretrained(tmp_path, header={"note": "mine"})
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        header, names = file.metadata(), list(file.keys())
    assert decode(json.loads(header["latelier.latent_spec"])) == measured
    assert decode(json.loads(header["latelier.teacher_spec"])) == teacher
    assert header["note"] == "mine"
    assert {name.partition(".")[0] for name in names} == {"stem", "body", "head"}
    again = latelier.load(tmp_path)
    assert (again.latent_spec, again.teacher_spec, again.config) == (measured, teacher, bridge.config)
    assert not again.training
    assert torch.equal(again(latents(1, 128, 4, 4)).patches, bridge(latents(1, 128, 4, 4)).patches)
    lone = (tmp_path / "model.safetensors").rename(tmp_path / "lone.safetensors")
    (tmp_path / "config.json").unlink()
    assert equal(state_of(LatentBridge.from_pretrained(lone)), state_of(bridge))


def test_a_file_whose_header_names_another_space_is_refused(tmp_path: Path) -> None:
    bridge = TINY.build()
    bridge.latent_spec = replace(SD.spec, source="sdxl")
    bridge.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"\(header\): LatentBridge: these latents are of another space"):
        latelier.load(tmp_path)


# --- laws -----------------------------------------------------------------------------------------------------------

KINDS = {
    "plain": TINY,
    "tokens, noise": replace(TINY, head=TokensHeadConfig(head_width=8, registers=2), noise=LinearNoiseConfig()),
    "rope, unit": replace(
        TINY,
        body=replace(TINY.body, positions="rope"),
        head=decode({"kind": "feature_head/linear", "norm": "unit"}),
    ),
    "spatial": replace(TINY, teacher=LatentsTeacherConfig(space=SD), space=FLUX2, head=SpatialHeadConfig()),
}
every_kind = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())


def given_to(config: LatentBridgeConfig, batch: int = 2) -> tuple[torch.Tensor, ...]:
    side = config.image // config.stride
    z = latents(batch, config.latent_channels, side, side)
    return (z,) if config.noise is None else (z, torch.linspace(0.1, 0.9, batch))


@every_kind
def test_images_of_a_batch_do_not_see_one_another(config: LatentBridgeConfig) -> None:
    bridge = awake(config)
    inputs = given_to(config, 3)
    together = bridge(*inputs)
    for i in range(3):
        alone = bridge(*(x[i : i + 1] for x in inputs))
        torch.testing.assert_close(alone.patches, together.patches[i : i + 1], rtol=1e-4, atol=1e-5)
        if alone.cls is not None:
            torch.testing.assert_close(alone.cls, together.cls[i : i + 1], rtol=1e-4, atol=1e-5)


@every_kind
def test_gradients_of_every_parameter_and_of_the_latents_are_finite(config: LatentBridgeConfig) -> None:
    bridge = awake(config)
    z, *tau = given_to(config)
    z.requires_grad_()
    found = bridge(z, *tau)
    outputs = [x for x in (found.patches, found.cls, found.registers) if x is not None]
    torch.stack([(x * torch.randn_like(x)).sum() for x in outputs]).sum().backward()
    for name, tensor in (("latents", z), *bridge.named_parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.any(), name


@every_kind
def test_a_bridge_returns_from_its_folder_and_its_config_from_json(config: LatentBridgeConfig, tmp_path: Path) -> None:
    bridge = awake(config)
    bridge.save_pretrained(tmp_path)
    again = LatentBridge.from_pretrained(tmp_path)
    assert equal(state_of(again), state_of(bridge))
    assert torch.equal(again(*given_to(config)).patches, bridge(*given_to(config)).patches)
    assert decode(json.loads(json.dumps(encode(config))), FamilyConfig) == config
    assert decode(json.loads(json.dumps(encode(config))), FamilyConfig).id == config.id


@every_kind
def test_in_bfloat16_tokens_are_finite_float32_and_near_those_of_float32(config: LatentBridgeConfig) -> None:
    bridge = awake(config)
    expected = bridge(*given_to(config)).patches
    for half in (copy.deepcopy(bridge).bfloat16(), bridge):
        with torch.autocast("cpu", torch.bfloat16, enabled=half is bridge):
            found = half(*given_to(config)).patches
        assert found.dtype == torch.float32
        assert found.isfinite().all()
        assert (found - expected).norm() <= 0.05 * expected.norm()


def test_parameters_are_named_by_part() -> None:
    bridge = TINY.build()
    found = bridge.parts()
    assert list(found) == ["stem", "body", "head"]
    assert {n: p for part in found.values() for n, p in part.items()} == dict(bridge.named_parameters())
    assert all(name.startswith("body.") for name in found["body"])


# --- noise ----------------------------------------------------------------------------------------------------------


def test_a_bridge_made_with_noise_is_told_of_it_and_one_without_refuses() -> None:
    bridge = awake(KINDS["tokens, noise"])
    z, tau = latents(2, 4, 8, 8), torch.tensor([0.0, 0.7])
    found = bridge(z, tau).patches
    clean = bridge(z).patches
    torch.testing.assert_close(found[0], clean[0])
    assert not torch.allclose(found[1], clean[1])
    with pytest.raises(
        ValueError,
        match="LatentBridge: was made without noise and takes no tau; give its config a 'noise', "
        "such as 'bridge_noise/linear'",
    ):
        TINY.build()(z, tau)


# --- other stems, other files ---------------------------------------------------------------------------------------


def test_another_stem_has_copies_of_body_and_head_as_they_are() -> None:
    bridge = awake(TINY).bfloat16()
    bridge.take_specs(teacher=HOGConfig(patch=32).build().spec)
    bridge.body.requires_grad_(False)
    other = bridge.with_stem(FLUX2, stem=StridedConvStemConfig(mid=8, out=8))
    assert other.config == replace(TINY, space=FLUX2, stem=StridedConvStemConfig(mid=8, out=8))
    assert other.latent_spec == FLUX2.spec
    assert other.teacher_spec == bridge.teacher_spec
    assert (other.dtype, other.training) == (torch.bfloat16, False)
    for name in ("body", "head"):
        ours, theirs = bridge.get_submodule(name), other.get_submodule(name)
        assert equal(state_of(ours), state_of(theirs))
        assert [p.requires_grad for p in ours.parameters()] == [p.requires_grad for p in theirs.parameters()]
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert a.data_ptr() != b.data_ptr()
    assert all(p.requires_grad and p.isfinite().all() for p in other.stem.parameters())
    assert other(latents(1, 128, 4, 4)).patches.shape == (1, 4, 36)
    assert bridge.with_stem(FLUX).config.stem == TINY.stem


def test_another_stem_of_a_given_stride_is_derived_anew_and_what_cannot_meet_is_told() -> None:
    bridge = replace(TINY, stem=replace(TINY.stem, stride=4)).build()
    assert bridge.with_stem(FLUX2).grids.stride == 2
    spatial = KINDS["spatial"].build()
    with pytest.raises(
        ValueError,
        match="with_stem: the head makes 2 tokens a side of a position, and latents of latent_space/sd need 1; "
        "give the stem a stride that leaves them",
    ):
        spatial.with_stem(SD)
    assert spatial.with_stem(SD, stem=replace(TINY.stem, stride=2)).grids.factor == 2


def test_parts_of_another_bridge_are_taken_into_the_parameters_that_there_are(tmp_path: Path) -> None:
    source = awake(TINY)
    teacher = HOGConfig(patch=32).build().spec
    source.take_specs(teacher=teacher)
    source.save_pretrained(tmp_path)
    bridge = replace(TINY, space=FLUX).build().train()
    bridge.body.requires_grad_(False)
    before, stem = dict(bridge.named_parameters()), state_of(bridge.stem)
    assert bridge.load_parts(tmp_path) is bridge
    after = dict(bridge.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert equal(state_of(bridge.body), state_of(source.body))
    assert equal(state_of(bridge.head), state_of(source.head))
    assert equal(state_of(bridge.stem), stem)
    assert bridge.teacher_spec == teacher
    assert bridge.training and not any(p.requires_grad for p in bridge.body.parameters())
    body_only = replace(TINY, teacher=TinyViTConfig(patch=32)).build()
    body_only.load_parts(tmp_path / "model.safetensors", parts=("body",))
    assert equal(state_of(body_only.body), state_of(source.body))
    assert body_only.teacher_spec is None


def test_parts_that_do_not_fit_are_refused_and_nothing_is_taken(tmp_path: Path) -> None:
    source = TINY.build()
    source.take_specs(teacher=HOGConfig(patch=32).build().spec)
    source.save_pretrained(tmp_path)
    wider = replace(TINY, teacher=TinyViTConfig(patch=32)).build()
    other = replace(TINY, space=FLUX).build()
    known = TINY.build()
    assert source.teacher_spec is not None
    known.take_specs(teacher=replace(source.teacher_spec, version="0"))
    for bridge, taken, error, message in (
        (wider, ("body", "head"), CheckpointError, r"has 'head.proj.bias' of shape \[36\] where the model has \[64\]"),
        (other, ("stem",), CheckpointError, r"has 'stem.conv_in.weight' of shape \[8, 4, 3, 3\]"),
        (known, ("body", "head"), ValueError, r"LatentBridge: is of another teacher \(version: '1', not '0'\)"),
        (TINY.build(), ("boddy",), ValueError, r"load_parts: a bridge has no part 'boddy'; did you mean 'body'\?"),
    ):
        before = state_of(bridge)
        with pytest.raises(error, match=message):
            bridge.load_parts(tmp_path, parts=taken)
        assert equal(state_of(bridge), before)
    with pytest.raises(ValueError, match=r"these latents are of another space \(source: 'sd', not 'sdxl'"):
        replace(TINY, space=space_config("sdxl")).build().load_parts(tmp_path, parts=("stem",))


# --- through the autoencoder ----------------------------------------------------------------------------------------


def test_images_go_through_the_spaces_encoder_which_is_no_part_of_the_bridge() -> None:
    pytest.importorskip("diffusers")
    space = space_config("sd", random_init=True, settings=TINY_VAE)
    bridge = awake(replace(TINY, space=space))
    names = set(bridge.state_dict())
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = bridge.predict(images)
    z = space.build().encode(images)
    assert spec_of(z) == bridge.latent_spec
    torch.testing.assert_close(found.patches, bridge(z).patches)
    assert set(bridge.state_dict()) == names
    assert bridge.space is bridge.space
    assert copy.deepcopy(bridge).space is not bridge.space
    assert not copy.deepcopy(bridge)._space
    sampled = awake(replace(TINY, space=replace(space, posterior="sample")))
    assert torch.equal(sampled.predict(images, seed=1).patches, sampled.predict(images, seed=1).patches)


# --- from latents to latents ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [LatentsTeacherConfig(space=FLUX2), Flux2LatentsConfig()], ids=lambda t: t.kind)
def test_latents_are_translated_to_a_map_of_the_target_space(target: Any) -> None:
    bridge = awake(replace(TINY, teacher=target, head=SpatialHeadConfig()))
    z = latents(2, 4, 8, 12).requires_grad_()
    found = bridge.translate(z)
    assert found.shape == (2, 128, 4, 6)
    named = spec_of(found)
    assert named is not None
    FLUX2.spec.check(named, where="test")
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), bridge(z).patches)
    found.sum().backward()
    assert z.grad is not None and z.grad.any()


def test_translation_upwards_and_a_teacher_that_is_no_space() -> None:
    bridge = awake(KINDS["spatial"])
    assert bridge.translate(latents(1, 128, 4, 4)).shape == (1, 4, 8, 8)
    with pytest.raises(
        ValueError, match="translate: teacher/hog is no latent space; make the bridge for 'teacher/latents'"
    ):
        TINY.build().translate(latents(1, 4, 8, 8))


def test_settings_of_a_bridge_that_are_none_are_told() -> None:
    for name in ("image", "channels"):
        with pytest.raises(PartError, match=rf"config\.{name}: must be at least 1, got 0"):
            replace(TINY, **{name: 0})
    assert isinstance(TINY.space, LatentSpaceConfig)
    assert (TINY.stride, TINY.latent_channels) == (8, 4)
