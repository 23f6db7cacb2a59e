"""Measures of a reconstruction beside its original, one number an image: MS-SSIM, LPIPS, DISTS.

PSNR and SSIM belong to every protocol of reconstructions and are in ``metrics.py``. Each part here has a ``column``
under which its numbers stand: LPIPS of AlexNet and of VGG are not comparable, and their columns are not the same.
torchmetrics computes all three. It would download the backbones of LPIPS and DISTS; here they are read from files,
see ``weight_files.py``; the small layers on top come with torchmetrics.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..blocks.registry import Part, part
from ..blocks.shapes import Image
from ..blocks.weights import CheckpointError, read_weights
from .weight_files import file_hash, find_weights

PairMetric = Callable[[Image, Image], Tensor]
"""(reconstruction, original), both in [-1, 1], to a number an image."""

MS_SSIM_SIDE = 161
ALEXNET, VGG16 = "alexnet-owt-7be5be79.pth", "vgg16-397923af.pth"


class PairMetricConfig(Part, ABC):
    """A measure of single reconstructions."""

    slot: ClassVar[str] = "pair_metric"
    better: ClassVar[Literal["higher", "lower"]] = "lower"

    @property
    @abstractmethod
    def column(self) -> str:
        """The name of its numbers."""

    @abstractmethod
    def build(self, device: torch.device) -> PairMetric: ...

    def provenance(self) -> dict[str, str]:
        """What its numbers depend on beside its settings: hashes of files."""
        return {}


@part("pair_metric/ms_ssim")
class MSSSIMConfig(PairMetricConfig):
    """Structural similarity over five scales (Wang et al. 2003), each at least 11 pixels a side."""

    better = "higher"

    @property
    def column(self) -> str:
        return "ms_ssim"

    def build(self, device: torch.device) -> PairMetric:
        return ms_ssim


def ms_ssim(reconstruction: Image, original: Image) -> Float[Tensor, " b"]:
    """MS-SSIM of images in [-1, 1], float32; raises ``ValueError`` below 161 x 161 pixels."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    if min(original.shape[2:]) < MS_SSIM_SIDE:
        size = "x".join(map(str, original.shape[2:]))
        raise ValueError(f"ms_ssim: takes images of at least {MS_SSIM_SIDE}x{MS_SSIM_SIDE} pixels, got {size}")
    values = multiscale_structural_similarity_index_measure(
        reconstruction.float().clamp(-1, 1), original.float(), data_range=2.0, reduction="none"
    )
    return values.reshape(len(original))


@part("pair_metric/lpips")
class LPIPSConfig(PairMetricConfig):
    """Learned perceptual distance (arXiv 1801.03924) with the backbone that is named: "alex" or "vgg".

    ``weights`` is torchvision's file of the backbone; None looks for it in ``LATELIER_WEIGHTS``. A protocol that names
    a file has another id than one that does not.
    """

    shorthand = "net"

    net: Literal["alex", "vgg"]
    weights: str | None = None

    @property
    def column(self) -> str:
        return f"lpips_{self.net}"

    def _file(self) -> Any:
        return find_weights(self.weights, ALEXNET if self.net == "alex" else VGG16, where=self.column)

    def provenance(self) -> dict[str, str]:
        return {"weights": file_hash(self._file())}

    def build(self, device: torch.device) -> PairMetric:
        path = self._file()
        from torchmetrics.functional.image.lpips import _LPIPS

        _need_torchvision(self.column)
        network = _LPIPS(pretrained=True, net=self.net, pnet_rand=True)  # pnet_rand: the backbone is not downloaded
        _fill(network.net, read_weights(str(path), where=self.column)[0], where=str(path))
        network = network.to(device)
        return lambda reconstruction, original: network(*_signed(reconstruction, original)).reshape(-1).double()


@part("pair_metric/dists")
class DISTSConfig(PairMetricConfig):
    """Structure and texture similarity (arXiv 2004.07728), on VGG-16; ``weights`` as of LPIPS."""

    weights: str | None = None

    @property
    def column(self) -> str:
        return "dists"

    def provenance(self) -> dict[str, str]:
        return {"weights": file_hash(find_weights(self.weights, VGG16, where="dists"))}

    def build(self, device: torch.device) -> PairMetric:
        path = find_weights(self.weights, VGG16, where="dists")
        _need_torchvision("dists")
        network = _dists_network()
        _fill(network, read_weights(str(path), where="dists")[0], where=str(path))
        network = network.to(device)

        def measure(reconstruction: Image, original: Image) -> Tensor:
            ours, theirs = _signed(reconstruction, original)
            return network((ours + 1) / 2, (theirs + 1) / 2).reshape(-1).double()

        return measure


def _dists_network() -> Any:
    """torchmetrics' network with its own alpha and beta, and a VGG-16 that it has not downloaded."""
    from torchmetrics.functional.image import dists
    from torchvision.models import vgg16

    class Network(dists.DISTSNetwork):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            features: Any = vgg16(weights=None).features
            self.chns = [3, 64, 128, 256, 512, 512]
            for stage, (first, last) in enumerate(((0, 4), (4, 9), (9, 16), (16, 23), (23, 30)), 1):
                layers = nn.Sequential()
                for index in range(first, last):
                    pools = stage > 1 and index == first
                    layer = dists.L2pooling(channels=self.chns[stage - 1]) if pools else features[index]
                    layers.add_module(str(index), layer)
                self.add_module(f"stage{stage}", layers)
            for name, values in (("mean", [0.485, 0.456, 0.406]), ("std", [0.229, 0.224, 0.225])):
                self.register_buffer(name, torch.tensor(values)[:, None, None])
            mixing = torch.load(dists._PATH_WEIGHT_DISTS, map_location="cpu", weights_only=True)
            for name in ("alpha", "beta"):
                self.register_parameter(name, nn.Parameter(mixing[name]))

    return Network().requires_grad_(False).eval()


def _need_torchvision(name: str) -> None:
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        raise ImportError(f"{name}: needs torchvision; pip install 'latelier[teachers]'") from error


def _fill(network: nn.Module, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Give a backbone cut in slices torchvision's weights: ``slice2.3.weight`` is ``features.3.weight``."""
    wanted = {
        name: parameter
        for name, parameter in network.named_parameters()
        if name.split(".")[0].startswith(("slice", "stage"))
    }
    source = {name: "features." + ".".join(name.split(".")[1:]) for name in wanted}
    missing = sorted(source[name] for name in wanted if source[name] not in tensors)
    if missing:
        raise CheckpointError(f"{where}: lacks {missing[0]!r}; it is no file of this backbone from torchvision")
    with torch.no_grad():
        for name, parameter in wanted.items():
            found = tensors[source[name]]
            if found.shape != parameter.shape:
                shapes = f"{list(found.shape)}, not {list(parameter.shape)}"
                raise CheckpointError(f"{where}: {source[name]!r} has the shape {shapes}; it is another backbone")
            parameter.copy_(found)


def _signed(reconstruction: Image, original: Image) -> tuple[Tensor, Tensor]:
    return reconstruction.float().clamp(-1, 1), original.float().clamp(-1, 1)
