"""What a multirun was to do, read from the `multirun.yaml` that Hydra's own sweeper leaves in its folder."""

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
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict
from yaml import YAMLError

from mmsr1.cli import CONF, USER_ERRORS, explain
from mmsr1.config import edit, evaluate, register

FILE = "multirun.yaml"


@dataclass(frozen=True)
class Planned:
    """One job: its overrides, as on a command line, and its run directory."""

    overrides: tuple[str, ...]
    folder: Path


def planned(folder: Path) -> list[Planned]:
    """Every job of the multirun in `folder`, in order. Composes each for the name of its folder; needs no torch.

    Raises ValueError with a remedy if that cannot be known.
    """
    try:
        saved: Any = OmegaConf.to_container(OmegaConf.load(folder / FILE), resolve=False)
        settings = saved["hydra"]
        params, task = settings["sweeper"]["params"] or {}, settings["overrides"]["task"]
        name, subdir = settings["job"]["config_name"], settings["sweep"]["subdir"]
    except FileNotFoundError as error:
        remedy = "name the folder of a sweep; those of hydra/sweeper=tune plan no jobs ahead"
        raise ValueError(f"{folder}: holds no {FILE}; {remedy}") from error
    except (YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / FILE}: damaged; the command of the sweep, given again, writes it anew") from error
    for schema in (evaluate, edit):
        schema.register()
    register()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            jobs = expanded(params, task, GlobalHydra.instance().config_loader())
            return [Planned(job, folder / _subdir(name, job, subdir, i)) for i, job in enumerate(jobs)]
    except USER_ERRORS as error:
        raise ValueError(f"{folder / FILE}: is no sweep of this program any more: {explain(error)}") from error


def expanded(params: Mapping[str, str], task: list[str], loader: ConfigLoader) -> list[tuple[str, ...]]:
    """The overrides of each job: `params` of hydra.sweeper under those of the command line, as Hydra's sweeper has it.

    Raises a HydraException for what that does not sweep over.
    """
    parser = OverridesParser.create(config_loader=loader)
    overrides = parser.parse_overrides([*(f"{key}={value}" for key, value in params.items()), *task])
    return [tuple(job) for job in BasicSweeper.split_arguments(overrides, None)[0]]


def _subdir(name: str, job: tuple[str, ...], subdir: str, number: int) -> str:
    config = hydra.compose(name, list(job), return_hydra_config=True)
    with open_dict(config):
        config.hydra.job.num = number
        config.hydra.sweep.subdir = subdir
    return str(config.hydra.sweep.subdir)


def command_of(planned: Planned, program: str = "train.py") -> str:
    """What to type in a shell for this one job: it goes on with what is there, else starts as the sweep would."""
    if (planned.folder / "config.yaml").is_file():
        return shlex.join(["python", program, f"resume={planned.folder}"])
    return shlex.join(["python", program, *planned.overrides, run_dir(planned.folder)])


def run_dir(folder: Path) -> str:
    """The override that makes it a run's folder."""
    plain = re.fullmatch(r"[\w./-]+", str(folder), re.ASCII)
    return f"hydra.run.dir={folder}" if plain else f'hydra.run.dir="{folder}"'
