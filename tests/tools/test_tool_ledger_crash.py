"""A cached tool with a ledger: after any kill, cut or failure no answer is paid for twice and the spend is known."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cache_helpers import RESULT, Backend, ask

from mmsr1.tools.cache import CachedTool, cache_key
from mmsr1.tools.ledger import EndState, Ledger, LedgerTotals, read_totals
from mmsr1.tools.store import Store
from mmsr1.types import ToolResult

PRICE = 0.5  # the answer of Backend costs 0.01


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "ledger"


def paid(log: Path, store: Store, folder: Path, **options) -> CachedTool:
    return CachedTool(Backend(log, price_usd=PRICE, **options), store, ledger=Ledger(folder, "rank0"))


class KilledBeforeTheEnd(Ledger):
    """The process dies when the answer is in the cache and its end is about to be written."""

    def end(self, call: str, state: EndState, cost_usd: float) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class KilledBeforeTheCall(Ledger):
    """The process dies when the start is on disk and the back end is about to be asked."""

    async def start(self, *call) -> str | None:
        await super().start(*call)
        os.kill(os.getpid(), signal.SIGKILL)


def process(tmp_path: Path, log: Path, *code: str) -> subprocess.Popen:
    """Another Python that has `store`, `log`, `folder` and runs `code`."""
    head = f"""
