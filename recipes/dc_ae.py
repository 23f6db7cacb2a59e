"""DC-AE in the three phases of its paper (arXiv 2410.10733, sec. 3.3 and table 1), at published size and small.

    latelier train dc_ae_f32c32_sana_1_0 --data DIR --set stages.0.objective.1.weights=vgg16-397923af.pth ...

1. ``full``: everything learns at low resolution from L1 and LPIPS.
2. ``adaptation``: the middle layers alone learn at high resolution, so that latents fit more than small pictures: the
   encoder's last stage and output, and the decoder's input and coarsest stage.
3. ``refinement``: the decoder's last layers alone learn at low resolution, with a PatchGAN: its finest stage, norm and
   output. The latents stay.

Optimisers are the paper's. Which layers, batches, steps, and the weights 1, 1 and 0.5 it leaves open; ours are the
defaults of our specification. In "in" a model learns ImageNet, in "mix" a mixture, in "sana" what SANA's autoencoder
learned; fFcC is C channels at stride F. To go through one phase alone from weights that exist, keep one of ``stages``
and set ``start`` to ``WeightsConfig(path=...)``: :func:`one_phase`.
"""

from dataclasses import replace

from ..blocks.adaptive import GradientRatioConfig
from ..blocks.pyramid import PyramidDecoderConfig
from ..blocks.slots import DataConfig, ObjectiveConfig
from ..evaluation.protocols import ArchetypePSNRConfig
from ..families.dc_ae import DCAEConfig
from ..families.dc_ae_models import PUBLISHED, small
from ..training.adaptive import short
from ..training.adversary import AdversarialStageConfig, AdversaryConfig
from ..training.image_terms import AdversarialConfig, L1Config, LPIPSConfig
from ..training.optimisers import AdamWConfig, ConstantRateConfig
from ..training.recipe import Recipe, StageConfig
from ..training.sources import FolderDataConfig
from ..training.starts import WeightsConfig

PHASES = ("full", "adaptation", "refinement")


def middle_layers(model: DCAEConfig) -> tuple[str, ...]:
    """Patterns of the layers around the latents: what the second phase trains."""
    last = model.stride.bit_length() - 1
    return ("encoder.conv_out.*", f"encoder.down_blocks.{last}.*", "decoder.conv_in.*", f"decoder.up_blocks.{last}.*")


def head_layers(model: DCAEConfig) -> tuple[str, ...]:
    """Patterns of the decoder's last layers: what the third phase trains."""
    finest = 0 if _decoder(model).depths[0] else 1
    return ("decoder.norm_out.*", "decoder.conv_out.*", f"decoder.up_blocks.{finest}.*")


def last_kernel(model: DCAEConfig) -> str:
    """Name of the decoder's last weight, at which the adversary's gradient is compared."""
    return "decoder.conv_out.weight" if _decoder(model).depths[0] else "decoder.conv_out.conv.weight"


def dc_ae(
    model: DCAEConfig = DCAEConfig(),
    *,
    data: DataConfig = FolderDataConfig(),
    perceptual: ObjectiveConfig = LPIPSConfig(),
    adversary: AdversaryConfig = AdversaryConfig(),
    name: str = "dc_ae",
) -> Recipe:
    """The three phases for any model of the family.

    ``perceptual`` is the second term of every phase; LPIPS needs a local file of weights, and
    ``PerceptualSubstituteConfig()`` needs nothing. Resolutions, batches and steps are changed in the stages.
    """
    objective: tuple[ObjectiveConfig, ...] = (L1Config(), perceptual)
    full = StageConfig(
        name=PHASES[0],
        steps=200_000,
        batch=128,
        resolution=256,
        objective=objective,
        optimiser=AdamWConfig(rate=6.4e-5, beta2=0.999, weight_decay=0.1),
        rate=ConstantRateConfig(warm_up=1000),
        ema=0.0,
        recalibrate=0 if model.latent_norm.fixed else 32,
        checkpoint_every=2500,
        validate_every=5000,
        log_every=50,
    )
    adaptation = replace(
        full,
        name=PHASES[1],
        steps=20_000,
        batch=16,
        resolution=1024,
        trainable=middle_layers(model),
        optimiser=AdamWConfig(rate=1.6e-5, beta2=0.999, weight_decay=0.001),
    )
    follows = GradientRatioConfig(
        anchor=last_kernel(model), reference=tuple(short(term) for term in objective if term.weight), clamp=1e4
    )
    refinement = AdversarialStageConfig(
        name=PHASES[2],
        steps=40_000,
        batch=full.batch,
        resolution=full.resolution,
        objective=(*objective, AdversarialConfig(adaptive=follows)),
        trainable=head_layers(model),
        optimiser=AdamWConfig(rate=5.4e-5, beta1=0.5, beta2=0.9, weight_decay=0.001),
        rate=full.rate,
        ema=full.ema,
        recalibrate=0,  # the latents stay what they are
        momentum=0.0,
        checkpoint_every=full.checkpoint_every,
        validate_every=full.validate_every,
        log_every=full.log_every,
        adversary=adversary,
    )
    return Recipe(
        name=name,
        model=model,
        data=data,
        stages=(full, adaptation, refinement),
        evaluation=(ArchetypePSNRConfig(),),
    )


