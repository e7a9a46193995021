"""The circuit breaker on a clock of its own."""

import pytest

from mmsr1.tools.base import CallFailed
from mmsr1.tools.breaker import Breaker, Refusal


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return Breaker(failures=3, cool_down_s=10.0, longest_s=30.0, lasting_s=5.0, clock=clock)


def fail(breaker: Breaker, cause: str = "transient", times: int = 1) -> None:
    for _ in range(times):
        breaker.failed(CallFailed(cause, "HTTP 500"))


def opened(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, times=3)
    clock.now += 5
    fail(breaker)
    assert breaker.refusal() is not None


def test_it_opens_once_most_attempts_have_failed_for_a_while_and_says_why(breaker, clock):
    fail(breaker, times=2)
    clock.now += 6
    assert breaker.admit() is None
    fail(breaker, times=1)  # the third: from now on
    clock.now += 4.9
    fail(breaker)
    assert breaker.admit() is None and breaker.open_s == 0
    clock.now += 0.1
    fail(breaker)
    refusal = breaker.refusal()
    assert refusal is not None and refusal == breaker.admit()
    assert refusal.detail == "transient: left alone for 10 s more after 5 of 5 attempts failed, the last: HTTP 500"
    assert refusal.wait_s == pytest.approx(10) and not refusal.final


def test_many_failures_in_one_moment_do_not_open_it(breaker, clock):
    fail(breaker, times=50)
    clock.now += 1
    assert breaker.refusal() is None
    for _ in range(10):
        breaker.succeeded()
    clock.now += 10
    fail(breaker)
    assert breaker.refusal() is None


def test_a_back_end_that_often_answers_is_not_left_alone(breaker, clock):
    for _ in range(100):
        clock.now += 1
        fail(breaker, times=2)
        breaker.succeeded()
        assert breaker.refusal() is None


def test_what_happened_long_ago_does_not_count(breaker, clock):
    fail(breaker, times=20)
    clock.now += 61
    fail(breaker, times=2)
    assert breaker.refusal() is None


def test_throttled_attempts_never_count(breaker, clock):
    for _ in range(100):
        clock.now += 1
        fail(breaker, "throttled")
    assert breaker.refusal() is None
    opened(breaker, clock)
    fail(breaker, "throttled")  # one that was under way
    assert breaker.refusal() is not None
    clock.now += 10
    assert breaker.admit() is None
    fail(breaker, "throttled")  # it is there
    assert breaker.admit() is None and breaker.admit() is None


def test_one_attempt_is_let_through_after_the_cool_down_which_doubles(breaker, clock):
    opened(breaker, clock)
    for cool_down_s in (10, 20, 30, 30):
        clock.now += cool_down_s - 0.1
        fail(breaker)  # was under way when it opened
        assert breaker.admit() is not None
        clock.now += 0.2
        assert breaker.refusal() is None and breaker.refusal() is None  # asking does not take the place
        assert breaker.admit() is None
        assert breaker.admit() is not None and breaker.refusal() is not None
        fail(breaker)
    assert breaker.open_s == pytest.approx(90.4)
    clock.now += 30
    assert breaker.admit() is None
    breaker.succeeded()
    assert breaker.admit() is None and breaker.admit() is None and breaker.open_s == 0
    fail(breaker, times=2)
    assert breaker.refusal() is None  # the count has begun anew


def test_an_attempt_that_never_ends_or_tells_nothing_leaves_its_place(breaker, clock):
    opened(breaker, clock)
    clock.now += 10
    assert breaker.admit() is None and breaker.admit() is not None
    clock.now += 30
    assert breaker.admit() is None and breaker.admit() is not None
    breaker.unsaid()
    assert breaker.admit() is None and breaker.admit() is not None


@pytest.mark.parametrize(("cause", "times"), [("exhausted", 1), ("refused", 2)])
def test_what_does_not_pass_by_itself_opens_soon_and_for_longer(breaker, clock, cause, times):
    fail(breaker, cause, times - 1)
    assert breaker.refusal() is None and breaker.final is None
    fail(breaker, cause)
    assert breaker.final == f"{cause}: HTTP 500"
    assert breaker.refusal() == Refusal(f"{cause}: left alone for 300 s more after HTTP 500", 300.0, True)
    clock.now += 299
    assert breaker.admit() is not None
    clock.now += 2
    assert breaker.admit() is None
    fail(breaker)
    refusal = breaker.refusal()
    assert refusal is not None and refusal.final and refusal.wait_s == 30.0, "the account is still spent"
    clock.now += 31
    assert breaker.admit() is None
    breaker.succeeded()
    assert breaker.final is None and breaker.refusal() is None


def test_one_refusal_among_answers_may_be_about_what_was_asked(breaker, clock):
    for _ in range(20):
        fail(breaker, "refused")
        breaker.succeeded()
    assert breaker.refusal() is None and breaker.final is None
    fail(breaker, "refused", times=2)
    clock.now += 301
    assert breaker.admit() is None and breaker.final is not None
    fail(breaker, "refused")
    refusal = breaker.refusal()
    assert refusal is not None and refusal.final and refusal.wait_s == 300.0
    clock.now += 301
    assert breaker.admit() is None
    breaker.succeeded()
    assert breaker.final is None


@pytest.mark.parametrize("cause", ["blocked", "invalid"])
def test_pages_and_queries_are_not_the_back_ends_fault(breaker, clock, cause):
    fail(breaker, cause, times=20)
    fail(breaker, times=5)
    clock.now += 5
    fail(breaker, times=5)
    assert breaker.refusal() is None


@pytest.mark.parametrize("wrong", [{"failures": 0}, {"cool_down_s": -1.0}, {"longest_s": 1.0}, {"lasting_s": -1.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Breaker(**wrong)
