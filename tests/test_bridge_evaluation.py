"""Bridges are measured: numbers of planted features with known answers, what must be beaten, results and tables."""

import contextlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import given
from rich.console import Console
from torch import Tensor

from latelier.blocks import (
    Codec,
    DataConfig,
    HOGConfig,
    LatentSpace,
    LatentSpaceConfig,
    LatentSpec,
    LinearHeadConfig,
    Loaded,
    NoNormConfig,
    PairSource,
    StridedConvStemConfig,
    TeacherOutput,
    TeacherSpec,
    TokensHeadConfig,
    TransformerBodyConfig,
    part,
    patchify,
    unpatchify,
)
from latelier.cli import main
from latelier.evaluation import (
    ArchetypePSNRConfig,
    BridgeErrors,
    BridgeValConfig,
    SelfSimilarityProbeConfig,
    bridge_baselines,
    bridge_gain,
    bridge_row,
    charts,
    evaluate_bridge,
    latent_colours,
    load_result,
    results_table,
    save_result,
    share_of_gain,
    write_bridge_report,
)
from latelier.families import LatentBridge, LatentBridgeConfig
from latelier.recipes import measure_run
from latelier.training import AdamWConfig, Recipe, StageConfig, bridge_objective, load_run, train

SIDE, GRID = 32, 4
TEACHER = HOGConfig(patch=8, cells=1)


class Squares(Codec):
    """An exact autoencoder: squares of pixels as channels."""

    def __init__(self, square: int) -> None:
        super().__init__()
        self.square = square

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        return patchify(images, self.square), None

    def reconstruct(self, raw: Tensor) -> Tensor:
        return unpatchify(raw, self.square)


@part("latent_space/squares")
class SquaresConfig(LatentSpaceConfig):
    """Images whose ``square`` x ``square`` pixels are the channels of a latent."""

    square: int = 4
    broken: bool = False

    @property
    def spec(self) -> LatentSpec:
        return LatentSpec(source="squares", channels=3 * self.square**2, stride=self.square)

    def build(self) -> LatentSpace:
        return LatentSpace(self, self.load, norm=NoNormConfig())

    def load(self) -> Loaded:
        if self.broken:
            raise OSError("squares: no file of weights")
        return Loaded(Squares(self.square))


class Planted:
    """Pictures of blurred noise, their latents, and what HOG says of them."""

    def __init__(
        self, names: Sequence[int], *, square: int = 4, cls: bool = False, teacher: HOGConfig = TEACHER
    ) -> None:
        self.names, self.square, self.has_cls = names, square, cls
        self.built = teacher.build()

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return f"{self.names[index]}.png:central"

    @property
    def latent_spec(self) -> LatentSpec:
        return SquaresConfig(square=self.square).spec

    @property
    def teacher_spec(self) -> TeacherSpec | None:
        return self.built.spec

    @property
    def resolution(self) -> int:
        return SIDE

    @property
    def grid(self) -> tuple[int, int]:
        return GRID, GRID

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return 3 * self.square**2, SIDE // self.square, SIDE // self.square

    @property
    def features(self) -> int:
        return TEACHER.features

    def images(self, indices: Sequence[int]) -> Tensor:
        seeds = [torch.Generator().manual_seed(self.names[index]) for index in indices]
        noise = torch.stack([torch.randn(3, 12, 12, generator=seed) for seed in seeds])
        return F.interpolate(noise, (SIDE, SIDE), mode="bicubic").clamp(-1, 1)

    def read(self, indices: Sequence[int]) -> tuple[Tensor, TeacherOutput]:
        images = self.images(indices)
        said = self.built((images + 1) / 2)
        cls = said.patches.mean(dim=1) if self.has_cls else None
        return patchify(images, self.square), TeacherOutput(said.patches.float(), said.grid, cls)

    def thumbnail(self, index: int) -> Tensor | None:
        levels = F.interpolate(self.images([index]), (64, 64), mode="nearest")[0]
        return ((levels + 1) * 127.5).round().to(torch.uint8)


def bridge(*, square: int = 4, cls: bool = False, seed: int = 0, broken: bool = False) -> LatentBridge:
    torch.manual_seed(seed)
    config = LatentBridgeConfig(
        space=SquaresConfig(square=square, broken=broken),
        teacher=TEACHER,
        stem=StridedConvStemConfig(mid=8, out=8),
        body=TransformerBodyConfig(width=8, depth=1, heads=2),
        head=TokensHeadConfig(head_width=4) if cls else LinearHeadConfig(),
        image=SIDE,
    )
    return LatentBridge(config)


