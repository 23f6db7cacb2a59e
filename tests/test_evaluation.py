"""Evaluation as a whole: the protocol on planted models, what a result carries, tables, and reconstructed files."""

import copy
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from rich.console import Console
from torch import nn

from latelier.blocks import (
    DINOTokenHeadConfig,
    EncoderPosterior,
    FCDMBlockConfig,
    HOGConfig,
    ImageSource,
    PartError,
    ProbeConfig,
    ProtocolConfig,
    SkipDecoderConfig,
    StackEncoderConfig,
    decode,
    encode,
    part,
)
from latelier.evaluation import (
    ArchetypePSNRConfig,
    TokenRobustnessConfig,
    evaluate,
    load_result,
    reconstruct,
    reconstruct_files,
    results,
    results_table,
    save_result,
)
from latelier.families import DiffAEConfig, DinacAEConfig, SemDisDiffAE

TINY = DiffAEConfig(
    patch=4,
    width=16,
    latent=6,
    encoder=StackEncoderConfig(block=FCDMBlockConfig(), depth=1),
    decoder=SkipDecoderConfig(block=FCDMBlockConfig()),
)


class Pictures:
    """Pictures of given sizes, their colours smooth and different."""

    def __init__(self, sizes: Sequence[tuple[int, int]], *, prefix: str = "picture") -> None:
        self.sizes, self.prefix = sizes, prefix

    def __len__(self) -> int:
        return len(self.sizes)

    def name(self, index: int) -> str:
        return f"{self.prefix} {self.sizes[index]}"

    def size(self, index: int) -> tuple[int, int]:
        return self.sizes[index]

    def read(self, index: int) -> PIL.Image.Image:
        height, width = self.sizes[index]
        small = np.random.default_rng([height, width]).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        return PIL.Image.fromarray(small).resize((width, height), PIL.Image.Resampling.BICUBIC)


class Shifted(nn.Module):
    """A perfect code of patches, but for an error that is added to the reconstruction."""

    def __init__(self, error: float, *, stride: int = 4) -> None:
        super().__init__()
        self.stride, self.config = stride, TINY
        self.error = nn.Parameter(torch.tensor(error))

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return F.pixel_unshuffle(images, self.stride)

    def encode_posterior(self, images: torch.Tensor) -> EncoderPosterior:
        mean = self.encode(images)
        return EncoderPosterior(mean, torch.full_like(mean, 4.0))

    def decode(self, latents: torch.Tensor, height: int, width: int, inference_config: object = None) -> torch.Tensor:
        return F.pixel_shuffle(latents, self.stride) + self.error


def tiny() -> SemDisDiffAE:
    torch.manual_seed(1)
    model = TINY.build()
    for parameter in model.parameters():  # off the zeros of birth
        nn.init.normal_(parameter, std=0.1)
    return model


HELD_OUT, TRAINING = Pictures([(20, 29), (16, 16), (33, 18)]), Pictures([(24, 24), (40, 21)], prefix="training")


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return evaluate(tiny(), HELD_OUT, training=TRAINING, teacher=HOGConfig(patch=4), recipe=TINY)


# --- the protocol -------------------------------------------------------------------------------------------------


@given(height=st.integers(8, 40), width=st.integers(8, 40), stride=st.sampled_from([1, 4, 8]))
def test_preparing_cuts_the_centre_of_native_pixels(height: int, width: int, stride: int) -> None:
    picture = Pictures([(height, width)]).read(0)
    image = ArchetypePSNRConfig().prepare(picture, stride=stride)
    h, w = height // stride * stride, width // stride * stride
    top, left = (height - h) // 2, (width - w) // 2
    pixels = np.asarray(picture)[top : top + h, left : left + w]
    levels = (image[0].permute(1, 2, 0).numpy() + 1) * 127.5
    assert image.shape == (1, 3, h, w)
    np.testing.assert_allclose(levels, pixels, atol=1e-4)


