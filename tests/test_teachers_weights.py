"""Where weights come from, what is said when they do not, and libraries that do not import."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor

from latelier.blocks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    CheckpointError,
    DINOv2Config,
    DINOv3Config,
    NetworkTeacher,
    TimmConfig,
    TransformersConfig,
    from_transformers,
    read_weights,
    weights,
)

MODEL = "vit_small_patch14_reg4_dinov2.lvd142m"
SHAPE = (("embed_dim", 32), ("depth", 1), ("num_heads", 2), ("img_size", 28))
CONFIG: Any = (
    ("hidden_size", 32),
    ("num_hidden_layers", 1),
    ("num_attention_heads", 2),
    ("image_size", 28),
    ("patch_size", 14),
)
IMAGES = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))


def drawn(*, seed: int = 0, model: str = MODEL, shape: Any = SHAPE) -> dict[str, Tensor]:
    network: Any = TimmConfig(model=model, settings=shape, random_init=True, seed=seed).build().backbone
    return dict(network.network.state_dict())


def load(path: Path | str, *, model: str = MODEL, shape: Any = SHAPE) -> NetworkTeacher:
    return TimmConfig(model=model, settings=shape, weights=str(path)).build()


def tokens(*, seed: int = 0) -> Tensor:
    return TimmConfig(model=MODEL, settings=SHAPE, random_init=True, seed=seed).build()(IMAGES).patches


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may reach the network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(weights, "_told", set())


# --- local files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"state_dict": x, "epoch": 3}, lambda x: {"teacher": x}])
@pytest.mark.parametrize("prefix", ["", "module.", "foundation_model.", "module.model."])
def test_files_of_torch_are_read_under_their_wrappers(wrap: Callable[[Any], Any], prefix: str, tmp_path: Path) -> None:
    torch.save(wrap({prefix + name: value for name, value in drawn(seed=3).items()}), tmp_path / "weights.pth")
    assert torch.equal(load(tmp_path / "weights.pth")(IMAGES).patches, tokens(seed=3))


def test_a_safetensors_file_a_folder_and_a_folder_of_parts_give_the_same_teacher(tmp_path: Path) -> None:
    tensors = drawn(seed=4)
    save_file(tensors, tmp_path / "one.safetensors")
    (tmp_path / "folder").mkdir()
    save_file(tensors, tmp_path / "folder" / "model.safetensors")
    (tmp_path / "parts").mkdir()
    names = sorted(tensors)
    index = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    for part in set(index.values()):
        save_file({name: tensors[name] for name in names if index[name] == part}, tmp_path / "parts" / part)
    (tmp_path / "parts" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    specs = {load(tmp_path / name).spec for name in ("one.safetensors", "folder", "parts")}
    assert len(specs) == 1
    assert specs.pop().weights.startswith("sha256:")


class Code:
    """What no file of weights may hold."""

    def __reduce__(self) -> Any:
        return (print, ("run",))


def _damaged(path: Path) -> None:
    path.write_bytes(b"hello, this is no file of weights")


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        (
            "code.pt",
            lambda path: torch.save({"a": Code()}, path),
            "{path}: holds more than tensors, or is damaged: torch.load(weights_only=True) refuses it; "
            "convert it to safetensors where you trust it",
        ),
        (
            "damaged.bin",
            _damaged,
            "{path}: holds more than tensors, or is damaged: torch.load(weights_only=True) refuses it; "
            "convert it to safetensors where you trust it",
        ),
        (
            "damaged.safetensors",
            _damaged,
            "{path}: is no whole safetensors file (Error while deserializing header: header too large); "
            "copy or download it again",
        ),
        ("list.pt", lambda path: torch.save([1], path), "{path}: holds list; takes a mapping of names to tensors"),
        ("none.pt", lambda path: torch.save({"epoch": 1}, path), "{path}: holds no tensors"),
    ],
)
def test_files_that_are_no_weights_are_told(
    name: str, write: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / name)
    with pytest.raises(CheckpointError) as error:
        read_weights(str(tmp_path / name), where="teacher/timm")
    assert str(error.value) == message.format(path=tmp_path / name)
    assert "run" not in capsys.readouterr().out


def test_a_folder_without_weights_and_an_index_that_is_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        read_weights(str(tmp_path), where="teacher/timm")
    assert str(error.value) == f"teacher/timm: {tmp_path} holds no model.safetensors and no pytorch_model.bin"
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(CheckpointError) as damaged:
        read_weights(str(tmp_path), where="teacher/timm")
    assert str(damaged.value).startswith(f"{tmp_path}/model.safetensors.index.json: is no index of safetensors files (")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("norm.bias"), "{path}: lacks tensor 'norm.bias'"),
        (lambda x: x.update(more=torch.ones(1)), "{path}: has tensor 'more' that the model has not"),
        (
            lambda x: x.update({"norm.bias": torch.ones(3)}),
            "{path}: has 'norm.bias' of shape [3] where the model has [32]",
        ),
        (
            lambda x: x["norm.bias"].fill_(torch.nan),
            "{path}: holds values that are not finite in tensor 'norm.bias'",
        ),
        (
            lambda x: x.update(pos_embed=torch.ones(1, 25, 32)),
            "{path}: has 'pos_embed' of shape [1, 25, 32] where the model has [1, 4, 32]",
        ),
    ],
)
def test_loading_is_strict_both_ways(change: Any, message: str, tmp_path: Path) -> None:
    tensors = {name: value.clone() for name, value in drawn().items()}
    change(tensors)
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert str(error.value) == message.format(path=path)


def test_a_classifier_in_the_file_is_left_out(tmp_path: Path) -> None:
    tensors = drawn() | {"head.weight": torch.ones(10, 32), "head.bias": torch.ones(10)}
    save_file(tensors, tmp_path / "weights.safetensors")
    assert torch.equal(load(tmp_path / "weights.safetensors")(IMAGES).patches, tokens())


def test_metas_own_names_are_read_as_timm_reads_them(tmp_path: Path) -> None:
    ours = drawn(seed=5)
    theirs = {name.replace("reg_token", "register_tokens"): value for name, value in ours.items()}
    theirs["pos_embed"] = torch.cat([torch.full((1, 1, 32), 0.5), ours["pos_embed"]], dim=1)
    theirs["cls_token"] = ours["cls_token"] - 0.5
    theirs["mask_token"] = torch.zeros(1, 32)
    torch.save(theirs, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    found = load(tmp_path / "dinov2_vits14_reg4_pretrain.pth")(IMAGES).patches
    torch.testing.assert_close(found, tokens(seed=5), atol=1e-5, rtol=1e-5)


def test_metas_own_table_of_another_size_is_not_resampled_in_silence(tmp_path: Path) -> None:
    theirs = drawn() | {"mask_token": torch.zeros(1, 32), "pos_embed": torch.ones(1, 1 + 25, 32)}
    theirs["register_tokens"] = theirs.pop("reg_token")
    torch.save(theirs, tmp_path / "other.pth")
    with pytest.raises(CheckpointError) as error:
        load(tmp_path / "other.pth")
    assert str(error.value) == (
        f"{tmp_path / 'other.pth'}: has a table of positions 'pos_embed' of shape [1, 26, 32] where the model has "
        "[1, 4, 32]; take a network whose table has that size"
    )


def test_a_vit_loads_into_its_naflex_form_only_with_a_table_of_its_size(tmp_path: Path) -> None:
    model, shape = "vit_so400m_patch16_siglip_256.v2_webli", (*SHAPE[:3], ("img_size", 32), ("mlp_ratio", 4.0))
    save_file(drawn(model=model, shape=shape), tmp_path / "vit.safetensors")
    images = torch.rand(1, 3, 32, 32)
    for side in (2, 4):
        naflex = (*SHAPE[:3], ("pos_embed_grid_size", (side, side)))
        if side == 2:
            found = load(tmp_path / "vit.safetensors", model="naflexvit_base_patch16_siglip.v2_webli", shape=naflex)
            plain = load(tmp_path / "vit.safetensors", model=model, shape=shape)
            torch.testing.assert_close(found(images).patches, plain(images).patches, atol=1e-5, rtol=1e-5)
            continue
        with pytest.raises(CheckpointError) as error:
            load(tmp_path / "vit.safetensors", model="naflexvit_base_patch16_siglip.v2_webli", shape=naflex)
        assert str(error.value) == (
            f"{tmp_path / 'vit.safetensors'}: has a table of positions 'pos_embed' of shape [1, 4, 32] where the model "
            "has [1, 4, 4, 32]; take a network whose table has that size"
        )


# --- transformers -------------------------------------------------------------------------------------------------


def folder_of(kind: str, config: Any, path: Path, **extra: Tensor) -> dict[str, Tensor]:
    """A folder as a download leaves it: config.json, preprocessor_config.json, model.safetensors."""
    network: Any = TransformersConfig(model=kind, settings=config, random_init=True, seed=7).backbone()
    network.network.save_pretrained(path)
    tensors = dict(network.network.state_dict())
    save_file(tensors | extra, path / "model.safetensors", metadata={"format": "pt"})
    (path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}')
    return tensors


def test_a_local_folder_gives_config_colours_and_weights(tmp_path: Path) -> None:
    folder_of("dinov2", CONFIG, tmp_path)
    config = TransformersConfig(model=str(tmp_path))
    assert (config.features, config.token_pixels) == (32, 14)
    teacher = config.build()
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    assert (teacher.spec.mean, teacher.spec.std) == (mean, std)
    drawn = TransformersConfig(model="dinov2", settings=CONFIG, random_init=True, seed=7, mean=mean, std=std)
    assert torch.equal(teacher(IMAGES).patches, drawn.build()(IMAGES).patches)


def test_a_folder_of_transformers_loads_into_timm(tmp_path: Path) -> None:
    folder_of("dinov2_with_registers", CONFIG, tmp_path)
    ours = load(tmp_path)
    theirs = TransformersConfig(model=str(tmp_path), mean=IMAGENET_MEAN, std=IMAGENET_STD).build()
    torch.testing.assert_close(ours(IMAGES).patches, theirs(IMAGES).patches, atol=1e-5, rtol=1e-5)


def test_names_of_transformers_4_are_known(tmp_path: Path) -> None:
    now = folder_of("dinov2_with_registers", CONFIG, tmp_path)
    old = {
        name.replace(".attention.o_proj.", ".attention.output.dense.")
        .replace(".attention.q_proj.", ".attention.attention.query.")
        .replace(".attention.k_proj.", ".attention.attention.key.")
        .replace(".attention.v_proj.", ".attention.attention.value."): value
        for name, value in now.items()
    }
    assert old.keys() != now.keys()
    wanted = drawn().keys()
    new, same = (from_transformers(x, wanted=wanted, where="x") for x in (old, now))
    assert new.keys() == same.keys() == wanted
    assert all(torch.equal(new[name], same[name]) for name in new)
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    teacher = TransformersConfig(model=str(tmp_path)).build()
    save_file(now, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(teacher(IMAGES).patches, TransformersConfig(model=str(tmp_path)).build()(IMAGES).patches)


def test_a_model_of_pictures_and_text_gives_its_picture_tower(tmp_path: Path) -> None:
    vision = {**dict(CONFIG), "intermediate_size": 128}
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8}
    config = transformers.SiglipConfig(vision_config=vision, text_config=text)
    whole: Any = transformers.SiglipModel(config)
    whole.save_pretrained(tmp_path)
    teacher = TransformersConfig(model=str(tmp_path)).build()
    pixels = (IMAGES - teacher.mean) / teacher.std
    with torch.no_grad():
        expected = whole.eval().vision_model(pixels).last_hidden_state
    torch.testing.assert_close(teacher(IMAGES).patches, expected, atol=1e-5, rtol=1e-5)
    shape = (*SHAPE, ("patch_size", 14), ("mlp_ratio", 4))
    in_timm = load(tmp_path, model="vit_so400m_patch16_siglip_256.v2_webli", shape=shape)
    torch.testing.assert_close(in_timm(IMAGES).patches, expected, atol=1e-5, rtol=1e-5)


def test_a_masked_autoencoder_gives_its_encoder(tmp_path: Path) -> None:
    decoder = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    sizes: dict[str, Any] = {f"decoder_{name}": value for name, value in decoder.items()}
    config = transformers.ViTMAEConfig(**dict(CONFIG), **sizes, intermediate_size=64)
    whole: Any = transformers.ViTMAEForPreTraining(config)
    whole.save_pretrained(tmp_path)
    teacher = TransformersConfig(model=str(tmp_path)).build()
    assert teacher(IMAGES).patches.shape == (1, 4, 32)
    found = teacher.backbone.state_dict()["network.embeddings.cls_token"]
    assert torch.equal(found, whole.vit.embeddings.cls_token)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("layernorm.bias"), "{path}: lacks tensor 'layernorm.bias'"),
        (lambda x: x.update(more=torch.ones(1)), "{path}: has tensor 'more' that the model has not"),
        (
            lambda x: x.update({"layernorm.bias": torch.ones(3)}),
            "{path}: has 'layernorm.bias' of shape [3] where the model has [32]",
        ),
        (
            lambda x: x["layernorm.bias"].fill_(torch.inf),
            "{path}: holds values that are not finite in tensor 'layernorm.bias'",
        ),
    ],
)
def test_loading_into_transformers_is_strict_both_ways(change: Any, message: str, tmp_path: Path) -> None:
    tensors = {name: value.clone() for name, value in folder_of("dinov2", CONFIG, tmp_path).items()}
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as error:
        TransformersConfig(model=str(tmp_path)).build()
    assert str(error.value) == message.format(path=tmp_path)


def test_biases_that_have_no_place_in_timm_are_refused_unless_they_are_zero() -> None:
    shape = (("embed_dim", 32), ("depth", 1), ("num_heads", 2))
    config = (*CONFIG[:3], ("patch_size", 16), ("intermediate_size", 128), ("num_register_tokens", 4))
    plain, twin = (
        drawn(model=f"vit_small_patch16_dinov3{tail}.lvd1689m", shape=shape).keys() for tail in ("", "_qkvb")
    )
    network: Any = TransformersConfig(model="dinov3_vit", settings=config, random_init=True).backbone()
    tensors = dict(network.network.state_dict())
    assert from_transformers(tensors, wanted=plain, where="x").keys() == plain
    tensors["model.layer.0.attention.q_proj.bias"] = torch.ones(32)
    assert from_transformers(tensors, wanted=twin, where="x").keys() == twin
    with pytest.raises(CheckpointError) as error:
        from_transformers(tensors, wanted=plain, where="x")
    assert str(error.value) == (
        "x: has a bias 'blocks.0.attn.q_bias' that is not zero, for which the network has no place; "
        "take its twin whose name ends in _qkvb"
    )


# --- the hub ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: DINOv2Config(size="vits14"),
            "teacher/dinov2: timm/vit_small_patch14_dinov2.lvd142m is no local file or folder, and the hub did not "
            "give it (HF_HUB_OFFLINE is set, and it is not in the cache); check the name and the network, or download "
            "it elsewhere and pass the file or folder",
        ),
        (
            lambda: TransformersConfig(model="facebook/dinov2-nothing"),
            "teacher/transformers: facebook/dinov2-nothing is no local file or folder, and the hub did not "
            "give it (HF_HUB_OFFLINE is set, and it is not in the cache); check the name and the network, or download "
            "it elsewhere and pass the file or folder",
        ),
        (
            lambda: DINOv2Config(weights="./nothing.safetensors"),
            "teacher/dinov2: ./nothing.safetensors: no such file or folder, and no hub repository 'owner/name'",
        ),
        (
            lambda: TimmConfig(model="vit_huge_patch14_gap_224.in1k_ijepa", settings=SHAPE),
            "teacher/timm: timm publishes no weights of 'vit_huge_patch14_gap_224.in1k_ijepa' on the hub; "
            "give 'weights', or random_init=True",
        ),
        (
            lambda: TransformersConfig(model="./nothing"),
            "teacher/transformers: model: ./nothing: no such folder, no hub repository 'owner/name', and no type of "
            "model",
        ),
    ],
)
def test_weights_that_are_not_there_are_told(make: Any, message: str) -> None:
    with pytest.raises(FileNotFoundError) as error:
        make().build()
    assert str(error.value) == message


def test_a_gated_repository_names_the_path_without_a_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    def gated(repository: str, name: str) -> str:
        response: Any = SimpleNamespace(headers={}, request=None)  # the HTTP client of the hub changes its name
        raise GatedRepoError(f"Cannot access gated repo {repository}", response=response)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", gated)
    with pytest.raises(FileNotFoundError) as error:
        DINOv3Config(size="vits16", library="transformers").build()
    assert str(error.value) == (
        "teacher/dinov3: facebook/dinov3-vits16-pretrain-lvd1689m is gated; accept its terms on the hub, then "
        "`hf auth login`, or take library='timm', which has no gate"
    )


def test_published_weights_come_from_the_hub_and_their_licence_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(drawn(seed=8), tmp_path / "model.safetensors")
    asked = []

    def given(repository: str, name: str) -> str:
        asked.append((repository, name))
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", given)
    for _ in range(2):
        teacher = TimmConfig(model=MODEL, settings=SHAPE).build()
        assert torch.equal(teacher(IMAGES).patches, tokens(seed=8))
    assert asked == 2 * [(f"timm/{MODEL}", "model.safetensors")]
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == f"{MODEL}: these weights are under the licence 'apache-2.0'\n"


def test_a_repository_of_parts_or_of_pickles_is_read_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = drawn(seed=9)
    asked = []

    def given(repository: str, name: str) -> str:
        asked.append(name)
        if (tmp_path / name).is_file():
            return str(tmp_path / name)
        response: Any = SimpleNamespace(headers={}, request=None)
        raise RemoteEntryNotFoundError(f"Entry Not Found: {name}.", response=response)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", given)
    with pytest.raises(FileNotFoundError) as error:
        TimmConfig(model=MODEL, settings=SHAPE).build()
    assert str(error.value) == (
        f"teacher/timm: timm/{MODEL} is no local file or folder, and the hub did not give it (Entry Not Found: "
        "pytorch_model.bin); check the name and the network, or download it elsewhere and pass the file or folder"
    )
    assert asked == ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert torch.equal(TimmConfig(model=MODEL, settings=SHAPE).build()(IMAGES).patches, tokens(seed=9))
    save_file(tensors, tmp_path / "part.safetensors")
    index = json.dumps({"weight_map": dict.fromkeys(tensors, "part.safetensors")})
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert torch.equal(TimmConfig(model=MODEL, settings=SHAPE).build()(IMAGES).patches, tokens(seed=9))
    assert asked[-1] == "part.safetensors"


def test_random_weights_need_no_licence(capsys: pytest.CaptureFixture[str]) -> None:
    tokens()
    assert capsys.readouterr().err == ""


# --- names and settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: TimmConfig(model="vit_smal_patch16_dinov3", random_init=True),
            "teacher/timm: model: timm {timm} has no 'vit_smal_patch16_dinov3'; did you mean "
            "'vit_small_patch16_dinov3'?",
        ),
        (
            lambda: TimmConfig(model="zzzz", random_init=True),
            "teacher/timm: model: timm {timm} has no 'zzzz'; timm.list_models() names them",
        ),
        (
            lambda: TimmConfig(model="vit_small_patch16_dinov3.foo", random_init=True),
            "teacher/timm: model: timm does not build 'vit_small_patch16_dinov3.foo' (Invalid pretrained tag (foo) for "
            "vit_small_patch16_dinov3.)",
        ),
        (
            lambda: TimmConfig(model="vit_small_patch16_dinov3", settings=(("foo", 1),), random_init=True),
            "teacher/timm: settings: timm does not build 'vit_small_patch16_dinov3' (Eva.__init__() got an unexpected "
            "keyword argument 'foo')",
        ),
        (
            lambda: TimmConfig(model="hiera_tiny_224", random_init=True),
            "teacher/timm: model: 'hiera_tiny_224' lays its features out in a way that is not known; take another",
        ),
        (
            lambda: TimmConfig(model="vit_small_patch16_dinov3", position="bicubic", random_init=True),
            "teacher/timm: position: must be None; this network has no learned table of positions",
        ),
        (
            lambda: TimmConfig(model="resnet18", position="bicubic", random_init=True),
            "teacher/timm: position: must be None; this network has no learned table of positions",
        ),
        (
            lambda: TransformersConfig(model="dinov3_vit", position="bicubic", random_init=True),
            "teacher/transformers: position: must be None; this network has no learned table that can be resampled",
        ),
        (
            lambda: TransformersConfig(model="bert", random_init=True),
            "teacher/transformers: model: how 'bert' lays out its tokens is not known; takes the types "
            "aimv2_vision_model, clip_vision_model, dinov2, dinov2_with_registers, dinov3_convnext, dinov3_vit, ijepa, "
            "radio, siglip2_vision_model, siglip_vision_model, tipsv2_vision_model, vit, vit_mae",
        ),
        (
            lambda: TransformersConfig(model="dinov2", random_init=True, settings=(("hiddensize", 1),)),
            "teacher/transformers: settings: transformers makes no config of 'dinov2' (it has no 'hiddensize'; did you "
            "mean 'hidden_size'?)",
        ),
        (
            lambda: TransformersConfig(model="dinov2", settings=CONFIG),
            "teacher/transformers: weights: 'dinov2' is a type of model; give a hub id, a file or a folder, or "
            "random_init=True",
        ),
    ],
)
def test_names_and_settings_that_fit_nothing_are_told(make: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        make().build()
    assert str(error.value) == message.replace("{timm}", version("timm"))


# --- libraries that do not import ---------------------------------------------------------------------------------

BUILD = "from latelier.blocks import DINOv2Config; DINOv2Config(size='vits14', random_init=True).build()"


def _last_line(code: str, path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(path)!r}); {code}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


def test_a_torchvision_of_another_torch_is_told_with_a_pair_that_works(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    broken = "raise RuntimeError('operator torchvision::nms does not exist')\n"
    (tmp_path / "torchvision" / "__init__.py").write_text(broken)
    (tmp_path / "torchvision-0.15.2.dist-info").mkdir()
    (tmp_path / "torchvision-0.15.2.dist-info" / "METADATA").write_text("Name: torchvision\nVersion: 0.15.2\n")
    assert _last_line(BUILD, tmp_path) == (
        f"ImportError: teacher/dinov2: timm {version('timm')} does not import with torch {version('torch')} and "
        "torchvision 0.15.2 (operator torchvision::nms does not exist); these two must fit each other, as torch 2.15.0 "
        "and torchvision 0.29.2 do: pip install 'latelier[teachers]' anew, both from one index"
    )


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_a_library_that_is_not_installed_is_told_with_the_extra(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from latelier.blocks import libraries

    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(libraries, "installed", lambda name: None)
    with pytest.raises(ImportError) as error:
        DINOv2Config(size="vits14", library=library, random_init=True).build()
    assert str(error.value) == f"teacher/dinov2: needs {library}; pip install 'latelier[teachers]'"


def test_families_know_their_width_without_either_library() -> None:
    code = (
        "from latelier.blocks import parts, TeacherConfig, PublishedConfig\n"
        "families = [c() for c in parts(TeacherConfig) if issubclass(c, PublishedConfig)]\n"
        "found = {c.kind: (c.features, c.token_pixels) for c in families}\n"
        "assert len(found) == 10, found\n"
        "import sys; assert not {'timm', 'transformers', 'torchvision'} & sys.modules.keys(); sys.exit(7)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 7, done.stderr
