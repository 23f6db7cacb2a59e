"""Adaptive weights at work: gradients at the anchors, their ratios, and what is kept between steps.

The ratio is that of the whole batch: gradients at the anchor are averaged over all parts and all processes before their
norms are taken, so that neither accumulation nor the number of processes changes a weight. A batch in one part needs no
second forward. A batch in several runs the terms concerned once more, before any part learns: same pictures, same
random numbers (they are addressed), one part's graph at a time; what the teacher said of all parts is kept meanwhile.

The gradients are taken by ``torch.autograd.grad``, which accumulates into no parameter: hooks of parallel training see
one backward as ever. They leave autocast behind; the anchor and its gradients are float32 in mixed precision.
"""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks.slots import ObjectiveConfig
from .recipe import StageConfig, trainable_names


class AdaptiveWeights(nn.Module):
    """Factors on the weights of a stage's terms; 1 for those without a rule, and before the first step.

    Validation uses the factors of the last training step, which checkpoints hold (:meth:`kept`).
    """

    factors: Tensor

    def __init__(self, terms: Sequence[ObjectiveConfig], model: nn.Module) -> None:
        super().__init__()
        self.names = [short(term) for term in terms]
        self.weights = dict(zip(self.names, (term.weight for term in terms), strict=True))
        self.rules = {short(term): term.adaptive for term in terms if term.adaptive is not None}
        self.idle: frozenset[str] = frozenset()
        """Terms that do not count in this step; their factor is 0."""
        self.register_buffer("factors", torch.ones(len(terms)), persistent=False)
        self._check(terms, model)

    def __bool__(self) -> bool:
        return bool(self.rules)

    @property
    def concerned(self) -> list[str]:
        """Terms whose gradients are needed, in the order of the stage."""
        needed = {name for own, rule in self.rules.items() for name in (own, *rule.reference)}
        return [name for name in self.names if name in needed]

    def gradients(self, values: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
        """Gradients at the anchor for each adaptive term, stacked ``[2, ...]``: of its reference, and its own."""
        known: dict[tuple[str, tuple[str, ...]], Tensor] = {}
        found = {}
        for name, rule in self.rules.items():
            if name in self.idle:
                continue
            anchor = model.get_parameter(rule.anchor)
            key = (rule.anchor, rule.reference)
            if key not in known:
                followed = torch.stack([self.weights[other] * values[other] for other in rule.reference]).sum()
                known[key] = self._gradient(followed, anchor, name, " and ".join(map(repr, rule.reference)))
            own = self._gradient(values[name], anchor, name, repr(name))
            found[name] = torch.stack([known[key], own]).float()
        return found

    def settle(self, parts: Sequence[Mapping[str, Tensor]], average: Callable[[Tensor], Tensor]) -> None:
        """Set the factors from the gradients of all parts of a batch; ``average`` takes means over processes."""
        for name, rule in self.rules.items():
            if name in self.idle:
                self.factors[self.names.index(name)] = 0.0
                continue
            reference, own = average(torch.stack([part[name] for part in parts]).mean(0))
            self.factors[self.names.index(name)] = rule.ratio(reference, own)

    def effective(self) -> dict[str, float]:
        """What multiplies each adaptive term in the total now: ``{"vf": 0.0213}``."""
        factors = dict(zip(self.names, self.factors.tolist(), strict=True))
        return {name: self.weights[name] * factors[name] for name in self.rules}

    def kept(self) -> dict[str, Tensor]:
        """What a checkpoint holds, by the name of the term."""
        return {name: self.factors[self.names.index(name)].clone() for name in self.rules}

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Undo :meth:`kept`."""
        for name in self.rules:
            self.factors[self.names.index(name)] = kept[name]

    def _gradient(self, value: Tensor, anchor: nn.Parameter, term: str, of: str) -> Tensor:
        gradient = None
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, anchor, retain_graph=True, allow_unused=True)
        if gradient is None:
            raise ValueError(
                f"objective: the weight of {term!r} follows gradients at {self.rules[term].anchor!r}, and {of} has "
                "none there; name an anchor that both reach"
            )
        return gradient

    def _check(self, terms: Sequence[ObjectiveConfig], model: nn.Module) -> None:
        parameters = [name for name, _ in model.named_parameters()] if self.rules else []
        for name, rule in self.rules.items():
            where = f"objective: {next(term.kind for term in terms if short(term) == name)!r}"
            if rule.anchor not in parameters:
                close = get_close_matches(rule.anchor, parameters, n=1, cutoff=0.0)[0]
                raise ValueError(
                    f"{where} has the anchor {rule.anchor!r}, and the model has no such parameter; "
                    f"the closest name is {close!r}"
                )
            for other in rule.reference:
                if other == name:
                    raise ValueError(f"{where} follows its own gradient; name another term in 'reference'")
                if other not in self.names:
                    known = ", ".join(repr(x) for x in self.names if x not in self.rules)
                    close = get_close_matches(other, [x for x in self.names if x not in self.rules], n=1)
                    hint = f"did you mean {close[0]!r}?" if close else f"there are: {known or 'none'}"
                    raise ValueError(f"{where} follows {other!r}, which is no term of the stage; {hint}")
                if other in self.rules:
                    raise ValueError(f"{where} follows {other!r}, whose weight adapts too; name one of fixed weight")


def check_adaptive_weights(stage: StageConfig, model: nn.Module) -> None:
    """Raise ``ValueError`` where a stage's adaptive weights cannot be had: at the start of a run, not halfway."""
    weights = AdaptiveWeights([term for term in stage.objective if term.weight], model)
    learns = trainable_names([name for name, _ in model.named_parameters()], stage) if weights else set()
    for name, rule in weights.rules.items():
        if rule.anchor not in learns:
            raise ValueError(
                f"stage {stage.name!r}: the weight of {name!r} follows gradients at {rule.anchor!r}, which is frozen; "
                "let it learn, name another anchor, or set 'adaptive' of the term to null"
            )


def short(term: ObjectiveConfig) -> str:
    """What records and checkpoints call a term: the second half of its kind."""
    return term.kind.partition("/")[2]
