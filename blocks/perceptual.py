"""Distances of pictures in the features of frozen networks: LPIPS, and a substitute that needs no weights.

    d(x, x') = sum over layers l, mean over positions, sum over channels c of  w_lc (u_lc(x) - u_lc(x'))²

with u_l = f_l / |f_l|, the features of a layer divided by their length at each position.

LPIPS (Zhang et al. 2018, arXiv 1801.03924, eq. 1) has features f of a network trained on ImageNet and weights w that
were fitted to judgements of people. The substitute has random convolutions, w = 1, and the mean of its levels: it sees
edges and textures at several scales, and it knows nothing of what people see. Its numbers are not LPIPS.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .shapes import Image, Map

Net = Literal["vgg", "alex"]
EPS = 1e-10
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""What LPIPS does to images in [-1, 1]; nearly ImageNet's mean and standard deviation."""

TAPS: dict[Net, tuple[int, ...]] = {"vgg": (3, 8, 15, 22, 29), "alex": (1, 4, 7, 9, 11)}
"""Layers of torchvision's ``features`` after which they are read: the ReLUs before each pooling, or all of them."""
FILES: dict[Net, tuple[str, str]] = {
    "vgg": ("vgg16", "vgg16-397923af.pth"),
    "alex": ("alexnet", "alexnet-owt-7be5be79.pth"),
}
"""The networks in torchvision, and their files as it publishes them."""


def feature_distance(
    ours: Sequence[Tensor], theirs: Sequence[Tensor], weights: Sequence[Tensor | None]
) -> Float[Tensor, " b"]:
    """The distance of each image, float32, given the maps ``[b, c, h, w]`` and weights ``[c]`` (None: 1) of layers."""
    return torch.stack(
        [
            (_unit(a) - _unit(b)).square().mul(1 if w is None else w[:, None, None]).sum(1).mean(dim=(1, 2))
            for a, b, w in zip(ours, theirs, weights, strict=True)
        ]
    ).sum(0)


def _unit(features: Map) -> Map:
    features = features.float()
    return features / (features.square().sum(1, keepdim=True) + EPS).sqrt()


class RandomPyramid(nn.Module):
    """Random 3x3 convolutions with LeakyReLU, and averages over 2x2 between them; the same for a seed, everywhere."""

    def __init__(self, widths: Sequence[int], *, channels: int, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.count = len(widths)
        for i, (before, after) in enumerate(zip([channels, *widths[:-1]], widths, strict=True)):
            kernel = torch.randn(after, before, 3, 3, generator=draw, device="cpu") * (2 / (9 * before)) ** 0.5
            kernel = kernel - kernel.mean(dim=(2, 3), keepdim=True) * (i == 0)  # the first sees differences alone
            self.register_buffer(f"kernel{i}", kernel, persistent=False)

    def forward(self, image: Image) -> list[Tensor]:
        found, x = [], image.float()
        for i in range(self.count):
            if i:
                x = F.avg_pool2d(x, 2)
            x = F.leaky_relu(F.conv2d(x, self.get_buffer(f"kernel{i}"), padding=1), 0.2)
            found.append(x)
        return found


class LPIPS:
    """LPIPS 0.1 with a frozen network; called with two batches in [-1, 1] it gives a distance each.

    Raises:
        ImportError: torchvision or torchmetrics is missing.
        FileNotFoundError, ValueError: the file of weights is missing, or is of another network.
    """

    def __init__(self, net: Net, weights: str, *, where: str = "lpips") -> None:
        check_lpips(net, weights, where=where)
        name, _ = FILES[net]
        models: Any = importlib.import_module("torchvision.models")
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            network = getattr(models, name)(weights=None).features
        tensors = {
            key.removeprefix("features."): tensor.float()
            for key, tensor in torch.load(weights, map_location="cpu", weights_only=True).items()
            if key.startswith("features.")
        }
        missing = sorted(network.state_dict().keys() ^ tensors.keys())
        if missing:
            raise ValueError(
                f"{where}: {weights} holds other weights than torchvision's {name}; {missing[0]!r} does not fit"
            )
        network.load_state_dict(tensors, assign=True)
        for layer in network:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False
        self.taps = TAPS[net]
        self.network = network[: self.taps[-1] + 1].eval().requires_grad_(False)
        lines = torch.load(_lines(net, where), map_location="cpu", weights_only=True)
        self.lines = [lines[f"lin{i}.model.1.weight"].flatten().float() for i in range(len(self.taps))]

    def __call__(self, images: Image, others: Image) -> Float[Tensor, " b"]:
        device = images.device
        if self.lines[0].device != device:
            self.network, self.lines = self.network.to(device), [line.to(device) for line in self.lines]
        return feature_distance(self._features(images), self._features(others), self.lines)

    def _features(self, images: Image) -> list[Tensor]:
        shift, scale = (images.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (SHIFT, SCALE))
        x, found = (images.float() - shift) / scale, []
        for i, layer in enumerate(self.network):
            x = layer(x)
            if i in self.taps:
                found.append(x)
        return found


def check_lpips(net: Net, weights: str, *, where: str) -> None:
    """Raise what :class:`LPIPS` would, as far as that can be told without reading the file."""
    name, published = FILES[net]
    if importlib.util.find_spec("torchvision") is None:
        raise ImportError(f"{where}: needs torchvision; pip install 'latelier[lpips]'")
    _lines(net, where)
    if not weights:
        raise ValueError(
            f"{where}: needs the weights of torchvision's {name}, which are never downloaded; name a local file in "
            f"'weights' ({published}), or take 'objective/perceptual_substitute'"
        )
    if not Path(weights).expanduser().is_file():
        raise FileNotFoundError(f"{where}: {weights}: no such file; it should be torchvision's {published}")


def _lines(net: Net, where: str) -> Path:
    """The fitted weights, which torchmetrics' wheel brings along."""
    found = importlib.util.find_spec("torchmetrics")
    path = None if found is None or found.origin is None else Path(found.origin).parent
    path = None if path is None else path / "functional" / "image" / "lpips_models" / f"{net}.pth"
    if path is None or not path.is_file():
        raise ImportError(f"{where}: needs torchmetrics with the weights of LPIPS; pip install 'latelier[lpips]'")
    return path
