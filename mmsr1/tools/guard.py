"""What stands around a back end: bounds on how often it is asked, retries, and the circuit breaker."""

from __future__ import annotations

import asyncio
import logging
import random
import traceback
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from aiolimiter import AsyncLimiter
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, stop_before_delay

from mmsr1.tools.base import AGAIN, Answer, Backend, CallFailed, Outcome
from mmsr1.tools.breaker import Breaker
from mmsr1.tools.http import Unanswered
from mmsr1.tools.meter import Meter, PartCounters

logger = logging.getLogger(__name__)

Q = TypeVar("Q")
V = TypeVar("V")


@dataclass(frozen=True)
class CallPolicy:
    """How a back end may be asked. Raises ValueError for what is not positive.

    `timeout_s` bounds an attempt; `deadline_s` a call with all its attempts and pauses, from when its first attempt may
    begin. `rate_per_s` attempts, evenly spaced, at most `concurrent` calls at a time. Before retry n there is a pause
    of up to `backoff_s` x 2^(n-1), and never less than the back end asked for.
    """

    attempts: int
    timeout_s: float
    deadline_s: float
    rate_per_s: float
    concurrent: int
    backoff_s: float = 0.5

    def __post_init__(self) -> None:
        for name in ("attempts", "timeout_s", "deadline_s", "rate_per_s", "concurrent"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be positive")
        if self.backoff_s < 0:
            raise ValueError(f"backoff_s={self.backoff_s}: must be 0 or more")


class _NotAsked(Exception):
    """The breaker is open; the text says why."""


@dataclass
class _Gates:
    """What the calls on one event loop pass through."""

    places: asyncio.Semaphore
    rate: AsyncLimiter


@dataclass
class _Call:
    """What one call has done so far; `wasted_usd` may be on the bill, for attempts that brought nothing."""

    attempts: int = 0
    wasted_usd: float = 0.0


class Guarded(Generic[Q, V]):
    """A back end as a `Part`: asked within `policy`, again where that may help, not at all while `breaker` is open.

    A failure is an `infrastructure_error`, or `malformed_call` where the back end does not accept the query; its detail
    begins with the cause (`blocked: ...`). While the breaker is open it says `cached`, for nobody was asked.
    `paid_usd` counts the full price of every attempt that may have been billed without an answer that can be used.
    """

    def __init__(
        self,
        backend: Backend[Q, V],
        policy: CallPolicy,
        breaker: Breaker,
        meter: Meter | None = None,
        seed: int = 0,
    ) -> None:
        self._backend, self._policy, self._breaker = backend, policy, breaker
        self._counters = PartCounters() if meter is None else meter.part(backend.name)
        self._random = random.Random(f"{seed}-{backend.name}")  # not the global one, which training uses
        # Made on one thread, used on another's event loop: what belongs to a loop is made there.
        self._gates: WeakKeyDictionary[asyncio.AbstractEventLoop, _Gates] = WeakKeyDictionary()

    @property
    def name(self) -> str:
        return self._backend.name

    @property
    def backend(self) -> str:
        return self._backend.backend

    @property
    def price_usd(self) -> float:
        return self._backend.price_usd

    async def __call__(self, query: Q) -> Outcome[V]:
        call = _Call()
        try:
            answer = await self._in_turn(query, call)
        except _NotAsked as error:
            untouched = call.attempts == 0
            return Outcome("infrastructure_error", paid_usd=call.wasted_usd, cached=untouched, detail=str(error))
        except CallFailed as error:
            status = "malformed_call" if error.cause == "invalid" else "infrastructure_error"
            return Outcome(status, paid_usd=call.wasted_usd, detail=str(error))
        except Exception as error:
            detail = describe_bug(error)
            logger.warning("%s: %s", self.name, detail)
            return Outcome("infrastructure_error", paid_usd=call.wasted_usd + self.price_usd, detail=detail)
        status = "empty" if answer.value is None else "ok"
        return Outcome(status, answer.value, answer.cost_usd, answer.cost_usd + call.wasted_usd)

    async def _in_turn(self, query: Q, call: _Call) -> Answer[V]:
        """Wait in line unless the breaker is open, then make attempts; the deadline runs from there."""
        gates = self._gates_here()
        self._raise_refusal(self._breaker.refusal())
        async with gates.places:
            self._raise_refusal(self._breaker.refusal())
            await gates.rate.acquire()
            return await self._persist(query, call, gates.rate)

    async def _persist(self, query: Q, call: _Call, rate: AsyncLimiter) -> Answer[V]:
        """Attempts until one succeeds, none more is allowed, or the next would begin beyond the deadline."""
        policy = self._policy
        deadline = monotonic() + policy.deadline_s
        retrying = AsyncRetrying(
            stop=stop_after_attempt(policy.attempts) | stop_before_delay(policy.deadline_s),
            wait=self._pause,
            retry=retry_if_exception(lambda error: isinstance(error, CallFailed) and error.cause in AGAIN),
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                if call.attempts:
                    self._counters.retries += 1
                    await _by(deadline, rate)
                return await self._attempt(query, call, min(policy.timeout_s, deadline - monotonic()))
        raise AssertionError("tenacity ends with an answer or an exception")

    async def _attempt(self, query: Q, call: _Call, seconds: float) -> Answer[V]:
        self._raise_refusal(self._breaker.admit())
        call.attempts += 1
        self._counters.attempts += 1
        try:
            try:
                async with asyncio.timeout(seconds):
                    answer = await self._backend.ask(query)
            except TimeoutError:
                raise Unanswered(f"no answer within {seconds:.3g} s") from None
        except CallFailed as error:
            self._counters.failures[error.cause] += 1
            self._breaker.failed(error)
            if isinstance(error, Unanswered) or error.cause == "broken":
                call.wasted_usd += self.price_usd
            raise
        self._breaker.succeeded()
        return answer

    def _raise_refusal(self, why: str | None) -> None:
        if why is not None:
            raise _NotAsked(why)

    def _pause(self, state: RetryCallState) -> float:
        """Seconds before the next attempt: full jitter, but no less than the back end asked for."""
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.retry_after_s if isinstance(error, CallFailed) else None
        jitter = self._random.uniform(0.0, self._policy.backoff_s * 2 ** (state.attempt_number - 1))
        return max(jitter, asked or 0.0)

    def _gates_here(self) -> _Gates:
        loop = asyncio.get_running_loop()
        gates = self._gates.get(loop)
        if gates is None:
            gates = self._gates[loop] = _Gates(
                asyncio.Semaphore(self._policy.concurrent), AsyncLimiter(1, 1 / self._policy.rate_per_s)
            )
        return gates


async def _by(deadline: float, rate: AsyncLimiter) -> None:
    """Wait for the rate limit, but not beyond the deadline."""
    try:
        async with asyncio.timeout(deadline - monotonic()):
            await rate.acquire()
    except TimeoutError:
        raise CallFailed("transient", "the deadline passed in line for the next attempt") from None


def describe_bug(error: Exception) -> str:
    """The type of an exception and where it was raised. Not its text: a query, a URL or a key may stand in it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"bug: {type(error).__name__}{place}"
