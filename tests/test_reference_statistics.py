"""Reference statistics say what made them, survive a file, and are refused where they do not belong."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from streamed import Drawn, Halver, protocol

from latelier.blocks import CheckpointError, Moments, TinyViTConfig
from latelier.evaluation import (
    ADMFramingConfig,
    FileReferenceConfig,
    FrechetConfig,
    GaussianSums,
    ReferenceStatistics,
    RFIDVal50kConfig,
    SamplesConfig,
    TeacherExtractorConfig,
    load_reference,
    make_reference,
)

SPACE = TeacherExtractorConfig(teacher=TinyViTConfig(width=8, depth=1, head_width=8, patch=8))


def test_statistics_survive_a_file(tmp_path: Path) -> None:
    made = make_reference(Drawn(7), protocol(), name="val")
    found = made.save(tmp_path / "val.safetensors")
    assert (found.name, found.n, found.adm) == ("val", 7, False)
    assert found.extractor == protocol().extractor.id
    assert found.preparation == protocol().crop.id
    assert len(found.sha256) == 64
    for key in ("mean", "cov"):
        assert torch.equal(getattr(found.moments["features"], key), getattr(made.moments["features"], key))
    assert torch.equal(found.rows["features"], made.rows["features"])
    expected = torch.cov(made.rows["features"].double().T)
    torch.testing.assert_close(found.moments["features"].cov, expected, rtol=1e-6, atol=1e-9)


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_npz_files_of_pytorch_fid_and_adm_are_read(tmp_path: Path) -> None:
    mu, sigma = np.arange(3.0), np.eye(3, dtype=np.float32)
    plain = load_reference(npz(tmp_path / "val.npz", mu=mu, sigma=sigma))
    assert not plain.adm
    torch.testing.assert_close(plain.moments["features"].mean, torch.arange(3.0).double())
    assert plain.moments["features"].cov.dtype == torch.float64
    adm = load_reference(npz(tmp_path / "renamed.npz", mu=mu, sigma=sigma, mu_s=mu[:2], sigma_s=sigma[:2, :2]))
    assert adm.adm
    assert adm.moments["spatial"].cov.shape == (2, 2)
    assert load_reference(npz(tmp_path / "VIRTUAL_imagenet256_labeled.npz", mu=mu, sigma=sigma)).adm


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    whole = npz(tmp_path / "whole.npz", mu=np.zeros(3), sigma=np.eye(3)).read_bytes()
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        CheckpointError, match=rf"^{cut}: is no whole \.npz of arrays \(.*\); copy or download it again$"
    ):
        load_reference(cut)
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, mu=np.array([{}], dtype=object), sigma=np.eye(1))
    with pytest.raises(CheckpointError, match=r"is no whole \.npz of arrays \(Object arrays cannot be loaded"):
        load_reference(pickled)
    other = npz(tmp_path / "other.npz", arr_0=np.zeros(3))
    with pytest.raises(CheckpointError, match=f"^{other}: has no 'mu' and 'sigma'; it holds no statistics of a popul"):
        load_reference(other)
    square = npz(tmp_path / "square.npz", mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(CheckpointError, match=r"have the shapes \[3\] and \[4, 4\], which do not fit$"):
        load_reference(square)
    nan = npz(tmp_path / "nan.npz", mu=np.full(3, np.nan), sigma=np.eye(3))
    with pytest.raises(CheckpointError, match=f"^{nan}: the moments of 'features' are not finite$"):
        load_reference(nan)
    with pytest.raises(FileNotFoundError, match=r"no such file of reference statistics$"):
        load_reference(tmp_path / "absent.npz")
    weights = tmp_path / "weights.safetensors"
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, weights)
    with pytest.raises(
        CheckpointError, match=r"is no file of reference statistics; ReferenceStatistics.save writes one$"
    ):
        load_reference(weights)


def test_statistics_of_another_extractor_or_crop_are_refused(tmp_path: Path) -> None:
    made = make_reference(Drawn(7), protocol(), name="val").save(tmp_path / "val.safetensors")
    reference = FileReferenceConfig(name=str(tmp_path / "val.safetensors"))
    other = TeacherExtractorConfig(teacher=TinyViTConfig(width=8, depth=1, head_width=8, patch=8, seed=1))
    message = (
        f"val: these statistics were made by the extractor {made.extractor}, and the protocol has {other.id}; "
        "make them anew"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        protocol(extractor=other, reference=reference).measure(Halver(), Drawn(3))
    crop = ADMFramingConfig(size=16)
    message = (
        f"val: these statistics are of pixels that the crop {made.preparation} made, and the protocol has {crop.id};"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        protocol(crop=crop, reference=reference).measure(Halver(), Drawn(3))


def test_a_file_must_have_the_hash_that_the_protocol_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_reference(Drawn(7), protocol(), name="val").save(tmp_path / "val.safetensors")
    monkeypatch.delenv("LATELIER_REFERENCES", raising=False)
    named = FileReferenceConfig(name="val.safetensors", sha256=made.sha256[:12])
    message = "reference: needs the file val.safetensors; set LATELIER_REFERENCES to its folder, or give a path"
    with pytest.raises(FileNotFoundError, match=f"^{message}$"):
        named.load()
    monkeypatch.setenv("LATELIER_REFERENCES", str(tmp_path))
    assert named.load().sha256 == made.sha256
    path = tmp_path / "val.safetensors"
    message = f"{path}: has the hash {made.sha256[:12]}, and the protocol names 000000000000"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        FileReferenceConfig(name="val.safetensors", sha256="0" * 64).load()
    with pytest.raises(ValueError, match=r"sha256: takes at least 12 hexadecimal digits in small letters, got 'ABC'$"):
        FileReferenceConfig(name="val.safetensors", sha256="ABC")


@pytest.mark.parametrize("converted", [False, True])
def test_a_reconstruction_fid_refuses_adms_file(tmp_path: Path, converted: bool) -> None:
    advice = (
        "is ADM's file for generated samples, of training images; a reconstruction FID is taken to the same "
        "validation images: leave 'reference/originals'"
    )
    name = "VIRTUAL_imagenet256_labeled.npz"
    with pytest.raises(ValueError, match=f"reference: {re.escape(name)} {re.escape(advice)}$"):
        RFIDVal50kConfig(reference=FileReferenceConfig(name=name))
    mu, sigma = np.zeros(8), np.eye(8)
    path = npz(tmp_path / "harmless.npz", mu=mu, sigma=sigma, mu_s=mu, sigma_s=sigma)
    if converted:
        load_reference(path).save(tmp_path / "harmless.safetensors")
        path = tmp_path / "harmless.safetensors"
    measured = protocol(set_metrics=(FrechetConfig(),), reference=FileReferenceConfig(name=str(path)))
    message = f"protocol/reconstruction: reference: harmless.npz {advice}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        measured.measure(Halver(), Drawn(3))
    SamplesConfig(extractor=SPACE, reference=FileReferenceConfig(name=str(path))).measure(None, Drawn(3))


def test_a_reference_without_rows_serves_no_measure_of_rows(tmp_path: Path) -> None:
    sums = GaussianSums()
    sums.update(torch.randn(9, 8))
    path = tmp_path / "moments.safetensors"
    ReferenceStatistics(name="val", moments={"features": sums.moments()}).save(path)
    message = "val: the reference has no rows of 'features', only moments; make one that keeps them"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        protocol(reference=FileReferenceConfig(name=str(path))).measure(Halver(), Drawn(7))
    assert isinstance(sums.moments(), Moments)
