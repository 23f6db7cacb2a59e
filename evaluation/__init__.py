"""Measuring models: protocols, yardsticks, latent statistics, pictures, reports."""

from .ablation_headline import headline
from .ablation_outputs import load_study, write_study
from .ablation_plots import curve_figure, metric_figure, write_plots
from .ablation_report import write_ablation_report
from .ablation_tables import latex_table, markdown_table
from .ablation_words import legend as overview_legend
from .ablation_words import overview
from .bridge_errors import BridgeErrors
from .bridge_measure import bridge_gain, bridge_row, evaluate_bridge, share_of_gain
from .bridge_report import write_bridge_report
from .bridge_val import BridgeValConfig, MeasuredPair
from .comparison import compare
from .feature_probes import RetrievalProbeConfig, SimilarityProbeConfig
from .label_probes import KNNProbeConfig, LinearProbeConfig
from .labels import DigitsConfig
from .latent_files import decode_files, encode_files, feature_files
from .latents import LatentStatistics, PosteriorStatistics
from .linear import PatchPCA, RidgeReadout, token_cosine
from .linear_probe import FeatureSums, LinearClassifier, ridge, sgd, top_k_accuracy
from .map_probes import PCAMapsProbeConfig, SelfSimilarityProbeConfig
from .measure import evaluate
from .metrics import psnr, ssim
from .neighbours import knn_accuracy, nearest, retrieval, retrieval_hits, self_knn_accuracy
from .phases import Phase, measure_phase, write_phases
from .pictures import difference, latent_colours, pca_maps, to_picture
from .protocols import ArchetypePSNRConfig
from .reconstruct import reconstruct_files
from .report import write_report
from .representations import Representations, representations
from .results import load_result, results_table, save_result
from .robustness import TokenRobustnessConfig
from .self_similarity import (
    decay_slope,
    local_distant_similarity,
    rms_contrast,
    selfsim_error,
    similarity_by_distance,
)
from .similarity import CKASums, HSICSums, cknna, linear_cka, mutual_knn
from .tiles import Tiles
from .token_errors import TokenErrors

__all__ = [
    "ArchetypePSNRConfig",
    "BridgeErrors",
    "BridgeValConfig",
    "CKASums",
    "DigitsConfig",
    "FeatureSums",
    "HSICSums",
    "KNNProbeConfig",
    "LatentStatistics",
    "LinearClassifier",
    "LinearProbeConfig",
    "MeasuredPair",
    "PCAMapsProbeConfig",
    "PatchPCA",
    "Phase",
    "PosteriorStatistics",
    "Representations",
    "RetrievalProbeConfig",
    "RidgeReadout",
    "SelfSimilarityProbeConfig",
    "SimilarityProbeConfig",
    "Tiles",
    "TokenErrors",
    "TokenRobustnessConfig",
    "bridge_gain",
    "bridge_row",
    "cknna",
    "compare",
    "curve_figure",
    "decay_slope",
    "decode_files",
    "difference",
    "encode_files",
    "evaluate",
    "evaluate_bridge",
    "feature_files",
    "headline",
    "knn_accuracy",
    "latent_colours",
    "latex_table",
    "linear_cka",
    "load_result",
    "load_study",
    "local_distant_similarity",
    "markdown_table",
    "measure_phase",
    "metric_figure",
    "mutual_knn",
    "nearest",
    "overview",
    "overview_legend",
    "pca_maps",
    "psnr",
    "reconstruct_files",
    "representations",
    "results_table",
    "retrieval",
    "retrieval_hits",
    "ridge",
    "rms_contrast",
    "save_result",
    "self_knn_accuracy",
    "selfsim_error",
    "sgd",
    "share_of_gain",
    "similarity_by_distance",
    "ssim",
    "to_picture",
    "token_cosine",
    "top_k_accuracy",
    "write_ablation_report",
    "write_bridge_report",
    "write_phases",
    "write_plots",
    "write_report",
    "write_study",
]
