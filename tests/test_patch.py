"""Patches: both orders of the same linear map, and the way back."""

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from hypothesis import given

from latelier.blocks import Patchify, Unpatchify, patchify, unpatchify

batches, sides, patches = st.integers(1, 3), st.integers(1, 5), st.sampled_from([1, 2, 3, 8])


@given(b=batches, c=st.integers(1, 4), h=sides, w=sides, patch=patches)
def test_unpatchify_undoes_patchify(b: int, c: int, h: int, w: int, patch: int) -> None:
    x = torch.randn(b, c, h * patch, w * patch)
    packed = patchify(x, patch)
    assert packed.shape == (b, c * patch**2, h, w)
    assert torch.equal(unpatchify(packed, patch), x)


@given(c=st.integers(1, 4), h=sides, w=sides, patch=patches)
def test_an_empty_batch_has_the_shapes_of_any_other(c: int, h: int, w: int, patch: int) -> None:
    x = torch.randn(0, c, h * patch, w * patch)
    packed = patchify(x, patch)
    assert packed.shape == (0, c * patch**2, h, w)
    assert unpatchify(packed, patch).shape == x.shape


@given(h=sides, w=sides, patch=patches)
def test_channels_of_a_patch_come_by_colour_then_row_then_column(h: int, w: int, patch: int) -> None:
    x = torch.randn(1, 3, h * patch, w * patch)
    packed = patchify(x, patch)
    for c in range(3):
        for i in range(patch):
            for j in range(patch):
                assert torch.equal(packed[:, c * patch**2 + i * patch + j], x[:, c, i::patch, j::patch])


@given(b=batches, h=sides, w=sides, patch=patches)
def test_a_strided_convolution_is_patchify_and_a_1x1_convolution(b: int, h: int, w: int, patch: int) -> None:
    embed = Patchify(3, 7, patch=patch)
    x = torch.randn(b, 3, h * patch, w * patch)
    y = F.conv2d(patchify(x, patch), embed.proj.weight.reshape(7, 3 * patch**2, 1, 1), embed.proj.bias)
    torch.testing.assert_close(embed(x), y)


@given(b=batches, h=sides, w=sides, patch=patches)
def test_the_read_out_is_a_1x1_convolution_and_unpatchify(b: int, h: int, w: int, patch: int) -> None:
    read = Unpatchify(7, 3, patch=patch)
    x = 100 * torch.randn(b, 7, h, w)  # far beyond the range of images: nothing is clamped
    y = F.conv2d(x, read.weight, read.bias)
    torch.testing.assert_close(read(x), unpatchify(y, patch), rtol=1e-4, atol=1e-4)
