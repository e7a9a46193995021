"""What the checks of the cache share: a provider that counts its calls, and the stack around it."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
from collections import Counter
from pathlib import Path

from acceptance.lines import OUTPUT
from mmsr1.tools.base import Answer
from mmsr1.tools.breaker import Breaker
from mmsr1.tools.budget import Budget, BudgetLimits, Paid
from mmsr1.tools.cache import TEXT, CachedPart
from mmsr1.tools.guard import CallPolicy, Guarded
from mmsr1.tools.ledger import Ledger
from mmsr1.tools.store import CorruptEntry, Store

SIZES = (300, 5_000, 60_000)  # characters, as of a summary, a page, a raw answer: in a row, in a file, in a blob
POLICY = CallPolicy(attempts=4, timeout_s=30, deadline_s=90, rate_per_s=1e5, concurrent=2000)


class Provider:
    """A back end that writes down what it is asked, so that processes share the count; 0.01 USD a call."""

    name, backend, price_usd = "provider", "v1", 0.01

    def __init__(self, log: Path, seconds: float = 0.0) -> None:
        self._log, self._seconds = log, seconds

    async def ask(self, query: str) -> Answer[str]:
        with self._log.open("a") as log:
            log.write(query + "\n")
        await asyncio.sleep(self._seconds)
        return Answer(text_of(query), 0.01)

    @staticmethod
    def asked(log: Path) -> Counter[str]:
        return Counter(log.read_text().splitlines())


def text_of(query: str) -> str:
    """What the provider answers: a text of one of the sizes."""
    draw = random.Random(query)
    size = draw.choice(SIZES)
    return (f"{query} {draw.random()} <p>page</p> " * (size // 20))[:size]


def stack(folder: Path, writer: str, seconds: float = 0.0) -> CachedPart[str, str]:
    """The whole stack around a call, as each process of a run has it."""
    guarded = Guarded(Provider(folder / "asked", seconds), POLICY, Breaker())
    budget = Budget(BudgetLimits(calls_per_run=10**6), folder / "run", folder / "days")
    paid = Paid(guarded, budget, Ledger(folder / "ledger", writer))
    return CachedPart(paid, Store(folder / "cache"), TEXT)


def inspect(cache: Path) -> tuple[int, int]:
    """Rows in the store, and how many of them are damaged, databases that SQLite finds fault with among them."""
    store, rows, corrupt = Store(cache), 0, 0
    for database in cache.glob("*/cache.db"):
        connection = sqlite3.connect(database)
        corrupt += connection.execute("PRAGMA integrity_check").fetchone() != ("ok",)
        for (key,) in connection.execute("SELECT key FROM Cache").fetchall():
            rows += 1
            try:
                corrupt += store.get(key) is None
            except CorruptEntry:
                corrupt += 1
        connection.close()
    store.close()
    return rows, corrupt


def fresh(name: str) -> Path:
    """An empty folder below outputs/acceptance."""
    folder = OUTPUT / "tools_cache" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