from pathlib import Path
from test_tool_ledger_crash import *
store, log, folder = Store(Path({str(tmp_path / "cache")!r})), Path({str(log)!r}), Path({str(tmp_path / "ledger")!r})
"""
    places = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    return subprocess.Popen([sys.executable, "-c", head + "\n".join(code)], env=environment)


def test_a_kill_in_the_middle_of_a_call_counts_it_and_repeats_no_answer(tmp_path, store, log, folder):
    child = process(
        tmp_path,
        log,
        "ask(paid(log, store, folder), 'answered')",
        "ask(paid(log, store, folder, seconds=600), 'in flight')",
    )
    try:
        while Backend(log).calls < 2:
            assert child.poll() is None
            time.sleep(0.02)
    finally:
        child.kill()
        child.wait(60)
    assert read_totals(folder) == LedgerTotals(started=2, answered=1, failed=0, unknown=1, spent_usd=0.51)

    resumed = paid(log, store, folder)
    assert ask(resumed, "answered").cached and Backend(log).calls == 2
    assert not ask(resumed, "in flight").cached and Backend(log).calls == 3
    assert ask(resumed, "in flight").cached and Backend(log).calls == 3
    assert read_totals(folder) == LedgerTotals(started=3, answered=2, failed=0, unknown=1, spent_usd=0.52)
    assert [file.name for file in folder.iterdir()] == ["rank0.jsonl"]


@pytest.mark.parametrize(("killed", "kept"), [("KilledBeforeTheEnd", True), ("KilledBeforeTheCall", False)])
def test_a_kill_on_either_side_of_the_call_counts_it_once(tmp_path, store, log, folder, killed, kept):
    backend = f"Backend(log, price_usd={PRICE})"
    child = process(tmp_path, log, f"ask(CachedTool({backend}, store, ledger={killed}(folder, 'rank0')))")
    assert child.wait(60) == -signal.SIGKILL
    assert read_totals(folder) == LedgerTotals(started=1, answered=0, failed=0, unknown=1, spent_usd=0.5)
    assert ask(paid(log, store, folder)).cached is kept
    assert Backend(log).calls == 1  # by the process that died, or by the resumed one
    assert read_totals(folder).spent_usd == (0.5 if kept else 0.51)


def test_hits_and_shared_calls_are_no_back_end_calls(store, log, folder):
    tool = paid(log, store, folder, seconds=0.02)

    async def crowd() -> None:
        await asyncio.gather(*(tool("q") for _ in range(20)))

    asyncio.run(crowd())
    ask(tool)
    assert read_totals(folder) == LedgerTotals(1, 1, 0, 0, 0.01)
    written = (folder / "rank0.jsonl").read_text()
    assert cache_key("text_search", "b1", "q") in written


def test_the_ledger_does_not_tell_the_query(store, log, folder):
    ask(paid(log, store, folder), "the secret-canary")
    assert "canary" not in (folder / "rank0.jsonl").read_text()


def test_many_calls_at_once_are_all_counted(store, log, folder):
    class Gated(Backend):
        gate: asyncio.Event

        async def __call__(self, query: str) -> ToolResult:
            await self.gate.wait()
            return await super().__call__(query)

    backend = Gated(log, price_usd=PRICE)
    tool = CachedTool(backend, store, ledger=Ledger(folder, "rank0"))

    async def crowd() -> None:
        backend.gate = asyncio.Event()
        asked = [asyncio.create_task(tool(f"q{n}")) for n in range(100)]
        while read_totals(folder).started < 100:
            await asyncio.sleep(0.01)
        assert read_totals(folder) == LedgerTotals(started=100, answered=0, failed=0, unknown=100, spent_usd=50.0)
        backend.gate.set()
        await asyncio.gather(*asked)

    asyncio.run(crowd())
    totals = read_totals(folder)
    assert (totals.started, totals.answered, Backend(log).calls) == (100, 100, 100)
    assert totals.spent_usd == pytest.approx(1.0)


def test_the_start_is_on_disk_before_the_call_and_the_answer_before_the_end(store, log, folder, monkeypatch):
    happened: list[str] = []
    fsync, put = os.fsync, store.put

    def watched_fsync(descriptor: int) -> None:
        fsync(descriptor)
        happened.append(f"sync of {(folder / 'rank0.jsonl').read_text().count('started')}")

    class Watched(Backend):
        async def __call__(self, query: str) -> ToolResult:
            happened.append("call")
            return await super().__call__(query)

    def watched_put(key: str, value: str | bytes) -> None:
        put(key, value)
        happened.append(f"kept, {read_totals(folder).answered} ended")

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(store, "put", watched_put)
    tool = CachedTool(Watched(log, ToolResult("ok"), price_usd=PRICE), store, ledger=Ledger(folder, "rank0"))
    ask(tool, "first")
    assert happened == ["sync of 1", "sync of 1", "call", "kept, 0 ended"]  # the file, its name in the folder
    ask(tool, "second")
    assert happened[4:] == ["sync of 2", "call", "kept, 1 ended"]
    assert read_totals(folder).answered == 2


def test_a_free_call_is_recorded_without_waiting_for_the_disk(store, log, folder, monkeypatch):
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    backend = Backend(log, ToolResult("ok"))
    ask(CachedTool(backend, store, ledger=Ledger(folder, "rank0")))
    assert synced == [] and read_totals(folder) == LedgerTotals(1, 1, 0, 0, 0.0)


def test_what_comes_back_as_a_failure_costs_what_it_says(store, log, folder):
    for status, cost in (("infrastructure_error", 0.25), ("malformed_call", 0.0)):
        ask(paid(log, store, folder, result=ToolResult(status, cost_usd=cost)))
    assert read_totals(folder) == LedgerTotals(started=2, answered=0, failed=2, unknown=0, spent_usd=0.25)
    ask(paid(log, store, folder, result=ToolResult("empty", cost_usd=0.125)))  # nothing found is an answer
    assert read_totals(folder) == LedgerTotals(started=3, answered=1, failed=2, unknown=0, spent_usd=0.375)


def test_a_back_end_that_raises_counts_at_its_price(store, log, folder):
    class Broken(Backend):
        async def __call__(self, query: str) -> ToolResult:
            raise RuntimeError("after or before it was charged: nobody knows")

    tool = CachedTool(Broken(log, price_usd=PRICE), store, ledger=Ledger(folder, "rank0"))
    assert ask(tool).status == "infrastructure_error"
    assert read_totals(folder) == LedgerTotals(1, 0, 1, 0, PRICE)


def test_a_call_cut_at_the_end_of_the_run_counts_at_its_price(store, log, folder):
    """`asyncio.run` cancels what is under way when it ends."""
    tool = paid(log, store, folder, seconds=600)

    async def leave_early() -> None:
        waiting = asyncio.create_task(tool("q"))
        while Backend(log).calls == 0:
            await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.sleep(0.01)
        assert read_totals(folder).unknown == 1  # the call goes on although nobody waits

    asyncio.run(leave_early())
    assert read_totals(folder) == LedgerTotals(1, 0, 1, 0, PRICE)


@pytest.fixture
def full(folder):
    """A ledger on a device that is always full."""
    folder.mkdir()
    (folder / "rank0.jsonl").symlink_to("/dev/full")
    return Ledger(folder, "rank0")


def test_a_paid_call_that_cannot_be_recorded_is_not_made(store, log, full):
    tool = CachedTool(Backend(log, price_usd=PRICE), store, ledger=full)
    result = ask(tool)
    assert result.status == "infrastructure_error" and "ledger" in result.detail and "No space" in result.detail
    assert result.cost_usd == 0.0 and Backend(log).calls == tool.counters.backend_calls == 0
    assert tool.counters.failures == {"infrastructure_error": 1}


def test_a_free_call_that_cannot_be_recorded_is_made_with_a_warning(store, log, full, caplog):
    tool = CachedTool(Backend(log), store, ledger=full)
    assert ask(tool).items == RESULT.items and ask(tool).cached
    assert "not recorded in the ledger" in caplog.text


def test_a_cached_tool_costs_what_its_back_end_costs(store, log):
    assert CachedTool(Backend(log, price_usd=PRICE), store).price_usd == PRICE