def said(tokens: Tensor, grid: tuple[int, int] | None = None, cls: Tensor | None = None) -> TeacherOutput:
    return TeacherOutput(tokens, grid or (1, tokens.shape[1]), cls)


def random_tokens(images: int, tokens: int, features: int, seed: int = 0) -> Tensor:
    return torch.randn(images, tokens, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def measured(prediction: Tensor, target: Tensor, **settings: Any) -> dict[str, float | None]:
    errors = BridgeErrors()
    errors.take(said(prediction), said(target), **settings)
    return errors.report()


# --- numbers with known answers -----------------------------------------------------------------------------------


@given(angle=st.floats(0, math.pi), scale=st.floats(0.25, 4.0), seed=st.integers(0, 99))
def test_tokens_turned_by_an_angle_and_scaled_have_the_numbers_of_that_angle_and_scale(
    angle: float, scale: float, seed: int
) -> None:
    target = random_tokens(3, 5, 8, seed)
    cos, sin = math.cos(angle), math.sin(angle)
    planes = rearrange(target, "b n (c two) -> b n c two", two=2)
    turned = scale * rearrange(
        torch.stack([cos * planes[..., 0] - sin * planes[..., 1], sin * planes[..., 0] + cos * planes[..., 1]], dim=-1),
        "b n c two -> b n (c two)",
    )
    numbers = measured(turned, target)
    error = 1 - 2 * scale * cos + scale**2
    energy = target.square().mean().item()
    centred = (target - target.mean(dim=(0, 1))).square().mean().item()
    assert numbers["cos_token"] == pytest.approx(cos, abs=1e-6)
    assert numbers["nmse_energy"] == pytest.approx(error, abs=1e-5)
    assert numbers["nmse_var"] == pytest.approx(error * energy / centred, abs=1e-4)
    assert numbers["selfsim_err"] == pytest.approx(0, abs=1e-6)
    loss = (1 - cos) * (1 + 0.25 * 2 / 8) + 0.05 * error * energy
    assert numbers["card_loss"] == pytest.approx(loss, abs=1e-5)


CARD = [
    (0.401512, 0.624136, 0.610722),
    (0.335588, 0.686514, 0.526457),
    (0.303365, 0.716936, 0.483648),
    (0.282880, 0.736246, 0.455694),
    (0.268303, 0.749953, 0.434974),
    (0.258487, 0.759174, 0.420825),
]


@pytest.mark.parametrize(("loss", "cosine", "nmse"), CARD)
def test_features_with_the_cards_cosine_and_nmse_have_its_loss(loss: float, cosine: float, nmse: float) -> None:
    """Tokens of two lengths in 768 channels: the cosine of the long ones is what the NMSE asks for."""
    low = torch.zeros(1, 2, 768, dtype=torch.float64)
    low[0, 0, 0], low[0, 1, 0] = 0.6, 1.4
    target = low * math.sqrt(2 * 0.8319 * 768 / low.square().sum().item())
    # optimal lengths leave 1 - cos² of the energy; the two cosines c -+ d have their mean and this share
    shares = (target.square().sum(dim=2) / target.square().sum()).flatten().tolist()
    pairs = [(cosine - d, cosine + d) for d in torch.linspace(-0.2, 0.2, 20_001, dtype=torch.float64).tolist()]
    a, b = min(pairs, key=lambda two: abs(sum(s * (1 - c**2) for s, c in zip(shares, two, strict=True)) - nmse))
    prediction = torch.zeros_like(target)
    for token, c in enumerate((a, b)):
        length = target[0, token, 0] * c
        prediction[0, token, 0], prediction[0, token, 1] = length * c, length * math.sqrt(1 - c**2)
    numbers = measured(prediction, target)
    assert numbers["cos_token"] == pytest.approx(cosine, abs=1e-6)
    assert numbers["nmse_energy"] == pytest.approx(nmse, abs=1e-5)
    assert numbers["card_loss"] == pytest.approx(loss, abs=1e-5)


def test_the_mean_token_leaves_the_variance_and_nothing_else() -> None:
    target = random_tokens(6, 4, 8) + 2
    numbers = measured(target.mean(dim=(0, 1)).expand(6, 4, -1), target)
    assert numbers["nmse_var"] == pytest.approx(1, abs=1e-6)
    assert numbers["cos_token"] == pytest.approx(numbers["cos_mean_token"], abs=1e-6)


def test_self_similarity_of_two_tokens_is_wrong_by_the_difference_of_their_cosines() -> None:
    target = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    prediction = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]], dtype=torch.float64)
    assert measured(prediction, target)["selfsim_err"] == pytest.approx(math.sqrt(0.5), abs=1e-6)