def one_phase(recipe: Recipe, phase: str, *, weights: str) -> Recipe:
    """The recipe cut down to one of its phases, which starts from a trained model of the same config."""
    stages = tuple(stage for stage in recipe.stages if stage.name == phase)
    if not stages:
        known = ", ".join(repr(stage.name) for stage in recipe.stages)
        raise ValueError(f"phase: the recipe {recipe.name!r} has {known}, got {phase!r}")
    return replace(recipe, stages=stages, start=WeightsConfig(path=weights))


def _decoder(model: DCAEConfig) -> PyramidDecoderConfig:
    assert isinstance(model.decoder, PyramidDecoderConfig)
    return model.decoder


def _published(model: str, name: str, data: DataConfig) -> Recipe:
    return dc_ae(PUBLISHED[model], data=data, name=name)


def dc_ae_f32c32_sana_1_0(*, data: DataConfig = FolderDataConfig()) -> Recipe:
    """312,250,275 parameters; strided and nearest resampling, attention at two scales."""
    return _published("dc-ae-f32c32-sana-1.0", "dc_ae_f32c32_sana_1_0", data)


def dc_ae_f32c32_sana_1_1(*, data: DataConfig = FolderDataConfig()) -> Recipe:
    """Sana 1.0 with a decoder that was trained further: the same latents, and serves the same models."""
    return _published("dc-ae-f32c32-sana-1.1", "dc_ae_f32c32_sana_1_1", data)


def dc_ae_f32c32_in_1_0(*, data: DataConfig = FolderDataConfig()) -> Recipe:
    """323,356,460 parameters; pixel (un)shuffling, batch norm in the decoder's convolutions."""
    return _published("dc-ae-f32c32-in-1.0", "dc_ae_f32c32_in_1_0", data)


def dc_ae_f32c32_mix_1_0(*, data: DataConfig = FolderDataConfig()) -> Recipe:
    """As ``dc_ae_f32c32_in_1_0`` but for the scale of its latents."""
    return _published("dc-ae-f32c32-mix-1.0", "dc_ae_f32c32_mix_1_0", data)


def dc_ae_f64c128_in_1_0(*, data: DataConfig = FolderDataConfig()) -> Recipe:
    """676,896,140 parameters, 128 channels at stride 64."""
    return _published("dc-ae-f64c128-in-1.0", "dc_ae_f64c128_in_1_0", data)


def dc_ae_f64c128_mix_1_0(*, data: DataConfig = FolderDataConfig()) -> Recipe:
    """As ``dc_ae_f64c128_in_1_0`` but for the scale of its latents."""
    return _published("dc-ae-f64c128-mix-1.0", "dc_ae_f64c128_mix_1_0", data)


def dc_ae_f128c512_in_1_0(*, data: DataConfig = FolderDataConfig()) -> Recipe:
    """1,120,682,252 parameters, 512 channels at stride 128."""
    return _published("dc-ae-f128c512-in-1.0", "dc_ae_f128c512_in_1_0", data)


def dc_ae_f128c512_mix_1_0(*, data: DataConfig = FolderDataConfig()) -> Recipe:
    """As ``dc_ae_f128c512_in_1_0`` but for the scale of its latents."""
    return _published("dc-ae-f128c512-mix-1.0", "dc_ae_f128c512_mix_1_0", data)


dc_ae_f64c128, dc_ae_f128c512 = dc_ae_f64c128_in_1_0, dc_ae_f128c512_in_1_0


def dc_ae_lite_f32c32(*, data: DataConfig = FolderDataConfig()) -> Recipe:
    """Sana's encoder with a distilled decoder of convolutions alone, of 268,154,124 parameters."""
    return _published("dc-ae-lite-f32c32-sana-1.1", "dc_ae_lite_f32c32", data)


def dc_ae_small_64(*, data: DataConfig = FolderDataConfig()) -> Recipe:
    """4 channels at stride 8, for images of 64 pixels."""
    return _small(64, data)


def dc_ae_small_128(*, data: DataConfig = FolderDataConfig()) -> Recipe:
    """16 channels at stride 16, for images of 128 pixels."""
    return _small(128, data)


def dc_ae_small_256(*, data: DataConfig = FolderDataConfig()) -> Recipe:
    """32 channels at stride 32, for images of 256 pixels."""
    return _small(256, data)


def _small(pixels: int, data: DataConfig) -> Recipe:
    """A small preset at its own resolution, and at twice that in the second phase."""
    base = dc_ae(small(pixels), data=data, name=f"dc_ae_small_{pixels}")
    full, adaptation, refinement = base.stages
    stages = (
        replace(full, resolution=pixels),
        replace(adaptation, resolution=2 * pixels, batch=32),
        replace(refinement, resolution=pixels),
    )
    return replace(base, stages=stages)
