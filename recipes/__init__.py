"""Recipes: plain functions whose keyword arguments are the axes of ablations.

``RECIPES`` lists them under the names that the command line takes; from Python, call the functions.
"""

from collections.abc import Callable

from ..training.recipe import Recipe, StageConfig
from . import dc_ae, demo
from .ablate import ablate, collect
from .bridges import bridge, dinac_to_dinov3, flux2_to_dinov3, flux_to_dinov2, sana_to_dinov3, sd_to_dinov2, sd_to_flux2
from .cells import CellBusyError, summary_of
from .costs import StepCost, count_step, with_steps
from .dc_ae import (
    dc_ae_f32c32_in_1_0,
    dc_ae_f32c32_mix_1_0,
    dc_ae_f32c32_sana_1_0,
    dc_ae_f32c32_sana_1_1,
    dc_ae_f64c128,
    dc_ae_f64c128_in_1_0,
    dc_ae_f64c128_mix_1_0,
    dc_ae_f128c512,
    dc_ae_f128c512_in_1_0,
    dc_ae_f128c512_mix_1_0,
    dc_ae_lite_f32c32,
    dc_ae_small_64,
    dc_ae_small_128,
    dc_ae_small_256,
)
from .dinac_ae import dinac_ae, dinac_ae_d2
from .find import find, find_source
from .grid import Variant, grid, parse_axes, swap
from .launchers import imports_of, in_processes, in_this_process, run_job, through_submitit
from .measure import measure_run
from .phases import phase_models, report_phases
from .semdisdiffae import (
    capacitor_decoder,
    full_capacitor,
    semdisdiffae,
    semdisdiffae_p32,
    semdisdiffae_p32_v2,
)
from .studies import STUDIES
from .study import Budget

RECIPES: dict[str, Callable[..., Recipe]] = {
    "semdisdiffae": semdisdiffae,
    "semdisdiffae_p32": semdisdiffae_p32,
    "semdisdiffae_p32_v2": semdisdiffae_p32_v2,
    "full_capacitor": full_capacitor,
    "capacitor_decoder": capacitor_decoder,
    "dinac_ae": dinac_ae,
    "dinac_ae_d2": dinac_ae_d2,
    "sd_to_dinov2": sd_to_dinov2,
    "flux_to_dinov2": flux_to_dinov2,
    "flux2_to_dinov3": flux2_to_dinov3,
    "sana_to_dinov3": sana_to_dinov3,
    "dinac_to_dinov3": dinac_to_dinov3,
    "sd_to_flux2": sd_to_flux2,
    "dc_ae_f32c32_sana_1_0": dc_ae_f32c32_sana_1_0,
    "dc_ae_f32c32_sana_1_1": dc_ae_f32c32_sana_1_1,
    "dc_ae_f32c32_in_1_0": dc_ae_f32c32_in_1_0,
    "dc_ae_f32c32_mix_1_0": dc_ae_f32c32_mix_1_0,
    "dc_ae_f64c128_in_1_0": dc_ae_f64c128_in_1_0,
    "dc_ae_f64c128_mix_1_0": dc_ae_f64c128_mix_1_0,
    "dc_ae_f128c512_in_1_0": dc_ae_f128c512_in_1_0,
    "dc_ae_f128c512_mix_1_0": dc_ae_f128c512_mix_1_0,
    "dc_ae_lite_f32c32": dc_ae_lite_f32c32,
    "dc_ae_small_64": dc_ae_small_64,
    "dc_ae_small_128": dc_ae_small_128,
    "dc_ae_small_256": dc_ae_small_256,
    "demo/semdisdiffae": demo.semdisdiffae,
    "demo/dinac_ae": demo.dinac_ae,
    "demo/bridge": demo.bridge,
    "demo/dc_ae": demo.dc_ae,
}

__all__ = [
    "RECIPES",
    "STUDIES",
    "Budget",
    "CellBusyError",
    "Recipe",
    "StageConfig",
    "StepCost",
    "Variant",
    "ablate",
    "bridge",
    "capacitor_decoder",
    "collect",
    "count_step",
    "dc_ae",
    "dc_ae_f32c32_in_1_0",
    "dc_ae_f32c32_mix_1_0",
    "dc_ae_f32c32_sana_1_0",
    "dc_ae_f32c32_sana_1_1",
    "dc_ae_f64c128",
    "dc_ae_f64c128_in_1_0",
    "dc_ae_f64c128_mix_1_0",
    "dc_ae_f128c512",
    "dc_ae_f128c512_in_1_0",
    "dc_ae_f128c512_mix_1_0",
    "dc_ae_lite_f32c32",
    "dc_ae_small_64",
    "dc_ae_small_128",
    "dc_ae_small_256",
    "demo",
    "dinac_ae",
    "dinac_ae_d2",
    "dinac_to_dinov3",
    "find",
    "find_source",
    "flux2_to_dinov3",
    "flux_to_dinov2",
    "full_capacitor",
    "grid",
    "imports_of",
    "in_processes",
    "in_this_process",
    "measure_run",
    "parse_axes",
    "phase_models",
    "report_phases",
    "run_job",
    "sana_to_dinov3",
    "sd_to_dinov2",
    "sd_to_flux2",
    "semdisdiffae",
    "semdisdiffae_p32",
    "semdisdiffae_p32_v2",
    "summary_of",
    "swap",
    "through_submitit",
    "with_steps",
]
