"""The loop that runs a recipe: stages, accumulation, clipping, averaging, records, checkpoints, exact resume.

A run folder holds ``recipe.json``, ``metrics.jsonl``, ``timing.jsonl``, ``checkpoints/``, and at the end ``model/``
(averaged weights, loadable by name) and ``objective.safetensors`` (parameters of the terms, such as alignment heads).
Launch many processes with torchrun; the batch of a stage is the whole of all processes.
"""

import json
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..blocks.draws import Draws, address
from ..blocks.registry import encode
from ..blocks.slots import TeacherOutput
from ..families.files import TEACHER_SPEC, save_folder, write_atomically, write_tensors
from .adversary import FILE, Adversary, adversary_of
from .cached import with_computing_teacher
from .checkpoints import Checkpoint, Checkpoints, Position, optimiser_tensors, restore_optimiser
from .ema import Average
from .feeds import Served, feed_of
from .objectives import MeasuredTerm, Objective, objective_of
from .precision import Precision
from .recipe import Recipe, StageConfig, trainable_names
from .records import Records, Watcher
from .shares import GradientShares
from .stage_checks import check_stages
from .world import World, join

MODEL, TERMS, RECIPE = "model", "objective.safetensors", "recipe.json"

Inputs = tuple[Tensor, TeacherOutput | None, Draws]
"""Of an objective: images or latents, what the teacher says of them, random numbers."""


class TrainingError(RuntimeError):
    """A run cannot go on; the message says where, why, and what is safe on disk."""


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    resume: bool = False,
    device: str | torch.device | None = None,
    workers: int = 0,
    keep: int = 2,
    tensorboard: bool = False,
    accept: Collection[str] = (),
    watcher: Watcher | None = None,
) -> Path:
    """Train ``recipe`` in ``folder`` and return the folder of the finished model.

    Args:
        resume: go on from the newest checkpoint in the folder; a CPU run that was killed ends with the bits of one
            that was not.
        device: default: this process's CUDA device, else the CPU.
        workers: processes that read images, for each training process.
        keep: checkpoints to keep besides the best.
        accept: fields in which the teacher's spec may differ from that of the checkpoint to go on from, or of pairs to
            learn from, such as "version" where another one is known to give the same features.

    Raises:
        FileExistsError: the folder holds a run and ``resume`` is off.
        CheckpointError: the run in the folder follows another recipe, or another teacher.
        TrainingError: a loss or gradient is not finite.
    """
    folder, recipe = Path(folder), with_computing_teacher(recipe)
    with join(device) as world:
        checkpoints = Checkpoints(folder / "checkpoints", recipe, keep=keep)
        if not resume and (checkpoints.all() or (folder / MODEL).exists()):
            raise FileExistsError(f"{folder}: holds a run already; go on with --resume, or choose another --out")
        latest = checkpoints.latest() if resume else None
        world.wait()
        if world.leads:
            folder.mkdir(parents=True, exist_ok=True)
            for half_written in folder.rglob(".*.part"):
                half_written.unlink()
            if latest is not None:
                checkpoints.settle(latest.position)
            write_atomically(folder / RECIPE, json.dumps(encode(recipe), indent=2) + "\n")
        world.wait()
        watcher = watcher or Watcher()
        trainer = Trainer(recipe, folder, world, checkpoints, workers=workers, watcher=watcher, accept=accept)
        if latest is not None:
            checkpoints.check_teacher(latest, accept=accept)
            checkpoints.check_latents(latest)
        return trainer.run(latest, tensorboard=tensorboard)


