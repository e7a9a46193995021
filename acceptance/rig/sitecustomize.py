"""Faults and recordings for acceptance runs, put into unchanged commands: Python imports this file where its folder is
on PYTHONPATH, in the command and in every process that it starts.

MMSR1_RIG is a JSON object with any of
    record   a folder to keep every rollout in
    replay   a folder to take the rollouts from, instead of asking an engine
    kill     {"at": a place, "count": n, "rank": r}: SIGKILL when rank r comes by for the n-th time
    price    US dollars that a text search is said to cost
Modules of the product are patched right after their import; nothing is imported that the command would not import.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import pickle
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
    """Rollouts by split, step and place in the step; of several ranks each takes its own share."""
    original = module.RolloutWorker.rollout

    def rollout(
        worker: Any, examples: Any, size: int, sampling: Any, split: str, step: int, *args: Any, **kw: Any
    ) -> Any:
        file = folder / f"{split}-{step}.pickle"
        if replay:
            world = int(os.environ.get("WORLD_SIZE", "1"))
            return pickle.loads(file.read_bytes())[RANK::world]
        found = original(worker, examples, size, sampling, split, step, *args, **kw)
        file.write_bytes(pickle.dumps(found))
        return found

    module.RolloutWorker.rollout = rollout


def _patch(module: ModuleType) -> None:
    name, kill = module.__name__, RIG.get("kill")
    if kill and kill.get("rank", 0) == RANK:
        origin, owner, function = PLACES[kill["at"]]
        if origin == name:
            _kill(module, owner, function, kill["count"])
    for mode in ("record", "replay"):
        if mode in RIG and name == "mmsr1.rollout.worker":
            _keep_rollouts(module, Path(RIG[mode]), mode == "replay")
    if "price" in RIG and name == "mmsr1.tools.text_search.local":
        _cost(module.LocalTextSearch, RIG["price"])


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
