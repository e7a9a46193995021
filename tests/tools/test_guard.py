"""A guarded back end: retried where that helps, bounded in time, rate and number, and every failure has a status."""

import asyncio
import logging
import time

import pytest

from mmsr1.tools.base import Answer, CallFailed, Outcome
from mmsr1.tools.breaker import Breaker
from mmsr1.tools.guard import CallPolicy, Guarded
from mmsr1.tools.http import Unanswered
from mmsr1.tools.meter import Meter

CANARY = "canary-5ecret"


class Script:
    """A back end that goes through a list of answers and exceptions; the last one is repeated."""

    name, backend, price_usd = "script", "v1", 0.5

    def __init__(self, *steps: Answer | BaseException | float) -> None:
        self.steps, self.calls, self.at_a_time, self.most = list(steps), 0, 0, 0
        self.times: list[float] = []

    async def ask(self, query: str) -> Answer[str]:
        step = self.steps[min(self.calls, len(self.steps) - 1)]
        self.calls += 1
        self.times.append(time.monotonic())
        self.at_a_time += 1
        self.most = max(self.most, self.at_a_time)
        try:
            if isinstance(step, BaseException):
                raise step
            if isinstance(step, Answer):
                await asyncio.sleep(0)
                return step
            await asyncio.sleep(step)
            return Answer("late")
        finally:
            self.at_a_time -= 1


OK = Answer("found", 0.25)
LOST = CallFailed("transient", "HTTP 503")


def policy(**changes) -> CallPolicy:
    usual = {
        "attempts": 4,
        "timeout_s": 5.0,
        "deadline_s": 20.0,
        "rate_per_s": 1e5,
        "concurrent": 8,
        "backoff_s": 0.001,
    }
    return CallPolicy(**(usual | changes))


def guarded(script: Script, meter: Meter | None = None, breaker: Breaker | None = None, **changes) -> Guarded:
    return Guarded(script, policy(**changes), breaker or Breaker(failures=1000), meter)


def ask(script: Script, **options) -> Outcome:
    return asyncio.run(guarded(script, **options)(CANARY))


def test_an_answer_passes_with_what_it_cost():
    assert ask(Script(OK)) == Outcome("ok", "found", cost_usd=0.25, paid_usd=0.25)
    assert ask(Script(Answer(None, 0.25))) == Outcome("empty", None, cost_usd=0.25, paid_usd=0.25)
    part = guarded(Script(OK))
    assert (part.name, part.backend, part.price_usd) == ("script", "v1", 0.5)


@pytest.mark.parametrize("cause", ["transient", "throttled", "broken"])
def test_what_may_pass_is_tried_again(cause):
    script, meter = Script(CallFailed(cause, "x"), CallFailed(cause, "x"), OK), Meter()
    assert ask(script, meter=meter).status == "ok" and script.calls == 3
    counters = meter.part("script")
    assert (counters.attempts, counters.retries, counters.failures) == (3, 2, {cause: 2})


@pytest.mark.parametrize("cause", ["exhausted", "refused", "blocked", "invalid"])
def test_what_does_not_pass_is_not_tried_again(cause):
    script = Script(CallFailed(cause, "HTTP 4xx"))
    outcome = ask(script)
    assert script.calls == 1 and not outcome.cached
    assert outcome.status == ("malformed_call" if cause == "invalid" else "infrastructure_error")
    assert outcome.detail == f"{cause}: HTTP 4xx"


def test_the_last_failure_is_what_is_told():
    script = Script(CallFailed("throttled", "slow down"), LOST)
    outcome = ask(script)
    assert (outcome.status, outcome.detail) == ("infrastructure_error", "transient: HTTP 503") and script.calls == 4


def test_attempts_that_may_be_billed_are_paid_in_full():
    """Lost on the way or answered with rubbish: 0.5 each; refused by the server: nothing."""
    script = Script(Unanswered("no answer"), CallFailed("broken", "cut short"), LOST, OK)
    assert ask(script) == Outcome("ok", "found", cost_usd=0.25, paid_usd=1.25)
    assert ask(Script(Unanswered("no answer")), attempts=2).paid_usd == 1.0
    assert ask(Script(LOST)).paid_usd == 0.0


def test_an_attempt_has_its_time_limit():
    script = Script(30.0, OK)
    outcome = ask(script, timeout_s=0.05)
    assert outcome.status == "ok" and script.calls == 2 and outcome.paid_usd == 0.75


def test_a_call_has_its_deadline():
    script = Script(30.0)
    start = time.monotonic()
    outcome = ask(script, attempts=1000, timeout_s=0.05, deadline_s=0.2)
    assert outcome.detail.startswith("transient: no answer within") and 1 <= script.calls <= 5
    assert time.monotonic() - start < 10


