"""DC-AE against diffusers' ``AutoencoderDC``: the same random weights in one process, interleaved, on two threads.

The full models have 0.3 billion parameters; their tensors at one time are counted exactly, in bytes, weights apart.
"""

from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from measuring import DEVICE, Table, assert_agrees, interleaved, peak_bytes, threads
from peers import THREADS

from latelier.families import DCAE
from latelier.recipes import dc_ae

CONFIGS = {
    "sana-1.0": dc_ae.dc_ae_f32c32_sana_1_0().model,
    "in-1.0": dc_ae.dc_ae_f32c32_in_1_0().model,
    "lite": dc_ae.dc_ae_lite_f32c32().model,
}


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, DCAE, Any]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dc_ae")
    model: Any = CONFIGS[request.param].build().eval()
    theirs: Any = AutoencoderDC.from_pretrained(model.export_diffusers(folder), low_cpu_mem_usage=False)
    return request.param, model.to(DEVICE), theirs.eval().to(DEVICE)


def bench_parameters_are_the_published_ones() -> None:
    counts = {"sana-1.0": 312_250_275, "in-1.0": 323_356_460, "lite": 153_027_104 + 268_154_124}
    for name, config in CONFIGS.items():
        with torch.device("meta"):
            assert sum(p.numel() for p in config.build().parameters()) == counts[name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("side", [256, 512])
@torch.no_grad()
def bench_against_diffusers(pair: tuple[str, DCAE, Any], side: int, dtype: torch.dtype, table: Table) -> None:
    name, ours, theirs = pair
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    images = (torch.rand(1, 3, side, side, device=DEVICE) * 2 - 1).to(dtype)
    with threads(THREADS):
        latents = theirs.encode(images).latent
        calls = {
            "encode": (lambda: ours.encode_raw(images), lambda: theirs.encode(images).latent),
            "decode": (lambda: ours.decode_raw(latents).to(dtype), lambda: theirs.decode(latents).sample),
        }
        for call, (mine, other) in calls.items():
            assert_agrees(mine(), other())
            peak, their_peak = peak_bytes(mine), peak_bytes(other)
            assert peak <= their_peak
            times = interleaved({"ours": mine, "diffusers": other}, rounds=5, warm_up=1)
            ratio = times["diffusers"].over(times["ours"])
            table.add(
                model=name,
                call=call,
                pixels=f"{side} x {side}",
                numbers=str(dtype).removeprefix("torch."),
                ours=times["ours"],
                diffusers=times["diffusers"],
                times_as_fast=ratio,
                peak_MiB=peak / 2**20,
                diffusers_peak_MiB=their_peak / 2**20,
            )
            assert ratio.median >= 1, f"{call} is slower than diffusers': {ratio.median:.2f}"
