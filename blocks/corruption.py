"""Corruptions of posteriors in training, against which a decoder becomes robust.

A latent diffusion model errs in single tokens of a latent. A decoder that has seen some tokens noisier than the others
takes such errors more kindly ("random-token logSNR offset regularization" of the DINAC-AE card, which gives no numbers;
those here are our choice).
"""

import torch

from .draws import Draws
from .posterior import EncoderPosterior
from .registry import part
from .slots import CorruptionConfig


@part("corruption/random_token_logsnr")
class RandomTokenLogSNRConfig(CorruptionConfig):
    """In some images, makes some tokens noisier: subtracts a random number of nats from their log-SNR.

    An image is chosen with ``probability``; of its tokens a share ~ U(0, ``most_tokens``), rounded to whole tokens;
    for each of these an offset ~ U(0, ``most_offset``) in nats, which all channels of the token share. The posterior
    stays variance-preserving, so that a sample of a corrupted token is both noisier and shrunk.

    An infinite log-SNR (``posterior/point``) stays infinite: a point has no noise to which nats could be added, and
    this corruption leaves it as it is.
    """

    probability: float = 0.5
    most_tokens: float = 0.5
    most_offset: float = 6.0

    def __post_init__(self) -> None:
        for name in ("probability", "most_tokens"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: must be in [0, 1], got {getattr(self, name)}")
        if self.most_offset < 0:
            raise ValueError(f"most_offset: must not be negative, got {self.most_offset}")

    def apply(self, posterior: EncoderPosterior, draws: Draws) -> EncoderPosterior:
        h, w = posterior.logsnr.shape[2:]
        share = self.most_tokens * draws.uniform("corrupted share")
        count = torch.where(draws.uniform("corrupted images") < self.probability, (share * h * w).round(), 0)
        places = draws.uniform("corrupted tokens", h * w).argsort(dim=1, stable=True)
        ranks = places.argsort(dim=1, stable=True).unflatten(1, (h, w))  # the first of a random order of the tokens
        offset = self.most_offset * draws.uniform("corruption offsets", h, w)
        offset = torch.where(ranks < count[:, None, None], offset, 0)
        return EncoderPosterior(posterior.mean, posterior.logsnr.float() - offset[:, None])
