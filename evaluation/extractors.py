"""Networks and fixed functions that describe images for distances between populations.

An extractor takes images in [-1, 1] and gives named streams of rows: ``features`` always, ``spatial`` and ``logits``
where it has them. Any teacher is one, so that a Fréchet distance in the space of ``hog`` or ``tiny_vit`` needs no
download. Three things make "the" Inception: its weights, its resizing to 299, and which layer is read. The weights are
those of TensorFlow's graph of 2015 in all of them:

- torch-fidelity's port resizes as TensorFlow 1 does (``resize="tensorflow"``): RAE, MAR; close to ADM's evaluator.
- pytorch-fid (DC-AE, VA-VAE, clean-fid's legacy mode) resizes bilinearly without antialias (``resize="torch"``).

sFID reads the first seven channels of the first convolution of ``mixed_6``, 17 x 17 x 7 numbers, as ADM's evaluator
names them; no one has a port that was checked against it (guided-diffusion#159), and neither is this one.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import PIL.Image
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from PIL.Image import Resampling
from torch import Tensor, nn

from ..blocks.registry import Part, part, short_name
from ..blocks.resize import FixedResizeConfig
from ..blocks.shapes import Image
from ..blocks.slots import TeacherConfig
from ..blocks.teacher_families import DINOv2Config
from ..blocks.tiny_vit import TinyViTConfig
from ..families.images import to_pixels
from .quantise import to_bytes
from .weight_files import file_hash, find_weights

Streams = Mapping[str, Tensor]
"""Rows ``[r, f]`` by name: as many a picture, for every picture."""

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SIDE = 299


class Extractor(nn.Module, ABC):
    """``forward(images in [-1, 1]) -> Streams``, float32; frozen."""

    def __init__(self, provenance: Mapping[str, str]) -> None:
        """``provenance`` is what its numbers depend on beside the settings: ids and hashes."""
        super().__init__()
        self.provenance = dict(provenance)

    @abstractmethod
    def forward(self, images: Image) -> Streams: ...


class ExtractorConfig(Part, ABC):
    """What describes images; its ``id`` is that of the space in which distances are taken."""

    slot: ClassVar[str] = "extractor"
    streams: ClassVar[tuple[str, ...]] = ("features",)
    names: ClassVar[Mapping[str, str]] = {}
    """What the field calls measures in this space: {"frechet": "fid"}."""

    @abstractmethod
    def build(self) -> Extractor: ...

    def column(self, measure: str) -> str:
        """The name of a measure's numbers in this space."""
        return self.names.get(measure) or f"{measure}_{self.space}"

    @property
    def space(self) -> str:
        """A short name of the space."""
        return short_name(self)


# --- teachers -----------------------------------------------------------------------------------------------------


class TeacherExtractor(Extractor):
    """Tokens of a teacher as rows."""

    def __init__(self, config: "TeacherExtractorConfig") -> None:
        teacher = config.teacher.build()
        super().__init__({"teacher_spec_id": teacher.spec.id})
        self.teacher, self.read, self.resize, self.name = teacher, config.read, config.resize, config.kind

    def forward(self, images: Image) -> Streams:
        unit = (images.float().clamp(-1, 1) + 1) / 2
        if self.resize is not None:
            unit = _pil_bicubic(images, self.resize).to(images.device)
        out = self.teacher(unit)
        if self.read == "cls" and out.cls is None:
            raise ValueError(f"{self.name}: read: the teacher has no class token; take 'mean' or 'patches'")
        rows = {
            "cls": lambda: out.cls,
            "mean": lambda: out.patches.mean(dim=1),
            "patches": lambda: rearrange(out.patches, "b n f -> (b n) f"),
        }
        return {"features": rows[self.read]().float()}


def _pil_bicubic(images: Image, side: int) -> Float[Tensor, "b rgb {side} {side}"]:
    """Bytes, resampled by Pillow as dgm-eval does, in [0, 1]."""
    pictures = [
        PIL.Image.fromarray(x.permute(1, 2, 0).contiguous().numpy()).resize((side, side), Resampling.BICUBIC)
        for x in to_bytes(images.cpu())
    ]
    return to_pixels(pictures).float() / 255


