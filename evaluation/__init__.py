"""Measuring models: protocols, yardsticks, latent statistics, pictures, reports."""

from .latent_files import decode_files, encode_files, feature_files
from .latents import LatentStatistics, PosteriorStatistics
from .linear import PatchPCA, RidgeReadout, token_cosine
from .measure import evaluate
from .metrics import psnr, ssim
from .pictures import difference, latent_colours, to_picture
from .protocols import ArchetypePSNRConfig
from .reconstruct import reconstruct_files
from .report import write_report
from .results import load_result, results_table, save_result
from .robustness import TokenRobustnessConfig

__all__ = [
    "ArchetypePSNRConfig",
    "LatentStatistics",
    "PatchPCA",
    "PosteriorStatistics",
    "RidgeReadout",
    "TokenRobustnessConfig",
    "decode_files",
    "difference",
    "encode_files",
    "evaluate",
    "feature_files",
    "latent_colours",
    "load_result",
    "psnr",
    "reconstruct_files",
    "results_table",
    "save_result",
    "ssim",
    "to_picture",
    "token_cosine",
    "write_report",
]
