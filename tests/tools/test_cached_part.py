"""A cached part: any value through its codec, paid once, kept before the ledger says so."""

import asyncio
import json
import pickle
import sqlite3
from pathlib import Path

import pytest
from cache_helpers import Opens, rows, tamper
from scripted import ScriptedPart

from mmsr1.tools.base import Outcome
from mmsr1.tools.budget import Budget, BudgetLimits, Paid
from mmsr1.tools.cache import PICTURE, TEXT, CachedPart, CachedTool, Codec, cache_key, part_key
from mmsr1.tools.codecs import LARGE
from mmsr1.tools.ledger import Ledger, LedgerTotals, read_totals
from mmsr1.tools.meter import Meter
from mmsr1.tools.store import Store
from mmsr1.types import Picture, ToolItem, ToolResult

NUMBERS: Codec[int, tuple[int, ...]] = Codec(
    asked=lambda query: {"number": query},
    dump=lambda value, store: list(value),
    load=lambda value, store: tuple(value),
)


def part(value=None, status="ok", price: float = 0.5, **options) -> ScriptedPart:
    paid = price / 2
    answer = Outcome(status, value if status == "ok" else None, paid, paid)
    return ScriptedPart("serpapi", lambda query: answer, price, **options)


def ask(cached: CachedPart, query="q") -> Outcome:
    return asyncio.run(cached(query))


LONG = "<p>Straße \ud800\r\n\0</p>" * LARGE


@pytest.mark.parametrize(
    ("codec", "query", "value"),
    [
        (TEXT, "q", "short"),
        (TEXT, "q", ""),
        (TEXT, "q", LONG),
        (TEXT, Picture(b"image"), "short"),
        (PICTURE, "http://a.test/", Picture(b"\x89PNG")),
        (NUMBERS, 5, (1, 2)),
        (NUMBERS, 5, ()),
    ],
)
def test_a_value_comes_back_from_disk_as_it_was(store, codec, query, value):
    inner = part(value)
    assert ask(CachedPart(inner, store, codec), query) == Outcome("ok", value, 0.25, 0.25)
    again = ask(CachedPart(inner, Store(store.directory), codec), query)
    assert again == Outcome("ok", value, cost_usd=0.25, paid_usd=0.0, cached=True) and len(inner.asked) == 1


def test_nothing_found_is_kept_and_failures_are_not(store):
    empty = part(status="empty")
    assert [ask(CachedPart(empty, store, TEXT)).cached for _ in range(2)] == [False, True] and len(empty.asked) == 1
    for status in ("infrastructure_error", "malformed_call", "over_budget"):
        failing = part(status=status)
        failing.backend = status
        before = rows(store.directory)
        assert [ask(CachedPart(failing, store, TEXT)).status for _ in range(2)] == [status] * 2
        assert len(failing.asked) == 2 and rows(store.directory) == before


def test_the_key_holds_part_and_query_and_differs_from_any_tools():
    keys = {
        part_key("a", "b", {"text": "q"}),
        part_key("b", "b", {"text": "q"}),
        part_key("a", "c", {"text": "q"}),
        part_key("a", "b", {"text": "r"}),
        part_key("text_search", "b", {"text": "q"}),
        cache_key("text_search", "b", "q"),
    }
    assert len(keys) == 6


def test_equal_calls_at_once_are_paid_once(store):
    meter, inner = Meter(), part("x", wait=lambda query: 20)
    cached = CachedPart(inner, store, TEXT, meter=meter)

    async def crowd() -> list[Outcome]:
        return await asyncio.gather(*(cached(f" q{' ' * n}") for n in range(30)))

    outcomes = asyncio.run(crowd())
    assert len(inner.asked) == 1 and {outcome.cost_usd for outcome in outcomes} == {0.25}
    assert sorted(outcome.paid_usd for outcome in outcomes) == [0.0] * 29 + [0.25]
    assert sum(outcome.cached for outcome in outcomes) == 29
    row = meter.rows()["serpapi"]
    assert (row["calls"], row["hits"], row["backend_calls"], row["paid_usd"]) == (30, 29, 1, 0.25)
    assert row["cost_usd"] == pytest.approx(30 * 0.25)


def test_a_shared_failure_is_charged_once(store):
    cached = CachedPart(part(status="infrastructure_error", wait=lambda query: 20), store, TEXT)

    async def crowd() -> list[Outcome]:
        return await asyncio.gather(*(cached("q") for _ in range(5)))

    outcomes = asyncio.run(crowd())
    assert sorted(outcome.paid_usd for outcome in outcomes) == [0.0] * 4 + [0.25]
    assert sorted(outcome.cached for outcome in outcomes) == [False] + [True] * 4


