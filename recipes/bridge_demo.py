"""The demo of bridges: two autoencoders, pairs of each, a bridge from one, and its body with a stem for the other.

Everything is done again from where it stopped: each step leaves what it made in the folder.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..blocks.hog import HOGConfig
from ..blocks.latent_spaces import space_config
from ..blocks.slots import PairSource
from ..evaluation.bridge_measure import evaluate_bridge
from ..evaluation.bridge_report import write_bridge_report
from ..evaluation.results import Result, save_result
from ..families.diffae import DiffAEConfig
from ..training.bridge_start import BridgePartsConfig
from ..training.caching import every_picture
from ..training.packing import pack
from ..training.pairs import PairsConfig
from ..training.recipe import Recipe
from ..training.runs import load_run
from ..training.sources import HELD_OUT_PHOTOGRAPHS, PhotographsConfig
from . import demo

AUTOENCODERS = {"first": (8, 32), "second": (4, 12)}
"""Patch and latent channels: two spaces of other strides and other channels."""

AUTOENCODER_STEPS, CROPS = 40, 200

Train = Callable[[Recipe, Path], object]
"""Trains a recipe in a folder, or goes on with it."""


@dataclass(frozen=True)
class BridgeDemo:
    """What came of it: results by name, and the page."""

    results: Mapping[str, Result]
    report: Path


def autoencoder(name: str) -> Recipe:
    """A small SemDisDiffAE, briefly trained from principal components."""
    patch, latent = AUTOENCODERS[name]
    base = demo.semdisdiffae(steps=AUTOENCODER_STEPS)
    assert isinstance(base.model, DiffAEConfig)
    assert base.teacher is not None
    return replace(
        base,
        name=f"demo/bridge/{name}",
        model=replace(base.model, patch=patch, latent=latent),
        teacher=base.teacher.for_stride(patch),
    )


def bridge_recipes(folder: Path, *, steps: int = 500) -> dict[str, Recipe]:
    """The whole bridge of the first space, and the second's stem before its frozen body and head."""

    def of(name: str, steps: int) -> Recipe:
        made = demo.bridge(
            space=space_config(f"model:{folder / name}"),
            data=PairsConfig(path=str(folder / f"pairs_{name}"), held_out_names=HELD_OUT_PHOTOGRAPHS),
            steps=steps,
        )
        return replace(made, name=f"demo/bridge/{name}")

    stem = of("second", steps // 2)
    stage = replace(stem.stages[0], frozen=("body.*", "head.*"))
    start = BridgePartsConfig(path=str(folder / "bridge"))
    return {"bridge": of("first", steps), "stem": replace(stem, stages=(stage,), start=start)}


def _pairs(recipe: Recipe) -> tuple[PairSource, PairSource]:
    """Held out, and for training."""
    data: Any = recipe.data
    return data.held_out(), data.training()


def bridge_demo(
    folder: Path,
    *,
    train: Train,
    steps: int = 500,
    device: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> BridgeDemo:
    """Run the demo in ``folder``; ``say`` hears what comes next."""
    photographs = every_picture(PhotographsConfig())
    for name in AUTOENCODERS:
        train(autoencoder(name), folder / name)
        say(f"packing crops of {len(photographs)} photographs: latents of {name}, and HOG")
        pack(
            space_config(f"model:{folder / name}"),
            HOGConfig(patch=demo.PATCH),
            photographs,
            folder / f"pairs_{name}",
            resolution=64,
            crops=CROPS,
            batch=CROPS,
            device=device,
        )
    results = {}
    for name, recipe in bridge_recipes(folder, steps=steps).items():
        train(recipe, folder / name)
        run = load_run(folder / name, device=device or "cpu")
        say(f"measuring {name}")
        held_out, training = _pairs(recipe)
        results[name] = evaluate_bridge(run.model, held_out, training=training, recipe=recipe)
        save_result(results[name], folder / name / "evaluation")
    whole = load_run(folder / "bridge", device=device or "cpu")
    held_out, _ = _pairs(whole.recipe)
    patch, latent = AUTOENCODERS["second"]
    stems = {f"a new stem, for {latent} channels at stride {patch}": results["stem"]}
    return BridgeDemo(results, write_bridge_report(folder / "bridge", whole.model, held_out, stems=stems))
