"""The cache pays once: across coroutines, processes, cancellations and restarts; and it survives a bad disk."""

import asyncio
import json
import multiprocessing
import pickle
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmsr1.tools.cache import CachedTool, cache_key
from mmsr1.tools.store import Store
from mmsr1.types import Picture, ToolItem, ToolName, ToolResult

THUMBNAIL = Picture(b"\x89PNG thumbnail")
RESULT = ToolResult(
    "ok",
    (ToolItem("title", "text", "url", THUMBNAIL), ToolItem("tïtle \ud800", "<answer>", "")),
    cost_usd=0.01,
    latency_s=9.0,
    detail="note",
)
forked = multiprocessing.get_context("fork")


class Backend:
    """A back end that counts its calls, in a file so that processes share the count."""

    name: ToolName = "text_search"

    def __init__(self, log: Path, result: ToolResult = RESULT, seconds: float = 0.0, backend: str = "b1") -> None:
        self.log, self.result, self.seconds, self.backend = log, result, seconds, backend

    async def __call__(self, query: str) -> ToolResult:
        with self.log.open("a") as log:
            log.write("call\n")
        await asyncio.sleep(self.seconds)
        return self.result

    @property
    def calls(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache")


def rows(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for database in directory.glob("*/cache.db"):
        connection = sqlite3.connect(database)
        found |= dict(connection.execute("SELECT key, value FROM Cache").fetchall())
        connection.close()
    return found


def ask(tool: CachedTool[str], query: str = "q") -> ToolResult:
    return asyncio.run(tool(query))


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
    assert backend.calls == 1 and not any(result.cached for result in results)
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


def test_waiting_for_another_process_blocks_nobody_and_ends(store, log):
    holder = forked.Process(target=lambda: ask(CachedTool(Backend(log, seconds=60), Store(store.directory))))
    holder.start()
    while not log.exists():
        time.sleep(0.01)
    tool = CachedTool(Backend(log), store, lock_wait_s=1.5)

    async def both() -> tuple[ToolResult, ToolResult]:
        waiting = asyncio.create_task(tool("q"))
        other = await asyncio.wait_for(tool("another question"), 5)
        assert not waiting.done()
        return other, await waiting

    try:
        other, waited = asyncio.run(both())
    finally:
        holder.kill()
        holder.join(30)
    assert other.status == waited.status == "ok" and waited.latency_s >= 1.5


class Opens:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def overwrite(directory: Path, key: str, **columns: object) -> None:
    for database in directory.glob("*/cache.db"):
        connection = sqlite3.connect(database)
        with connection:
            names = ", ".join(f"{name} = ?" for name in columns)
            connection.execute(f"UPDATE Cache SET {names} WHERE key = ?", (*columns.values(), key))
        connection.close()


def edited(**changes: object) -> str:
    """The honest entry with some fields changed."""
    item = {"title": "t", "text": "", "url": "", "thumbnail": None}
    entry = {"cost_usd": 0.0, "detail": "", "items": [item], "key": KEY, "status": "ok"}
    return json.dumps(entry | changes)


KEY = cache_key("text_search", "b1", "q")
DAMAGE = {
    "cut short": {"value": '{"cost_usd":0.0,"det'},
    "bytes": {"value": b"{}"},
    "not an object": {"value": "[]"},
    "deeply nested": {"value": "[" * 20_000},
    "of another query": {"value": edited(key="0" * 64)},
    "failure": {"value": edited(status="infrastructure_error")},
    "not a number": {"value": edited(cost_usd=float("nan"))},
    "huge number": {"value": edited(cost_usd=0).replace('"cost_usd": 0', '"cost_usd": ' + "9" * 5000)},
    "negative cost": {"value": edited(cost_usd=-1)},
    "items": {"value": edited(items=[{"title": 5}])},
    "items not a list": {"value": edited(items=7)},
    "lost thumbnail": {"value": edited(items=[{"title": "", "text": "", "url": "", "thumbnail": "0" * 64}])},
    "bad thumbnail name": {"value": edited(items=[{"title": "", "text": "", "url": "", "thumbnail": "../x"}])},
    "pickle": {"mode": 4},
    "another file": {"mode": 3, "value": None, "filename": "../../secret"},
}


@pytest.mark.parametrize("columns", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_entry_is_a_counted_miss_and_is_replaced(store, log, tmp_path, columns):
    canary, secret = tmp_path / "canary", tmp_path / "secret"
    secret.write_text(edited())
    backend = Backend(log)
    ask(CachedTool(backend, store))
    if columns.get("mode") == 4:
        columns = columns | {"value": pickle.dumps(Opens(canary))}
    overwrite(store.directory, KEY, **columns)
    tool = CachedTool(backend, Store(store.directory))
    assert [ask(tool).cached for _ in range(2)] == [False, True]
    assert backend.calls == 2 and tool.counters.corrupt_entries == 1
    assert not canary.exists() and secret.exists()


def test_the_edited_entry_itself_would_be_accepted(store, log):
    """So the damage above is refused for what is damaged, not for how the test writes it."""
    ask(CachedTool(Backend(log), store))
    overwrite(store.directory, KEY, value=edited())
    assert ask(CachedTool(Backend(log), store)).items == (ToolItem("t"),)


def test_a_changed_thumbnail_is_fetched_again(store, log):
    backend = Backend(log)
    ask(CachedTool(backend, store))
    overwrite(store.directory, f"blob:{THUMBNAIL.digest}", value=b"another picture")
    tool = CachedTool(backend, store)
    assert ask(tool).items[0].thumbnail == THUMBNAIL and tool.counters.corrupt_entries == 1
    assert ask(tool).cached


def test_a_disk_that_refuses_costs_money_not_the_run(store, log):
    class Full(Store):
        def put(self, key: str, value: str | bytes) -> None:
            raise sqlite3.OperationalError("database or disk is full")

    tool = CachedTool(Backend(log), Full(store.directory))
    assert [ask(tool).status for _ in range(2)] == ["ok", "ok"]
    assert tool.counters.unwritten == 2 and tool.counters.backend_calls == 2
