"""Recording: what a run has seen is on disk, once, and an answer is worth more than a failure."""

import json
import logging
import sqlite3

import pytest
from frozen import Answers, bundled, found, recorded, web

from mmsr1.tools.bundle.export import Unexportable, export
from mmsr1.tools.bundle.format import Bundle
from mmsr1.tools.bundle.record import PREFIX, seen_by
from mmsr1.tools.bundle.rows import call_key, read_row
from mmsr1.tools.store import Store
from mmsr1.types import ToolResult

TEXT = "text_search"


def find(bundle: Bundle, query: str):
    return bundle.find(call_key(TEXT, {"text": query}))


def test_a_run_names_each_search_once_and_the_cache_holds_it(tmp_path):
    recorded(tmp_path / "run", tmp_path / "cache", *web())
    lines = (tmp_path / "run" / "searches" / "rank0.jsonl").read_text().splitlines()
    keys = [json.loads(line)["key"] for line in lines]
    assert len(keys) == len(set(keys)) == 6, "2 pictures, 4 texts; what a budget refused is nobody's answer"
    store = Store(tmp_path / "cache")
    assert set(store.keys(PREFIX)) == set(keys) == set(seen_by(tmp_path / "run"))
    rows = [read_row(store.get(key)) for key in keys]
    assert {row.at for row in rows} == {1_790_000_000} and {row.backend for row in rows} == {"web:v1"}


def test_an_answer_takes_the_place_of_a_failure_and_never_the_other_way_round(tmp_path):
    failed = ToolResult("infrastructure_error", detail="transient: HTTP 503")
    better = Answers(TEXT, {"q": [failed, found("q")], "p": [found("p"), failed]})
    recorded(tmp_path / "run", tmp_path / "cache", better)
    recorded(tmp_path / "run", tmp_path / "cache", Answers(TEXT, {"q": failed, "p": failed}), rank=1)
    export(tmp_path / "run", tmp_path / "bundle", tmp_path / "cache")
    bundle = Bundle(tmp_path / "bundle")
    assert find(bundle, "q").status == find(bundle, "p").status == "ok" and bundle.manifest.rows == 2


def test_what_a_later_run_is_told_takes_the_place_of_what_an_earlier_one_was(tmp_path):
    recorded(tmp_path / "one", tmp_path / "cache", Answers(TEXT, {"q": found("old")}), at=100)
    recorded(tmp_path / "two", tmp_path / "cache", Answers(TEXT, {"q": found("old")}), at=200)
    export(tmp_path / "two", tmp_path / "same", tmp_path / "cache")
    assert find(Bundle(tmp_path / "same"), "q").at == 100, "the same answer is as old as it was first given"
    recorded(tmp_path / "three", tmp_path / "cache", Answers(TEXT, {"q": found("new")}), at=300)
    export(tmp_path / "three", tmp_path / "new", tmp_path / "cache")
    row = find(Bundle(tmp_path / "new"), "q")
    assert row.at == 300 and row.items[0].title == "About new"


def test_white_space_decides_nothing_and_capitals_do(tmp_path):
    bundled(tmp_path, Answers(TEXT, {"the  tower ": found("a"), "the tower": found("b"), "The tower": found("c")}))
    assert Bundle(tmp_path / "bundle").manifest.rows == 2


def test_a_line_that_a_kill_has_cut_is_left_out(tmp_path):
    recorded(tmp_path / "run", tmp_path / "cache", *web())
    file = tmp_path / "run" / "searches" / "rank0.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    assert export(tmp_path / "run", tmp_path / "bundle", tmp_path / "cache").manifest.rows == 5


def test_a_disk_that_is_full_costs_the_recording_and_not_the_run(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Store, "put", full)
    with caplog.at_level(logging.WARNING):
        counters = recorded(tmp_path / "run", tmp_path / "cache", Answers(TEXT, {"q": found("q"), "p": found("p")}))
    assert counters.unwritten == 4 and caplog.text.count("are not recorded") == 1
    assert not (tmp_path / "run" / "searches").exists()


def test_rows_that_are_lost_are_counted_and_the_rest_is_exported(tmp_path):
    recorded(tmp_path / "run", tmp_path / "cache", *web())
    store = Store(tmp_path / "cache")
    store.put(next(iter(store.keys(PREFIX))), "{}")
    done = export(tmp_path / "run", tmp_path / "bundle", tmp_path / "cache")
    assert (done.lost, done.manifest.rows) == (1, 5)


def test_a_cache_with_two_back_ends_wants_to_know_which(tmp_path):
    recorded(tmp_path / "one", tmp_path / "cache", Answers(TEXT, {"q": found("one")}, "web:v1"))
    recorded(tmp_path / "two", tmp_path / "cache", Answers(TEXT, {"q": found("two"), "p": found("p")}, "web:v2"))
    with pytest.raises(Unexportable, match=r"text_search was answered by 2 back ends: choose with --backend"):
        export(tmp_path / "cache", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    export(tmp_path / "cache", tmp_path / "bundle", backends=["web:v2"])
    bundle = Bundle(tmp_path / "bundle")
    assert bundle.manifest.rows == 2 and find(bundle, "q").items[0].title == "About two"
    assert [*bundle.manifest.backends.values()] == ["web:v2"]


@pytest.mark.parametrize("kind", ["nothing", "empty run", "no cache"])
def test_what_cannot_be_exported_is_told(tmp_path, kind):
    if kind != "nothing":
        (tmp_path / "run" / "searches").mkdir(parents=True)
        (tmp_path / "run" / "config.yaml").write_text(f"tools: {{cache_dir: {tmp_path / 'cache'}}}")
    if kind == "empty run":
        Store(tmp_path / "cache")
    said = {"nothing": "neither a run", "empty run": "nothing recorded", "no cache": "say with --cache"}[kind]
    with pytest.raises(Unexportable, match=said):
        export(tmp_path / "run", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