def test_models_of_two_strides_can_be_given_the_same_pixels() -> None:
    picture, protocol = Pictures([(70, 100)]).read(0), ArchetypePSNRConfig(multiple=32)
    assert torch.equal(protocol.prepare(picture, stride=16), protocol.prepare(picture, stride=32))


def test_large_pictures_are_reduced_when_asked() -> None:
    picture = Pictures([(50, 100)]).read(0)
    assert ArchetypePSNRConfig(longer_side=40).prepare(picture, stride=4).shape == (1, 3, 20, 40)
    assert ArchetypePSNRConfig(longer_side=200).prepare(picture, stride=4).shape == (1, 3, 48, 100)


@pytest.mark.parametrize("error", [0.2, 0.02])
def test_a_planted_error_has_its_psnr(error: float) -> None:
    dark = Pictures([(16, 16), (20, 24)])
    dark.read = lambda index: PIL.Image.new("RGB", (16, 16 + 4 * index), (9, 99, 199))  # nothing is clamped
    found = ArchetypePSNRConfig().measure(Shifted(error), dark)
    expected = 20 * math.log10(2 / error)
    assert [row["psnr"] for row in found["images"]] == pytest.approx([expected] * 2, abs=1e-4)
    assert found["psnr"]["pooled"] == pytest.approx(expected, abs=1e-4)
    assert found["psnr"]["std"] == pytest.approx(0, abs=1e-4)


def test_a_perfect_model_has_no_mean_but_a_count() -> None:
    found = ArchetypePSNRConfig().measure(Shifted(0.0), HELD_OUT)
    assert found["psnr"]["infinite"] == 3
    assert found["psnr"]["mean"] is None
    assert found["psnr"]["pooled"] is None
    assert found["ssim"]["mean"] == pytest.approx(1)


def test_quantising_rounds_to_the_levels_of_a_picture() -> None:
    assert ArchetypePSNRConfig(quantise=True).measure(Shifted(0.9 / 255), HELD_OUT)["psnr"]["infinite"] == 3
    assert ArchetypePSNRConfig().measure(Shifted(0.9 / 255), HELD_OUT)["psnr"]["infinite"] == 0


def test_a_number_depends_on_no_other_image() -> None:
    model, protocol = tiny(), ArchetypePSNRConfig()
    together = protocol.measure(model, HELD_OUT)["images"]
    backwards = protocol.measure(model, Pictures(HELD_OUT.sizes[::-1]))["images"]
    alone = [protocol.measure(model, Pictures([size]))["images"][0] for size in HELD_OUT.sizes]
    assert together == backwards == sorted(alone, key=lambda row: row["name"])


def test_the_seed_of_the_noise_is_part_of_the_protocol() -> None:
    found = [ArchetypePSNRConfig(seed=seed).measure(tiny(), HELD_OUT)["psnr"]["mean"] for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_measuring_leaves_the_model_and_the_generator_as_they_were() -> None:
    model = tiny().train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    evaluate(model, HELD_OUT, training=TRAINING, teacher=HOGConfig(patch=4))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_visitor_sees_every_image_once() -> None:
    seen: list[Any] = []
    found = ArchetypePSNRConfig().measure(tiny(), HELD_OUT, visit=seen.append)
    assert [m.index for m in seen] == [0, 1, 2]
    assert {m.total for m in seen} == {3}
    assert sorted(m.name for m in seen) == [row["name"] for row in found["images"]]
    for m in seen:
        assert m.reconstruction.shape == m.original.shape
        assert m.reconstruction.abs().max() <= 1
        assert m.latent.shape[1:] == (6, m.original.shape[2] // 4, m.original.shape[3] // 4)


def test_half_precision_models_are_measured_in_their_own_dtype() -> None:
    model = tiny()
    full = evaluate(model, HELD_OUT)
    half = evaluate(model.bfloat16(), HELD_OUT)
    assert (full["dtype"], half["dtype"]) == ("float32", "bfloat16")
    assert half["psnr"]["mean"] == pytest.approx(full["psnr"]["mean"], abs=0.5)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (Pictures([]), 0.0, "images: there are none to measure"),
        (
            Pictures([(16, 3)]),
            0.0,
            "picture (16, 3): size: must be at least 4x4, got 16x3; leave the picture out",
        ),
        (
            Pictures([(16, 9)]),
            0.0,
            "picture (16, 9): ssim: takes images of at least 11x11 pixels, got 16x8",
        ),
        (
            Pictures([(16, 16)]),
            math.nan,
            "picture (16, 16): the reconstruction is not finite; the model or its statistics are damaged",
        ),
    ],
)
def test_what_cannot_be_measured_is_named(source: ImageSource, error: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ArchetypePSNRConfig().measure(Shifted(error), source)


def test_pictures_that_are_not_rgb_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape('mode: takes RGB pictures, got L; use image.convert("RGB")')):
        ArchetypePSNRConfig().prepare(PIL.Image.new("L", (16, 16)), stride=4)


