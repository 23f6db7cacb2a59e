"""The token head of DINAC-AE: its formula, its sizes, who sees whom, and laws over every declared token head."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from latelier.blocks import (
    DINOTokenHeadConfig,
    PartError,
    TeacherOutput,
    TokenHeadConfig,
    decode,
    encode,
    parts,
    use_attention,
)

LATENT = 5
SMALL = DINOTokenHeadConfig(features=32, head_width=8, registers=4)
HEADS: list[TokenHeadConfig] = [
    *(decode(cls.kind, TokenHeadConfig) for cls in parts(TokenHeadConfig)),
    SMALL,
    DINOTokenHeadConfig(features=24, width=32, head_width=16, expand=8 / 3, activation="swiglu", registers=0),
]
every_head = pytest.mark.parametrize("config", HEADS, ids=lambda config: f"{config.kind}-{config.features}")
sides = st.integers(1, 4)


def awake(config: TokenHeadConfig, *, latent: int = LATENT) -> Any:
    """Build a head and add noise to its parameters."""
    head = config.build(latent=latent)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return head


def rms(x: Tensor, weight: Tensor | None = None) -> Tensor:
    y = x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    return y if weight is None else y * weight


def turned(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Rotate neighbouring pairs of ``[b, n, d]``: the first half with the row, the second with the column."""
    d, out = x.shape[-1], x.clone()
    for row in range(grid[0]):
        for column in range(grid[1]):
            for pair in range(d // 2):
                axis, j = divmod(pair, d // 4)
                angle = torch.tensor((row, column)[axis] / 10_000 ** (j / (d // 4)), dtype=x.dtype)
                n, (even, odd) = row * grid[1] + column, (2 * pair, 2 * pair + 1)
                a, b = x[:, n, even], x[:, n, odd]
                out[:, n, even] = a * angle.cos() - b * angle.sin()
                out[:, n, odd] = b * angle.cos() + a * angle.sin()
    return out


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1) @ v


def plain_head(head: Any, latent: Tensor, *, head_width: int) -> tuple[Tensor, Tensor]:
    """Sec. 6 of the specification, step by step and head by head; returns patches and class."""
    w = head.state_dict()
    b, _, rows, columns = latent.shape
    width = w["in_proj.weight"].shape[0]
    spatial = F.conv2d(latent, w["in_proj.weight"], w["in_proj.bias"]).flatten(2).mT
    prefix = torch.cat([w["class_token"], w["register_tokens"]])
    x = torch.cat([prefix.expand(b, -1, -1), spatial], dim=1)

    y, heads = rms(x, w["block.attn_norm1.weight"]), []
    for g in range(width // head_width):
        q, k, v = (
            F.linear(y, w["block.attn.qkv.weight"].unflatten(0, (3, -1, head_width))[part, g]) for part in range(3)
        )
        q, k = rms(q, w["block.attn.q_norm.weight"]), rms(k, w["block.attn.k_norm.weight"])
        q, k = (torch.cat([t[:, : len(prefix)], turned(t[:, len(prefix) :], (rows, columns))], dim=1) for t in (q, k))
        heads.append(attended(q, k, v))
    y = F.linear(torch.cat(heads, dim=-1), w["block.attn.proj_out.weight"])
    x = x + rms(y, w["block.attn_norm2.weight"])
    y = F.linear(
        F.gelu(F.linear(rms(x, w["block.mlp_norm1.weight"]), w["block.mlp.up.weight"])), w["block.mlp.down.weight"]
    )
    x = x + rms(y, w["block.mlp_norm2.weight"])

    query, context, heads = x[:, :1], x[:, 1:], []
    for g in range(width // head_width):
        q = F.linear(
            rms(query, w["readout.query_norm.weight"]),
            w["readout.attn.q_proj.weight"].unflatten(0, (-1, head_width))[g],
        )
        k, v = (
            F.linear(
                rms(context, w["readout.context_norm.weight"]),
                w["readout.attn.kv_proj.weight"].unflatten(0, (2, -1, head_width))[part, g],
            )
            for part in range(2)
        )
        heads.append(attended(rms(q, w["readout.attn.q_norm.weight"]), rms(k, w["readout.attn.k_norm.weight"]), v))
    cls = query + F.linear(torch.cat(heads, dim=-1), w["readout.attn.proj_out.weight"])
    y = F.gelu(F.linear(rms(cls, w["readout.mlp_norm.weight"]), w["readout.mlp.up.weight"]))
    cls = cls + F.linear(y, w["readout.mlp.down.weight"])

    patches = x[:, len(prefix) :]
    if "out_proj.weight" in w:
        patches, cls = (F.linear(t, w["out_proj.weight"]) for t in (patches, cls))
    return rms(patches), rms(cls[:, 0])


# --- laws -------------------------------------------------------------------------------------------------------------


@every_head
@settings(max_examples=5)
@given(b=st.integers(1, 3), h=sides, w=sides)
def test_a_token_head_gives_a_patch_a_position_and_a_class_an_image_of_unit_rms(
    config: TokenHeadConfig, b: int, h: int, w: int
) -> None:
    out, features = awake(config)(torch.randn(b, LATENT, h, w)), config.features
    assert isinstance(out, TeacherOutput)
    assert out.cls is not None
    assert (out.patches.shape, out.cls.shape, out.grid) == ((b, h * w, features), (b, features), (h, w))
    for tokens in (out.patches, out.cls):
        rms_of_tokens = tokens.square().mean(dim=-1).sqrt()
        torch.testing.assert_close(rms_of_tokens, torch.ones_like(rms_of_tokens), atol=1e-3, rtol=0)


@every_head
def test_images_of_a_batch_do_not_see_each_other_in_a_token_head(config: TokenHeadConfig) -> None:
    head, latent = awake(config), torch.randn(3, LATENT, 3, 4)
    whole, alone = head(latent), [head(latent[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(whole.patches, torch.cat([out.patches for out in alone]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.cls, torch.cat([out.cls for out in alone]), rtol=1e-4, atol=1e-5)


@every_head
def test_every_parameter_of_a_token_head_and_the_latent_learn(config: TokenHeadConfig) -> None:
    head, latent = awake(config), torch.randn(2, LATENT, 3, 4, requires_grad=True)
    out = head(latent)
    ((out.patches * torch.randn_like(out.patches)).sum() + (out.cls * torch.randn_like(out.cls)).sum()).backward()
    for name, tensor in (*head.named_parameters(), ("latent", latent)):
        if tensor.numel():
            assert tensor.grad is not None, name
            assert tensor.grad.isfinite().all(), name
            assert tensor.grad.any(), name


@every_head
def test_a_newborn_token_head_learns_everywhere_as_well(config: TokenHeadConfig) -> None:
    head: Any = config.build(latent=LATENT)
    out = head(torch.randn(2, LATENT, 3, 4))
    ((out.patches * torch.randn_like(out.patches)).sum() + (out.cls * torch.randn_like(out.cls)).sum()).backward()
    for name, tensor in head.named_parameters():
        assert not tensor.numel() or tensor.grad.any(), name


@every_head
def test_a_half_precision_token_head_takes_float32_latents(config: TokenHeadConfig) -> None:
    head, latent = awake(config), torch.randn(2, LATENT, 3, 4)
    reference, half = head(latent), head.bfloat16()(latent)
    for value, expected in ((half.patches, reference.patches), (half.cls, reference.cls)):
        assert value.dtype == torch.bfloat16
        assert (value.float() - expected).norm() / expected.norm() < 0.05


@every_head
def test_a_token_head_survives_json(config: TokenHeadConfig) -> None:
    assert decode(encode(config), TokenHeadConfig) == config


# --- the head of DINAC-AE ---------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(
    h=sides,
    w=sides,
    features=st.sampled_from([32, 24]),
    registers=st.sampled_from([0, 1, 4]),
    head_width=st.sampled_from([4, 16]),
    seed=st.integers(0, 2**31),
)
def test_the_head_equals_its_formula(h: int, w: int, features: int, registers: int, head_width: int, seed: int) -> None:
    torch.manual_seed(seed)
    config = DINOTokenHeadConfig(features=features, width=32, head_width=head_width, registers=registers, expand=2.0)
    head, latent = awake(config).double(), torch.randn(2, LATENT, h, w, dtype=torch.float64)
    out, (patches, cls) = head(latent), plain_head(head, latent, head_width=head_width)
    torch.testing.assert_close(out.patches, patches, rtol=1e-4, atol=1e-5)  # positions turn in float32
    torch.testing.assert_close(out.cls, cls, rtol=1e-4, atol=1e-5)


def test_the_head_has_the_published_tensors() -> None:
    with torch.device("meta"):
        head = DINOTokenHeadConfig().build(latent=128)
    shapes = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    assert {name: shape for name, shape in shapes.items() if not name.startswith("block.")} == {
        "class_token": (1, 768),
        "register_tokens": (4, 768),
        "in_proj.weight": (768, 128, 1, 1),
        "in_proj.bias": (768,),
        "readout.query_norm.weight": (768,),
        "readout.context_norm.weight": (768,),
        "readout.mlp_norm.weight": (768,),
        "readout.attn.q_proj.weight": (768, 768),
        "readout.attn.kv_proj.weight": (1536, 768),
        "readout.attn.proj_out.weight": (768, 768),
        "readout.attn.q_norm.weight": (64,),
        "readout.attn.k_norm.weight": (64,),
        "readout.mlp.up.weight": (3072, 768),
        "readout.mlp.down.weight": (768, 3072),
    }
    assert len(shapes) == 25  # 29 in the published file, which holds four of them twice
    assert sum(parameter.numel() for parameter in head.parameters()) == 14_264_320


def test_the_class_and_the_registers_have_no_place_in_the_picture() -> None:
    """Registers may change their order; patches may not."""
    head, latent = awake(SMALL), torch.randn(2, LATENT, 3, 4)
    before = head(latent)
    with torch.no_grad():
        head.register_tokens.copy_(head.register_tokens[[2, 0, 3, 1]])
    after = head(latent)
    torch.testing.assert_close(after.patches, before.patches, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after.cls, before.cls, rtol=1e-4, atol=1e-5)
    flipped = head(latent.flip(-1)).patches.unflatten(1, (3, 4)).flip(2).flatten(1, 2)
    assert (flipped - before.patches).abs().max() > 0.01


def test_patches_stand_in_row_major_order() -> None:
    head, latent = awake(SMALL), torch.randn(1, LATENT, 3, 4)
    with torch.no_grad():  # nothing is mixed, only projected
        head.block.attn_norm2.weight.zero_()
        head.block.mlp_norm2.weight.zero_()
    expected = rms(head.in_proj(latent).permute(0, 2, 3, 1)).flatten(1, 2)
    torch.testing.assert_close(head(latent).patches, expected, rtol=1e-4, atol=1e-5)


def test_the_class_reads_registers_and_patches_but_not_itself() -> None:
    head, latent = awake(SMALL), torch.randn(1, LATENT, 2, 2)
    seen = []
    head.readout.register_forward_pre_hook(lambda module, args: seen.append([tuple(x.shape) for x in args]))
    head(latent)
    assert seen == [[(1, 1, 32), (1, 4 + 4, 32)]]


def test_a_head_of_another_width_projects_patches_and_class_with_one_matrix() -> None:
    own, other = DINOTokenHeadConfig(features=64), DINOTokenHeadConfig(features=24, width=64)
    assert isinstance(own.build(latent=4).out_proj, nn.Identity)
    projection = other.build(latent=4).out_proj
    assert isinstance(projection, nn.Linear)
    assert projection.weight.shape == (24, 64)
    assert projection.bias is None


def test_extra_tokens_are_born_small_and_normal() -> None:
    head = DINOTokenHeadConfig(registers=400).build(latent=4)
    assert 0.0195 < head.register_tokens.std().item() < 0.0205
    assert abs(head.register_tokens.mean().item()) < 1e-3
    assert 0.015 < head.class_token.std().item() < 0.025


def test_the_head_attends_with_the_backend_in_use() -> None:
    head, latent = awake(SMALL), torch.randn(2, LATENT, 3, 4)
    with torch.no_grad():
        reference = head(latent)
        for name in ("math", "flex"):
            with use_attention(name):
                out = head(latent)
            torch.testing.assert_close(out.patches, reference.patches, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(out.cls, reference.cls, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"features": 0}, "config.features: must be at least 1, got 0"),
        ({"registers": -1}, "config.registers: must be at least 0, got -1"),
        ({"width": 0}, "config.width: must be at least 1, got 0"),
        ({"head_width": 6}, "config.head_width: must be a positive multiple of 4 (axial RoPE), got 6"),
        ({"head_width": -4}, "config.head_width: must be a positive multiple of 4 (axial RoPE), got -4"),
        ({"features": 100}, "config.width: must be divisible by the head width 64, got 100"),
        ({"width": 96}, "config.width: must be divisible by the head width 64, got 96"),
        ({"expand": 0.0}, "config.expand: must be positive, got 0.0"),
        (
            {"activation": "swish"},
            "config.activation: takes 'gelu' or 'silu' or 'relu' or 'swiglu', got 'swish'",
        ),
    ],
)
def test_settings_of_the_token_head_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PartError) as error:
        DINOTokenHeadConfig(**values)
    assert str(error.value) == message
