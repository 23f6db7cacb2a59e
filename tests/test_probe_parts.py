"""Probes of latents and features end to end: planted structure, answers that say what they are of, tables, pages."""

import base64
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from latelier.blocks import (
    DINOTokenHeadConfig,
    DiTBlockConfig,
    FCDMBlockConfig,
    HOGConfig,
    ImageSource,
    LabelledSource,
    LabelsConfig,
    PartError,
    ProbeConfig,
    ProbeContext,
    ResampleGridConfig,
    SkipDecoderConfig,
    StackEncoderConfig,
    TeacherConfig,
    TinyViTConfig,
    decode,
    encode,
    part,
    parts,
)
from latelier.cli import main
from latelier.evaluation import (
    ArchetypePSNRConfig,
    DigitsConfig,
    KNNProbeConfig,
    LinearProbeConfig,
    PCAMapsProbeConfig,
    RetrievalProbeConfig,
    SelfSimilarityProbeConfig,
    SimilarityProbeConfig,
    Tiles,
    TokenErrors,
    evaluate,
    latent_colours,
    linear_cka,
    load_result,
    local_distant_similarity,
    pca_maps,
    representations,
    results_table,
    save_result,
    selfsim_error,
    write_report,
)
from latelier.families import DiffAEConfig, DinacAEConfig, save_folder

TINY = DiffAEConfig(
    patch=4,
    width=16,
    latent=6,
    encoder=StackEncoderConfig(block=FCDMBlockConfig(), depth=1),
    decoder=SkipDecoderConfig(block=FCDMBlockConfig()),
)
TEACHER = TinyViTConfig(width=32, head_width=16, depth=1, registers=1)
FEW = DigitsConfig(side=16)


class Scenes(ImageSource):
    """Smooth coloured pictures, one a name, all of a size unless sizes are given."""

    def __init__(self, count: int, *sizes: tuple[int, int]) -> None:
        self.sides = list(sizes) or [(24, 32)] * count

    def __len__(self) -> int:
        return len(self.sides)

    def name(self, index: int) -> str:
        return f"scene-{index}"

    def size(self, index: int) -> tuple[int, int]:
        return self.sides[index]

    def read(self, index: int) -> PIL.Image.Image:
        small = np.random.default_rng(index).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        height, width = self.sides[index]
        return PIL.Image.fromarray(small).resize((width, height), PIL.Image.Resampling.BICUBIC)


