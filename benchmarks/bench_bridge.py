"""A bridge against decoding its latents and asking the teacher: SD's latents of 256 px to DINOv2-B at 112 px.

Batches of 8, weights random, sizes as published; on two threads where there is no GPU. MiB is the highest memory of one
call beside weights and input (on a CPU: of a fresh process, scratch and code of libraries included). The guard on a
CPU: at least 50 times faster, in less memory, weights included or not. It failed when last measured, at 43.6 times:
92 % of the bridge's time are matrix products of its eight blocks, 58 GFLOP a batch.
"""

import os
import subprocess
import sys
from functools import partial

import bridge_peers
import pytest
import torch
from bridge_peers import BATCH, PEERS, THREADS
from measuring import DEVICE, Crowd, Spread, Table, interleaved, threads

CUDA = DEVICE == "cuda"


def bench_bridge_against_decoding(table: Table) -> None:
    peers = {name: make() for name, make in PEERS.items()}
    z = bridge_peers.latents()
    for peer in peers.values():
        tokens = peer(z)
        assert tokens.shape == (BATCH, 64, 768)
        assert tokens.isfinite().all()
    memory = {name: _memory(name, partial(peer, z)) for name, peer in peers.items()}
    with threads(THREADS), Crowd() as crowd:
        rounds, sample, warm_up = (20, 0.0, 5) if CUDA else (3, 0.5, 1)
        times = interleaved(
            {name: partial(peer, z) for name, peer in peers.items()}, rounds=rounds, sample=sample, warm_up=warm_up
        )
    bridge, decoding = "bridge", "decode, then teacher"
    faster: Spread = times[decoding].over(times[bridge])
    for name, peer in peers.items():
        table.add(
            way=name,
            parameters=peer.parameters,
            time=times[name],
            times_slower=times[name].over(times[bridge]),
            MiB=round(memory[name] / 2**20),
            MiB_with_weights=round((memory[name] + peer.weight_bytes) / 2**20),
            cores_taken_by_others=crowd.cores,
        )
    assert memory[bridge] < memory[decoding]
    assert memory[bridge] + peers[bridge].weight_bytes < memory[decoding] + peers[decoding].weight_bytes
    if not CUDA:
        assert faster.median >= 50
        if crowd.cores > (os.cpu_count() or THREADS) - THREADS + 0.2:
            pytest.fail(f"other processes kept {crowd.cores:.1f} cores busy, and the times are theirs; measure alone")


def _memory(name: str, call: "partial[torch.Tensor]") -> int:
    """Bytes that one call needs beside weights and input, at their highest."""
    if CUDA:
        call()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    command = [sys.executable, bridge_peers.__file__, name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
