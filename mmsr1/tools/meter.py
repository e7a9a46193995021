"""Counters of a run and process, by part: what was asked, answered, paid, and how long it took.

All figures of `rows` are sums, so tables of several ranks, or of a run and the one it resumed, are added key by key
(`merge`). Latencies are counts in buckets that grow by a constant factor, from which `quantile` reads p50 or p99 with
an error of at most 10 %.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from mmsr1.types import ToolStatus

Row = Mapping[str, float]

ANSWERS: tuple[ToolStatus, ...] = ("ok", "empty")  # "nothing found" is an answer too
FACTOR = 2**0.25  # between the bounds of a bucket of latencies
SHORTEST_S = 1e-6  # upper bound of bucket 0
BUCKETS = 140  # the last one holds whatever takes longer than ten hours


@dataclass
class PartCounters:
    """What happened to the calls of one part or tool since it was made.

    `hits` were answered without a back-end call of their own: from disk, or by joining the same call under way.
    `attempts` and `retries` are those of the guard around a back end. `failures` counts calls by status (other than ok
    and empty) and attempts by the cause of `CallFailed`. `corrupt_entries` of the cache were refused and replaced;
    `unwritten` results could not be written and will be paid for again.
    """

    calls: int = 0
    hits: int = 0
    backend_calls: int = 0
    attempts: int = 0
    retries: int = 0
    corrupt_entries: int = 0
    unwritten: int = 0
    cost_usd: float = 0.0
    paid_usd: float = 0.0
    latency_s: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)
    latencies: Counter[int] = field(default_factory=Counter)
    failed: int = 0

    def record(self, status: ToolStatus, cached: bool, cost_usd: float, paid_usd: float, seconds: float) -> None:
        """Count a call that has ended."""
        self.calls += 1
        if status in ANSWERS:
            self.hits += cached
        else:
            self.failed += 1
            self.failures[status] += 1
        self.cost_usd += cost_usd
        self.paid_usd += paid_usd
        self.latency_s += seconds
        self.latencies[bucket(seconds)] += 1

    def row(self) -> dict[str, float]:
        """All figures by name: `failures` are calls, `failures/<status or cause>` kinds, `latency/<n>` buckets."""
        figures = {name: getattr(self, name) for name in _SUMS}
        kinds = {f"failures/{kind}": count for kind, count in self.failures.copy().items()}
        buckets = {f"latency/{number}": count for number, count in self.latencies.copy().items()}
        return {**figures, "failures": self.failed, **kinds, **buckets}


_SUMS = (
    "calls",
    "hits",
    "backend_calls",
    "attempts",
    "retries",
    "corrupt_entries",
    "unwritten",
    "cost_usd",
    "paid_usd",
    "latency_s",
)


class Meter:
    """The counters of all parts of one process."""

    def __init__(self) -> None:
        self._parts: dict[str, PartCounters] = {}

    def part(self, name: str) -> PartCounters:
        """The counters under a name, the same ones at each call."""
        return self._parts.setdefault(name, PartCounters())

    def rows(self) -> dict[str, dict[str, float]]:
        """The figures so far by part; readable from any thread."""
        return {name: counters.row() for name, counters in self._parts.copy().items()}


def bucket(seconds: float) -> int:
    """The bucket that a latency falls into."""
    if not seconds > SHORTEST_S:
        return 0
    return math.ceil(min(BUCKETS - 1, math.log(seconds / SHORTEST_S, FACTOR)))


def merge(*tables: Mapping[str, Row]) -> dict[str, dict[str, float]]:
    """The sum of several tables of `Meter.rows`; a part or figure that one lacks counts as nothing."""
    total: dict[str, dict[str, float]] = {}
    for table in tables:
        for name, row in table.items():
            into = total.setdefault(name, {})
            for figure, value in row.items():
                into[figure] = into.get(figure, 0) + value
    return total


def quantile(row: Row, q: float) -> float:
    """The latency in seconds that the share `q` of the calls of a row did not exceed; 0.0 if there were none."""
    counts = {int(key.removeprefix("latency/")): count for key, count in row.items() if key.startswith("latency/")}
    wanted = q * sum(counts.values())
    seen = 0.0
    for number in sorted(counts):
        seen += counts[number]
        if seen >= wanted:
            return SHORTEST_S * FACTOR ** (number - 0.5) if number else SHORTEST_S
    return 0.0


def mean(row: Row) -> float:
    """Mean latency of the calls of a row in seconds."""
    calls = row.get("calls", 0)
    return row.get("latency_s", 0.0) / calls if calls else 0.0
