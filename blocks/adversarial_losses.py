"""Losses of two networks that play against each other, on the logits D of pictures x and of reconstructions x':

    hinge            D: ½ (mean max(0, 1 - D(x)) + mean max(0, 1 + D(x')))      G: -mean D(x')
    non-saturating   D: ½ (mean softplus(-D(x)) + mean softplus(D(x')))         G: mean softplus(-D(x'))

Hinge: Lim & Ye 2017 (arXiv 1705.02894). Non-saturating: Goodfellow et al. 2014 (arXiv 1406.2661, sec. 3), the
logarithms of sigmoids written as softplus. The factor ½ on the discriminator's side is that of VQGAN's code and RAE's.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .registry import part
from .slots import AdversarialLossConfig

Logits = Float[Tensor, "b ..."]
Scalar = Float[Tensor, ""]


@part("adversarial_loss/hinge")
class HingeLossConfig(AdversarialLossConfig):
    """The discriminator stops caring for what it is sure of by a margin of 1."""

    def of_discriminator(self, real: Logits, fake: Logits) -> Scalar:
        return (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()) / 2

    def of_generator(self, fake: Logits) -> Scalar:
        return -fake.float().mean()


@part("adversarial_loss/non_saturating")
class NonSaturatingLossConfig(AdversarialLossConfig):
    """Cross-entropy; the generator raises the likelihood of being taken for a picture."""

    def of_discriminator(self, real: Logits, fake: Logits) -> Scalar:
        return (F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()) / 2

    def of_generator(self, fake: Logits) -> Scalar:
        return F.softplus(-fake.float()).mean()
