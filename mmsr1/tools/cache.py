"""The caching layer around a tool: pay for a search once, in all coroutines, processes and runs.

    call ──> in memory: is the same call under way? ──yes──> wait for it
               │ no
             on disk: answered before? ──yes──> hit
               │ no
             file lock, look on disk again, ledger, back end, write, ledger

Results are canonical JSON text; thumbnails lie beside them as blobs under their digest, each once.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from filelock import FileLock, Timeout

from mmsr1.tools.base import Tool
from mmsr1.tools.ledger import EndState, Ledger
from mmsr1.tools.store import CorruptEntry, Store
from mmsr1.types import Picture, ToolItem, ToolName, ToolResult

logger = logging.getLogger(__name__)

SCHEMA = 1
KEPT = ("ok", "empty")  # "nothing found" is an answer too; a failure is not
QueryT = TypeVar("QueryT", str, Picture)


@dataclass
class ToolCounters:
    """What happened to the calls of one tool since it was made; for the run's summary.

    `hits` were answered without a back-end call of their own: from disk, or by joining the same call under way.
    `failures` counts statuses other than ok and empty. `corrupt_entries` were refused and replaced;
    `unwritten` results could not be written and will be paid for again.
    """

    calls: int = 0
    hits: int = 0
    backend_calls: int = 0
    corrupt_entries: int = 0
    unwritten: int = 0
    failures: Counter[str] = field(default_factory=Counter)


class CachedTool(Generic[QueryT]):
    """A `Tool` that answers a repeated query from `store`.

    One call at a time is made for a query, however many coroutines and processes ask. The call belongs to all who
    wait: when one of them is cancelled it goes on, and its result is kept even if nobody waits any more.
    A hit keeps the `cost_usd` of a fresh call and says `cached=True`; `latency_s` is always that of this call.
    A failure is shared by those who wait for it, charged to the first, and never written.
    `lock_wait_s`: seconds to wait for another process before making the call all the same.
    `ledger` records every back-end call; a paid one that it cannot record is not made (infrastructure_error).
    """

    def __init__(
        self, tool: Tool[QueryT], store: Store, lock_wait_s: float = 120.0, ledger: Ledger | None = None
    ) -> None:
        self.counters = ToolCounters()
        self._tool, self._store, self._lock_wait_s, self._ledger = tool, store, lock_wait_s, ledger
        self._flights: dict[str, asyncio.Task[ToolResult]] = {}

    @property
    def name(self) -> ToolName:
        return self._tool.name

    @property
    def backend(self) -> str:
        return self._tool.backend

    @property
    def price_usd(self) -> float:
        return self._tool.price_usd

    async def __call__(self, query: QueryT) -> ToolResult:
        start = time.perf_counter()
        self.counters.calls += 1
        key = cache_key(self.name, self.backend, query)
        flight = self._flights.get(key)
        # Reading takes tens of microseconds (more with thumbnails, up to 1 ms): a thread would cost as much.
        result = self._read(key) if flight is None else None
        if result is None:
            joined = flight is not None
            if flight is None:
                flight = asyncio.create_task(self._fetch(key, query))
                self._flights[key] = flight
                flight.add_done_callback(lambda _: self._flights.pop(key))
            result = await asyncio.shield(flight)
            if joined:
                kept = result.status in KEPT
                result = replace(result, cached=kept, cost_usd=result.cost_usd if kept else 0.0)
        self.counters.hits += result.cached
        if result.status not in KEPT:
            self.counters.failures[result.status] += 1
        return replace(result, latency_s=time.perf_counter() - start)

    async def _fetch(self, key: str, query: QueryT) -> ToolResult:
        """Ask the back end, unless another process has done so meanwhile."""
        try:
            async with self._only_process(key):
                result = self._read(key, again=True)
                if result is None:
                    result = await self._ask_on_record(key, query)
                return result
        except Exception as error:
            logger.warning("cached search failed", exc_info=True)
            return ToolResult("infrastructure_error", detail=f"{type(error).__name__}: {error}"[:200])

    async def _ask_on_record(self, key: str, query: QueryT) -> ToolResult:
        """`_ask`, known to the ledger before the back end is asked and ended only once the answer is on disk.

        A call that returns no result, because it raised or was cut, counts as spent at its full price.
        """
        if self._ledger is None:
            return await self._ask(key, query)
        price = self.price_usd
        call = await self._ledger.start(self.name, key, price)
        state: EndState = "failed"
        cost = price
        try:
            result = await self._ask(key, query)
            state, cost = "answered" if result.status in KEPT else "failed", result.cost_usd
            return result
        finally:
            if call is not None:
                self._ledger.end(call, state, cost)

    async def _ask(self, key: str, query: QueryT) -> ToolResult:
        """Ask the back end and keep what it answers."""
        self.counters.backend_calls += 1
        result = await self._tool(query)
        if result.status in KEPT:
            await asyncio.to_thread(self._write, key, result)
        return result

    @asynccontextmanager
    async def _only_process(self, key: str) -> AsyncIterator[None]:
        """Hold the key's file lock. It is polled, so that waiting blocks neither the event loop nor a thread.

        The operating system frees the lock of a process that dies, which `diskcache.Lock` does not survive.
        """
        lock = FileLock(self._store.lock_path(key))
        deadline, pause = time.monotonic() + self._lock_wait_s, 0.002
        while True:
            try:
                lock.acquire(blocking=False)
                break
            except Timeout:
                if time.monotonic() > deadline:
                    logger.warning("gave up waiting for %s: calling without the lock", lock.lock_file)
                    break
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.05)
        try:
            yield
        finally:
            lock.release()

    def _read(self, key: str, again: bool = False) -> ToolResult | None:
        """The stored result, or None. A corrupt entry is a miss, counted once: the fresh result will overwrite it."""
        try:
            text = self._store.get(key)
            return None if text is None else _from_json(key, text, self._store)
        except CorruptEntry as error:
            if not again:
                self.counters.corrupt_entries += 1
                logger.warning("cache entry %s refused: %s", key, error)
            return None

    def _write(self, key: str, result: ToolResult) -> None:
        """Blobs first, so that an entry never refers to one that is missing. A full disk costs money, not the run."""
        try:
            for item in result.items:
                if item.thumbnail is not None:
                    self._store.put(f"blob:{item.thumbnail.digest}", item.thumbnail.data)
            self._store.put(key, _to_json(key, result))
        except Exception as error:
            self.counters.unwritten += 1
            logger.warning("cache entry not written: %s: %s", type(error).__name__, error)


def cache_key(name: ToolName, backend: str, query: str | Picture) -> str:
    """sha256 in hex of everything that decides the result. White space in a text query does not; a picture counts by
    its content.
    """
    asked = {"image": query.digest} if isinstance(query, Picture) else {"text": " ".join(query.split())}
    return hashlib.sha256(_canonical([SCHEMA, name, backend, asked]).encode("ascii")).hexdigest()


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _to_json(key: str, result: ToolResult) -> str:
    items = [
        {
            "title": item.title,
            "text": item.text,
            "url": item.url,
            "thumbnail": None if item.thumbnail is None else item.thumbnail.digest,
        }
        for item in result.items
    ]
    entry = {"cost_usd": result.cost_usd, "detail": result.detail, "items": items, "key": key, "status": result.status}
    return _canonical(entry)


def _from_json(key: str, text: str | bytes, store: Store) -> ToolResult:
    """The result that `_to_json` wrote under this very key. Raises CorruptEntry for anything else."""
    try:
        entry = json.loads(_typed(text, str))
        cost = float(entry["cost_usd"])
        if entry["key"] != key or entry["status"] not in KEPT or not (math.isfinite(cost) and cost >= 0):
            raise ValueError("key, status or cost is not one that is stored here")
        items = tuple(
            ToolItem(
                _typed(item["title"], str),
                _typed(item["text"], str),
                _typed(item["url"], str),
                None if item["thumbnail"] is None else _thumbnail(item["thumbnail"], store),
            )
            for item in entry["items"]
        )
        return ToolResult(entry["status"], items, cost, 0.0, True, _typed(entry["detail"], str))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptEntry(f"{type(error).__name__}: {error}"[:200]) from error


def _thumbnail(digest: str, store: Store) -> Picture:
    picture = Picture(_typed(store.get(f"blob:{digest}"), bytes))
    if picture.digest != digest:
        raise ValueError(f"blob {digest} holds something else")
    return picture


T = TypeVar("T")


def _typed(value: object, kind: type[T]) -> T:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, found {type(value).__name__}")
    return value
