"""Back ends that are down for a second, for a while, or for good, with all settings at their defaults.

On an event loop whose clock jumps to whatever happens next, so that minutes take no time.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from mmsr1.tools import guard
from mmsr1.tools.base import Answer, CallFailed, Outcome
from mmsr1.tools.breaker import Breaker
from mmsr1.tools.budget import Budget, BudgetLimits, Paid
from mmsr1.tools.cache import TEXT, CachedPart
from mmsr1.tools.guard import CallPolicy, Guarded
from mmsr1.tools.ledger import Ledger, LedgerTotals, read_totals

DEFAULTS = CallPolicy(attempts=4, timeout_s=30, deadline_s=90, rate_per_s=10, concurrent=32)


class JumpingLoop(asyncio.SelectorEventLoop):
    """Sleeps by moving its clock."""

    START = 1000.0
    now = START

    def __init__(self) -> None:
        super().__init__()
        selector: Any = self._selector
        look = selector.select

        def select(timeout: float | None = None) -> Any:
            self.now += max(timeout or 0.0, 1e-6)  # a turn takes some time
            return look(None if timeout is None else 0)

        selector.select = select

    def time(self) -> float:
        return self.now


@pytest.fixture
def run(monkeypatch) -> Callable[[Callable[[], Coroutine]], Any]:
    def runs(work: Callable[[], Coroutine]) -> Any:
        with asyncio.Runner(loop_factory=JumpingLoop) as runner, monkeypatch.context() as patched:
            loop: Any = runner.get_loop()
            patched.setattr(time, "monotonic", loop.time)
            patched.setattr(guard, "monotonic", loop.time)
            return runner.run(work())

    return runs


@dataclass
class Service:
    """Answers in 0.3 s, fails at once while it is down: from second `down` of the loop's time until `up`."""

    down: float
    up: float
    cause: Any = "transient"
    name: str = "service"
    backend: str = "v1"
    price_usd: float = 0.01
    asked: list[float] = field(default_factory=list)

    async def ask(self, query: str) -> Answer[str]:
        now = asyncio.get_running_loop().time() - JumpingLoop.START
        self.asked.append(now)
        if self.down <= now < self.up:
            raise CallFailed(self.cause, "HTTP 503")
        await asyncio.sleep(0.3)
        return Answer(query, 0.01)


@dataclass
class Call:
    began: float
    ended: float
    outcome: Outcome[str]


def calls(part: Any, times: list[float]) -> Callable[[], Coroutine[Any, Any, list[Call]]]:
    """A call at each of the times, all side by side."""

    async def one(number: int, at: float) -> Call:
        await asyncio.sleep(at)
        outcome = await part(f"q{number}")
        return Call(at, asyncio.get_running_loop().time() - JumpingLoop.START, outcome)

    async def crowd() -> list[Call]:
        return await asyncio.gather(*(one(number, at) for number, at in enumerate(times)))

    return crowd


def guarded(service: Service, **changes: Any) -> Guarded[str, str]:
    policy = CallPolicy(**(vars(DEFAULTS) | changes))
    return Guarded(service, policy, Breaker(clock=lambda: asyncio.get_running_loop().time()))


@pytest.mark.parametrize("cause", ["transient", "broken", "throttled"])
def test_a_second_of_failures_costs_no_search(run, cause):
    """Eight a second, and thirty more just when it begins."""
    service = Service(down=10.0, up=11.0, cause=cause)
    part = guarded(service, rate_per_s=1000.0)
    found = run(calls(part, [n / 8 for n in range(320)] + [10.0] * 30))
    assert [call.outcome.status for call in found] == ["ok"] * 350
    assert max(call.ended - call.began for call in found) < 10


def test_calls_wait_until_a_back_end_is_back(run):
    """Twenty seconds: who comes when it is known to be down loses nothing but time, and few attempts are wasted."""
    service = Service(down=10.0, up=30.0)
    found = run(calls(guarded(service), [n / 4 for n in range(240)]))
    lost = [call for call in found if call.outcome.status != "ok"]
    assert all(10 - 4 < call.began < 16 for call in lost)
    assert max(call.ended for call in found) < 90
    assert sum(17 <= at < 30 for at in service.asked) <= 4


def test_a_dead_service_ends_all_calls_by_their_deadline_and_is_rarely_asked(run):
    service = Service(down=0.0, up=1e9)
    found = run(calls(guarded(service), [0.0] * 300 + [float(n) for n in range(1, 200)]))
    assert {call.outcome.status for call in found} == {"infrastructure_error"}
    assert max(call.ended - call.began for call in found) <= 100
    assert sum(at > 10 for at in service.asked) <= 15
    assert {call.outcome.cached for call in found} == {True, False}


def test_calls_wait_no_longer_than_the_breakers_patience(run):
    service = Service(down=0.0, up=1e9)
    breaker = Breaker(patience_s=2.0, clock=lambda: asyncio.get_running_loop().time())
    found = run(calls(Guarded(service, DEFAULTS, breaker), [float(n) for n in range(60)]))
    assert max(call.ended - call.began for call in found if call.began > 15) <= 5


def test_only_calls_that_were_made_stand_in_the_ledger(tmp_path, store):
    """One finds that the account is empty; those in line behind it ask nobody."""
    service = Service(down=-1e9, up=1e9, cause="exhausted")
    budget = Budget(BudgetLimits(calls_per_run=100), tmp_path, tmp_path)
    policy = CallPolicy(**(vars(DEFAULTS) | {"concurrent": 1}))
    paid = Paid(Guarded(service, policy, Breaker()), budget, Ledger(tmp_path / "ledger", "rank0"))
    part = CachedPart(paid, store, TEXT)

    async def crowd() -> list[Outcome]:
        return await asyncio.gather(*(part(f"q{n}") for n in range(50)))

    outcomes = asyncio.run(crowd())
    assert sorted(outcome.cached for outcome in outcomes) == [False] + [True] * 49
    assert read_totals(tmp_path / "ledger") == LedgerTotals(1, 0, 1, 0, 0.0)
    assert part.counters.backend_calls == len(service.asked) == budget.spent()["calls_per_run"] == 1


def test_a_guarded_call_that_the_ledger_cannot_record_is_not_made(tmp_path):
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "rank0.jsonl").symlink_to("/dev/full")
    service, budget = Service(down=0.0, up=0.0), Budget(BudgetLimits(calls_per_run=9), tmp_path, tmp_path)
    paid = Paid(Guarded(service, DEFAULTS, Breaker()), budget, Ledger(tmp_path / "ledger", "rank0"))
    outcome = asyncio.run(paid("q"))
    assert outcome.cached and outcome.paid_usd == 0.0 and "ledger" in outcome.detail and service.asked == []
    assert budget.spent()["calls_per_run"] == 0
