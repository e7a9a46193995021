"""Checkpoints: everything a run needs to go on as if nothing had happened, written whole or not at all.

    checkpoints/<step>/weights/            parameters and optimiser moments, each rank its shards (torch's DCP)
    checkpoints/<step>/rng-<rank>.json     random number generators of each rank
    checkpoints/<step>/stream-<rank>.json  rollouts that are ready ahead of their step, and prompts under way
    checkpoints/<step>/state.json          step, schedules, counters of the run, sizes and checksums of all files; last

A folder is written beside the others under a dotted name and renamed when it is complete. Data order and sampling are
pure functions of seed and step, and a checkpoint is taken between two steps: what is in flight then is in `stream`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from mmsr1.models.ranks import Ranks

FORMAT = 1
_REMEDY = "remove this folder to use the one before"
_SETTINGS = "resume with the run's own model.* and algorithm.* settings"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, in one line."""


def write(
    folder: Path,
    step: int,
    policy: nn.Module,
    optimizers: Sequence[Optimizer],
    state: Mapping[str, Any],
    ranks: Ranks,
    stream: bytes = b"",
) -> Path:
    """Write checkpoint `step` under `folder` with `state` (JSON values); a collective. Returns its path.

    `stream` is what this rank has in flight, empty where there are no rollouts.
    """
    final, fresh = folder / f"{step:08d}", folder / f".{step:08d}.new"
    if ranks.rank == 0:
        for leftover in (*folder.glob(".*.new"), *folder.glob(".*.old")):  # a kill came between
            shutil.rmtree(leftover)
        fresh.mkdir(parents=True)
    ranks.gather(None)  # the folder is there
    # Asked for moments that do not exist, torch makes them by a step of zeros, which counts in the bias correction.
    stepped = [bool(one.state) for one in optimizers]
    tensors = {"model": get_model_state_dict(policy), **_moments(policy, optimizers, stepped)}
    with _single_process_is_fine():
        save(tensors, checkpoint_id=fresh / "weights", process_group=ranks.group, no_dist=ranks.size == 1)
    (fresh / f"rng-{ranks.rank}.json").write_text(json.dumps(_generators()))
    if stream:
        (fresh / f"stream-{ranks.rank}.json").write_bytes(stream)
    ranks.gather(None)  # everybody has written
    # Each rank vouches for what it wrote itself: a shared file system may not show it to the others yet.
    own = [
        f"rng-{ranks.rank}.json",
        *([f"stream-{ranks.rank}.json"] if stream else []),
        *(f"weights/{f.name}" for f in (fresh / "weights").glob(f"__{ranks.rank}_*")),
    ]
    own += ["weights/.metadata"] if ranks.rank == 0 else []
    stamps = [stamp for part in ranks.gather([(name, _stamp(fresh / name)) for name in own]) for stamp in part]
    if ranks.rank == 0:
        known = {"format": FORMAT, "step": step, "model": fingerprint(policy), "stepped": stepped}
        content = {**known, **state, "files": dict(stamps)}
        (fresh / "state.json").write_text(json.dumps(content, indent=1, allow_nan=False))
        _stamp(fresh / "state.json")
        if final.exists():  # a run resumed from an older step comes by here again
            _remove(final)
        fresh.rename(final)
    ranks.gather(None)  # it counts
    return final


def restore(checkpoint: Path, policy: nn.Module, optimizers: Sequence[Optimizer], ranks: Ranks) -> dict[str, Any]:
    """Put a checkpoint back, whatever number of ranks wrote it; a collective. Returns its state.

    Raises CheckpointError if it is damaged, newer than this program, or of another model.
    """
    state = read_weights(checkpoint, policy, optimizers, ranks)
    rng = checkpoint / f"rng-{ranks.rank}.json"
    if rng.exists():
        _set_generators(json.loads(rng.read_text()))
    return state


