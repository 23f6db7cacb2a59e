"""The tables of published networks against what timm and transformers build under those names, without any weights."""

from typing import Any

import pytest
import timm
import torch

from latelier.blocks import (
    AIMv2Config,
    CRADIOConfig,
    DINOv2Config,
    DINOv3Config,
    EUPEConfig,
    EVA02Config,
    InBothConfig,
    MAEConfig,
    PartError,
    PEConfig,
    Published,
    PublishedConfig,
    SigLIP2Config,
    TeacherConfig,
    TIPSConfig,
    decode,
    encode,
    from_transformers,
    parts,
)

FAMILIES = [cls for cls in parts(TeacherConfig) if issubclass(cls, PublishedConfig)]
EVERY = [(cls, size) for cls in FAMILIES for size in cls.networks]
IN_BOTH = [(cls, size) for cls, size in EVERY if issubclass(cls, InBothConfig)]


def name(value: Any) -> str:
    return value.kind if isinstance(value, type) else str(value)


def in_timm(model: str) -> Any:
    with torch.device("meta"):
        return timm.create_model(model, num_classes=0)


def shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def test_ten_families_are_declared() -> None:
    assert set(FAMILIES) == {
        AIMv2Config, CRADIOConfig, DINOv2Config, DINOv3Config, EUPEConfig, EVA02Config, MAEConfig, PEConfig,
        SigLIP2Config, TIPSConfig,
    }  # fmt: skip
    assert len(EVERY) == 85


@pytest.mark.parametrize("family", FAMILIES, ids=name)
def test_sizes_are_those_of_the_table_and_short_forms_name_them(family: type[PublishedConfig]) -> None:
    for size in family.networks:
        config = decode(f"{family.kind.removeprefix('teacher/')}:{size}", TeacherConfig)
        assert isinstance(config, family)
        assert config.size == size
        assert config.features == family.networks[size].width
        assert decode(encode(config), TeacherConfig) == config
    with pytest.raises(PartError) as error:
        decode({"kind": family.kind, "size": next(iter(family.networks)) + "x"}, TeacherConfig)
    assert str(error.value).startswith("config.size: takes ")


def _architecture(network: Published) -> tuple[int, int, str]:
    """What sizes of images share: they differ in their table of positions alone."""
    return network.width, network.patch, network.timm.partition(".")[0].rstrip("0123456789")


def _one_of_each() -> list[Published]:
    found = {_architecture(cls.networks[size]): cls.networks[size] for cls, size in EVERY}
    return list(found.values())


@pytest.mark.parametrize("network", _one_of_each(), ids=lambda network: network.timm)
def test_width_and_patch_are_those_of_timm(network: Published) -> None:
    plan = in_timm(network.timm)
    assert plan.num_features == network.width
    embed = getattr(plan, "patch_embed", None) or getattr(plan, "embeds", None)
    patch = (plan.feature_info[-1]["reduction"],) * 2 if embed is None else tuple(embed.patch_size)
    assert patch == (network.patch, network.patch)


@pytest.mark.parametrize(("family", "size"), EVERY, ids=name)
def test_name_licence_and_repository_are_known_to_timm(family: type[PublishedConfig], size: str) -> None:
    network = family.networks[size]
    config = timm.get_pretrained_cfg(network.timm)
    assert config is not None, network.timm
    assert config.license == network.licence
    assert config.hf_hub_id == f"timm/{network.timm}"


COUNTS = {
    (DINOv2Config, "vits14"): 22.1,
    (DINOv2Config, "vitb14"): 86.6,
    (DINOv2Config, "vitg14"): 1136.5,
    (DINOv3Config, "vits16"): 21.6,
    (DINOv3Config, "vits16plus"): 28.7,
    (DINOv3Config, "vitb16"): 85.6,
    (DINOv3Config, "vitl16"): 303.1,
    (DINOv3Config, "vith16plus"): 840.5,
    (DINOv3Config, "vit7b16"): 6716.0,
}


@pytest.mark.parametrize(("family", "size"), COUNTS, ids=name)
def test_networks_have_as_many_parameters_as_their_authors_say(family: type[PublishedConfig], size: str) -> None:
    plan = in_timm(family.networks[size].timm)
    millions = sum(parameter.numel() for parameter in plan.parameters()) / 1e6
    assert round(millions, 1) == COUNTS[family, size]


@pytest.mark.parametrize(("family", "size"), IN_BOTH, ids=name)
def test_the_config_for_transformers_gives_the_tensors_of_timm(family: Any, size: str) -> None:
    network = family.networks[size]
    with torch.device("meta"):
        backbone: Any = family(size=size, library="transformers", random_init=True).backbone()
    theirs = dict(backbone.network.state_dict())
    # DINOv3's released biases are zero, and left out under its plain names
    twin = network.timm.replace("dinov3.", "dinov3_qkvb.") if network.kind == "dinov3_vit" else network.timm
    ours = in_timm(network.timm if "7b" in network.timm else twin).state_dict()
    assert shapes(from_transformers(theirs, wanted=ours.keys(), where="x")) == shapes(ours)


@pytest.mark.parametrize(("size", "colours"), [("vitb16", 0.485), ("vitl16_sat", 0.43), ("vit7b16_sat", 0.43)])
def test_networks_for_satellite_pictures_have_colours_of_their_own(size: str, colours: float) -> None:
    network = DINOv3Config.networks[size]
    config = timm.get_pretrained_cfg(network.timm)
    assert config is not None
    assert config.mean[0] == colours
    assert network.colours in (None, (config.mean, config.std))
    assert (network.colours is None) == (colours == 0.485)


def test_a_small_family_member_builds_in_both_libraries_with_random_weights() -> None:
    images = torch.rand(1, 3, 28, 42)
    for library in ("timm", "transformers"):
        teacher = DINOv2Config(size="vits14_reg", library=library, random_init=True).build()
        out = teacher(images)
        assert out.grid == (2, 3)
        assert out.patches.shape == (1, 6, 384)
        assert out.cls is not None and out.registers is not None
        assert out.registers.shape == (1, 4, 384)
        spec = teacher.spec
        assert (spec.library, spec.licence, spec.weights) == (library, "apache-2.0", "random:0")
        assert (
            spec.model
            == ("vit_small_patch14_reg4_dinov2.lvd142m", "facebook/dinov2-with-registers-small")[
                library == "transformers"
            ]
        )


def test_a_size_that_does_not_exist_suggests_one() -> None:
    with pytest.raises(PartError) as error:
        decode("dinov3:vits16+", TeacherConfig)
    assert str(error.value).endswith("got 'vits16+'; did you mean 'vits16'?")
