"""What the draws of tool latencies allow: plain arithmetic over seconds of the calls of each episode."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

# Seconds of each search call of each episode, in order. An episode of n calls has n + 1 turns.
Calls = tuple[tuple[float, ...], ...]


def draw(episodes: int, fewest: int, most: int, seed: int, sigma: float = 1.0) -> Calls:
    """Log-normal latencies of median 1, from `fewest` to `most` calls an episode."""
    dice = random.Random(seed)
    return tuple(
        tuple(dice.lognormvariate(0.0, sigma) for _ in range(dice.randint(fewest, most))) for _ in range(episodes)
    )


def scaled(calls: Calls, median: float) -> Calls:
    return tuple(tuple(median * seconds for seconds in one) for one in calls)


def total(calls: Calls) -> float:
    """All calls one after another."""
    return sum(map(sum, calls))


def critical_path(calls: Calls, alone: Mapping[int, float]) -> float:
    """Seconds of the slowest episode if it never waits for another: its calls, and `alone[n]`, what generating takes an
    episode of n calls that has the engine for itself."""
    return max(sum(one) + alone[len(one)] for one in calls)


def waves(calls: Calls) -> float:
    """All episodes turn by turn: each wave waits for its slowest call."""
    depth = max(map(len, calls))
    return sum(max(one[wave] for one in calls if len(one) > wave) for wave in range(depth))


def counts(calls: Calls) -> Sequence[int]:
    """The different numbers of calls, fewest first."""
    return sorted({len(one) for one in calls})