class Patches(nn.Module):
    """Latents are the pixels of patches themselves."""

    stride = 4

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def encode(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(images, self.stride) * self.scale


def tiny(config: DiffAEConfig = TINY) -> Any:
    torch.manual_seed(1)
    model = config.build()
    for parameter in model.parameters():  # off the zeros of birth
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def asked(probe: ProbeConfig, images: ImageSource | None = None, model: Any = None, **context: Any) -> dict[str, Any]:
    images, model = images or Scenes(14), model or tiny()
    return probe.measure(model, images, ArchetypePSNRConfig(), context=ProbeContext(**context))


NEW = (
    KNNProbeConfig(labels=FEW, ks=(1, 5), most=60),
    LinearProbeConfig(labels=FEW, most=60),
    SimilarityProbeConfig(k=3),
    RetrievalProbeConfig(),
    SelfSimilarityProbeConfig(far=4),
    PCAMapsProbeConfig(most=3),
)
every_new_probe = pytest.mark.parametrize("probe", NEW, ids=lambda probe: probe.kind)


# --- what was planted is found --------------------------------------------------------------------------------------


def softmax_weights(distance: Any, *, temperature: float) -> Any:
    return np.exp((1 - distance) / temperature)


def test_neighbours_of_raw_digits_are_those_of_scikit_learn() -> None:
    """A stride of the whole picture makes the latent all pixels of an image, and their mean the latent itself."""
    model = Patches()
    model.stride = 8
    found = asked(KNNProbeConfig(labels=DigitsConfig(side=8), ks=(1, 20)), model=model)
    data: Any = load_digits()
    pixels = np.rint(data.images * 255 / 16).reshape(-1, 64) / 127.5 - 1
    for k in (1, 20):
        weights: Any = partial(softmax_weights, temperature=0.07)
        theirs = KNeighborsClassifier(k, metric="cosine", weights=weights)
        theirs.fit(pixels[:1437], data.target[:1437])
        score = theirs.score(pixels[1437:], data.target[1437:])
        assert found["rows"]["latents, mean"][f"knn{k}_N1437"] == pytest.approx(score, abs=1e-9)
        assert score > 0.9
    assert (found["train"]["n"], found["test"]["n"], found["classes"]) == (1437, 360, 10)


class Shades(LabelledSource):
    """Bright and dark noise, whose class is the brightness, or is drawn by lot."""

    classes = ("dark", "light")

    def __init__(self, first: int, *, told: bool) -> None:
        self.first, self.told = first, told

    def __len__(self) -> int:
        return 40

    def name(self, index: int) -> str:
        return f"{self.first + index}"

    def size(self, index: int) -> tuple[int, int]:
        return 8, 8

    def label(self, index: int) -> int:
        lot = np.random.default_rng(self.first + index).integers(2)
        return index % 2 if self.told else int(lot)

    def read(self, index: int) -> PIL.Image.Image:
        noise = np.random.default_rng(self.first + index).integers(0, 60, (8, 8, 3))
        return PIL.Image.fromarray((noise + 150 * (index % 2)).astype(np.uint8))


@pytest.mark.parametrize("told", [True, False])
def test_classes_that_show_are_told_apart_and_others_are_not(told: bool) -> None:
    @part("labels/shades")
    class ShadesConfig(LabelsConfig):
        told: bool

        def training(self) -> Shades:
            return Shades(0, told=self.told)

        def held_out(self) -> Shades:
            return Shades(40, told=self.told)

    labels = ShadesConfig(told=told)
    for probe in (KNNProbeConfig(labels=labels, ks=(5,)), LinearProbeConfig(labels=labels)):
        found = asked(probe, model=Patches())
        values = list(found["rows"]["latents, mean"].values())
        assert all(value == 1 for value in values) if told else all(0.2 < value < 0.8 for value in values)
        if told:  # some images, with the labels of these
            some = replace(probe, most=15, **({"ks": (1,)} if isinstance(probe, KNNProbeConfig) else {}))
            assert set(asked(some, model=Patches())["rows"]["latents, mean"].values()) == {1.0}
        assert found["chance"] == 0.5
        assert not any("top5" in name for name in found["rows"]["latents, mean"])


def test_latents_that_are_the_teachers_tokens_are_alike_and_those_of_other_images_are_not() -> None:
    teacher = TEACHER.for_stride(4).build()

    class Teaching(Patches):
        def encode(self, images: Tensor) -> Tensor:
            out = teacher((images + 1) / 2)
            return out.patches.mT.unflatten(2, out.grid)

    found = asked(SimilarityProbeConfig(teacher=TEACHER, k=4), Scenes(40), Teaching())
    name = found["teacher_name"]
    assert [*found["rows"][name].values()] == pytest.approx([1, 1, 1, 1])
    assert [*found["rows"][name]] == ["cka_N40", "cka_unbiased_N40", "cknna4_N40", "mutual_knn4_N40"]
    assert all(value < 0.6 for value in found["rows"][f"{name}, shuffled"].values())
    found = asked(SelfSimilarityProbeConfig(teacher=TEACHER, far=4), Scenes(3), Teaching())
    assert found["rows"]["latents"] == pytest.approx(found["rows"][name])
    assert found["rows"][f"latents to {name}"]["selfsim_err"] == pytest.approx(0, abs=1e-6)
    found = asked(RetrievalProbeConfig(teacher=TEACHER), Scenes(30), Teaching(), training=Scenes(20))
    assert list(found["rows"]) == ["ridge"]
    numbers = found["rows"]["ridge"]
    assert [numbers[f"r@{k}_{p}_N30"] for k in (1, 5, 10) for p in ("meanpool", "flatten")] == [1] * 6
    assert all(numbers[f"r@{k}_meanpool_N30_shuffled"] < 0.7 for k in (1, 5, 10))
    assert numbers["cos_token"] > 0.99
    assert numbers["nmse_var"] < 0.05


def test_a_constant_latent_is_at_chance_everywhere() -> None:
    class Constant(Patches):
        def encode(self, images: Tensor) -> Tensor:
            return torch.ones_like(super().encode(images))

    found = asked(SimilarityProbeConfig(teacher=TEACHER, k=3), Scenes(10), Constant())["rows"]
    numbers = next(iter(found.values()))
    assert numbers["cka_N10"] is numbers["cka_unbiased_N10"] is None
    assert numbers["mutual_knn3_N10"] < 0.8
    numbers = asked(RetrievalProbeConfig(teacher=TEACHER), Scenes(12), Constant(), training=Scenes(5))["rows"]["ridge"]
    assert [numbers[f"r@{k}_flatten_N12"] for k in (1, 5, 10)] == pytest.approx([1 / 12, 5 / 12, 10 / 12])
    assert numbers["nmse_var"] > 0.9
    found = asked(KNNProbeConfig(labels=FEW, ks=(1,), most=50), model=Constant())
    assert found["rows"]["latents, mean"]["knn1_N50"] < 0.25
    found = asked(SelfSimilarityProbeConfig(far=4), Scenes(3), Constant())["rows"]["latents"]
    assert [*found.values()] == pytest.approx([0, 0, 0], abs=1e-12)


def test_a_head_that_knows_the_tokens_retrieves_them() -> None:
    model, config = Patches(), TEACHER.for_stride(4)
    teacher = config.build()

    def perfect(latents: Tensor) -> Tensor:
        return 2 * teacher((F.pixel_shuffle(latents, 4) + 1) / 2).patches

    found = asked(RetrievalProbeConfig(), Scenes(12), model, teacher=config, predict_tokens=perfect)
    assert list(found["rows"]) == ["head"]
    numbers = found["rows"]["head"]
    assert numbers["r@1_flatten_N12"] == numbers["r@1_meanpool_N12"] == 1
    assert numbers["cos_token"] == pytest.approx(1)
    assert numbers["nmse_energy"] == pytest.approx(1)  # of twice the length
    other = RetrievalProbeConfig(teacher=HOGConfig())
    found = asked(other, Scenes(12), model, teacher=config, predict_tokens=perfect, training=Scenes(4))
    assert list(found["rows"]) == ["ridge"]  # a head is asked for tokens of its own teacher alone


def test_a_readout_is_fitted_on_as_many_images_as_asked_for() -> None:
    context = {"training": Scenes(12), "teacher": HOGConfig()}
    one, all_of_them = (
        asked(RetrievalProbeConfig(fit_images=n), Scenes(6), Patches(), **context)["rows"]["ridge"] for n in (1, 12)
    )
    assert one["nmse_energy"] > 1.05 * all_of_them["nmse_energy"]
    tiles = RetrievalProbeConfig(fit_images=12, tile=8)  # a twelfth of the pixels
    assert asked(tiles, Scenes(6), Patches(), **context)["rows"]["ridge"]["nmse_energy"] > all_of_them["nmse_energy"]


def test_class_tokens_of_a_token_head_are_retrieved_as_well() -> None:
    config = DinacAEConfig(
        **{**vars(TINY), "encoder": StackEncoderConfig(block=DiTBlockConfig(head_width=8), depth=1)},
        token_head=DINOTokenHeadConfig(features=32, head_width=16),
    )
    found = asked(RetrievalProbeConfig(teacher=TEACHER), Scenes(12), tiny(config), training=Scenes(4))
    assert list(found["rows"]["class token"]) == [f"r@{k}_cls_N12{s}" for s in ("", "_shuffled") for k in (1, 5, 10)]


def test_token_errors_are_their_definitions_and_add_over_parts() -> None:
    p, t = torch.randn(6, 5, 3), torch.randn(6, 5, 3) + 1
    t[0, 2] = 0
    whole, merged = TokenErrors(), TokenErrors()
    whole.update(p, t)
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        part_of = TokenErrors()
        part_of.update(p[rows], t[rows])
        merged = part_of.merge(merged)
    flat_p, flat_t = p.double().flatten(0, 1), t.double().flatten(0, 1)
    mean = flat_t.mean(dim=0)
    directed = [i for i in range(30) if flat_t[i].norm() > 0]
    assert len(directed) == 29
    error = (flat_p - flat_t).square().sum()
    expected = {
        "cos_token": sum(F.cosine_similarity(flat_p[i], flat_t[i], dim=0) for i in directed) / 29,
        "cos_mean_token": sum(F.cosine_similarity(mean, flat_t[i], dim=0) for i in directed) / 29,
        "nmse_energy": error / flat_t.square().sum(),
        "nmse_var": error / (flat_t - mean).square().sum(),
    }
    for sums in (whole, merged):
        assert sums.report() == pytest.approx({k: float(v) for k, v in expected.items()})


# --- features from Python -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [HOGConfig(patch=8), TinyViTConfig(width=32, head_width=16, patch=8)])
def test_features_of_a_teacher_are_collected_as_those_of_a_model(config: TeacherConfig) -> None:
    teacher, images = config.build(), Scenes(5, (24, 32), (24, 32), (16, 40), (24, 32), (17, 33))
    calls: list[tuple[int, int]] = []
    found = representations(teacher, images, maps=True, on_image=lambda *call: calls.append(call))
    assert calls == [(i, 5) for i in range(1, 6)]
    assert found.names == [f"scene-{i}" for i in range(5)]
    assert found.sizes == [(24, 32), (24, 32), (16, 40), (24, 32), (16, 32)]
    assert [tuple(m.shape[2:]) for m in found.maps] == [(3, 4), (3, 4), (2, 5), (3, 4), (2, 4)]
    for i in range(5):
        image = ArchetypePSNRConfig().prepare(images.read(i), stride=8)
        out = teacher((image + 1) / 2)
        torch.testing.assert_close(found.mean[i], out.patches.double().mean(dim=1)[0])
        torch.testing.assert_close(found.maps[i].flatten(2).mT, out.patches)
        if out.cls is not None:
            assert found.cls is not None
            torch.testing.assert_close(found.cls[i], out.cls[0])
    model = representations(Patches(), images, most=3)
    assert model.names == ["scene-0", "scene-1", "scene-3"]
    assert 0 <= linear_cka(found.mean[[0, 1, 3]], model.mean) <= 1
    assert local_distant_similarity(found.maps[0], far=3).shape == (1,)
    assert selfsim_error(found.maps[0], found.maps[1]).item() > 0


def test_images_that_do_not_fit_are_named() -> None:
    message = "scene-1: size: must be at least 4x4, got 3x9; leave the picture out"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        representations(Patches(), Scenes(2, (8, 8), (3, 9)))
    model = Patches()
    model.scale.data.fill_(math.nan)
    message = "scene-0 to scene-1: the latents are not finite; the model or its statistics are damaged"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        representations(model, Scenes(2))


def test_tiles_cut_images_from_the_top_left() -> None:
    scenes = Scenes(2, (24, 32), (9, 20))
    tiles = Tiles(scenes, 8)
    assert len(tiles) == 12 + 2
    assert [tiles.name(i) for i in (0, 1, 4, 13)] == ["scene-0@0,0", "scene-0@0,8", "scene-0@8,0", "scene-1@0,8"]
    assert tiles.size(3) == (8, 8)
    assert tiles.read(5) == scenes.read(0).crop((8, 8, 16, 16))
    assert tiles.read(13) == scenes.read(1).crop((8, 0, 16, 8))
    message = "tile: must fit into an image, got 33 for 2 smaller ones"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Tiles(scenes, 33)


def test_maps_have_one_basis_for_the_set_or_one_for_each_image() -> None:
    maps = [torch.randn(1, 5, 4, 6), 3 + torch.randn(1, 5, 4, 6)]
    together, alone = pca_maps(maps), pca_maps(maps, fitted_on="image")
    assert [picture.size for picture in together + alone] == [(6, 4)] * 4
    assert together == latent_colours(maps)
    assert alone == [latent_colours([m])[0] for m in maps]
    assert together != alone


# --- answers --------------------------------------------------------------------------------------------------------


@every_new_probe
def test_answers_travel_with_results_into_tables_and_pages(probe: ProbeConfig, tmp_path: Path) -> None:
    model, images = tiny(), Scenes(10)
    result = evaluate(model, images, training=Scenes(4), teacher=HOGConfig(patch=4), probes=[probe])
    saved = load_result(save_result(result, tmp_path / "evaluation"))
    (answer,) = saved["probes"].values()
    assert answer == json.loads(json.dumps(result["probes"]))[next(iter(saved["probes"]))]
    assert (answer["kind"], answer["id"], decode(answer["settings"])) == (probe.kind, probe.id, probe)
    assert len(json.dumps(answer)) < 20_000
    columns = probe.columns(answer)
    assert columns
    for label, (value, unit) in columns.items():
        assert label.startswith(f"{probe.kind.partition('/')[2]}")
        assert value is None or math.isfinite(value)
        assert unit == ""
    text = "".join(str(cell) for column in results_table([saved]).columns for cell in column.cells)
    assert all(label in text for label in columns)
    page = write_report(tmp_path, model, images).read_text(encoding="utf-8")
    assert f"{probe.kind} ({probe.id})" in page
    shown = [name for numbers in answer["rows"].values() for name in numbers]
    assert all(name.removesuffix("_shuffled") in page for name in shown)
    assert "_shuffled" not in page  # a control stands beside its number
    assert ("ridge, shuffled" in page) == isinstance(probe, RetrievalProbeConfig)
    assert not re.search(r"(src|href)=\"(?!data:)", page)


@every_new_probe
def test_an_answer_is_the_same_when_asked_again_and_leaves_all_as_it_was(probe: ProbeConfig) -> None:
    @part("teacher/drawing")
    class DrawingConfig(HOGConfig):
        """A network draws its weights from the global generator, before it gets others."""

        def build(self) -> Any:
            torch.randn(3)
            return super().build()

    model, state = tiny().train(), torch.get_rng_state()
    context = {"training": Scenes(4), "teacher": DrawingConfig(patch=4)}
    first, second = (asked(probe, Scenes(8), model, **context) for _ in range(2))
    assert first == second
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_answers_say_what_they_are_of() -> None:
    found = asked(SimilarityProbeConfig(k=2, tile=8), Scenes(2), teacher=TEACHER)
    assert found["set"]["n"] == 24
    assert found["teacher"] == encode(TEACHER.for_stride(4))
    assert found["teacher_spec_id"] == TEACHER.for_stride(4).build().spec.id
    assert set(found["rows"][found["teacher_name"]]) == {
        f"{name}_N24" for name in ("cka", "cka_unbiased", "cknna2", "mutual_knn2")
    }
    digits = [asked(KNNProbeConfig(labels=FEW, most=n))["train"] for n in (30, 31, 30)]
    assert [part_of["n"] for part_of in digits] == [30, 31, 30]
    assert digits[0] == digits[2] != digits[1]


@pytest.mark.parametrize(
    ("teacher", "name"),
    [
        (HOGConfig(), "hog"),
        (HOGConfig(orientations=6), "hog-"),
        (TinyViTConfig(), "tiny_vit:64"),
        (TEACHER, "tiny_vit:32-"),
    ],
)
def test_teachers_are_called_by_their_short_form_where_it_says_all(teacher: TeacherConfig, name: str) -> None:
    found = asked(SimilarityProbeConfig(k=2), Scenes(4), Patches(), teacher=teacher)["teacher_name"]
    assert found == (f"{name}{teacher.for_stride(4).id}" if name.endswith("-") else name)


def test_a_teacher_with_a_class_token_gets_a_row_for_it() -> None:
    found = asked(KNNProbeConfig(labels=FEW, ks=(1,), most=40, teacher=TinyViTConfig()))
    assert list(found["rows"]) == ["latents, mean", "tiny_vit:64, mean", "tiny_vit:64, cls"]
    found = asked(LinearProbeConfig(labels=FEW, most=40, teacher=TinyViTConfig(), solvers=("ridge",)))
    assert list(found["rows"]) == ["latents, mean", "tiny_vit:64, mean", "tiny_vit:64, mean+cls"]
    found = asked(LinearProbeConfig(labels=FEW, most=40, teacher=HOGConfig(), solvers=("ridge",)))
    assert list(found["rows"]) == ["latents, mean", "hog, mean"]


def test_images_of_several_sizes_are_retrieved_by_their_means() -> None:
    scenes = Scenes(4, (24, 32), (24, 32), (16, 16), (32, 24))
    found = asked(RetrievalProbeConfig(), scenes, Patches(), teacher=HOGConfig(), training=scenes)
    assert set(found["rows"]["ridge"]) >= {"r@1_meanpool_N4", "r@1_meanpool_N4_shuffled"}
    assert found["left_out"] == {"flatten": "images have grids of several sizes"}


def test_progress_counts_images_of_both_parts() -> None:
    calls: list[tuple[int, int]] = []
    probe = KNNProbeConfig(labels=FEW, ks=(1,), most=40)
    probe.measure(Patches(), Scenes(1), ArchetypePSNRConfig(), on_image=lambda *call: calls.append(call))
    assert calls == [(i, 80) for i in range(1, 81)]


def test_maps_are_fitted_on_what_was_asked_for() -> None:
    maps = representations(Patches(), Scenes(3), maps=True).maps
    for fitted_on in ("set", "image"):
        found = asked(PCAMapsProbeConfig(fitted_on=fitted_on), Scenes(3), Patches())
        shown = [
            np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(image["maps"]["latents"].partition(",")[2]))))
            for image in found["images"]
        ]
        for pixels, picture in zip(shown, pca_maps(maps, fitted_on=fitted_on), strict=True):
            np.testing.assert_array_equal(pixels, np.asarray(picture))


