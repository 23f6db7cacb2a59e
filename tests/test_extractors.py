"""What describes images for distances: any teacher offline, Inception through torch-fidelity's documented interface."""

import re
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latelier.blocks import HOGConfig, TinyViTConfig
from latelier.evaluation import DINOv2ExtractorConfig, InceptionConfig, TeacherExtractorConfig

NAME = "weights-inception-2015-12-05-6726825d.pth"


def images(side: int = 16) -> torch.Tensor:
    return 2 * torch.rand(2, 3, side, side) - 1


def test_a_teacher_gives_its_class_token_its_mean_or_its_patches() -> None:
    teacher = TinyViTConfig(width=8, depth=1, head_width=8, patch=8)
    x = images()
    out = teacher.build()((x + 1) / 2)
    expected = {"cls": out.cls, "mean": out.patches.mean(1), "patches": out.patches.reshape(8, 8)}
    for read, rows in expected.items():
        found = TeacherExtractorConfig(teacher=teacher, read=read).build()(x)
        assert list(found) == ["features"]
        torch.testing.assert_close(found["features"], rows)


def test_hog_is_an_extractor_and_names_its_space() -> None:
    config = TeacherExtractorConfig(teacher=HOGConfig(patch=8), read="mean")
    assert config.build()(images())["features"].shape == (2, HOGConfig(patch=8).features)
    assert TeacherExtractorConfig(teacher=HOGConfig()).column("frechet") == "frechet_hog"
    assert TeacherExtractorConfig(teacher=HOGConfig(), read="mean").column("kid") == "kid_hog_mean"
    assert (InceptionConfig().column("frechet"), InceptionConfig().column("sfrechet")) == ("fid", "sfid")
    assert DINOv2ExtractorConfig().column("frechet") == "fdd"


def test_a_teacher_without_a_class_token_says_what_to_read() -> None:
    config = TeacherExtractorConfig(teacher=TinyViTConfig(width=8, depth=1, head_width=8, cls="none"))
    message = "extractor/teacher: read: the teacher has no class token; take 'mean' or 'patches'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        config.build()(images())


def test_pillow_resizes_bytes_before_the_teacher_of_fdd() -> None:
    teacher = TinyViTConfig(width=8, depth=1, head_width=8, patch=8)
    x = images(20)
    array = ((x[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    small = PIL.Image.fromarray(array).resize((16, 16), PIL.Image.Resampling.BICUBIC)
    unit = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float() / 255
    found = TeacherExtractorConfig(teacher=teacher, resize=16).build()(x[:1])["features"]
    torch.testing.assert_close(found, teacher.build()(unit).cls)


def test_fdd_reads_dinov2_large_without_registers_at_224(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TeacherExtractorConfig] = []
    small = TeacherExtractorConfig(teacher=HOGConfig(), read="mean").build()
    monkeypatch.setattr(TeacherExtractorConfig, "build", lambda self: seen.append(self) or small)
    for resize in ("pil", "torch"):
        DINOv2ExtractorConfig(resize=resize).build()
    pil, floats = seen
    assert (pil.read, pil.resize, floats.resize) == ("cls", 224, None)
    assert pil.teacher == floats.teacher
    assert (pil.teacher.size, pil.teacher.resize.height, pil.teacher.resize.mode) == ("vitl14", 224, "bicubic")


# --- torch-fidelity, in its place a stand-in ------------------------------------------------------------------------


class StandIn(nn.Module):
    """The interface that torch-fidelity 0.4 documents, with two convolutions; it resizes by nearest pixels."""

    made: ClassVar[list[tuple[str, list[str], str | None]]] = []

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None) -> None:
        super().__init__()
        StandIn.made.append((name, features_list, feature_extractor_weights_path))
        self.Conv2d_1a_3x3 = nn.Conv2d(3, 4, 3, stride=32)
        self.Mixed_6d = nn.Module()
        self.Mixed_6d.branch1x1 = nn.Conv2d(4, 9, 1)
        nn.init.constant_(self.Conv2d_1a_3x3.weight, 0.1)
        nn.init.zeros_(self.Conv2d_1a_3x3.bias)
        nn.init.ones_(self.Mixed_6d.branch1x1.weight)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert x.dtype == torch.uint8
        seen = (F.interpolate(x.float(), (299, 299)) - 128) / 128
        y = self.Conv2d_1a_3x3(seen)
        z = self.Mixed_6d.branch1x1(y)
        return y.mean((2, 3)), z.mean((2, 3))


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    module: Any = types.ModuleType("torch_fidelity")
    module.FeatureExtractorInceptionV3 = StandIn
    monkeypatch.setitem(sys.modules, "torch_fidelity", module)
    monkeypatch.setenv("LATELIER_WEIGHTS", str(tmp_path))
    (tmp_path / NAME).write_bytes(b"weights")
    monkeypatch.setattr(StandIn, "made", [])
    return tmp_path


def test_inception_is_asked_for_features_and_logits_with_a_local_file(fidelity: Path) -> None:
    extractor = InceptionConfig().build()
    assert StandIn.made == [("inception-v3-compat", ["2048", "logits_unbiased"], str(fidelity / NAME))]
    assert set(extractor.provenance) == {"weights"}
    x = images(299)
    found = extractor(x)
    assert {k: v.shape for k, v in found.items()} == {"features": (2, 4), "logits": (2, 9), "spatial": (2, 7 * 10 * 10)}
    network: Any = extractor.network
    pixels = (x * 127.5 + 128).floor().clamp(0, 255).to(torch.uint8)
    torch.testing.assert_close(found["features"], network(pixels)[0])


def test_pytorch_fids_resize_takes_the_place_of_tensorflows(fidelity: Path) -> None:
    x = images(40)
    network: Any = StandIn("x", [])
    expected = network.Conv2d_1a_3x3(F.interpolate(x, (299, 299), mode="bilinear", align_corners=False)).mean((2, 3))
    torch.testing.assert_close(InceptionConfig(resize="torch").build()(x)["features"], expected)
    other = InceptionConfig(resize="tensorflow").build()(x)["features"]
    assert (other - expected).abs().max() > 1e-4
    assert InceptionConfig(resize="torch").id != InceptionConfig(resize="tensorflow").id


def test_without_torch_fidelity_or_its_weights_the_error_says_what_to_do(
    fidelity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    message = "extractor/inception: needs torch-fidelity; pip install 'latelier[fidelity]', or take 'extractor/teacher'"
    with pytest.raises(ImportError, match=f"^{re.escape(message)}$"):
        InceptionConfig().build()
    (fidelity / NAME).unlink()
    message = (
        f"extractor/inception: needs the file {NAME} (LATELIER_WEIGHTS={fidelity} has no such file); download "
        f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{NAME} and set LATELIER_WEIGHTS to its "
        "folder, or name the file in 'weights'"
    )
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
        InceptionConfig().build()
