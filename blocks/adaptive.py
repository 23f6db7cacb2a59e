"""Weights that follow gradients: a term pulls on an anchor parameter as hard as others do, whatever its scale.

    weight = ||d L_reference / d theta|| / (||d L_term / d theta|| + eps), at most ``clamp``, without gradient

with theta the anchor, a parameter that both losses reach (VQGAN, arXiv 2012.09841, eq. 7, for its discriminator;
VA-VAE, arXiv 2501.01423, for its VF loss at the encoder's last layer, eps 1e-4, clamp 1e8).
"""

from typing import ClassVar

from torch import Tensor

from .registry import Part, part


@part("adaptive_weight/gradient_ratio")
class GradientRatioConfig(Part):
    """How a term's weight follows the gradient of others; it multiplies the weight that the term has.

    The weight grows as the term's own gradient fades, for a VF loss by a hundredfold and more. The total loss moves
    with it, and so does the validation loss, by which a run names its best checkpoint: compare runs by their terms.

    Attributes:
        anchor: name of the model's parameter at which gradients are compared, one that learns.
        reference: short names of the terms whose weighted sum is followed, such as "vp_reconstruction". Where a
            reconstruction has several terms they all belong here.
        eps: added to the norm of the term's own gradient.
        clamp: largest ratio.
    """

    slot: ClassVar[str] = "adaptive_weight"

    anchor: str = "encoder.to_bottleneck.weight"
    reference: tuple[str, ...] = ("vp_reconstruction",)
    eps: float = 1e-4
    clamp: float = 1e8

    def __post_init__(self) -> None:
        if not self.reference:
            raise ValueError("reference: is empty; name a term to follow, such as 'vp_reconstruction'")
        for name in ("eps", "clamp"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: must be positive, got {getattr(self, name)}")

    def ratio(self, reference: Tensor, own: Tensor) -> Tensor:
        """The weight for two gradients at the anchor, of the reference and of the term."""
        return (reference.norm() / (own.norm() + self.eps)).clamp(max=self.clamp)
