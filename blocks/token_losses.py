"""Losses between predicted tokens p and a teacher's t, ``[b, n, c]``: in float32, also under autocast.

Point by point they need the same width on both sides. Losses of relations compare S = X·Xᵀ of unit tokens X, the n x n
cosines among the tokens of one image, and take sides of different width:

==================== ============================================================ =====================================
marginal_cosine      mean ReLU(1 - m - cos(t, p))                                 VA-VAE (arXiv 2501.01423), L_mcos
square_error         mean (p - t)²
marginal_distances   mean over all n² pairs of ReLU(\\|S_p - S_t\\| - m)            VA-VAE, L_mdms
gram_error           mean over all n² pairs of (S_p - S_t)²                       DINOv3 (arXiv 2508.10104, sec. 4.2)
similarity_distance  1 - correlation of S_p and S_t over the pairs of two tokens  Kriegeskorte et al. 2008
==================== ============================================================ =====================================

DINOv3 writes the squared Frobenius norm, the sum where ours is the mean: the n² makes a weight independent of the grid.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .losses import Scalar
from .precision import without_autocast
from .shapes import Tokens

OtherTokens = Float[Tensor, "b n f"]
"""Of another width than those beside them."""


def square_error(prediction: Tokens, target: Tokens) -> Scalar:
    """Squared difference, averaged over tokens and features."""
    return F.mse_loss(prediction.float(), target.float())


def marginal_cosine(prediction: Tokens, target: Tokens, *, margin: float) -> Scalar:
    """mean ReLU(1 - margin - cos): tokens whose cosine is above 1 - margin are left in peace."""
    cosine = F.cosine_similarity(prediction.float(), target.float(), dim=-1)
    return F.relu(1 - margin - cosine).mean()


def self_similarity(tokens: Tokens) -> Float[Tensor, "b n n"]:
    """Cosines of every token with every token of its image; a token of zeros has a cosine of 0 with all, itself too."""
    with without_autocast(tokens.device):
        unit = F.normalize(tokens.float(), dim=-1)
        return unit @ unit.transpose(1, 2)


def marginal_distances(prediction: Tokens, target: OtherTokens, *, margin: float) -> Scalar:
    """mean ReLU(|S_p - S_t| - margin): relations may differ by the margin, which leaves the latent room."""
    return F.relu((self_similarity(prediction) - self_similarity(target)).abs() - margin).mean()


def gram_error(prediction: Tokens, target: OtherTokens) -> Scalar:
    """mean (S_p - S_t)²."""
    return (self_similarity(prediction) - self_similarity(target)).square().mean()


def similarity_distance(prediction: Tokens, target: OtherTokens) -> Scalar:
    """1 - Pearson's correlation of the cosines of different tokens, a mean over images; in [0, 2].

    It asks which tokens are alike and which are not, whatever the level and the spread of the cosines: those of a
    teacher whose tokens share a large mean all lie near 1, those of whitened latents around 0. Where all cosines of an
    image are equal there is no correlation, and its distance is 1.

    Raises:
        ValueError: fewer than three tokens, which have no relations to correlate.
    """
    n = prediction.shape[1]
    if n < 3:
        raise ValueError(f"similarity_distance: needs three tokens an image at least, got {n}; take larger images")
    pairs = torch.triu_indices(n, n, offset=1, device=prediction.device)
    p, t = (self_similarity(x)[:, pairs[0], pairs[1]] for x in (prediction, target))
    p, t = (x - x.mean(dim=1, keepdim=True) for x in (p, t))
    spread = p.square().sum(dim=1) * t.square().sum(dim=1)
    return (1 - (p * t).sum(dim=1) / (spread + 1e-12).sqrt()).mean()
