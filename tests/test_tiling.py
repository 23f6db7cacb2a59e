"""Tiling: blending is a mean of tiles and of nothing else, a view has its model's surface, and memory is the tile's."""

import importlib.util
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis.strategies as st
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

import latelier
from latelier.blocks import (
    DecoderConfig,
    DINOTokenHeadConfig,
    DiTBlockConfig,
    EncoderConfig,
    NoNormConfig,
    PixelDecoderConfig,
    PixelEncoderConfig,
    PointPosteriorConfig,
    PositionNormConfig,
    PyramidDecoderConfig,
    PyramidEncoderConfig,
    ResBlockConfig,
    SkipDecoderConfig,
    StackEncoderConfig,
    blend,
    mark,
    part,
    patchify,
    spec_of,
    tile_starts,
    unpatchify,
    windows,
)
from latelier.cli import main
from latelier.families import (
    DCAE,
    DCAEConfig,
    DiffAE,
    DiffAEConfig,
    DinacAEConfig,
    GlobalContextWarning,
    InferenceConfig,
    SemDisDiffAE,
    Tiled,
    seam_error,
)
from latelier.recipes import dc_ae_f32c32_sana_1_0, dc_ae_small_64

RATIO = 4
"""Pixels a side of one position, in the models of these tests."""

side, tiles = st.integers(1, 12), st.integers(1, 7)


# --- blending -----------------------------------------------------------------------------------------------------


@given(size=st.integers(1, 60), tile=st.integers(1, 20), data=st.data())
def test_tiles_cover_everything_have_one_size_and_shares_of_one(size: int, tile: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, tile))
    found = windows(size, tile, stride)
    starts = [window.start for window in found]
    assert starts == tile_starts(size, tile, stride) == sorted(set(starts))
    assert (starts[0], starts[-1]) == (0, max(size - tile, 0))
    assert all(b - a <= stride for a, b in pairwise(starts))
    total = torch.zeros(size, dtype=torch.float64)
    for window in found:
        assert len(window.share) == min(tile, size)
        assert (window.share > 0).all()
        torch.testing.assert_close(window.before, total[window.start : window.start + tile])
        total[window.start : window.start + tile] += window.share
    torch.testing.assert_close(total, torch.ones_like(total))


def test_a_last_tile_is_moved_back_where_a_sliver_would_remain() -> None:
    assert tile_starts(17, 8, 6) == [0, 6, 9]
    assert tile_starts(16, 8, 8) == [0, 8]
    assert tile_starts(7, 8, 6) == [0]


def test_two_tiles_fade_into_one_another_linearly() -> None:
    first, second = windows(10, 7, 3)
    torch.testing.assert_close(first.share[3:], torch.tensor([0.8, 0.6, 0.4, 0.2], dtype=torch.float64))
    torch.testing.assert_close(second.share[:4], torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64))


@settings(max_examples=20)
@given(size=st.tuples(side, side), tile=st.tuples(tiles, tiles), data=st.data())
def test_blending_is_the_mean_of_tiles_by_their_shares(
    size: tuple[int, int], tile: tuple[int, int], data: st.DataObject
) -> None:
    stride = data.draw(st.tuples(*(st.integers(1, t) for t in tile)))
    made: list[tuple[slice, slice, Tensor]] = []

    def compute(images: slice, rows: slice, columns: slice) -> Tensor:
        made.append((rows, columns, torch.randn(1, 2, rows.stop - rows.start, columns.stop - columns.start)))
        return made[-1][2]

    out = blend(compute, size, tile, stride, batch=1)
    shares = [
        (down.share[:, None] * across.share)
        for down in windows(size[0], tile[0], stride[0])
        for across in windows(size[1], tile[1], stride[1])
    ]
    expected = torch.zeros(1, 2, *size, dtype=torch.float64)
    for share, (rows, columns, value) in zip(shares, made, strict=True):
        expected[:, :, rows, columns] += share * value
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def test_tiles_of_another_size_and_strides_that_leave_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^tile: must have 4x4 positions, got \[1, 1, 4, 3\]$"):
        blend(lambda *place: torch.zeros(1, 1, 4, 3), (8, 8), (4, 4), (4, 4), batch=1)
    with pytest.raises(ValueError, match=r"^stride: must be at least 1 and at most the tile of 4, .* got 5$"):
        tile_starts(9, 4, 5)


