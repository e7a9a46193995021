"""What a study left on disk: its arms, the runs of each that count, and the gaps.

A run counts if it finished and every file that the report reads of it is whole; any other is a gap with a reason, and
is in no figure: half a run would be compared with whole ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import yaml
from omegaconf.errors import OmegaConfBaseException

from mmsr1.assembly.collected import configuration
from mmsr1.evaluation.compare import read_run
from mmsr1.evaluation.lines import BRANCHES_FILE
from mmsr1.evaluation.outcome import Outcome
from mmsr1.files import is_locked, scan_lines
from mmsr1.report.text import one_line
from mmsr1.run_directory import FIRST, RunDirectory

_NAMED = re.compile(r"(.+)__seed(\d+)")
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError)
_DAMAGE += (OmegaConfBaseException, ArithmeticError)
NEEDED = ("accuracy", "reward", "search_ratio", "calls_per_question")
_LONGEST = 200  # characters of a reason


@dataclass(frozen=True)
class Gap:
    """A job whose run does not count. `status` is missing, failed, interrupted, ended without a word, running,
    or damaged; `reason` one line, empty where the status says all."""

    arm: str
    seed: int | None
    folder: Path
    status: str
    reason: str


@dataclass(frozen=True)
class StudyRun:
    """A run that counts. `first` is the summary of the run before it, empty without one; `final` are the figures of its
    last validation, with `_ci95`; `outcomes` its episodes, and
    `branches` its lines of forced ways, as far as it has any."""

    folder: Path
    arm: str
    seed: int | None
    config: Mapping[str, Any]
    run: Mapping[str, Any]
    summary: Mapping[str, Any]
    first: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]] = field(repr=False)
    outcomes: Sequence[Outcome] = field(repr=False)
    branches: Sequence[Mapping[str, Any]] = field(repr=False)

    @property
    def processes(self) -> int:
        return int(self.config.get("trainer.devices", 1)) * int(self.config.get("trainer.num_nodes", 1))

    @property
    def final(self) -> Mapping[str, Any]:
        return self.summary["final"]


@dataclass(frozen=True)
class Arm:
    """`jobs` is how many seeds there should be."""

    name: str
    runs: tuple[StudyRun, ...]
    jobs: int


@dataclass(frozen=True)
class Study:
    """`planned`: whether it is known what the study was to do; else only runs that began can be gaps. `beside` are runs
    that the plan does not have, of an earlier one: they count as well."""

    name: str
    folder: Path
    runs: tuple[StudyRun, ...]
    gaps: tuple[Gap, ...]
    order: tuple[str, ...]
    planned: bool
    beside: int

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """Those with a run that counts, in the order planned."""
        some = (Arm(name, self.of(name), len(self.of(name)) + self._lacking(name)) for name in self.order)
        return tuple(arm for arm in some if arm.runs)

    def of(self, arm: str) -> tuple[StudyRun, ...]:
        return tuple(run for run in self.runs if run.arm == arm)

    def _lacking(self, arm: str) -> int:
        return sum(gap.arm == arm for gap in self.gaps)


def read_study(folder: Path, planned: Sequence[Path] | None) -> Study:
    """`planned` are the run directories of its jobs in order, None if nobody knows; runs beside them count too.

    Raises FileNotFoundError if there is no such folder, or neither a run nor a plan in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give that of a study, like outputs/search_penalty")
    listed = {path.resolve() for path in planned or ()}
    begun = [path.parent for path in folder.glob("*/run.json")]
    jobs = {path.resolve(): path for path in planned or ()}
    jobs |= {path.resolve(): path for path in sorted(begun, key=_natural) if path.resolve() not in jobs}
    if not jobs:
        raise FileNotFoundError(f"{folder}: no run in it; give the folder of a study, like outputs/search_penalty")
    found = [_read(path) for path in jobs.values()]
    runs = tuple(one for one in found if isinstance(one, StudyRun))
    return Study(
        name=next((str(run.config["study"]) for run in runs if run.config.get("study")), folder.resolve().name),
        folder=folder,
        runs=runs,
        gaps=tuple(one for one in found if isinstance(one, Gap)),
        order=tuple(dict.fromkeys(one.arm for one in found)),
        planned=planned is not None,
        beside=len(jobs.keys() - listed) if planned is not None else 0,
    )


