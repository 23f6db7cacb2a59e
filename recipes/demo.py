"""Recipes that train on a laptop CPU in minutes, with nothing to download."""

from dataclasses import replace
from typing import Any, TypeVar

from ..blocks.adapters import ResidualStemConfig
from ..blocks.corruption import RandomTokenLogSNRConfig
from ..blocks.discriminators import PatchGANConfig
from ..blocks.dit import DiTBlockConfig
from ..blocks.efficientvit import EfficientViTBlockConfig, ResBlockConfig
from ..blocks.fcdm import FCDMBlockConfig
from ..blocks.feature_heads import LinearHeadConfig
from ..blocks.hog import HOGConfig
from ..blocks.latent_norm import ChannelNormConfig
from ..blocks.latent_space import UNKNOWN, LatentSpec
from ..blocks.pyramid import PyramidDecoderConfig, PyramidEncoderConfig
from ..blocks.registry import Part, fields
from ..blocks.resample import ShuffleUpConfig, UnshuffleDownConfig
from ..blocks.slots import (
    BlockConfig,
    DataConfig,
    EncoderConfig,
    FeatureHeadConfig,
    LatentSpaceConfig,
    LatentStemConfig,
    TeacherConfig,
    TokenBodyConfig,
)
from ..blocks.stack import SkipDecoderConfig, StackEncoderConfig
from ..blocks.token_body import TransformerBodyConfig
from ..blocks.vp import WithPureNoiseConfig
from ..evaluation.bridge_val import BridgeValConfig
from ..evaluation.protocols import ArchetypePSNRConfig
from ..evaluation.robustness import TokenRobustnessConfig
from ..families.bridge import LatentBridgeConfig
from ..families.dc_ae import DCAEConfig
from ..families.diffae import DiffAEConfig, DinacAEConfig
from ..families.model_space import ModelSpaceConfig
from ..training.adversary import AdversaryConfig
from ..training.bridge_terms import BridgeCosineConfig, BridgeMSEStandardisedConfig
from ..training.crops import NativeCropConfig
from ..training.image_terms import PerceptualSubstituteConfig
from ..training.objectives import LatentScaleConfig, VarianceExpansionConfig, VPReconstructionConfig
from ..training.optimisers import AdamWConfig, CosineRateConfig
from ..training.pairs import PairsConfig
from ..training.recipe import Recipe, StageConfig
from ..training.sources import HELD_OUT_PHOTOGRAPHS, PhotographsConfig
from ..training.starts import PCAStartConfig
from .dc_ae import dc_ae as three_phases
from .dinac_ae import OBJECTIVE as DINAC_OBJECTIVE
from .dinac_ae import token_head
from .semdisdiffae import alignment

PATCH, WIDTH, LATENT = 8, 96, 32

P = TypeVar("P", bound=Part)


