"""Faults on purpose: a bad day of the web around any search tool, and the same day in every run of a seed.

    Rehearsed( Guarded( Faulty( the whole tool ) ) )

What goes wrong is a function of the seed, the tool, the query, how often that was asked before, and the number of the
attempt, never of time: so a run with faults repeats wherever one without does. The tool itself answers from below, out
of its cache where it can, so a rehearsal pays nothing twice. Retries and circuit breaker are those that real back ends
get.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from mmsr1.tools.base import Answer, AroundTool, Backend, CallFailed, Part, Tool
from mmsr1.tools.pictures import BadPicture, decode
from mmsr1.types import Picture, ToolItem, ToolResult

QueryT = TypeVar("QueryT", str, Picture)

KINDS = ("timeout", "lost", "unavailable", "throttled", "garbage", "truncated")
_LATE = ("garbage", "truncated")  # an answer comes, but it is spoilt
_SPREAD = 0.8  # sigma of the log-normal latencies: one in a hundred is more than six times the median
_SLOWEST = 10  # times the median


@dataclass(frozen=True)
class FaultSpec:
    """`share` of the attempts fail, all of them with `outage`. Every attempt takes `latency_s` (median) first, one that
    times out `timeout_s` more; a throttled one asks to wait as long."""

    share: float = 0.0
    outage: bool = False
    latency_s: float = 0.0
    timeout_s: float = 1.0

    @property
    def any(self) -> bool:
        return bool(self.share or self.outage or self.latency_s)


@dataclass
class Asked(Generic[QueryT]):
    """One call under way: what is asked, for the how-many-th time, and how many attempts there were."""

    query: QueryT
    before: int = 0
    attempts: int = 0


class Faulty(Generic[QueryT]):
    """`Backend[Asked, ToolResult]`: the tool's answer, or what the schedule has instead.

    Results of the tool itself, failures included, come through as they are, unless one cannot be what a tool may
    return: then it is `broken`.
    """

    price_usd = 0.0  # the tool pays for itself, inside

    def __init__(self, tool: Tool[QueryT], spec: FaultSpec, seed: int) -> None:
        self.name = rehearsal_of(tool.name)
        self.backend = tool.backend
        self._tool, self._spec, self._seed = tool, spec, seed

    async def ask(self, query: Asked[QueryT]) -> Answer[ToolResult]:
        asked = query.query
        draw = random.Random(f"{self._seed}:{self._tool.name}:{query.before}:{query.attempts}:{_name(asked)}")
        query.attempts += 1
        spec, fails, kind = self._spec, draw.random() < self._spec.share, draw.choice(KINDS)
        if spec.latency_s:
            await asyncio.sleep(spec.latency_s * min(_SLOWEST, math.exp(_SPREAD * draw.gauss(0.0, 1.0))))
        if spec.outage:
            raise CallFailed("transient", "rehearsed outage")
        if fails and kind not in _LATE:
            await self._fail(kind)
        answer: Any = await self._tool(asked)
        if fails:
            answer = _spoilt(answer, kind)
        return Answer(await asyncio.to_thread(checked, answer))

    async def _fail(self, kind: str) -> None:
        if kind == "throttled":
            raise CallFailed("throttled", "rehearsed 429", retry_after_s=self._spec.timeout_s)
        if kind == "timeout":
            await asyncio.sleep(self._spec.timeout_s)
        raise CallFailed("transient", f"rehearsed fault: {kind}")


def rehearsal_of(tool: str) -> str:
    """The name under which attempts at a tool are counted while it is rehearsed."""
    return f"{tool}_rehearsal"


class Rehearsed(AroundTool, Generic[QueryT]):
    """`Tool` around a guarded `Faulty` of `tool`; `guard` puts retries and circuit breaker around the latter."""

    def __init__(
        self,
        tool: Tool[QueryT],
        spec: FaultSpec,
        seed: int,
        guard: Callable[[Backend[Asked[QueryT], ToolResult]], Part[Asked[QueryT], ToolResult]],
    ) -> None:
        self._tool, self._ask = tool, guard(Faulty(tool, spec, seed))
        self._asked: Counter[str] = Counter()

    async def __call__(self, query: QueryT) -> ToolResult:
        start = time.perf_counter()
        name = _name(query)
        self._asked[name] += 1
        outcome = await self._ask(Asked(query, self._asked[name] - 1))
        result = outcome.value or ToolResult(outcome.status, detail=outcome.detail)
        return replace(result, latency_s=time.perf_counter() - start)


def _name(query: str | Picture) -> str:
    return query.digest if isinstance(query, Picture) else query


def checked(answer: object) -> ToolResult:
    """The answer, if it is a result that may be shown: of the right types, every thumbnail decodable.

    Raises CallFailed("broken") otherwise. Decodes pictures: call it in a worker thread.
    """
    if not isinstance(answer, ToolResult):
        raise CallFailed("broken", f"an answer of type {type(answer).__name__}")
    for item in answer.items:
        if not isinstance(item, ToolItem) or {type(item.title), type(item.text), type(item.url)} != {str}:
            raise CallFailed("broken", "a result of wrong types")
        if item.thumbnail is not None:
            try:
                decode(item.thumbnail)
            except BadPicture as error:
                raise CallFailed("broken", f"a thumbnail that {error}") from error
    return answer


def _spoilt(result: ToolResult, kind: str) -> object:
    """What a broken line makes of a result: half of every thumbnail, or of the whole thing some text."""
    if kind == "truncated" and any(item.thumbnail for item in result.items):
        return replace(result, items=tuple(_cut(item) for item in result.items))
    return "<html><body>502 Bad Gateway"


def _cut(item: ToolItem) -> ToolItem:
    if item.thumbnail is None:
        return item
    return replace(item, thumbnail=Picture(item.thumbnail.data[: len(item.thumbnail.data) // 2]))