def test_settings_of_the_protocol_are_checked_and_change_its_id() -> None:
    with pytest.raises(PartError, match=r"^config\.longer_side: must be at least 1, got 0$"):
        ArchetypePSNRConfig(longer_side=0)
    protocol = ArchetypePSNRConfig(quantise=True)
    assert decode(encode(protocol)) == protocol
    assert protocol.id != ArchetypePSNRConfig().id


# --- the result ---------------------------------------------------------------------------------------------------


def test_a_result_carries_what_its_numbers_depend_on(result: dict[str, Any]) -> None:
    assert result["protocol"]["name"] == "protocol/archetype_psnr"
    assert result["protocol"]["id"] == ArchetypePSNRConfig().id
    assert result["set"]["n"] == 3
    assert result["model"] == {
        "kind": "family/semdisdiffae",
        "id": TINY.id,
        "parameters": sum(p.numel() for p in tiny().parameters()),
        "stride": 4,
        "latent_channels": 6,
        "compression": 8.0,
    }
    assert result["recipe"] == {"name": "family/semdisdiffae", "id": TINY.id}
    assert (result["dtype"], result["device"]) == ("float32", "cpu")
    assert result["versions"].keys() == {"python", "latelier", "torch", "torchmetrics", "numpy", "pillow"}


def test_the_baseline_is_measured_under_the_same_protocol(result: dict[str, Any]) -> None:
    baseline = result["baseline"]
    assert baseline["name"] == "PCA of 4x4 patches, 6 components"
    assert baseline["fitted_images"] == 2
    assert baseline["psnr"].keys() == result["psnr"].keys()
    own = [row["baseline_psnr"] for row in result["images"]]
    assert baseline["psnr"]["mean"] == pytest.approx(np.mean(own))
    assert baseline["psnr"]["mean"] > result["psnr"]["mean"]  # of weights that never learned


def test_alignment_has_a_readout_and_a_floor(result: dict[str, Any]) -> None:
    alignment = result["alignment"]
    assert alignment["teacher"] == encode(HOGConfig(patch=4))
    assert 0 < alignment["mean_token_cosine"] <= 1
    assert 0 < alignment["ridge_cosine"] <= 1
    assert "head_cosine" not in alignment


def test_a_head_that_knows_the_teacher_has_a_cosine_of_one() -> None:
    teacher = HOGConfig(patch=4).build()

    def predict_tokens(latents: torch.Tensor) -> torch.Tensor:
        return 3 * teacher((F.pixel_shuffle(latents, 4) + 1) / 2).patches

    found = evaluate(Shifted(0.1), HELD_OUT, teacher=HOGConfig(patch=4), predict_tokens=predict_tokens)
    assert found["alignment"]["head_cosine"] == pytest.approx(1)
    assert "ridge_cosine" not in found["alignment"]
    assert "baseline" not in found


