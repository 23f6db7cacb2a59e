"""Vision models of transformers as backbones (extra ``teachers``).

Where a model keeps its blocks, its final norm, its prefix and its positions is known for the types in ``LAYOUTS``; the
outputs of blocks are read by hooks, before any final norm. The traps (measured with transformers 5.24): sizes that the
patch does not divide are cropped in silence (a teacher refuses them earlier); MAE masks and shuffles its patches unless
it is told the order; SigLIP 2's NaFlex tower takes patches, not pictures; RADIO would normalise once more.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone, Colour, Hidden, weights_hash
from .libraries import import_library
from .positions import Resampling, resample_rows, with_attribute
from .resize import SizeError
from .shapes import Image
from .transformers_layouts import CONVNEXT, LAYOUTS, Layout
from .weights import CheckpointError, fetch, is_absent, listed, read_weights, tell_licence


class TransformersBackbone(Backbone):
    """What both layouts share."""

    library = "transformers"

    def __init__(self, network: Any, *, model: str, weights: str, licence: str, version: str) -> None:
        super().__init__()
        self.network = network
        self.model, self.weights, self.licence, self.version = model, weights, licence, version


class TransformersTokens(TransformersBackbone):
    """A model whose layout is one of ``LAYOUTS``."""

    def __init__(
        self, network: Any, *, colours: tuple[Colour, Colour], resampling: Resampling | None, where: str, **told: str
    ) -> None:
        super().__init__(network, **told)
        config = network.config
        self.kind = config.model_type
        layout = self.layout = LAYOUTS[self.kind]
        self.mean, self.std = colours
        self.width, self.patch = config.hidden_size, _square(config.patch_size, where=where)
        self.depth = len(_at(network, layout.blocks))
        self.has_cls = layout.cls
        self.final_norm = None if layout.norm is None else _at(network, layout.norm)
        self.has_pool = self.kind.startswith(("siglip", "aimv2")) and getattr(network, "head", None) is not None
        registers = layout.registers
        self.registers = registers if isinstance(registers, int) else getattr(config, registers)
        if self.kind == "radio":  # further class tokens, for its further teachers, count as registers
            self.registers = config.num_cls_tokens - 1 + config.num_registers
        sinusoids = getattr(config, "is_native", False)
        self.has_table = layout.table is not None and not sinusoids
        if resampling is not None and not self.has_table:
            raise ValueError(
                f"{where}: position: must be None; this network has no learned table that can be resampled"
            )
        self.resampling: Resampling | None = resampling
        self.position = resampling or ("sinusoids" if sinusoids else layout.position)

    def hidden(self, pixels: Image, layers: Sequence[int]) -> list[Hidden]:
        grid = (pixels.shape[2] // self.patch, pixels.shape[3] // self.patch)
        blocks, found = _at(self.network, self.layout.blocks), {}
        handles = [blocks[i].register_forward_hook(_keep(found, i)) for i in layers]
        try:
            with self._table(grid):
                self.network(**self._inputs(pixels, grid))
        finally:
            for handle in handles:
                handle.remove()
        return [self._split(found[i]) for i in layers]

    def _split(self, tokens: Float[Tensor, "b n c"]) -> Hidden:
        lead = int(self.has_cls)
        count = lead + self.registers
        return Hidden(
            tokens[:, count:], tokens[:, 0] if self.has_cls else None, tokens[:, lead:count] if count > lead else None
        )

    def pool(self, last: Hidden, norm: Callable[[Tensor], Tensor]) -> Float[Tensor, "b c"]:
        """Attention pooling of the normed patches."""
        return self.network.head(norm(last.patches)).reshape(len(last.patches), -1)

    def _inputs(self, pixels: Image, grid: tuple[int, int]) -> dict[str, Any]:
        batch, count = len(pixels), grid[0] * grid[1]
        if self.kind == "siglip2_vision_model":
            patches = rearrange(pixels, "b c (h y) (w x) -> b (h w) (y x c)", y=self.patch, x=self.patch)
            shapes = torch.tensor([grid] * batch, device=pixels.device)
            mask = torch.ones(batch, count, dtype=torch.long, device=pixels.device)
            return {"pixel_values": patches, "spatial_shapes": shapes, "pixel_attention_mask": mask}
        given: dict[str, Any] = {"pixel_values": pixels}
        if self.layout.interpolates:
            given["interpolate_pos_encoding"] = True
        if self.kind == "vit_mae":  # it keeps patches in the order of this noise
            given["noise"] = torch.arange(count, device=pixels.device, dtype=torch.float32).expand(batch, -1)
        return given

    @contextmanager
    def _table(self, grid: tuple[int, int]) -> Iterator[None]:
        """The network's table is on this grid while the block runs, where the rule is ours."""
        if self.layout.position == "native" and self.has_table and self.resampling is None:
            self._check_native(grid)
        if self.resampling is None:
            yield
            return
        assert self.layout.table is not None
        embeddings, found = self.network.embeddings, _at(self.network, self.layout.table)
        rows = found.weight if isinstance(found, nn.Embedding) else found[0]
        count = len(rows) - int(self.has_cls)
        side = round(count**0.5)
        new = resample_rows(rows, grid, (side, side), self.resampling)
        if self.kind == "siglip2_vision_model":
            with with_attribute(embeddings, "resize_positional_embeddings", lambda *_, **__: new):
                yield
        elif self.kind == "aimv2_vision_model":
            with with_attribute(embeddings.position_embedding, "forward", lambda _: new[None]):
                yield
        else:
            with with_attribute(embeddings, "interpolate_pos_encoding", lambda *_, **__: new[None]):
                yield

    def _check_native(self, grid: tuple[int, int]) -> None:
        side = self.network.config.image_size
        if (grid[0] * self.patch, grid[1] * self.patch) != (side, side):
            raise SizeError(
                f"takes {side}x{side} pixels only, got {grid[0] * self.patch}x{grid[1] * self.patch}; a 'resize' to "
                "that size would do, and so would a 'position' such as 'bicubic_antialias'"
            )


