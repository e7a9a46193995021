"""What stands around a back end: bounds on how often it is asked, retries, and the circuit breaker."""

from __future__ import annotations

import asyncio
import logging
import random
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from aiolimiter import AsyncLimiter
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, stop_before_delay

from mmsr1.tools.base import AGAIN, Answer, Backend, CallFailed, EndOfRun, Outcome
from mmsr1.tools.breaker import Breaker, Refusal
from mmsr1.tools.http import Unanswered
from mmsr1.tools.meter import Meter, PartCounters

logger = logging.getLogger(__name__)

LOOK_S = 0.1  # between two looks at an open breaker

Q = TypeVar("Q")
V = TypeVar("V")


@dataclass(frozen=True)
class CallPolicy:
    """How a back end may be asked. Raises ValueError for what is not positive.

    `timeout_s` bounds an attempt; `deadline_s` a call with all its attempts and pauses, from when its first attempt may
    begin, or the breaker opens in front of it. `rate_per_s` attempts, evenly spaced, at most `concurrent` calls at a
    time. Before retry n there is a pause of half to all of `backoff_s` x 2^(n-1), and never less than the back end
    asked for: with the defaults, four attempts last longer than an interruption of 1.7 s.
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


Begin = Callable[[], Awaitable[str | None]]  # before the first attempt of a call: None, or why none is to be made


class _NotAsked(Exception):
    """The breaker is open, or the call is not to begin; the text says why."""


class _Failed(Exception):
    """An attempt that was made has failed."""

    def __init__(self, error: CallFailed) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass
class _Gates:
    """What the calls on one event loop pass through."""

    places: asyncio.Semaphore
    rate: AsyncLimiter


@dataclass
class _Call:
    """What one call has done so far; `wasted_usd` may be on the bill, for attempts that brought nothing."""

    begin: Begin | None
    arrived: float  # at the end of the line
    attempts: int = 0
    wasted_usd: float = 0.0


class Guarded(Generic[Q, V]):
    """A back end as a `Part`: asked within `policy`, again where that may help, not at all while `breaker` is open.

    Calls wait for an open breaker until their deadline, in line and between attempts; where waiting is of no use (key,
    account) they fail at once.
    A failure is an `infrastructure_error`, or `malformed_call` where the back end does not accept the query; its detail
    begins with the cause (`blocked: ...`). It says `cached` if nobody was asked.
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

    @property
    def of_no_use(self) -> str | None:
        """Why asking is of no use until somebody mends it (account, key), in one line; None if it may be."""
        return None if self._breaker.final is None else f"{self.name}: {self._breaker.final}"

    async def __call__(self, query: Q) -> Outcome[V]:
        return await self.ask(query)

    async def ask(self, query: Q, begin: Begin | None = None) -> Outcome[V]:
        """Answer, with `begin` as the last thing before the back end is asked for the first time; it raises nothing."""
        call, status = _Call(begin, monotonic()), "infrastructure_error"
        try:
            answer = await self._in_turn(query, call)
        except (_NotAsked, CallFailed) as error:
            if isinstance(error, CallFailed) and error.cause == "invalid":
                status = "malformed_call"
            return Outcome(status, paid_usd=call.wasted_usd, cached=call.attempts == 0, detail=str(error))
        except EndOfRun:
            raise
        except Exception as error:
            detail, untouched = describe_bug(error), call.attempts == 0
            logger.warning("%s: %s", self.name, detail)
            paid_usd = 0.0 if untouched else call.wasted_usd + self.price_usd
            return Outcome(status, paid_usd=paid_usd, cached=untouched, detail=detail)
        status = "empty" if answer.value is None else "ok"
        paid_usd = answer.cost_usd if answer.paid_usd is None else answer.paid_usd
        return Outcome(status, answer.value, answer.cost_usd, paid_usd + call.wasted_usd)

    async def _in_turn(self, query: Q, call: _Call) -> Answer[V]:
        """Wait in line unless waiting is of no use, then make attempts; the deadline runs from there."""
        gates = self._gates_here()
        self._raise_final()
        async with gates.places:
            while (refusal := self._breaker.refusal()) is not None:
                most_s = min(self._policy.deadline_s, self._breaker.patience_s)
                await _wait_for(refusal, monotonic() + most_s - self._waited_s(call))
            await gates.rate.acquire()
            return await self._persist(query, call, gates.rate, self._policy.deadline_s - self._waited_s(call))

    def _waited_s(self, call: _Call) -> float:
        """What a call that has made no attempt has used of its deadline: its time in line while the breaker is open.
        Else a dead service would take a deadline for each few of those in line, one after another."""
        return min(self._breaker.open_s, monotonic() - call.arrived)

    def _raise_final(self) -> None:
        refusal = self._breaker.refusal()
        if refusal is not None and refusal.final:
            raise _NotAsked(refusal.detail)

    async def _persist(self, query: Q, call: _Call, rate: AsyncLimiter, seconds: float) -> Answer[V]:
        """Attempts until one succeeds, none more is allowed, or the next would begin more than `seconds` from now."""
        deadline = monotonic() + seconds
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._policy.attempts) | stop_before_delay(seconds),
            wait=self._pause,
            retry=retry_if_exception(lambda error: isinstance(error, CallFailed) and error.cause in AGAIN),
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                if call.attempts:
                    self._counters.retries += 1
                    await _by(deadline, rate)
                return await self._attempt(query, call, deadline, rate)
        raise AssertionError("tenacity ends with an answer or an exception")

    async def _attempt(self, query: Q, call: _Call, deadline: float, rate: AsyncLimiter) -> Answer[V]:
        """Ask once the breaker lets an attempt through, and tell it how that ended."""
        waited = await self._admitted(deadline)
        try:
            if waited:  # as many others have, who all go on at the same moment
                await _by(deadline, rate)
            if call.attempts == 0 and call.begin is not None and (why := await call.begin()) is not None:
                raise _NotAsked(why)
            answer = await self._asked(query, call, min(self._policy.timeout_s, deadline - monotonic()))
        except _Failed as failure:
            self._breaker.failed(failure.error)
            raise failure.error from None
        except BaseException:
            self._breaker.unsaid()
            raise
        self._breaker.succeeded()
        return answer

    async def _admitted(self, deadline: float) -> bool:
        """Wait until the breaker lets an attempt through; whether that took any waiting. Raises _NotAsked."""
        until, waited = min(deadline, monotonic() + self._breaker.patience_s), False
        while True:
            if monotonic() >= deadline:
                raise _NotAsked("transient: the deadline passed before the circuit breaker let an attempt through")
            refusal = self._breaker.admit()
            if refusal is None:
                return waited
            await _wait_for(refusal, until)
            waited = True

    async def _asked(self, query: Q, call: _Call, seconds: float) -> Answer[V]:
        """One attempt, within its time. Raises _Failed with what is wrong with the back end."""
        call.attempts += 1
        self._counters.attempts += 1
        try:
            try:
                async with asyncio.timeout(seconds):
                    return await self._backend.ask(query)
            except TimeoutError:
                raise Unanswered(f"no answer within {seconds:.3g} s") from None
        except CallFailed as error:
            self._counters.failures[error.cause] += 1
            unknown = isinstance(error, Unanswered) or error.cause == "broken"
            call.wasted_usd += max(self.price_usd, error.cost_usd) if unknown else error.cost_usd
            raise _Failed(error) from None

    def _pause(self, state: RetryCallState) -> float:
        """Seconds before the next attempt: with jitter, and no less than the back end asked for."""
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.retry_after_s if isinstance(error, CallFailed) else None
        pause = self._policy.backoff_s * 2 ** (state.attempt_number - 1) * self._random.uniform(0.5, 1.0)
        return max(pause, asked or 0.0)

    def _gates_here(self) -> _Gates:
        loop = asyncio.get_running_loop()
        gates = self._gates.get(loop)
        if gates is None:
            gates = self._gates[loop] = _Gates(
                asyncio.Semaphore(self._policy.concurrent), AsyncLimiter(1, 1 / self._policy.rate_per_s)
            )
        return gates


async def _wait_for(refusal: Refusal, until: float) -> None:
    """Wait a little for an open breaker. Raises _NotAsked once it is `until`, or where waiting is of no use."""
    left_s = until - monotonic()
    if refusal.final or left_s <= 0:
        raise _NotAsked(refusal.detail)
    await asyncio.sleep(min(LOOK_S, refusal.wait_s, left_s))


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