def semdisdiffae(
    *,
    block: BlockConfig = FCDMBlockConfig(),
    encoder: EncoderConfig | None = None,
    teacher: TeacherConfig = HOGConfig(patch=8),
    data: DataConfig = PhotographsConfig(),
    steps: int = 1200,
) -> Recipe:
    """A small SemDisDiffAE (patch 8, 32 channels, width 96) on photographs; ``make demo`` trains it.

    ``block`` fills encoder and decoder; ``encoder`` replaces the encoder alone. Heads of attention that do not divide
    the width become narrower, and the teacher is placed on the grid of the latents.
    """
    teacher = teacher.for_stride(PATCH)
    block = with_fitting_heads(block)
    model = DiffAEConfig(
        patch=PATCH,
        width=WIDTH,
        latent=LATENT,
        encoder=with_fitting_heads(encoder or StackEncoderConfig(block=block, depth=1)),
        decoder=SkipDecoderConfig(block=block, start=1, middle=1, end=1, rank=16),
    )
    stage = StageConfig(
        steps=steps,
        batch=16,
        resolution=64,
        crop=NativeCropConfig(),
        objective=(
            VPReconstructionConfig(weight=3000.0, bias=-10.0, times=WithPureNoiseConfig(share=0.8)),
            alignment(teacher),
            VarianceExpansionConfig(),
            LatentScaleConfig(),
        ),
        optimiser=AdamWConfig(rate=2e-3),
        rate=CosineRateConfig(warm_up=30),
        ema=0.995,
        checkpoint_every=max(1, steps // 4),
        log_every=5,
    )
    return Recipe(
        name="demo/semdisdiffae",
        model=model,
        teacher=teacher,
        data=data,
        stages=(stage,),
        evaluation=(ArchetypePSNRConfig(),),
        start=PCAStartConfig(),
    )


def with_fitting_heads(part: P) -> P:
    """The part, in which transformer blocks whose heads do not divide the demos' width have the next narrower ones."""
    if isinstance(part, DiTBlockConfig):
        heads = (wide for wide in range(min(part.head_width, WIDTH), 0, -4) if WIDTH % wide == 0)
        return replace(part, head_width=next(heads))
    inside = {name: getattr(part, name) for name in fields(part)}
    parts = {name: with_fitting_heads(value) for name, value in inside.items() if isinstance(value, Part)}
    several = {
        name: tuple(with_fitting_heads(item) for item in value)
        for name, value in inside.items()
        if isinstance(value, tuple) and value and all(isinstance(item, Part) for item in value)
    }
    return replace(part, **parts, **several) if parts or several else part


def dinac_ae(
    *,
    block: BlockConfig = DiTBlockConfig(head_width=32),
    encoder: EncoderConfig | None = None,
    teacher: TeacherConfig = HOGConfig(patch=8),
    data: DataConfig = PhotographsConfig(),
    steps: int = 1200,
) -> Recipe:
    """A small DINAC-AE beside it: transformer blocks encode, and the class target is the mean of the HOG tokens.

    ``block`` fills the encoder, ``encoder`` replaces it.
    """
    encoder = encoder or StackEncoderConfig(block=block, depth=1)
    teacher = teacher.for_stride(PATCH)
    base = semdisdiffae(encoder=encoder, teacher=teacher, data=data, steps=steps)
    model = base.model
    assert isinstance(model, DiffAEConfig)
    stage = base.stages[0]
    reconstruction = stage.objective[0]
    return replace(
        base,
        name="demo/dinac_ae",
        model=DinacAEConfig(
            patch=model.patch,
            width=model.width,
            latent=model.latent,
            encoder=model.encoder,
            decoder=model.decoder,
            token_head=token_head(teacher),
        ),
        stages=(
            replace(
                stage,
                objective=(reconstruction, *DINAC_OBJECTIVE[1:]),
                corruption=RandomTokenLogSNRConfig(),
            ),
        ),
        probes=(TokenRobustnessConfig(), TokenRobustnessConfig(relative_to="unit")),
    )


def bridge(
    *,
    space: LatentSpaceConfig = ModelSpaceConfig(
        path="runs/demo",
        known=LatentSpec(source=DiffAEConfig.kind, channels=LATENT, stride=PATCH, normalisation=UNKNOWN),
    ),
    teacher: TeacherConfig = HOGConfig(patch=8),
    stem: LatentStemConfig = ResidualStemConfig(mid=48, out=96),
    body: TokenBodyConfig = TransformerBodyConfig(width=WIDTH, depth=2, heads=4, table=8),
    head: FeatureHeadConfig = LinearHeadConfig(),
    data: DataConfig = PairsConfig(path="runs/demo_bridge/pairs", held_out_names=HELD_OUT_PHOTOGRAPHS),
    steps: int = 500,
) -> Recipe:
    """A small bridge from the latents of a demo's autoencoder to HOG; ``make bridge-demo`` packs pairs and trains it.

    Pairs are crops of 64 pixels, and the teacher's grid is 8 x 8. HOG's tokens are short, so that raw errors of them
    would weigh nothing: they are divided by their deviations first.
    """
    stage = StageConfig(
        steps=steps,
        batch=64,
        resolution=64,
        latents="data",
        objective=(BridgeCosineConfig(), BridgeMSEStandardisedConfig(weight=1.0)),
        optimiser=AdamWConfig(rate=1e-3, weight_decay=0.05),
        rate=CosineRateConfig(warm_up=50),
        ema=0.99,
        checkpoint_every=max(1, steps // 4),
        log_every=5,
    )
    teacher = teacher.for_stride(PATCH)
    return Recipe(
        name="demo/bridge",
        model=LatentBridgeConfig(space=space, teacher=teacher, stem=stem, body=body, head=head, image=64),
        teacher=teacher,
        data=data,
        stages=(stage,),
        evaluation=(BridgeValConfig(),),
    )


def dc_ae(*, data: DataConfig = PhotographsConfig(), steps: tuple[int, int, int] = (900, 150, 300)) -> Recipe:
    """A small DC-AE (8 channels at stride 8) on photographs in three phases of ``steps``, at 64, 192 and 64 pixels.

    A distance in random convolutions stands in for LPIPS, so that nothing is downloaded.
    """
    conv, attention = ResBlockConfig(), EfficientViTBlockConfig()
    stages: dict[str, Any] = {
        "widths": (32, 32, 64, 128),
        "depths": (0, 1, 1, 1),
        "blocks": (conv, conv, conv, attention),
    }
    model = DCAEConfig(
        latent=8,
        encoder=PyramidEncoderConfig(**stages, down=UnshuffleDownConfig()),
        decoder=PyramidDecoderConfig(**stages, up=ShuffleUpConfig()),
        latent_norm=ChannelNormConfig(),
    )
    adversary = AdversaryConfig(
        discriminator=PatchGANConfig(width=32, layers=2),
        optimiser=AdamWConfig(rate=5e-4, beta1=0.5, beta2=0.9),
        alone=steps[2] // 10,
    )
    base = three_phases(
        model, data=data, perceptual=PerceptualSubstituteConfig(weight=0.1), adversary=adversary, name="demo/dc_ae"
    )
    rates, sizes, batches = (3e-3, 1e-3, 5e-4), (64, 192, 64), (8, 3, 8)
    settings: dict[str, Any] = {"crop": NativeCropConfig(), "ema": 0.98, "validate_every": 0, "log_every": 5}
    phases = tuple(
        replace(
            stage,
            steps=steps[i],
            batch=batches[i],
            resolution=sizes[i],
            optimiser=replace(stage.optimiser, rate=rates[i]),
            rate=CosineRateConfig(warm_up=min(20, steps[i] // 10)),
            checkpoint_every=steps[i],
            recalibrate=min(stage.recalibrate, 8),
            validate_images=3,
            **settings,
        )
        for i, stage in enumerate(base.stages)
    )
    return replace(base, stages=phases)
