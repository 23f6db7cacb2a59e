"""Our small vision transformer against a plain reading of its equations, and what makes it a good test teacher."""

import math
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latelier.blocks import FixedResizeConfig, PartError, TinyViT, TinyViTConfig, decode, encode


def layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def turned(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """DINOv3's RoPE on one head [n, d], pair by pair: rows turn the first half of the angles, columns the second."""
    rows, columns = grid
    n, d = x.shape
    out = x.clone()
    for token in range(n):
        row, column = divmod(token, columns)
        y, z = (2 * math.pi * (2 * (i + 0.5) / side - 1) for i, side in ((row, rows), (column, columns)))
        for j in range(d // 2):
            axis, k = divmod(j, d // 4)
            angle = (y, z)[axis] / 100 ** (k / (d // 4))
            a, b = x[token, j], x[token, j + d // 2]
            out[token, j] = a * math.cos(angle) - b * math.sin(angle)
            out[token, j + d // 2] = b * math.cos(angle) + a * math.sin(angle)
    return out


def by_hand(network: TinyViT, pixels: Tensor, *, config: TinyViTConfig) -> Tensor:
    """All tokens of one normalised image after the last block and the final norm, [prefix + n, c]."""
    p = config.patch
    rows, columns = pixels.shape[1] // p, pixels.shape[2] // p
    patches = torch.stack(
        [pixels[:, i * p : (i + 1) * p, j * p : (j + 1) * p].flatten() for i in range(rows) for j in range(columns)]
    )
    x = patches @ network.embed.weight.flatten(1).T + cast(Tensor, network.embed.bias)
    if network.table is not None:
        x = x + network.table.flatten(1).T
    x = torch.cat([network.prefix, x])
    count = len(network.prefix)
    for block in cast(Any, network.blocks):
        q, k, v = (layer_norm(x) @ block.qkv.weight.T + block.qkv.bias).chunk(3, dim=-1)
        heads = []
        for h in range(config.width // config.head_width):
            part = slice(h * config.head_width, (h + 1) * config.head_width)
            qh, kh = q[:, part].clone(), k[:, part].clone()
            if config.positions == "rope":
                qh[count:], kh[count:] = turned(qh[count:], (rows, columns)), turned(kh[count:], (rows, columns))
            heads.append((qh @ kh.T / math.sqrt(config.head_width)).softmax(-1) @ v[:, part])
        x = x + torch.cat(heads, dim=-1) @ block.proj.weight.T + block.proj.bias
        x = x + F.gelu(layer_norm(x) @ block.up.weight.T + block.up.bias) @ block.down.weight.T + block.down.bias
    return layer_norm(x)


@pytest.mark.parametrize("positions", ["rope", "learned"])
@pytest.mark.parametrize("registers", [0, 3])
def test_tokens_are_those_of_the_equations(positions: Any, registers: int) -> None:
    config = TinyViTConfig(width=16, head_width=8, patch=4, positions=positions, table=3, registers=registers, seed=3)
    teacher = config.build()
    images = torch.rand(2, 3, 12, 12)
    out = teacher(images)
    pixels = (images - teacher.mean) / teacher.std
    for image in range(2):
        expected = by_hand(cast(TinyViT, teacher.backbone), pixels[image], config=config)
        assert out.cls is not None
        torch.testing.assert_close(out.cls[image], expected[0], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(out.patches[image], expected[1 + registers :], atol=2e-5, rtol=1e-4)
        if registers:
            assert out.registers is not None
            torch.testing.assert_close(out.registers[image], expected[1 : 1 + registers], atol=2e-5, rtol=1e-4)
        else:
            assert out.registers is None


def test_weights_belong_to_the_seed_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (TinyViTConfig(seed=seed).build().backbone.state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embed.weight"], other["embed.weight"])


def test_the_weights_of_seed_zero_are_those_of_version_1() -> None:
    """Specs name the seed alone, so that another way of drawing needs another version."""
    teacher = TinyViTConfig(width=32, depth=1).build()
    network = cast(TinyViT, teacher.backbone)
    drawn = torch.cat([network.prefix.flatten()[:3], network.embed.weight.flatten()[-3:]])
    assert teacher.spec.version == "1"
    torch.testing.assert_close(
        drawn, torch.tensor([-0.02252, -0.02305, -0.00501, -0.03968, 0.02524, 0.00471]), atol=1e-4, rtol=0
    )


def test_tokens_depend_on_the_picture_and_differ_from_patch_to_patch() -> None:
    teacher = TinyViTConfig().build()
    out = teacher(torch.rand(2, 3, 64, 64))
    patches = F.normalize(out.patches, dim=-1)
    assert (patches[0] - patches[1]).norm(dim=-1).min() > 0.1
    assert (patches[0] @ patches[0].T).fill_diagonal_(0).max() < 0.999


def test_a_learned_table_is_resampled_off_its_own_grid_and_rope_is_not() -> None:
    config = TinyViTConfig(patch=4, positions="learned", table=4)
    network = cast(TinyViT, config.build().backbone)
    assert network.table is not None
    assert torch.equal(network._positions((4, 4))[0], network.table)
    expected = F.interpolate(network.table[None], (3, 5), mode="bicubic", align_corners=False)
    assert torch.equal(network._positions((3, 5)), expected)
    assert config.build().spec.position == "bicubic from 4x4"
    assert TinyViTConfig().build().spec.position == "rope"


def test_placed_on_a_stride_it_takes_patches_of_that_size() -> None:
    assert TinyViTConfig().for_stride(32) == TinyViTConfig(patch=32)
    chosen = TinyViTConfig(resize=FixedResizeConfig(height=64, width=64))
    assert chosen.for_stride(32) is chosen


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "config.width: must be at least 1, got 0"),
        ({"depth": 0}, "config.depth: must be at least 1, got 0"),
        ({"registers": -1}, "config.registers: must be at least 0, got -1"),
        ({"table": 0}, "config.table: must be at least 1, got 0"),
        ({"head_width": 6}, "config.head_width: must be a positive multiple of 4 (axial RoPE), got 6"),
        ({"width": 48}, "config.width: must be divisible by the head width 32, got 48"),
        ({"expand": 0.001}, "config.expand: must leave the MLP at least one unit, got 0.001"),
        ({"layers": ()}, "config.layers: is empty; name at least one block, such as -1 for the last"),
        ({"std": (0.1, 0.0, 0.1)}, "config.std: must be positive, got (0.1, 0.0, 0.1)"),
        ({"positions": "Rope"}, "config.positions: takes 'rope' or 'learned', got 'Rope'; did you mean 'rope'?"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PartError) as error:
        TinyViTConfig(**settings)
    assert str(error.value) == message


def test_it_has_a_short_form_and_survives_json() -> None:
    config = TinyViTConfig(width=32, layers=(0, -1), norm="plain")
    assert decode(encode(config)) == config
    assert decode("teacher/tiny_vit:32") == TinyViTConfig(width=32)