def test_the_wait_that_the_back_end_asks_for_is_kept():
    script = Script(CallFailed("throttled", "x", retry_after_s=0.1), OK)
    assert ask(script).status == "ok"
    assert script.times[1] - script.times[0] >= 0.1


def test_a_wait_beyond_the_deadline_is_not_begun():
    script = Script(CallFailed("throttled", "x", retry_after_s=3600.0))
    start = time.monotonic()
    assert ask(script).detail == "throttled: x" and script.calls == 1
    assert time.monotonic() - start < 10


def test_pauses_have_a_jitter_that_a_seed_repeats(monkeypatch):
    def pauses(seed: int) -> list[float]:
        slept: list[float] = []
        real = asyncio.sleep

        async def sleep(seconds: float, *rest) -> None:
            slept.append(seconds)
            await real(0)

        monkeypatch.setattr(asyncio, "sleep", sleep)
        part = Guarded(Script(LOST), policy(attempts=5, backoff_s=1.0), Breaker(failures=1000), seed=seed)
        asyncio.run(part("q"))
        monkeypatch.setattr(asyncio, "sleep", real)
        return [pause for pause in slept if pause]

    found = pauses(1)
    assert len(found) == 4 and found == pauses(1) != pauses(2)
    assert all(2**n / 2 <= pause <= 2**n for n, pause in enumerate(found))


def test_no_more_calls_at_a_time_than_allowed():
    script = Script(0.01)
    part = guarded(script, concurrent=3)

    async def crowd() -> None:
        await asyncio.gather(*(part(f"q{n}") for n in range(12)))

    asyncio.run(crowd())
    assert script.calls == 12 and script.most == 3


def test_attempts_are_spaced_by_the_rate():
    script = Script(OK)
    part = guarded(script, rate_per_s=50.0)

    async def crowd() -> None:
        await asyncio.gather(*(part(f"q{n}") for n in range(6)))

    asyncio.run(crowd())
    assert script.times[-1] - script.times[0] >= 5 * 0.02 - 0.005


def test_waiting_in_line_is_not_on_the_deadline():
    """Ten calls, one at a time, 0.15 s each: the last waits longer than a call may take."""
    script = Script(0.15)
    part = guarded(script, concurrent=1, deadline_s=1.2)

    async def crowd() -> list[Outcome]:
        return await asyncio.gather(*(part(f"q{n}") for n in range(10)))

    assert {outcome.status for outcome in asyncio.run(crowd())} == {"ok"}


def test_it_serves_one_event_loop_after_another():
    part = guarded(Script(OK))
    assert [asyncio.run(part("q")).status for _ in range(3)] == ["ok"] * 3


def test_while_the_breaker_is_open_for_good_nobody_is_asked():
    script = Script(LOST, LOST, CallFailed("exhausted", "HTTP 402"))
    part = guarded(script, breaker=Breaker())

    async def calls() -> list[Outcome]:
        return [await part("q") for _ in range(3)]

    first, *others = asyncio.run(calls())
    assert script.calls == 3 and not first.cached and first.detail == "exhausted: HTTP 402"
    for other in others:
        assert other.cached and other.status == "infrastructure_error" and other.paid_usd == 0.0
        assert other.detail.startswith("exhausted: left alone for 300 s")


def test_those_in_line_do_not_ask_once_the_breaker_is_open():
    script = Script(CallFailed("exhausted", "HTTP 402"))
    part = guarded(script, concurrent=1, breaker=Breaker())

    async def crowd() -> list[Outcome]:
        return await asyncio.gather(*(part(f"q{n}") for n in range(20)))

    outcomes = asyncio.run(crowd())
    assert script.calls == 1 and all("exhausted" in outcome.detail for outcome in outcomes)


def test_a_bug_is_a_status_that_names_the_place_and_not_the_text(caplog):
    caplog.set_level(logging.DEBUG)
    script = Script(KeyError(CANARY))
    outcome = ask(script)
    assert outcome.status == "infrastructure_error" and script.calls == 1
    assert outcome.detail.startswith("bug: KeyError at test_guard.py:") and CANARY not in caplog.text + outcome.detail
    assert outcome.paid_usd == 0.5  # nobody knows


def test_a_cut_call_frees_its_place():
    script = Script(30.0, OK)
    part = guarded(script, concurrent=1, timeout_s=60.0)

    async def cut() -> Outcome:
        task = asyncio.create_task(part("q"))
        while not script.calls:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await asyncio.wait_for(part("q"), 5)

    assert asyncio.run(cut()).status == "ok"


@pytest.mark.parametrize("name", ["attempts", "timeout_s", "deadline_s", "rate_per_s", "concurrent"])
def test_a_policy_needs_positive_numbers(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        policy(**{name: 0})
    with pytest.raises(ValueError, match="backoff_s=-1"):
        policy(backoff_s=-1)
