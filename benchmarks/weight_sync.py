"""The trainer's weights into the in-process vLLM, beside writing the same bytes once into fresh memory.

A random Qwen2.5-VL of about 100 million parameters in float32, through the engine as training calls it: waiting for
requests, layer-wise reload, dropping every cache. What stands beside it allocates a buffer for all tensors together and
copies them in, page faults included. The two take turns.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks._policy import read_policy, write_policy
from benchmarks._process import Channel, Part
from benchmarks._worker import make_engine
from mmsr1.rollout.engines.base import Engine

REPEATS = 7
SIZES = {"hidden": 1024, "layers": 7, "vision": 512, "depth": 8, "vocabulary": 8192}


def measure() -> dict[str, Any]:
    """Medians; the first sync and the first copy are not counted."""
    with Part.of("weight_sync") as part:
        found = part.ask(repeats=REPEATS, sizes=SIZES)
    sync, copy = (median(found[name][1:]) for name in ("sync_seconds", "copy_seconds"))
    return {
        "engine": "vllm",
        "parameters": found["parameters"],
        "mib": found["bytes"] / 2**20,
        "sync_seconds": sync,
        "copy_seconds": copy,
        "ratio": sync / copy,
    }


def main(channel: Channel) -> None:
    task = channel.receive()
    assert task is not None
    torch.set_num_threads(1)
    with TemporaryDirectory() as scratch:
        write_policy(Path(scratch), **task["sizes"])
        files = read_policy(Path(scratch))
        engine = make_engine(Path(scratch), files)
    tensors = dict(files.model.named_parameters())
    sizes = {"parameters": sum(map(Tensor.numel, tensors.values())), "bytes": sum(t.nbytes for t in tensors.values())}
    channel.send({**asyncio.run(timed(engine, tensors, task["repeats"])), **sizes})


async def timed(engine: Engine, tensors: Mapping[str, Tensor], repeats: int) -> dict[str, list[float]]:
    """Seconds of each sync and of each copy, one more of both than `repeats`."""
    times: dict[str, list[float]] = {"sync_seconds": [], "copy_seconds": []}
    for version in range(repeats + 1):
        start = time.perf_counter()
        await engine.load_weights(tensors.items(), version)
        synced = time.perf_counter()
        made = copied(list(tensors.values()))
        times["copy_seconds"].append(time.perf_counter() - synced)
        times["sync_seconds"].append(synced - start)
        del made  # giving pages back is no part of writing them
    return times


@torch.no_grad()
def copied(tensors: Sequence[Tensor]) -> Tensor:
    """All tensors one after another in one new buffer, of which the kernel has not yet given a page."""
    buffer = torch.empty(sum(tensor.numel() for tensor in tensors), dtype=tensors[0].dtype)
    start = 0
    for tensor in tensors:
        buffer[start : start + tensor.numel()].copy_(tensor.reshape(-1))
        start += tensor.numel()
    return buffer


if __name__ == "__main__":
    main(Channel())
