"""Published networks by short names: what timm and transformers call them, their width, patch, licence and config.

Every name is one of timm 1.0.31, and every config gives transformers a network of the same tensors.
"""

from .backbones import Colour
from .pretrained import Published

VIT = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
    "so400m": (1152, 27, 16),
    "giant": (1536, 40, 24),
}
"""Width, depth and heads of the usual sizes."""


def _shape(size: str, **more: object) -> tuple[tuple[str, object], ...]:
    width, depth, heads = VIT[size]
    shape = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, **more}
    return tuple(shape.items())


def _dinov2() -> dict[str, Published]:
    found = {}
    for letter, size in (("s", "small"), ("b", "base"), ("l", "large"), ("g", "giant")):
        for tail, tag, hub, kind in (
            ("", "", "dinov2", "dinov2"),
            ("_reg", "_reg4", "dinov2-with-registers", "dinov2_with_registers"),
        ):
            more = {"num_register_tokens": 4} if tail else {}
            found[f"vit{letter}14{tail}"] = Published(
                timm=f"vit_{size}_patch14{tag}_dinov2.lvd142m",
                width=VIT[size][0],
                patch=14,
                licence="apache-2.0",
                hub=f"facebook/{hub}-{size}",
                kind=kind,
                settings=_shape(size, image_size=518, patch_size=14, use_swiglu_ffn=size == "giant", **more),
            )
    return found


DINOV2 = _dinov2()


SATELLITE: tuple[Colour, Colour] = ((0.43, 0.411, 0.296), (0.213, 0.156, 0.143))
DINOV3_LICENCE = "dinov3-license"


def _dinov3() -> dict[str, Published]:
    found = {}
    for size, name, width, depth, heads, inner, gated in (
        ("vits16", "small", 384, 12, 6, 1536, False),
        ("vits16plus", "small_plus", 384, 12, 6, 1536, True),
        ("vitb16", "base", 768, 12, 12, 3072, False),
        ("vitl16", "large", 1024, 24, 16, 4096, False),
        ("vith16plus", "huge_plus", 1280, 32, 20, 5120, True),
        ("vit7b16", "7b", 4096, 40, 32, 8192, True),
    ):
        settings = {
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "intermediate_size": inner,
            "use_gated_mlp": gated,
            "hidden_act": "silu" if gated else "gelu",
            "num_register_tokens": 4,
        }
        if size == "vit7b16":
            settings |= {"query_bias": False, "value_bias": False}
        for tail, data, colours in (("", "lvd1689m", None), ("_sat", "sat493m", SATELLITE)):
            if tail and size not in ("vitl16", "vit7b16"):
                continue
            found[size + tail] = Published(
                timm=f"vit_{name}_patch16_dinov3.{data}",
                width=width,
                patch=16,
                licence=DINOV3_LICENCE,
                hub=f"facebook/dinov3-{size}-pretrain-{data}",
                kind="dinov3_vit",
                settings=tuple(settings.items()),
                colours=colours,
            )
    for size, width, depth in (("tiny", 96, 9), ("small", 96, 27), ("base", 128, 27), ("large", 192, 27)):
        found[f"convnext_{size}"] = Published(
            timm=f"convnext_{size}.dinov3_lvd1689m",
            width=8 * width,
            patch=32,
            licence=DINOV3_LICENCE,
            hub=f"facebook/dinov3-convnext-{size}-pretrain-lvd1689m",
            kind="dinov3_convnext",
            settings=(("hidden_sizes", [width * 2**i for i in range(4)]), ("depths", [3, 3, depth, 3])),
        )
    return found


DINOV3 = _dinov3()


