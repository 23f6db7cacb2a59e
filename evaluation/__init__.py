"""Measuring models: protocols, yardsticks, latent statistics, pictures, reports."""

from .ablation_headline import headline
from .ablation_outputs import load_study, write_study
from .ablation_plots import curve_figure, metric_figure, write_plots
from .ablation_report import write_ablation_report
from .ablation_tables import latex_table, markdown_table
from .ablation_words import legend as overview_legend
from .ablation_words import overview
from .comparison import compare
from .evaluate_stream import evaluate_samples, evaluate_stream
from .extractors import DINOv2ExtractorConfig, Extractor, ExtractorConfig, InceptionConfig, TeacherExtractorConfig
from .feature_probes import RetrievalProbeConfig, SimilarityProbeConfig
from .framing import ADMFramingConfig, AsIsFramingConfig, FramingConfig, NativeFramingConfig, ResizeCenterFramingConfig
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
from .pair_metrics import DISTSConfig, LPIPSConfig, MSSSIMConfig, PairMetricConfig, ms_ssim
from .pictures import difference, latent_colours, pca_maps, to_picture
from .populations import GaussianSums, frechet, inception_score, kid, prdc
from .presets import (
    ADMGFIDConfig,
    DataArchetype2kConfig,
    DCAEReconConfig,
    FDDConfig,
    RAEReconConfig,
    RFIDVal50kConfig,
    VAVAEReconConfig,
)
from .protocols import ArchetypePSNRConfig
from .quantise import NoQuantiseConfig, PNGConfig, QuantiseConfig, RoundConfig
from .reconstruct import reconstruct_files
from .reconstruction import ReconstructionConfig
from .reference_statistics import (
    FileReferenceConfig,
    OriginalsConfig,
    ReferenceConfig,
    ReferenceStatistics,
    load_reference,
)
from .report import write_report
from .representations import Representations, representations
from .results import load_result, results_table, save_result
from .robustness import TokenRobustnessConfig
from .samples import SamplesConfig, make_reference
from .self_similarity import (
    decay_slope,
    local_distant_similarity,
    rms_contrast,
    selfsim_error,
    similarity_by_distance,
)
from .set_metrics import FrechetConfig, InceptionScoreConfig, KIDConfig, PRDCConfig, SetMetricConfig
from .similarity import CKASums, HSICSums, cknna, linear_cka, mutual_knn
from .tiles import Tiles
from .token_errors import TokenErrors

__all__ = [
    "ADMFramingConfig",
    "ADMGFIDConfig",
    "ArchetypePSNRConfig",
    "AsIsFramingConfig",
    "CKASums",
    "DCAEReconConfig",
    "DINOv2ExtractorConfig",
    "DISTSConfig",
    "DataArchetype2kConfig",
    "DigitsConfig",
    "Extractor",
    "ExtractorConfig",
    "FDDConfig",
    "FeatureSums",
    "FileReferenceConfig",
    "FramingConfig",
    "FrechetConfig",
    "GaussianSums",
    "HSICSums",
    "InceptionConfig",
    "InceptionScoreConfig",
    "KIDConfig",
    "KNNProbeConfig",
    "LPIPSConfig",
    "LatentStatistics",
    "LinearClassifier",
    "LinearProbeConfig",
    "MSSSIMConfig",
    "NativeFramingConfig",
    "NoQuantiseConfig",
    "OriginalsConfig",
    "PCAMapsProbeConfig",
    "PNGConfig",
    "PRDCConfig",
    "PairMetricConfig",
    "PatchPCA",
    "PosteriorStatistics",
    "QuantiseConfig",
    "RAEReconConfig",
    "RFIDVal50kConfig",
    "ReconstructionConfig",
    "ReferenceConfig",
    "ReferenceStatistics",
    "Representations",
    "ResizeCenterFramingConfig",
    "RetrievalProbeConfig",
    "RidgeReadout",
    "RoundConfig",
    "SamplesConfig",
    "SelfSimilarityProbeConfig",
    "SetMetricConfig",
    "SimilarityProbeConfig",
    "TeacherExtractorConfig",
    "Tiles",
    "TokenErrors",
    "TokenRobustnessConfig",
    "VAVAEReconConfig",
    "cknna",
    "compare",
    "curve_figure",
    "decay_slope",
    "decode_files",
    "difference",
    "encode_files",
    "evaluate",
    "evaluate_samples",
    "evaluate_stream",
    "feature_files",
    "frechet",
    "headline",
    "inception_score",
    "kid",
    "knn_accuracy",
    "latent_colours",
    "latex_table",
    "linear_cka",
    "load_reference",
    "load_result",
    "load_study",
    "local_distant_similarity",
    "make_reference",
    "markdown_table",
    "metric_figure",
    "ms_ssim",
    "mutual_knn",
    "nearest",
    "overview",
    "overview_legend",
    "pca_maps",
    "prdc",
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
    "similarity_by_distance",
    "ssim",
    "to_picture",
    "token_cosine",
    "top_k_accuracy",
    "write_ablation_report",
    "write_plots",
    "write_report",
    "write_study",
]
