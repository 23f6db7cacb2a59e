"""Measuring models: protocols, yardsticks, latent statistics, reports."""

from .measure import evaluate
from .protocols import ArchetypePSNRConfig
from .results import load_result, results_table, save_result

__all__ = ["ArchetypePSNRConfig", "evaluate", "load_result", "results_table", "save_result"]
