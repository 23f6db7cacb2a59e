"""A bridge as a loss: how far the features of latents are from what they should be, without decoding a pixel.

A frozen bridge describes latents of another model (a generator's prediction, an autoencoder's output) as a vision
teacher would describe their image. The target is what the teacher says of the true image, as in REPA (arXiv
2410.06940), or what the bridge says of the true latents, a perceptual loss in latent space.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..blocks.bridge_losses import BridgePreset, UnitReduction, bridge_loss
from ..blocks.losses import Scalar
from ..blocks.shapes import Latent, Times, Tokens
from ..blocks.slots import TeacherOutput
from .bridge import LatentBridge

Described = tuple[Tensor, Tensor | None, Tensor | None]
"""Patches, class token and registers."""


class BridgeFeatureLoss(nn.Module):
    """``blocks.bridge_loss`` of what a bridge says of latents; differentiable to the latents, and to nothing else.

    The bridge that is given is frozen, and stays in evaluation under ``train()``.
    """

    std: Tensor | None

    def __init__(
        self,
        bridge: LatentBridge,
        *,
        cosine: float | None = None,
        mse_unit: float | None = None,
        mse_raw: float | None = None,
        mse_standardised: float | None = None,
        relational: float | None = None,
        cls: float | None = None,
        unit_reduction: UnitReduction | None = None,
        margin: float = 0.0,
        std: Float[Tensor, " f"] | None = None,
        preset: BridgePreset = "default",
        compile: bool = False,
    ) -> None:
        """Weights, reduction, margin and ``std`` are those of ``bridge_loss``; ``compile`` makes the bridge one graph.

        Compiling pays where the loss is called often, with batches of one shape.
        """
        super().__init__()
        self.bridge = bridge.eval().requires_grad_(False)
        self.weights: Mapping[str, float | None] = {
            "cosine": cosine,
            "mse_unit": mse_unit,
            "mse_raw": mse_raw,
            "mse_standardised": mse_standardised,
            "relational": relational,
            "cls": cls,
        }
        self.unit_reduction: UnitReduction | None = unit_reduction
        self.margin = margin
        self.preset: BridgePreset = preset
        self.register_buffer("std", std, persistent=False)
        self._describe: Callable[[Latent, Times | None], Described] = self._described
        if compile:
            self._describe = torch.compile(self._described, fullgraph=True)

    def train(self, mode: bool = True) -> "BridgeFeatureLoss":
        """A loss does not learn, and drops nothing: it stays in evaluation."""
        return super().train(False)

    def forward(self, latents: Latent, target: TeacherOutput | Tokens | Latent, tau: Times | None = None) -> Scalar:
        """The weighted sum of the terms, float32; see :meth:`terms`."""
        return self.terms(latents, target, tau)[0]

    def terms(
        self, latents: Latent, target: TeacherOutput | Tokens | Latent, tau: Times | None = None
    ) -> tuple[Scalar, dict[str, Scalar]]:
        """The weighted sum, and the unweighted value of each term by its name.

        Args:
            latents: in the bridge's space, with gradient or without.
            target: what the teacher says of the image, its patches ``[b, n, f]``, or clean latents ``[b, z, h, w]``,
                which the bridge describes without gradient.
            tau: how noisy ``latents`` are, for a bridge that was made with noise; None is clean.

        Raises:
            ValueError: latents of another space, shape or size, or a target on another grid.
        """
        if isinstance(target, Tensor) and target.ndim == 4:
            with torch.no_grad():
                target = self.describe(target)
        return self._loss(self.describe(latents, tau), target)

    def describe(self, latents: Latent, tau: Times | None = None) -> TeacherOutput:
        """What the bridge says of latents, after its checks."""
        self.bridge.check(latents, tau)
        patches, cls, registers = self._describe(latents, tau)
        return TeacherOutput(patches, self.bridge.grid_of(latents), cls, registers)

    def _described(self, latents: Latent, tau: Times | None) -> Described:
        found = self.bridge.read(latents, tau)
        return found.patches, found.cls, found.registers

    def _loss(self, prediction: TeacherOutput, target: TeacherOutput | Tokens) -> tuple[Scalar, dict[str, Scalar]]:
        return bridge_loss(
            prediction,
            target,
            **self.weights,
            unit_reduction=self.unit_reduction,
            margin=self.margin,
            std=self.std,
            preset=self.preset,
        )