def test_a_token_head_is_compared_with_the_teachers_class_beside_its_mean() -> None:
    teacher = HOGConfig(patch=4)
    config = DinacAEConfig(
        patch=4,
        width=16,
        latent=6,
        encoder=StackEncoderConfig(depth=1),
        decoder=SkipDecoderConfig(start=1, middle=0, end=1, rank=2),
        token_head=DINOTokenHeadConfig(features=36, width=16, head_width=8),
    )
    model: Any = config.build()
    alignment = evaluate(model, HELD_OUT, training=TRAINING, teacher=teacher)["alignment"]
    describe, protocol = teacher.build(), ArchetypePSNRConfig()

    def cls(source: Any, index: int) -> torch.Tensor:
        return describe((protocol.prepare(source.read(index), stride=4) + 1) / 2).cls

    mean = torch.cat([cls(TRAINING, i) for i in range(len(TRAINING))]).mean(dim=0)
    own, floor = [], []
    with torch.no_grad():
        for i in range(len(HELD_OUT)):
            target, image = cls(HELD_OUT, i)[0], protocol.prepare(HELD_OUT.read(i), stride=4)
            own.append(F.cosine_similarity(model.predict_features(model.encode(image)).cls[0], target, dim=0).item())
            floor.append(F.cosine_similarity(mean, target, dim=0).item())
    assert alignment["class_cosine"] == pytest.approx(np.mean(own), rel=1e-5)
    assert alignment["mean_class_cosine"] == pytest.approx(np.mean(floor), rel=1e-5)


def test_a_token_head_is_not_asked_about_a_teacher_of_another_width() -> None:
    config = DinacAEConfig(
        patch=4,
        width=32,
        latent=6,
        encoder=StackEncoderConfig(depth=1),
        decoder=SkipDecoderConfig(start=1, middle=0, end=1, rank=2),
        token_head=DINOTokenHeadConfig(features=32, head_width=16),
    )
    alignment = evaluate(config.build(), HELD_OUT, teacher=HOGConfig(patch=4))["alignment"]
    assert not {"class_cosine", "mean_class_cosine"} & alignment.keys()


