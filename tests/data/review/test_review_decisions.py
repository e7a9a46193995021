"""Decisions on disk: what was said to be saved is there, whatever ends the process."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmsr1.data.review.decisions import Decision, DecisionLog, Stale, content_of, read_decisions, reviewer_of
from mmsr1.types import Example


def decision(id: str = "a", state: str = "accepted", **more: object) -> Decision:
    return Decision(id, f"content of {id}", state, **more)  # type: ignore[arg-type]


def test_the_last_decision_of_an_id_counts_after_it_is_opened_again(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "log.jsonl")
    first = log.decide(decision(), seen=0)
    edited = decision(state="rejected", answer="\u00e9 \u2028", aliases=("x", "y"), note="why")
    log.decide(edited, seen=first.number)
    log.decide(decision("b"), seen=0)
    log.close()
    assert DecisionLog(tmp_path / "log.jsonl").latest == {"a": edited, "b": decision("b")}
    assert (tmp_path / "log.jsonl").read_bytes().count(b"\n") == 3  # nothing is overwritten


def test_a_decision_upon_what_is_not_the_last_one_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "log.jsonl")
    first = log.decide(decision(), seen=0)
    for seen in (0, first.number + 1):
        with pytest.raises(Stale):
            log.decide(decision(state="rejected"), seen)
    assert log.latest["a"].state == "accepted"
    assert (tmp_path / "log.jsonl").read_bytes().count(b"\n") == 1


def test_undo_goes_back_step_by_step_over_a_restart(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "log.jsonl")
    one = log.decide(decision(), seen=0)
    two = log.decide(decision(state="rejected"), seen=one.number)
    other = log.decide(decision("b"), seen=0)
    with pytest.raises(Stale):
        log.undo(two.number)  # not the last one
    assert log.undo(other.number).decision.state == "open"
    log.close()
    log = DecisionLog(tmp_path / "log.jsonl")
    assert log.undoable is not None and log.undoable.number == two.number
    assert log.undo(two.number).decision == decision()
    with pytest.raises(Stale):
        log.undo(two.number)  # a tab that asks twice
    log.undo(one.number)
    assert log.undoable is None and log.latest["a"].state == log.latest["b"].state == "open"


def test_one_reviewer_has_one_server(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "log.jsonl")
    with pytest.raises(ValueError, match="another review page"):
        DecisionLog(tmp_path / "log.jsonl")
    log.close()
    DecisionLog(tmp_path / "log.jsonl").close()


def test_a_line_that_was_cut_is_removed_and_a_whole_one_without_its_newline_stays(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = DecisionLog(path)
    log.decide(decision("a"), 0)
    log.decide(decision("b"), 0)
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert set(read_decisions(path)[0]) == {"a"}
    log = DecisionLog(path)
    assert set(log.latest) == {"a"} and not log.bad
    log.decide(decision("c"), 0)
    log.close()
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "c"]
    path.write_bytes(whole[:-1])
    log = DecisionLog(path)
    log.decide(decision("c"), 0)
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "line",
    [
        "no json", "[]", "7", '{"id": "x"}', '{"id": 5, "content": "", "state": "open"}',
        '{"id": "x", "content": "", "state": "perhaps"}', '{"id": "x", "content": "", "state": "open", "answer": " "}',
        '{"id": "x", "content": "", "state": "open", "aliases": "abc"}',
        '{"id": ["x"], "content": "", "state": "open"}', "", "\ufffd",
    ],
)  # fmt: skip
def test_a_line_that_is_no_decision_is_told_and_stays(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log.jsonl"
    log = DecisionLog(path)
    log.decide(decision("a"), 0)
    log.close()
    path.write_text(f"{line}\n{path.read_text()}")
    log = DecisionLog(path)
    assert set(log.latest) == {"a"} and len(log.bad) == 1 and "line 1" in log.bad[0]
    log.decide(decision("b"), 0)
    assert path.read_text().startswith(f"{line}\n")


def test_a_full_disk_is_told_and_leaves_no_half_line(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "log.jsonl")
    log.decide(decision("a"), 0)
    size = (tmp_path / "log.jsonl").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
    try:
        with pytest.raises(OSError):
            log.decide(decision("b"), 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "log.jsonl").stat().st_size == size and log.last("b") is None
    log.decide(decision("b"), 0)
    log.close()
    assert set(DecisionLog(tmp_path / "log.jsonl").latest) == {"a", "b"}


WRITER = """
import sys
from pathlib import Path
from mmsr1.data.review.decisions import Decision, DecisionLog
log = DecisionLog(Path(sys.argv[1]))
for number in range(10**6):
    log.decide(Decision(f"row {number}", "content", "accepted", note="x" * 3000), 0)
    print(number, flush=True)
"""


def test_a_kill_loses_nothing_that_was_said_to_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    told = [writer.stdout.readline() for _ in range(50)]
    os.kill(writer.pid, signal.SIGKILL)
    told += writer.stdout.read().splitlines()
    writer.wait()
    decisions, bad = read_decisions(path)
    assert {f"row {int(number)}" for number in told if number.strip()} <= decisions.keys() and not bad


def test_the_content_tells_rows_apart() -> None:
    one = Example("a", "q", (), "x", ("y",), "free", "s")
    others = [
        Example("b", "q", (), "x", ("y",), "free", "s"), Example("a", "Q", (), "x", ("y",), "free", "s"),
        Example("a", "q", (), "z", ("y",), "free", "s"), Example("a", "q", (), "x", (), "free", "s"),
    ]  # fmt: skip
    assert len({content_of(example) for example in (one, *others)}) == 5
    assert content_of(one) == content_of(Example("a", "q", (), "x", ("y",), "image", "elsewhere"))


def test_the_reviewer_is_in_the_name() -> None:
    assert reviewer_of(Path("my.set.parquet.review.anna.jsonl")) == "anna"
    assert reviewer_of(Path("other.jsonl")) == "other"
