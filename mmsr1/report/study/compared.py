"""The arms in figures: means over seeds with their intervals, paired tests, what differs in configuration, and cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmsr1.assembly.settings import decides_nothing
from mmsr1.evaluation.paired import compare
from mmsr1.evaluation.seeds import seed_interval
from mmsr1.evaluation.statistics import holm
from mmsr1.report.study.runs import Arm, Study, StudyRun

# Of the paired comparison: its name there, and the key of the same figure in summary.json.
TESTED = (
    ("reward", "reward"),
    ("accuracy", "accuracy"),
    ("search ratio", "search_ratio"),
    ("calls", "calls_per_question"),
)
_SCALES = {"reward": (-math.inf, math.inf), "calls_per_question": (0.0, math.inf)}
UNBOUNDED = tuple(_SCALES)  # all other figures are shares
# What decides no figure, or is told otherwise.
_ASIDE = ("name", "study", "seed", "resume", "logger", "data.root", "data.cache_dir", "tools.cache_dir")
_ASIDE += ("tools.budget", "rollout.vllm", "rollout.server", "trainer.checkpoint_every", "trainer.keep_last")


@dataclass(frozen=True)
class Estimate:
    """The mean of an arm over its seeds. `interval` is over seeds, or with a single one (`over_seeds` False) the run's
    own, clustered by image, as far as it has one."""

    value: float
    interval: tuple[float, float] | None
    over_seeds: bool
    values: tuple[float, ...]


@dataclass(frozen=True)
class Test:
    """One figure of an arm less that of the reference. `p` is of sign flips over the questions of the `seeds` that both
    have, `interval` of the difference over these seeds, None with fewer than two."""

    arm: str
    figure: str
    difference: float
    interval: tuple[float, float] | None
    p: float
    p_holm: float
    seeds: int
    questions: int


def estimate(arm: Arm, key: str) -> Estimate | None:
    """None if a run of the arm lacks the figure: a mean over the other seeds would be another one."""
    found = [_number(run.final.get(key)) for run in arm.runs]
    values = tuple(value for value in found if value is not None)
    if len(values) < len(found):
        return None
    mean = math.fsum(values) / len(values)
    if len(values) > 1:
        low, high = seed_interval(values)
        least, most = _SCALES.get(key, (0.0, 1.0))
        return Estimate(mean, (max(least, low), min(most, high)), True, values)
    given = arm.runs[0].final.get(f"{key}_ci95")
    ends = [_number(end) for end in given] if isinstance(given, list) and len(given) == 2 else [None, None]
    low, high = ends
    return Estimate(mean, None if low is None or high is None else (low, high), False, values)


def _number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def reference_of(study: Study, name: str | None) -> Arm | None:
    """The arm that others are held against: the one named, or the first. None without any run that counts. Raises
    ValueError for a name that no such arm has."""
    arms = {arm.name: arm for arm in study.arms}
    if name is not None and name not in arms:
        known = ", ".join(arms) or "none"
        raise ValueError(f"--reference={name}: no arm of that name has a run that counts; there are {known}")
    return next(iter(arms.values()), None) if name is None else arms[name]


def tests(study: Study, reference: Arm, seed: int = 0) -> tuple[list[Test], list[str]]:
    """Every other arm against the reference, Holm over all, and what could not be compared or was left out."""
    found: list[Test] = []
    remarks: dict[str, None] = {}
    for arm in study.arms:
        if without := [run.folder.name for run in arm.runs if not run.outcomes]:
            remarks[f"{', '.join(without)}: no episodes of a validation; in no test"] = None
    for arm in study.arms:
        if arm.name == reference.name:
            continue
        pairs = [(a, b) for a in reference.runs for b in arm.runs if a.seed == b.seed and a.outcomes and b.outcomes]
        if not pairs:
            remarks[f"{arm.name}: no seed with validation episodes in common with {reference.name}: not compared"] = (
                None
            )
            continue
        before, after = ([one for pair in pairs for one in pair[side].outcomes] for side in (0, 1))
        try:
            told = compare(before, after, seed=seed)
        except ValueError as error:
            remarks[f"{arm.name}: {error}"] = None
            continue
        remarks |= dict.fromkeys(told.remarks(reference.name, arm.name))
        rows = {row.name: row for row in told.differences}
        for name, key in TESTED:
            row = rows[name]
            found.append(
                Test(arm.name, name, row.difference, _apart(pairs, key), row.p, row.p, len(pairs), row.questions)
            )
    adjusted = holm([one.p for one in found])
    return [replace(one, p_holm=p) for one, p in zip(found, adjusted, strict=True)], list(remarks)


def _apart(pairs: Sequence[tuple[StudyRun, StudyRun]], key: str) -> tuple[float, float] | None:
    low, high = seed_interval([float(b.final[key]) - float(a.final[key]) for a, b in pairs])
    return None if math.isnan(low) else (low, high)


def differing(study: Study) -> list[tuple[str, tuple[str, ...]]]:
    """Keys of the configuration that differ between arms, with the value of each arm; several values where the seeds of
    one arm differ, which says that it is not one configuration."""
    kept = [
        [
            {key: _said(value, run.seed) for key, value in run.config.items() if not decides_nothing(key, _ASIDE)}
            for run in arm.runs
        ]
        for arm in study.arms
    ]
    found = []
    for key in sorted({key for runs in kept for values in runs for key in values}):
        row = tuple(" / ".join(dict.fromkeys(values.get(key, "-") for values in runs)) for runs in kept)
        if len(set(row)) > 1 or " / " in row[0]:
            found.append((key, row))
    return found


def mixed(study: Study) -> list[str]:
    """Arms whose runs are not of one configuration: their mean is over different things."""
    rows = differing(study)
    return [
        f"{arm.name}: its runs differ in {key} ({row[place]}), and are averaged all the same"
        for place, arm in enumerate(study.arms)
        for key, row in rows
        if " / " in row[place]
    ]


def alike(study: Study) -> list[str]:
    """Arms of one configuration: they are one measurement, under two names."""
    columns = list(zip(*(row for _, row in differing(study)), strict=True)) or [()] * len(study.arms)
    same: dict[tuple[str, ...], list[str]] = {}
    for arm, column in zip(study.arms, columns, strict=True):
        same.setdefault(column, []).append(arm.name)
    return [
        f"{', '.join(names)}: nothing that decides a figure differs in their configuration; there is nothing to compare"
        for names in same.values()
        if len(names) > 1
    ]


def _said(value: Any, seed: int | None) -> str:
    """As YAML has it; of a path that goes with the seed, what the seeds share."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return str(value).replace(f"seed{seed}", "seed*")


