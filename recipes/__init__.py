"""Recipes: plain functions whose keyword arguments are the axes of ablations.

``RECIPES`` lists them under the names that the command line takes; from Python, call the functions.
"""

from collections.abc import Callable

from ..training.recipe import Recipe, StageConfig
from . import demo
from .dinac_ae import dinac_ae, dinac_ae_d2
from .find import find
from .semdisdiffae import (
    capacitor_decoder,
    full_capacitor,
    semdisdiffae,
    semdisdiffae_p32,
    semdisdiffae_p32_v2,
)

RECIPES: dict[str, Callable[..., Recipe]] = {
    "semdisdiffae": semdisdiffae,
    "semdisdiffae_p32": semdisdiffae_p32,
    "semdisdiffae_p32_v2": semdisdiffae_p32_v2,
    "full_capacitor": full_capacitor,
    "capacitor_decoder": capacitor_decoder,
    "dinac_ae": dinac_ae,
    "dinac_ae_d2": dinac_ae_d2,
    "demo/semdisdiffae": demo.semdisdiffae,
    "demo/dinac_ae": demo.dinac_ae,
}

__all__ = [
    "RECIPES",
    "Recipe",
    "StageConfig",
    "capacitor_decoder",
    "demo",
    "dinac_ae",
    "dinac_ae_d2",
    "find",
    "full_capacitor",
    "semdisdiffae",
    "semdisdiffae_p32",
    "semdisdiffae_p32_v2",
]
