"""Issue D, lines 2 and 3: the cache under traffic from several processes, kills, a full disk and tampering."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from acceptance._cache import Provider, fresh, inspect, stack, text_of
from acceptance._full_disk import full_disk
from acceptance.lines import Check, at_least, at_most, command, holds
from mmsr1.tools.base import Outcome
from mmsr1.tools.ledger import read_totals

PROCESSES, CALLS, KILLS = 4, 1000, 100
IN_FLIGHT = 8  # hits at a time, in all processes together
forked = multiprocessing.get_context("fork")


def cache_traffic() -> list[Check]:
    """Line 2."""
    folder = fresh("traffic")
    gate, results = forked.Barrier(PROCESSES), forked.Queue()
    workers = [forked.Process(target=_customer, args=(folder, rank, gate, results)) for rank in range(PROCESSES)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=600) for _ in workers]
    for worker in workers:
        worker.join(60)
    asked = Provider.asked(folder / "asked")
    same, distinct = asked.pop("the same"), asked
    once = len(distinct) == distinct.total() == CALLS
    latencies = sorted(1000 * seconds for _, _, hits in found for seconds in hits)
    p99 = latencies[int(0.99 * len(latencies))]
    paid, spent = sum(paid for _, paid, _ in found), read_totals(folder / "ledger").spent_usd
    exact = abs(paid - 0.01 * (CALLS + 1)) < 1e-6 and abs(spent - paid) < 1e-6
    everywhere = f"calls in each of {PROCESSES} processes: back-end calls"
    return [
        holds("2", f"{CALLS} identical {everywhere}", same == 1, str(same)),
        holds("2", f"{CALLS} distinct {everywhere}", once, str(distinct.total())),
        holds("2", "all answered rightly", all(right for right, _, _ in found)),
        holds("2", "paid and in the ledger what was asked (USD)", exact, f"{paid:.2f}, {spent:.2f}"),
        at_most("2", f"p99 of {len(latencies)} hits, {IN_FLIGHT} in flight (ms)", p99, 20),
        *_speed(),
    ]


def _speed() -> list[Check]:
    out, _ = command(sys.executable, "-m", "benchmarks", "cache")
    figures = json.loads(out.stdout.splitlines()[-1])
    checks = [at_least("2", "hits per second, ours over bare diskcache", figures["ratio"], 0.6)]
    for row in figures["answers"]:
        rates = " | ".join(f"{row[f'{name}_hits_per_s']:.0f}" for name in ("ours", "first", "bare"))
        checks.append(holds("2", f"{row['kind']}: hits per second, ours | ours at first | bare", True, rates))
    return checks


def _customer(folder: Path, rank: int, gate: Any, results: Any) -> None:
    """One process of the traffic: everything at once, then hits, a few at a time."""
    part = stack(folder, f"rank{rank}", seconds=0.05)

    async def traffic() -> tuple[bool, float]:
        order = random.Random(rank).sample(range(CALLS), CALLS)
        same = [part("the same") for _ in range(CALLS)]
        outcomes = await asyncio.gather(*same, *(part(f"question {number}") for number in order))
        expected = ["the same"] * CALLS + [f"question {number}" for number in order]
        right = all(outcome.value == text_of(query) for outcome, query in zip(outcomes, expected, strict=True))
        return right, sum(outcome.paid_usd for outcome in outcomes)

    async def hits(queries: Sequence[str]) -> list[float]:
        seconds = []
        for query in queries:
            start = time.perf_counter()
            outcome = await part(query)
            seconds.append(time.perf_counter() - start)
            if not outcome.cached:
                raise RuntimeError("a miss among the hits")
            await asyncio.sleep(0)
        return seconds

    async def customers() -> list[float]:
        each = IN_FLIGHT // PROCESSES
        queries = [f"question {number}" for number in range(CALLS)]
        return [s for found in await asyncio.gather(*(hits(queries[n::each]) for n in range(each))) for s in found]

    gate.wait(60)
    right, paid = asyncio.run(traffic())
    gate.wait(600)
    results.put((right, paid, asyncio.run(customers())))


def cache_kills() -> list[Check]:
    """Line 3."""
    return [*_kills(), *full_disk(), _tampering()]


def _kills() -> list[Check]:
    folder, draw = fresh("kills"), random.Random(0)
    acknowledged: list[str] = []
    for number in range(KILLS):
        acknowledged += _killed_writer(folder, number, draw.uniform(0.001, 0.06))
    asked_before = Provider.asked(folder / "asked").total()
    part = stack(folder, "after")
    lost = sum(not _is_kept(asyncio.run(part(query)), query) for query in acknowledged)
    repeated = Provider.asked(folder / "asked").total() - asked_before
    counted, corrupt = inspect(folder / "cache")
    return [
        at_least("3", f"{KILLS} SIGKILLs: results acknowledged before", len(acknowledged), KILLS),
        at_most("3", "of these lost or wrong", lost, 0),
        at_most("3", "of these paid again", repeated, 0),
        at_most("3", f"corrupt among {counted} rows", corrupt, 0),
        at_most("3", "locks still held", _held_locks(folder / "cache" / "locks"), 0),
    ]


def _killed_writer(folder: Path, number: int, seconds: float) -> list[str]:
    """What a process had acknowledged that was killed `seconds` after its first answer."""
    reader, writer = os.pipe()

    def write() -> None:
        part = stack(folder, f"writer{number % 4}")

        async def one(lane: int) -> None:
            count = 0
            while True:
                query = f"writer {number}, lane {lane}, {count}"
                await part(query)
                os.write(writer, query.encode() + b"\n")
                count += 1

        async def lanes() -> None:
            await asyncio.gather(*(one(lane) for lane in range(4)))

        asyncio.run(lanes())

    process = forked.Process(target=write)
    process.start()
    os.close(writer)
    said = os.read(reader, 65536)
    time.sleep(seconds)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(60)
    with os.fdopen(reader, "rb") as rest:
        said += rest.read()
    return said.decode().splitlines()


def _is_kept(outcome: Outcome[str], query: str) -> bool:
    return outcome.cached and outcome.value == text_of(query)


def _held_locks(folder: Path) -> int:
    held = 0
    for file in folder.iterdir():
        try:
            with FileLock(file, timeout=0):
                pass
        except Timeout:
            held += 1
    return held


def _tampering() -> Check:
    names = ("test_tool_store.py", "test_tool_cache_damage.py", "test_cached_part.py")
    files = [f"tests/tools/{name}" for name in names]
    tests, _ = command(sys.executable, "-m", "pytest", "-q", *files, check=False)
    passed = not tests.returncode and " passed" in tests.stdout
    return holds("3", "tampered rows and files refused, nothing executed (tests)", passed, tests.stdout.strip()[-60:])