# --- models that change nothing -----------------------------------------------------------------------------------


class Squares(nn.Module):
    """Squares of pixels to channels or back: a model that tiles must not change."""

    def __init__(self, change: Callable[[Tensor, int], Tensor], *, latent_is: int = 0) -> None:
        super().__init__()
        self.change, self.latent_is = change, latent_is
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, *inputs: Any) -> Tensor:
        return self.change(inputs[self.latent_is], RATIO)


def dc_identity() -> DCAE:
    @part("pixel_encoder/squares")
    class SquaresEncoderConfig(PixelEncoderConfig):
        @property
        def stride(self) -> int:
            return RATIO

        @property
        def global_context(self) -> bool:
            return False

        def build(self, *, channels: int, latent: int) -> nn.Module:
            return Squares(patchify)

    @part("pixel_decoder/squares")
    class SquaresDecoderConfig(PixelDecoderConfig):
        @property
        def stride(self) -> int:
            return RATIO

        @property
        def global_context(self) -> bool:
            return False

        def build(self, *, channels: int, latent: int) -> nn.Module:
            return Squares(unpatchify)

    return DCAEConfig(
        latent=3 * RATIO**2, encoder=SquaresEncoderConfig(), decoder=SquaresDecoderConfig(), latent_norm=NoNormConfig()
    ).build()


def diffusion_identity(latent_norm: Any = NoNormConfig()) -> SemDisDiffAE:
    @part("encoder/squares")
    class SquaresStackConfig(EncoderConfig):
        def build(self, *, channels: int, patch: int, width: int, out: int) -> nn.Module:
            return Squares(patchify)

    @part("decoder/squares")
    class SquaresDenoiserConfig(DecoderConfig):
        def build(self, *, channels: int, patch: int, width: int, latent: int) -> nn.Module:
            return Squares(unpatchify, latent_is=2)

    return DiffAEConfig(
        patch=RATIO,
        latent=3 * RATIO**2,
        encoder=SquaresStackConfig(),
        decoder=SquaresDenoiserConfig(),
        posterior=PointPosteriorConfig(),
        latent_norm=latent_norm,
    ).build()


@dataclass
class Case:
    images: Tensor
    tile: tuple[int, int]
    stride: tuple[int, int]
    batch: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    tile = draw(st.tuples(tiles, tiles))
    stride = draw(st.tuples(*(st.integers(1, t) for t in tile)))
    height, width, b = draw(side), draw(side), draw(st.integers(1, 3))
    pixels = [(RATIO * down, RATIO * across) for down, across in (tile, stride)]
    return Case(torch.randn(b, 3, RATIO * height, RATIO * width), pixels[0], pixels[1], draw(st.integers(1, 3)))


@settings(max_examples=25)
@given(case=cases())
def test_a_model_that_changes_nothing_changes_nothing_in_tiles(case: Case) -> None:
    model = dc_identity()
    view = model.tiled(case.tile, case.stride, batch=case.batch)
    latents = view.encode(case.images)
    assert torch.equal(latents, model.encode(case.images))
    assert torch.equal(view.encode_raw(case.images), latents)
    assert torch.equal(view.decode(latents), case.images)
    assert torch.equal(view.decode_raw(latents), case.images)
    assert torch.equal(view.reconstruct(case.images), case.images)


@settings(max_examples=15)
@given(case=cases(), seed=st.integers(0, 9))
def test_tiles_start_from_the_noise_of_the_whole_batch(case: Case, seed: int) -> None:
    model, inference = diffusion_identity(), InferenceConfig(num_steps=2, seed=seed)
    view = model.tiled(case.tile, case.stride, batch=case.batch)
    latents = view.encode(case.images)
    assert torch.equal(latents, model.encode(case.images))
    size = (case.images.shape[2], case.images.shape[3])
    assert torch.equal(view.decode(latents, *size, inference), model.decode(latents, *size, inference))


