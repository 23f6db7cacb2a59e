"""Two ways from SD's latents to DINOv2's tokens, weights random: the bridge, and the autoencoder before the teacher.

Run as a program, it prints the growth of resident memory over one call: ``python bridge_peers.py NAME``.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from measuring import DEVICE, DTYPE, draw
from peers import THREADS, resident_growth_of, sizes
from torch import Tensor, nn

from latelier.blocks import DINOv2Config, latent_space
from latelier.recipes import sd_to_dinov2

BATCH = 8


def latents() -> Tensor:
    """Of eight images of 256 px."""
    return draw(BATCH, 4, 32, 32)


class Bridge:
    """Latents to tokens, directly."""

    def __init__(self) -> None:
        self.model = sd_to_dinov2().model.build().eval().to(DEVICE, DTYPE)
        self.parameters, self.weight_bytes = sizes(self.model)

    @torch.no_grad()
    def __call__(self, z: Tensor) -> Tensor:
        return self.model(z).patches


class DecodeThenTeacher:
    """Latents to pixels by SD's decoder, pixels to tokens by the teacher."""

    def __init__(self) -> None:
        self.space = latent_space("sd", random_init=True).to(DEVICE, DTYPE)
        self.space.decode(torch.zeros(1, 4, 8, 8, device=DEVICE, dtype=DTYPE))  # it is loaded at the first call
        self.teacher = DINOv2Config(size="vitb14", random_init=True).for_stride(32).build().to(DEVICE)
        codec: Any = self.space.load()
        autoencoder = codec.model
        used: tuple[nn.Module, ...] = (autoencoder.decoder, autoencoder.post_quant_conv, self.teacher)
        self.parameters, self.weight_bytes = (sum(both) for both in zip(*map(sizes, used), strict=True))

    @torch.no_grad()
    def __call__(self, z: Tensor) -> Tensor:
        images = (self.space.decode(z).float().clamp(-1, 1) + 1) / 2
        return self.teacher(images).patches


PEERS: dict[str, Callable[[], Bridge | DecodeThenTeacher]] = {
    "bridge": Bridge,
    "decode, then teacher": DecodeThenTeacher,
}


def main(name: str) -> None:
    torch.set_num_threads(THREADS)
    peer, z = PEERS[name](), latents()
    sys.stdout.write(f"{resident_growth_of(lambda: peer(z))}\n")


if __name__ == "__main__":
    main(sys.argv[1])
