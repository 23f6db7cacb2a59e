"""Measure a model: reconstruction under a protocol, what its latents hold, and how that compares to linear codes."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ..blocks.grids import GridConfig, Pair, StrictGridConfig
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
from ..blocks.standardise import StandardiseConfig
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
    grid: GridConfig = StrictGridConfig(),
    standardise: StandardiseConfig | None = None,
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
    ``grid`` says how tokens are compared where the teacher's grid is not that of the latents, ``standardise`` what is
    done to the teacher's patch tokens first: both are those of a run's alignment. They stand in the result beside it,
    with ``resampled`` where grids did differ.
    Answers of ``probes`` stand under ``probes``, by short name; a probe may use ``training``, ``teacher`` and
    ``predict_tokens`` as well.

    ``teacher_spec`` is that of the teacher that the model learnt from, with which it is compared to be measured;
    ``accept`` names fields in which the one at hand may differ.

    Raises:
        ValueError: an image that does not fit, a reconstruction that is not finite, or a teacher on another grid
            (where ``grid`` does not resample) or of another spec.
    """
    protocol = protocol or ArchetypePSNRConfig()
    progress = on_progress or (lambda stage, done, total: None)
    with frozen(model):
        alignment = None
        if teacher is not None:
            alignment = _Alignment(model, teacher, predict_tokens, grid, standardise)
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
        head = predict_tokens if standardise is None else None  # probes compare with the teacher's tokens as they are
        context = ProbeContext(training=training, teacher=teacher, predict_tokens=head)
        if alignment is not None:
            context.built[alignment.config] = alignment.teacher
        numbers["probes"] = _answers(probes, model, held_out, protocol, context, progress)
    if alignment is not None:
        numbers["alignment"] = alignment.report()
    space = latents.report()
    values_per_pixel = space["channels"] / model.stride**2
    space["posterior"] = posteriors.report(values_per_pixel=values_per_pixel)
    start = origin(model, protocol, recipe=recipe)
    start["model"] |= {
        "stride": model.stride,
        "latent_channels": space["channels"],
        "compression": 3 / values_per_pixel,
    }
    return plain(start | {"set": identify(numbers["images"])} | numbers | {"latents": space})


def _check_teacher(spec: TeacherSpec, trained: TeacherSpec, accept: Collection[str]) -> None:
    try:
        spec.check(trained, where="the trained model", accept=accept)
    except ValueError as error:
        raise ValueError(f"{error}; --accept FIELD takes a difference that is known to be harmless") from None


Column = Float[Tensor, "b z n 1"]
"""A map one position wide, as readouts take positions that are on no grid of latents."""


class _Alignment:
    """Cosines between teacher tokens and what is predicted of them, an image at a time."""

    def __init__(
        self,
        model: nn.Module,
        config: TeacherConfig,
        predict_tokens: PredictTokens | None,
        grid: GridConfig,
        standardise: StandardiseConfig | None,
    ) -> None:
        self.config, self.predict_tokens, self.grid, self.standardise = config, predict_tokens, grid, standardise
        self.model: Any = model
        device = next(model.parameters()).device
        self.teacher = config.build().eval().to(device)
        self.standard = nn.Identity() if standardise is None else standardise.build(config.features).to(device)
        head = getattr(self.model.config, "token_head", None) if hasattr(model, "predict_features") else None
        self.reads_class = head is not None and head.features == config.features
        self.readout: RidgeReadout | None = None
        self.classes: list[Tokens] = []
        self.resampled = False
        self.cosines: dict[str, list[float]] = {}

    def describe(self, original: Image) -> TeacherOutput:
        out: TeacherOutput = self.teacher((placed_like(self.model, original).float() + 1) / 2)
        return replace(out, patches=self.standard(out.patches))

    def match(self, tokens: Float[Tensor, "b k c"], latent: Latent, out: TeacherOutput) -> Pair:
        """Tokens that lie on the grid of the latent, and the teacher's, brought together by the rule."""
        mine = TeacherOutput(tokens, (latent.shape[2], latent.shape[3]))
        self.resampled |= mine.grid != out.grid
        return self.grid.match(mine, out, where=f"alignment with {self.config.kind!r}")

    def match_latent(self, latent: Latent, out: TeacherOutput) -> tuple[Column, Tokens]:
        """The positions of the latent where the teacher has tokens, in one column, and those tokens."""
        positions, tokens = self.match(rearrange(latent, "b z h w -> b (h w) z"), latent, out)
        return rearrange(positions, "b n z -> b z n 1"), tokens

    def observe(self, original: Image, latent: Latent) -> None:
        """Take in a training image, for the yardsticks."""
        out = self.describe(original)
        self.readout = self.readout or RidgeReadout(latent=latent.shape[1], features=self.config.features)
        self.readout.observe(*self.match_latent(latent, out))
        if out.cls is not None:
            self.classes.append(out.cls[:, None].cpu().double())

    def score(self, measured: Measured) -> None:
        out, latent = self.describe(measured.original), measured.latent
        positions, patches = self.match_latent(latent, out)
        pairs: dict[str, Pair] = {}
        if self.predict_tokens is not None:
            pairs["head_cosine"] = self.match(self.predict_tokens(latent), latent, out)
        if self.readout is not None:
            pairs["ridge_cosine"] = self.readout.predict(positions), patches
            pairs["mean_token_cosine"] = self.readout.mean_token.expand(patches.shape), patches
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
        compared = {"teacher": encode(self.config), "teacher_id": self.config.id, "grid": encode(self.grid)}
        compared["resampled"] = self.resampled
        if self.standardise is not None:
            compared["standardise"] = encode(self.standardise)
        return compared | {name: summary(cosines)["mean"] for name, cosines in self.cosines.items()}


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
