"""Named protocols follow the projects that they name, and their numbers cannot land in one table with others."""

import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.console
import torch
from streamed import Drawn, Halver, protocol

from latelier.blocks import (
    EncoderPosterior,
    Part,
    ProtocolConfig,
    SkipDecoderConfig,
    StackEncoderConfig,
    decode,
    encode,
    parts,
)
from latelier.evaluation import (
    ADMGFIDConfig,
    DCAEReconConfig,
    FDDConfig,
    FileReferenceConfig,
    FrechetConfig,
    InceptionScoreConfig,
    LPIPSConfig,
    NativeFramingConfig,
    PNGConfig,
    RAEReconConfig,
    ReconstructionConfig,
    RFIDVal50kConfig,
    RoundConfig,
    SamplesConfig,
    VAVAEReconConfig,
    evaluate,
    evaluate_samples,
    evaluate_stream,
    load_result,
    make_reference,
    protocols,
    results_table,
    save_result,
)
from latelier.families import DiffAEConfig

PLAIN = {"set_metrics": (), "extractor": None}


def text(*results: dict[str, Any], mixed: bool = False) -> str:
    console = rich.console.Console(file=io.StringIO(), width=200)
    console.print(results_table(results, mixed=mixed))
    return console.file.getvalue()


def measured(config: ProtocolConfig, images: Drawn | None = None, model: Any = None) -> dict[str, Any]:
    return evaluate_stream(model or Halver(), images or Drawn(4), config)


# --- what the names mean --------------------------------------------------------------------------------------------


def test_presets_are_what_the_projects_do() -> None:
    found = {
        config.kind.partition("/")[2]: (
            config.crop.kind.partition("/")[2],
            config.quantise.kind.partition("/")[2],
            config.posterior,
            config.average,
            [metric.column for metric in config.pair_metrics],
            config.extractor and config.extractor.resize,
            config.reference.kind.partition("/")[2],
            config.count,
        )
        for config in (DCAEReconConfig(), VAVAEReconConfig(), RAEReconConfig(), RFIDVal50kConfig())
    }
    assert found == {
        "dcae_recon": ("adm", "round", "mode", "per_image", ["lpips_alex"], "torch", "originals", 50_000),
        "vavae_recon": ("resize_center", "png", "sample", "per_image", ["lpips_vgg"], "torch", "originals", 50_000),
        "rae_recon": ("adm", "round", "mode", "per_image", ["lpips_vgg"], "tensorflow", "originals", 50_000),
        "rfid_val50k": ("adm", "round", "mode", "per_image", [], "tensorflow", "originals", 50_000),
    }
    assert (ADMGFIDConfig().reference.name, ADMGFIDConfig().count) == ("VIRTUAL_imagenet256_labeled.npz", 50_000)
    assert (FDDConfig().extractor.resize, FDDConfig().extractor.kind) == ("pil", "extractor/dinov2")


def test_ids_are_their_own_and_survive_json() -> None:
    configs = [cls() for cls in parts(ProtocolConfig)]
    assert len({config.id for config in configs}) == len(configs)
    for config in configs:
        assert decode(encode(config), Part) == config


def test_a_users_protocol_with_the_values_of_archetype_psnr_gives_its_numbers() -> None:
    ours = measured(ReconstructionConfig(crop=NativeFramingConfig(multiple=4)))
    theirs = evaluate_without_latents(protocols.ArchetypePSNRConfig(multiple=4))
    for key in ("psnr", "ssim", "images"):
        assert ours[key] == theirs[key]


def evaluate_without_latents(config: protocols.ArchetypePSNRConfig) -> dict[str, Any]:
    return config.measure(Halver(), Drawn(4))


# --- traps ----------------------------------------------------------------------------------------------------------


class Noisy(Halver):
    """Gives back the picture it was given, with an error of its own for each image."""

    def __init__(self, errors: list[float]) -> None:
        super().__init__()
        self.errors = list(errors)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        self.original = images
        return images

    def decode(self, latents: torch.Tensor, height: int, width: int, settings: Any = None) -> torch.Tensor:
        toward_grey = -torch.sign(self.original)
        toward_grey[toward_grey == 0] = 1
        return self.original + self.errors.pop(0) * toward_grey


def test_per_image_and_pooled_differ_by_a_known_amount_and_both_are_stored() -> None:
    for average in ("per_image", "pooled"):
        config = protocol(**PLAIN, quantise=protocol().quantise, average=average)
        found = measured(ReconstructionConfig(average=average), Drawn(2), Noisy([0.2, 0.02]))
        assert found["average"] == config.average
        assert found["psnr"]["mean"] == pytest.approx(30, abs=1e-4)  # 20 and 40 dB
        assert found["psnr"]["pooled"] == pytest.approx(10 * math.log10(4 / ((0.04 + 0.0004) / 2)), abs=1e-4)


