"""Any encoder block with any decoder block, posterior and teacher builds, trains, and is saved and loaded."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis import HealthCheck, example, given, settings

import latelier
from latelier.blocks import (
    BlockConfig,
    DiTBlockConfig,
    FCDMBlockConfig,
    Flux2LatentsConfig,
    HOGConfig,
    LatentsTeacherConfig,
    PosteriorConfig,
    PublishedConfig,
    SequenceBlockConfig,
    SkipDecoderConfig,
    StackEncoderConfig,
    TeacherConfig,
    VPPosteriorConfig,
    decode,
    parts,
)
from latelier.families import DiffAEConfig, DinacAEConfig
from latelier.recipes import Recipe, dinac_ae, semdisdiffae
from latelier.training import CachedTeacherConfig, ClassAlignmentConfig, FolderDataConfig, train

SHAPE = [["embed_dim", 32], ["depth", 1], ["num_heads", 2], ["img_size", 28]]
CONFIG = [["hidden_size", 32], ["num_hidden_layers", 1], ["num_attention_heads", 2], ["image_size", 28]]
OFFLINE: dict[str, dict[str, Any]] = {
    "teacher/flux2_latents": {"weights": None},
    "teacher/timm": {"model": "vit_small_patch14_reg4_dinov2", "settings": SHAPE, "random_init": True},
    "teacher/transformers": {"model": "dinov2", "settings": [*CONFIG, ["patch_size", 14]], "random_init": True},
}
"""Settings of teachers whose default would fetch weights; small ones of both libraries stand for published families."""

BLOCKS: list[BlockConfig] = [
    *(decode(cls.kind, BlockConfig) for cls in parts(BlockConfig)),
    DiTBlockConfig(head_width=16, activation="swiglu", rope="normalised"),
    SequenceBlockConfig(blocks=(FCDMBlockConfig(kernel=3), FCDMBlockConfig(), DiTBlockConfig(head_width=32))),
]
POSTERIORS: list[PosteriorConfig] = [decode(cls.kind, PosteriorConfig) for cls in parts(PosteriorConfig)]
TEACHERS: list[TeacherConfig] = [
    *(
        decode({"kind": cls.kind} | OFFLINE.get(cls.kind, {}), TeacherConfig)
        for cls in parts(TeacherConfig)
        if not issubclass(cls, CachedTeacherConfig | LatentsTeacherConfig | PublishedConfig)
        # the first two need a folder or a space, which test_cached_training.py and test_latent_spaces.py have;
        # the others are too large
    ),
    HOGConfig(cells=4, orientations=4),
]


def small(
    recipe: Recipe, encoder: BlockConfig, decoder: BlockConfig, posterior: PosteriorConfig, folder: Path
) -> Recipe:
    """The recipe as it is, but for sizes, its two blocks and its posterior, on the pictures of a folder."""
    model: Any = recipe.model
    stage = recipe.stages[0]
    has_class = not isinstance(recipe.teacher, Flux2LatentsConfig)
    objective = tuple(t for t in stage.objective if has_class or not isinstance(t, ClassAlignmentConfig))
    stage = replace(stage, steps=2, batch=2, resolution=32, objective=objective, recalibrate=1, log_every=1)
    return replace(
        recipe,
        model=replace(
            model,
            width=64,
            latent=6,
            encoder=StackEncoderConfig(block=encoder, depth=1),
            decoder=SkipDecoderConfig(block=decoder, start=1, middle=1, end=1, rank=4),
            posterior=posterior,
        ),
        data=FolderDataConfig(path=str(folder), held_out_share=0.25),
        stages=(
            replace(stage, steps=2, batch=2, resolution=32, objective=tuple(objective), recalibrate=1, log_every=1),
        ),
    )


@settings(max_examples=14, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    encoder=st.sampled_from(BLOCKS),
    decoder=st.sampled_from(BLOCKS),
    posterior=st.sampled_from(POSTERIORS),
    teacher=st.sampled_from(TEACHERS),
    make=st.sampled_from([semdisdiffae, dinac_ae]),
)
@example(DiTBlockConfig(), FCDMBlockConfig(), VPPosteriorConfig(), Flux2LatentsConfig(weights=None), dinac_ae)
def test_any_pair_trains_and_is_saved_and_loaded(
    pictures: Path,
    encoder: BlockConfig,
    decoder: BlockConfig,
    posterior: PosteriorConfig,
    teacher: TeacherConfig,
    make: Any,
) -> None:
    recipe = small(make(teacher=teacher), encoder, decoder, posterior, pictures)
    assert type(recipe.model) is {semdisdiffae: DiffAEConfig, dinac_ae: DinacAEConfig}[make]
    with TemporaryDirectory() as folder:
        trained = latelier.load(train(recipe, Path(folder) / "run"))
        assert trained.config == recipe.model
        newborn = recipe.model.build().state_dict()
        assert trained.state_dict().keys() == newborn.keys()
        assert all(value.isfinite().all() for value in trained.state_dict().values())
        latelier.save(trained, Path(folder) / "again")
        again = latelier.load(Path(folder) / "again")
    images = torch.rand(1, 3, 32, 48) * 2 - 1
    assert torch.equal(again.encode(images), trained.encode(images))
    torch.manual_seed(0)
    first = trained.reconstruct(images)
    torch.manual_seed(0)
    assert torch.equal(again.reconstruct(images), first)
    assert first.isfinite().all()
