"""Probes of maps: spatial self-similarity, and principal components as pictures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import PIL.Image
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..blocks.grids import GridConfig, StrictGridConfig
from ..blocks.registry import part
from ..blocks.shapes import Map
from ..blocks.slots import Columns, ImageSource, ProbeConfig, ProbeContext, ProtocolConfig, TeacherConfig
from .answers import Numbers, check_count, row_columns
from .metrics import summary
from .pictures import data_uri, pca_maps, to_picture, webp
from .references import reference
from .representations import Representations, described_batches, identity
from .self_similarity import FAR, MOST, decay_slope, local_distant_similarity, rms_contrast, selfsim_error
from .tiles import tiled

SHOWN, THUMBNAIL = 32, 96
"""Larger maps, and larger pictures, are shown reduced to these sides, so that answers stay small."""


@part("probe/self_similarity")
class SelfSimilarityProbeConfig(ProbeConfig):
    """Spatial self-similarity of latents and of a teacher's tokens, means over images (see ``self_similarity.py``).

    ``lds_far<d>``: local-versus-distant similarity; ``cds_d<d>``: correlation-decay slope; ``rmsc``: contrast. With a
    teacher, named or of the run, its own numbers stand beside them, and ``selfsim_err`` between both. Distances are in
    tokens: compare models at one stride and one size of images.

    Attributes:
        far: distance from which tokens are distant.
        decay: up to which distance the slope is fitted.
        grid: how tokens are compared where the teacher's grid is not that of the latents; the default refuses.
        tile: cut images into squares of so many pixels.
        most: at most so many images or tiles, evenly spaced; None takes all.
    """

    shorthand: ClassVar[str] = "teacher"

    teacher: TeacherConfig | None = None
    far: int = FAR
    decay: int = MOST
    grid: GridConfig = StrictGridConfig()
    tile: int | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        for name in ("far", "decay"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name}: must be at least 2, got {getattr(self, name)}")
        check_count(self.tile, where="tile")
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
        asked = self.teacher or context.teacher
        ref = None if asked is None else reference(self, asked, model, context)
        subjects = {"latents": model} if ref is None else {"latents": model, ref.name: ref.teacher}
        seen, values = Representations(), {name: {} for name in subjects}
        for names, batch, described in described_batches(
            list(subjects.values()),
            tiled(images, self.tile),
            protocol=protocol,
            stride=model.stride,
            most=self.most,
            on_image=on_image,
        ):
            seen.see(names, batch)
            if ref is not None:
                ours, theirs = described
                pair = self.grid.match(ours.tokens, theirs.tokens, where=f"{names[0]}, {ref.name}")
                gaps = selfsim_error(*(rearrange(tokens, "b n c -> b c n 1") for tokens in pair)).tolist()
                values.setdefault(f"latents to {ref.name}", {}).setdefault("selfsim_err", []).extend(gaps)
            try:
                for name, description in zip(subjects, described, strict=True):
                    for number, found in self._measured(description.maps).items():
                        values[name].setdefault(number, []).extend(found)
            except ValueError as error:
                raise ValueError(f"{names[0]}: {error}") from error
        statistics = {name: {k: summary(v) for k, v in numbers.items()} for name, numbers in values.items()}
        rows = {name: {k: s["mean"] for k, s in numbers.items()} for name, numbers in statistics.items()}
        head = {} if ref is None else ref.as_json()
        return head | {"set": identity(seen), "rows": rows, "statistics": statistics}

    def _measured(self, maps: Map) -> dict[str, list[float]]:
        return {
            f"lds_far{self.far}": local_distant_similarity(maps, far=self.far).tolist(),
            f"cds_d{self.decay}": decay_slope(maps, most=self.decay).tolist(),
            "rmsc": rms_contrast(maps).tolist(),
        }

    def columns(self, answer: Mapping[str, Any]) -> Columns:
        return row_columns(self, answer)


@part("probe/pca_maps")
class PCAMapsProbeConfig(ProbeConfig):
    """Three principal components of latents, and of a teacher's tokens, as pictures for the report.

    ``pca3_variance`` is the share of the variance over all positions that the three components of the set hold.

    Attributes:
        fitted_on: the positions that the components are of: those of all images shown, so that a colour means the same
            everywhere, or those of each image by itself. The sign of a component makes its largest loading positive.
        most: images that are shown, evenly spaced.
    """

    shorthand: ClassVar[str] = "teacher"

    teacher: TeacherConfig | None = None
    fitted_on: Literal["set", "image"] = "set"
    most: int = 8

    def __post_init__(self) -> None:
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
        asked = self.teacher or context.teacher
        ref = None if asked is None else reference(self, asked, model, context)
        subjects = {"latents": model} if ref is None else {"latents": model, ref.name: ref.teacher}
        thumbnails: list[str] = []
        found = [Representations() for _ in subjects]
        for names, batch, described in described_batches(
            list(subjects.values()),
            images,
            protocol=protocol,
            stride=model.stride,
            most=self.most,
            on_image=on_image,
        ):
            thumbnails += [
                data_uri(webp(_reduced(to_picture(image), THUMBNAIL), quality=60)) for image in batch.split(1)
            ]
            for one, description in zip(found, described, strict=True):
                one.see(names, batch)
                one.add(description, maps=True)
        rows: dict[str, Numbers] = {}
        colours: dict[str, list[str]] = {}
        for name, one in zip(subjects, found, strict=True):
            rows[name] = {f"pca3_variance_N{len(one.maps)}": three_component_share(one.maps)}
            pictures = pca_maps(one.maps, fitted_on=self.fitted_on)
            colours[name] = [data_uri(webp(_reduced(picture, SHOWN))) for picture in pictures]
        maps = [
            {"name": name, "height": height, "width": width, "image": thumbnail}
            | {"maps": {subject: uris[i] for subject, uris in colours.items()}}
            for i, (name, (height, width), thumbnail) in enumerate(
                zip(found[0].names, found[0].sizes, thumbnails, strict=True)
            )
        ]
        head = {} if ref is None else ref.as_json()
        return head | {"set": identity(found[0]), "rows": rows, "images": maps}

    def columns(self, answer: Mapping[str, Any]) -> Columns:
        return row_columns(self, answer)


def three_component_share(maps: Sequence[Float[Tensor, "_ z _ _"]]) -> float | None:
    """Share of the variance over the positions of all maps in three principal components; None where nothing varies."""
    rows = torch.cat([rearrange(m.double(), "b c h w -> (b h w) c") for m in maps])
    rows = rows - rows.mean(dim=0)
    variances = torch.linalg.eigvalsh(rows.T @ rows).clamp_min(0)
    total = variances.sum().item()
    return variances[-3:].sum().item() / total if total > 0 else None


def _reduced(picture: PIL.Image.Image, side: int) -> PIL.Image.Image:
    longer = max(picture.size)
    if longer <= side:
        return picture
    width, height = (max(round(s * side / longer), 1) for s in picture.size)
    return picture.resize((width, height), PIL.Image.Resampling.BOX)