def spent(arm: Arm) -> Mapping[str, float | None]:
    """Sums over its runs and what came before them; None where one does not know."""
    columns = {
        "cost_usd": [_with_first(run, "cost_usd") for run in arm.runs],
        "cost_usd_uncached": [_with_first(run, "cost_usd_uncached") for run in arm.runs],
        # A single process has the run before it within its own time.
        "wall_seconds": [
            _with_first(run, "wall_seconds") if run.processes > 1 else _number(run.run.get("wall_seconds"))
            for run in arm.runs
        ],
    }
    known = {name: [number for number in column if number is not None] for name, column in columns.items()}
    return {name: math.fsum(some) if len(some) == len(arm.runs) else None for name, some in known.items()}


def _with_first(run: StudyRun, key: str) -> float | None:
    own = _number((run.run if key == "wall_seconds" else run.summary).get(key))
    before = _number(run.first.get(key)) if run.first else 0.0
    return None if own is None or before is None else own + before


def commits(study: Study) -> dict[str, int]:
    """How many runs were made at each commit."""
    found: dict[str, int] = {}
    for run in study.runs:
        made = commit_of(run)
        found[made] = found.get(made, 0) + 1
    return found


def commit_of(run: StudyRun) -> str:
    """That of each process that made it."""
    made = run.run.get("git_commits") or [run.run.get("git_commit") or "not known"]
    return ", then ".join(map(str, made))
