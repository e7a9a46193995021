"""The budget is exact over threads, processes and restarts, and a kill can only overstate what was spent."""

import asyncio
import json
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest
from scripted import ScriptedPart

from mmsr1.tools import budget as module
from mmsr1.tools.base import Outcome
from mmsr1.tools.budget import Budget, BudgetLimits, Paid
from mmsr1.tools.ledger import Ledger, LedgerTotals, read_totals

forked = multiprocessing.get_context("fork")


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def shared(tmp_path):
    return tmp_path / "shared"


@pytest.fixture
def of(run, shared):
    """A budget with these limits, as each process or resumed run makes it."""
    return lambda **limits: Budget(BudgetLimits(**limits), run, shared)


def test_calls_are_taken_and_corrected(of):
    budget = of(calls_per_run=3, usd_per_run=1.0)
    first = budget.reserve(0.5)
    assert budget.spent() == {"calls_per_run": 1, "usd_per_run": 0.5}
    budget.settle(first, 0.125)
    assert budget.spent() == {"calls_per_run": 1, "usd_per_run": 0.125}
    assert budget.reserve(0.875) is not None
    assert budget.reserve(0.001) is None and budget.reserve(0.0) is not None  # money is spent, a free call is left
    assert budget.reserve(0.0) is None  # the fourth call
    assert budget.spent() == {"calls_per_run": 3, "usd_per_run": 1.0}


def test_a_call_that_was_not_made_is_given_back(of):
    budget = of(calls_per_run=1, usd_per_run=1.0)
    budget.settle(budget.reserve(0.5), 0.0, made=False)
    assert budget.spent() == {"calls_per_run": 0, "usd_per_run": 0.0} and budget.left is None


def test_a_call_that_cost_more_than_its_price_counts_in_full(of):
    budget = of(usd_per_run=1.0)
    budget.settle(budget.reserve(0.5), 1.5)
    assert budget.spent()["usd_per_run"] == 1.5 and budget.left is not None


def test_small_amounts_add_up_exactly(of):
    budget = of(usd_per_run=0.3)
    for _ in range(30):
        assert budget.reserve(0.01) is not None
    assert budget.spent()["usd_per_run"] == 0.3 and budget.reserve(0.01) is None


def test_without_limits_no_file_is_touched(of, run, shared):
    budget = of()
    reservation = budget.reserve(5.0)
    budget.settle(reservation, 1.0)
    assert not budget.limited and budget.spent() == {} and budget.left is None
    assert not run.exists() and not shared.exists()
    of(calls_per_day=5).reserve(0.0)
    assert not run.exists() and shared.exists()


@pytest.mark.parametrize("limits", [{"usd_per_run": 0.0}, {"calls_per_run": 0}, {"calls_per_day": 0}])
def test_a_limit_of_nothing_lets_no_paid_call_pass(of, limits):
    budget = of(**limits)
    assert budget.reserve(0.01) is None and next(iter(limits)) in budget.left


def test_what_is_left_is_told_in_one_line(of):
    budget = of(calls_per_run=2, usd_per_day=0.05)
    assert budget.left is None
    budget.reserve(0.02), budget.reserve(0.02)
    assert budget.left == "tools.budget.calls_per_run=2 is reached: 2 calls and 0.0400 USD are spent; raise it to go on"
    budget = of(usd_per_day=0.05)
    assert budget.left is None  # 0.01 is left, and nobody has asked for more
    assert budget.reached(0.01) is None and "leaves too little for a call of 0.02 USD" in str(budget.reached(0.02))
    assert budget.reserve(0.02) is None
    little = "tools.budget.usd_per_day=0.05 leaves too little for a call of 0.02 USD"
    assert budget.left == f"{little}: 2 calls and 0.0400 USD are spent; raise it to go on"


