"""What a training step costs, counted in another way, and how steps are shared among stages."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from latelier.blocks import FCDMBlockConfig, StackEncoderConfig, TinyViTConfig
from latelier.recipes import count_step, demo, full_capacitor, with_steps


def of_tiny_vit(config: TinyViTConfig, side: int) -> int:
    """Operations of one image, by hand: two for each weight and token, and the attention."""
    width, tokens = config.width, (side // config.patch) ** 2
    all_tokens = tokens + 1 + config.registers
    linear = all_tokens * width * (3 * width + width + 2 * int(width * config.expand))
    attention = 2 * all_tokens**2 * width
    return 2 * (tokens * 3 * config.patch**2 * width + config.depth * (linear + attention))


def test_the_teacher_is_counted_as_by_hand_for_the_whole_batch_and_apart() -> None:
    teacher = TinyViTConfig(patch=8, width=32, depth=3, registers=2)
    recipe = demo.semdisdiffae(teacher=teacher, steps=1)
    cost = count_step(recipe)
    assert cost.teacher_flops == 16 * of_tiny_vit(teacher, 64)
    assert cost.flops == count_step(demo.semdisdiffae(teacher=replace(teacher, depth=1), steps=1)).flops
    assert cost.parameters == 487_840


def test_a_step_is_about_three_forwards_and_grows_with_the_batch() -> None:
    """A step is forward, and backward to inputs and weights, but for what nothing is learned from."""
    recipe = demo.semdisdiffae(steps=1)
    stage = recipe.stages[0]
    one = count_step(replace(recipe, stages=(replace(stage, batch=1),)))
    assert count_step(recipe).flops == 16 * one.flops
    model: Any = recipe.model.build()
    term: Any = stage.objective[1]
    head = term.head.build(latent=32, features=36)
    images, t = torch.zeros(1, 3, 64, 64), torch.zeros(1)
    with FlopCounterMode(display=False) as forward:
        latent = model.posterior(images).mean
        model.predict(images, t, latent)
        head(latent, t)
    assert 2.7 < one.flops / forward.get_total_flops() <= 3


def test_a_depthwise_convolution_is_not_counted_as_a_full_one() -> None:
    """torch's own counter takes the gradient of its weight for that of a convolution over all channels."""
    small, large = (
        demo.semdisdiffae(encoder=StackEncoderConfig(block=FCDMBlockConfig(kernel=kernel), depth=1), steps=1)
        for kernel in (1, 7)
    )
    more = 3 * 2 * 96 * (7 * 7 - 1) * (64 // 8) ** 2 * 16
    assert count_step(large).flops - count_step(small).flops == more


@given(steps=st.integers(2, 10_000), first=st.integers(1, 500), second=st.integers(1, 500))
def test_steps_are_shared_among_stages_and_none_is_lost(steps: int, first: int, second: int) -> None:
    recipe = full_capacitor()
    stages = tuple(replace(s, steps=n) for s, n in zip(recipe.stages, (first, second), strict=True))
    shared = [stage.steps for stage in with_steps(replace(recipe, stages=stages), steps).stages]
    assert sum(shared) == steps or 1 in shared
    assert shared[0] == pytest.approx(steps * first / (first + second), abs=1)


def test_every_stage_keeps_a_checkpoint_a_quarter_at_least() -> None:
    recipe = with_steps(demo.semdisdiffae(steps=1200), 10)
    assert (recipe.stages[0].steps, recipe.stages[0].checkpoint_every) == (10, 3)
    assert with_steps(demo.semdisdiffae(steps=8), 1000).stages[0].checkpoint_every == 2