@pytest.mark.parametrize("pooling", ["flatten", "meanpool", "cls"])
def test_a_perfect_predictor_finds_every_image_and_the_control_about_k_in_n(pooling: Any) -> None:
    target = said(random_tokens(200, 4, 8), cls=random_tokens(200, 1, 8, 1)[:, 0])
    errors = BridgeErrors()
    for start in range(0, 200, 64):
        rows = slice(start, start + 64)
        assert target.cls is not None
        batch = said(target.patches[rows], cls=target.cls[rows])
        errors.take(batch, batch, pooling=(pooling,))
    numbers = errors.report(ks=(1, 5, 10))
    for k in (1, 5, 10):
        assert numbers[f"r@{k}_{pooling}_N200"] == 1
        control = numbers[f"r@{k}_{pooling}_N200_shuffled"]
        assert control is not None
        assert abs(control - k / 200) < 4 * math.sqrt(k / 200 / 200)
    assert numbers["cos_class"] == pytest.approx(1)
    assert {name.split("_")[1] for name in numbers if name.startswith("r@")} == {pooling}


def test_mean_pooled_tokens_forget_where_they_were_and_flattened_ones_do_not() -> None:
    target = random_tokens(30, 4, 8)
    numbers = measured(target.flip(1), target, pooling=("flatten", "meanpool"))
    assert numbers["r@1_meanpool_N30"] == 1
    flattened = numbers["r@1_flatten_N30"]
    assert flattened is not None
    assert flattened < 0.3


def test_a_k_that_cannot_miss_is_left_out() -> None:
    target = random_tokens(4, 2, 8)
    errors = BridgeErrors()
    errors.take(said(target), said(target), pooling=("flatten",))
    assert not [name for name in errors.report(ks=(4, 5)) if name.startswith("r@")]
    assert [name for name in errors.report(ks=(3, 4)) if name.startswith("r@")] == [
        "r@3_flatten_N4",
        "r@3_flatten_N4_shuffled",
    ]


def test_maps_show_at_which_position_of_the_grid_the_errors_are() -> None:
    target = random_tokens(5, 6, 8)
    prediction = target.clone()
    prediction[:, 4] *= -1
    errors = BridgeErrors()
    errors.take(said(prediction, (2, 3)), said(target, (2, 3)))
    maps = errors.maps()
    assert maps["grid"] == [2, 3]
    assert torch.tensor(maps["cos_error"]).allclose(torch.tensor([[0.0, 0, 0], [0, 2, 0]]), atol=1e-6)
    assert torch.tensor(maps["nmse"]).allclose(torch.tensor([[0.0, 0, 0], [0, 4, 0]]), atol=1e-6)


def test_tokens_of_zeros_have_no_direction_and_stay_out_of_cosines() -> None:
    target = random_tokens(2, 4, 8)
    target[:, 1] = 0
    errors = BridgeErrors()
    rows = errors.take(said(target + 0, (2, 2)), said(target, (2, 2)))
    assert errors.report()["cos_token"] == pytest.approx(1)
    assert [row["cos_token"] for row in rows] == pytest.approx([1, 1])
    assert errors.maps()["cos_error"][0][1] is None
    assert errors.maps()["nmse"][0][1] is None


@given(cut=st.integers(1, 7))
def test_parts_of_a_set_have_the_numbers_of_the_whole(cut: int) -> None:
    target, noise = random_tokens(8, 4, 6), random_tokens(8, 4, 6, 1)
    whole, one, other = BridgeErrors(), BridgeErrors(), BridgeErrors()
    for errors, rows in ((whole, slice(None)), (one, slice(cut)), (other, slice(cut, None))):
        t = target[rows]
        errors.take(said(t + noise[rows], cls=noise[rows, 0]), said(t, cls=t[:, 0]), pooling=("flatten", "cls"))
    both = one.merge(other)
    assert both.report() == pytest.approx(whole.report(), abs=1e-6)
    assert both.maps()["nmse"][0] == pytest.approx(whole.maps()["nmse"][0])