def test_a_refusal_because_of_calls_under_way_is_not_for_good(of):
    budget = of(usd_per_run=1.0)
    under_way = budget.reserve(0.9)
    assert budget.reserve(0.2) is None and budget.left is not None
    budget.settle(under_way, 0.1)
    assert budget.left is None and budget.reserve(0.2) is not None


def test_a_resumed_run_goes_on_with_its_own_figures(of):
    of(calls_per_run=5).reserve(0.25)
    assert of(calls_per_run=5).spent() == {"calls_per_run": 1, "usd_per_run": 0.25}


def test_a_day_is_shared_by_runs_and_ends_at_midnight(tmp_path, shared, monkeypatch):
    from datetime import datetime as real

    class Clock(real):
        today = real(2026, 1, 31, 23, 59, tzinfo=module.UTC)

        @classmethod
        def now(cls, tz=None):
            return cls.today

    monkeypatch.setattr(module, "datetime", Clock)
    one, two = (Budget(BudgetLimits(calls_per_day=2), tmp_path / name, shared) for name in "ab")
    late = one.reserve(0.5)
    assert two.reserve(0.5) is not None and one.reserve(0.5) is None and two.left is not None
    Clock.today = real(2026, 2, 1, 0, 1, tzinfo=module.UTC)
    assert two.left is None and two.reserve(0.25) is not None
    one.settle(late, 0.125)  # belongs to the day on which it was taken
    days = {file.name: json.loads(file.read_text()) for file in shared.glob("*.json")}
    assert days == {
        "2026-01-31.json": {"calls": 2, "nano_usd": 625_000_000},
        "2026-02-01.json": {"calls": 1, "nano_usd": 250_000_000},
    }


def spend(run: Path, shared: Path, gate, made) -> None:
    budget = Budget(BudgetLimits(calls_per_run=100, usd_per_day=100.0), run, shared)
    gate.wait(20)
    count = 0
    for _ in range(60):
        reservation = budget.reserve(1.0)
        if reservation is not None:
            count += 1
            budget.settle(reservation, 0.25)
    made.put(count)


def test_processes_never_spend_more_than_there_is(run, shared, of):
    gate, made = forked.Barrier(3), forked.Queue()
    workers = [forked.Process(target=spend, args=(run, shared, gate, made)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert sum(made.get(timeout=60) for _ in workers) == 100
    for worker in workers:
        worker.join(60)
    budget = of(calls_per_run=100, usd_per_day=100.0)
    assert budget.spent() == {"calls_per_run": 100, "usd_per_run": 25.0, "calls_per_day": 100, "usd_per_day": 25.0}


def test_threads_never_spend_more_than_there_is(of):
    budget, made = of(calls_per_run=50), []

    def work() -> None:
        made.extend(reservation for reservation in (budget.reserve(0.0) for _ in range(20)) if reservation is not None)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made) == 50 == budget.spent()["calls_per_run"]


def test_a_killed_process_leaves_its_call_spent_and_the_lock_free(run, shared, of):
    def die() -> None:
        Budget(BudgetLimits(usd_per_run=1.0), run, shared).reserve(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    worker = forked.Process(target=die)
    worker.start()
    worker.join(30)
    budget = of(usd_per_run=1.0)
    assert budget.spent() == {"calls_per_run": 1, "usd_per_run": 0.5}
    assert budget.reserve(0.5) is not None and budget.reserve(0.5) is None


def test_a_kill_while_writing_leaves_the_old_figures(of, run, monkeypatch):
    budget = of(usd_per_run=1.0)
    budget.reserve(0.25)
    (run / "budget.new").write_text('{"calls": 5')  # what a kill leaves behind
    assert of(usd_per_run=1.0).spent()["usd_per_run"] == 0.25
    assert budget.reserve(0.25) is not None and budget.spent()["usd_per_run"] == 0.5


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"calls": 1}', '{"calls": -1, "nano_usd": 0}', '{"calls": 1.5, "nano_usd": 0}']
)
def test_a_file_that_cannot_be_read_stops_the_start_and_lets_no_call_pass(of, run, content):
    budget = of(calls_per_run=5)
    reservation = budget.reserve(0.5)
    (run / "budget.json").write_text(content)
    with pytest.raises(ValueError, match=r"budget\.json does not say what was spent.*repair or remove it"):
        of(calls_per_run=5)
    assert budget.reserve(0.0) is None and "does not say" in budget.left
    budget.settle(reservation, 0.25)  # raises nothing
    outcome = asyncio.run(Paid(part(), budget)("q"))
    assert outcome.status == "over_budget" and "does not say" in outcome.detail


