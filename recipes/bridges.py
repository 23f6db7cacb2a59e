"""Bridges from latents to a teacher's tokens, and from one latent space to another, at published size.

``sd_to_dinov2`` is the bridge of the model card kingsidharth/sd_vae_2_dino_v2_bridge; the others are what differs from
it: another space is another stem, another teacher another head, and the body stays. First make pairs, then train:

    latelier pack --recipe sd_to_dinov2 --data DIR --out pairs/sd_to_dinov2
    latelier train sd_to_dinov2 --data pairs/sd_to_dinov2 --out runs/mine

Rates, batch and average are not on the card: those here are the defaults of our specification. The card stopped after
six epochs of about 220,000 rows (some 5,200 steps of ours) and was still improving.
"""

from dataclasses import replace

from ..blocks.adapters import ResidualStemConfig
from ..blocks.bridge_losses import BridgePreset
from ..blocks.feature_heads import LinearHeadConfig, SpatialHeadConfig
from ..blocks.latent_spaces import LatentsTeacherConfig, space_config
from ..blocks.slots import (
    DataConfig,
    FeatureHeadConfig,
    LatentSpaceConfig,
    LatentStemConfig,
    TeacherConfig,
    TokenBodyConfig,
)
from ..blocks.teacher_families import DINOv2Config, DINOv3Config
from ..blocks.token_body import TransformerBodyConfig
from ..evaluation.bridge_val import BridgeValConfig
from ..families.bridge import LatentBridgeConfig
from ..training.bridge_terms import bridge_objective
from ..training.optimisers import AdamWConfig, CosineRateConfig
from ..training.pairs import PairsConfig
from ..training.recipe import Recipe, StageConfig


def bridge(
    name: str,
    *,
    space: LatentSpaceConfig,
    teacher: TeacherConfig,
    stem: LatentStemConfig = ResidualStemConfig(),
    body: TokenBodyConfig = TransformerBodyConfig(),
    head: FeatureHeadConfig = LinearHeadConfig(),
    data: DataConfig | None = None,
    loss: BridgePreset = "default",
    steps: int = 50_000,
) -> Recipe:
    """A bridge of any space and any teacher, trained on packed pairs of images of 256 pixels.

    The teacher must be placed on a grid that the space's latents reach by whole strides (``teacher.for_stride``).
    ``loss`` is a preset of :func:`~..training.bridge_terms.bridge_objective`.
    """
    stage = StageConfig(
        steps=steps,
        batch=256,
        resolution=256,
        latents="data",
        objective=bridge_objective(loss),
        optimiser=AdamWConfig(rate=3e-4, weight_decay=0.05),
        rate=CosineRateConfig(warm_up=min(2000, steps // 10)),
        ema=0.9995,
        checkpoint_every=1000,
        validate_every=1000,
        log_every=50,
    )
    return Recipe(
        name=name,
        model=LatentBridgeConfig(space=space, teacher=teacher, stem=stem, body=body, head=head),
        teacher=teacher,
        data=data or PairsConfig(path=f"pairs/{name}"),
        stages=(stage,),
        evaluation=(BridgeValConfig(),),
    )


def sd_to_dinov2(
    *,
    space: LatentSpaceConfig = space_config("sd"),
    teacher: TeacherConfig = DINOv2Config(size="vitb14"),
    stem: LatentStemConfig = ResidualStemConfig(),
    body: TokenBodyConfig = TransformerBodyConfig(),
    head: FeatureHeadConfig = LinearHeadConfig(),
    data: DataConfig | None = None,
    loss: BridgePreset = "default",
) -> Recipe:
    """The card's bridge: 4x32x32 latents of SD's autoencoder to DINOv2-B's 64 patch tokens of width 768.

    The teacher sees images of 256 pixels at 112, so that a token stands for 32 pixels. ``loss="card"`` takes the card's
    reduction of the normalised error, which is inert; ``space=space_config("e2e_sd")`` is the card's other space.
    """
    return bridge(
        "sd_to_dinov2",
        space=space,
        teacher=teacher.for_stride(32),
        stem=stem,
        body=body,
        head=head,
        data=data,
        loss=loss,
    )


def flux_to_dinov2(
    *,
    space: LatentSpaceConfig = space_config("flux"),
    teacher: TeacherConfig = DINOv2Config(size="vitb14"),
    stem: LatentStemConfig = ResidualStemConfig(),
    data: DataConfig | None = None,
) -> Recipe:
    """FLUX.1's 16x32x32 latents instead: the stem alone differs, so that body and head can be taken over."""
    return replace(
        sd_to_dinov2(space=space, teacher=teacher, stem=stem, data=data or PairsConfig(path="pairs/flux_to_dinov2")),
        name="flux_to_dinov2",
    )


def flux2_to_dinov3(
    *,
    space: LatentSpaceConfig = space_config("flux2"),
    teacher: TeacherConfig = DINOv3Config(size="vitb16"),
    stem: LatentStemConfig = ResidualStemConfig(),
    body: TokenBodyConfig = TransformerBodyConfig(),
    head: FeatureHeadConfig = LinearHeadConfig(),
    data: DataConfig | None = None,
) -> Recipe:
    """FLUX.2's 128x16x16 latents to DINOv3-B's 256 patch tokens, on one grid."""
    teacher = teacher.for_stride(space.stride)
    return bridge("flux2_to_dinov3", space=space, teacher=teacher, stem=stem, body=body, head=head, data=data)


def sana_to_dinov3(
    *,
    space: LatentSpaceConfig = space_config("sana"),
    teacher: TeacherConfig = DINOv3Config(size="vitb16"),
    stem: LatentStemConfig = ResidualStemConfig(),
    body: TokenBodyConfig = TransformerBodyConfig(),
    head: FeatureHeadConfig = LinearHeadConfig(),
    data: DataConfig | None = None,
) -> Recipe:
    """SANA's 32x8x8 latents to DINOv3-B's 64 patch tokens: the teacher sees images at half size."""
    teacher = teacher.for_stride(space.stride)
    return bridge("sana_to_dinov3", space=space, teacher=teacher, stem=stem, body=body, head=head, data=data)


def dinac_to_dinov3(
    *,
    space: LatentSpaceConfig = space_config("dinac_ae"),
    teacher: TeacherConfig = DINOv3Config(size="vitb16"),
    stem: LatentStemConfig = ResidualStemConfig(),
    body: TokenBodyConfig = TransformerBodyConfig(),
    head: FeatureHeadConfig = LinearHeadConfig(),
    data: DataConfig | None = None,
) -> Recipe:
    """DINAC-AE's whitened 128x16x16 latents to the patch tokens of the teacher that they were aligned with."""
    teacher = teacher.for_stride(space.stride)
    return bridge("dinac_to_dinov3", space=space, teacher=teacher, stem=stem, body=body, head=head, data=data)


def sd_to_flux2(
    *,
    space: LatentSpaceConfig = space_config("sd"),
    target: LatentSpaceConfig = space_config("flux2"),
    stem: LatentStemConfig = ResidualStemConfig(),
    body: TokenBodyConfig = TransformerBodyConfig(),
    head: FeatureHeadConfig = SpatialHeadConfig(),
    data: DataConfig | None = None,
) -> Recipe:
    """SD's latents to FLUX.2's, by the same parts with a spatial head; ``model.translate(latents)`` gives the map."""
    return bridge(
        "sd_to_flux2",
        space=space,
        teacher=LatentsTeacherConfig(space=target),
        stem=stem,
        body=body,
        head=head,
        data=data,
        loss="translation",
    )