def test_predictions_on_another_grid_or_without_numbers_are_refused() -> None:
    tokens = random_tokens(2, 4, 8)
    with pytest.raises(ValueError) as caught:
        BridgeErrors().take(said(tokens, (2, 2)), said(random_tokens(2, 8, 8), (2, 4)))
    assert str(caught.value) == (
        "bridge: predicts 2x2 tokens of 8 features, and the pairs have 2x4 tokens of 8 features; "
        "measure it on pairs of the teacher that it learnt from"
    )
    with pytest.raises(ValueError) as caught:
        BridgeErrors().take(said(tokens / 0), said(tokens))
    assert str(caught.value) == "bridge: its prediction is not finite; the model or its latents are damaged"


# --- what must be beaten ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("latent", "grid"), [((3, 8, 8), (4, 4)), ((3, 4, 4), (4, 4)), ((3, 2, 2), (4, 4))])
def test_the_linear_baseline_finds_a_linear_map_at_any_stride(
    latent: tuple[int, int, int], grid: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(400, *latent, generator=generator)
    down, up = max(latent[1] // grid[0], 1), max(grid[0] // latent[1], 1)
    weight = torch.randn(latent[0] * down**2, 5 * up**2, generator=generator)
    maps = unpatchify(torch.einsum("bzhw,zf->bfhw", patchify(z, down), weight), up) + 3
    target = said(rearrange(maps, "b f h w -> b (h w) f"), grid, cls=maps.mean(dim=(2, 3)))
    linear = bridge_baselines.LinearStem(latent=latent, grid=grid, features=5)
    assert target.cls is not None
    linear.observe(z[:200], replace(target, patches=target.patches[:200], cls=target.cls[:200]))
    linear.solve()
    errors = BridgeErrors()
    errors.take(linear(z), target)
    numbers = errors.report()
    assert numbers["nmse_var"] is not None
    assert numbers["nmse_var"] < 1e-5
    assert numbers["cos_class"] == pytest.approx(1, abs=1e-3)
    mean = linear.mean(z)
    assert mean.patches.shape == target.patches.shape
    torch.testing.assert_close(mean.patches[0, 0], target.patches[:200].mean(dim=(0, 1)), rtol=1e-4, atol=1e-4)


def test_a_linear_baseline_of_many_inputs_and_few_images_is_no_worse_than_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    z, tokens = (torch.randn(400, *shape, generator=generator) for shape in ((48, 2, 2), (4, 5)))
    linear = bridge_baselines.LinearStem(latent=(48, 2, 2), grid=(2, 2), features=5)
    linear.observe(z[:40], said(tokens[:40] + 1, (2, 2)))
    linear.solve()
    mine, mean = BridgeErrors(), BridgeErrors()
    mine.take(linear(z[40:]), said(tokens[40:] + 1, (2, 2)))
    mean.take(linear.mean(z[40:]), said(tokens[40:] + 1, (2, 2)))
    ours, theirs = (errors.report()["nmse_energy"] for errors in (mine, mean))
    assert ours is not None
    assert theirs is not None
    assert ours < 1.02 * theirs


def test_grids_without_a_whole_stride_have_no_linear_baseline() -> None:
    with pytest.raises(ValueError) as caught:
        bridge_baselines.LinearStem(latent=(4, 5, 4), grid=(4, 4), features=3)
    assert str(caught.value) == "linear: latents of 5x4 and 4x4 tokens have no whole stride between them"


def test_a_bridge_stands_beside_what_it_must_beat() -> None:
    model, held_out = bridge(), Planted(range(100, 112))
    assert isinstance(held_out, PairSource)
    result = evaluate_bridge(model, held_out, training=Planted(range(40)))
    assert [row["name"] for row in result["rows"]] == ["bridge", "mean token", "linear", "decode, then teacher"]
    metrics = [set(row["metrics"]) for row in result["rows"]]
    assert all(found == metrics[0] for found in metrics)
    assert {"cos_token", "nmse_energy", "nmse_var", "cos_mean_token", "selfsim_err", "card_loss"} <= metrics[0]
    assert {
        f"r@{k}_{how}_N12{x}" for k in (1, 5, 10) for how in ("flatten", "meanpool") for x in ("", "_shuffled")
    } <= (metrics[0])
    decoded = bridge_row(result, "decode, then teacher")
    assert decoded["metrics"]["cos_token"] == pytest.approx(1, abs=1e-5)
    assert decoded["metrics"]["r@1_flatten_N12"] == 1
    mean, linear = bridge_row(result, "mean token"), bridge_row(result, "linear")
    assert linear["metrics"]["nmse_energy"] < mean["metrics"]["nmse_energy"]
    assert mean["seconds_per_image"] is None
    times = [bridge_row(result, name)["seconds_per_image"] for name in ("bridge", "decode, then teacher")]
    assert result["ratio"] == pytest.approx(times[1] / times[0])
    assert not model.training or model.train(False)


def test_every_pair_has_a_row_of_its_numbers_and_pairs_of_one_set_an_id() -> None:
    held_out = Planted(range(100, 106))
    one, other = (evaluate_bridge(bridge(square=s), Planted(range(100, 106), square=s)) for s in (4, 8))
    assert [row["name"] for row in one["images"]] == [held_out.name(i) for i in range(6)]
    assert all({"cos_token", "nmse_energy", "selfsim_err"} <= set(row) for row in one["images"])
    assert one["set"] == other["set"]
    assert one["set"]["n"] == 6
    assert evaluate_bridge(bridge(), Planted(range(100, 105)))["set"] != one["set"]


def test_class_tokens_are_compared_where_both_sides_have_one() -> None:
    with_class = evaluate_bridge(bridge(cls=True), Planted(range(8), cls=True), training=Planted(range(20), cls=True))
    metrics = bridge_row(with_class)["metrics"]
    assert metrics["cos_class"] is not None
    assert "r@1_cls_N8" in metrics
    assert bridge_row(with_class, "linear")["metrics"]["cos_class"] > 0.5
    without = bridge_row(evaluate_bridge(bridge(), Planted(range(8), cls=True)))["metrics"]
    assert "cos_class" not in without
    assert "r@1_cls_N8" not in without


def test_a_baseline_that_cannot_be_made_says_why() -> None:
    held_out = Planted(range(6))
    result = evaluate_bridge(bridge(broken=True), held_out)
    whys = {row["name"]: row.get("why") for row in result["rows"]}
    assert whys == {
        "bridge": None,
        "mean token": "there are no training pairs to fit it on",
        "linear": "there are no training pairs to fit it on",
        "decode, then teacher": "it cannot be built here: squares: no file of weights",
    }
    assert result["ratio"] is None
    with pytest.raises(ValueError) as caught:
        bridge_row(result, "linear")
    assert str(caught.value) == "result: 'linear' has no numbers: there are no training pairs to fit it on"
    with pytest.raises(OSError, match="no file of weights"):
        evaluate_bridge(bridge(broken=True), held_out, decode_then_teacher=True)
    left_out = evaluate_bridge(bridge(), held_out, decode_then_teacher=False)
    assert left_out["rows"][3] == {"name": "decode, then teacher", "why": "it was not asked for"}


def test_decoding_may_be_measured_on_fewer_pairs_and_the_table_says_so() -> None:
    result = evaluate_bridge(bridge(), Planted(range(8)), protocol=BridgeValConfig(decoded=4, most=6))
    assert [row.get("n") for row in result["rows"]] == [6, None, None, 4]
    text = printed(results_table([result]))
    assert "'Decode, then teacher' is of 4 of the 6 pairs." in text
    assert "No 'linear': there are no training pairs to fit it on." in text


def test_pairs_of_another_space_or_teacher_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^bridge: these latents are of another space \(channels: "):
        evaluate_bridge(bridge(), Planted(range(4), square=8))
    model = bridge()
    model.take_specs(teacher=TEACHER.build().spec)
    other = HOGConfig(patch=8, cells=2)
    with pytest.raises(ValueError, match=r"^pairs: is of another teacher \("):
        evaluate_bridge(model, Planted(range(4), teacher=other))


# --- the protocol, results, tables --------------------------------------------------------------------------------


def printed(table: Any) -> str:
    console = Console(width=300, no_color=True)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"most": 0}, "most: must be at least 1, got 0"),
        ({"ks": (0, 5)}, "ks: must be at least 1, got 0"),
        ({"batch": 0}, "batch: must be at least 1, got 0"),
        ({"pooling": ("cls", "cls")}, "pooling: 'cls' stands there more than once"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        BridgeValConfig(**settings)
    assert message in str(caught.value)


class Pictures:
    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize("call", [lambda p: p.prepare(None, stride=8), lambda p: p.measure(None, Pictures())])
def test_pictures_are_refused_by_the_protocol_of_bridges(call: Callable[[BridgeValConfig], object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        call(BridgeValConfig())


def test_a_result_is_a_file_and_a_table(tmp_path: Path) -> None:
    result = evaluate_bridge(bridge(), Planted(range(6)), training=Planted(range(20, 40)))
    path = save_result(result, tmp_path)
    assert path.name == "bridge_val.json"
    assert load_result(path) == result
    text = printed(results_table([result]))
    for word in ("bridge_val", "6 pairs", "mean token", "linear", "decode, then teacher", "r@5_meanpool_N6_shuffled"):
        assert word in text
    assert "seconds per image" in text
    assert "times as fast as decoding for the teacher, at batch 6 on cpu" in text
    two = printed(results_table([result, result]))
    assert "cos_token" in two


def test_a_table_does_not_mix_bridges_and_reconstructions() -> None:
    result = evaluate_bridge(bridge(), Planted(range(4)))
    summary = dict.fromkeys(("mean", "std", "median", "p5", "p95", "pooled"), 1.0)
    protocol = ArchetypePSNRConfig()
    other = {
        "protocol": {"name": protocol.kind, "id": protocol.id},
        "set": {"n": 4, "id": "abc"},
        "model": {"kind": "family/diffae"},
        "recipe": None,
        "psnr": summary,
        "ssim": summary,
    }
    with pytest.raises(ValueError, match=r"^table: results of 2 protocols \(bridge_val "):
        results_table([result, other])
    text = printed(results_table([result, other], mixed=True))
    assert "cos_token" in text
    assert "PSNR mean" in text


def made(bridge_error: float, linear: float) -> dict[str, Any]:
    pairs = (("bridge", bridge_error), ("linear", linear))
    return {"rows": [{"name": n, "metrics": {"nmse_energy": e}, "seconds_per_image": None} for n, e in pairs]}


def test_gains_are_shares_of_the_baselines_error() -> None:
    assert bridge_gain(made(0.3, 0.5)) == pytest.approx(0.4)
    assert share_of_gain(made(0.34, 0.5), made(0.3, 0.5)) == pytest.approx(0.8)
    assert share_of_gain(made(0.64, 0.8), made(0.3, 0.5)) == pytest.approx(0.5)
    with pytest.raises(ValueError) as caught:
        share_of_gain(made(0.3, 0.5), made(0.6, 0.5))
    assert str(caught.value) == "result: the whole bridge gains -0.2 over 'linear', of which there is no share"
    with pytest.raises(ValueError, match="has no row 'bridge'"):
        bridge_gain({"psnr": {}})


# --- runs, the command line, the report ---------------------------------------------------------------------------


@part("data/planted_bridge_pairs")
class PlantedDataConfig(DataConfig):
    """Planted pairs, as data of a recipe."""

    lost: bool = False

    def training(self) -> Any:
        if self.lost:
            raise FileNotFoundError("pairs: no such folder")
        return Planted(range(20))

    def held_out(self) -> Any:
        return Planted(range(100, 106))


def recipe(*, evaluation: tuple[Any, ...] = (BridgeValConfig(timed=2),)) -> Recipe:
    stage = StageConfig(
        steps=4,
        batch=4,
        resolution=SIDE,
        latents="data",
        objective=bridge_objective("default"),
        optimiser=AdamWConfig(rate=1e-3),
        log_every=1,
        validate_every=2,
    )
    model = bridge().config
    data = PlantedDataConfig()
    return Recipe(name="<planted>", model=model, teacher=TEACHER, data=data, stages=(stage,), evaluation=evaluation)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bridges") / "run"
    train(recipe(), folder)
    return folder


def test_a_run_of_a_bridge_is_measured_as_its_recipe_says(run: Path) -> None:
    loaded = load_run(run)
    (result,) = measure_run(loaded)
    assert result["protocol"]["id"] == BridgeValConfig(timed=2).id
    assert result["recipe"]["name"] == "<planted>"
    assert result["set"]["n"] == 6
    assert "metrics" in result["rows"][2]
    (other,) = measure_run(loaded, held_out=Planted(range(200, 204)))
    assert other["set"]["n"] == 4
    assert "metrics" in other["rows"][2]


def test_a_bridge_is_measured_where_its_training_pairs_are_not(run: Path) -> None:
    loaded = load_run(run)
    elsewhere = replace(loaded, recipe=replace(loaded.recipe, data=PlantedDataConfig(lost=True)))
    (result,) = measure_run(elsewhere, held_out=Planted(range(200, 204)))
    assert result["rows"][2]["why"] == "there are no training pairs to fit it on"
    with pytest.raises(FileNotFoundError):
        list(measure_run(elsewhere))


def test_protocols_and_probes_of_images_do_not_measure_bridges(run: Path) -> None:
    loaded = load_run(run)
    wrong = replace(loaded, recipe=replace(loaded.recipe, evaluation=(ArchetypePSNRConfig(),)))
    with pytest.raises(ValueError) as caught:
        list(measure_run(wrong))
    assert str(caught.value) == (
        f"{run}: the model is a bridge, which 'protocol/archetype_psnr' does not measure; take 'protocol/bridge_val'"
    )
    with pytest.raises(ValueError) as caught:
        list(measure_run(loaded, probes=[SelfSimilarityProbeConfig()]))
    assert str(caught.value) == (
        f"{run}: probes ask models of images, and this is a bridge; leave probe/self_similarity out"
    )


def test_the_command_line_measures_a_bridge_and_writes_its_report(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):  # of success too
        main(["eval", str(run)])
    assert "decode, then teacher" in capsys.readouterr().out
    result = load_result(run / "evaluation" / f"bridge_val-{BridgeValConfig(timed=2).id}.json")
    assert bridge_row(result)["n"] == 6
    with contextlib.suppress(SystemExit):
        main(["report", str(run)])
    assert capsys.readouterr().out.rstrip().endswith("report.html")
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "&lt;planted&gt;" in text
    assert "<planted>" not in text
    assert "http" not in text.replace("http-equiv", "")
    for words in ("Error by position", "What the teacher sees, and the bridge", "Shares of the gradient", "Recipe"):
        assert words in text
    assert text.count("<figure>") == 6
    assert text.count(">Image</span>") == 6
    worst = sorted(result["images"], key=lambda row: row["cos_token"])
    places = [text.index(f"<b>{row['name']}</b>") for row in worst]
    assert places == sorted(places)
    assert f"{result['rows'][0]['metrics']['cos_token']:.3f}" in text


def test_the_report_is_of_the_pairs_that_were_measured(run: Path) -> None:
    loaded = load_run(run)
    protocol = BridgeValConfig(timed=2)
    (result,) = measure_run(loaded)
    save_result(result, run / "evaluation")
    with pytest.raises(ValueError) as caught:
        write_bridge_report(run, loaded.model, Planted(range(300, 304)), protocol=protocol)
    assert "was measured but is not among these; evaluate the run anew" in str(caught.value)
    with pytest.raises(FileNotFoundError, match="is not there; evaluate the run first"):
        write_bridge_report(run, loaded.model, Planted(range(100, 106)), protocol=BridgeValConfig(timed=3))
    few = write_bridge_report(run, loaded.model, Planted(range(100, 106)), protocol=protocol, most=2)
    assert few.read_text(encoding="utf-8").count("<figure>") == 2


def test_colours_of_targets_and_predictions_share_the_basis_of_the_targets() -> None:
    maps = [random_tokens(1, 16, 5, seed).mT.reshape(1, 5, 4, 4) for seed in range(3)]
    same = latent_colours(maps, fitted_on=maps)
    assert [p.tobytes() for p in same] == [p.tobytes() for p in latent_colours(maps)]
    faint = [m / 10 for m in maps]
    (own, *_), (shared, *_) = latent_colours(faint), latent_colours(faint, fitted_on=maps)
    assert own.tobytes() == same[0].tobytes()
    extrema: Any = shared.getextrema()
    assert all(high - low < 40 for low, high in extrema)


def test_a_heat_map_is_strongest_where_the_number_is_highest_and_empty_where_there_is_none() -> None:
    svg = charts.heat_map("errors", [[0.0, 1.0], [None, 0.5]], description="planted", scale=False)
    depths = [float(x) for x in re.findall(r'fill-opacity="([\d.]+)"', svg)]
    assert depths == pytest.approx([0.05, 1, 0.525])
    flat = charts.heat_map("errors", [[0.3, 0.3]], description="planted", scale=False)
    assert len(re.findall("<rect", flat)) == 2
