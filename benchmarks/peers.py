"""Autoencoders side by side, weights random: SemDisDiffAE, DINAC-AE and FLUX.2's, all as published.

Run as a program, it prints the growth of resident memory over one call, which only a fresh process can tell:
``python peers.py NAME DIRECTION SIDE BATCH``.
"""

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from measuring import DEVICE, DTYPE, draw
from torch import Tensor, nn

from latelier.blocks import FamilyConfig
from latelier.recipes import dinac_ae, semdisdiffae

THREADS = 2
"""Of a comparison on a CPU."""


class Peer(Protocol):
    """What is compared: images in [-1, 1] to latents without noise, and latents to images in one evaluation."""

    parameters: int
    weight_bytes: int

    def inputs(self, direction: str, side: int, batch: int) -> Tensor: ...

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


def sizes(model: nn.Module) -> tuple[int, int]:
    """Number and bytes of a module's parameters."""
    return sum(p.numel() for p in model.parameters()), sum(p.nbytes for p in model.parameters())


def _input(direction: str, side: int, batch: int, *, channels: int, stride: int) -> Tensor:
    shape = (batch, 3, side, side) if direction == "encode" else (batch, channels, side // stride, side // stride)
    return draw(*shape)


class Ours:
    """A diffusion autoencoder of ours, one step."""

    def __init__(self, config: FamilyConfig) -> None:
        self.model: Any = config.build().eval()
        self.model.to(DEVICE, DTYPE)
        self.parameters, self.weight_bytes = sizes(self.model)

    def inputs(self, direction: str, side: int, batch: int) -> Tensor:
        return _input(direction, side, batch, channels=self.model.latent_channels, stride=self.model.stride)

    def encode(self, images: Tensor) -> Tensor:
        return self.model.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        stride = self.model.stride
        return self.model.decode(latents, latents.shape[2] * stride, latents.shape[3] * stride)


class Flux2:
    """``AutoencoderKLFlux2`` of diffusers; its defaults are the published configuration."""

    def __init__(self) -> None:
        self.model: Any = AutoencoderKLFlux2().eval()
        self.model.to(DEVICE, DTYPE)
        self.parameters, self.weight_bytes = sizes(self.model)

    def inputs(self, direction: str, side: int, batch: int) -> Tensor:
        return _input(direction, side, batch, channels=32, stride=8)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.model.encode(images).latent_dist.mode()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents).sample


PEERS: dict[str, Callable[[], Peer]] = {
    "SemDisDiffAE": partial(Ours, semdisdiffae().model),
    "DINAC-AE": partial(Ours, dinac_ae().model),
    "FLUX.2": Flux2,
}


def resident_growth(name: str, direction: str, side: int, batch: int) -> int:
    """Bytes by which one call raises the resident memory of this process over what it holds before (Linux).

    About 15 MiB of it are code of libraries that the call maps in, whatever the model.
    """
    torch.set_num_threads(THREADS)
    peer = PEERS[name]()
    x = peer.inputs(direction, side, batch)
    return resident_growth_of(lambda: getattr(peer, direction)(x))


def resident_growth_of(call: Callable[[], object]) -> int:
    """Bytes by which ``call`` raises the resident memory of this process over what it holds before (Linux)."""
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest mark
    call()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, f"/proc/self/status has no {field}"
    return int(found[1]) * 1024


if __name__ == "__main__":
    sys.stdout.write(f"{resident_growth(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))}\n")
