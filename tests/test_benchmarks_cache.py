"""The benchmark of the cache at a size that takes a second: what it prints, and that all that it counts are hits."""

import json
import sys

import pytest

from benchmarks import __main__ as program
from benchmarks import cache


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "QUESTIONS", 10)
    monkeypatch.setattr(cache, "ROUNDS", 2)


def test_the_last_line_is_json_with_both_kinds_of_answers(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "cache"])
    assert program.main() == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["benchmark"] == "cache" and [row["kind"] for row in figures["answers"]] == [
        "summaries",
        "thumbnails",
    ]
    for row in figures["answers"]:
        assert min(row[f"{name}_hits_per_s"] for name in ("first", "ours", "bare", "text")) > 0
    assert figures["ratio"] == min(row["ours_over_bare"] for row in figures["answers"])


def test_misses_are_no_hits(monkeypatch):
    class Forgetful(cache.Store):
        def get(self, key: str) -> None:
            return None

    monkeypatch.setattr(cache, "Store", Forgetful)
    with pytest.raises(RuntimeError, match="0 hits of 20 calls"):
        cache.measure()
