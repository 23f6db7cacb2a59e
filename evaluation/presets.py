"""The protocols of the field by name: what each project measures, so that numbers may stand beside published ones.

Sources are the projects' own code where it is public (evaluation.md, sections 2 to 9). A preset is an ordinary part:
every value can be changed, and then the number has another id. Where a protocol asks for what is not there, fewer
images for one, the result says so.
"""

from typing import Literal

from ..blocks.registry import part
from .extractors import DINOv2ExtractorConfig, ExtractorConfig, InceptionConfig
from .framing import ADMFramingConfig, AsIsFramingConfig, FramingConfig, NativeFramingConfig, ResizeCenterFramingConfig
from .pair_metrics import LPIPSConfig, PairMetricConfig
from .quantise import PNGConfig, QuantiseConfig, RoundConfig
from .reconstruction import ReconstructingConfig
from .reference_statistics import FileReferenceConfig, ReferenceConfig
from .samples import SamplingConfig
from .set_metrics import FrechetConfig, InceptionScoreConfig, PRDCConfig, SetMetricConfig

IMAGENET_VAL = 50_000

ALEX: tuple[PairMetricConfig, ...] = (LPIPSConfig(net="alex"),)
VGG: tuple[PairMetricConfig, ...] = (LPIPSConfig(net="vgg"),)
FRECHET: tuple[SetMetricConfig, ...] = (FrechetConfig(),)
ADM_SUITE: tuple[SetMetricConfig, ...] = (
    FrechetConfig(),
    FrechetConfig(of="spatial"),
    InceptionScoreConfig(shuffle_seed=None),
)


@part("protocol/data_archetype_2k")
class DataArchetype2kConfig(ReconstructingConfig):
    """PSNR over 2,000 images at native size, as on the cards of data-archetype's models: mode, one DDIM step.

    The cards report mean, deviation, median, P5 and P95 over 1,333 photographs and 667 book covers, and changed the
    set between them; whether they quantise is not known, and here nothing is.
    """

    crop: FramingConfig = NativeFramingConfig(multiple=32)
    count: int | None = 2_000


@part("protocol/rfid_val50k")
class RFIDVal50kConfig(ReconstructingConfig):
    """Reconstruction FID: the 50,000 validation images of ImageNet against themselves, after ADM's crop to 256.

    ADM's file of statistics is refused: it is of training images, and gives 1.83 to 1.90 where 0.57 is right (RAE#11).
    """

    crop: FramingConfig = ADMFramingConfig(size=256)
    quantise: QuantiseConfig = RoundConfig()
    extractor: ExtractorConfig | None = InceptionConfig(resize="tensorflow")
    set_metrics: tuple[SetMetricConfig, ...] = FRECHET
    count: int | None = IMAGENET_VAL


@part("protocol/dcae_recon")
class DCAEReconConfig(ReconstructingConfig):
    """DC-AE, DC-Gen and DINO-SAE: ADM's crop, both images rounded to bytes, mean of decibels, LPIPS of AlexNet.

    ``crop`` has the model's size: 256, or 512 for the f64 and f128 models. FID is pytorch-fid's.
    """

    crop: FramingConfig = ADMFramingConfig(size=256)
    quantise: QuantiseConfig = RoundConfig()
    range: Literal["signed", "unit", "bytes"] = "bytes"
    pair_metrics: tuple[PairMetricConfig, ...] = ALEX
    extractor: ExtractorConfig | None = InceptionConfig(resize="torch")
    set_metrics: tuple[SetMetricConfig, ...] = FRECHET
    count: int | None = IMAGENET_VAL


@part("protocol/vavae_recon")
class VAVAEReconConfig(ReconstructingConfig):
    """VA-VAE and LightningDiT: Resize + CenterCrop on tensors, a *sampled* posterior, PNG files, LPIPS of VGG."""

    crop: FramingConfig = ResizeCenterFramingConfig(size=256)
    quantise: QuantiseConfig = PNGConfig()
    range: Literal["signed", "unit", "bytes"] = "bytes"
    posterior: Literal["mode", "sample"] = "sample"
    pair_metrics: tuple[PairMetricConfig, ...] = VGG
    extractor: ExtractorConfig | None = InceptionConfig(resize="torch")
    set_metrics: tuple[SetMetricConfig, ...] = FRECHET
    count: int | None = IMAGENET_VAL


@part("protocol/rae_recon")
class RAEReconConfig(ReconstructingConfig):
    """RAE: ADM's crop to 256, bytes, errors in [0, 1] of at least 1e-10, LPIPS of VGG, torch-fidelity's FID."""

    crop: FramingConfig = ADMFramingConfig(size=256)
    quantise: QuantiseConfig = RoundConfig()
    range: Literal["signed", "unit", "bytes"] = "unit"
    mse_floor: float | None = 1e-10
    pair_metrics: tuple[PairMetricConfig, ...] = VGG
    extractor: ExtractorConfig | None = InceptionConfig(resize="tensorflow")
    set_metrics: tuple[SetMetricConfig, ...] = FRECHET
    count: int | None = IMAGENET_VAL


@part("protocol/adm_gfid")
class ADMGFIDConfig(SamplingConfig):
    """Generation FID at 256: 50,000 samples as they are against ADM's statistics, with sFID and the Inception Score.

    The file's moments are of the whole set; its 10,000 images serve precision and recall alone, whose rows are not
    in it: make a reference of those images for ``set_metric/prdc``. The extractor is torch-fidelity's port of ADM's
    graph, which agrees with it closely but not to the last digit, and its sFID was compared with nobody's.
    """

    crop: FramingConfig = AsIsFramingConfig(size=256)
    quantise: QuantiseConfig = RoundConfig()
    extractor: ExtractorConfig | None = InceptionConfig(resize="tensorflow")
    set_metrics: tuple[SetMetricConfig, ...] = ADM_SUITE
    reference: ReferenceConfig = FileReferenceConfig(name="VIRTUAL_imagenet256_labeled.npz")
    count: int | None = 50_000


@part("protocol/fdd_dgm")
class FDDConfig(SamplingConfig):
    """FDD as dgm-eval: 50,000 samples, DINOv2 ViT-L/14, 224 x 224 by Pillow's bicubic filter.

    ``reference`` is made by :func:`~.samples.make_reference` under this very protocol.
    """

    crop: FramingConfig = AsIsFramingConfig()
    quantise: QuantiseConfig = RoundConfig()
    extractor: ExtractorConfig | None = DINOv2ExtractorConfig()
    set_metrics: tuple[SetMetricConfig, ...] = FRECHET
    reference: ReferenceConfig = FileReferenceConfig(name="imagenet256-dinov2.safetensors")
    count: int | None = 50_000


PRECISION_RECALL = PRDCConfig(k=3)
"""With ADM's k, for protocols whose reference has rows."""