def _natural(path: Path) -> list[tuple[int, float, str]]:
    """So that 0.05 comes before 0.1, and seed2 before seed10."""
    parts = re.findall(r"\d+(?:\.\d+)?|\D+", path.name)
    return [(0, float(part), "") if part[0].isdigit() else (1, 0.0, part) for part in parts]


def _read(folder: Path) -> StudyRun | Gap:
    named = _NAMED.fullmatch(folder.name)
    arm, seed = (named[1], int(named[2])) if named else (folder.name, None)
    try:
        run = _json(folder, "run.json")
        if not run:
            return Gap(arm, seed, folder, "missing", "")
        if run["status"] != "finished":
            return Gap(arm, seed, folder, *_unfinished(folder, run))
        return _whole(folder, named[1] if named else None, seed, run)
    except _DAMAGE as error:
        what = error if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
        return Gap(arm, seed, folder, "damaged", _line(what))


def _unfinished(folder: Path, run: Mapping[str, Any]) -> tuple[str, str]:
    if run["status"] == "running":
        at_work = is_locked(folder / ".lock")
        return ("running", "a process is at work there") if at_work else ("ended without a word", "")
    return str(run["status"]), _line(run.get("error") or run.get("reason") or "")


def _line(said: object) -> str:
    """The first line, in characters that people can see."""
    first = next((line for line in str(said).splitlines() if line.strip()), "")
    shown = one_line(first)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 3]}..."


def _json(folder: Path, name: str) -> dict[str, Any]:
    """Empty without the file. Raises ValueError, naming it, for one that is damaged."""
    file = folder / name
    try:
        content = json.loads(file.read_bytes()) if file.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name}: holds no mapping")
    return content


def _whole(folder: Path, arm: str | None, seed: int | None, run: Mapping[str, Any]) -> StudyRun:
    """`arm` as its folder says, which in a study may name more that was swept than the configuration's own name does;
    None if it says none. Raises one of `_DAMAGE` that says which file is damaged, and how."""
    directory = RunDirectory(folder)
    config = configuration(folder)
    if not config.get("name"):
        raise ValueError("config.yaml: no name, which is the arm")
    summary = _json(folder, "summary.json")
    final = summary.get("final") or {}
    lacking = [key for key in NEEDED if not isinstance(final.get(key), int | float) or not isfinite(final[key])]
    if lacking:
        raise ValueError(f"summary.json: no {', '.join(lacking)} in its final figures")
    outcomes: Sequence[Outcome] = ()
    if directory.episode_steps("val"):
        asked = read_run(folder)
        if asked.bad:
            raise ValueError(f"episodes of its last validation: {asked.bad} lines could not be read")
        outcomes = asked.outcomes
    metrics, branches = (_rows(folder / name) for name in ("metrics.jsonl", BRANCHES_FILE))
    if not all(isinstance(row.get("step"), int) and isinstance(row.get("split"), str) for row in metrics):
        raise ValueError("metrics.jsonl: a line without its step and split")
    if any(not isinstance(value, int | float | str | None) for row in metrics for value in row.values()):
        raise ValueError("metrics.jsonl: a figure that is no number")
    if not isinstance(run.get("git_commits", []), list):
        raise ValueError("run.json: git_commits is no list")
    if arm is None or not config.get("study"):  # another sweep numbers its folders
        arm = str(config["name"])
    about = config.get("seed", seed)
    first = _json(folder / FIRST, "summary.json")
    return StudyRun(folder, arm, about, config, run, summary, first, metrics, outcomes, branches)


def _rows(file: Path) -> list[dict[str, Any]]:
    """Raises ValueError for a damaged line; what follows the last newline was cut off by a kill and does not count."""
    if not file.is_file():
        return []
    with file.open("rb") as stream:
        rows = [row for _, row in scan_lines(stream)]
    if damaged := sum(not isinstance(row, dict) for row in rows):
        raise ValueError(f"{file.name}: {damaged} of {len(rows)} lines could not be read")
    return rows
