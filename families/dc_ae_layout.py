"""DC-AE as others store it: folders of diffusers' ``AutoencoderDC``, and the files of efficientvit.

diffusers' tensors have our names. efficientvit's are renamed by rules that are applied to each name in order, after
which the fused ``qkv`` is cut into thirds (``blocks/efficientvit.py`` says what these are). A file of efficientvit has
no config but its model's name.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..blocks.efficientvit import EfficientViTBlockConfig, NormName, ResBlockConfig
from ..blocks.latent_norm import ChannelNormConfig, NoNormConfig, ScaleShiftConfig
from ..blocks.pyramid import PyramidDecoderConfig, PyramidEncoderConfig
from ..blocks.registry import Part, PartError, decode, differences, encode, part
from ..blocks.resample import NearestUpConfig, ShuffleUpConfig, StridedDownConfig, UnshuffleDownConfig
from ..blocks.slots import BlockConfig, LatentNormConfig
from ..blocks.weights import CheckpointError, assign, read_weights
from .dc_ae import DCAE, DCAEConfig
from .dc_ae_models import PUBLISHED
from .files import CONFIG, DIFFUSERS_WEIGHTS, DTYPES, write_atomically, write_tensors

Tensors = dict[str, Tensor]
Kind = Literal["ResBlock", "EfficientViTBlock"]
Act = Literal["silu", "relu"]
FlatNorm = Literal["rms_norm", "batch_norm"]
NORMS: dict[FlatNorm, NormName] = {"rms_norm": "rms", "batch_norm": "batch"}
WIDTHS = (128, 256, 512, 512, 1024, 1024)
SCALES = ((), (), (), (5,), (5,), (5,))


# --- diffusers --------------------------------------------------------------------------------------------------------


@part("published/autoencoder_dc")
class FlatDC(Part):
    """The config.json of diffusers' ``AutoencoderDC``, with its defaults.

    It tests for "pixel_unshuffle" and "interpolate" alone, and takes anything else for the other kind; published files
    write "Conv" and "conv". Of other spellings nobody knows what was meant, and they are refused.
    """

    in_channels: int = 3
    latent_channels: int = 32
    attention_head_dim: int = 32
    encoder_block_types: Kind | tuple[Kind, ...] = "ResBlock"
    decoder_block_types: Kind | tuple[Kind, ...] = "ResBlock"
    encoder_block_out_channels: tuple[int, ...] = WIDTHS
    decoder_block_out_channels: tuple[int, ...] = WIDTHS
    encoder_layers_per_block: tuple[int, ...] = (2, 2, 2, 3, 3, 3)
    decoder_layers_per_block: tuple[int, ...] = (3, 3, 3, 3, 3, 3)
    encoder_qkv_multiscales: tuple[tuple[int, ...], ...] = SCALES
    decoder_qkv_multiscales: tuple[tuple[int, ...], ...] = SCALES
    upsample_block_type: Literal["pixel_shuffle", "interpolate"] = "pixel_shuffle"
    downsample_block_type: Literal["pixel_unshuffle", "Conv", "conv"] = "pixel_unshuffle"
    decoder_norm_types: FlatNorm | tuple[FlatNorm, ...] = "rms_norm"
    decoder_act_fns: Act | tuple[Act, ...] = "silu"
    encoder_out_shortcut: bool = True
    decoder_in_shortcut: bool = True
    decoder_conv_act_fn: Act = "relu"
    scaling_factor: float = 1.0
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None

    def ours(self) -> DCAEConfig:
        """The same model as our config."""
        stages = len(self.encoder_block_out_channels)
        encoder_blocks = self._blocks(
            each("encoder_block_types", self.encoder_block_types, stages),
            each("encoder_qkv_multiscales", self.encoder_qkv_multiscales, stages),
            norms=("rms_norm",) * stages,
            acts=("silu",) * stages,
        )
        stages = len(self.decoder_block_out_channels)
        decoder_blocks = self._blocks(
            each("decoder_block_types", self.decoder_block_types, stages),
            each("decoder_qkv_multiscales", self.decoder_qkv_multiscales, stages),
            norms=each("decoder_norm_types", self.decoder_norm_types, stages),
            acts=each("decoder_act_fns", self.decoder_act_fns, stages),
        )
        return DCAEConfig(
            channels=self.in_channels,
            latent=self.latent_channels,
            encoder=PyramidEncoderConfig(
                widths=self.encoder_block_out_channels,
                depths=self.encoder_layers_per_block,
                blocks=encoder_blocks,
                down=UnshuffleDownConfig() if self.downsample_block_type == "pixel_unshuffle" else StridedDownConfig(),
                shortcut=self.encoder_out_shortcut,
            ),
            decoder=PyramidDecoderConfig(
                widths=self.decoder_block_out_channels,
                depths=self.decoder_layers_per_block,
                blocks=decoder_blocks,
                up=NearestUpConfig() if self.upsample_block_type == "interpolate" else ShuffleUpConfig(),
                shortcut=self.decoder_in_shortcut,
                activation=self.decoder_conv_act_fn,
            ),
            latent_norm=self._latent_norm(),
        )

    def _blocks(
        self,
        kinds: tuple[Kind, ...],
        scales: tuple[tuple[int, ...], ...],
        *,
        norms: tuple[FlatNorm, ...],
        acts: tuple[Act, ...],
    ) -> tuple[BlockConfig, ...]:
        """An attention block has no activation of its own; a convolution block has no scales."""
        return tuple(
            ResBlockConfig(norm=NORMS[norm], activation=act)
            if kind == "ResBlock"
            else EfficientViTBlockConfig(head_width=self.attention_head_dim, kernels=kernels, norm=NORMS[norm])
            for kind, kernels, norm, act in zip(kinds, scales, norms, acts, strict=True)
        )

    def _latent_norm(self) -> LatentNormConfig:
        if self.latents_mean is None and self.latents_std is None:
            return ScaleShiftConfig(scale=self.scaling_factor)
        if self.latents_mean is None or self.latents_std is None:
            raise PartError("latents_mean", "stands without latents_std, or that without it; both or none are needed")
        return ChannelNormConfig(scale=self.scaling_factor, mean=self.latents_mean, std=self.latents_std)


def each(name: str, value: Any, stages: int) -> tuple[Any, ...]:
    """One entry for each stage; a lone word stands for all."""
    values = (value,) * stages if isinstance(value, str) else tuple(value)
    if len(values) != stages:
        raise PartError(name, f"must have one entry for each of the {stages} stages, got {len(values)}")
    return values


def flatten(config: DCAEConfig) -> FlatDC:
    """A config of ours as diffusers' config.

    Raises:
        PartError: that config has no words for some part of the model; the message names it.
    """
    encoder = _only(config.encoder, PyramidEncoderConfig, "encoder")
    decoder = _only(config.decoder, PyramidDecoderConfig, "decoder")
    blocks = [*encoder.blocks, *decoder.blocks]
    head_widths = {block.head_width for block in blocks if isinstance(block, EfficientViTBlockConfig)}
    norm = config.latent_norm
    numbers: dict[str, Any] = {}
    if isinstance(norm, ChannelNormConfig) and norm.fixed:
        numbers = {"scaling_factor": norm.scale, "latents_mean": norm.mean, "latents_std": norm.std}
    elif isinstance(norm, ScaleShiftConfig):
        numbers = {"scaling_factor": norm.scale}
    elif not isinstance(norm, NoNormConfig):
        raise PartError("model.latent_norm", f"the layout has no words for {norm.kind!r}; it has one scaling factor")
    encoder_kinds: tuple[Kind, ...] = tuple(_kind(b, f"encoder.blocks.{i}") for i, b in enumerate(encoder.blocks))
    decoder_kinds: tuple[Kind, ...] = tuple(_kind(b, f"decoder.blocks.{i}") for i, b in enumerate(decoder.blocks))
    norms: tuple[FlatNorm, ...] = tuple(_norm(block) for block in decoder.blocks)
    acts: tuple[Act, ...] = tuple(_act(block) for block in decoder.blocks)
    flat = FlatDC(
        in_channels=config.channels,
        latent_channels=config.latent,
        attention_head_dim=max(head_widths, default=32),
        encoder_block_types=encoder_kinds,
        decoder_block_types=decoder_kinds,
        encoder_block_out_channels=encoder.widths,
        decoder_block_out_channels=decoder.widths,
        encoder_layers_per_block=encoder.depths,
        decoder_layers_per_block=decoder.depths,
        encoder_qkv_multiscales=tuple(getattr(block, "kernels", ()) for block in encoder.blocks),
        decoder_qkv_multiscales=tuple(getattr(block, "kernels", ()) for block in decoder.blocks),
        upsample_block_type="interpolate" if isinstance(decoder.up, NearestUpConfig) else "pixel_shuffle",
        downsample_block_type="Conv" if isinstance(encoder.down, StridedDownConfig) else "pixel_unshuffle",
        decoder_norm_types=norms,
        decoder_act_fns=acts,
        encoder_out_shortcut=encoder.shortcut,
        decoder_in_shortcut=decoder.shortcut,
        decoder_conv_act_fn=decoder.activation,
        **numbers,
    )
    wanted = config if numbers else dataclasses.replace(config, latent_norm=ScaleShiftConfig())
    if flat.ours() != wanted:  # two head widths, another expansion, a shift, other downs and ups
        lost = [line.lstrip(".") for line in differences(wanted, flat.ours(), where="")]
        raise PartError("model", f"the layout has no words for some of its parts ({', '.join(lost)})")
    return flat


def _only(value: Any, kind: type[Any], where: str) -> Any:
    if type(value) is not kind:
        raise PartError(f"model.{where}", f"the layout has no words for {value.kind!r}; it takes {kind.kind!r}")
    return value


def _kind(block: BlockConfig, where: str) -> Kind:
    if isinstance(block, ResBlockConfig):
        return "ResBlock"
    if isinstance(block, EfficientViTBlockConfig):
        return "EfficientViTBlock"
    raise PartError(f"model.{where}", f"the layout has no words for {block.kind!r}")


def _norm(block: BlockConfig) -> FlatNorm:
    return "batch_norm" if getattr(block, "norm", "") == "batch" else "rms_norm"


def _act(block: BlockConfig) -> Act:
    return "relu" if getattr(block, "activation", "") == "relu" else "silu"


def export_diffusers(model: DCAE, folder: str | Path) -> Path:
    """Write a model as a folder of diffusers, float32, and return the folder; nothing is written if it cannot be."""
    folder = Path(folder)
    fields = encode(flatten(model.config))
    fields.pop("kind")
    flat = {"_class_name": "AutoencoderDC"} | {name: value for name, value in fields.items() if value is not None}
    tensors = {
        name: value.detach().float() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    write_tensors(folder / DIFFUSERS_WEIGHTS, tensors, {"format": "pt"})
    write_atomically(folder / CONFIG, json.dumps(flat, indent=2) + "\n")
    return folder


# --- efficientvit -----------------------------------------------------------------------------------------------------

RULES = (
    ("main.", ""),
    ("op_list.", ""),
    ("context_module", "attn"),
    ("local_module", "conv_out"),
    ("depth_conv.conv", "conv_depth"),
    ("inverted_conv.conv", "conv_inverted"),
    ("point_conv.conv", "conv_point"),
    ("point_conv.norm", "norm"),
    ("conv.conv.", "conv."),
    ("conv1.conv", "conv1"),
    ("conv2.conv", "conv2"),
    ("conv2.norm", "norm"),
    ("proj.norm", "norm_out"),
    ("encoder.project_in.conv", "encoder.conv_in"),
    ("encoder.project_out.0.conv", "encoder.conv_out"),
    ("encoder.stages", "encoder.down_blocks"),
    ("decoder.project_in.conv", "decoder.conv_in"),
    ("decoder.project_out.0", "decoder.norm_out"),
    ("decoder.project_out.2.conv", "decoder.conv_out"),
    ("decoder.stages", "decoder.up_blocks"),
)
AGGREGATED = re.compile(r"aggreg\.(\d+)\.([01])\.")


def is_efficientvit(tensors: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(("encoder.project_out.", "decoder.project_in.")) for name in tensors)


def from_efficientvit(config: DCAEConfig, tensors: Tensors) -> tuple[Tensors, dict[str, str]]:
    """The tensors under our names, and what each of ours is called there."""
    encoder = _only(config.encoder, PyramidEncoderConfig, "encoder")
    decoder = _only(config.decoder, PyramidDecoderConfig, "decoder")
    ends = {
        end: f"{end}.conv"
        for end, depths in (("encoder.conv_in", encoder.depths), ("decoder.conv_out", decoder.depths))
        if not depths[0]
    }
    renamed: Tensors = {}
    called: dict[str, str] = {}
    for theirs, tensor in tensors.items():
        name = theirs
        for old, new in RULES:
            name = name.replace(old, new)
        name = AGGREGATED.sub(lambda m: f"to_qkv_multiscale.{m[1]}.{('proj_in', 'proj_out')[int(m[2])]}.", name)
        for plain, nested in ends.items():
            name = re.sub(rf"^{re.escape(plain)}\.(?=weight$|bias$)", f"{nested}.", name)
        stem = name.removesuffix("qkv.conv.weight")
        if stem != name:
            parts = {f"{stem}to_{x}.weight": third for x, third in zip("qkv", tensor.flatten(1).chunk(3), strict=True)}
        elif name.endswith("proj.conv.weight"):
            parts = {f"{name.removesuffix('proj.conv.weight')}to_out.weight": tensor.flatten(1)}
        else:
            parts = {name: tensor}
        for ours, value in parts.items():
            if ours in renamed:
                raise CheckpointError(f"{theirs}: would be our {ours!r}, which {called[ours]!r} is already")
            renamed[ours], called[ours] = value.clone(), theirs
    return renamed, called


def unwrapped(tensors: Tensors) -> Tensors:
    """Without the prefixes of wrappers that all names share."""
    for prefix in ("state_dict.", "model.", "module."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


# --- reading ----------------------------------------------------------------------------------------------------------


def is_dc_ae(flat: Mapping[str, Any]) -> bool:
    """Whether a config that is none of ours describes a DC-AE: diffusers', or the name in efficientvit's."""
    return flat.get("_class_name") == "AutoencoderDC" or str(flat.get("model_name", "")).startswith("dc-ae")


def read_dc_ae(flat: dict[str, Any], tensors: Tensors) -> tuple[DCAEConfig, Tensors, Mapping[str, str]]:
    """Translate a config and its tensors, whose names messages keep.

    Raises:
        PartError: a field is unknown or of a wrong type, or no published model has that name.
    """
    if "model_name" in flat:
        name = str(flat["model_name"])
        if name not in PUBLISHED:
            raise PartError("model_name", f"no DC-AE is named {name!r}; there are {', '.join(PUBLISHED)}")
        config = PUBLISHED[name]
    else:
        known = {name: value for name, value in flat.items() if not name.startswith("_")}
        layout = decode({"kind": FlatDC.kind, **known}, FlatDC)
        config = layout.ours()
    return config, *_ours(config, tensors)


def _ours(config: DCAEConfig, tensors: Tensors) -> tuple[Tensors, Mapping[str, str]]:
    tensors = unwrapped(tensors)
    return from_efficientvit(config, tensors) if is_efficientvit(tensors) else (tensors, {})


def load_with(config: DCAEConfig, source: str | Path, *, device: str | torch.device, dtype: torch.dtype | None) -> DCAE:
    """A model from weights that have nothing beside them to say what they are."""
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype: takes {', '.join(map(str, DTYPES[:-1]))} or {DTYPES[-1]}, got {dtype!r}")
    tensors, where = read_weights(str(source), where="DCAE")
    tensors, names = _ours(config, tensors)
    with torch.device("meta"):
        model = config.build()
    assign(model, tensors, where=where, names=names)
    if dtype is None:
        dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    return model.to(device=device, dtype=dtype).eval()
