"""Robustness to token errors: models whose errors are known, what a number depends on, and every family."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import nn

from latelier.blocks import (
    DINOTokenHeadConfig,
    DiTBlockConfig,
    EncoderPosterior,
    FCDMBlockConfig,
    ImageSource,
    PartError,
    PointPosteriorConfig,
    SkipDecoderConfig,
    StackEncoderConfig,
    decode,
    encode,
)
from latelier.evaluation import ArchetypePSNRConfig, PatchPCA, TokenRobustnessConfig
from latelier.families import DiffAEConfig, DinacAEConfig

TINY = DiffAEConfig(
    patch=4,
    width=16,
    latent=6,
    encoder=StackEncoderConfig(block=FCDMBlockConfig(), depth=1),
    decoder=SkipDecoderConfig(block=FCDMBlockConfig()),
)
FAMILIES = {
    "semdisdiffae": TINY,
    "packed": DiffAEConfig(**{**vars(TINY), "latent_patch": 2}),
    "dinac_ae": DinacAEConfig(
        **{**vars(TINY), "encoder": StackEncoderConfig(block=DiTBlockConfig(head_width=8), depth=1)},
        token_head=DINOTokenHeadConfig(features=36, head_width=12),
    ),
}
REGIONS = ("whole", "untouched", "corrupted")


class Greys(ImageSource):
    """Pictures close to mid-grey, so that noise added to them is seldom clamped."""

    def __init__(self, names: Sequence[str], *, size: tuple[int, int] = (24, 32)) -> None:
        self.names, self.sides = names, size

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def size(self, index: int) -> tuple[int, int]:
        return self.sides

    def read(self, index: int) -> PIL.Image.Image:
        random = np.random.default_rng(list(self.names[index].encode()))
        return PIL.Image.fromarray(random.integers(112, 144, (*self.sides, 3), dtype=np.uint8))


class Linear(nn.Module):
    """Patches scaled to unit variance as mu of a posterior of one log-SNR; each token decodes to its own patch and,
    ``spread`` times, to that of its right-hand neighbour, around the edge."""

    def __init__(self, *, logsnr: float = 3.0, spread: float = 0.0, stride: int = 2) -> None:
        super().__init__()
        self.logsnr, self.spread, self.stride = logsnr, spread, stride
        self.scale = nn.Parameter(torch.tensor(0.07))

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.encode_posterior(images).mode()

    def encode_posterior(self, images: torch.Tensor) -> EncoderPosterior:
        mean = F.pixel_unshuffle(images, self.stride) / self.scale
        return EncoderPosterior(mean, torch.full_like(mean, self.logsnr))

    def decode(self, latents: torch.Tensor, height: int, width: int, inference_config: object = None) -> torch.Tensor:
        return F.pixel_shuffle(latents + self.spread * latents.roll(1, dims=3), self.stride) * self.scale


class Bare(nn.Module):
    """Nothing but ``encode`` and ``decode``."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = Linear(logsnr=math.inf)
        self.stride = self.linear.stride

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear.encode(images)

    def decode(self, latents: torch.Tensor, height: int, width: int, inference_config: object = None) -> torch.Tensor:
        return self.linear.decode(latents, height, width)


def tiny(config: DiffAEConfig = TINY) -> Any:
    torch.manual_seed(1)
    model = config.build()
    for parameter in model.parameters():  # off the zeros of birth
        nn.init.normal_(parameter, std=0.1)
    return model


def measured(probe: TokenRobustnessConfig, model: nn.Module, images: ImageSource) -> dict[str, Any]:
    return probe.measure(model, images, ArchetypePSNRConfig())


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def means(answer: dict[str, Any], region: str) -> list[Any]:
    return [numbers[region]["mean"] for numbers in answer["offsets"]]


HELD_OUT = Greys(["a", "b", "c"])
LARGE = Greys(["a", "b", "c"], size=(128, 128))


