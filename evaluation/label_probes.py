"""Probes on labelled images: how well classes can be told from latents, by their neighbours and by a linear map.

They look at images of their own (``labels``), not at those of the protocol, which prepares them. With a ``teacher``
its features are asked the same, as a reference: the mean of its patch tokens, and its class token where it has one.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from ..blocks.registry import encode, part, short_name
from ..blocks.slots import (
    Columns,
    ImageSource,
    LabelsConfig,
    ProbeConfig,
    ProbeContext,
    ProtocolConfig,
    TeacherConfig,
)
from .answers import Numbers, check_count, row_columns
from .labels import DigitsConfig
from .latents import evenly_spaced
from .linear_probe import BATCH, EPOCHS, PENALTY, RATE, FeatureSums, ridge, sgd, top_k_accuracy
from .neighbours import TEMPERATURE, knn_accuracy, self_knn_accuracy
from .references import reference
from .representations import Representations, collect, identity


@part("probe/knn")
class KNNProbeConfig(ProbeConfig):
    """Accuracy of k nearest neighbours by cosine, of latents averaged over positions.

    ``knn<k>_N<n>``: held-out images among ``n`` for training. ``self_knn<k>_N<n>``: each image of both parts among the
    others, as DC-Gen has it. Neighbours vote with weights softmax(cosine / temperature).

    Attributes:
        labels: the labelled images.
        teacher: what is asked the same, or None.
        most: at most so many images for training and as many held out, evenly spaced; None takes all.
    """

    better = "higher"

    shorthand: ClassVar[str] = "teacher"

    labels: LabelsConfig = DigitsConfig()
    teacher: TeacherConfig | None = None
    ks: tuple[int, ...] = (1, 5, 10, 20)
    temperature: float = TEMPERATURE
    most: int | None = None

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"ks: must be 1 or more, got {list(self.ks)}")
        if self.temperature <= 0:
            raise ValueError(f"temperature: must be positive, got {self.temperature}")
        check_count(self.most, where="most")

    def measure(
        self,
        model: Any,
        images: ImageSource,
        protocol: ProtocolConfig,
        *,
        context: ProbeContext = ProbeContext(),
        on_image: Callable[[int, int], None] | None = None,
    ) -> dict[str, Any]:
        """``model`` needs ``encode`` and ``stride``."""
        found = _describe(self, self.labels, self.teacher, self.most, model, protocol, context, on_image)
        train, test = len(found.train_labels), len(found.test_labels)
        if max(self.ks) > train:
            raise ValueError(
                f"{self.kind}: k={max(self.ks)} needs as many images for training, got {train}; lower ks, or add images"
            )
        both = torch.cat([found.train_labels, found.test_labels])
        rows: dict[str, Numbers] = {}
        for name, (x, test_x) in found.features.items():
            split = knn_accuracy(
                x, found.train_labels, test_x, found.test_labels, ks=self.ks, temperature=self.temperature
            )
            own = self_knn_accuracy(torch.cat([x, test_x]), both, ks=self.ks, temperature=self.temperature)
            rows[name] = {f"knn{k}_N{train}": share for k, share in split.items()}
            rows[name] |= {f"self_knn{k}_N{train + test}": share for k, share in own.items()}
        return found.head | {"rows": rows}

    def columns(self, answer: Mapping[str, Any]) -> Columns:
        """Accuracies by the most neighbours, and that of always answering the commonest class."""
        found = row_columns(self, answer, lambda row, number: f"knn{max(self.ks)}_" in number)
        return found | {f"{short_name(self)}, majority": (answer["majority"], "")}


@part("probe/linear_probe")
class LinearProbeConfig(ProbeConfig):
    """Accuracy of a linear classifier of latents averaged over positions, standardised.

    ``ridge_top<k>_N<n>`` is in closed form, ``sgd90_top<k>_N<n>`` by 90 epochs of gradient descent (see
    ``linear_probe.py``), ``n`` the images for training. Top-5 is given where there are more than five classes. Of a
    teacher with a class token, "mean+cls" are both side by side.

    Attributes:
        labels: the labelled images.
        teacher: what is asked the same, or None.
        penalty: of ridge, for standardised features.
        rate: of gradient descent, at its start.
        most: at most so many images for training and as many held out, evenly spaced; None takes all.
    """

    better = "higher"

    shorthand: ClassVar[str] = "teacher"

    labels: LabelsConfig = DigitsConfig()
    teacher: TeacherConfig | None = None
    solvers: tuple[Literal["ridge", "sgd"], ...] = ("ridge", "sgd")
    penalty: float = PENALTY
    rate: float = RATE
    most: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.solvers:
            raise ValueError("solvers: is empty; name 'ridge', 'sgd', or both")
        for name in ("penalty", "rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: must be positive, got {getattr(self, name)}")
        check_count(self.most, where="most")

    def measure(
        self,
        model: Any,
        images: ImageSource,
        protocol: ProtocolConfig,
        *,
        context: ProbeContext = ProbeContext(),
        on_image: Callable[[int, int], None] | None = None,
    ) -> dict[str, Any]:
        """``model`` needs ``encode`` and ``stride``."""
        found = _describe(self, self.labels, self.teacher, self.most, model, protocol, context, on_image, joined=True)
        classes, train = found.head["classes"], len(found.train_labels)
        rows: dict[str, Numbers] = {}
        for name, (x, test_x) in found.features.items():
            rows[name] = {}
            for solver in self.solvers:
                if solver == "ridge":
                    sums = FeatureSums()
                    sums.update(x, found.train_labels, classes=classes)
                    title, classifier = "ridge", ridge(sums, penalty=self.penalty)
                else:
                    title = f"sgd{EPOCHS}"
                    classifier = sgd(x, found.train_labels, classes=classes, rate=self.rate, seed=self.seed)
                ks = (1, 5) if classes > 5 else (1,)
                accuracies = top_k_accuracy(classifier(test_x), found.test_labels, ks=ks)
                rows[name] |= {f"{title}_top{k}_N{train}": share for k, share in accuracies.items()}
        return found.head | {"sgd": {"epochs": EPOCHS, "batch": BATCH}, "rows": rows}

    def columns(self, answer: Mapping[str, Any]) -> Columns:
        """Top-1 accuracies, and that of always answering the commonest class."""
        found = row_columns(self, answer, lambda row, number: "_top1_" in number)
        return found | {f"{short_name(self)}, majority": (answer["majority"], "")}


# --- what they share --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Described:
    """Labels of both parts, features of both parts by what they are of, and what an answer says of the images."""

    train_labels: Int[Tensor, " n"]
    test_labels: Int[Tensor, " m"]
    features: dict[str, tuple[Tensor, Tensor]]
    head: dict[str, Any]


def _describe(
    probe: ProbeConfig,
    labels: LabelsConfig,
    teacher: TeacherConfig | None,
    most: int | None,
    model: Any,
    protocol: ProtocolConfig,
    context: ProbeContext,
    on_image: Callable[[int, int], None] | None,
    *,
    joined: bool = False,
) -> _Described:
    """Describe both parts by the model and, if named, the teacher; ``joined`` adds its class token to its mean."""
    parts = labels.training(), labels.held_out()
    ref = reference(probe, teacher, model, context) if teacher is not None else None
    subjects = [model] if ref is None else [model, ref.teacher]
    counts = [min(len(source), most or len(source)) for source in parts]
    described, known, done = [], [], 0
    for source, count in zip(parts, counts, strict=True):

        def tell(at: int, of: int, done: int = done) -> None:
            if on_image is not None:
                on_image(done + at, sum(counts))

        described.append(collect(subjects, source, protocol=protocol, stride=model.stride, most=most, on_image=tell))
        known.append(torch.tensor([source.label(i) for i in evenly_spaced(len(source), count)]))
        done += count
    train, test = described
    features = {"latents, mean": (train[0].mean, test[0].mean)}
    if ref is not None:
        features[f"{ref.name}, mean"] = train[1].mean, test[1].mean
        tokens = train[1].cls, test[1].cls
        if tokens[0] is not None and tokens[1] is not None and ref.teacher.spec.cls != "mean":
            if joined:
                features[f"{ref.name}, mean+cls"] = (
                    torch.cat([train[1].mean, tokens[0].double()], dim=1),
                    torch.cat([test[1].mean, tokens[1].double()], dim=1),
                )
            else:
                features[f"{ref.name}, cls"] = tokens[0], tokens[1]
    frequencies = known[0].bincount(minlength=len(parts[0].classes))
    head = {
        "labels": encode(labels),
        "labels_id": labels.id,
        "classes": len(parts[0].classes),
        "train": _identity(train[0], known[0]),
        "test": _identity(test[0], known[1]),
        "chance": 1 / len(parts[0].classes),
        "majority": (known[1] == frequencies.argmax()).double().mean().item(),
    }
    return _Described(known[0], known[1], features, head | ({} if ref is None else ref.as_json()))


def _identity(found: Representations, labels: Tensor) -> dict[str, Any]:
    """Count and id of labelled images: the id follows from names, measured sizes, and labels."""
    text = json.dumps([identity(found)["id"], sorted(zip(found.names, labels.tolist(), strict=True))])
    return {"n": len(found.names), "id": hashlib.sha256(text.encode()).hexdigest()[:12]}
