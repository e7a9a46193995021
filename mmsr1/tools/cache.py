"""The caching layer around a tool or a part: pay for a call once, in all coroutines, processes and runs.

    call ──> in memory: is the same call under way? ──yes──> wait for it
               │ no
             on disk: answered before? ──yes──> hit
               │ no
             lock of the key, look on disk again, budget, ledger, back end, write, ledger

What lies on disk is described in `codecs`; answers are kept, failures are not.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Generic, TypeVar

from mmsr1.tools.base import AroundPart, AroundTool, Outcome, Part, Tool
from mmsr1.tools.budget import Paid
from mmsr1.tools.codecs import (
    PICTURE,
    TEXT,
    Codec,
    cache_key,
    part_entry,
    part_key,
    part_outcome,
    tool_entry,
    tool_result,
)
from mmsr1.tools.ledger import Ledger, on_record
from mmsr1.tools.locks import only_process
from mmsr1.tools.meter import ANSWERS, Meter, PartCounters
from mmsr1.tools.store import CorruptEntry, Store
from mmsr1.types import Picture, ToolResult

__all__ = ["PICTURE", "TEXT", "CachedPart", "CachedTool", "Codec", "cache_key", "part_key"]

logger = logging.getLogger(__name__)

# Results of a tool that stay in memory, decoded: all rollouts of a group ask the same. At most 128 MiB.
REMEMBERED, REMEMBERED_BYTES = 512, 256 * 2**10

Q = TypeVar("Q")
V = TypeVar("V")
QueryT = TypeVar("QueryT", str, Picture)
R = TypeVar("R", ToolResult, Outcome[Any])


class _Cached(ABC, Generic[Q, R]):
    """Answers a repeated query from `store`.

    One call at a time is made for a query, however many coroutines and processes ask. The call belongs to all who
    wait: when one of them is cancelled it goes on, and its result is kept even if nobody waits any more.
    A hit keeps the `cost_usd` of a fresh call and says `cached=True`, with nothing paid. A failure is shared by those
    who wait for it, charged to the first (the others say `cached`: they asked nobody), and never written.
    Another process that makes the call is waited for as long as it lives, with a warning every `lock_wait_s` seconds.
    """

    def __init__(self, store: Store, lock_wait_s: float, counters: PartCounters) -> None:
        self.counters = counters
        self._store, self._lock_wait_s = store, lock_wait_s
        self._flights: dict[str, asyncio.Task[R]] = {}

    @abstractmethod
    def _key(self, query: Q) -> str:
        """sha256 in hex of all that decides the answer."""

    @abstractmethod
    async def _ask(self, key: str, query: Q) -> R:
        """Ask the back end on record, and `_keep` its answer before the record ends."""

    @abstractmethod
    def _failed(self, detail: str) -> R:
        """The result of a call that raised."""

    @abstractmethod
    def _entry(self, key: str, result: R) -> str:
        """The text of an entry. Its blobs are written here, so that no entry refers to one that is missing."""

    @abstractmethod
    def _result(self, key: str, text: str | bytes) -> R:
        """The result in an entry, marked as cached. Raises CorruptEntry."""

    async def _answer(self, query: Q) -> R:
        """From a call under way, from disk, or from the back end."""
        key = self._key(query)
        flight = self._flights.get(key)
        if flight is not None:
            result = await asyncio.shield(flight)
            kept = result.status in ANSWERS
            return replace(result, cached=True, cost_usd=result.cost_usd if kept else 0.0, paid_usd=0.0)
        # Reading takes tens of microseconds (more with blobs, up to 1 ms): a thread would cost as much.
        result = self._read(key)
        if result is not None:
            return result
        flight = asyncio.create_task(self._fetch(key, query))
        self._flights[key] = flight
        flight.add_done_callback(lambda _: self._flights.pop(key))
        return await asyncio.shield(flight)

    async def _fetch(self, key: str, query: Q) -> R:
        """Ask the back end, unless another process has done so meanwhile."""
        try:
            async with self._only_process(key):
                result = self._read(key, again=True)
                return await self._ask(key, query) if result is None else result
        except Exception as error:
            logger.warning("cached search failed", exc_info=True)
            return self._failed(f"{type(error).__name__}: {error}"[:200])

    async def _keep(self, key: str, result: R) -> None:
        """Count a call that has come back, and write its answer."""
        self.counters.backend_calls += not result.cached
        if self._is_kept(result):
            await asyncio.to_thread(self._write, key, result)

    def _is_kept(self, result: R) -> bool:
        return result.status in ANSWERS

    @asynccontextmanager
    async def _only_process(self, key: str) -> AsyncIterator[None]:
        """Hold the key's lock, however long the process that has it takes: what it pays for must not be paid twice.

        The operating system frees the lock of a process that dies, which `diskcache.Lock` does not survive.
        """
        async with AsyncExitStack() as held:
            try:
                lock = only_process(self._store.lock_path(key), self._store.lock_byte(key), self._lock_wait_s)
                await held.enter_async_context(lock)
            except OSError as error:  # a full disk takes no new lock file
                logger.warning("calling without the lock: %s", error)
            yield

    def _read(self, key: str, again: bool = False) -> R | None:
        """The stored result, or None. A corrupt entry is a miss, counted once: the fresh result will overwrite it."""
        try:
            text = self._store.get(key)
            return None if text is None else self._result(key, text)
        except CorruptEntry as error:
            if not again:
                self.counters.corrupt_entries += 1
                logger.warning("cache entry %s refused: %s", key, error)
            return None

    def _write(self, key: str, result: R) -> None:
        """A full disk costs money, not the run."""
        try:
            self._store.put(key, self._entry(key, result))
        except Exception as error:
            self.counters.unwritten += 1
            logger.warning("cache entry not written: %s: %s", type(error).__name__, error)


class CachedTool(AroundTool, _Cached[QueryT, ToolResult], Generic[QueryT]):
    """A `Tool` that answers a repeated query from `store`; see `_Cached`.

    `latency_s` is always that of this call. A result that is not `complete` is not kept. `ledger` records every
    back-end call; a paid one that it cannot record is not made (infrastructure_error).
    """

    def __init__(
        self,
        tool: Tool[QueryT],
        store: Store,
        lock_wait_s: float = 120.0,
        ledger: Ledger | None = None,
        meter: Meter | None = None,
    ) -> None:
        super().__init__(store, lock_wait_s, PartCounters() if meter is None else meter.part(tool.name))
        self._tool, self._ledger = tool, ledger
        self._memory: dict[str, tuple[str | bytes, ToolResult]] = {}

    async def __call__(self, query: QueryT) -> ToolResult:
        start = time.perf_counter()
        result = await self._answer(query)
        seconds = time.perf_counter() - start
        self.counters.record(result.status, result.cached, result.cost_usd, result.paid_usd, seconds)
        return replace(result, latency_s=seconds)

    async def _ask(self, key: str, query: QueryT) -> ToolResult:
        async with on_record(self._ledger, self.name, key, self.price_usd) as record:
            result = await self._tool(query)
            await self._keep(key, result)
            record.state = "answered" if result.status in ANSWERS else "failed"
            record.cost_usd = result.cost_usd
            return result

    def _key(self, query: QueryT) -> str:
        return cache_key(self.name, self.backend, query)

    def _failed(self, detail: str) -> ToolResult:
        return ToolResult("infrastructure_error", detail=detail)

    def _is_kept(self, result: ToolResult) -> bool:
        return result.complete and super()._is_kept(result)

    def _entry(self, key: str, result: ToolResult) -> str:
        return tool_entry(key, result, self._store)

    def _result(self, key: str, text: str | bytes) -> ToolResult:
        """As `tool_result`; an entry that still is what it was need not be decoded again, nor its thumbnails read."""
        known = self._memory.pop(key, None)
        if known is None or known[0] != text:
            known = text, tool_result(key, text, self._store)
            thumbnails = (item.thumbnail for item in known[1].items)
            if len(text) + sum(len(picture.data) for picture in thumbnails if picture) > REMEMBERED_BYTES:
                return known[1]
            if len(self._memory) == REMEMBERED:
                del self._memory[next(iter(self._memory))]
        self._memory[key] = known  # at the end: the first is the one that was not asked for longest
        return known[1]


class CachedPart(AroundPart, _Cached[Q, Outcome[V]], Generic[Q, V]):
    """A `Part` that answers a repeated query from `store`; see `_Cached`. `codec` says how queries are named and values
    written. Of a `Paid` part the record ends only once the answer is on disk.
    """

    def __init__(
        self,
        part: Part[Q, V],
        store: Store,
        codec: Codec[Q, V],
        lock_wait_s: float = 120.0,
        meter: Meter | None = None,
    ) -> None:
        super().__init__(store, lock_wait_s, PartCounters() if meter is None else meter.part(part.name))
        self._part, self._codec = part, codec

    async def __call__(self, query: Q) -> Outcome[V]:
        start = time.perf_counter()
        outcome = await self._answer(query)
        seconds = time.perf_counter() - start
        self.counters.record(outcome.status, outcome.cached, outcome.cost_usd, outcome.paid_usd, seconds)
        return outcome

    async def _ask(self, key: str, query: Q) -> Outcome[V]:
        if isinstance(self._part, Paid):
            return await self._part.ask(query, key, partial(self._keep, key))
        outcome = await self._part(query)
        await self._keep(key, outcome)
        return outcome

    def _key(self, query: Q) -> str:
        return part_key(self.name, self.backend, self._codec.asked(query))

    def _failed(self, detail: str) -> Outcome[V]:
        return Outcome("infrastructure_error", detail=detail)

    def _entry(self, key: str, result: Outcome[V]) -> str:
        return part_entry(key, result, self._codec, self._store)

    def _result(self, key: str, text: str | bytes) -> Outcome[V]:
        return part_outcome(key, text, self._codec, self._store)
