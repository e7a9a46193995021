"""The cache pays once: across coroutines, processes, cancellations and restarts; and it survives a bad disk."""

import asyncio
import json
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cache_helpers import RESULT, THUMBNAIL, Backend, ask, rows

from mmsr1.tools.cache import CachedTool, cache_key
from mmsr1.tools.store import Store
from mmsr1.types import Picture, ToolResult

forked = multiprocessing.get_context("fork")


def test_a_repeated_query_is_answered_from_disk(store, log):
    backend = Backend(log)
    first = ask(CachedTool(backend, store))
    tool = CachedTool(backend, Store(store.directory))  # another run
    second = ask(tool)
    assert backend.calls == 1
    assert not first.cached and second.cached
    assert replace(second, cached=False, latency_s=0.0) == replace(RESULT, latency_s=0.0)
    assert first.cost_usd == second.cost_usd == 0.01
    assert 0 < second.latency_s < 1 and 0 < first.latency_s < 1  # of this call, not what the back end claimed
    counters = tool.counters
    assert (counters.calls, counters.hits, counters.backend_calls, counters.failures) == (1, 1, 0, {})


def test_rows_are_canonical_text_and_blobs_without_the_query(store, log):
    query = "  who   holds\nthe secret-canary  "
    ask(CachedTool(Backend(log), store), query)
    key = cache_key("text_search", "b1", "who holds the secret-canary")
    stored = rows(store.directory)
    assert set(stored) == {key, f"blob:{THUMBNAIL.digest}"}
    assert stored[f"blob:{THUMBNAIL.digest}"] == THUMBNAIL.data
    entry = json.loads(stored[key])
    assert stored[key] == json.dumps(entry, sort_keys=True, separators=(",", ":"))
    assert entry["items"][0]["thumbnail"] == THUMBNAIL.digest and "secret-canary" not in stored[key]


def test_the_key_holds_all_that_decides_the_result():
    same = {cache_key("text_search", "b", q) for q in ("a b", " a\t b\n")}
    picture, text = Picture(b"x"), Picture(b"x").digest
    other = {
        cache_key("text_search", "b", "a c"),
        cache_key("text_search", "c", "a b"),
        cache_key("image_search", "b", "a b"),
        cache_key("image_search", "b", picture),
        cache_key("image_search", "b", text),
        cache_key("image_search", "b", Picture(b"y")),
    }
    assert len(same) == 1 and len(same | other) == 7
    assert cache_key("image_search", "b", Picture(b"x")) == cache_key("image_search", "b", picture)


def test_nothing_found_is_kept_and_failures_are_not(store, log):
    empty = CachedTool(Backend(log, ToolResult("empty"), backend="e"), store)
    assert [ask(empty).cached for _ in range(2)] == [False, True]
    for status in ("infrastructure_error", "malformed_call", "over_budget"):
        kept = len(rows(store.directory))
        backend = Backend(log.with_name(status), ToolResult(status, detail="down"), backend=status)
        tool = CachedTool(backend, store)
        assert [ask(tool).cached for _ in range(2)] == [False, False]
        assert backend.calls == 2 and len(rows(store.directory)) == kept
        assert tool.counters.failures == {status: 2} and tool.counters.hits == 0
        backend.result = RESULT  # the back end recovers
        assert ask(tool).status == "ok"
    assert len(rows(store.directory)) == 1 + 3 + 1  # empty, three recoveries, their common thumbnail


def test_a_hundred_equal_calls_at_once_cost_one(store, log):
    backend = Backend(log, seconds=0.05)
    tool = CachedTool(backend, store)

    async def crowd() -> list[ToolResult]:
        return await asyncio.gather(*(tool(f"q{' ' * (n % 3)}") for n in range(100)))

    results = asyncio.run(crowd())
    assert backend.calls == 1
    assert {result.items for result in results} == {RESULT.items}
    assert sum(not result.cached for result in results) == 1
    assert (tool.counters.calls, tool.counters.hits, tool.counters.backend_calls) == (100, 99, 1)


