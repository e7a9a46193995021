"""What a set of scored episodes says about searching on demand: the figures of training, validation and evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsr1.evaluation.statistics import clustered_interval
from mmsr1.types import REACHED_TOOL, Episode, Example, Group, Reward


@dataclass(frozen=True)
class Scored:
    """One judged episode."""

    example: Example
    episode: Episode
    reward: Reward


def scored(groups: Sequence[Group]) -> list[Scored]:
    return [Scored(g.example, e, r) for g in groups for e, r in zip(g.episodes_G, g.rewards_G, strict=True)]


def figures(outcomes: Sequence[Scored], calls_allowed: int) -> dict[str, float]:
    """Means over the episodes. `calls_allowed` is the number of calls an episode may make (the paper's SR divides by
    it). `_free` and `_required` figures appear where such questions are among them; `tool_failure_rate` is the share
    of failures among the calls that reached a tool."""
    columns = _columns(outcomes, calls_allowed)
    found = {name: float(np.nanmean(values)) for name, values in columns.items() if not np.isnan(values).all()}
    made = sum(calls_made(outcome.episode) for outcome in outcomes)
    calls = [exchange for outcome in outcomes for exchange in outcome.episode.calls]
    failed = sum(exchange.result.status == "infrastructure_error" for exchange in calls)
    return {**found, "tool_failure_rate": failed / max(1, made)}


def figures_with_intervals(outcomes: Sequence[Scored], calls_allowed: int, seed: int = 0) -> dict[str, Any]:
    """`figures`, each with `<name>_ci95`: [low, high] of a bootstrap clustered by image (or place, if the source names
    one): questions about the same thing are not independent."""
    columns = _columns(outcomes, calls_allowed)
    clusters = [_cluster(outcome.example) for outcome in outcomes]
    found: dict[str, Any] = {}
    for name, value in figures(outcomes, calls_allowed).items():
        found[name] = value
        if name in columns:
            found[f"{name}_ci95"] = list(clustered_interval(columns[name], clusters, seed))
    return found


def calls_made(episode: Episode) -> int:
    """Searches that reached a tool."""
    return sum(exchange.result.status in REACHED_TOOL for exchange in episode.calls)


def _cluster(example: Example) -> str:
    if example.source.startswith("emblem/") or not example.images:
        return example.source if example.source.startswith("emblem/") else example.id
    return example.images[0].digest


def _columns(outcomes: Sequence[Scored], calls_allowed: int) -> Mapping[str, NDArray[np.float64]]:
    """One value per episode and figure; NaN where the figure does not apply to it."""
    calls = np.array([calls_made(o.episode) for o in outcomes], dtype=np.float64)
    accuracy = np.array([o.reward.parts["accuracy"] for o in outcomes], dtype=np.float64)
    searched = (calls > 0).astype(np.float64)
    free = np.array([o.example.is_free is True for o in outcomes])
    required = np.array([o.example.is_free is False for o in outcomes])
    return {
        "accuracy": accuracy,
        "reward": np.array([o.reward.total for o in outcomes], dtype=np.float64),
        "format": np.array([o.reward.parts["format"] for o in outcomes], dtype=np.float64),
        "search_ratio": searched,
        "calls_per_question": calls,
        "calls_per_allowed": calls / max(1, calls_allowed),
        "accuracy_free": np.where(free, accuracy, np.nan),
        "search_ratio_free": np.where(free, searched, np.nan),
        "accuracy_required": np.where(required, accuracy, np.nan),
        "search_ratio_required": np.where(required, searched, np.nan),
    }