class Trainer:
    """One process of a run."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        world: World,
        checkpoints: Checkpoints,
        *,
        workers: int,
        watcher: Watcher,
        accept: Collection[str] = (),
    ) -> None:
        self.recipe, self.folder, self.world, self.checkpoints = recipe, folder, world, checkpoints
        self.workers, self.watcher = workers, watcher
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(address(recipe.seed, "birth"))
            self.model: Any = recipe.model.build().to(world.device)
        self.feed = feed_of(recipe, world)
        check_stages(recipe, self.model, world)
        self.feed.prepare(self.model, accept=accept)  # last, since a teacher may have to be downloaded
        checkpoints.teacher_spec, checkpoints.latent_spec = self.feed.teacher_spec, self.feed.latent_spec
        self.average: Average
        self.total_steps = sum(stage.steps for stage in recipe.stages)
        self.objective: Objective
        self.adversary: Adversary | None = None
        self.optimiser: torch.optim.Optimizer
        self.precision: Precision

    def run(self, latest: Checkpoint | None, *, tensorboard: bool) -> Path:
        position = latest.position if latest else Position()
        if latest is None and self.recipe.start is not None:
            inputs = self._inputs(self.recipe.stages[0], self.recipe.start.batches, "start", shared=True)
            self.recipe.start.apply(self.model, inputs)
        self.average = Average(self.model, decay=0.0)
        records = None
        if self.world.leads:
            records = Records(self.folder, step=position.total, tensorboard=tensorboard)
            self.watcher.start(self.recipe, done=position.total, total=self.total_steps)
        try:
            terms: dict[str, Tensor] = {}
            for number in range(position.stage, len(self.recipe.stages)):
                if number > position.stage:  # a loss of one stage says nothing about that of another
                    position = Position(stage=number, total=position.total)
                self._enter(self.recipe.stages[number], terms, latest)
                latest = None
                position = self._run_stage(self.recipe.stages[number], position, records)
                terms = self.objective.terms.state_dict()
        finally:
            if records is not None:
                records.close()
        return self._finish()

    # --- one stage ------------------------------------------------------------------------------------------------

    def _enter(self, stage: StageConfig, terms: dict[str, Tensor], checkpoint: Checkpoint | None) -> None:
        """Build the stage's objective and optimiser, and take over what the stage before or a checkpoint left."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(address(self.recipe.seed, "birth of terms", stage.name))
            self.objective = objective_of(self.recipe, stage, self.model).to(self.world.device).train()
        known = self.objective.terms.state_dict()
        inherited = {n: t for n, t in terms.items() if n in known and known[n].shape == t.shape}
        self.objective.terms.load_state_dict(inherited, strict=False)
        if checkpoint is None:
            self._measure(stage, inherited)
        if checkpoint is not None:
            self.model.load_state_dict(checkpoint.group("model"))
            self.average.model.load_state_dict(checkpoint.group("average"))
            self.objective.terms.load_state_dict(checkpoint.group("terms"))
            self.objective.adaptive.restore(checkpoint.group("adaptive"))
        self.precision = Precision(stage.precision, self.world.device)
        self.average.decay = stage.ema
        learns = trainable_names([name for name, _ in self.model.named_parameters()], stage)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in learns)
        self.objective.train()  # norms that are frozen now keep their statistics
        adversary, before = adversary_of(stage, self.recipe, self.world), self.adversary
        if adversary is not None:
            adversary.start(checkpoint, before, self.watcher.say)
        self.objective.adversary = self.adversary = adversary
        self.optimiser = stage.optimiser.build((n, p) for n, p in self.objective.named_parameters() if p.requires_grad)
        if checkpoint is not None:
            restore_optimiser(self.optimiser, checkpoint.group("optimiser"))
            self.precision.restore(checkpoint.group("precision"))

    def _measure(self, stage: StageConfig, inherited: Collection[str]) -> None:
        """Let new terms measure what they need of the features, all processes on the same batches."""
        for name, term in self.objective.terms.items():
            if isinstance(term, MeasuredTerm) and not any(key.startswith(f"{name}.") for key in inherited):
                batches = self.feed.samples(stage, term.batches, "measurement", shared=True)
                term.measure(found for batch in batches if (found := self.feed.features(batch)) is not None)

    def _run_stage(self, stage: StageConfig, position: Position, records: Records | None) -> Position:
        module: nn.Module = self.objective
        if self.world.size > 1:
            # buffers (latent statistics, queues of features) are the same on all processes by how they are computed
            module = DistributedDataParallel(self.objective, find_unused_parameters=True, broadcast_buffers=False)
        rates = [group["lr"] for group in self.optimiser.param_groups]
        clock = time.perf_counter()
        served = self.feed.batches(stage, "data", first=position.step, stop=stage.steps, workers=self.workers)
        with served as batches:
            for step, batch in batches:
                factor = stage.rate.factor(step, stage.steps)
                for group, rate in zip(self.optimiser.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
                last = step + 1 == stage.steps
                records_step = last or (step + 1) % stage.log_every == 0
                measured = self._step(module, stage, batch, position, shares=records_step)
                position = replace(position, step=step + 1, total=position.total + 1)
                self.average.update(self.model, step=position.total)
                recorded = self._recorded(*measured) if records_step else {}
                if last:
                    self._recalibrate(stage)
                if last or (stage.validate_every and position.step % stage.validate_every == 0):
                    recorded["validation_loss"] = loss = self._validate(stage)
                    if position.best_loss is None or loss <= position.best_loss:
                        position = replace(position, best_loss=loss, best_total=position.total)
                if records is not None:
                    if recorded:
                        records.metrics(position.total, stage.name, recorded)
                        records.timing(position.total, time.perf_counter() - clock)
                    self.watcher.step(position.total, recorded)
                    for name, reason in batch.skipped:
                        self.watcher.say(f"skipped {name}: {reason}")
                if last or position.step % stage.checkpoint_every == 0 or position.best_total == position.total:
                    self._save(position)
        return position

    def _step(
        self, module: nn.Module, stage: StageConfig, batch: Served, position: Position, *, shares: bool
    ) -> tuple[Tensor, Tensor, GradientShares]:
        """Learn from one batch.

        Return the mean values of the terms over all processes, the gradient's norm and, on demand, shares in it.
        """
        gathered = GradientShares()
        self.objective.recording = shares and stage.latents == "data"
        self.objective.begin(position.step)
        values, moments = self._accumulate(module, stage, batch, position.step, gathered)
        values = self.world.average(values)
        self._check_finite(values, "loss", position)
        self.precision.unscale(self.optimiser)
        learning = [p for group in self.optimiser.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(learning, stage.clip or torch.inf)
        self._check_finite(norm.reshape(1), "gradient norm", position)
        self.precision.step(self.optimiser)
        if self.adversary is not None:
            self.adversary.learn(lambda values, what: self._check_finite(values, what, position))
        if moments is not None:
            self.model.fit_latent_norm(self.world.average(moments), momentum=stage.momentum)
        return values, norm, gathered

    def _recorded(self, values: Tensor, norm: Tensor, shares: GradientShares) -> dict[str, float]:
        terms = dict(zip(self.objective.weights, values.tolist(), strict=True))
        effective = self.objective.adaptive.effective()
        terms |= {f"{name}_weight": weight for name, weight in effective.items()}
        pulls = shares.of(self.objective.weights | effective, self.world.average)
        terms |= {f"{name}_share": share for name, share in pulls.items()}
        if torch.isfinite(norm):  # of a step that float16 left out there is none
            terms["gradient_norm"] = norm.item()
        terms |= self.adversary.recorded() if self.adversary is not None else {}
        rate = self.optimiser.param_groups[0]["lr"]
        return {"loss": self.objective.total(values).item(), **terms, "rate": rate} | self.precision.recorded()

    def _accumulate(
        self, module: nn.Module, stage: StageConfig, batch: Served, step: int, shares: GradientShares
    ) -> tuple[Tensor, Tensor | None]:
        """Sum the gradients of a batch part by part; return the terms' mean values and the latents' mean moments."""
        self.optimiser.zero_grad(set_to_none=True)
        parts, objective = stage.accumulate, self.objective
        inputs: Iterable[Inputs] = (self._part(stage, batch, step, part) for part in range(parts))
        if objective.adaptive and parts > 1:
            inputs = list(inputs)  # the teacher is asked once
            objective.adaptive.settle([self._look_ahead(given) for given in inputs], self.world.average)
        values, moments = [], []
        for part, given in enumerate(inputs):
            more_to_come = part < parts - 1
            with module.no_sync() if isinstance(module, DistributedDataParallel) and more_to_come else nullcontext():
                with self.precision.autocast():
                    terms, part_moments = module(*given)
                if objective.prediction is not None:
                    shares.take(objective.latest, objective.prediction)
                if objective.adaptive and parts == 1:
                    objective.adaptive.settle([objective.anchor_gradients()], self.world.average)
                self.precision.backward(objective.total(terms) / parts)
            values.append(terms.detach())
            if part_moments is not None:
                moments.append(part_moments)
        return torch.stack(values).mean(0), torch.stack(moments).mean(0) if moments else None

    def _part(self, stage: StageConfig, batch: Served, step: int, part: int) -> Inputs:
        """What the objective is given for a part of this process's batch."""
        size = len(batch) // stage.accumulate
        first = self.world.rank * len(batch) + part * size
        seed, device = address(self.recipe.seed, stage.name), self.world.device
        draws = Draws(seed, step, first=first, batch=size, device=device, whole=stage.batch)
        with self.precision.autocast():
            return *self.feed.given(batch, slice(part * size, (part + 1) * size)), draws

    def _look_ahead(self, given: Inputs) -> dict[str, Tensor]:
        """Gradients at the anchors for a part of a batch, from which nothing is learned yet."""
        with self.precision.autocast():
            values, _ = self.objective.values_of(self.objective.adaptive.concerned, *given)
        return self.objective.adaptive.gradients(values, self.model)

    def _inputs(self, stage: StageConfig, batches: int, purpose: str, *, shared: bool = False) -> Iterator[Tensor]:
        """The inputs of ``batches`` batches of training data that are no step's."""
        for batch in self.feed.samples(stage, batches, purpose, shared=shared):
            yield self.feed.inputs(batch)

    def _check_finite(self, values: Tensor, what: str, position: Position) -> None:
        if torch.isfinite(values).all() or (what == "gradient norm" and self.precision.forgives):
            return
        if what == "loss":
            broken = [n for n, v in zip(self.objective.weights, values.tolist(), strict=True) if not abs(v) < torch.inf]
            what = f"{what} of {' and '.join(map(repr, broken))}"
        files = self.checkpoints.all()
        safe = f"the last good checkpoint is {files[-1]}" if files else "there is no checkpoint yet"
        raise TrainingError(
            f"step {position.total + 1}: the {what} is not finite; {safe}. "
            "Lower the rate, clip harder, or train in float32"
        )

    # --- now and then ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _validate(self, stage: StageConfig) -> float:
        """Objective of the averaged weights on held-out crops, with the same random numbers every time."""
        objective = self.objective
        objective.model = self.average.model
        try:
            losses, count = 0.0, 0
            for inputs, features in self.feed.held_out(stage):
                draws = Draws(
                    address(self.recipe.seed, "validation"),
                    0,
                    first=count,
                    batch=len(inputs),
                    device=self.world.device,
                )
                with self.precision.autocast():
                    values, _ = objective.eval()(inputs, features, draws)
                losses += objective.total(values).item() * len(inputs)
                count += len(inputs)
            mean = torch.tensor(losses / count, dtype=torch.float64, device=self.world.device)
            return self.world.average(mean).item()  # processes must agree to the bit on what is best
        finally:
            objective.model = self.model
            objective.train()

    @torch.no_grad()
    def _recalibrate(self, stage: StageConfig) -> None:
        """Measure the latent statistics of the averaged weights over posterior samples of training crops."""
        if stage.latents != "encoder" or not stage.recalibrate:
            return
        moments = []
        for step, images in enumerate(self._inputs(stage, stage.recalibrate, "recalibration")):
            draws = Draws(
                address(self.recipe.seed, "recalibration"),
                step,
                first=self.world.rank * len(images),
                batch=len(images),
                device=self.world.device,
            )
            with self.precision.autocast():
                posterior = self.average.model.posterior(images)
                latent = posterior.at(draws.normal("posterior", *posterior.mean.shape[1:]))
            moments.append(self.average.model.latent_moments(latent))
        mean = self.world.average(torch.stack(moments).mean(0))
        self.average.model.fit_latent_norm(mean, momentum=1.0)

    def _save(self, position: Position) -> None:
        if self.world.leads:
            groups = {
                "model": self.model.state_dict(),
                "average": self.average.model.state_dict(),
                "terms": self.objective.terms.state_dict(),
                "adaptive": self.objective.adaptive.kept(),
                "optimiser": optimiser_tensors(self.optimiser),
                "precision": self.precision.kept(),
            } | (self.adversary.kept() if self.adversary is not None else {})
            self.checkpoints.save(position, groups)
        self.world.wait()

    def _finish(self) -> Path:
        folder = self.folder / MODEL
        if self.world.leads:
            header = {"latelier.recipe": encode(self.recipe), "latelier.recipe_id": self.recipe.id}
            if self.feed.teacher_spec is not None:
                header[TEACHER_SPEC] = encode(self.feed.teacher_spec)
            save_folder(self.average.model, folder, header=header)
            terms = self.objective.terms.state_dict()
            write_tensors(self.folder / TERMS, terms, {"latelier.recipe_id": self.recipe.id})
            if self.adversary is not None:
                write_tensors(self.folder / FILE, self.adversary.network.state_dict(), {})
        self.world.wait()
        return folder
