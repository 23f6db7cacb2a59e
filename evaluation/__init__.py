"""Measuring models: protocols, yardsticks, latent statistics, reports."""

from .measure import evaluate
from .protocols import ArchetypePSNRConfig
from .reconstruct import reconstruct_files
from .report import write_report
from .results import load_result, results_table, save_result

__all__ = [
    "ArchetypePSNRConfig",
    "evaluate",
    "load_result",
    "reconstruct_files",
    "results_table",
    "save_result",
    "write_report",
]