def _siglip2() -> dict[str, Published]:
    found = {}
    inner = {"base": 3072, "large": 4096, "so400m": 4304, "giantopt": 6144}
    for size, patch, pixels in (
        *(("base", 16, pixels) for pixels in (224, 256, 384, 512)),
        ("base", 32, 256),
        *(("large", 16, pixels) for pixels in (256, 384, 512)),
        *(("so400m", 14, pixels) for pixels in (224, 378)),
        *(("so400m", 16, pixels) for pixels in (256, 384, 512)),
        *(("giantopt", 16, pixels) for pixels in (256, 384)),
    ):
        usual = "giant" if size == "giantopt" else size
        more = {"num_attention_heads": 16} if size == "giantopt" else {}
        hub = {"giantopt": "giant-opt"}.get(size, size)
        shown = 384 if pixels == 378 else pixels  # Google's name for 27 x 27 patches of 14 pixels
        found[f"{size}_patch{patch}_{pixels}"] = Published(
            timm=f"vit_{size}_patch{patch}_siglip_{pixels}.v2_webli",
            width=VIT[usual][0],
            patch=patch,
            licence="apache-2.0",
            hub=f"google/siglip2-{hub}-patch{patch}-{shown}",
            kind="siglip_vision_model",
            settings=_shape(usual, intermediate_size=inner[size], image_size=shown, patch_size=patch, **more),
        )
    for size in ("base", "so400m"):
        found[f"{size}_naflex"] = Published(
            timm=f"naflexvit_{size}_patch16_siglip.v2_webli",
            width=VIT[size][0],
            patch=16,
            licence="apache-2.0",
            hub=f"google/siglip2-{size}-patch16-naflex",
            kind="siglip2_vision_model",
            settings=_shape(size, intermediate_size=inner[size], patch_size=16, num_patches=256),
        )
    return found


SIGLIP2 = _siglip2()


def _mae() -> dict[str, Published]:
    found = {}
    for size, name, patch in (("vitb16", "base", 16), ("vitl16", "large", 16), ("vith14", "huge", 14)):
        found[size] = Published(
            timm=f"vit_{name}_patch{patch}_224.mae",
            width=VIT[name][0],
            patch=patch,
            licence="cc-by-nc-4.0",
            hub=f"facebook/vit-mae-{name}",
            kind="vit_mae",
            settings=_shape(name, intermediate_size=4 * VIT[name][0], image_size=224, patch_size=patch),
        )
    return found


MAE = _mae()


def _in_timm(licence: str, *networks: tuple[str, str, int, int]) -> dict[str, Published]:
    return {
        size: Published(timm=name, width=width, patch=patch, licence=licence) for size, name, width, patch in networks
    }


C_RADIO = _in_timm(
    "nvidia-open-model-license",
    *(
        (f"{version}_{size}", f"naflexvit_{size}_patch16_radio_{version}.c_radio", VIT[size][0], 16)
        for version, size in (
            *(("v3", size) for size in ("base", "large", "huge", "giant")),
            ("v4", "so400m"),
            ("v4", "huge"),
        )
    ),
)


PE = _in_timm(
    "apache-2.0",
    *(
        (f"{use}_{size}", f"vit_pe_{use}_{size}_patch{patch}_{pixels}.fb", width, patch)
        for use, size, patch, pixels, width in (
            ("core", "tiny", 16, 384, 192),
            ("core", "small", 16, 384, 384),
            ("core", "base", 16, 224, 768),
            ("core", "large", 14, 336, 1024),
            ("core", "gigantic", 14, 448, 1536),
            ("spatial", "tiny", 16, 512, 192),
            ("spatial", "small", 16, 512, 384),
            ("spatial", "base", 16, 512, 768),
            ("spatial", "large", 14, 448, 1024),
            ("spatial", "gigantic", 14, 448, 1536),
        )
    ),
)


AIMV2 = _in_timm(
    "apple-ascl",
    *(
        (f"{size}_{pixels}{tail}", f"aimv2_{size}_patch14_{pixels}.apple_pt{tail}", width, 14)
        for size, width in (("large", 1024), ("huge", 1536), ("1b", 2048), ("3b", 3072))
        for pixels in (224, 336, 448)
        for tail in ("", "_dist")
        if not tail or (size == "large" and pixels < 448)
    ),
)


EVA02 = _in_timm(
    "mit",
    *((size, f"eva02_{size}_patch14_224.mim_in22k", VIT[size][0], 14) for size in ("tiny", "small", "base", "large")),
    ("large_m38m", "eva02_large_patch14_224.mim_m38m", 1024, 14),
)


EUPE = _in_timm(
    "fair-noncommercial-research-license",
    *(
        (f"vit{size[0]}16", f"vit_{size}_patch16_dinov3_qkvb.eupe_lvd1689m", VIT[size][0], 16)
        for size in ("tiny", "small", "base")
    ),
    *(
        (f"convnext_{size}", f"convnext_{size}.eupe_lvd1689m", width, 32)
        for size, width in (("tiny", 768), ("small", 768), ("base", 1024))
    ),
)


TIPS = _in_timm(
    "apache-2.0",
    *(
        (size, f"vit_{size}_patch14_reg1_tipsv2.webli", VIT[size][0], 14)
        for size in ("base", "large", "so400m", "giant")
    ),
)
