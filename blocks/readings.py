"""Which latents a term of an objective reads: sampled, clean or noised; whitened or raw.

Published alignments differ here: VA-VAE reads the raw posterior sample, REPA-E and Send-VAE normalise first, Send-VAE
and SemDisDiffAE add noise, DINAC-AE reads the clean mode. Gradients flow into the encoder in all of them.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from .registry import Part, part
from .shapes import Latent
from .slots import StepState, TimesConfig
from .vp import UniformTimesConfig


class ReadingConfig(Part, ABC):
    """Takes latents out of a step, and brings those of ``encode`` into the same space."""

    slot: ClassVar[str] = "reading"

    @abstractmethod
    def read(self, state: StepState, term: str) -> Latent:
        """Latents of the step; ``term`` names streams of random numbers, so that terms draw their own."""

    @abstractmethod
    def of_encoded(self, model: Any, latents: Latent) -> Latent:
        """What ``encode`` gives (clean, whitened) in the space that the term reads, without noise."""


@part("reading/sample")
class SampleReadingConfig(ReadingConfig):
    """What the decoder sees: the posterior sample, corrupted where the stage has a corruption."""

    whitened: bool = True

    def read(self, state: StepState, term: str) -> Latent:
        return state.model.whiten(state.latent) if self.whitened else state.latent

    def of_encoded(self, model: Any, latents: Latent) -> Latent:
        return latents if self.whitened else model.dewhiten(latents)


@part("reading/mode")
class ModeReadingConfig(ReadingConfig):
    """The clean mode alpha·mu of the posterior; what the teacher gave where there is no posterior."""

    whitened: bool = True

    def read(self, state: StepState, term: str) -> Latent:
        clean = state.latent if state.posterior is None else state.posterior.mode()
        return state.model.whiten(clean) if self.whitened else clean

    def of_encoded(self, model: Any, latents: Latent) -> Latent:
        return latents if self.whitened else model.dewhiten(latents)


@part("reading/noised")
class NoisedReadingConfig(ReadingConfig):
    """The whitened sample z with noise, (1 - tau)·z + tau·eps; nobody is told tau.

    Send-VAE (arXiv 2601.05823) has tau ~ U(0, 1), SemDisDiffAE Beta(2, 2) and tells its head (``objective/alignment``).
    """

    times: TimesConfig = UniformTimesConfig()

    def read(self, state: StepState, term: str) -> Latent:
        z = state.model.whiten(state.latent)
        tau = self.times.sample(state.draws, f"{term} tau")[:, None, None, None]
        return (1 - tau) * z + tau * state.draws.normal(f"{term} noise", *z.shape[1:])

    def of_encoded(self, model: Any, latents: Latent) -> Latent:
        return latents
