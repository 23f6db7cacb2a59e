"""Models on disk: what is saved comes back bit for bit, what is wrong is named, and nothing is half-written."""

import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import latelier
from latelier.blocks import (
    DiTBlockConfig,
    FamilyConfig,
    NoNormConfig,
    PartError,
    PointPosteriorConfig,
    SkipDecoderConfig,
    StackEncoderConfig,
    VPScheduleConfig,
    WhiteningConfig,
    encode,
    part,
)
from latelier.families import CheckpointError, DiffAEConfig, InferenceConfig, SemDisDiffAE, files

DECODER = SkipDecoderConfig(start=1, middle=1, end=1, rank=2)
TINY = DiffAEConfig(patch=4, width=8, latent=3, encoder=StackEncoderConfig(depth=1), decoder=DECODER)
OTHER = DiffAEConfig(
    patch=2,
    width=8,
    latent=3,
    latent_patch=2,
    encoder=StackEncoderConfig(block=DiTBlockConfig(head_width=4), depth=1),
    decoder=DECODER,
    posterior=PointPosteriorConfig(mean_norm="channel_wise"),
    latent_norm=WhiteningConfig(eps=0.5),
)
BARE = DiffAEConfig(patch=4, width=8, latent=3, encoder=None, decoder=DECODER, latent_norm=NoNormConfig())


