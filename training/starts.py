"""Where a model's weights start from, when not from their random birth."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..blocks.dit import SandwichDiTBlock
from ..blocks.patch import patchify
from ..blocks.registry import Part, part
from ..blocks.stack import SkipDecoder, StackEncoder
from ..families.files import CheckpointError, load_folder


class StartConfig(Part, ABC):
    """Sets the weights of a new model before the first step; ``images`` are batches of training crops."""

    slot: ClassVar[str] = "start"
    batches: int

    @abstractmethod
    def apply(self, model: Any, images: Iterable[Tensor]) -> None: ...


@part("start/weights")
class WeightsConfig(StartConfig):
    """Weights of a trained model of the same config: a folder, a file or a hub id."""

    path: str
    batches: int = 0

    def apply(self, model: Any, images: Iterable[Tensor]) -> None:
        loaded = load_folder(self.path, nn.Module)
        if loaded.config != model.config:
            raise CheckpointError(f"{self.path}: holds a model of another config than the recipe's; start from its own")
        model.load_state_dict(loaded.state_dict())


@part("start/logsnr")
class LogSNRStartConfig(StartConfig):
    """A nearly deterministic start: sets the bias of the log-SNR half of the encoder's output.

    Everything else keeps its random birth. A newborn convolution gives a log-SNR near 0, half signal and half noise;
    at 5 nats the noise has a standard deviation of 0.08 (not published; +4 to +6 suggested, our choice).

    Attributes:
        logsnr: in nats.
    """

    logsnr: float = 5.0
    batches: int = 0

    @torch.no_grad()
    def apply(self, model: Any, images: Iterable[Tensor]) -> None:
        config, last = model.config, getattr(model.encoder, "to_bottleneck", None)
        if not isinstance(last, nn.Conv2d) or last.bias is None:
            raise ValueError(
                "start/logsnr: needs an encoder that ends in a convolution 'to_bottleneck' with a bias; "
                "leave the start out"
            )
        if last.out_channels != 2 * config.latent:
            raise ValueError(
                f"start/logsnr: {config.posterior.kind!r} has no log-SNR; take 'posterior/vp', or leave the start out"
            )
        last.bias[config.latent :] = self.logsnr


@part("start/pca")
class PCAStartConfig(StartConfig):
    """Start as the best linear code: the principal components of training patches, with unit variance.

    The first ``latent`` channels of the encoder carry the components of each patch to the mean, and those of the
    decoder carry them back to pixels; blocks are born as (nearly) identities, or made so (the weights of the norms
    behind attention and MLP in sandwich blocks start at 0), so that the new model reconstructs exactly as well as PCA
    with as many values, and training only has to find what PCA cannot. The other channels keep their random birth.
    The log-SNR starts at ``logsnr`` everywhere.

    Attributes:
        batches: training batches from which the components are computed (float64).
    """

    batches: int = 64
    logsnr: float = 8.0

    @torch.no_grad()
    def apply(self, model: Any, images: Iterable[Tensor]) -> None:
        config, encoder, decoder = model.config, model.encoder, model.decoder
        if not isinstance(encoder, StackEncoder) or not isinstance(decoder, SkipDecoder):
            raise ValueError("start/pca: needs a stack encoder and a skip decoder; leave the start out")
        n = config.latent
        if n > min(config.width, config.channels * config.patch**2):
            raise ValueError(f"start/pca: {n} latent channels exceed the width or the values of a patch")
        mean, std, axes = _principal(images, config.patch, n)
        mean, std, axes = (x.to(encoder.patchify.proj.weight) for x in (mean, std, axes))
        analysis = (axes / std).T
        embed, back = encoder.patchify.proj, decoder.out_proj
        assert embed.bias is not None and back.bias is not None and encoder.to_bottleneck.bias is not None
        embed.weight[:n] = analysis.reshape(n, *embed.weight.shape[1:])
        embed.bias[:n] = -analysis @ mean
        for block in encoder.modules():
            if isinstance(block, SandwichDiTBlock):
                block.become_identity()
        _pass_on(encoder.to_bottleneck, rows=n, first_column=0)
        if encoder.to_bottleneck.out_channels == 2 * n:
            encoder.to_bottleneck.weight[n:] = 0
            encoder.to_bottleneck.bias[n:] = self.logsnr
        _pass_on(decoder.latent_up, rows=n, first_column=0)
        _pass_on(decoder.fuse_in, rows=n, first_column=config.width)
        _pass_on(decoder.fuse_skip, rows=n, first_column=0)
        back.weight.zero_()
        back.weight[:, :n, 0, 0] = axes * std
        back.bias.copy_(mean)


def _pass_on(conv: nn.Conv2d, *, rows: int, first_column: int) -> None:
    """Make the first ``rows`` outputs of a 1x1 convolution copies of the inputs from ``first_column`` on."""
    assert conv.bias is not None
    conv.weight[:rows] = 0
    index = torch.arange(rows)
    conv.weight[index, first_column + index] = 1
    conv.bias[:rows] = 0


def _principal(images: Iterable[Tensor], patch: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean ``[p]``, standard deviations ``[count]`` and axes ``[p, count]`` of patches, largest first, float64."""
    number, total, square = 0, torch.zeros(()), torch.zeros(())
    for batch in images:
        rows = patchify(batch.double().cpu(), patch).flatten(2).transpose(1, 2).flatten(0, 1)
        number, total, square = number + len(rows), total + rows.sum(0), square + rows.T @ rows
    mean = total / number
    values, axes = torch.linalg.eigh(square / number - torch.outer(mean, mean))
    largest = values.argsort(descending=True)[:count]
    axes = axes[:, largest]
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()  # one sign on every machine
    return mean, values[largest].clamp_min(1e-6).sqrt(), axes
