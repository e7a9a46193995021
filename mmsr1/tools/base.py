"""What a search tool is, and the guard that turns its failures into data.

A back end and whatever wraps it (today the cache) have the same shape, so layers are put together by plain calls and
each is tested alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, TypeVar, runtime_checkable

from mmsr1.types import Picture, ToolName, ToolResult

logger = logging.getLogger(__name__)

QueryT = TypeVar("QueryT", str, Picture, contravariant=True)


@runtime_checkable
class Tool(Protocol[QueryT]):
    """An asynchronous search. `Tool[str]` takes text only, `Tool[Picture]` a picture only.

    Whatever goes wrong comes back as a `ToolResult` whose status says so; nothing is raised except
    `asyncio.CancelledError`, which passes through so that an episode can be cut.
    """

    @property
    def name(self) -> ToolName:
        """The kind of search, as episodes and metrics name it."""
        ...

    @property
    def backend(self) -> str:
        """Everything besides the query that decides the result: provider or index content hash, parser version,
        number of results. It is part of the cache key, so two back ends that can differ must not share it, and it is
        written to disk, so it holds no secret.
        """
        ...

    @property
    def price_usd(self) -> float:
        """The most that one call can cost, in USD, retries and everything else it pays for included; 0.0 if it is free.

        The ledger counts it for a call whose outcome it does not know; otherwise the result says what the call cost.
        """
        ...

    async def __call__(self, query: QueryT) -> ToolResult:
        """Results in rank order; `latency_s` are the wall seconds of this call."""
        ...


async def in_thread(work: Callable[[], ToolResult]) -> ToolResult:
    """Run a blocking search in a worker thread; its latency is measured, its exceptions become a status."""
    start = time.perf_counter()
    try:
        result = await asyncio.to_thread(work)
    except Exception as error:
        logger.warning("search failed", exc_info=True)
        result = ToolResult("infrastructure_error", detail=f"{type(error).__name__}: {error}"[:200])
    return replace(result, latency_s=time.perf_counter() - start)