class TransformersConvNext(TransformersBackbone):
    """DINOv3's ConvNeXt: its last map is its one layer, each of whose positions is normed, and so is their mean."""

    depth, has_cls, has_pool, position = 1, False, True, "none"
    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, network: Any, *, colours: tuple[Colour, Colour], **told: str) -> None:
        super().__init__(network, **told)
        self.mean, self.std = colours
        sizes = network.config.hidden_sizes
        self.width, self.patch = sizes[-1], 4 * 2 ** (len(sizes) - 1)
        self.final_norm = network.layer_norm

    def hidden(self, pixels: Image, layers: Sequence[int]) -> list[Hidden]:
        found = self.network.model(pixels).last_hidden_state
        return [Hidden(rearrange(found, "b c h w -> b (h w) c"))] * len(layers)

    def pool(self, last: Hidden, norm: Callable[[Tensor], Tensor]) -> Float[Tensor, "b c"]:
        return norm(last.patches.mean(dim=1))


# --- building -----------------------------------------------------------------------------------------------------


def transformers_backbone(
    name: str,
    *,
    settings: Mapping[str, Any],
    weights: str | None,
    seed: int | None,
    resampling: Resampling | None,
    licence: str,
    where: str,
    instead: str = "",
    kind: str | None = None,
    colours: tuple[Colour, Colour] | None = None,
) -> Backbone:
    """A vision model of transformers; ``seed`` draws its weights, otherwise they are read.

    ``name`` is a hub id, a local folder, or (with a seed) a ``model_type``. ``kind`` says the type and ``settings`` the
    config of an id, which then need not be fetched; without ``kind`` config and colours are those of ``name``, changed
    by ``settings``. ``instead`` says where the same weights are without a gate.
    """
    transformers = import_library("transformers", where=where)
    config = vision_config(name, settings, kind=kind, where=where)
    if seed is None and weights is None and kind is None and name in transformers.CONFIG_MAPPING:
        raise ValueError(
            f"{where}: weights: {name!r} is a type of model; give a hub id, a file or a folder, or random_init=True"
        )
    model_class = transformers.MODEL_MAPPING[type(config)]
    if seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = model_class(config, **_without_pooler(config.model_type))
    else:
        network = _load(model_class, config, weights or name, where=where, instead=instead)
        tell_licence(name, licence)
    if config.model_type == "radio":
        network.make_preprocessor_external()
    shown = ", ".join(f"{key}={value}" for key, value in settings.items()) if kind is None else ""
    told = {
        "model": f"{name}({shown})" if shown else name,
        "weights": f"random:{seed}" if seed is not None else weights_hash(network.state_dict()),
        "licence": licence,
        "version": transformers.__version__,
    }
    layout = LAYOUTS.get(config.model_type)
    usual = (IMAGENET_MEAN, IMAGENET_STD) if layout is None else (layout.mean, layout.std)
    found = colours or (_colours(name, where=where) if kind is None else None) or usual
    network = network.eval()
    if config.model_type == CONVNEXT:
        if resampling is not None:
            raise ValueError(f"{where}: position: must be None; this network has no learned table of positions")
        return TransformersConvNext(network, colours=found, **told)
    return TransformersTokens(network, colours=found, resampling=resampling, where=where, **told)


