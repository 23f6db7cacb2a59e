"""How the diffusion autoencoders decode."""

import math
from dataclasses import dataclass
from typing import Literal

from ..blocks.samplers import GRIDS, SAMPLERS


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """How to decode; the published fields and defaults.

    Attributes:
        num_steps: decoder evaluations (twice as many with guidance), at least 1.
        sampler: "ddim" or "dpmpp_2m".
        schedule: spacing of the times, "linear" or "cosine".
        pdg: path-drop guidance, at ``pdg_strength`` (1 is none). For sharp pictures: 10 steps with guidance.
        seed: of the starting noise, which is drawn on the CPU for the whole batch; None uses torch's global generator.
        strength: fraction of the time grid that is run, in (0, 1]: below 1 decoding starts from less noise.
    """

    num_steps: int = 1
    sampler: Literal["ddim", "dpmpp_2m"] = "ddim"
    schedule: Literal["linear", "cosine"] = "linear"
    pdg: bool = False
    pdg_strength: float = 2.0
    seed: int | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps: counts decoder evaluations and must be at least 1, got {self.num_steps}")
        for name, known in (("sampler", SAMPLERS), ("schedule", GRIDS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: takes {' or '.join(map(repr, known))}, got {getattr(self, name)!r}")
        if not math.isfinite(self.pdg_strength):
            raise ValueError(f"pdg_strength: must be finite, got {self.pdg_strength}")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength: must be in (0, 1], got {self.strength}")
