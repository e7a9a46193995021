"""Weights & Biases beside the run directory, with the same keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmsr1.config import Config
from mmsr1.run_directory import FIRST, RunDirectory
from mmsr1.torchvision_shim import ensure_torchvision


def wandb_logger(config: Config, run: Path) -> Any | None:
    """Lightning's logger of the run in this folder, None where none is asked for. Runs of a study are grouped by it,
    and its arms are their job types."""
    if not config.logger.project:
        return None
    ensure_torchvision()
    from lightning.pytorch.loggers import WandbLogger

    # A resumed run goes on under its own. Folders of a study have the same names wherever it is run.
    started = RunDirectory(run).read_run().get("started", "") if config.study else ""
    before = run.name == FIRST  # of the arm whose folder it lies in
    place, kind = (f"{run.parent.name}-{FIRST}", f"{config.name}-{FIRST}") if before else (run.name, config.name)
    return WandbLogger(
        project=config.logger.project,
        name=f"{kind}-{config.seed}",
        version=re.sub(r"[^\w-]", "-", "-".join(filter(None, (config.name, place, started)))),
        save_dir=run,
        offline=config.logger.mode == "offline",
        group=config.study,
        job_type=kind if config.study else None,
    )


def numbers(figures: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Those figures that are numbers, under `prefix/`: intervals and texts are in summary.json."""
    plain = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    return {f"{prefix}/{name}": value for name, value in plain.items()}