def vision_config(name: str, settings: Mapping[str, Any], *, kind: str | None, where: str) -> Any:
    """The config of the vision model; of a model of pictures and text its part for pictures."""
    transformers = import_library("transformers", where=where)
    known = transformers.CONFIG_MAPPING
    raw: dict[str, Any] = {}
    if kind is None:
        if name in known:
            kind = name
        else:
            path = Path(name).expanduser()
            file = path / "config.json" if path.is_dir() else None
            if file is None and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
                raise FileNotFoundError(
                    f"{where}: model: {name}: no such folder, no hub repository 'owner/name', and no type of model"
                )
            file = file or fetch(name, "config.json", where=where)
            if not file.is_file():
                raise FileNotFoundError(f"{where}: {path} holds no config.json")
            raw = json.loads(file.read_text())
            kind = raw.pop("model_type", None)
    if kind not in known:
        raise ValueError(f"{where}: model: transformers {transformers.__version__} has no type of model {kind!r}")
    try:
        plain = known[kind]()
        if hasattr(plain, "vision_config"):  # of pictures and text: the part for pictures is what settings are of
            plain, raw = plain.vision_config, dict(raw.get("vision_config") or {})
            raw.pop("model_type", None)
        for key in settings:
            if not hasattr(plain, key):
                close = get_close_matches(key, plain.to_dict(), n=1)
                raise ValueError(f"it has no {key!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        lists = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
        config = type(plain)(**{**raw, **lists})
    except Exception as error:  # transformers checks configs with errors of several libraries
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{where}: settings: transformers makes no config of {name!r} ({reason})") from error
    if config.model_type not in LAYOUTS and config.model_type != CONVNEXT:
        types = ", ".join(sorted([*LAYOUTS, CONVNEXT]))
        raise ValueError(
            f"{where}: model: how {config.model_type!r} lays out its tokens is not known; takes the types {types}"
        )
    if config.model_type == "vit_mae":
        config.mask_ratio = 0.0
    return config


def _without_pooler(kind: str) -> dict[str, Any]:
    return {"add_pooling_layer": False} if kind in ("vit", "ijepa") else {}


@contextmanager
def _without_progress() -> Iterator[None]:
    """Without transformers' bar and report, since what does not fit is an error here."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _load(model_class: Any, config: Any, source: str, *, where: str, instead: str) -> Any:
    """Read tensors and let transformers rename those of its older versions; strict both ways."""
    tensors, called = read_weights(source, where=where, instead=instead)
    kind = config.model_type
    layout = LAYOUTS.get(kind, Layout("", None))
    tensors = {name: value for name, value in tensors.items() if not re.search(layout.extra, name)}
    if any(name.startswith("vision_model.") for name in tensors):
        tensors = {name.removeprefix("vision_model."): value for name, value in tensors.items()}
    with _without_progress():
        network, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            output_loading_info=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            **_without_pooler(kind),
        )
    missing, extra = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    problems = [f"lacks {listed(missing)}"] if missing else []
    problems += [f"has {listed(extra)} that the model has not"] if extra else []
    problems += [
        f"has {name!r} of shape {list(theirs)} where the model has {list(ours)}"
        for name, theirs, ours in sorted(info["mismatched_keys"])
    ]
    broken = sorted(name for name, value in network.state_dict().items() if not value.isfinite().all())
    problems += [f"holds values that are not finite in {listed(broken)}"] if broken and not problems else []
    if problems:
        rest = [f"and {len(problems) - 3} more"] if len(problems) > 3 else []
        raise CheckpointError(f"{called}: {'; '.join(problems[:3] + rest)}")
    return network


def _colours(name: str, *, where: str) -> tuple[Colour, Colour] | None:
    """What preprocessor_config.json of a folder or repository says, where there is one."""
    path = Path(name).expanduser() / "preprocessor_config.json"
    if not path.is_file():
        if name.count("/") != 1 or name.startswith((".", "/", "~")) or Path(name).expanduser().is_dir():
            return None
        try:
            path = fetch(name, path.name, where=where)
        except FileNotFoundError as error:
            if is_absent(error):
                return None
            raise
    found = json.loads(path.read_text())
    mean, std = (tuple(float(x) for x in found.get(key) or ()) for key in ("image_mean", "image_std"))
    return ((mean[0], mean[1], mean[2]), (std[0], std[1], std[2])) if len(mean) == len(std) == 3 else None


def _keep(found: dict[int, Tensor], index: int) -> Callable[..., None]:
    def hook(module: nn.Module, given: object, output: Any) -> None:
        found[index] = output if isinstance(output, Tensor) else output[0]

    return hook


def _at(thing: Any, path: str) -> Any:
    for name in path.split("."):
        thing = getattr(thing, name)
    return thing


def _square(patch: Any, *, where: str) -> int:
    sides = (patch,) if isinstance(patch, int) else tuple(patch)
    if len(set(sides)) != 1:
        raise ValueError(f"{where}: model: its patches are {sides} pixels; takes networks of square ones")
    return sides[0]