def test_the_range_changes_no_number_but_the_floor() -> None:
    values = [
        measured(ReconstructionConfig(range=name), Drawn(3))["psnr"]["mean"] for name in ("signed", "unit", "bytes")
    ]
    assert values == pytest.approx([values[0]] * 3, abs=1e-5)
    floored = measured(ReconstructionConfig(range="unit", mse_floor=1e-10), Drawn(2), Noisy([0.0, 0.2]))["psnr"]
    assert (floored["max"], floored["infinite"]) == (pytest.approx(100), 0)


def test_rounding_costs_what_is_known_at_46_db_and_nothing_below_34() -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randint(30, 225, (1, 3, 64, 64), generator=generator).float()) / 127.5 - 1
    costs = {}
    for decibels in (46, 33):
        noise = torch.randn(x.shape, generator=generator) * 2 * 10 ** (-decibels / 20)
        exact, rounded = (
            ReconstructionConfig(quantise=q).score(ReconstructionConfig(quantise=q).delivered(x + noise), x)["psnr"]
            for q in (protocol(**PLAIN | {"quantise": ReconstructionConfig().quantise}).quantise, RoundConfig())
        )
        truncated = ReconstructionConfig().score((((x + noise + 1) * 127.5).floor() / 127.5 - 1), x)["psnr"]
        costs[decibels] = (exact - rounded, exact - truncated)
    assert costs[46][0] == pytest.approx(0.23, abs=0.05)
    assert costs[33][0] == pytest.approx(0, abs=0.02)
    assert costs[46][1] == pytest.approx(0.8, abs=0.15)


def test_the_reconstruction_is_rounded_before_it_is_measured() -> None:
    found = [
        measured(ReconstructionConfig(quantise=quantise), Drawn(2), Noisy([0.4 / 127.5] * 2))["psnr"]
        for quantise in (ReconstructionConfig().quantise, RoundConfig(), PNGConfig())
    ]
    assert [one["infinite"] for one in found] == [0, 2, 2]


def test_not_clamping_is_a_protocol_of_its_own() -> None:
    x = torch.ones(1, 3, 16, 16)
    clamped, free = ReconstructionConfig(), ReconstructionConfig(clamp=False)
    assert clamped.score(clamped.delivered(x + 0.2), x)["psnr"] is None
    assert free.score(free.delivered(x + 0.2), x)["psnr"] == pytest.approx(20, abs=1e-4)


def test_perfect_reconstructions_are_counted_and_shown() -> None:
    found = measured(ReconstructionConfig(), Drawn(3), Noisy([0.2, 0.0, 0.2]))
    assert (found["psnr"]["infinite"], found["psnr"]["n"]) == (1, 3)
    assert found["psnr"]["mean"] == pytest.approx(20, abs=1e-4)
    assert found["images"][1]["psnr"] is None
    assert "1 perfect reconstruction left out of the PSNR statistics." in " ".join(text(found).split())


class Sampling(Halver):
    """A model whose posterior is as wide as its mode is high."""

    def encode_posterior(self, images: torch.Tensor) -> Any:
        mean = self.encode(images)
        return EncoderPosterior(mean, torch.zeros_like(mean))

    def whiten(self, z: torch.Tensor) -> torch.Tensor:
        return z


class Alike(Drawn):
    """The same picture under several names."""

    def read(self, index: int) -> Any:
        return super().read(0)


def test_a_sampled_posterior_is_seeded_by_image_and_differs_from_the_mode() -> None:
    sampled, mode = (ReconstructionConfig(posterior=p) for p in ("sample", "mode"))
    found = measured(sampled, model=Sampling())
    assert found["posterior"] == "sample"
    alone = measured(sampled, Drawn(2), Sampling())
    assert found["images"][:2] == alone["images"]  # a number depends on no other image
    assert measured(mode, model=Sampling())["psnr"]["mean"] > found["psnr"]["mean"] + 1
    assert measured(sampled)["posterior"] == "deterministic"
    one, other = measured(sampled, Alike(2), Sampling())["images"]
    assert one["psnr"] != other["psnr"]  # the same picture under another name
    assert measured(ReconstructionConfig(posterior="sample", seed=1), model=Sampling())["psnr"] != found["psnr"]


# --- tables ---------------------------------------------------------------------------------------------------------


def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LPIPSConfig, "build", lambda self, device: lambda a, b: (a - b).abs().mean(dim=(1, 2, 3)))
    monkeypatch.setattr(LPIPSConfig, "provenance", lambda self: {"weights": self.net})


