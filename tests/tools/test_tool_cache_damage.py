"""A damaged or tampered cache entry is a miss that is counted and replaced: no crash, nothing executed."""

import json
import pickle
import sqlite3

import pytest
from cache_helpers import THUMBNAIL, Backend, Opens, ask, tamper

from mmsr1.tools import cache
from mmsr1.tools.cache import CachedTool, cache_key
from mmsr1.tools.store import Store
from mmsr1.types import ToolItem


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
    tamper(store.directory, KEY, **columns)
    tool = CachedTool(backend, Store(store.directory))
    assert [ask(tool).cached for _ in range(2)] == [False, True]
    assert backend.calls == 2 and tool.counters.corrupt_entries == 1
    assert not canary.exists() and secret.exists()


def test_the_edited_entry_itself_would_be_accepted(store, log):
    """So the damage above is refused for what is damaged, not for how the test writes it."""
    ask(CachedTool(Backend(log), store))
    tamper(store.directory, KEY, value=edited())
    assert ask(CachedTool(Backend(log), store)).items == (ToolItem("t"),)


def test_a_changed_thumbnail_is_fetched_again(store, log):
    backend = Backend(log)
    ask(CachedTool(backend, store))
    tamper(store.directory, f"blob:{THUMBNAIL.digest}", value=b"another picture")
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


def test_without_room_for_a_lock_file_the_call_is_made_all_the_same(store, log, monkeypatch):
    (store.directory / "no folder").write_text("")
    monkeypatch.setattr(store, "lock_path", lambda key: store.directory / "no folder" / "lock")
    tool = CachedTool(Backend(log), store)
    assert [ask(tool).cached for _ in range(2)] == [False, True]


def test_what_is_remembered_is_what_is_on_disk(store, log):
    """An entry that changes is read again, and memory holds no more than it should."""
    tool = CachedTool(Backend(log), store)
    ask(tool)
    first, second = ask(tool), ask(tool)
    assert first.items is second.items  # decoded once
    tamper(store.directory, KEY, value=edited())
    assert ask(tool).items == (ToolItem("t"),)


def test_memory_forgets_what_was_not_asked_for_longest_and_what_is_large(store, log, monkeypatch):
    monkeypatch.setattr(cache, "REMEMBERED", 2)
    tool = CachedTool(Backend(log), store)
    for query in ("a", "b", "a", "b", "a", "c", "c"):
        ask(tool, query)
    assert set(tool._memory) == {cache_key("text_search", "b1", query) for query in ("a", "c")}
    monkeypatch.setattr(cache, "REMEMBERED_BYTES", 10)
    large = CachedTool(Backend(log), store)
    assert [ask(large, "a").cached for _ in range(2)] == [True, True] and large._memory == {}
