"""Networks of timm as backbones (extra ``teachers``).

Two layouts. *Tokens*: networks with ``blocks``, ``num_prefix_tokens`` and ``forward_intermediates`` (plain ViT, EVA and
what follows it: DINOv3, PE; AIMv2, NaFlex): class token first, then registers, then patches in raster order. *Maps*:
networks whose features are a map (ConvNeXt); their last map is their one layer. timm's ConvNeXt norms the pooled map
only, transformers norms every token with the same weights; here the norm is the final norm over tokens, as there.

Networks are built at their native size with ``dynamic_img_size``, so that timm fits their positions to each grid.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .backbones import Backbone, Hidden, weights_hash
from .libraries import import_library
from .positions import Resampling, resample_rows, resample_table, with_attribute, with_parameter
from .resize import SizeError
from .shapes import Image
from .weight_names import from_transformers, is_of_transformers
from .weights import CheckpointError, assign, read_weights, tell_licence


class TimmBackbone(Backbone):
    """What both layouts share."""

    library = "timm"

    def __init__(self, network: Any, *, model: str, weights: str, version: str) -> None:
        super().__init__()
        config = network.pretrained_cfg
        self.network = network
        self.version, self.model, self.weights = version, model, weights
        self.licence = licence_of(config)
        self.mean, self.std = config["mean"], config["std"]
        self.width = network.num_features


class TimmTokens(TimmBackbone):
    """A network of tokens."""

    def __init__(
        self, network: Any, *, model: str, weights: str, version: str, resampling: Resampling | None, where: str
    ) -> None:
        super().__init__(network, model=model, weights=weights, version=version)
        embed = getattr(network, "patch_embed", None) or network.embeds
        owner = embed if getattr(network, "patch_embed", None) is None else network
        self.patch = square(embed.patch_size, where=where)
        self.depth = len(network.blocks)
        self.has_cls = getattr(owner, "cls_token", None) is not None
        self.has_pool = True
        self.final_norm = None if isinstance(network.norm, nn.Identity) else network.norm
        dynamic = owner is embed or getattr(network, "dynamic_img_size", False)
        self.native = None if dynamic else tuple(embed.img_size)
        self.resampling: Resampling | None = resampling
        table = getattr(owner, "pos_embed", None)
        self.table_owner = [owner] if isinstance(table, nn.Parameter) else []  # in a list: no second name for it
        if resampling is not None and not self.table_owner:
            raise ValueError(f"{where}: position: must be None; this network has no learned table of positions")
        if resampling is not None and not dynamic:
            raise ValueError(f"{where}: position: must be None; this network takes {self.native} pixels only")
        rope = ["rope"] if getattr(network, "rope", None) is not None else []
        fitted = [resampling or library_resampling(owner, dynamic=dynamic)] if self.table_owner else []
        self.position = ", ".join(rope + fitted) or "none"

    def hidden(self, pixels: Image, layers: Sequence[int]) -> list[Hidden]:
        size = (pixels.shape[2], pixels.shape[3])
        if self.native is not None and size != self.native:
            raise SizeError(f"takes {'x'.join(map(str, self.native))} pixels only, got {'x'.join(map(str, size))}")
        count = self.network.num_prefix_tokens
        with self._table((size[0] // self.patch, size[1] // self.patch)):
            found = self.network.forward_intermediates(
                pixels,
                indices=list(layers),
                return_prefix_tokens=count > 0,
                norm=False,
                stop_early=True,
                output_fmt="NLC",
                intermediates_only=True,
            )
        pairs = found if count else [(patches, None) for patches in found]
        return [self._split(patches, prefix) for patches, prefix in pairs]

    def _split(self, patches: Tensor, prefix: Tensor | None) -> Hidden:
        if prefix is None:
            return Hidden(patches)
        registers = prefix[:, 1:] if self.has_cls else prefix
        return Hidden(patches, prefix[:, 0] if self.has_cls else None, registers if registers.shape[1] else None)

    def pool(self, last: Hidden, norm: Callable[[Tensor], Tensor]) -> Float[Tensor, "b c"]:
        """What timm gives to the classifier: attention pooling, an average (and ``fc_norm``), or the class token."""
        prefix = [] if last.cls is None else [last.cls[:, None]]
        prefix += [] if last.registers is None else [last.registers]
        return self.network.forward_head(norm(torch.cat([*prefix, last.patches], dim=1)), pre_logits=True)

    @contextmanager
    def _table(self, grid: tuple[int, int]) -> Iterator[None]:
        """The network's table is on this grid while the block runs, where the rule is ours."""
        if self.resampling is None:
            yield
            return
        (owner,) = self.table_owner
        table = owner.pos_embed
        with ExitStack() as stack:
            if table.ndim == 4:  # NaFlex: [1, h, w, c]
                new = resample_table(rearrange(table, "1 h w c -> c h w"), grid, self.resampling)
                stack.enter_context(with_parameter(owner, "pos_embed", rearrange(new, "c h w -> 1 h w c")))
            else:
                old = tuple(owner.patch_embed.grid_size)
                new = resample_rows(table[0], grid, (old[0], old[1]), self.resampling)
                stack.enter_context(with_parameter(owner, "pos_embed", new[None]))
                stack.enter_context(with_attribute(owner.patch_embed, "grid_size", grid))
            yield