def test_two_protocols_cannot_land_in_one_table_silently() -> None:
    one, other = measured(protocol(**PLAIN)), measured(protocol(**PLAIN | {"quantise": PNGConfig()}))
    message = (
        f"table: results of 2 protocols (reconstruction {one['protocol']['id']}, reconstruction "
        f"{other['protocol']['id']}) cannot be compared; measure them alike, or ask for --mixed"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        results_table([one, other])
    head = text(one, other, mixed=True)
    assert one["protocol"]["id"] in head
    assert other["protocol"]["id"] in head


def test_lpips_of_alex_and_of_vgg_are_never_in_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch)
    alex, vgg = (measured(protocol(**PLAIN, pair_metrics=(LPIPSConfig(net=n),))) for n in ("alex", "vgg"))
    with pytest.raises(ValueError, match=r"cannot be compared"):
        results_table([alex, vgg])
    lines = text(alex, vgg, mixed=True).splitlines()
    for name in ("lpips_alex mean", "lpips_vgg mean"):
        (line,) = [line for line in lines if name in line]
        assert line.count("–") == 1
    assert alex["metrics"]["lpips_alex"]["n"] == 4


def test_numbers_by_other_weights_or_another_reference_do_not_share_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch)
    config = protocol(**PLAIN, pair_metrics=(LPIPSConfig(net="alex"),))
    one = measured(config)
    monkeypatch.setattr(LPIPSConfig, "provenance", lambda self: {"weights": "fine-tuned"})
    other = measured(config)
    with pytest.raises(
        ValueError,
        match=r"^table: results by 2 references or files of weights \(lpips_alex alex; lpips_alex fine-tuned\) ",
    ):
        results_table([one, other])


def test_fewer_images_than_the_protocol_asks_for_are_shown_as_such(tmp_path: Path) -> None:
    found = measured(protocol(**PLAIN, count=50), Drawn(4))
    assert (found["set"]["n"], found["set"]["asked"]) == (4, 50)
    assert "4 of the 50 images that the protocol asks for." in " ".join(text(found).split())
    more = Drawn(9)
    found = measured(protocol(**PLAIN, count=4), more)
    assert (found["set"]["n"], more.read_indices) == (4, [0, 1, 2, 3])
    assert "4 images" in " ".join(text(found).split())
    assert load_result(save_result(found, tmp_path)) == found


def test_evaluate_takes_protocols_of_parts_with_its_yardsticks() -> None:
    stack, skip = StackEncoderConfig(depth=1), SkipDecoderConfig(start=1, middle=1, end=1, rank=4)
    model = DiffAEConfig(patch=8, width=16, latent=4, encoder=stack, decoder=skip).build()
    config = protocol(set_metrics=(FrechetConfig(),), count=50)
    found = evaluate(model, Drawn(4), training=Drawn(6), protocol=config)
    assert found["population"].keys() == found["baseline"]["population"].keys()
    assert found["baseline"]["psnr"]["n"] == found["psnr"]["n"] == 4
    assert found["latents"]["images"] == 4
    assert "4 of the 50 images" in " ".join(text(found).split())


def test_samples_are_measured_as_a_set_against_a_file(tmp_path: Path) -> None:
    known = {"extractor": protocol().extractor, "crop": protocol().crop}
    reference = FileReferenceConfig(name=str(tmp_path / "val.safetensors"))
    config = SamplesConfig(**known, set_metrics=protocol().set_metrics, reference=reference)
    made = make_reference(Drawn(8), config, name="val").save(tmp_path / "val.safetensors")
    same = evaluate_samples(Drawn(8), config, name="the set itself")
    assert same["population"]["frechet_tiny_vit-" + config.extractor.teacher.id] == pytest.approx(0, abs=1e-9)
    assert same["provenance"]["reference"] == {"name": "val", "sha256": made.sha256[:12], "n": 8}
    fewer = evaluate_samples(Drawn(6), config, name="a part")
    assert fewer["population"] != same["population"]
    message = "protocol/samples: measures images that a generator wrote, not what a model reconstructs; give them to"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        evaluate(Halver(), Drawn(3), protocol=config)
    assert np.isfinite(list(fewer["population"].values())).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReconstructionConfig(count=0), "count: must be at least 1, got 0"),
        (
            lambda: ReconstructionConfig(set_metrics=(FrechetConfig(),)),
            "extractor: 'set_metric/frechet' needs one; take 'extractor/teacher'",
        ),
        (
            lambda: protocol(set_metrics=(InceptionScoreConfig(),)),
            "set_metrics: 'set_metric/inception_score' reads 'logits', which 'extractor/teacher' does not give; it "
            "gives 'features'",
        ),
        (lambda: ReconstructionConfig(mse_floor=-1.0), "mse_floor: must be positive, got -1; None is no floor"),
        (
            lambda: SamplesConfig(reference=protocol().reference),
            "reference: samples have no originals; name a file, 'reference/file'",
        ),
        (
            lambda: SamplesConfig(set_metrics=()),
            "set_metrics: is empty; name a measure of the set, such as 'set_metric/frechet'",
        ),
    ],
)
def test_protocols_that_contradict_themselves_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^config.{re.escape(message)}$"):
        make()
