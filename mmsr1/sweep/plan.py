"""What a multirun is to do: every job with its folder, known before the first one starts, and kept in `plan.jsonl`.

    {"folder": "em__seed0", "overrides": ["+arm=reward/em", "seed=0"]}

A command of another part of the same sweep (further seeds, a single arm) adds its jobs; nothing takes a line out.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict

from mmsr1.files import json_line, scan_lines, write_whole

FILE = "plan.jsonl"


@dataclass(frozen=True)
class Planned:
    """One job: its overrides, as on a command line, and its run directory."""

    overrides: tuple[str, ...]
    folder: Path


def planned(folder: Path) -> list[Planned]:
    """Every job that was planned in `folder`, in order. Raises ValueError with a remedy if that cannot be known."""
    try:
        with (folder / FILE).open("rb") as file:
            lines = [line for _, line in scan_lines(file)]
        return [Planned(tuple(map(str, line["overrides"])), folder / str(line["folder"])) for line in lines]
    except FileNotFoundError as error:
        remedy = "name the folder of a sweep; those of hydra/sweeper=tune plan no jobs ahead"
        raise ValueError(f"{folder}: holds no {FILE}; {remedy}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / FILE}: damaged; remove it, and give the commands of the sweep again") from error


def add(folder: Path, jobs: list[Planned]) -> None:
    """Into the plan of the sweep in `folder`. Raises ValueError if that is damaged."""
    known = {job.folder: job for job in (planned(folder) if (folder / FILE).is_file() else [])}
    known |= {job.folder: job for job in jobs}
    lines = [{"folder": str(job.folder.relative_to(folder)), "overrides": job.overrides} for job in known.values()]
    write_whole(folder / FILE, b"".join(map(json_line, lines)))


def foreseen(config: Any, name: str, loader: ConfigLoader) -> list[tuple[Planned, Any]]:
    """The jobs of the multirun that `config` (with Hydra's own) is about to start, each with its configuration, raw.
    `name` is that of the primary configuration. Raises `USER_ERRORS` for one that cannot be composed."""
    settings: Any = OmegaConf.to_container(config.hydra, resolve=False)
    sweep, subdir = Path(config.hydra.sweep.dir).resolve(), settings["sweep"]["subdir"]
    found = []
    for number, job in enumerate(expanded(settings["sweeper"]["params"] or {}, settings["overrides"]["task"], loader)):
        raw: Any = hydra.compose(name, list(job), return_hydra_config=True)
        with open_dict(raw):
            raw.hydra.job.num, raw.hydra.sweep.subdir = number, subdir
            folder = sweep / str(raw.hydra.sweep.subdir)
            del raw["hydra"]
        found.append((Planned(job, folder), raw))
    return found


def expanded(params: Mapping[str, str], task: list[str], loader: ConfigLoader) -> list[tuple[str, ...]]:
    """The overrides of each job: `params` of hydra.sweeper under those of the command line, as Hydra's sweeper has it.

    Raises a HydraException for what that does not sweep over.
    """
    parser = OverridesParser.create(config_loader=loader)
    overrides = parser.parse_overrides([*(f"{key}={value}" for key, value in params.items()), *task])
    return [tuple(job) for job in BasicSweeper.split_arguments(overrides, None)[0]]


def command_of(planned: Planned, program: str = "train.py") -> str:
    """What to type in a shell for this one job: it goes on with what is there, else starts as the sweep would."""
    if (planned.folder / "config.yaml").is_file():
        return shlex.join(["python", program, f"resume={planned.folder}"])
    return shlex.join(["python", program, *planned.overrides, run_dir(planned.folder)])


def run_dir(folder: Path) -> str:
    """The override that makes it a run's folder."""
    plain = re.fullmatch(r"[\w./-]+", str(folder), re.ASCII)
    return f"hydra.run.dir={folder}" if plain else f'hydra.run.dir="{folder}"'