def test_maps_are_small_whatever_the_images() -> None:
    found = asked(PCAMapsProbeConfig(), Scenes(2, (512, 768), (16, 16)), Patches(), teacher=HOGConfig())
    assert len(json.dumps(found)) < 25_000
    assert [list(image["maps"]) for image in found["images"]] == [["latents", "hog"]] * 2
    assert all(0 < row["pca3_variance_N2"] <= 1 for row in found["rows"].values())


# --- from the command line, and what is refused ---------------------------------------------------------------------


def test_probes_are_asked_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_folder(tiny(), tmp_path / "model")
    scenes = Scenes(4)
    (tmp_path / "data").mkdir()
    for i in range(4):
        scenes.read(i).save(tmp_path / "data" / f"{i}.png")
    knn = '{"kind": "probe/knn", "labels": "digits:16", "ks": [1], "most": 30}'
    where = ["eval", str(tmp_path / "model"), "--data", str(tmp_path / "data"), "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*where, "--probe", "pca_maps:hog", "--probe", knn, "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "latents, pca3_variance_N4" in printed
    assert "knn1_N30" in printed
    result = load_result(tmp_path / "archetype_psnr.json")
    assert [answer["kind"] for answer in result["probes"].values()] == ["probe/pca_maps", "probe/knn"]
    with pytest.raises(SystemExit, match=r"^1$"):
        main([*where, "--probe", "similarity"])
    message = (
        "error: probe/similarity: needs a teacher, and the model's recipe has none; name one, as in --probe "
        "similarity:hog"
    )
    assert message in capsys.readouterr().err


def test_every_new_probe_travels_as_json() -> None:
    assert {cls.kind for cls in parts(ProbeConfig)} >= {probe.kind for probe in NEW}
    for probe in NEW:
        assert decode(json.loads(json.dumps(encode(probe))), ProbeConfig) == probe


@pytest.mark.parametrize(
    ("probe", "images", "context", "message"),
    [
        (
            SimilarityProbeConfig(),
            3,
            {"teacher": HOGConfig()},
            "probe/similarity: k=10 needs at least 11 images, got 3; evaluate more, lower k, or cut them into tiles",
        ),
        (
            SimilarityProbeConfig(k=2),
            3,
            {"teacher": HOGConfig()},
            "probe/similarity: k=2 needs at least 4 images, got 3; evaluate more, lower k, or cut them into tiles",
        ),
        (
            RetrievalProbeConfig(),
            1,
            {"teacher": HOGConfig(), "training": Scenes(1)},
            "probe/retrieval: takes at least 2 images to choose among, got 1; cut it into tiles",
        ),
        (
            RetrievalProbeConfig(),
            4,
            {"teacher": HOGConfig()},
            "probe/retrieval: has nothing to predict tokens of hog with; give images to fit a readout on (training), "
            "or a run whose alignment head has this teacher",
        ),
        (
            RetrievalProbeConfig(),
            4,
            {},
            "probe/retrieval: needs a teacher, and the model's recipe has none; name one, as in --probe retrieval:hog",
        ),
        (
            SelfSimilarityProbeConfig(far=13),
            2,
            {},
            "scene-0: far: must be from 2 to 12 on a grid of 6x8, got 13; a larger image has more tokens",
        ),
        (
            KNNProbeConfig(labels=FEW, most=19),
            1,
            {},
            "probe/knn: k=20 needs as many images for training, got 19; lower ks, or add images",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused(
    probe: ProbeConfig, images: int, context: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        asked(probe, Scenes(images), Patches(), **context)


def test_a_teacher_on_another_grid_needs_a_rule() -> None:
    class Elsewhere(Patches):
        stride = 8

        def encode(self, images: Tensor) -> Tensor:
            return F.pixel_unshuffle(images, 4)

    message = (
        "scene-0, hog: the teacher's grid is (3, 4), the latent's (6, 8); choose a teacher whose patch equals the "
        "model's stride, or resample with the grid rule 'grid/resample'"
    )
    context = {"teacher": HOGConfig(), "training": Scenes(3)}
    for probe in (RetrievalProbeConfig(), SelfSimilarityProbeConfig(far=2)):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            asked(probe, Scenes(3), Elsewhere(), **context)
    for resampled in ("teacher", "prediction"):
        rule = ResampleGridConfig(resampled=resampled)
        found = asked(RetrievalProbeConfig(grid=rule), Scenes(3), Elsewhere(), **context)["rows"]["ridge"]
        assert 0.5 < found["cos_token"] < 1
        found = asked(SelfSimilarityProbeConfig(far=2, grid=rule), Scenes(3), Elsewhere(), **context)["rows"]
        assert 0 < found["latents to hog"]["selfsim_err"] < 1


SETTINGS: Sequence[tuple[type[ProbeConfig], dict[str, Any], str]] = [
    (KNNProbeConfig, {"ks": ()}, "config.ks: must be 1 or more, got []"),
    (KNNProbeConfig, {"ks": (0, 5)}, "config.ks: must be 1 or more, got [0, 5]"),
    (KNNProbeConfig, {"temperature": 0.0}, "config.temperature: must be positive, got 0.0"),
    (KNNProbeConfig, {"most": 0}, "config.most: must be at least 1, got 0"),
    (LinearProbeConfig, {"solvers": ()}, "config.solvers: is empty; name 'ridge', 'sgd', or both"),
    (LinearProbeConfig, {"penalty": 0.0}, "config.penalty: must be positive, got 0.0"),
    (LinearProbeConfig, {"rate": -1.0}, "config.rate: must be positive, got -1.0"),
    (SimilarityProbeConfig, {"k": 1}, "config.k: must be at least 2, got 1"),
    (SimilarityProbeConfig, {"tile": 0}, "config.tile: must be at least 1, got 0"),
    (RetrievalProbeConfig, {"ks": ()}, "config.ks: must be 1 or more, got []"),
    (RetrievalProbeConfig, {"fit_images": 0}, "config.fit_images: must be at least 1, got 0"),
    (SelfSimilarityProbeConfig, {"far": 1}, "config.far: must be at least 2, got 1"),
    (SelfSimilarityProbeConfig, {"decay": 1}, "config.decay: must be at least 2, got 1"),
    (
        PCAMapsProbeConfig,
        {"fitted_on": "sets"},
        "config.fitted_on: takes 'set' or 'image', got 'sets'; did you mean 'set'?",
    ),
]


@pytest.mark.parametrize(("cls", "settings", "message"), SETTINGS)
def test_settings_are_checked(cls: type[ProbeConfig], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PartError, match=f"^{re.escape(message)}$"):
        cls(**settings)