def test_a_teacher_on_another_grid_is_refused() -> None:
    message = (
        "alignment with 'teacher/hog': the teacher's grid is (10, 14), the latent's (5, 7); "
        "choose a teacher whose patch equals the model's stride, or resample with the grid rule 'grid/resample'"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        evaluate(Shifted(0.1), HELD_OUT, teacher=HOGConfig(patch=2))


def test_latents_are_described_with_their_information(result: dict[str, Any]) -> None:
    latents = result["latents"]
    assert latents["channels"] == 6
    assert latents["images"] == 3
    assert latents["positions"] == 5 * 7 + 4 * 4 + 8 * 4
    posterior = latents["posterior"]
    assert posterior["bits_per_pixel"] == pytest.approx(posterior["bits_per_value"] * 6 / 16)


def test_answers_of_probes_stand_under_their_names(tmp_path: Path) -> None:
    probes = (TokenRobustnessConfig(), TokenRobustnessConfig(offsets=(1.0,)))
    found = evaluate(tiny(), HELD_OUT, probes=probes)
    assert list(found["probes"]) == ["token_robustness", f"token_robustness-{probes[1].id}"]
    for probe, answer in zip(probes, found["probes"].values(), strict=True):
        assert (answer["kind"], answer["id"], answer["settings"]) == (probe.kind, probe.id, encode(probe))
        assert answer == answer | probe.measure(tiny(), HELD_OUT, ArchetypePSNRConfig())
    assert load_result(save_result(found, tmp_path)) == found
    assert "probes" not in evaluate(tiny(), HELD_OUT)


def test_the_same_evaluation_gives_the_same_numbers(result: dict[str, Any]) -> None:
    again = evaluate(tiny(), HELD_OUT, training=TRAINING, teacher=HOGConfig(patch=4), recipe=TINY)
    assert again | {"measured": ""} == result | {"measured": ""}


def test_progress_counts_every_image() -> None:
    calls: list[tuple[str, int, int]] = []
    evaluate(Shifted(0.1), HELD_OUT, training=TRAINING, fit_images=1, on_progress=lambda *call: calls.append(call))
    assert calls == [
        ("fit the yardsticks", 1, 1),
        *(("measure", i, 3) for i in (1, 2, 3)),
        *(("measure the linear baseline", i, 3) for i in (1, 2, 3)),
    ]
    calls.clear()
    evaluate(Shifted(0.1), HELD_OUT, probes=[TokenRobustnessConfig()], on_progress=lambda *call: calls.append(call))
    assert calls[3:] == [("probe token_robustness", i, 3) for i in (1, 2, 3)]


def test_results_survive_the_disk(result: dict[str, Any], tmp_path: Path) -> None:
    path = save_result(result, tmp_path / "evaluation")
    assert path == tmp_path / "evaluation" / "archetype_psnr.json"
    assert load_result(path) == result
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_results_of_other_settings_do_not_replace_each_other(tmp_path: Path) -> None:
    protocol = ArchetypePSNRConfig(quantise=True)
    path = save_result(evaluate(Shifted(0.1), HELD_OUT, protocol=protocol), tmp_path)
    assert path.name == results.file_name(protocol) == f"archetype_psnr-{protocol.id}.json"


@pytest.mark.parametrize("text", ["", "[]", '{"protocol": {}}', "\xff"])
def test_other_files_are_no_results(text: str, tmp_path: Path) -> None:
    path = tmp_path / "archetype_psnr.json"
    path.write_bytes(text.encode("latin-1"))
    message = f"{path}: is no result of an evaluation; `latelier eval RUN` writes one"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_result(path)


# --- tables -------------------------------------------------------------------------------------------------------


def printed(*args: Any, **kwargs: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(results_table(*args, **kwargs))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_a_table_of_one_result_shows_its_baseline(result: dict[str, Any]) -> None:
    text = printed([result])
    assert "linear" in text
    assert "difference" in text
    assert f"{result['psnr']['mean']:.2f} dB" in text
    assert f"archetype_psnr {ArchetypePSNRConfig().id} on 3 images {result['set']['id']}" in text


def test_tables_refuse_to_mix_protocols(result: dict[str, Any]) -> None:
    other = evaluate(Shifted(0.1), HELD_OUT, protocol=ArchetypePSNRConfig(quantise=True))
    ids = [r["protocol"]["id"] for r in (result, other)]
    message = (
        f"table: results of 2 protocols (archetype_psnr {ids[0]}, archetype_psnr {ids[1]}) cannot be compared; "
        "measure them alike, or ask for --mixed"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        results_table([result, other])
    text = printed([result, other], mixed=True)
    assert all(f"archetype_psnr {name}" in text for name in ids)


def test_tables_refuse_to_mix_sets_of_images(result: dict[str, Any]) -> None:
    other = evaluate(Shifted(0.1), TRAINING)
    sets = [r["set"]["id"] for r in (result, other)]
    message = f"table: results of 2 sets of images (3 images {sets[0]}, 2 images {sets[1]}) cannot be compared"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}; measure them alike, or ask for --mixed$"):
        results_table([result, other])


def test_results_of_one_protocol_stand_side_by_side(result: dict[str, Any]) -> None:
    other = evaluate(Shifted(0.1), HELD_OUT)
    text = printed([result, other])
    assert f"{other['psnr']['mean']:.2f} dB" in text
    assert "difference" not in text


def test_rows_of_a_probe_say_what_its_offsets_are_relative_to() -> None:
    own, unit = TokenRobustnessConfig(offsets=(2.0,)), TokenRobustnessConfig(offsets=(2.0,), relative_to="unit")
    found = evaluate(tiny(), HELD_OUT, probes=(own, unit))
    text = printed([found])
    for probe, base in ((own, "own posterior"), (unit, "log-SNR 6")):
        numbers = found["probes"][f"token_robustness-{probe.id}"]["offsets"][0]
        for region in ("whole", "untouched"):
            row = next(line for line in text.splitlines() if f"-{probe.id}, {base} − 2, {region} " in line)
            assert f"{numbers[region]['mean']:.2f} dB" in row


def test_probes_of_another_package_are_shown_as_they_are() -> None:
    @part("probe/of_another_package")
    class SizesConfig(ProbeConfig):
        wanted: int

        def measure(
            self,
            model: Any,
            images: ImageSource,
            protocol: ProtocolConfig,
            *,
            context: Any = None,
            on_image: Any = None,
        ) -> dict[str, Any]:
            return {"images": len(images), "names": [images.name(0)], "wanted": self.wanted / 2}

    probe = SizesConfig(wanted=3)
    text = printed([evaluate(Shifted(0.1), HELD_OUT, probes=[probe])])
    rows = [line for line in text.splitlines() if "of_another_package" in line]
    assert [re.findall(r"(\w+) +│ +([\d.]+)", row) for row in rows] == [[("images", "3.0000")], [("wanted", "1.5000")]]
    assert all(f"of_another_package-{probe.id}, " in row for row in rows)


def test_a_table_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^table: there are no results to show$"):
        results_table([])


# --- reconstructing files -----------------------------------------------------------------------------------------


@given(h=st.integers(1, 9), w=st.integers(1, 9), multiple=st.sampled_from([1, 3, 8, 16]))
def test_padding_mirrors_until_sizes_divide(h: int, w: int, multiple: int) -> None:
    image = torch.randn(1, 3, h, w)
    pad = ((0, 0), (0, 0), (0, -h % multiple), (0, -w % multiple))
    np.testing.assert_array_equal(
        reconstruct.pad_to_multiple(image, multiple).numpy(), np.pad(image.numpy(), pad, mode="reflect")
    )


def test_files_of_any_size_come_back_at_that_size(tmp_path: Path) -> None:
    paths = []
    for i, size in enumerate([(5, 3), (17, 30), (16, 16)]):
        paths.append(tmp_path / f"{i}.png")
        Pictures([size]).read(0).save(paths[-1])
    before = [path.read_bytes() for path in paths]
    calls: list[tuple[Path, int, int]] = []
    written = reconstruct_files(Shifted(0.0), paths, tmp_path / "out", on_image=lambda *call: calls.append(call))
    assert [path.read_bytes() for path in paths] == before
    assert written == [tmp_path / "out" / f"{i}.png" for i in range(3)]
    assert calls == [(path, i, 3) for i, path in enumerate(written, 1)]
    for source, target in zip(paths, written, strict=True):  # the code is perfect
        np.testing.assert_array_equal(np.asarray(PIL.Image.open(target)), np.asarray(PIL.Image.open(source)))


def test_the_original_stands_at_the_left_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Pictures([(9, 14)]).read(0).save(path)
    pixels = np.asarray(PIL.Image.open(reconstruct_files(tiny(), [path], tmp_path / "out", side_by_side=True)[0]))
    assert pixels.shape == (9, 28, 3)
    np.testing.assert_array_equal(pixels[:, :14], np.asarray(PIL.Image.open(path)))


def test_the_same_picture_gives_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Pictures([(16, 16)]).read(0).save(path)
    first, second = (reconstruct_files(tiny(), [path], tmp_path / name)[0].read_bytes() for name in "xy")
    assert first == second


def test_files_whose_names_differ_by_their_ending_get_names_of_their_own(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "a.bmp", tmp_path / "b.png"]
    for path in paths:
        Pictures([(8, 8)]).read(0).save(path)
    written = reconstruct_files(Shifted(0.0), paths, tmp_path / "out")
    assert [path.name for path in written] == ["a.png.png", "a.bmp.png", "b.png"]


def test_inputs_are_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Pictures([(8, 8)]).read(0).save(path)
    before = path.read_bytes()
    message = f"{path}: writing {path} would replace an input; choose another --out"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        reconstruct_files(Shifted(0.1), [path], tmp_path)
    assert path.read_bytes() == before


def test_two_inputs_of_one_name_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    paths = [tmp_path / "x" / "a.png", tmp_path / "y" / "a.png"]
    message = f"{paths[0]}: another input is called a.png too; reconstruct them into two folders"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        reconstruct_files(Shifted(0.1), paths, tmp_path / "out")
    with pytest.raises(ValueError, match=r"^images: there are none; name one or more files$"):
        reconstruct_files(Shifted(0.1), [], tmp_path / "out")
    assert not (tmp_path / "out").exists()