# --- models whose errors are known --------------------------------------------------------------------------------


@pytest.mark.parametrize("relative_to", ["posterior", "unit"])
def test_a_local_decoder_leaves_the_other_tokens_exact(relative_to: Any) -> None:
    found = measured(TokenRobustnessConfig(relative_to=relative_to), Linear(), HELD_OUT)
    for numbers in found["offsets"]:
        assert numbers["untouched"]["infinite"] == numbers["untouched"]["n"] == 3
        assert numbers["untouched"]["mean"] is numbers["untouched"]["pooled"] is None
        assert numbers["whole"]["infinite"] == numbers["corrupted"]["infinite"] == 0
        gap = [numbers["whole"][key] - numbers["corrupted"][key] for key in ("mean", "p5", "pooled")]
        assert gap == pytest.approx([10 * math.log10(4)] * 3)  # a quarter of the pixels holds all of the error


def test_errors_of_posterior_draws_are_those_of_the_formula() -> None:
    offsets, logsnr, spread = (0.0, 1.0, 3.0, 6.0), 3.0, 0.5
    found = measured(TokenRobustnessConfig(offsets=offsets), Linear(logsnr=logsnr, spread=spread), LARGE)
    assert (found["relative_to"], found["logsnr"]) == ("posterior", logsnr)
    power = mean_square(LARGE) / 0.07**2
    for offset, numbers in zip(offsets, found["offsets"], strict=True):
        shrink = math.sqrt(sigmoid(logsnr - offset)) - math.sqrt(sigmoid(logsnr))
        token = 0.07**2 * (shrink**2 * power + sigmoid(offset - logsnr))  # squared error of a corrupted token
        left = (0.25 * 4096 - 1) / 4095, 0.25 * 4096 / 4095  # how often the left-hand neighbour is corrupted as well
        expected = {
            "corrupted": token * (1 + spread**2 * left[0]),
            "untouched": token * spread**2 * left[1],
            "whole": token * 0.25 * (1 + spread**2),
        }
        for region in REGIONS:
            assert 4 * 10 ** (-numbers[region]["pooled"] / 10) == pytest.approx(expected[region], rel=0.06), region


@pytest.mark.parametrize("model", [Linear(logsnr=4.0), Linear(logsnr=math.inf), Bare()])
def test_errors_of_unit_noise_are_those_of_the_formula(model: Linear | Bare) -> None:
    asked = TokenRobustnessConfig(relative_to="unit", logsnr=5.0, share=0.5)
    found = measured(asked, model, LARGE)
    assert (found["relative_to"], found["logsnr"]) == ("unit", 5.0)
    power = mean_square(LARGE) / 0.07**2 * (sigmoid(4.0) if getattr(model, "logsnr", None) == 4.0 else 1)
    for numbers in found["offsets"]:
        logsnr = 5.0 - numbers["offset"]
        token = 0.07**2 * ((1 - math.sqrt(sigmoid(logsnr))) ** 2 * power + sigmoid(-logsnr))
        assert 4 * 10 ** (-numbers["corrupted"]["pooled"] / 10) == pytest.approx(token, rel=0.04)
        assert 4 * 10 ** (-numbers["whole"]["pooled"] / 10) == pytest.approx(token / 2, rel=0.04)


def mean_square(images: ImageSource) -> float:
    prepared = [ArchetypePSNRConfig().prepare(images.read(i), stride=2) for i in range(len(images))]
    return torch.cat(prepared).square().mean().item()


