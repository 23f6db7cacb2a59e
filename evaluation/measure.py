"""Measure a model: reconstruction under a protocol, what its latents hold, and how that compares to linear codes."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import nn

from ..blocks.registry import Part, encode
from ..blocks.shapes import Image, Latent, Tokens
from ..blocks.slots import (
    ImageSource,
    Measured,
    ProbeConfig,
    ProbeContext,
    ProtocolConfig,
    TeacherConfig,
    TeacherOutput,
)
from ..blocks.teacher_spec import TeacherSpec
from .latents import LatentStatistics, PosteriorStatistics, evenly_spaced
from .linear import PatchPCA, RidgeReadout, token_cosine
from .metrics import summary
from .protocols import ArchetypePSNRConfig, frozen, placed_like
from .results import Result, identify, origin, plain, short_name

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, images done, images in all)."""

PredictTokens = Callable[[Latent], Tokens]
"""A run's alignment head: latents as ``encode`` gives them, to teacher tokens."""


def evaluate(
    model: Any,
    held_out: ImageSource,
    *,
    training: ImageSource | None = None,
    protocol: ProtocolConfig | None = None,
    teacher: TeacherConfig | None = None,
    predict_tokens: PredictTokens | None = None,
    recipe: Part | None = None,
    probes: Sequence[ProbeConfig] = (),
    fit_images: int = 64,
    teacher_spec: TeacherSpec | None = None,
    accept: Collection[str] = (),
    on_progress: Progress | None = None,
) -> Result:
    """Measure ``model`` on the held-out images and return a result for :func:`~.results.save_result`.

    With ``training``, at most ``fit_images`` of its images, evenly spaced, fit the two yardsticks: the PCA of patches
    with as many values as the latent (``baseline``, under the same protocol), and, with a teacher, the ridge readout
    from latents to its tokens (``alignment.ridge_cosine``). ``predict_tokens`` gives ``alignment.head_cosine``; a model
    with a token head and a teacher of its width, with a class token, give ``alignment.class_cosine``.
    Answers of ``probes`` stand under ``probes``, by short name; a probe may use ``training``, ``teacher`` and
    ``predict_tokens`` as well.

    ``teacher_spec`` is that of the teacher that the model learnt from, with which it is compared to be measured;
    ``accept`` names fields in which the one at hand may differ.

    Raises:
        ValueError: an image that does not fit, a reconstruction that is not finite, or a teacher on another grid or
            of another spec.
    """
    protocol = protocol or ArchetypePSNRConfig()
    progress = on_progress or (lambda stage, done, total: None)
    with frozen(model):
        alignment = _Alignment(model, teacher, predict_tokens) if teacher is not None else None
        if alignment is not None and teacher_spec is not None:
            _check_teacher(alignment.teacher.spec, teacher_spec, accept)
        baseline = fitted = None
        if training is not None and len(training):
            baseline, fitted = _fit(model, training, protocol, alignment, fit_images, progress)
        latents, posteriors = LatentStatistics(), PosteriorStatistics()

        def visit(measured: Measured) -> None:
            latents.update(measured.latent)
            posterior = model.encode_posterior(placed_like(model, measured.original))
            posteriors.update(posterior.mode(), posterior.sigma)
            if alignment is not None:
                alignment.score(measured)
            progress("measure", measured.index + 1, measured.total)

        numbers = protocol.measure(model, held_out, visit=visit)
        if baseline is not None:
            numbers["baseline"] = _baseline(baseline, held_out, protocol, numbers["images"], fitted, progress)
    if probes:
        context = ProbeContext(training=training, teacher=teacher, predict_tokens=predict_tokens)
        if alignment is not None:
            context.built[alignment.config] = alignment.teacher
        numbers["probes"] = _answers(probes, model, held_out, protocol, context, progress)
    if alignment is not None:
        numbers["alignment"] = alignment.report()
    space = latents.report()
    values_per_pixel = space["channels"] / model.stride**2
    space["posterior"] = posteriors.report(values_per_pixel=values_per_pixel)
    head = origin(model, protocol, recipe=recipe)
    head["model"] |= {
        "stride": model.stride,
        "latent_channels": space["channels"],
        "compression": 3 / values_per_pixel,
    }
    return plain(head | {"set": identify(numbers["images"])} | numbers | {"latents": space})


def _check_teacher(spec: TeacherSpec, trained: TeacherSpec, accept: Collection[str]) -> None:
    try:
        spec.check(trained, where="the trained model", accept=accept)
    except ValueError as error:
        raise ValueError(f"{error}; --accept FIELD takes a difference that is known to be harmless") from None


