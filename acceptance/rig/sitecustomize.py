"""Faults and recordings for acceptance runs, put into unchanged commands: Python imports this file where its folder is
on PYTHONPATH, in the command and in every process that it starts.

MMSR1_RIG is a JSON object with any of
    record   a folder to keep every rollout in
    replay   a folder to take the rollouts from, instead of asking an engine
    kill     {"at": a place, "count": n, "rank": r}: SIGKILL when rank r comes by for the n-th time
    price    US dollars that a text search is said to cost
    loopback true: thumbnails and pages may be fetched from this machine, where a local server plays the web
    delay    {"median": seconds, "sigma": s}: every search takes so long, log-normal, a draw for each
Modules of the product are patched right after their import; nothing is imported that the command would not import.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.abc
import importlib.machinery
import json
import math
import os
import pickle
import random
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

RIG = json.loads(os.environ.get("MMSR1_RIG", "{}"))
RANK = int(os.environ.get("RANK", "0"))
# Place of a kill -> where the program comes by: module, owner, function.
PLACES = {
    "rollout": ("mmsr1.rollout.engines.vllm", "VllmEngine", "generate"),
    "tool": ("mmsr1.tools.text_search.local", "LocalTextSearch", "__call__"),
    "cache_write": ("mmsr1.tools.cache", "CachedTool", "_write"),
    "optimizer": ("mmsr1.models.module", "PolicyModule", "apply_gradients"),
    "sync": ("mmsr1.rollout.engines.vllm", "VllmEngine", "load_weights"),
    "checkpoint_begin": ("mmsr1.models.checkpoint", None, "_generators"),
    "checkpoint_end": ("mmsr1.models.checkpoint", None, "_stamp"),
    "prune": ("mmsr1.models.checkpoint", None, "prune"),
    "metrics": ("mmsr1.run_directory", "RunDirectory", "log_consumed"),
}


def _kill(module: ModuleType, owner: str | None, name: str, count: int) -> None:
    holder: Any = getattr(module, owner) if owner else module
    original, seen = getattr(holder, name), [0]

    def passed_by(*args: Any, **kwargs: Any) -> Any:
        seen[0] += 1
        if seen[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(holder, name, passed_by)


def _keep_rollouts(module: ModuleType, folder: Path, replay: bool) -> None:
    """Groups by split, step and example, whatever rank rolls them out."""
    original = module.RolloutWorker.launch

    def file(prompt: Any, split: str) -> Path:
        name = hashlib.sha256(prompt.example.id.encode()).hexdigest()[:16]
        return folder / f"{split}-{prompt.step}-{name}-{prompt.first}.pickle"

    async def recorded(prompt: Any, split: str) -> Any:
        return pickle.loads(file(prompt, split).read_bytes())

    def launch(
        worker: Any, prompts: Any, size: int, sampling: Any, split: str, on_episode: Any, limits: Any = None
    ) -> Any:
        if replay:
            return [asyncio.get_running_loop().create_task(recorded(prompt, split)) for prompt in prompts]
        tasks = original(worker, prompts, size, sampling, split, on_episode, limits)
        for prompt, task in zip(prompts, tasks, strict=True):
            keep = file(prompt, split)
            task.add_done_callback(lambda done, keep=keep: keep.write_bytes(pickle.dumps(done.result())))
        return tasks

    module.RolloutWorker.launch = launch


def _patch(module: ModuleType) -> None:
    name, kill = module.__name__, RIG.get("kill")
    if kill and kill.get("rank", 0) == RANK:
        origin, owner, function = PLACES[kill["at"]]
        if origin == name:
            _kill(module, owner, function, kill["count"])
    for mode in ("record", "replay"):
        if mode in RIG and name == "mmsr1.rollout.worker":
            _keep_rollouts(module, Path(RIG[mode]), mode == "replay")
    if "loopback" in RIG and name == "mmsr1.tools.fetch":
        _open_loopback(module.SafeFetch)
    if "delay" in RIG and name == "mmsr1.tools.cache":
        _slow_down(module.CachedTool, **RIG["delay"])
    if "price" in RIG and name == "mmsr1.tools.text_search.local":
        _cost(module.LocalTextSearch, RIG["price"])


def _open_loopback(fetch: Any) -> None:
    make = fetch.__init__

    def opened(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **{"allow": lambda address, port: address == "127.0.0.1", **kwargs})

    fetch.__init__ = opened


def _slow_down(tool: Any, median: float, sigma: float) -> None:
    """In front of the cache, so that what is asked again takes its time, too."""
    search = tool.__call__

    async def slow(self: Any, query: Any) -> Any:
        self._asked_so_far = getattr(self, "_asked_so_far", 0) + 1
        draw = random.Random(f"{self.name}-{self._asked_so_far}")
        await asyncio.sleep(median * math.exp(sigma * draw.gauss(0.0, 1.0)))
        return await search(self, query)

    tool.__call__ = slow


def _cost(tool: Any, usd: float) -> None:
    from dataclasses import replace

    search = tool.__call__

    async def paid(self: Any, query: Any) -> Any:
        return replace(await search(self, query), cost_usd=usd)

    tool.__call__, tool.price_usd = paid, usd


class _AfterImport(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if not fullname.startswith("mmsr1."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            _patch(module)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


if RIG:
    sys.meta_path.insert(0, _AfterImport())