def test_noise_without_a_seed_is_drawn_from_the_global_generator_as_without_tiles() -> None:
    model, latents = diffusion_identity(), torch.randn(2, 48, 5, 3)
    torch.manual_seed(3)
    whole = model.decode(latents, 20, 12)
    torch.manual_seed(3)
    assert torch.equal(model.tiled(8, 4).decode(latents), whole)


def test_statistics_that_differ_by_position_are_those_of_the_whole_latent() -> None:
    model = diffusion_identity(PositionNormConfig(grid=(5, 3)))
    for statistic in model.latent_statistics.values():
        statistic.add_(torch.rand_like(statistic))
    images, inference = torch.randn(2, 3, 20, 12), InferenceConfig(seed=0)
    view = model.tiled(8, 4)
    assert torch.equal(view.encode(images), model.encode(images))
    assert torch.equal(view.reconstruct(images, inference), model.reconstruct(images, inference))


@settings(max_examples=10)
@given(case=cases())
def test_each_position_has_a_gradient_of_one_through_a_model_that_changes_nothing(case: Case) -> None:
    view = dc_identity().tiled(case.tile, case.stride, batch=case.batch)
    images = case.images.requires_grad_()
    view.reconstruct(images).sum().backward()
    assert images.grad is not None
    torch.testing.assert_close(images.grad, torch.ones_like(images.grad))


# --- models that compute ------------------------------------------------------------------------------------------

R = ResBlockConfig()
STACK = SkipDecoderConfig(start=1, middle=1, end=1, rank=2)
LOCAL = DCAEConfig(
    latent=6,
    encoder=PyramidEncoderConfig(widths=(12, 24, 24), depths=(1, 1, 1), blocks=(R, R, R)),
    decoder=PyramidDecoderConfig(widths=(12, 24, 24), depths=(1, 1, 1), blocks=(R, R, R)),
)
CONFIGS: dict[str, Any] = {
    "dc_ae, convolutions": LOCAL,
    "dc_ae, attention": dc_ae_small_64().model,
    "semdisdiffae": DiffAEConfig(patch=4, width=16, latent=6, encoder=StackEncoderConfig(depth=1), decoder=STACK),
    "packed latents": DiffAEConfig(
        patch=2, width=16, latent=3, latent_patch=2, encoder=StackEncoderConfig(depth=1), decoder=STACK
    ),
    "dinac_ae": DinacAEConfig(
        patch=4,
        width=16,
        latent=6,
        encoder=StackEncoderConfig(block=DiTBlockConfig(head_width=8), depth=1),
        decoder=STACK,
        token_head=DINOTokenHeadConfig(features=24, head_width=12),
    ),
}
every_model = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def awake(config: Any) -> Any:
    """A model whose parameters are noisy, and whose statistics are not those of birth."""
    torch.manual_seed(0)
    model = config.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        if not config.latent_norm.fixed:
            for statistic in model.latent_statistics.values():
                statistic.add_(0.5 * torch.rand_like(statistic))
    return model


