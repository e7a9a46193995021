"""A checkpoint of a run as a plain Hugging Face folder, adapters merged in, for transformers and vLLM.

    python -m mmsr1.models.export RUN_DIR --out DIR [--checkpoint last|best|STEP] [--dtype bfloat16|float16|float32]

The model is built as in the run, from its config.yaml, so `model.path` must still be where it was. A single process
does it in CPU memory, whatever number of processes wrote the checkpoint.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from mmsr1.cli import CommandParser, refuse, resumed
from mmsr1.config import Config, ConfigError
from mmsr1.mistakes import USER_ERRORS, explain

if TYPE_CHECKING:
    from mmsr1.models.loading import PolicyFiles


class ExportError(ValueError):
    """A mistake of the user, in one line."""


def export(run: Path, out: Path, which: str = "last", dtype: str | None = None) -> tuple[Path, str]:
    """Write the folder `out`, whole or not at all; returns (checkpoint, type of the weights).

    `which` is "last", "best" or a step; without `dtype` the run's own `model.export_dtype` counts. Raises ExportError
    or ConfigError, each with one line.
    """
    _check_out(out)
    config = _configuration(run)
    import torch

    from mmsr1.models.loading import save_policy
    from mmsr1.models.lora import whole_weights

    found, files = _trained(config, run, which)
    chosen = dtype or config.model.export_dtype
    target = getattr(torch, chosen)
    weights = {name: tensor.to(target) for name, tensor in whole_weights(files.model)}
    fresh = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        _make(fresh)
        save_policy(fresh, files, weights, target)
        fresh.rename(out)  # also takes the place of an empty folder
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return found, chosen


def _trained(config: Config, run: Path, which: str) -> tuple[Path, PolicyFiles]:
    """(checkpoint, the run's policy with its weights)."""
    from mmsr1.assembly.policy import policy_files
    from mmsr1.models.checkpoint import CheckpointError, read_weights
    from mmsr1.models.policy import Policy

    try:
        found = _checkpoint(run, which)
        files = policy_files(config)
        policy = Policy(files.model)
        if config.model.freeze_vision:  # as in training: a checkpoint is of a model and of what was trained in it
            policy.freeze_vision()
        read_weights(found, policy)
    except CheckpointError as error:
        raise ExportError(str(error)) from error
    return found, files


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ExportError(f"--out {out}: is a file; give a folder")
    if out.is_dir() and any(out.iterdir()):
        raise ExportError(f"--out {out}: is not empty; give a new folder")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ExportError(f"--out: {folder.parent}: {error.strerror}") from error


def _configuration(run: Path) -> Config:
    """The run's own. The files it names need not be there; those of the model are looked at when they are read."""
    file = run / "config.yaml"
    if not file.is_file():
        raise ExportError(f"{run}: no run there; give the run directory, which holds config.yaml")
    try:
        saved: Any = OmegaConf.load(file)
        if not OmegaConf.is_dict(saved) or OmegaConf.select(saved, "algorithm.kind") is None:
            raise ConfigError("algorithm.kind: is missing")
        config: Any = OmegaConf.to_object(resumed(run, []))
    except USER_ERRORS as error:
        raise ExportError(f"{file}: {explain(error)}") from error
    return config


def _checkpoint(run: Path, which: str) -> Path:
    from mmsr1.models.checkpoint import best, complete

    folder = run / "checkpoints"
    found = complete(folder)
    if not found:
        raise ExportError(f"{run}: no complete checkpoint; the first one comes after trainer.checkpoint_every steps")
    if which == "last":
        return found[-1]
    if which == "best":
        chosen = best(folder)
        if chosen is None:
            raise ExportError(f"--checkpoint best: {run} has no validated checkpoint; give last or a step")
        return chosen
    steps = {int(path.name): path for path in found}
    if not which.isdecimal() or int(which) not in steps:
        raise ExportError(f"--checkpoint {which}: give last, best or one of the steps {', '.join(map(str, steps))}")
    return steps[int(which)]


def main(arguments: Sequence[str] | None = None) -> None:
    what = "A checkpoint as a plain Hugging Face folder."
    parser = CommandParser(prog="python -m mmsr1.models.export", description=what)
    parser.add_argument("run_dir", type=Path, help="folder of one run (it holds config.yaml and checkpoints/)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; new or empty")
    parser.add_argument("--checkpoint", default="last", help="last (default), best, or a step")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), help="of the weights (default: the run's export_dtype)"
    )
    given = parser.parse_args(arguments)
    out: Path = given.out.resolve()
    try:
        checkpoint, dtype = export(given.run_dir, out, given.checkpoint, given.dtype)
    except (ExportError, ConfigError) as error:
        refuse(str(error))
    sys.stdout.write(
        f"{out}: step {int(checkpoint.name)} in {dtype}; load it with "
        f'Qwen2_5_VLForConditionalGeneration.from_pretrained("{out}"), vllm serve {out} or model.path={out}\n'
    )


if __name__ == "__main__":
    main()
