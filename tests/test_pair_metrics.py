"""MS-SSIM, LPIPS and DISTS with weights from local files, and never from the network."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from latelier.blocks import CheckpointError
from latelier.evaluation import DISTSConfig, LPIPSConfig, MSSSIMConfig, PairMetricConfig, ReconstructionConfig

CPU = torch.device("cpu")
ALEXNET, VGG16 = "alexnet-owt-7be5be79.pth", "vgg16-397923af.pth"


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random weights of AlexNet's and VGG-16's convolutions, under torchvision's names."""
    models = pytest.importorskip("torchvision.models")
    folder = tmp_path_factory.mktemp("weights")
    for name, make in ((ALEXNET, models.alexnet), (VGG16, models.vgg16)):
        with torch.device("meta"):
            shapes = {k: v.shape for k, v in make(weights=None).state_dict().items() if k.startswith("features")}
        generator = torch.Generator().manual_seed(0)
        tensors = {
            k: torch.randn(shape, generator=generator) * (2 / max(shape[1:].numel(), 1)) ** 0.5
            if len(shape) > 1
            else 0.1 * torch.randn(shape, generator=generator)
            for k, shape in shapes.items()
        }
        torch.save(tensors | {"classifier.6.bias": torch.zeros(1000)}, folder / name)
    return folder


@pytest.fixture
def found(backbones: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATELIER_WEIGHTS", str(backbones))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", _no_download)
    monkeypatch.setattr(torch.hub, "download_url_to_file", _no_download)
    return backbones


def _no_download(*args: object, **kwargs: object) -> None:
    raise AssertionError("something wants to download")


