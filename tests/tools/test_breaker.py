"""The circuit breaker on a clock of its own."""

import pytest

from mmsr1.tools.base import CallFailed
from mmsr1.tools.breaker import Breaker


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return Breaker(failures=3, cool_down_s=10.0, clock=clock)


def fail(breaker: Breaker, cause: str = "transient", times: int = 1) -> None:
    for _ in range(times):
        breaker.failed(CallFailed(cause, "HTTP 500"))


def test_it_opens_after_failures_in_a_row_and_says_why(breaker):
    fail(breaker, times=2)
    breaker.succeeded()
    fail(breaker, times=2)
    assert breaker.refusal() is None and breaker.admit() is None
    fail(breaker, "throttled")
    assert breaker.refusal() == ("throttled: left alone for 10 s more after 3 failures in a row, the last: HTTP 500")
    assert breaker.admit() is not None


def test_one_attempt_is_let_through_after_the_cool_down(breaker, clock):
    fail(breaker, times=3)
    clock.now += 10
    assert breaker.refusal() is None and breaker.refusal() is None  # asking does not take the place
    assert breaker.admit() is None
    assert breaker.admit() is not None and breaker.refusal() is not None
    fail(breaker)
    clock.now += 9.9
    assert breaker.admit() is not None
    clock.now += 0.2
    assert breaker.admit() is None
    breaker.succeeded()
    assert breaker.admit() is None and breaker.admit() is None
    fail(breaker, times=2)
    assert breaker.refusal() is None  # the count has begun anew


def test_an_attempt_that_never_ends_leaves_its_place(breaker, clock):
    fail(breaker, times=3)
    clock.now += 10
    assert breaker.admit() is None
    clock.now += 10
    assert breaker.admit() is None


@pytest.mark.parametrize("cause", ["exhausted", "refused"])
def test_what_does_not_pass_by_itself_opens_at_once_and_for_longer(breaker, clock, cause):
    fail(breaker, cause)
    assert breaker.refusal() == f"{cause}: left alone for 100 s more after HTTP 500"
    clock.now += 99
    assert breaker.admit() is not None
    clock.now += 2
    assert breaker.admit() is None


@pytest.mark.parametrize("cause", ["blocked", "invalid"])
def test_pages_and_queries_are_not_the_back_ends_fault(breaker, cause):
    fail(breaker, cause, times=20)
    fail(breaker, times=2)
    fail(breaker, cause)
    fail(breaker, times=2)
    assert breaker.refusal() is None


@pytest.mark.parametrize("wrong", [{"failures": 0}, {"cool_down_s": -1.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Breaker(**wrong)