@given(share=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_the_share_of_tokens_is_corrupted(share: float, seed: int) -> None:
    probe = TokenRobustnessConfig(share=share, seed=seed, offsets=(5.0,))
    row = measured(probe, Linear(), Greys(["a"]))["images"][0]
    assert row["tokens"] == 12 * 16
    assert row["corrupted_tokens"] == max(round(share * 192), 1)
    assert row["pixels"]["corrupted"] == 4 * row["corrupted_tokens"]
    assert row["pixels"].get("untouched", 0) == 24 * 32 - row["pixels"]["corrupted"]


def test_an_image_whose_every_token_is_corrupted_has_no_untouched_pixels() -> None:
    found = measured(TokenRobustnessConfig(share=1.0), Linear(), HELD_OUT)
    assert [numbers["untouched"]["n"] for numbers in found["offsets"]] == [0] * 4
    assert means(found, "untouched") == [None] * 4
    assert means(found, "whole") == pytest.approx(means(found, "corrupted"))
    assert [set(row["psnr"]) for row in found["images"]] == [{"whole", "corrupted"}] * 3


# --- what a number depends on -------------------------------------------------------------------------------------


def test_a_number_depends_on_no_other_image_and_no_order() -> None:
    model, probe = tiny(), TokenRobustnessConfig()
    together = measured(probe, model, HELD_OUT)
    assert together == measured(probe, model, Greys(HELD_OUT.names[::-1]))
    alone = [measured(probe, model, Greys([name]))["images"][0] for name in HELD_OUT.names]
    assert together["images"] == alone


def test_a_number_depends_on_no_other_offset() -> None:
    model = tiny()
    many, one = (measured(TokenRobustnessConfig(offsets=o), model, HELD_OUT) for o in ((0.0, 1.0, 4.0), (4.0,)))
    assert many["offsets"][2] == one["offsets"][0]


def test_images_have_tokens_of_their_own_and_the_seed_changes_them() -> None:
    probe = TokenRobustnessConfig()
    a, b, other = probe.chosen("a", 9, 7), probe.chosen("b", 9, 7), TokenRobustnessConfig(seed=1).chosen("a", 9, 7)
    assert a.sum() == b.sum() == other.sum() == 16
    assert not torch.equal(a, b)
    assert not torch.equal(a, other)
    assert torch.equal(a, TokenRobustnessConfig(offsets=(1.0,), relative_to="unit").chosen("a", 9, 7))


def test_asking_leaves_the_model_and_the_generator_as_they_were() -> None:
    model, state = tiny().train(), torch.get_rng_state()
    measured(TokenRobustnessConfig(), model, HELD_OUT)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_counts_every_image() -> None:
    calls: list[tuple[int, int]] = []
    TokenRobustnessConfig().measure(
        Linear(), HELD_OUT, ArchetypePSNRConfig(), on_image=lambda *call: calls.append(call)
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]


# --- families -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relative_to", ["posterior", "unit"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_larger_offset_changes_more_of_the_picture(family: str, relative_to: Any) -> None:
    model = tiny(FAMILIES[family])
    model.latent_norm_running_var.fill_(0.3)
    found = measured(TokenRobustnessConfig(relative_to=relative_to), model, HELD_OUT)
    assert found["relative_to"] == relative_to
    for region in REGIONS:
        values = means(found, region)
        assert values == sorted(values, reverse=True), region
        assert len(set(values)) == 4
    json.dumps(found, allow_nan=False)


def test_the_untouched_decode_is_that_of_the_latent_which_encode_returns() -> None:
    model, seen = tiny(), []
    model.latent_norm_running_mean.fill_(0.4)
    given, take = model.decode, TokenRobustnessConfig(offsets=(2.0,))
    model.decode = lambda latents, *rest: (seen.append(latents), given(latents, *rest))[1]
    measured(take, model, Greys(["a"]))
    image = ArchetypePSNRConfig().prepare(Greys(["a"]).read(0), stride=4)
    torch.testing.assert_close(seen[0], model.encode(image))
    same = (seen[0] == seen[1]).all(dim=1)[0]
    assert torch.equal(same, ~take.chosen("a", 6, 8))


def test_a_deterministic_encoder_is_asked_by_unit_noise() -> None:
    model = tiny(DiffAEConfig(**{**vars(TINY), "posterior": PointPosteriorConfig()}))
    asked, unit = TokenRobustnessConfig(), TokenRobustnessConfig(relative_to="unit")
    found = measured(asked, model, HELD_OUT)
    assert (found["relative_to"], found["logsnr"]) == ("unit", 6.0)
    assert found == measured(unit, model, HELD_OUT)


def test_a_linear_code_of_patches_can_be_asked_as_well() -> None:
    pca = PatchPCA(stride=4, values=6)
    pca.observe(ArchetypePSNRConfig().prepare(HELD_OUT.read(0), stride=4))
    found = measured(TokenRobustnessConfig(), pca.solve(), HELD_OUT)
    assert found["relative_to"] == "unit"
    assert means(found, "untouched") == [None] * 4


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_models_are_asked_in_their_own_dtype(family: str) -> None:
    model, probe = tiny(FAMILIES[family]), TokenRobustnessConfig(relative_to="unit", offsets=(4.0, 6.0))
    full = means(measured(probe, model, HELD_OUT), "whole")  # below 60 dB: above, bfloat16 rounds
    half = means(measured(probe, model.bfloat16(), HELD_OUT), "whole")
    assert half == pytest.approx(full, abs=1)
    assert half != full


def test_a_posterior_that_is_a_point_for_some_images_is_refused() -> None:
    model = Linear()
    model.encode_posterior = lambda images: EncoderPosterior(
        mean := F.pixel_unshuffle(images, 2), torch.full_like(mean, 3.0 if images.shape[2] > 20 else math.inf)
    )
    images = Greys(["low", "tall"])
    images.read = lambda index: PIL.Image.new("RGB", (16, (16, 24)[index]), (128, 128, 128))
    message = "images: 'tall' has a posterior of finite log-SNR and 'low' has not; ask with relative_to='unit'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        measured(TokenRobustnessConfig(), model, images)


# --- bad input ----------------------------------------------------------------------------------------------------


def test_a_decoder_without_encoder_has_nothing_to_corrupt() -> None:
    model = tiny(DiffAEConfig(**{**vars(TINY), "encoder": None}))
    message = "a: encode: this model has a decoder only; its latents come from another model's encoder"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        measured(TokenRobustnessConfig(), model, HELD_OUT)


def test_a_damaged_model_is_named() -> None:
    model = Linear()
    model.scale.data.fill_(math.nan)
    message = "a: the decode is not finite; the model or its statistics are damaged"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        measured(TokenRobustnessConfig(), model, HELD_OUT)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (Greys([]), "images: there are none to measure"),
        (Greys(["a"], size=(1, 9)), "a: size: must be at least 2x2, got 1x9; leave the picture out"),
    ],
)
def test_what_cannot_be_measured_is_named(images: ImageSource, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        measured(TokenRobustnessConfig(), Linear(), images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"offsets": ()}, "config.offsets: must rise from 0 or more, got []"),
        ({"offsets": (0.0, 0.0)}, "config.offsets: must rise from 0 or more, got [0.0, 0.0]"),
        ({"offsets": (-1.0, 2.0)}, "config.offsets: must rise from 0 or more, got [-1.0, 2.0]"),
        ({"share": 0.0}, "config.share: must be above 0 and at most 1, got 0.0"),
        ({"share": 1.5}, "config.share: must be above 0 and at most 1, got 1.5"),
        ({"num_steps": 0}, "config.num_steps: must be at least 1, got 0"),
        ({"relative_to": "latent"}, "config.relative_to: takes 'posterior' or 'unit', got 'latent'"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PartError, match=f"^{re.escape(message)}$"):
        TokenRobustnessConfig(**settings)


def test_settings_travel_as_json() -> None:
    probe = TokenRobustnessConfig(offsets=(1.0, 2.5), relative_to="unit")
    assert decode(json.loads(json.dumps(encode(probe)))) == probe
    assert probe.id != TokenRobustnessConfig().id
