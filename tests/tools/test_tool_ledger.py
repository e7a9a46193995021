"""The ledger file: hand-checked totals, unfinished lines, several writers, a disk that refuses, damage."""

import asyncio
import json
import multiprocessing
import os
import resource
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from mmsr1.tools.ledger import Ledger, LedgerTotals, read_totals

forked = multiprocessing.get_context("fork")
KEY = "ab" * 32


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "ledger"


def start(ledger: Ledger, price_usd: float) -> str | None:
    return asyncio.run(ledger.start("text_search", KEY, price_usd))


def lines(folder: Path, writer: str = "rank0") -> list[dict]:
    return [json.loads(line) for line in (folder / f"{writer}.jsonl").read_text().splitlines()]


@contextmanager
def room_for(file: Path, more: int):
    """The kernel refuses to let any file grow beyond the size of `file` and `more` bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_totals_by_hand(folder):
    assert read_totals(folder) == LedgerTotals(0, 0, 0, 0, 0.0)
    ledger = Ledger(folder, "rank0")
    cheaper, _in_flight, raised, free, refused = (start(ledger, price) for price in (0.1, 0.1, 0.25, 0.0, 0.1))
    assert ledger.totals() == LedgerTotals(started=5, answered=0, failed=0, unknown=5, spent_usd=0.55)
    ledger.end(cheaper, "answered", 0.01)
    ledger.end(raised, "failed", 0.25)
    ledger.end(free, "answered", 0.0)
    ledger.end(refused, "failed", 0.0)
    expected = LedgerTotals(started=5, answered=2, failed=2, unknown=1, spent_usd=0.36)  # 0.01 + 0.1 + 0.25
    assert ledger.totals() == read_totals(folder) == expected


def test_a_line_says_what_was_asked_when_and_for_how_much(folder):
    ledger = Ledger(folder, "rank0")
    call = start(ledger, 0.5)
    ledger.end(call, "answered", 0.25)
    begun, ended = lines(folder)
    time = begun.pop("time")
    assert begun == {"id": call, "state": "started", "tool": "text_search", "key": KEY, "cost_usd": 0.5}
    assert ended == {"id": call, "state": "answered", "cost_usd": 0.25}
    assert time.endswith("+00:00") and len(time) == len("2025-01-31T12:00:00.000+00:00")


def test_a_file_cut_at_any_byte_counts_its_whole_lines_and_goes_on(folder):
    ledger = Ledger(folder, "rank0")
    first, _second = start(ledger, 0.5), start(ledger, 0.25)
    ledger.end(first, "answered", 0.125)
    content = (folder / "rank0.jsonl").read_bytes()
    after = (
        LedgerTotals(),
        LedgerTotals(1, 0, 0, 1, 0.5),
        LedgerTotals(2, 0, 0, 2, 0.75),
        LedgerTotals(2, 1, 0, 1, 0.375),
    )
    for size in range(len(content) + 1):
        (folder / "rank0.jsonl").write_bytes(content[:size])
        whole = content[:size].count(b"\n")
        assert read_totals(folder) == after[whole]
        resumed = Ledger(folder, "rank0")
        resumed.end(start(resumed, 0.0), "failed", 1.0)
        resumed.close()
        assert len(lines(folder)) == whole + 2
        assert read_totals(folder).spent_usd == after[whole].spent_usd + 1.0


def write_many(folder: Path, writer: str, calls: int) -> None:
    ledger = Ledger(folder, writer)
    for n in range(calls):
        call = start(ledger, 0.001)
        if n % 2:
            ledger.end(call, "answered", 0.0005)


def test_each_process_has_its_file_and_all_count(folder):
    writers = [forked.Process(target=write_many, args=(folder, f"rank{n}", 40)) for n in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        read_totals(folder)  # readable at any moment
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert sorted(file.name for file in folder.iterdir()) == ["rank0.jsonl", "rank1.jsonl"]
    totals = read_totals(folder)
    assert (totals.started, totals.answered, totals.unknown) == (80, 40, 40)
    assert totals.spent_usd == pytest.approx(40 * 0.0005 + 40 * 0.001)


def test_threads_share_a_ledger(folder):
    ledger = Ledger(folder, "rank0")

    def calls() -> None:
        for _ in range(50):
            ledger.end(start(ledger, 0.0), "answered", 0.5)

    threads = [threading.Thread(target=calls) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert ledger.totals() == LedgerTotals(400, 400, 0, 0, 200.0)
    assert len({line["id"] for line in lines(folder)}) == 400


@pytest.mark.parametrize("writer", ["", "../rank0", "a/b", "rank0.jsonl", "Rank0"])
def test_a_writer_is_a_plain_name(folder, writer):
    with pytest.raises(ValueError, match="becomes a file name"):
        Ledger(folder, writer)


@pytest.mark.parametrize("room", [0, 1, 60])
def test_a_full_disk_refuses_paid_calls_and_lets_free_ones_pass(folder, room):
    ledger = Ledger(folder, "rank0")
    before = start(ledger, 0.5)
    with room_for(folder / "rank0.jsonl", room):
        with pytest.raises(OSError, match="paid call not made, for the ledger cannot record it"):
            start(ledger, 0.5)
        assert start(ledger, 0.0) is None
        ledger.end(before, "answered", 0.125)  # cannot be written either: stays at its price
        assert ledger.totals() == LedgerTotals(1, 0, 0, 1, 0.5)
    ledger.end(start(ledger, 0.25), "answered", 0.25)  # there is room again
    assert ledger.totals() == LedgerTotals(2, 1, 0, 1, 0.75)


def test_a_paid_call_that_does_not_reach_the_disk_is_refused_and_costs_nothing(folder, monkeypatch):
    ledger = Ledger(folder, "rank0")

    def fails(descriptor: int) -> None:
        raise OSError("Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="paid call not made.*Input/output"):
        start(ledger, 0.5)
    assert ledger.totals() == LedgerTotals(1, 0, 1, 0, 0.0)
    assert start(ledger, 0.0) is not None  # a free one does not wait for the disk


def test_a_call_cut_while_it_waits_for_the_disk_was_not_made(folder, monkeypatch):
    ledger, gate = Ledger(folder, "rank0"), threading.Event()
    monkeypatch.setattr(os, "fsync", lambda descriptor: gate.wait(20))

    async def cut() -> None:
        task = asyncio.create_task(ledger.start("text_search", KEY, 0.5))
        await asyncio.sleep(0.02)
        assert ledger.totals().spent_usd == 0.5
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()

    asyncio.run(cut())
    assert ledger.totals() == LedgerTotals(1, 0, 1, 0, 0.0)


@pytest.mark.parametrize("amount", [float("nan"), float("inf"), -0.01])
def test_what_is_no_amount_is_no_price_and_no_cost(folder, amount):
    ledger = Ledger(folder, "rank0")
    with pytest.raises(ValueError, match="need a finite number of USD"):
        start(ledger, amount)
    ledger.end(start(ledger, 0.5), "answered", amount)
    assert ledger.totals() == LedgerTotals(1, 0, 0, 1, 0.5)


DAMAGE = {
    "no JSON": b"{",
    "zeros": b"\0" * 40,
    "no object": b"[]",
    "no cost": b'{"id":"x","state":"started"}',
    "negative cost": b'{"id":"x","state":"started","cost_usd":-1}',
    "not a number": b'{"id":"x","state":"started","cost_usd":NaN}',
    "text as cost": b'{"id":"x","state":"started","cost_usd":"1"}',
    "another state": b'{"id":"x","state":"paid","cost_usd":1}',
    "no id": b'{"state":"started","cost_usd":1}',
    "end without a start": b'{"id":"x","state":"answered","cost_usd":1}',
}


@pytest.mark.parametrize("line", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_named_not_skipped(folder, line):
    start(Ledger(folder, "rank0"), 0.0)
    with (folder / "rank0.jsonl").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(ValueError, match=r"line 2 of .*rank0\.jsonl is damaged"):
        read_totals(folder)