def pair(side: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    original = 2 * torch.rand(2, 3, side, side) - 1
    return (original + 0.4 * torch.randn(2, 3, side, side)).clamp(-1, 1), original


def slices(path: Path, cuts: tuple[int, ...], net: str, x: torch.Tensor) -> list[torch.Tensor]:
    """What a plain torchvision backbone says after the layers of ``cuts``."""
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        features = getattr(models, net)(weights=None).features
    tensors = torch.load(path, weights_only=True)
    state = {k.removeprefix("features."): v for k, v in tensors.items() if k.startswith("features")}
    features.load_state_dict(state, assign=True)
    out = []
    for index, layer in enumerate(features):
        x = layer(x)
        if index in cuts:
            out.append(x.clone())  # the next layer may work in place
    return out


@torch.no_grad()
def test_lpips_equals_its_formula_with_torchvisions_backbone(found: Path) -> None:
    import torchmetrics.functional.image.lpips as library

    measure = LPIPSConfig(net="alex").build(CPU)
    reconstruction, original = pair()
    heads = torch.load(
        Path(library.__file__).parent / "lpips_models" / "alex.pth", map_location="cpu", weights_only=True
    )
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    ours, theirs = (
        slices(found / ALEXNET, (1, 4, 7, 9, 11), "alexnet", (x - shift) / scale) for x in (reconstruction, original)
    )
    expected = torch.zeros(2)
    for level, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        difference = (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square()
        expected += F.conv2d(difference, heads[f"lin{level}.model.1.weight"]).mean(dim=(1, 2, 3))
    torch.testing.assert_close(measure(reconstruction, original).float(), expected, rtol=1e-4, atol=1e-5)
    assert measure(original, original).abs().max() == 0


@torch.no_grad()
def test_dists_equals_torchmetrics_with_the_same_backbone(found: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchmetrics.functional.image.dists as library

    def local(weights: object) -> Any:
        models = pytest.importorskip("torchvision.models")
        with torch.device("meta"):
            network = models.vgg16(weights=None)
        tensors = torch.load(found / VGG16, weights_only=True)
        state = {k.removeprefix("features."): v for k, v in tensors.items() if k.startswith("features")}
        network.features.load_state_dict(state, assign=True)
        return network

    reconstruction, original = pair()
    ours = DISTSConfig().build(CPU)(reconstruction, original)
    monkeypatch.setattr(library, "vgg16", local)
    expected = library.deep_image_structure_and_texture_similarity((reconstruction + 1) / 2, (original + 1) / 2)
    torch.testing.assert_close(ours.float(), expected, rtol=1e-5, atol=1e-6)
    assert (ours > 1e-3).all()


def test_ms_ssim_is_that_of_each_image() -> None:
    from torchmetrics.image import MultiScaleStructuralSimilarityIndexMeasure

    reconstruction, original = pair(176)
    found = MSSSIMConfig().build(CPU)(reconstruction, original)
    for one, a, b in zip(found, reconstruction, original, strict=True):
        metric = MultiScaleStructuralSimilarityIndexMeasure(data_range=2.0)
        assert one.item() == pytest.approx(metric(a[None], b[None]).item(), abs=1e-6)
    message = "ms_ssim: takes images of at least 161x161 pixels, got 64x64"
    with pytest.raises(ValueError, match=f"^{message}$"):
        MSSSIMConfig().build(CPU)(*pair(64))


@pytest.mark.parametrize(
    ("metric", "name", "url"),
    [
        (LPIPSConfig(net="alex"), ALEXNET, "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"),
        (LPIPSConfig(net="vgg"), VGG16, "https://download.pytorch.org/models/vgg16-397923af.pth"),
        (DISTSConfig(), VGG16, "https://download.pytorch.org/models/vgg16-397923af.pth"),
    ],
    ids=lambda x: x.column if isinstance(x, PairMetricConfig) else None,
)
def test_absent_weights_say_where_they_belong_and_where_they_are(
    metric: PairMetricConfig, name: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LATELIER_WEIGHTS", raising=False)
    for looked in ("LATELIER_WEIGHTS is not set", f"LATELIER_WEIGHTS={tmp_path} has no such file"):
        message = (
            f"{metric.column}: needs the file {name} ({looked}); download {url} and set LATELIER_WEIGHTS to its "
            "folder, or name the file in 'weights'"
        )
        with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
            metric.build(CPU)
        monkeypatch.setenv("LATELIER_WEIGHTS", str(tmp_path))


def test_a_file_that_is_named_must_be_there_and_fit(found: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent.pth"
    message = f"lpips_alex: weights: {absent}: no such file; it is {ALEXNET} of https://download.pytorch.org/models/"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message + ALEXNET)}$"):
        LPIPSConfig(net="alex", weights=str(absent)).build(CPU)
    other = found / VGG16
    message = f"{other}: 'features.0.weight' has the shape [64, 3, 3, 3], not [64, 3, 11, 11]; it is another backbone"
    torch.save({"features.0.weight": torch.zeros(1), "x": torch.zeros(1)}, tmp_path / "small.pth")
    with pytest.raises(CheckpointError, match=r"features\.0\.bias'; it is no file of this backbone from torchvision$"):
        LPIPSConfig(net="alex", weights=str(tmp_path / "small.pth")).build(CPU)
    alexnet = torch.load(found / ALEXNET, weights_only=True)
    vgg = torch.load(other, weights_only=True)
    torch.save(alexnet | {"features.0.weight": vgg["features.0.weight"]}, tmp_path / "mixed.pth")
    with pytest.raises(CheckpointError, match=re.escape(message.removeprefix(f"{other}: "))):
        LPIPSConfig(net="alex", weights=str(tmp_path / "mixed.pth")).build(CPU)


def test_alex_and_vgg_have_other_columns_and_the_hash_of_their_file(found: Path) -> None:
    alex, vgg = LPIPSConfig(net="alex"), LPIPSConfig(net="vgg")
    assert (alex.column, vgg.column) == ("lpips_alex", "lpips_vgg")
    assert len(alex.provenance()["weights"]) == 64
    assert alex.provenance() != vgg.provenance()
    ReconstructionConfig(pair_metrics=(alex, vgg))
    with pytest.raises(ValueError, match=r"pair_metrics: 'lpips_alex' stands there twice$"):
        ReconstructionConfig(pair_metrics=(alex, alex))