def test_different_queries_do_not_wait_for_each_other(store, log):
    backend = Backend(log, seconds=0.2)
    tool = CachedTool(backend, store)

    async def crowd() -> None:
        await asyncio.gather(*(tool(f"q{n}") for n in range(20)))

    start = time.perf_counter()
    asyncio.run(crowd())
    assert backend.calls == 20 and time.perf_counter() - start < 3.5  # 4 s one after another


def test_a_shared_failure_is_charged_once(store, log):
    backend = Backend(log, ToolResult("infrastructure_error", cost_usd=0.5), seconds=0.02)
    tool = CachedTool(backend, store)

    async def crowd() -> list[ToolResult]:
        return await asyncio.gather(*(tool("q") for _ in range(5)))

    results = asyncio.run(crowd())
    assert backend.calls == 1 and sorted(result.cached for result in results) == [False] + [True] * 4
    assert sum(result.cost_usd for result in results) == 0.5
    assert tool.counters.failures == {"infrastructure_error": 5}


def test_a_cancelled_call_goes_on_for_the_others_and_for_later(store, log):
    class Gated(Backend):
        started: asyncio.Event
        gate: asyncio.Event

        async def __call__(self, query: str) -> ToolResult:
            self.started.set()
            await self.gate.wait()
            return await super().__call__(query)

    backend = Gated(log)
    tool = CachedTool(backend, store)

    async def cut_while_under_way(others: int) -> list[ToolResult]:
        backend.started, backend.gate = asyncio.Event(), asyncio.Event()
        first, *rest = [asyncio.create_task(tool(f"query for {others}")) for _ in range(1 + others)]
        await backend.started.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        backend.gate.set()
        await asyncio.gather(*tool._flights.values())
        return await asyncio.gather(*rest, tool(f"query for {others}"))

    waiting, later = asyncio.run(cut_while_under_way(others=1))
    assert waiting.status == "ok" and later.cached and backend.calls == 1
    (later,) = asyncio.run(cut_while_under_way(others=0))
    assert later.cached and backend.calls == 2


def test_a_back_end_that_raises_becomes_a_status(store, log):
    class Broken(Backend):
        async def __call__(self, query: str) -> ToolResult:
            raise RuntimeError("bug")

    result = ask(CachedTool(Broken(log), store))
    assert result.status == "infrastructure_error" and "bug" in result.detail
    assert rows(store.directory) == {}


def in_process(directory: Path, log: Path, gate, answers) -> None:
    tool = CachedTool(Backend(log, seconds=0.4), Store(directory))
    gate.wait(20)
    answers.put(ask(tool))


def test_two_processes_cost_one_call(tmp_path, log):
    gate, answers = forked.Barrier(2), forked.Queue()
    workers = [forked.Process(target=in_process, args=(tmp_path / "cache", log, gate, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    results = [answers.get(timeout=30) for _ in workers]
    for worker in workers:
        worker.join(30)
    assert Backend(log).calls == 1
    assert sorted(result.cached for result in results) == [False, True]
    assert results[0].items == results[1].items


def test_a_killed_process_does_not_keep_the_lock(store, log):
    holder = forked.Process(target=lambda: ask(CachedTool(Backend(log, seconds=60), Store(store.directory))))
    holder.start()
    while not log.exists():
        time.sleep(0.01)
    holder.kill()
    holder.join(30)
    assert ask(CachedTool(Backend(log), store)).status == "ok"


def test_another_process_is_waited_for_as_long_as_it_lives_and_blocks_nobody(store, log, caplog):
    holder = forked.Process(target=lambda: ask(CachedTool(Backend(log, seconds=60), Store(store.directory))))
    holder.start()
    while not log.exists():
        time.sleep(0.01)
    backend = Backend(log)
    tool = CachedTool(backend, store, lock_wait_s=0.1)

    async def both() -> tuple[ToolResult, ToolResult]:
        waiting = asyncio.create_task(tool("q"))
        other = await asyncio.wait_for(tool("another question"), 5)
        while "waiting for 0 s" not in caplog.text:
            await asyncio.sleep(0.01)
        assert not waiting.done() and backend.calls == 2
        holder.kill()
        return other, await waiting

    try:
        other, waited = asyncio.run(both())
    finally:
        holder.kill()
        holder.join(30)
    assert other.status == waited.status == "ok" and backend.calls == 3
