"""What a search tool is, and what the parts are that it is made of.

Three shapes, so that layers are put together by plain calls and each is tested alone:

    Backend   asks the outside once: returns an `Answer` or raises `CallFailed`
    Part      whatever is wrapped around it (retries, budget, cache): returns an `Outcome`, raises nothing
    Tool      what an episode calls: a part, or several of them, that returns a `ToolResult`
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

from mmsr1.types import Picture, ToolName, ToolResult, ToolStatus

logger = logging.getLogger(__name__)

QueryT = TypeVar("QueryT", str, Picture, contravariant=True)
Q = TypeVar("Q", contravariant=True)
V = TypeVar("V")

Cause = Literal["transient", "throttled", "exhausted", "refused", "blocked", "broken", "invalid"]
AGAIN: tuple[Cause, ...] = ("transient", "throttled", "broken")  # causes after which the same call may succeed


class CallFailed(Exception):
    """Why a back end gave no answer; `detail` is one line, fit for a log, without secrets or queries.

    transient   time-out, lost connection, 5xx
    throttled   too many calls at a time; `retry_after_s` is what the back end asked to wait, if it said
    exhausted   the account has no calls or credits left
    refused     the key is missing, wrong or not allowed to do this
    blocked     a page behind a reader refuses to be read (CAPTCHA, 403): another page may not
    broken      an answer that is none: truncated, of wrong types, too large
    invalid     the back end does not accept the query: whoever wrote it is at fault, not the infrastructure

    `cost_usd` is what the back end is known to charge all the same.
    """

    def __init__(self, cause: Cause, detail: str, retry_after_s: float | None = None, cost_usd: float = 0.0) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause: Cause = cause
        self.detail, self.retry_after_s, self.cost_usd = detail, retry_after_s, cost_usd


class EndOfRun(Exception):
    """Raised by a tool where every further step would be worth nothing; the text says why, in one line for people.

    The one exception that layers let through and episodes do not survive.
    """


@dataclass(frozen=True)
class Answer(Generic[V]):
    """What a back end said, and what that cost; `value` None: it looked and found nothing.

    `paid_usd` is what this answer did cost, None if that is `cost_usd`: one that has a cache of its own may pay less.
    """

    value: V | None
    cost_usd: float = 0.0
    paid_usd: float | None = None


@dataclass(frozen=True)
class Outcome(Generic[V]):
    """What came of a call to a part; `value` is there exactly if `status` is ok.

    `cost_usd` is what a fresh call costs, `paid_usd` what this one did; `cached`: no back end was asked.
    """

    status: ToolStatus
    value: V | None = None
    cost_usd: float = 0.0
    paid_usd: float = 0.0
    cached: bool = False
    detail: str = ""


@runtime_checkable
class Backend(Protocol[Q, V]):
    """One provider of one thing. `name` is its name in tables, logs and the ledger (`serpapi_lens`).

    `backend` is everything besides the query that decides the answer, parser version included: part of the cache key,
    so without secrets. `price_usd` is the most that one call can cost.
    """

    @property
    def name(self) -> str: ...

    @property
    def backend(self) -> str: ...

    @property
    def price_usd(self) -> float: ...

    async def ask(self, query: Q) -> Answer[V]:
        """Ask once. Raises CallFailed, and nothing else but `asyncio.CancelledError`."""
        ...


@runtime_checkable
class Part(Protocol[Q, V]):
    """A back end with something around it; fields as those of `Backend`."""

    @property
    def name(self) -> str: ...

    @property
    def backend(self) -> str: ...

    @property
    def price_usd(self) -> float: ...

    async def __call__(self, query: Q) -> Outcome[V]:
        """Whatever goes wrong is a status. Raises nothing but `asyncio.CancelledError`."""
        ...


@runtime_checkable
class Tool(Protocol[QueryT]):
    """An asynchronous search. `Tool[str]` takes text only, `Tool[Picture]` a picture only.

    Whatever goes wrong comes back as a `ToolResult` whose status says so; nothing is raised except
    `asyncio.CancelledError`, which passes through so that an episode can be cut, and `EndOfRun`.
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


class AroundTool:
    """What a layer around a tool says of it."""

    _tool: Tool[Any]

    @property
    def name(self) -> ToolName:
        return self._tool.name

    @property
    def backend(self) -> str:
        return self._tool.backend

    @property
    def price_usd(self) -> float:
        return self._tool.price_usd


class AroundPart:
    """What a layer around a part says of it."""

    _part: Part[Any, Any]

    @property
    def name(self) -> str:
        return self._part.name

    @property
    def backend(self) -> str:
        return self._part.backend

    @property
    def price_usd(self) -> float:
        return self._part.price_usd


async def in_thread(work: Callable[[], ToolResult]) -> ToolResult:
    """Run a blocking search in a worker thread; its latency is measured, its exceptions become a status."""
    start = time.perf_counter()
    try:
        result = await asyncio.to_thread(work)
    except Exception as error:
        logger.warning("search failed", exc_info=True)
        result = ToolResult("infrastructure_error", detail=f"{type(error).__name__}: {error}"[:200])
    return replace(result, latency_s=time.perf_counter() - start)