class _Alignment:
    """Cosines between teacher tokens and what is predicted of them, an image at a time."""

    def __init__(self, model: nn.Module, config: TeacherConfig, predict_tokens: PredictTokens | None) -> None:
        self.config, self.predict_tokens = config, predict_tokens
        self.model: Any = model
        self.teacher = config.build().eval().to(next(model.parameters()).device)
        head = getattr(self.model.config, "token_head", None) if hasattr(model, "predict_features") else None
        self.reads_class = head is not None and head.features == config.features
        self.readout: RidgeReadout | None = None
        self.classes: list[Tokens] = []
        self.cosines: dict[str, list[float]] = {}

    def describe(self, original: Image, latent: Latent) -> TeacherOutput:
        out: TeacherOutput = self.teacher((placed_like(self.model, original).float() + 1) / 2)
        if out.grid != tuple(latent.shape[2:]):
            grids = ["x".join(map(str, grid)) for grid in (out.grid, latent.shape[2:])]
            raise ValueError(
                f"alignment: the grid of {self.config.kind!r} is {grids[0]} where that of the latents is {grids[1]}; "
                "choose a teacher whose patch is the model's stride"
            )
        return out

    def observe(self, original: Image, latent: Latent) -> None:
        """Take in a training image, for the yardsticks."""
        out = self.describe(original, latent)
        self.readout = self.readout or RidgeReadout(latent=latent.shape[1], features=self.config.features)
        self.readout.observe(latent, out.patches)
        if out.cls is not None:
            self.classes.append(out.cls[:, None].cpu().double())

    def score(self, measured: Measured) -> None:
        out, latent = self.describe(measured.original, measured.latent), measured.latent
        pairs: dict[str, tuple[Tokens, Tokens]] = {}
        if self.predict_tokens is not None:
            pairs["head_cosine"] = self.predict_tokens(latent), out.patches
        if self.readout is not None:
            pairs["ridge_cosine"] = self.readout.predict(latent), out.patches
            pairs["mean_token_cosine"] = self.readout.mean_token.expand(out.patches.shape), out.patches
        if out.cls is not None and self.reads_class:
            theirs = out.cls[:, None]
            pairs["class_cosine"] = self.model.predict_features(latent).cls[:, None], theirs
            if self.classes:
                pairs["mean_class_cosine"] = torch.cat(self.classes).mean(dim=0, keepdim=True), theirs
        for name, (prediction, tokens) in pairs.items():
            cosine = token_cosine(prediction, tokens)
            if cosine is not None:
                self.cosines.setdefault(name, []).append(cosine)

    def report(self) -> dict[str, Any]:
        """Means over images; ``mean_token_cosine`` and ``mean_class_cosine`` are those of always answering the mean."""
        return {"teacher": encode(self.config), "teacher_id": self.config.id} | {
            name: summary(cosines)["mean"] for name, cosines in self.cosines.items()
        }


def _fit(
    model: Any,
    training: ImageSource,
    protocol: ProtocolConfig,
    alignment: _Alignment | None,
    most: int,
    progress: Progress,
) -> tuple[PatchPCA, int]:
    indices = list(evenly_spaced(len(training), most))
    baseline = None
    for done, index in enumerate(indices, 1):
        original = protocol.prepare(training.read(index), stride=model.stride)
        latent = model.encode(placed_like(model, original))
        baseline = baseline or PatchPCA(stride=model.stride, values=latent.shape[1])
        baseline.observe(original)
        if alignment is not None:
            alignment.observe(original, latent)
        progress("fit the yardsticks", done, len(indices))
    assert baseline is not None
    if alignment is not None and alignment.readout is not None:
        alignment.readout = alignment.readout.solve()
    return baseline.solve(), len(indices)


def _baseline(
    baseline: PatchPCA,
    held_out: ImageSource,
    protocol: ProtocolConfig,
    rows: list[dict[str, Any]],
    fitted: int | None,
    progress: Progress,
) -> dict[str, Any]:
    numbers = protocol.measure(
        baseline, held_out, visit=lambda m: progress("measure the linear baseline", m.index + 1, m.total)
    )
    for row, linear in zip(rows, numbers.pop("images"), strict=True):
        row["baseline_psnr"], row["baseline_ssim"] = linear["psnr"], linear["ssim"]
    name = f"PCA of {baseline.stride}x{baseline.stride} patches, {baseline.basis.shape[1]} components"
    return {"name": name, "fitted_images": fitted} | numbers


def _answers(
    probes: Sequence[ProbeConfig],
    model: Any,
    held_out: ImageSource,
    protocol: ProtocolConfig,
    context: ProbeContext,
    progress: Progress,
) -> dict[str, Any]:
    answers = {}
    for probe in probes:
        name = short_name(probe)
        numbers = probe.measure(
            model,
            held_out,
            protocol,
            context=context,
            on_image=lambda done, total, name=name: progress(f"probe {name}", done, total),
        )
        answers[name] = {"kind": probe.kind, "id": probe.id, "settings": encode(probe)} | numbers
    return answers
