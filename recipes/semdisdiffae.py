"""SemDisDiffAE and its relatives at published size (model cards of data-archetype on huggingface.co).

Train one on your own pictures with

    latelier train semdisdiffae --data DIR --out runs/mine

What the cards leave open (rates, batch, forms of the two small regularisers, path-drop probability) is set to the
defaults of our specification and can be changed with ``--set``.

A teacher is placed on the grid of the latents: a network whose patch is not the stride sees a resized image, HOG takes
patches of the stride. Networks need the extra ``teachers``, and their weights; ``--set teacher=hog`` needs neither.
"""

from dataclasses import replace

from ..blocks.fcdm import FCDMBlockConfig
from ..blocks.flux2 import Flux2LatentsConfig
from ..blocks.heads import NoisyLatentHeadConfig
from ..blocks.latent_norm import NoNormConfig
from ..blocks.slots import BlockConfig, DataConfig, EncoderConfig, ObjectiveConfig, TeacherConfig
from ..blocks.stack import SkipDecoderConfig, StackEncoderConfig
from ..blocks.teacher_families import DINOv2Config, DINOv3Config
from ..evaluation.protocols import ArchetypePSNRConfig
from ..families.diffae import DiffAEConfig
from ..training.objectives import (
    AlignmentConfig,
    LatentRegressionConfig,
    LatentScaleConfig,
    VarianceExpansionConfig,
    VPReconstructionConfig,
)
from ..training.optimisers import AdamWConfig, ConstantRateConfig
from ..training.recipe import Recipe, StageConfig
from ..training.sources import FolderDataConfig


def whole_heads(width: int) -> int:
    """The width, rounded up to whole attention heads of 64."""
    return -(-width // 64) * 64


def alignment(teacher: TeacherConfig) -> AlignmentConfig:
    """Alignment to a teacher by a head as wide as its tokens, rounded up to whole attention heads."""
    return AlignmentConfig(head=NoisyLatentHeadConfig(width=whole_heads(teacher.features)))


def semdisdiffae(
    *,
    block: BlockConfig = FCDMBlockConfig(),
    encoder: EncoderConfig | None = None,
    teacher: TeacherConfig = DINOv2Config(size="vits14"),
    data: DataConfig = FolderDataConfig(),
) -> Recipe:
    """SemDisDiffAE: 88,771,328 parameters, 128 channels at stride 16, aligned with DINOv2-S's patch tokens.

    ``block`` fills encoder and decoder; ``encoder`` replaces the encoder alone.
    """
    model = DiffAEConfig(
        encoder=encoder or StackEncoderConfig(block=block, depth=4), decoder=SkipDecoderConfig(block=block)
    )
    teacher = teacher.for_stride(model.stride)
    objective: tuple[ObjectiveConfig, ...] = (
        VPReconstructionConfig(),
        alignment(teacher),
        VarianceExpansionConfig(),
        LatentScaleConfig(),
    )
    stage = StageConfig(
        steps=251_000,
        batch=128,
        resolution=256,
        objective=objective,
        optimiser=AdamWConfig(rate=1e-4),
        rate=ConstantRateConfig(warm_up=2000),
        ema=0.9995,
        checkpoint_every=2500,
        validate_every=5000,
        log_every=50,
    )
    return Recipe(
        name="semdisdiffae",
        model=model,
        teacher=teacher,
        data=data,
        stages=(stage,),
        evaluation=(ArchetypePSNRConfig(),),
    )


def semdisdiffae_p32(
    *, teacher: TeacherConfig = DINOv2Config(size="vits14"), data: DataConfig = FolderDataConfig()
) -> Recipe:
    """SemDisDiffAE with latents packed 2x2: 512 channels at stride 32."""
    base = semdisdiffae(teacher=teacher, data=data)
    model = replace(_model(base), latent_patch=2)
    return replace(base, name="semdisdiffae_p32", model=model, teacher=teacher.for_stride(model.stride))


def semdisdiffae_p32_v2(
    *, teacher: TeacherConfig = DINOv3Config(size="convnext_base"), data: DataConfig = FolderDataConfig()
) -> Recipe:
    """SemDisDiffAE at native patch 32: 156,636,928 parameters, 384 channels, trained at 384 pixels.

    Its teacher, DINOv3 ConvNeXt-B, has tokens of 32 pixels, and sees the image as it is.
    """
    base = semdisdiffae(teacher=teacher, data=data)
    model = replace(_model(base), patch=32, width=1024, latent=384, encoder=StackEncoderConfig(depth=8))
    stage = replace(base.stages[0], steps=400_107, resolution=384)
    teacher = teacher.for_stride(model.stride)
    return replace(base, name="semdisdiffae_p32_v2", model=model, teacher=teacher, stages=(stage,))


def capacitor_decoder(
    *, teacher: TeacherConfig = Flux2LatentsConfig(), data: DataConfig = FolderDataConfig()
) -> Recipe:
    """The decoder of SemDisDiffAE, trained to decode FLUX.2's normalised latents: 61,933,184 parameters."""
    base = semdisdiffae(data=data)
    stage = replace(base.stages[0], objective=(VPReconstructionConfig(),), latents="teacher")
    return replace(
        base,
        name="capacitor_decoder",
        model=replace(_model(base), encoder=None, latent_norm=NoNormConfig()),
        teacher=teacher,
        stages=(stage,),
        evaluation=(),
    )


def full_capacitor(*, teacher: TeacherConfig = Flux2LatentsConfig(), data: DataConfig = FolderDataConfig()) -> Recipe:
    """SemDisDiffAE whose latents follow FLUX.2's, in two stages.

    First the decoder learns FLUX.2's latents; then it is frozen and the encoder learns to predict them, by
    regression and through the decoder's reconstruction.
    """
    base = semdisdiffae(data=data)
    first = replace(
        base.stages[0],
        name="decoder",
        objective=(VPReconstructionConfig(),),
        latents="teacher",
        trainable=("decoder.*",),
    )
    second = replace(
        base.stages[0],
        name="encoder",
        objective=(VPReconstructionConfig(), LatentRegressionConfig(), VarianceExpansionConfig()),
        trainable=("encoder.*",),
    )
    return replace(base, name="full_capacitor", teacher=teacher, stages=(first, second))


def _model(recipe: Recipe) -> DiffAEConfig:
    assert isinstance(recipe.model, DiffAEConfig)
    return recipe.model