class TimmMap(TimmBackbone):
    """A network whose features are a map: its last map, before the final norm, is its one layer."""

    depth, has_cls, has_pool, position = 1, False, True, "none"

    def __init__(self, network: Any, *, model: str, weights: str, version: str, patch: int) -> None:
        super().__init__(network, model=model, weights=weights, version=version)
        self.patch = patch
        self.final_norm = token_norm(network)

    def hidden(self, pixels: Image, layers: Sequence[int]) -> list[Hidden]:
        found = as_channels_first(self.network.forward_features(pixels), self.width)
        return [Hidden(rearrange(found, "b c h w -> b (h w) c"))] * len(layers)

    def pool(self, last: Hidden, norm: Callable[[Tensor], Tensor]) -> Float[Tensor, "b c"]:
        """The norm of the mean, as both libraries have it."""
        return norm(last.patches.mean(dim=1))


# --- building -----------------------------------------------------------------------------------------------------


def timm_backbone(
    name: str,
    *,
    settings: Mapping[str, Any],
    weights: str | None,
    seed: int | None,
    resampling: Resampling | None,
    where: str,
) -> Backbone:
    """A network of timm by name; ``seed`` draws its weights, otherwise they are read.

    ``weights`` None is what timm publishes under that name; ``settings`` go to ``timm.create_model``.

    Raises:
        ImportError, ValueError, FileNotFoundError, CheckpointError: with ``where`` in front.
    """
    timm = import_library("timm", where=where)
    with torch.device("meta"):
        plan = create(name, settings, where=where)
    if hasattr(plan, "dynamic_img_size"):
        settings = {"dynamic_img_size": True, **settings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        network = create(name, settings, where=where)
    if seed is None:
        load(network, name, weights, where=where)
    told = f"random:{seed}" if seed is not None else weights_hash(network.state_dict())
    given = {key: value for key, value in settings.items() if key != "dynamic_img_size"}
    shown = ", ".join(f"{key}={value}" for key, value in given.items())
    common = {"model": f"{name}({shown})" if shown else name, "weights": told, "version": timm.__version__}
    if has_tokens(network):
        return TimmTokens(network, **common, resampling=resampling, where=where)
    patch = map_patch(plan)
    if patch is None:
        raise ValueError(f"{where}: model: {name!r} lays its features out in a way that is not known; take another")
    if resampling is not None:
        raise ValueError(f"{where}: position: must be None; this network has no learned table of positions")
    return TimmMap(network, **common, patch=patch)


def create(name: str, settings: Mapping[str, Any], *, where: str) -> Any:
    """``timm.create_model`` without a classifier and without weights; unknown names and settings are told."""
    timm = import_library("timm", where=where)
    if not timm.is_model(name.partition(".")[0]):
        close = get_close_matches(name.partition(".")[0], timm.list_models(), n=1)
        raise ValueError(
            f"{where}: model: timm {timm.__version__} has no {name!r}; "
            + (f"did you mean {close[0]!r}?" if close else "timm.list_models() names them")
        )
    try:
        return timm.create_model(name, pretrained=False, **{"num_classes": 0, **settings}).eval()
    except (TypeError, RuntimeError, ValueError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        field = "settings" if settings else "model"
        raise ValueError(f"{where}: {field}: timm does not build {name!r} ({reason})") from error


def load(network: Any, name: str, weights: str | None, *, where: str) -> None:
    """Give a network published or local weights, in the names of timm, of the original code, or of transformers."""
    config = network.pretrained_cfg
    source = weights or config.get("hf_hub_id")
    if not source:
        raise FileNotFoundError(
            f"{where}: timm publishes no weights of {name!r} on the hub; give 'weights', or random_init=True"
        )
    tensors, called = read_weights(source, where=where)
    if is_of_transformers(tensors):
        tensors = from_transformers(tensors, wanted=network.state_dict().keys(), where=called)
    tensors = _filtered(network, tensors, called)
    classifier = config.get("classifier") or ()
    for head in (classifier,) if isinstance(classifier, str) else classifier:
        tensors = {key: value for key, value in tensors.items() if not key.startswith(f"{head}.")}
    assign(network, tensors, where=called)
    tell_licence(name, licence_of(config))


def _filtered(network: Any, tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The names of the original code in those of timm, by timm's own function; tables keep their size."""
    wanted = network.state_dict()
    if wanted.keys() <= tensors.keys():
        return tensors
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return tensors
    name, theirs = next((pair for pair in tensors.items() if pair[0].endswith("pos_embed")), ("", None))
    ours = next((value for key, value in wanted.items() if key.endswith("pos_embed")), None)
    if theirs is not None and ours is not None:
        further = theirs[..., 0].numel() - ours[..., 0].numel()
        if not 0 <= further <= network.num_prefix_tokens:  # timm would resample it, and no spec would say so
            raise CheckpointError(
                f"{where}: has a table of positions {name!r} of shape {list(theirs.shape)} where the model has "
                f"{list(ours.shape)}; take a network whose table has that size"
            )
    return convert(tensors, network)


def licence_of(config: Mapping[str, Any]) -> str:
    """The licence in timm's description of a pretrained network."""
    return config.get("license") or "not stated by timm"


def square(patch: Any, *, where: str) -> int:
    """The side of a square patch."""
    height, width = patch if isinstance(patch, Sequence) else (patch, patch)
    if height != width:
        raise ValueError(f"{where}: model: its patches are {height}x{width} pixels; takes networks of square ones")
    return height


def library_resampling(owner: Any, *, dynamic: bool) -> str:
    """How timm fits a table to a grid, in one word."""
    if not dynamic:
        return "native"
    if not hasattr(owner, "pos_embed_interp_mode"):
        return "bicubic_antialias"
    parts = [owner.pos_embed_interp_mode]
    parts += ["antialias"] if owner.pos_embed_antialias else []
    parts += ["square"] if owner.pos_embed_ar_preserving else []
    parts += ["corners"] if owner.pos_embed_align_corners else []
    return "_".join(parts)


def token_norm(network: Any) -> nn.LayerNorm | None:
    """ConvNeXt's norm behind the pooling as a norm over tokens, of the same weights; None where there is none."""
    norm = getattr(getattr(network, "head", None), "norm", None)
    if not isinstance(norm, nn.LayerNorm):
        return None
    over_tokens = nn.LayerNorm(len(norm.weight), eps=norm.eps)
    over_tokens.weight, over_tokens.bias = norm.weight, norm.bias
    return over_tokens


def has_tokens(network: Any) -> bool:
    """Whether a network gives the tokens of each of its blocks, prefix apart."""
    if not all(hasattr(network, x) for x in ("blocks", "num_prefix_tokens", "forward_intermediates", "norm")):
        return False
    return "return_prefix_tokens" in inspect.signature(network.forward_intermediates).parameters


def as_channels_first(features: Tensor, width: int) -> Float[Tensor, "b c h w"]:
    """A map whose channels may come last, as Swin has them."""
    return features if features.shape[1] == width else features.permute(0, 3, 1, 2)


def map_patch(plan: Any) -> int | None:
    """Pixels a side of a position of the last map of a network on ``meta``; None where it gives no map."""
    _, height, width = plan.pretrained_cfg["input_size"]
    with torch.no_grad(), torch.device("meta"):
        features = plan.forward_features(torch.empty(1, 3, height, width))
    if not isinstance(features, Tensor) or features.ndim != 4:
        return None
    rows = as_channels_first(features, plan.num_features).shape[2]
    return height // rows if height % rows == 0 else None