@pytest.mark.parametrize("limits", [{"calls_per_run": -1}, {"usd_per_day": -0.5}, {"usd_per_run": float("nan")}])
def test_limits_below_nothing_are_refused(limits):
    with pytest.raises(ValueError, match=f"tools.budget.{next(iter(limits))}="):
        BudgetLimits(**limits)


def part(outcome: Outcome | None = None, price: float = 0.5) -> ScriptedPart:
    return ScriptedPart("serpapi", lambda query: outcome or Outcome("ok", query, 0.25, 0.25), price)


def test_a_paid_part_takes_settles_and_stands_in_the_ledger(of, tmp_path):
    budget, ledger = of(calls_per_run=2, usd_per_run=10.0), Ledger(tmp_path / "ledger", "rank0")
    inner = part()
    paid = Paid(inner, budget, ledger, lambda query: f"key of {query}")
    outcomes = [asyncio.run(paid("q")) for _ in range(3)]
    assert [outcome.status for outcome in outcomes] == ["ok", "ok", "over_budget"] and len(inner.asked) == 2
    assert "calls_per_run=2" in outcomes[2].detail and outcomes[2].cached and outcomes[2].paid_usd == 0.0
    assert budget.spent() == {"calls_per_run": 2, "usd_per_run": 0.5}
    assert read_totals(tmp_path / "ledger") == LedgerTotals(2, 2, 0, 0, 0.5)
    assert "key of q" in (tmp_path / "ledger" / "rank0.jsonl").read_text()
    assert (paid.name, paid.backend, paid.price_usd) == (inner.name, inner.backend, 0.5)


def test_failures_cost_what_was_paid_and_calls_not_made_nothing(of, tmp_path):
    budget, ledger = of(usd_per_run=10.0), Ledger(tmp_path / "ledger", "rank0")
    for outcome in (
        Outcome("infrastructure_error", paid_usd=0.125, detail="transient: x"),
        Outcome("infrastructure_error", cached=True, detail="transient: left alone"),
    ):
        assert asyncio.run(Paid(part(outcome), budget, ledger)("q")) == outcome
    assert budget.spent() == {"calls_per_run": 1, "usd_per_run": 0.125}
    assert read_totals(tmp_path / "ledger").spent_usd == 0.125


def test_a_call_that_is_cut_counts_at_its_price(of, tmp_path):
    budget, ledger = of(usd_per_run=10.0), Ledger(tmp_path / "ledger", "rank0")
    inner = ScriptedPart("serpapi", lambda query: Outcome("ok", query), 0.5, wait=lambda query: 10**9)

    async def cut() -> None:
        task = asyncio.create_task(Paid(inner, budget, ledger)("q"))
        while not inner.asked:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cut())
    assert budget.spent() == {"calls_per_run": 1, "usd_per_run": 0.5}
    assert read_totals(tmp_path / "ledger").spent_usd == 0.5


def test_a_call_that_the_ledger_cannot_record_is_not_made(of, tmp_path):
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "rank0.jsonl").symlink_to("/dev/full")
    budget, inner = of(usd_per_run=10.0), part()
    outcome = asyncio.run(Paid(inner, budget, Ledger(tmp_path / "ledger", "rank0"))("q"))
    assert outcome.status == "infrastructure_error" and "ledger" in outcome.detail and inner.asked == []
    assert budget.spent() == {"calls_per_run": 0, "usd_per_run": 0.0}
