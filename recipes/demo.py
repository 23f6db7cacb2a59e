"""Recipes that train on a laptop CPU in minutes, with nothing to download."""

from dataclasses import replace
from typing import TypeVar

from ..blocks.adapters import ResidualStemConfig
from ..blocks.corruption import RandomTokenLogSNRConfig
from ..blocks.dit import DiTBlockConfig
from ..blocks.fcdm import FCDMBlockConfig
from ..blocks.feature_heads import LinearHeadConfig
from ..blocks.hog import HOGConfig
from ..blocks.latent_space import UNKNOWN, LatentSpec
from ..blocks.registry import Part, fields
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
from ..families.diffae import DiffAEConfig, DinacAEConfig
from ..families.model_space import ModelSpaceConfig
from ..training.bridge_terms import BridgeCosineConfig, BridgeMSEStandardisedConfig
from ..training.crops import NativeCropConfig
from ..training.objectives import LatentScaleConfig, VarianceExpansionConfig, VPReconstructionConfig
from ..training.optimisers import AdamWConfig, CosineRateConfig
from ..training.pairs import PairsConfig
from ..training.recipe import Recipe, StageConfig
from ..training.sources import HELD_OUT_PHOTOGRAPHS, PhotographsConfig
from ..training.starts import PCAStartConfig
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
