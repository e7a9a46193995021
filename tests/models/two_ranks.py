"""Two processes of a gloo group that stand in for two GPUs."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

RANKS = 2


def in_two_processes(scenario: Callable[[int, Path], Any], folder: Path) -> list[Any]:
    """`scenario(rank, folder)` in both; what it returned in each. It has to be a function of a module.

    Starting them costs ten seconds, so a scenario tries several things. One that waits two minutes for the other
    fails.
    """
    folder.mkdir(exist_ok=True)
    spawn(_process, (scenario, folder), nprocs=RANKS, daemon=True)
    return [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in range(RANKS)]


def _process(rank: int, scenario: Callable[[int, Path], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    # What torchrun sets, so that Lightning takes its place in this group and starts no processes of its own.
    places = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS}
    os.environ.update({name: str(value) for name, value in places.items()} | {"TORCHELASTIC_RUN_ID": "two_ranks"})
    meeting = f"file://{folder}/meet"
    torch.distributed.init_process_group("gloo", meeting, timedelta(minutes=2), rank=rank, world_size=RANKS)
    torch.save(scenario(rank, folder), folder / f"found-{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