DAMAGE = {
    "of another query": lambda entry: entry | {"key": "0" * 64},
    "failure": lambda entry: entry | {"status": "over_budget"},
    "no value": lambda entry: {k: v for k, v in entry.items() if k != "value"},
    "wrong value": lambda entry: entry | {"value": 5},
    "lost blob": lambda entry: entry | {"value": {"blob": "0" * 64}},
    "bad blob name": lambda entry: entry | {"value": {"blob": "../../secret"}},
    "blob of no name": lambda entry: entry | {"value": {"blob": ["x"]}},
    "negative cost": lambda entry: entry | {"cost_usd": -1},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_entry_is_a_miss_that_is_replaced(store, damage):
    inner = part("honest")
    ask(CachedPart(inner, store, TEXT))
    ((key, text),) = rows(store.directory).items()
    tamper(store.directory, key, value=json.dumps(damage(json.loads(text))))
    cached = CachedPart(inner, Store(store.directory), TEXT)
    assert [ask(cached).cached for _ in range(2)] == [False, True]
    assert cached.counters.corrupt_entries == 1 and ask(cached).value == "honest"


@pytest.mark.parametrize("codec_value", [(TEXT, LONG), (PICTURE, Picture(b"x" * 9))], ids=["text", "picture"])
def test_a_changed_blob_is_refused(store, codec_value):
    codec, value = codec_value
    inner = part(value)
    ask(CachedPart(inner, store, codec))
    (blob,) = (key for key in rows(store.directory) if key.startswith("blob:"))
    tamper(store.directory, blob, mode=1, value=b"something else", filename=None)
    cached = CachedPart(inner, store, codec)
    assert ask(cached).value == value and cached.counters.corrupt_entries == 1 and len(inner.asked) == 2


def test_a_pickled_value_is_not_executed(store, tmp_path):
    canary = tmp_path / "canary"
    ask(CachedPart(part("x"), store, TEXT))
    ((key, _),) = rows(store.directory).items()
    tamper(store.directory, key, mode=4, value=pickle.dumps(Opens(canary)))
    assert ask(CachedPart(part("x"), Store(store.directory), TEXT)).value == "x" and not canary.exists()


def test_a_value_that_cannot_be_written_is_used_all_the_same(store):
    class Full(Store):
        def put(self, key: str, value: str | bytes) -> None:
            raise sqlite3.OperationalError("database or disk is full")

    cached = CachedPart(part("x"), Full(store.directory), TEXT)
    assert [ask(cached).value for _ in range(2)] == ["x", "x"] and cached.counters.unwritten == 2


@pytest.fixture
def paid(tmp_path):
    """A budget for two calls, and the folder of the ledger."""
    budget = Budget(BudgetLimits(calls_per_run=2), tmp_path / "run", tmp_path / "shared")
    return lambda inner: Paid(inner, budget, Ledger(tmp_path / "ledger", "rank0"))


def test_hits_are_free_when_the_budget_is_spent(store, paid, tmp_path):
    cached = CachedPart(paid(part("x")), store, TEXT)
    found = [ask(cached, query) for query in ("a", "b", "c", "a")]
    assert [outcome.status for outcome in found] == ["ok", "ok", "over_budget", "ok"]
    assert found[3].cached and cached.counters.backend_calls == 2 and cached.counters.hits == 1
    assert read_totals(tmp_path / "ledger") == LedgerTotals(2, 2, 0, 0, 0.5)  # none of "c"
    assert cached.price_usd == 0.5


def test_the_answer_is_on_disk_before_the_ledger_says_so(store, paid, tmp_path, monkeypatch):
    put, happened = store.put, []

    def watched(key: str, value: str | bytes) -> None:
        put(key, value)
        happened.append(read_totals(tmp_path / "ledger"))

    monkeypatch.setattr(store, "put", watched)
    cached = CachedPart(paid(part("x")), store, TEXT)
    ask(cached)
    assert happened == [LedgerTotals(1, 0, 0, 1, 0.5)]
    assert read_totals(tmp_path / "ledger") == LedgerTotals(1, 1, 0, 0, 0.25)
    (key,) = rows(store.directory)
    assert key in (tmp_path / "ledger" / "rank0.jsonl").read_text()


def test_a_tools_result_that_lacks_something_is_shown_but_not_kept(store, log: Path):
    from cache_helpers import Backend

    backend = Backend(log, ToolResult("ok", (ToolItem("title"),), complete=False))
    tool = CachedTool(backend, store)
    found = [asyncio.run(tool("q")) for _ in range(2)]
    assert [(result.status, result.cached) for result in found] == [("ok", False)] * 2 and backend.calls == 2
    assert rows(store.directory) == {}
