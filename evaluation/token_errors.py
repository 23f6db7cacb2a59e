"""How well tokens are predicted: the metrics of bridge.md, section 9, as sums that add over parts of a set.

    cos_token    mean over tokens of cos(p, t)
    nmse_energy  sum over the set of |p - t|² / sum of |t|²
    nmse_var     the same, with the mean token of the set removed from t in the denominator

and the control ``cos_mean_token``: the cosine of always answering that mean token. Tokens of zeros, as flat patches
have in HOG, have no direction and are left out of the cosines.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange

from ..blocks.shapes import Tokens
from .latents import Sum, Sums


@dataclass
class TokenErrors(Sums):
    """Sums over tokens of predictions and targets."""

    count: int = 0
    directed: int = 0
    error: Sum = 0
    energy: Sum = 0
    targets: Sum = 0
    directions: Sum = 0
    cosines: Sum = 0

    def update(self, predictions: Tokens, tokens: Tokens) -> None:
        p, t = (rearrange(x.detach().cpu().double(), "b n c -> (b n) c") for x in (predictions, tokens))
        seen = t.abs().amax(dim=1) > 0
        self.count += len(t)
        self.directed += int(seen.sum())
        self.error = self.error + (p - t).square().sum()
        self.energy = self.energy + t.square().sum()
        self.targets = self.targets + t.sum(dim=0)
        self.directions = self.directions + F.normalize(t, dim=1).sum(dim=0)
        self.cosines = self.cosines + F.cosine_similarity(p, t, dim=1)[seen].sum()

    def report(self) -> dict[str, float | None]:
        """Raises ``ValueError`` where no tokens were seen; None is a share of nothing."""
        if not self.count:
            raise ValueError("tokens: none were seen; update first")
        error, energy, targets, directions, cosines = (
            torch.as_tensor(x) for x in (self.error, self.energy, self.targets, self.directions, self.cosines)
        )
        mean = targets / self.count
        variance = energy - self.count * mean.square().sum()
        length = mean.norm()
        return {
            "cos_token": (cosines / self.directed).item() if self.directed else None,
            "cos_mean_token": (mean @ directions / (length * self.directed)).item() if length > 0 else None,
            "nmse_energy": (error / energy).item() if energy > 0 else None,
            "nmse_var": (error / variance).item() if variance > 1e-12 * energy else None,
        }
