"""Recipes that train on a laptop CPU in minutes, with nothing to download."""

from dataclasses import replace

from ..blocks.corruption import RandomTokenLogSNRConfig
from ..blocks.dit import DiTBlockConfig
from ..blocks.fcdm import FCDMBlockConfig
from ..blocks.slots import BlockConfig, DataConfig, TeacherConfig
from ..blocks.stack import SkipDecoderConfig, StackEncoderConfig
from ..blocks.hog import HOGConfig
from ..blocks.vp import WithPureNoiseConfig
from ..evaluation.protocols import ArchetypePSNRConfig
from ..evaluation.robustness import TokenRobustnessConfig
from ..families.diffae import DiffAEConfig, DinacAEConfig
from ..training.crops import NativeCropConfig
from ..training.objectives import LatentScaleConfig, VarianceExpansionConfig, VPReconstructionConfig
from ..training.optimisers import AdamWConfig, CosineRateConfig
from ..training.recipe import Recipe, StageConfig
from ..training.sources import PhotographsConfig
from ..training.starts import PCAStartConfig
from .dinac_ae import OBJECTIVE as DINAC_OBJECTIVE
from .dinac_ae import token_head
from .semdisdiffae import alignment


def semdisdiffae(
    *,
    block: BlockConfig = FCDMBlockConfig(),
    teacher: TeacherConfig = HOGConfig(patch=8),
    data: DataConfig = PhotographsConfig(),
    steps: int = 1200,
) -> Recipe:
    """A small SemDisDiffAE (patch 8, 32 channels, width 96) on photographs; ``make demo`` trains it."""
    model = DiffAEConfig(
        patch=8,
        width=96,
        latent=32,
        encoder=StackEncoderConfig(block=block, depth=1),
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


def dinac_ae(
    *,
    block: BlockConfig = DiTBlockConfig(head_width=32),
    teacher: TeacherConfig = HOGConfig(patch=8),
    data: DataConfig = PhotographsConfig(),
    steps: int = 1200,
) -> Recipe:
    """A small DINAC-AE beside it: transformer blocks encode, and the class target is the mean of the HOG tokens."""
    base = semdisdiffae(teacher=teacher, data=data, steps=steps)
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
            encoder=StackEncoderConfig(block=block, depth=1),
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
