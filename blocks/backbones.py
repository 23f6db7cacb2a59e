"""Networks as teachers: what every vision transformer and convolutional network needs around it to be a teacher.

A :class:`Backbone` gives the outputs of its blocks for normalised pixels: our small ViT is one, and adapters make one
of a network of timm or transformers. A :class:`NetworkTeacher` puts the steps around it, always in this order:
resize and normalise (in the order that the resize rule says), blocks, final norm over each chosen layer, combine the
layers, read the class token, standardise the patch tokens. Tokens come out in float32.
"""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .resize import NoResizeConfig, ResizeConfig, StrideResizeConfig
from .shapes import Image
from .slots import TeacherConfig, TeacherOutput
from .standardise import StandardiseConfig
from .teacher_spec import TeacherSpec
from .teachers import Teacher

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

AS_IT_IS = NoResizeConfig()

Colour = tuple[float, float, float]
Config = TypeVar("Config", bound="NetworkTeacherConfig")


class Hidden(NamedTuple):
    """The output of one block, before any final norm; ``patches`` in row-major order of the grid."""

    patches: Float[Tensor, "b n c"]
    cls: Float[Tensor, "b c"] | None = None
    registers: Float[Tensor, "b r c"] | None = None


class Backbone(nn.Module, ABC):
    """A frozen network behind one interface.

    Attributes:
        library, version, model, licence: for the spec.
        weights: "random:SEED", or None for a hash of the tensors.
        mean, std: what its pixels are normalised by, where a config says nothing else.
        position: how its positions follow the grid, for the spec.
        width, depth, patch: features of a token, blocks, pixels a side of a token.
        has_cls: whether it has a class token of its own.
        has_pool: whether it pools its tokens in a way of its own.
        final_norm: applied to every token after the last block, or None where there is none.
    """

    library: str
    version: str
    model: str
    licence: str
    weights: str | None
    mean: Colour
    std: Colour
    position: str
    width: int
    depth: int
    patch: int
    has_cls: bool
    has_pool: bool = False
    final_norm: nn.Module | None

    @abstractmethod
    def hidden(self, pixels: Image, layers: Sequence[int]) -> list[Hidden]:
        """Outputs of the blocks of these indices, rising, for normalised pixels whose sides divide by the patch."""

    def pool(self, last: Hidden, norm: Callable[[Tensor], Tensor]) -> Float[Tensor, "b c"]:
        """The class token that the network's own pooling makes of the last block's output and the final norm.

        Called where ``has_pool`` says so; of other networks it is a ``TypeError``.
        """
        raise TypeError(f"{self.model}: has no pooling of its own")


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """ "sha256:" and 16 hexadecimal digits of names, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {list(value.shape)} {value.dtype} ".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()[:16]}"


def without_affine(norm: nn.Module) -> nn.Module:
    """The same norm with weights of 1 and biases of 0."""
    plain = copy.deepcopy(norm)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.fill_(0 if name.endswith("bias") else 1)
    return plain


class NetworkTeacher(Teacher):
    """A backbone with everything around it that makes it a teacher; see the module's text for the order of steps."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, config: "NetworkTeacherConfig", *, name: str) -> None:
        super().__init__(name)
        layers = _layers(config.layers, backbone.depth, name)
        norm = config.norm or ("none" if backbone.final_norm is None else "affine")
        cls = config.cls or ("token" if backbone.has_cls else "none")
        if config.prefix == "drop":
            cls = "none" if cls == "token" else cls
        features = backbone.width * (len(layers) if config.combine == "concat" else 1)
        _check(norm, cls, layers, backbone, name)
        self.spec = TeacherSpec(
            library=backbone.library,
            version=backbone.version,
            model=backbone.model,
            weights=backbone.weights or weights_hash(backbone.state_dict()),
            licence=backbone.licence,
            resize=config.resize,
            mean=config.mean or backbone.mean,
            std=config.std or backbone.std,
            position=backbone.position,
            layers=layers,
            combine=config.combine,
            norm=norm,
            prefix=config.prefix,
            cls=cls,
            standardise=config.standardise,
            dtype=config.dtype,
            patch=backbone.patch,
            features=features,
        )
        dtype = getattr(torch, config.dtype)
        self.backbone = _in_dtype(backbone.requires_grad_(False), dtype).eval()
        final = backbone.final_norm
        self.norm = None if norm == "none" or final is None else final if norm == "affine" else without_affine(final)
        self.standardise = None if config.standardise is None else config.standardise.build(features)
        self.requires_grad_(False)
        for buffer, values in (("mean", self.spec.mean), ("std", self.spec.std)):
            self.register_buffer(buffer, torch.tensor(values)[:, None, None], persistent=False)

    def describe(self, images: Image) -> TeacherOutput:
        spec, resize = self.spec, self.spec.resize
        assert resize is not None
        if images.shape[1] != 3:
            raise ValueError(
                f"{self.name}: takes images of 3 colours, got {images.shape[1]}; "
                "repeat a grey one with x.expand(-1, 3, -1, -1)"
            )
        size = resize.input_size((images.shape[2], images.shape[3]), spec.patch)
        if resize.order == "resize_first":
            pixels = self._normalised(resize.apply(images, spec.patch))
        else:
            pixels = resize.apply(self._normalised(images), spec.patch)
        found = self.backbone.hidden(pixels.to(getattr(torch, spec.dtype)), sorted(set(spec.layers)))
        by_layer = dict(zip(sorted(set(spec.layers)), found, strict=True))
        chosen = [by_layer[layer] for layer in spec.layers]
        patches = self._combined([self._normed(layer.patches) for layer in chosen])
        cls = registers = None
        if spec.cls == "token":
            cls = self._combined([self._normed(layer.cls) for layer in chosen if layer.cls is not None])
        elif spec.cls == "mean":
            cls = patches.mean(dim=1)
        elif spec.cls == "pooled":
            cls = self.backbone.pool(chosen[0], self._normed).float()
        if spec.prefix == "return" and all(layer.registers is not None for layer in chosen):
            registers = self._combined(
                [self._normed(layer.registers) for layer in chosen if layer.registers is not None]
            )
        if self.standardise is not None:
            patches = self.standardise(patches)
        grid = (size[0] // spec.patch, size[1] // spec.patch)
        return TeacherOutput(patches=patches, grid=grid, cls=cls, registers=registers)

    def _normalised(self, images: Image) -> Image:
        return (images - self.mean) / self.std

    def _normed(self, tokens: Tensor) -> Tensor:
        return tokens if self.norm is None else self.norm(tokens)

    def _combined(self, layers: Sequence[Tensor]) -> Tensor:
        stacked = [tokens.float() for tokens in layers]
        if self.spec.combine == "concat":
            return stacked[0] if len(stacked) == 1 else torch.cat(stacked, dim=-1)
        return torch.stack(stacked).sum(dim=0)


def _in_dtype(backbone: Backbone, dtype: torch.dtype) -> Backbone:
    """In a dtype, apart from tables of RoPE, which turn the wrong way in half precision."""
    kept = {name: buffer for name, buffer in backbone.named_buffers() if "rope" in name and buffer.is_floating_point()}
    backbone.to(dtype)
    for name, buffer in kept.items():
        owner, _, last = name.rpartition(".")
        setattr(backbone.get_submodule(owner), last, buffer)
    return backbone


def _layers(layers: Sequence[int], depth: int, name: str) -> tuple[int, ...]:
    """Indices counted from 0."""
    counted = tuple(layer + depth if layer < 0 else layer for layer in layers)
    for given, layer in zip(layers, counted, strict=True):
        if not 0 <= layer < depth:
            raise ValueError(
                f"{name}: layers: has {depth} blocks, numbered 0 to {depth - 1} or -{depth} to -1, got {given}"
            )
    if len(set(counted)) < len(counted):
        raise ValueError(f"{name}: layers: must name each block once, got {tuple(layers)}")
    return counted


def _check(norm: str, cls: str, layers: tuple[int, ...], backbone: Backbone, name: str) -> None:
    if norm != "none" and backbone.final_norm is None:
        raise ValueError(f"{name}: norm: must be 'none', got {norm!r}; this network has no final norm over tokens")
    if cls == "token" and not backbone.has_cls:
        raise ValueError(
            f"{name}: cls: must be 'mean', 'pooled' or 'none', got 'token'; this network has no class token"
        )
    if cls == "pooled":
        if not backbone.has_pool:
            raise ValueError(
                f"{name}: cls: cannot be 'pooled'; this network has no pooling layer of its own, try 'mean'"
            )
        if layers != (backbone.depth - 1,):
            raise ValueError(
                f"{name}: cls: 'pooled' reads the last block alone; leave 'layers' at (-1,), or try 'mean'"
            )


@dataclass(frozen=True, kw_only=True)
class NetworkTeacherConfig(TeacherConfig):
    """What can be chosen of every network; the fields of all teachers that are networks.

    Attributes:
        layers: blocks whose outputs are taken, from 0, or from -1 for the last; ``last_layers(k)`` names the last k.
        combine: several layers are concatenated along features, or summed (RAEv2).
        norm: the final norm over each layer, with weight and bias ("affine"), without them ("plain", as RAE), or
            "none"; None is what the network has.
        prefix: "drop" leaves out its class token and registers.
        cls: what stands for the class: the network's own "token", the "mean" of the patches, the network's own layer
            of pooling ("pooled"), or "none"; None is the token where there is one.
        resize: what the network sees of an image.
        mean, std: of the colours; None is the network's own.
        standardise: of the patch tokens, last.
        dtype: in which it computes.
    """

    layers: tuple[int, ...] = (-1,)
    combine: Literal["concat", "sum"] = "concat"
    norm: Literal["affine", "plain", "none"] | None = None
    prefix: Literal["return", "drop"] = "return"
    cls: Literal["token", "mean", "pooled", "none"] | None = None
    resize: ResizeConfig = AS_IT_IS
    mean: Colour | None = None
    std: Colour | None = None
    standardise: StandardiseConfig | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def check_common(self) -> None:
        """What every ``__post_init__`` asks of the shared fields."""
        if not self.layers:
            raise ValueError("layers: is empty; name at least one block, such as -1 for the last")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std: must be positive, got {self.std}")

    @property
    @abstractmethod
    def width(self) -> int:
        """Of a token of one layer."""

    @property
    @abstractmethod
    def token_pixels(self) -> int:
        """Pixels of the network's input a side that become one token."""

    @property
    def features(self) -> int:
        return self.width * (len(self.layers) if self.combine == "concat" else 1)

    def for_stride(self: Config, stride: int) -> Config:
        """Resized so that a token stands for ``stride`` pixels, unless a rule of resizing has been chosen already."""
        if self.resize != AS_IT_IS or self.token_pixels == stride:
            return self
        return replace(self, resize=StrideResizeConfig(stride=stride))

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        height, width = self.resize.input_size(size, self.token_pixels)
        return height // self.token_pixels, width // self.token_pixels


def last_layers(count: int) -> tuple[int, ...]:
    """The last ``count`` blocks, for ``layers``."""
    if count < 1:
        raise ValueError(f"last_layers: must be at least 1, got {count}")
    return tuple(range(-count, 0))
