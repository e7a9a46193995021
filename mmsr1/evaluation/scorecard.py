"""What a set of judged episodes says about searching on demand: the figures of training, validation and evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsr1.evaluation.outcome import Outcome
from mmsr1.evaluation.statistics import clustered_interval, mean_interval, pass_at_k

# The share of each cell of the paper's behaviour breakdown (its Fig. 4b), by (right, searched).
BEHAVIOURS = {
    (True, True): "right_searched",
    (True, False): "right_direct",
    (False, True): "wrong_searched",
    (False, False): "wrong_direct",
}
_OWN = ("accuracy", "format", "searches", "penalty", "charged")  # scores that are figures already, or restate the calls


def figures(outcomes: Sequence[Outcome], calls_allowed: int) -> dict[str, float]:
    """Means over the episodes that say something about the policy; where none does there are no means.

    `calls_allowed` is the number of calls an episode may make (the paper's SR divides by it). `_free` and `_required`
    figures appear where such questions are among them. `tool_failure_rate` is the share of failures among the calls
    that reached a tool, lost episodes included; `failed_share` that of the lost episodes.
    """
    kept = counted(outcomes)
    columns = _columns(kept, calls_allowed) if kept else {}
    found = {name: float(np.nanmean(values)) for name, values in columns.items() if not np.isnan(values).all()}
    made, failed = sum(one.calls for one in outcomes), sum(one.failed_calls for one in outcomes)
    lost = sum(one.lost for one in outcomes) / max(1, len(outcomes))
    return {**found, "tool_failure_rate": failed / max(1, made), "failed_share": lost}


def figures_with_intervals(outcomes: Sequence[Outcome], calls_allowed: int) -> dict[str, Any]:
    """`figures`, each mean with `<name>_ci95`: [low, high], clustered by image (or place, if the source names one):
    questions about the same thing are not independent."""
    kept = counted(outcomes)
    columns, clusters = _columns(kept, calls_allowed) if kept else {}, [one.cluster for one in kept]
    found: dict[str, Any] = {}
    for name, value in figures(outcomes, calls_allowed).items():
        found[name] = value
        if name in columns:
            found[f"{name}_ci95"] = list(clustered_interval(columns[name], clusters))
    return found


def scorecard(outcomes: Sequence[Outcome], calls_allowed: int) -> dict[str, Any]:
    """`figures_with_intervals`, and what only an evaluation looks at: how the calls spread over the tools, further
    scores, pass@k of questions that were drawn k times, cost, tokens and seconds a question, with the median and the
    95th percentile of the latter. `questions` are those with an episode that counts, `episodes` all."""
    kept = counted(outcomes)
    clusters = [one.cluster for one in kept]
    found: dict[str, Any] = {"questions": len({one.id for one in kept}), "episodes": len(outcomes)}
    found |= figures_with_intervals(outcomes, calls_allowed)
    if not kept:
        return found
    for name, values in _further(kept).items():
        found[name] = float(np.nanmean(values))
        interval = mean_interval if name.endswith("_per_question") else clustered_interval
        found[f"{name}_ci95"] = list(interval(values, clusters))
    found |= _drawn_again(kept)
    seconds = [one.seconds for one in kept]
    found["seconds_median"], found["seconds_p95"] = (float(np.quantile(seconds, q)) for q in (0.5, 0.95))
    return found


def _drawn_again(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """pass@k where questions were drawn k times, k being above 1; those that lost a draw are left out."""
    by_id: dict[str, list[Outcome]] = {}
    for one in outcomes:
        by_id.setdefault(one.id, []).append(one)
    k = max(len(drawn) for drawn in by_id.values())
    if k < 2:
        return {}
    whole = [drawn for drawn in by_id.values() if len(drawn) == k]
    passed = [pass_at_k(sum(one.accuracy >= 0.5 for one in drawn), k, k) for drawn in whole]
    interval = clustered_interval(np.array(passed), [drawn[0].cluster for drawn in whole])
    return {f"pass_at_{k}": float(np.mean(passed)), f"pass_at_{k}_ci95": list(interval)}


def counted(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those that say something about the policy."""
    return [one for one in outcomes if not one.lost]


def _columns(outcomes: Sequence[Outcome], calls_allowed: int) -> Mapping[str, NDArray[np.float64]]:
    """One value per episode and figure; NaN where the figure does not apply to it."""
    calls = np.array([one.calls for one in outcomes], dtype=np.float64)
    accuracy = np.array([one.accuracy for one in outcomes], dtype=np.float64)
    searched = (calls > 0).astype(np.float64)
    free = np.array([one.is_free is True for one in outcomes])
    required = np.array([one.is_free is False for one in outcomes])
    behaviours = {
        name: ((accuracy >= 0.5) == right) & ((searched > 0) == whether)
        for (right, whether), name in BEHAVIOURS.items()
    }
    return {
        "accuracy": accuracy,
        "reward": np.array([one.reward for one in outcomes], dtype=np.float64),
        "format": np.array([one.scores["format"] for one in outcomes], dtype=np.float64),
        "search_ratio": searched,
        "calls_per_question": calls,
        "calls_per_allowed": calls / max(1, calls_allowed),
        "accuracy_free": np.where(free, accuracy, np.nan),
        "search_ratio_free": np.where(free, searched, np.nan),
        "accuracy_required": np.where(required, accuracy, np.nan),
        "search_ratio_required": np.where(required, searched, np.nan),
        **{name: values.astype(np.float64) for name, values in behaviours.items()},
    }


def _further(outcomes: Sequence[Outcome]) -> Mapping[str, NDArray[np.float64]]:
    image = np.array([one.image_calls > 0 for one in outcomes])
    text = np.array([one.text_calls > 0 for one in outcomes])
    names = sorted({name for one in outcomes for name in one.scores} - set(_OWN))
    scores = {name: np.array([one.scores.get(name, np.nan) for one in outcomes], dtype=np.float64) for name in names}
    return {
        "image_only": (image & ~text).astype(np.float64),
        "text_only": (text & ~image).astype(np.float64),
        "mixed": (image & text).astype(np.float64),
        **{f"score_{name}": values for name, values in scores.items()},
        "cost_usd_per_question": np.array([one.cost_usd for one in outcomes], dtype=np.float64),
        "tokens_per_question": np.array([one.tokens for one in outcomes], dtype=np.float64),
        "seconds_per_question": np.array([one.seconds for one in outcomes], dtype=np.float64),
    }
