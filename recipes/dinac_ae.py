"""DINAC-AE at published size (model cards data-archetype/dinac_ae and dinac_ae_d2), as what differs from SemDisDiffAE.

Train one on your own pictures with

    latelier train dinac_ae --data DIR --out runs/mine

The cards name the terms and neither their weights nor the rates, batch and steps: those here are the defaults of our
specification, and SemDisDiffAE's where it has none. All can be changed with ``--set``.
"""

from dataclasses import replace

from ..blocks.corruption import RandomTokenLogSNRConfig
from ..blocks.dit import DiTBlockConfig
from ..blocks.heads import DINOTokenHeadConfig
from ..blocks.slots import DataConfig, EncoderConfig, ObjectiveConfig, TeacherConfig
from ..blocks.stack import StackEncoderConfig
from ..blocks.teacher_families import DINOv2Config, DINOv3Config
from ..evaluation.robustness import TokenRobustnessConfig
from ..families.diffae import DinacAEConfig
from ..training.alignment import ClassAlignmentConfig, PatchAlignmentConfig
from ..training.objectives import LatentScaleConfig, VarianceExpansionConfig, VPReconstructionConfig
from ..training.recipe import Recipe
from ..training.sources import FolderDataConfig
from .semdisdiffae import semdisdiffae, whole_heads


def token_head(teacher: TeacherConfig) -> DINOTokenHeadConfig:
    """A token head as wide as the teacher's tokens, or as the next whole attention heads and then projected."""
    width = whole_heads(teacher.features)
    return DINOTokenHeadConfig(features=teacher.features, width=None if width == teacher.features else width)


def dinac_ae(
    *,
    encoder: EncoderConfig = StackEncoderConfig(block=DiTBlockConfig(head_width=64), depth=6),
    teacher: TeacherConfig = DINOv3Config(size="vitb16"),
    data: DataConfig = FolderDataConfig(),
) -> Recipe:
    """DINAC-AE: 134,941,184 parameters, a transformer encoder, DINOv3-B's tokens and class read off clean latents."""
    base = semdisdiffae(encoder=encoder, teacher=teacher, data=data)
    return replace(
        base,
        name="dinac_ae",
        model=DinacAEConfig(encoder=encoder, token_head=token_head(teacher)),
        stages=(replace(base.stages[0], objective=OBJECTIVE, corruption=RandomTokenLogSNRConfig()),),
        probes=(TokenRobustnessConfig(), TokenRobustnessConfig(relative_to="unit")),
    )


OBJECTIVE: tuple[ObjectiveConfig, ...] = (
    VPReconstructionConfig(),
    PatchAlignmentConfig(),
    ClassAlignmentConfig(),
    VarianceExpansionConfig(),
    LatentScaleConfig(),
)
"""FD-loss on the class token (``objective/frechet``) is there to be added; the card means it for generators."""


def dinac_ae_d2(
    *, teacher: TeacherConfig = DINOv2Config(size="vitb14"), data: DataConfig = FolderDataConfig()
) -> Recipe:
    """DINAC-AE with eight encoder blocks, and DINOv2 ViT-B/14 for a teacher: 154,216,192 parameters."""
    encoder = StackEncoderConfig(block=DiTBlockConfig(head_width=64), depth=8)
    return replace(dinac_ae(encoder=encoder, teacher=teacher, data=data), name="dinac_ae_d2")