@part("extractor/teacher")
class TeacherExtractorConfig(ExtractorConfig):
    """Any teacher: its class token, the mean of its patch tokens, or every patch token as a row of its own.

    ``resize`` first brings pictures, rounded to bytes, to that many pixels a side by Pillow's bicubic filter.
    """

    teacher: TeacherConfig = TinyViTConfig()
    read: Literal["cls", "mean", "patches"] = "cls"
    resize: int | None = None

    def build(self) -> Extractor:
        with torch.random.fork_rng(devices=[]):  # a network draws weights before it gets its own
            return TeacherExtractor(self)

    @property
    def space(self) -> str:
        name = short_name(self.teacher)
        return name if self.read == "cls" else f"{name}_{self.read}"


@part("extractor/dinov2")
class DINOv2ExtractorConfig(ExtractorConfig):
    """The space of FDD: the class token of DINOv2 ViT-L/14 without registers, after its norm, of 224 x 224 pixels.

    Attributes:
        resize: "pil" resamples bytes by Pillow's bicubic filter (dgm-eval), "torch" floats with antialias (EDM2).
        weights: of the teacher, None for the published ones; see ``teacher/dinov2``.
        library: that computes it.
    """

    names: ClassVar[Mapping[str, str]] = {"frechet": "fdd"}

    resize: Literal["pil", "torch"] = "pil"
    weights: str | None = None
    library: Literal["timm", "transformers"] = "timm"

    def build(self) -> Extractor:
        teacher = DINOv2Config(
            size="vitl14", library=self.library, weights=self.weights, resize=FixedResizeConfig(height=224, width=224)
        )
        side = 224 if self.resize == "pil" else None
        return TeacherExtractorConfig(teacher=teacher, read="cls", resize=side).build()


# --- Inception ----------------------------------------------------------------------------------------------------


class Inception(Extractor):
    """InceptionV3 of torch-fidelity: ``features`` of 2048, ``logits`` without bias of 1008, ``spatial`` of 2023."""

    def __init__(self, path: Path, *, resize: str) -> None:
        super().__init__({"weights": file_hash(path)})
        try:
            library = importlib.import_module("torch_fidelity")
        except ImportError as error:
            raise ImportError(
                "extractor/inception: needs torch-fidelity; pip install 'latelier[fidelity]', "
                "or take 'extractor/teacher'"
            ) from error
        self.network: Any = library.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )
        self.resized: Tensor | None = None
        self.spatial: Tensor | None = None
        if resize == "torch":
            self.network.Conv2d_1a_3x3.register_forward_pre_hook(self._replace_input)
        self.network.Mixed_6d.branch1x1.register_forward_hook(self._keep_spatial)

    def _replace_input(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        """The network resizes bytes as TensorFlow did; what pytorch-fid gives it takes the place of that."""
        assert self.resized is not None
        return (self.resized.to(inputs[0].dtype),)

    def _keep_spatial(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self.spatial = rearrange(output[:, :7], "b c h w -> b (h w c)").float()

    def forward(self, images: Image) -> Streams:
        images = images.float().clamp(-1, 1)
        size = (INCEPTION_SIDE, INCEPTION_SIDE)
        self.resized = F.interpolate(images, size, mode="bilinear", align_corners=False)
        with torch.no_grad():
            features, logits = self.network(to_bytes(images))
        assert self.spatial is not None
        found = {"features": features.float(), "logits": logits.float(), "spatial": self.spatial}
        self.resized = self.spatial = None
        return found


@part("extractor/inception")
class InceptionConfig(ExtractorConfig):
    """The Inception of FID, through torch-fidelity (extra ``fidelity``), with its weights from a local file.

    Attributes:
        resize: to 299 pixels: "tensorflow" (torch-fidelity, RAE) or "torch" (pytorch-fid, DC-AE, VA-VAE).
        weights: the file; None looks for it in ``LATELIER_WEIGHTS``.
    """

    shorthand = "resize"
    streams = ("features", "spatial", "logits")
    names: ClassVar[Mapping[str, str]] = {
        "frechet": "fid",
        "sfrechet": "sfid",
        "kid": "kid",
        "inception_score": "inception_score",
        "precision": "precision",
        "recall": "recall",
        "density": "density",
        "coverage": "coverage",
    }

    resize: Literal["tensorflow", "torch"] = "tensorflow"
    weights: str | None = None

    def build(self) -> Extractor:
        return Inception(find_weights(self.weights, INCEPTION, where=self.kind), resize=self.resize)