def read_weights(
    checkpoint: Path, policy: nn.Module, optimizers: Sequence[Optimizer] = (), ranks: Ranks | None = None
) -> dict[str, Any]:
    """Weights into `policy`, sharded or not, and moments into `optimizers`; returns the state. Raises CheckpointError.

    A collective of `ranks`, where there are several.
    """
    state = check_model(checkpoint, policy)
    stepped = state["stepped"]
    if optimizers and len(optimizers) != len(stepped):
        raise CheckpointError(
            f"{checkpoint}: written with {len(stepped)} optimisers, not {len(optimizers)}; {_SETTINGS}"
        )
    _check_content(checkpoint, state["files"], ranks or Ranks())
    options, group, alone = StateDictOptions(strict=True), (ranks or Ranks()).group, (ranks or Ranks()).size == 1
    tensors = {"model": get_model_state_dict(policy), **_moments(policy, optimizers, stepped)}
    try:
        with _single_process_is_fine():
            load(tensors, checkpoint_id=checkpoint / "weights", process_group=group, no_dist=alone)
    except (RuntimeError, OSError, ValueError, KeyError, EOFError, CheckpointException) as error:
        causes = [cause for cause, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
        raise CheckpointError(f"{checkpoint}: not readable: {' '.join(str(causes[0]).split())[:200]}") from error
    set_model_state_dict(policy, tensors["model"], options=options)
    for number, optimizer in enumerate(optimizers):
        if stepped[number]:
            set_optimizer_state_dict(policy, optimizer, tensors[f"optimizer_{number}"], options=options)
    return state


def read_streams(checkpoint: Path) -> list[bytes]:
    """What each rank had in flight, in rank order; nothing where there were no rollouts."""
    files = {int(file.stem.partition("-")[2]): file for file in checkpoint.glob("stream-*.json")}
    return [files[rank].read_bytes() for rank in sorted(files)]


def check_model(checkpoint: Path, policy: nn.Module) -> dict[str, Any]:
    """The state of a checkpoint that `policy` can take. Raises CheckpointError."""
    state = read_state(checkpoint)
    if state["model"] != fingerprint(policy):
        raise CheckpointError(
            f"{checkpoint}: written for another model (names, shapes or trained parameters differ); {_SETTINGS}"
        )
    return state


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The content of state.json, after a look at the sizes of the other files. Raises CheckpointError."""
    try:
        state = json.loads((checkpoint / "state.json").read_text())
        version = int(state["format"])
        sizes = {name: size for name, (size, _) in state["files"].items()} if version <= FORMAT else {}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{checkpoint}: not a checkpoint: no state.json in it") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint}: state.json is damaged; {_REMEDY}") from error
    if version > FORMAT:
        raise CheckpointError(
            f"{checkpoint}: format {version}, newer than this program's {FORMAT}; use the version that wrote it"
        )
    for name, size in sizes.items():
        file = checkpoint / name
        found = file.stat().st_size if file.exists() else None
        if found != size:
            has = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise CheckpointError(f"{checkpoint}: {name} {has}; {_REMEDY}")
    return state


def complete(folder: Path) -> list[Path]:
    """The checkpoints under `folder`, oldest first; unfinished ones carry another kind of name."""
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir() and path.name.isdigit())


def best(folder: Path) -> Path | None:
    """The checkpoint with the highest validation reward, the earliest of equals; None if none was validated."""
    rewards = {path: _reward(path) for path in complete(folder)}
    validated = {path: reward for path, reward in rewards.items() if reward is not None}
    return max(validated, key=lambda path: validated[path]) if validated else None


def _reward(checkpoint: Path) -> float | None:
    try:
        return read_state(checkpoint).get("reward")
    except CheckpointError:  # damaged since: no candidate, and no reason to stop the run that is writing the next one
        return None


def prune(folder: Path, keep_last: int) -> None:
    """Remove all but the last `keep_last` checkpoints and the best one. For the first rank."""
    found = complete(folder)
    kept = {*found[-keep_last:], best(folder)}
    for path in found:
        if path not in kept:
            _remove(path)


def fingerprint(policy: nn.Module) -> str:
    """Hash of names, shapes and which parameters are trained; equal for any sharding and precision."""
    named = [(name, list(p.shape), p.requires_grad) for name, p in policy.named_parameters()]
    return hashlib.sha256(json.dumps(sorted(named)).encode()).hexdigest()


def _remove(checkpoint: Path) -> None:
    doomed = checkpoint.with_name(f".{checkpoint.name}.old")  # a kill half-way must not leave half a checkpoint
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def _moments(policy: nn.Module, optimizers: Sequence[Optimizer], stepped: Sequence[bool]) -> dict[str, Any]:
    """By number, of those that have made a step."""
    named = {f"optimizer_{number}": one for number, one in enumerate(optimizers) if stepped[number]}
    return {name: get_optimizer_state_dict(policy, one) for name, one in named.items()}


def _stamp(file: Path) -> list[int]:
    """Size and checksum of a file, which is on the disk afterwards: older checkpoints are removed on its account."""
    size = checksum = 0
    with file.open("rb") as content:
        while part := content.read(1 << 24):
            size, checksum = size + len(part), zlib.crc32(part, checksum)
        os.fsync(content.fileno())
    return [size, checksum]


def _check_content(checkpoint: Path, files: Mapping[str, list[int]], ranks: Ranks) -> None:
    """DCP has no checksums: it would take any bytes for weights. A collective; each rank reads its share of files."""
    differ = [name for name in ranks.mine(sorted(files)) if _stamp(checkpoint / name) != files[name]]
    found = [name for part in ranks.gather(differ) for name in part]
    if found:
        raise CheckpointError(f"{checkpoint}: {found[0]} is damaged; {_REMEDY}")


@contextmanager
def _single_process_is_fine() -> Iterator[None]:
    """DCP warns where there is no process group; one process needs none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _generators() -> dict[str, Any]:
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # type: ignore[misc]
    devices = [_text(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else []
    return {
        "torch": _text(torch.get_rng_state()),
        "cuda": devices,
        "numpy": [kind, [int(key) for key in keys], position, has_gauss, gauss],
        "python": random.getstate(),
    }


def _set_generators(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(_tensor(state["torch"]))
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_tensor(device) for device in state["cuda"]])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def _text(state: torch.Tensor) -> str:
    return base64.b64encode(bytes(state.tolist())).decode()


def _tensor(text: str) -> torch.Tensor:
    return torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8)
