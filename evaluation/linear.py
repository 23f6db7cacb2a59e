"""The linear yardsticks: how well patches are coded, and a teacher's tokens read, without any network.

:class:`PatchPCA` is the best linear code of patches with as many values as the latent (mean plus principal
components). :class:`RidgeReadout` predicts teacher tokens from the latent at the same position; its cosine tells
what a latent holds of the teacher even for a model that ships no alignment head.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ..blocks.patch import patchify, unpatchify
from ..blocks.shapes import Image, Latent, Tokens

RIDGE = 1e-3
"""Penalty of the readout, relative to the mean variance of the latents' channels."""


class PatchPCA(nn.Module):
    """A linear autoencoder of patches, with the surface of a model; learns by :meth:`observe` and :meth:`solve`."""

    mean: Tensor
    basis: Tensor

    def __init__(self, *, stride: int, values: int) -> None:
        super().__init__()
        self.stride, self.values = stride, values
        size = 3 * stride**2
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("basis", torch.zeros(size, min(values, size)))
        self.count = 0
        self.sums = torch.zeros(size, dtype=torch.float64)
        self.products = torch.zeros(size, size, dtype=torch.float64)

    def observe(self, images: Image) -> None:
        """Add all patches of the grid, and of the grid moved by half a patch."""
        half = self.stride // 2
        shifts = (0, half) if half and min(images.shape[2:]) > self.stride else (0,)
        for shift in shifts:
            end = [side - (self.stride - shift) % self.stride for side in images.shape[2:]]
            patches = self._rows(images[:, :, shift : end[0], shift : end[1]].cpu().double())
            self.count += len(patches)
            self.sums += patches.sum(dim=0)
            self.products += patches.T @ patches

    def solve(self) -> "PatchPCA":
        """Take the leading components of what was observed, mirror images included."""
        size = len(self.sums)
        mirror = torch.arange(size).reshape(3, self.stride, self.stride).flip(2).reshape(-1)
        mean = self.sums / self.count
        second = self.products / self.count
        mean, second = (mean + mean[mirror]) / 2, (second + second[mirror][:, mirror]) / 2
        components = torch.linalg.eigh(second - torch.outer(mean, mean)).eigenvectors.flip(1)
        self.mean = mean.float()
        self.basis = components[:, : self.basis.shape[1]].float()
        return self

    def encode(self, images: Image) -> Latent:
        grid = patchify(images, self.stride)
        return torch.einsum("bphw,pz->bzhw", grid - self.mean[:, None, None], self.basis)

    def decode(self, latents: Latent, height: int, width: int, inference_config: object = None) -> Image:
        """Images of ``height`` and ``width``, which the latents fix; there is nothing to configure."""
        patches = torch.einsum("bzhw,pz->bphw", latents, self.basis) + self.mean[:, None, None]
        return unpatchify(patches, self.stride)

    def _rows(self, images: Image) -> Float[Tensor, "n p"]:
        return rearrange(patchify(images, self.stride), "b p h w -> (b h w) p")


class RidgeReadout:
    """Ridge regression from latents to teacher tokens, in closed form from float64 sums."""

    weight: Float[Tensor, "z f"]
    bias: Float[Tensor, " f"]
    mean_token: Float[Tensor, " f"]

    def __init__(self, *, latent: int, features: int) -> None:
        self.count = 0
        self.latents, self.tokens = (torch.zeros(size, dtype=torch.float64) for size in (latent, features))
        self.squares = torch.zeros(latent, latent, dtype=torch.float64)
        self.products = torch.zeros(latent, features, dtype=torch.float64)

    def observe(self, latents: Latent, tokens: Tokens) -> None:
        """Add the positions of images; tokens are in row-major order of the latents' grid."""
        x, y = _rows(latents), rearrange(tokens, "b n f -> (b n) f").cpu().double()
        self.count += len(x)
        self.latents += x.sum(dim=0)
        self.tokens += y.sum(dim=0)
        self.squares += x.T @ x
        self.products += x.T @ y

    def solve(self, ridge: float = RIDGE) -> "RidgeReadout":
        x, y = self.latents / self.count, self.tokens / self.count
        covariance = self.squares / self.count - torch.outer(x, x)
        cross = self.products / self.count - torch.outer(x, y)
        penalty = ridge * covariance.diagonal().mean().clamp_min(1e-12)
        self.weight = torch.linalg.solve(covariance + penalty * torch.eye(len(x), dtype=x.dtype), cross)
        self.bias = y - x @ self.weight
        self.mean_token = y
        return self

    def predict(self, latents: Latent) -> Tokens:
        return rearrange(_rows(latents) @ self.weight + self.bias, "(b n) f -> b n f", b=len(latents))


class TunedReadout(RidgeReadout):
    """A :class:`RidgeReadout` whose penalty is the best of ``PENALTIES`` on every eighth image of those observed.

    It is solved anew on all of them. With many inputs and few images a fixed penalty can do worse than the mean token.
    """

    PENALTIES = tuple(10.0**power for power in range(-4, 5))

    def __init__(self, *, latent: int, features: int) -> None:
        super().__init__(latent=latent, features=features)
        self.images = 0
        self.parts = [RidgeReadout(latent=latent, features=features) for _ in range(2)]

    def observe(self, latents: Latent, tokens: Tokens) -> None:
        super().observe(latents, tokens)
        apart = torch.tensor([(self.images + i) % 8 == 7 for i in range(len(latents))])
        for part, rows in zip(self.parts, (~apart, apart), strict=True):
            part.observe(latents[rows], tokens[rows])
        self.images += len(latents)

    def solve(self, ridge: float | None = None) -> "TunedReadout":
        if ridge is None:
            ridge = min(self.PENALTIES, key=self._error) if self.parts[1].count else RIDGE
        super().solve(ridge)
        return self

    def _error(self, ridge: float) -> float:
        """Squared error of the first part's solution on the other, up to what does not depend on it."""
        fitted, apart = self.parts[0].solve(ridge), self.parts[1]
        w, b = fitted.weight, fitted.bias
        explained = (w * apart.products).sum() + b @ apart.tokens
        size = (w * (apart.squares @ w)).sum() + 2 * (apart.latents @ w) @ b + apart.count * b.square().sum()
        return (size - 2 * explained).item()


def token_cosine(prediction: Tokens, tokens: Tokens) -> float | None:
    """Mean cosine over tokens, float64, leaving out tokens that are zero; None when all are."""
    prediction, tokens = prediction.cpu().double(), tokens.cpu().double()
    seen = tokens.abs().amax(dim=-1) > 0
    if not seen.any():
        return None
    return F.cosine_similarity(prediction, tokens, dim=-1)[seen].mean().item()


def _rows(latents: Latent) -> Float[Tensor, "n z"]:
    return rearrange(latents, "b z h w -> (b h w) z").cpu().double()
