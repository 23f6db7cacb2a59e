"""A stage with an adversary: a discriminator that learns beside the model, with an optimiser of its own.

In each step the model learns first. Its term ``objective/adversarial`` asks :meth:`Adversary.judge`, through which
gradients reach the model and no parameter of the discriminator. Then the discriminator learns from the pictures of the
same step and the reconstructions that the model's own pass gave, without gradient (as in VQGAN's code), each part of
the batch by itself; its gradients are averaged over processes. Checkpoints hold it with its optimiser, and a stage
that follows another with an adversary of the same form takes it over.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..blocks.adversarial_losses import HingeLossConfig
from ..blocks.discriminators import PatchGANConfig
from ..blocks.draws import address
from ..blocks.registry import Part, part
from ..blocks.slots import AdversarialLossConfig, DiscriminatorConfig, OptimiserConfig, RateConfig
from ..families.files import CheckpointError, read_tensors
from .checkpoints import Checkpoint, optimiser_tensors, restore_optimiser
from .optimisers import AdamWConfig, ConstantRateConfig
from .precision import Precision
from .recipe import Recipe, StageConfig
from .world import World

GROUP, OPTIMISER, PRECISION = "adversary", "adversary_optimiser", "adversary_precision"
FILE = "discriminator.safetensors"


@part("adversary/discriminator")
class AdversaryConfig(Part):
    """A discriminator and how it learns.

    Attributes:
        loss: of both sides.
        optimiser, rate: of the discriminator, over the steps of the stage.
        start: step of the stage at which the discriminator begins to learn.
        alone: how many steps it learns before the model's term counts.
        updates: of the discriminator for each step of the model, from the same pictures.
        clip: largest norm of its gradient, or None.
        weights: file to begin with: a checkpoint of a run, or ``discriminator.safetensors`` of a finished one. A
            checkpoint without a discriminator is taken too, and then a new one begins.
    """

    slot: ClassVar[str] = "adversary"

    discriminator: DiscriminatorConfig = PatchGANConfig()
    loss: AdversarialLossConfig = HingeLossConfig()
    optimiser: OptimiserConfig = AdamWConfig(rate=5.4e-5, beta1=0.5, beta2=0.9)
    rate: RateConfig = ConstantRateConfig()
    start: int = 0
    alone: int = 0
    updates: int = 1
    clip: float | None = None
    weights: str = ""

    def __post_init__(self) -> None:
        for name, least in (("start", 0), ("alone", 0), ("updates", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be at least {least}, got {getattr(self, name)}")


@part("stage/adversarial")
class AdversarialStageConfig(StageConfig):
    """A stage in which a discriminator learns as well, and the objective has the term ``objective/adversarial``.

    Attributes:
        adversary: the discriminator, its loss and its optimiser.
    """

    has_adversary: ClassVar[bool] = True
    adversary: AdversaryConfig = AdversaryConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any(term.adversarial for term in self.objective):
            raise ValueError("objective: has no 'objective/adversarial', so that nothing learns from the adversary")
        if self.adversary.start + self.adversary.alone >= self.steps:
            raise ValueError(
                f"adversary: begins to count at step {self.adversary.start + self.adversary.alone} (start + alone) of "
                f"a stage of {self.steps} steps; begin earlier"
            )


class Adversary:
    """The discriminator of a stage at work, in one process. It is no module: the objective must not own it."""

    def __init__(self, config: AdversaryConfig, stage: StageConfig, recipe: Recipe, world: World) -> None:
        self.config, self.stage, self.world = config, stage, world
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(address(recipe.seed, "birth of the discriminator", stage.name))
            network = config.discriminator.build(channels=recipe.model.channels)
        self.network: nn.Module = network.to(world.device).train()
        self.optimiser = config.optimiser.build(self.network.named_parameters())
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        self.precision = Precision(stage.precision, world.device)
        self.step = 0
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._recorded: dict[str, float] = {}

    # --- the model's side ---------------------------------------------------------------------------------------------

    @property
    def learns(self) -> bool:
        """Whether the discriminator learns in this step."""
        return self.step >= self.config.start

    @property
    def plays(self) -> bool:
        """Whether the model's term counts in this step."""
        return self.step >= self.config.start + self.config.alone

    def begin(self, step: int) -> None:
        """A step of the stage begins."""
        self.step, self._seen, self._recorded = step, [], {}

    def judge(self, fake: Tensor) -> Tensor:
        """The loss of the model for its reconstructions; no gradient stays with the discriminator.

        Its norms are in the mode of evaluation: what they keep comes from its own updates alone.
        """
        self.network.eval().requires_grad_(False)
        try:
            return self.config.loss.of_generator(self.network(fake))
        finally:
            self.network.train().requires_grad_(True)

    def watch(self, real: Tensor, fake: Tensor) -> None:
        """Remember a part of the step's batch, and what the model made of it."""
        if self.learns:
            self._seen.append((real, fake.detach()))

    # --- its own side -------------------------------------------------------------------------------------------------

    def learn(self, check: Callable[[Tensor, str], None]) -> None:
        """Learn from what was seen; ``check(values, what)`` is asked about the loss and the gradient's norm."""
        if not self.learns:
            return
        factor = self.config.rate.factor(self.step, self.stage.steps)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        for _ in range(self.config.updates):
            self._update(check)
        self._seen = []

    def _update(self, check: Callable[[Tensor, str], None]) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        sums = torch.zeros(3, device=self.world.device)
        for real, fake in self._seen:
            with self.precision.autocast():
                logits = self.network(torch.cat([real, fake.to(real.dtype)]))
            of_real, of_fake = logits.float().chunk(2)
            loss = self.config.loss.of_discriminator(of_real, of_fake)
            self.precision.backward(loss / len(self._seen))
            sums = sums + torch.stack([loss, of_real.mean(), of_fake.mean()]).detach() / len(self._seen)
        values = self.world.average(sums)
        check(values[:1], "loss of the discriminator")
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                parameter.grad = self.world.average(parameter.grad)
        self.precision.unscale(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip or torch.inf)
        if not self.precision.forgives:
            check(norm.reshape(1), "gradient norm of the discriminator")
        self.precision.step(self.optimiser)
        for buffer in self.network.buffers():
            if buffer.is_floating_point():
                buffer.copy_(self.world.average(buffer.clone()))
        names = ("discriminator", "logit_real", "logit_fake")
        self._recorded = dict(zip(names, values.tolist(), strict=True))

    def recorded(self) -> dict[str, float]:
        """The discriminator's loss, and its mean logits of pictures and reconstructions, in this step."""
        return self._recorded

    # --- between runs -------------------------------------------------------------------------------------------------

    def kept(self) -> dict[str, dict[str, Tensor]]:
        """Groups of a checkpoint."""
        return {
            GROUP: self.network.state_dict(),
            OPTIMISER: optimiser_tensors(self.optimiser),
            PRECISION: self.precision.kept(),
        }

    def start(self, checkpoint: Checkpoint | None, before: "Adversary | None", say: Callable[[str], None]) -> None:
        """Go on from a checkpoint, else from the stage before, else from a file, else anew, and say so."""
        tensors = {} if checkpoint is None else checkpoint.group(GROUP)
        if checkpoint is not None and tensors:
            self._load(tensors, str(checkpoint.path))
            restore_optimiser(self.optimiser, checkpoint.group(OPTIMISER))
            self.precision.restore(checkpoint.group(PRECISION))
            return
        if checkpoint is not None:
            say(f"stage {self.stage.name!r}: {checkpoint.path} has no discriminator; a new one begins")
        elif before is not None and before.config.discriminator == self.config.discriminator:
            self.network.load_state_dict(before.network.state_dict())
        elif self.config.weights:
            self._read(say)
        else:
            say(f"stage {self.stage.name!r}: a new discriminator begins")

    def _read(self, say: Callable[[str], None]) -> None:
        path = self.config.weights
        found, header = read_tensors(Path(path).expanduser())
        if "latelier.position" in header:  # a checkpoint of a run
            found = {name.removeprefix(f"{GROUP}/"): t for name, t in found.items() if name.startswith(f"{GROUP}/")}
        if found:
            self._load(found, path)
        else:
            say(f"stage {self.stage.name!r}: {path} has no discriminator; a new one begins")

    def _load(self, tensors: Mapping[str, Tensor], where: str) -> None:
        ours: dict[str, Any] = self.network.state_dict()
        wrong = sorted(n for n in ours.keys() | tensors.keys() if _shape(ours, n) != _shape(tensors, n))
        if wrong:
            raise CheckpointError(
                f"{where}: holds a discriminator of another form than {self.config.discriminator.kind!r} of the "
                f"recipe; {wrong[0]!r} does not fit"
            )
        self.network.load_state_dict(dict(tensors))


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


def adversary_of(stage: StageConfig, recipe: Recipe, world: World) -> Adversary | None:
    """The adversary of a stage, newly born, or None."""
    return Adversary(stage.adversary, stage, recipe, world) if isinstance(stage, AdversarialStageConfig) else None