def tiled(model: Any, *sizes: Any, **options: Any) -> Tiled:
    """A view, without the warning that is tested elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GlobalContextWarning)
        return model.tiled(*sizes, **options)


def pictures(b: int = 2, height: int = 32, width: int = 48) -> Tensor:
    return torch.rand(b, 3, height, width) * 2 - 1


@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_tile_is_no_tile(config: Any, dtype: torch.dtype) -> None:
    model, images, inference = awake(config).to(dtype), pictures(), InferenceConfig(num_steps=2, seed=1)
    view = tiled(model, 48, 32, batch=2)
    latents, whole = view.encode(images), model.encode(images)
    assert (latents.dtype, spec_of(latents)) == (whole.dtype, model.latent_spec)
    assert torch.equal(latents, whole)
    ours, theirs = (m.decode(latents, 32, 48, inference) for m in (view, model))
    assert ours.dtype == theirs.dtype == torch.float32
    assert torch.equal(ours, theirs)
    assert torch.equal(view.reconstruct(images, inference), model.reconstruct(images, inference))


@every_model
def test_images_one_by_one_are_images_together(config: Any) -> None:
    model, images, inference = awake(config), pictures(3), InferenceConfig(seed=1)
    one, three = (tiled(model, (16, 24), (16, 16), batch=batch) for batch in (1, 3))
    latents = one.encode(images)
    torch.testing.assert_close(latents, three.encode(images), rtol=1e-4, atol=1e-5)
    images = [m.decode(latents, inference_config=inference) for m in (one, three)]
    torch.testing.assert_close(*images, rtol=1e-4, atol=1e-4)


@every_model
def test_gradients_in_one_tile_are_those_without_tiles(config: Any) -> None:
    model, images = awake(config), pictures(1).requires_grad_()
    settings, noise = InferenceConfig(seed=4), model.draw_noise(1, 32, 48, seed=4)
    view = tiled(model, 48)

    def gradients(image: Tensor) -> list[Tensor]:
        wanted = [images, *(p for n, p in model.named_parameters() if n.startswith(("encoder", "decoder")))]
        found = torch.autograd.grad(image.square().mean(), wanted, allow_unused=True)
        return [torch.zeros(()) if gradient is None else gradient for gradient in found]

    raw = model.raw_from(model.whiten(model.raw_latents(images)))
    for ours, theirs in zip(
        gradients(view.reconstruct(images, settings)), gradients(model.paint(raw, noise, settings)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


@every_model
def test_gradients_flow_through_every_tile_and_are_kept_only_for_what_requires_them(config: Any) -> None:
    model, view = awake(config), tiled(awake(config), 16, 8)
    latents = view.encode(pictures(1))
    assert not latents.requires_grad
    assert not view.decode(latents).requires_grad
    latents = latents.detach().clone().requires_grad_()
    view.decode(latents, inference_config=InferenceConfig(seed=0)).square().mean().backward()
    assert latents.grad is not None
    assert latents.grad.isfinite().all()
    assert (latents.grad.abs().amax(dim=1) > 0).all()
    with torch.no_grad():
        assert not view.decode(latents).requires_grad
    assert model.latent_spec == view.latent_spec


def test_convolutions_see_no_seam_where_the_overlap_holds_what_they_see() -> None:
    model, images = awake(LOCAL), pictures(1, 128, 128)
    near, far = seam_error(model, images, 64, 56), seam_error(model, images, 64, 16)
    assert near.decode.mean > far.decode.mean
    fits = seam_error(model, images, 128)
    assert fits.encode.max == fits.decode.max == 0


def test_seams_of_attention_are_measured_and_none_are_left_in_one_tile() -> None:
    model, images = awake(CONFIGS["dc_ae, attention"]), pictures(1, 32, 64)
    found = seam_error(model, images, (32, 32), (32, 16))
    assert found.encode.max > found.encode.mean > 0
    assert found.decode.max > found.decode.mean > 0
    view, latents = tiled(model, 32, 16), model.encode(images)
    difference = (view.decode(latents) - model.decode(latents)).abs()
    assert found.decode.max == pytest.approx(difference.max().item())
    assert found.decode.mean == pytest.approx(difference.mean().item(), rel=1e-5)
    fits = seam_error(model, images, 64)
    assert fits.encode.max == fits.decode.max == 0


# --- memory -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measuring() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "measuring.py"
    spec = importlib.util.spec_from_file_location("measuring", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["measuring"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["dc_ae, convolutions", "dc_ae, attention", "semdisdiffae", "dinac_ae"])
def test_memory_beyond_the_result_stays_while_the_image_grows_sixteen_times(name: str, measuring: ModuleType) -> None:
    with torch.device("meta"):  # sizes are counted there as anywhere
        model = CONFIGS[name].build().eval()
    view, stride = tiled(model, 64, 48), model.stride
    beyond: dict[str, list[int]] = {"encode": [], "decode": []}
    for size in (96, 384):
        images = torch.empty(1, 3, size, size, device="meta")
        latents = torch.empty(1, model.latent_channels, size // stride, size // stride, device="meta")
        noise = images.nbytes if isinstance(model, DiffAE) else 0
        beyond["encode"].append(measuring.peak_bytes(lambda x=images: view.encode(x)) - latents.nbytes)
        beyond["decode"].append(measuring.peak_bytes(lambda x=latents: view.decode(x)) - images.nbytes - noise)
    for before, after in beyond.values():
        assert 0 < after <= 1.1 * before


def test_a_decode_of_4096_pixels_at_published_size_fits_a_gigabyte(measuring: ModuleType) -> None:
    with torch.device("meta"):
        model = dc_ae_f32c32_sana_1_0().model.build().bfloat16().eval()
        latents = torch.zeros(1, 32, 128, 128, dtype=torch.bfloat16)
    view = tiled(model, 1024, 896)
    result = 3 * 4096**2 * 4
    assert measuring.peak_bytes(lambda: view.decode(latents)) <= result + 1.3 * 2**30


# --- what is said -------------------------------------------------------------------------------------------------


def test_a_view_shows_its_tiles_and_has_the_surface_of_its_model() -> None:
    model = LOCAL.build().eval()
    view = model.tiled((32, 16), 12, batch=2)
    assert repr(view) == "Tiled(DCAE, tile=32x16, stride=12x12, overlap=20x4, batch=2)"
    assert (view.tile, view.tile_stride, view.overlap) == ((32, 16), (12, 12), (20, 4))
    assert (view.stride, view.latent_channels, view.latent_spec) == (4, 6, model.latent_spec)
    assert (view.config, view.dtype, view.wide_dtype) == (LOCAL, torch.float32, torch.float32)
    assert not view.training
    assert {id(p) for p in view.parameters()} == {id(p) for p in model.parameters()}


def test_tiles_overlap_by_an_eighth_and_at_least_one_position() -> None:
    model = LOCAL.build()
    assert model.tiled().tile_stride == (448, 448)
    assert model.tiled((16, 4)).tile_stride == (12, 4)
    assert tiled(dc_ae_small_64().model.build(), 200).tile_stride == (176, 176)


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((30,), {}, "tile: must divide by the model's stride of 4 pixels, got 30; take 32"),
        ((0,), {}, "tile: must divide by the model's stride of 4 pixels, got 0; take 4"),
        ((32, (24, 10)), {}, "stride: must divide by the model's stride of 4 pixels, got 10; take 8"),
        (((32, 16), 20), {}, "stride: must be at most the tile of 16, or gaps remain; got 20"),
        ((32,), {"batch": 0}, "batch: counts images and must be at least 1, got 0"),
    ],
)
def test_tiles_that_do_not_fit_the_model_are_refused(sizes: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        LOCAL.build().tiled(*sizes, **options)
    assert str(caught.value) == message


@pytest.mark.usefixtures("as_users_run_it")
def test_images_and_latents_are_refused_as_without_tiles() -> None:
    for config in (LOCAL, CONFIGS["semdisdiffae"]):
        model = config.build()
        view = tiled(model, 16)
        wrong = [
            lambda m: m.encode(torch.zeros(1, 3, 18, 32)),
            lambda m: m.encode(torch.zeros(3, 32, 32)),
            lambda m: m.encode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)),
            lambda m: m.decode(torch.zeros(1, 6, 8, 8), 32, 64),
            lambda m: m.decode(torch.zeros(1, 5, 8, 8), 32, 32),
            lambda m: m.decode(mark(torch.zeros(1, 6, 8, 8), replace(m.latent_spec, source="another")), 32, 32),
        ]
        for call in wrong:
            messages = []
            for either in (model, view):
                with pytest.raises(ValueError) as caught:
                    call(either)
                messages.append(str(caught.value))
            assert messages[0] == messages[1]
        with pytest.raises(ValueError, match=r"^decode: takes latents \[b, 6, h, w\], got \[6, 8, 8\]$"):
            view.decode(torch.zeros(6, 8, 8))
        with pytest.raises(ValueError, match=r"^batch: must hold at least one image to be cut into tiles, got 0$"):
            view.encode(torch.zeros(0, 3, 16, 16))


def test_a_decoder_alone_decodes_in_tiles_and_encodes_nothing() -> None:
    model = awake(replace(CONFIGS["semdisdiffae"], encoder=None))
    with pytest.warns(GlobalContextWarning, match=r"^tiled: decoder has global context \(block/fcdm\), so a tile"):
        view = model.tiled(16)
    assert view.decode(torch.randn(1, 6, 8, 8)).shape == (1, 3, 32, 32)
    with pytest.raises(ValueError, match="decoder only"):
        view.encode(pictures())


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("dc_ae, attention", "encoder and decoder have global context (block/efficientvit)"),
        ("semdisdiffae", "encoder and decoder have global context (block/fcdm)"),
        ("dinac_ae", "encoder and decoder have global context (block/dit, block/fcdm)"),
    ],
)
def test_a_model_that_sees_everything_warns_of_seams(name: str, what: str) -> None:
    model = CONFIGS[name].build()
    with pytest.warns(GlobalContextWarning) as caught:
        view = model.tiled(32)
    view.reconstruct(pictures())  # warnings are errors here: it is said once
    assert [str(warning.message) for warning in caught] == [
        f"tiled: {what}, so a tile differs from the same place of the whole image; larger tiles differ less, and "
        "seam_error(model, images, tile, stride) measures by how much"
    ]


# --- on the command line ------------------------------------------------------------------------------------------


def test_pictures_and_latents_are_worked_on_in_tiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    awake(CONFIGS["semdisdiffae"]).save_pretrained(tmp_path / "model")
    PIL.Image.effect_noise((50, 37), 60).convert("RGB").save(tmp_path / "a.png")
    model, picture = str(tmp_path / "model"), str(tmp_path / "a.png")

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert isinstance(caught.value.code, int)
        return caught.value.code, capsys.readouterr().err

    def written(name: str) -> bytes:
        return (tmp_path / name / "a.png").read_bytes()

    for name, options in {"plain": (), "large": ("--tile", "64"), "tiles": ("--tile", "16x32")}.items():
        code, said = run("reconstruct", model, picture, "--out", str(tmp_path / name), *options)
        assert code == 0
        assert said.startswith("warning: tiled: encoder and decoder have global context") == bool(options)
    assert written("plain") == written("large") != written("tiles")
    latents = str(tmp_path / "z.safetensors")
    assert run("encode", model, picture, "--out", latents, "--tile", "16x32")[0] == 0
    options = ("--tile", "16x32", "--tile-stride", "12x28")  # the stride that is the default
    assert run("decode", model, latents, "--out", str(tmp_path / "again"), *options)[0] == 0
    assert written("again") == written("tiles")

    reconstruct = ("reconstruct", model, picture, "--out", str(tmp_path / "none"))
    assert run(*reconstruct, "--tile-stride", "16") == (
        1,
        "error: --tile-stride: says how far apart tiles are; say how large they are with --tile\n",
    )
    assert run(*reconstruct, "--tile", "wide") == (
        1,
        "error: --tile: takes pixels a side such as 512, or HEIGHTxWIDTH, got 'wide'\n",
    )
    assert run(*reconstruct, "--tile", "18")[1].endswith(
        "error: tile: must divide by the model's stride of 4 pixels, got 18; take 16\n"
    )
    assert not (tmp_path / "none").exists()
    assert latelier.load(model).tiled  # what has no images to cut has no such method, and is refused