def awake(config: DiffAEConfig = TINY) -> SemDisDiffAE:
    model = config.build()
    with torch.no_grad():
        for value in (*model.parameters(), *model.latent_statistics.values()):
            value.add_(0.1 * torch.rand_like(value))
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model."""
    return awake().save_pretrained(tmp_path / "model")


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    """Change the tensors of a saved model, and return their path."""
    path = folder / "model.safetensors"
    tensors = {name: value.clone() for name, value in load_file(path).items()}  # the file is mapped
    change(tensors)
    save_file(tensors, path)
    return path


def refusal(function: Any, *args: Any, error: type[Exception] = CheckpointError) -> str:
    with pytest.raises(error) as caught:
        function(*args)
    assert type(caught.value) is error
    return str(caught.value)


def load(path: str | Path) -> SemDisDiffAE:
    return SemDisDiffAE.from_pretrained(path)


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    mine, yours = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == yours.keys()
    for name, value in mine.items():
        assert value.dtype == yours[name].dtype, name
        assert torch.equal(value, yours[name]), name


# --- there and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [TINY, OTHER, BARE], ids=["plain", "swapped parts", "decoder only"])
def test_a_saved_model_comes_back_bit_for_bit(tmp_path: Path, config: DiffAEConfig) -> None:
    model = awake(config)
    again = load(model.save_pretrained(tmp_path))
    assert type(again) is SemDisDiffAE
    assert again.config == config
    assert_same(again, model)
    assert not again.training
    assert all(p.requires_grad for p in again.parameters())
    assert not any(t.is_meta for t in again.state_dict().values())
    latents, decoding = torch.randn(1, model.latent_channels, 2, 3), InferenceConfig(seed=1, num_steps=2)
    assert torch.equal(again.decode(latents, 8, 12, decoding), model.decode(latents, 8, 12, decoding))
    if config.encoder is not None:
        images = torch.rand(1, 3, 8, 12)
        assert torch.equal(again.encode(images), model.encode(images))


def test_any_family_is_loaded_and_saved_by_the_package(tmp_path: Path) -> None:
    model = awake()
    again = latelier.load(latelier.save(model, tmp_path))
    assert type(again) is SemDisDiffAE
    assert_same(again, model)


def test_a_folder_holds_the_config_as_json_and_the_header_repeats_it(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert config == encode(TINY)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["latelier.config"]) == config


def test_a_lone_file_of_any_name_loads(folder: Path, tmp_path: Path) -> None:
    lone = tmp_path / "elsewhere" / "epoch-7.safetensors"
    lone.parent.mkdir()
    shutil.copy(folder / "model.safetensors", lone)
    assert_same(load(lone), load(folder))
    assert_same(load(str(folder / "model.safetensors")), load(folder))


def test_what_travels_with_the_weights_is_in_the_header(tmp_path: Path) -> None:
    awake().save_pretrained(tmp_path, header={"licence": "Apache-2.0", "steps": 7, "teacher": {"kind": "teacher/hog"}})
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        header = file.metadata()
    assert header["licence"] == "Apache-2.0"
    assert json.loads(header["steps"]) == 7
    assert json.loads(header["teacher"]) == {"kind": "teacher/hog"}


def test_a_bfloat16_model_is_saved_as_such_and_loads_in_either_precision(tmp_path: Path) -> None:
    model = awake().bfloat16()
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["decoder.out_proj.weight"].dtype == torch.bfloat16
    assert stored["latent_norm_running_var"].dtype == torch.float32
    assert_same(SemDisDiffAE.from_pretrained(tmp_path, dtype=torch.bfloat16), model)
    assert_same(load(tmp_path), model.float())


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_a_dtype_that_no_model_can_be_stored_in_is_refused(folder: Path, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError) as caught:
        latelier.load(folder, dtype=dtype)
    assert str(caught.value) == (
        f"dtype: takes torch.float32, torch.bfloat16, torch.float16 or torch.float64, got {dtype}"
    )


def test_saving_over_a_model_replaces_it(folder: Path) -> None:
    loaded, other = load(folder), awake(OTHER)
    before = loaded.encode(torch.ones(1, 3, 4, 4))
    other.save_pretrained(folder)
    assert_same(load(folder), other)
    assert torch.equal(loaded.encode(torch.ones(1, 3, 4, 4)), before)


def test_a_loaded_model_does_not_hang_on_its_file(folder: Path) -> None:
    loaded = load(folder)
    before = loaded.encode(torch.ones(1, 3, 4, 4))
    path = folder / "model.safetensors"
    path.write_bytes(bytes(path.stat().st_size // 2))  # in place, as `cp` does
    assert torch.equal(loaded.encode(torch.ones(1, 3, 4, 4)), before)


# --- what does not load -------------------------------------------------------------------------------------------


def test_a_missing_tensor_is_named(folder: Path) -> None:
    path = rewrite(folder, lambda tensors: tensors.pop("decoder.fuse_in.bias"))
    assert refusal(load, folder) == f"{path}: lacks tensor 'decoder.fuse_in.bias'"


def test_an_extra_tensor_is_named(folder: Path) -> None:
    path = rewrite(folder, lambda tensors: tensors.update(surplus=torch.zeros(1), more=torch.zeros(1)))
    assert refusal(load, folder) == f"{path}: has tensors 'more', 'surplus' that the model has not"


def test_many_missing_tensors_are_counted(folder: Path) -> None:
    def drop(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("decoder.end_blocks")]:
            tensors.pop(name)

    names = ", ".join(f"'decoder.end_blocks.0.{n}'" for n in ("dwconv.bias", "dwconv.weight", "grn.beta", "grn.gamma"))
    message = f"{rewrite(folder, drop)}: lacks tensors {names}, 'decoder.end_blocks.0.pwconv1.bias' and 3 more"
    assert refusal(load, folder) == message


def test_missing_extra_and_misshapen_tensors_are_told_together(folder: Path) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        tensors["surplus"] = tensors.pop("decoder.fuse_in.bias")
        tensors["latent_norm_running_var"] = torch.ones(4)

    path = rewrite(folder, rename)
    assert refusal(load, folder) == (
        f"{path}: lacks tensor 'decoder.fuse_in.bias'; has tensor 'surplus' that the model has not; "
        "has 'latent_norm_running_var' of shape [4] where the model has [3]"
    )


def test_the_weights_of_another_size_are_not_listed_to_the_last(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"width": 4}))
    message = refusal(load, folder)
    assert message.startswith(f"{folder / 'model.safetensors'}: has 'encoder.")
    assert message.count("where the model has") == 3
    assert message.endswith(" more")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused(folder: Path, value: float) -> None:
    path = rewrite(folder, lambda tensors: tensors["decoder.fuse_in.bias"][:1].fill_(value))
    assert refusal(load, folder) == f"{path}: holds values that are not finite in tensor 'decoder.fuse_in.bias'"


def test_integers_are_no_weights(folder: Path) -> None:
    path = rewrite(folder, lambda tensors: tensors.update({"decoder.fuse_in.bias": torch.ones(8, dtype=torch.int8)}))
    assert (
        refusal(load, folder) == f"{path}: has 'decoder.fuse_in.bias' of torch.int8 where the model has torch.float32"
    )


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_no_whole_file(folder: Path, share: float) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    message = refusal(load, folder)
    assert message.startswith(f"{path}: is no whole safetensors file (")
    assert message.endswith("); copy or download it again")


def test_a_pickle_is_not_opened(folder: Path) -> None:
    path = folder / "model.safetensors"
    torch.save({"decoder.fuse_in.bias": torch.zeros(8)}, path)
    assert refusal(load, folder).startswith(f"{path}: is no whole safetensors file (")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"kind": ', "is no JSON (Expecting value: line 1 column 10 (char 9))"),
        ("", "is no JSON (Expecting value: line 1 column 1 (char 0))"),
        (b"\xff{}", "is no JSON ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte)"),
        ("[1, 2]", "holds list; a config is a JSON object"),
    ],
)
def test_a_broken_config_is_named(folder: Path, content: str | bytes, message: str) -> None:
    path = folder / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert refusal(load, folder) == f"{path}: {message}"


def test_a_broken_header_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    (folder / "config.json").unlink()
    save_file({"weight": torch.zeros(1)}, path, {"latelier.config": "{"})
    message = "is no JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"
    assert refusal(load, folder) == f"{path} (header): {message}"


def test_a_file_without_any_config_says_so(folder: Path) -> None:
    (folder / "config.json").unlink()
    path = rewrite(folder, lambda tensors: None)  # saved again, without a header
    assert refusal(load, folder) == f"{path}: has no config.json beside it and none in its header"


def test_errors_in_the_config_start_with_its_file(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["encoder"]["block"]["kind"] = "block/fcmd"
    path.write_text(json.dumps(config))
    message = "config.encoder.block: no part is named 'block/fcmd'; did you mean 'block/fcdm'?"
    assert refusal(load, folder, error=PartError) == f"{path}: {message}"


def test_a_config_of_another_slot_or_family_is_refused(folder: Path) -> None:
    @part("family/test_one_layer")
    class OneLayerConfig(FamilyConfig):
        @property
        def stride(self) -> int:
            return 1

        @property
        def latent_channels(self) -> int:
            return 1

        def build(self) -> nn.Module:
            return nn.Linear(1, 1)

    path = folder / "config.json"
    path.write_text('{"kind": "block/fcdm"}')
    message = f"{path}: config: takes a part of slot 'family', got 'block/fcdm'"
    assert refusal(load, folder, error=PartError) == message
    path.write_text('{"kind": "family/test_one_layer"}')
    message = f"{path}: holds 'family/test_one_layer', a Linear, not a SemDisDiffAE"
    assert refusal(load, folder, error=PartError) == message


def test_a_folder_without_weights_and_a_name_that_is_no_folder_say_so(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    message = f"{folder}: holds no model.safetensors; a model folder has config.json and model.safetensors"
    assert refusal(load, folder, error=FileNotFoundError) == message
    for name in (str(tmp_path / "nowhere"), "./no/such", "~/nowhere", "nowhere", "a/b/c"):
        message = f"{name}: no such file or folder, and no hub repository 'owner/name'"
        assert refusal(load, name, error=FileNotFoundError) == message


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_a_hub_repository_is_read_at_its_revision(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, name: str, *, revision: str | None, cache_dir: str | None) -> str:
        asked.append((repository, name, revision, cache_dir))
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    again = SemDisDiffAE.from_pretrained("owner/name", revision="v2", cache_dir="there")
    assert_same(again, load(folder))
    assert asked == [("owner/name", name, "v2", "there") for name in ("config.json", "model.safetensors")]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            GatedRepoError("403 Client Error", response=Mock()),
            "owner/name: is gated; accept its terms on the hub, then `hf auth login`",
        ),
        *(
            (
                error,
                f"owner/name: is no local folder, and the hub did not give it ({reason}); "
                "check the name and the network, or download it elsewhere and pass the folder",
            )
            for error, reason in (
                (
                    RepositoryNotFoundError("404 Client Error.\nRepository Not Found", response=Mock()),
                    "404 Client Error",
                ),
                (LocalEntryNotFoundError("Cannot find it in the cache."), "Cannot find it in the cache"),
                (OfflineModeIsEnabled("Offline mode is enabled."), "Offline mode is enabled"),
                (ConnectionError(), "ConnectionError"),
            )
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_hub_that_gives_nothing_is_explained(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", Mock(side_effect=error))
    assert refusal(load, "owner/name", error=FileNotFoundError) == message


def test_a_name_that_the_hub_does_not_allow_is_no_folder_either() -> None:
    message = refusal(load, "my models/run", error=FileNotFoundError)
    assert message.startswith("my models/run: is no local folder, and the hub did not give it (Repo id must use")


# --- nothing half-written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()], ids=["disk", "interrupt"])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    path = files.write_atomically(tmp_path / "file", "old")
    with monkeypatch.context() as patch:
        if call == "write":
            real = os.fdopen

            def failing(*args: Any, **kwargs: Any) -> Any:
                file = real(*args, **kwargs)
                wrapped = Mock(wraps=file)
                wrapped.__enter__ = Mock(return_value=wrapped)
                wrapped.__exit__ = Mock(side_effect=lambda *_: file.close())
                wrapped.write.side_effect = error
                return wrapped

            patch.setattr(os, "fdopen", failing)
        else:
            patch.setattr(os, call, Mock(side_effect=error))
        with pytest.raises(type(error)):
            files.write_atomically(path, "new and longer")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failed_save_leaves_the_old_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Mock(side_effect=OSError("No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            awake(OTHER).save_pretrained(folder)
    assert_same(load(folder), before)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_written_files_are_whole_readable_by_others_and_in_new_folders(tmp_path: Path) -> None:
    path = files.write_atomically(tmp_path / "a" / "b" / "file", "grün\n")
    assert path.read_bytes() == "grün\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert files.write_atomically(path, b"\x00").read_bytes() == b"\x00"


def test_a_refused_checkpoint_changes_nothing_in_the_model() -> None:
    model = awake()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wrong = {name: value + 1 for name, value in before.items()} | {"surplus": torch.zeros(1)}
    assert refusal(lambda: files.assign(model, wrong, where="here")) == (
        "here: has tensor 'surplus' that the model has not"
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_config_that_the_weights_were_not_written_with_is_refused(tmp_path: Path) -> None:
    """As a kill between the two files leaves it, when another model is saved over a first."""
    awake().save_pretrained(tmp_path)
    other = replace(TINY, schedule=VPScheduleConfig(logsnr_max=8.0))
    (tmp_path / "config.json").write_text(json.dumps(encode(other)))
    with pytest.raises(CheckpointError) as caught:
        SemDisDiffAE.from_pretrained(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'config.json'}: describes another model than the header of model.safetensors does; "
        "one of the two was replaced: save the model again"
    )
