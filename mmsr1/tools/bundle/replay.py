"""A tool that answers from a bundle, and asks nobody."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Generic, Literal, TypeVar

from mmsr1.tools.base import EndOfRun
from mmsr1.tools.bundle.format import Bundle
from mmsr1.tools.bundle.rows import call_key
from mmsr1.tools.bundle.table import Damaged
from mmsr1.tools.codecs import asked
from mmsr1.tools.meter import PartCounters
from mmsr1.types import Picture, ToolName, ToolResult

OnMiss = Literal["fail", "empty"]
MISSED = "not_in_bundle"  # kind of failure under which misses are counted
QUERY_CHARACTERS = 120

QueryT = TypeVar("QueryT", str, Picture)


class Replayed(Generic[QueryT]):
    """`Tool` over an open bundle: what was recorded for a query, with the cost of then and nothing paid.

    A query that is not in the bundle ends the run (`on_miss` fail) or finds nothing (empty), and is counted as
    `not_in_bundle`. With `latency` an answer takes the time that it took when it was recorded.

    Raises EndOfRun at a miss with `on_miss` fail, and for a bundle that is found damaged.
    """

    price_usd: float = 0.0

    def __init__(
        self,
        name: ToolName,
        bundle: Bundle,
        on_miss: OnMiss = "fail",
        latency: bool = False,
        counters: PartCounters | None = None,
    ) -> None:
        self.name: ToolName = name
        self.backend = f"bundle:{bundle.manifest.hash}:on_miss={on_miss}"
        self._bundle, self._on_miss, self._latency = bundle, on_miss, latency
        self._counters = counters or PartCounters()

    async def __call__(self, query: QueryT) -> ToolResult:
        start, wanted = time.perf_counter(), asked(query)
        try:
            row = self._bundle.find(call_key(self.name, wanted))  # tens of microseconds, as a hit of the cache
            result = None if row is None else row.result(self._bundle.picture)
        except Damaged as error:
            raise EndOfRun(f"tools.bundle={self._bundle.folder}: {error}; verify it, and get a sound copy") from error
        if result is None:
            result = self._missed(wanted)
        elif self._latency:
            await asyncio.sleep(result.latency_s)
        seconds = time.perf_counter() - start
        self._counters.record(result.status, result.cached, result.cost_usd, 0.0, seconds)
        return replace(result, latency_s=seconds)

    def _missed(self, wanted: Mapping[str, str]) -> ToolResult:
        if self._on_miss == "fail":
            ((kind, what),) = wanted.items()
            # As JSON: it may be what a web page made a model write.
            said = f"picture {what}" if kind == "image" else json.dumps(what[:QUERY_CHARACTERS])
            raise EndOfRun(
                f"tools.bundle={self._bundle.folder}: it has no {self.name} for {said}; "
                "record that too, or give tools.on_miss=empty"
            )
        self._counters.failures[MISSED] += 1
        return ToolResult("empty", detail="not in the bundle")
