"""The locks around calls: one holder for a key, wherever it is; they cost no descriptors and die with their process."""

import asyncio
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

from scripted import ScriptedPart, ok

from mmsr1.tools.base import Answer
from mmsr1.tools.breaker import Breaker
from mmsr1.tools.budget import Budget, BudgetLimits, Paid
from mmsr1.tools.cache import TEXT, CachedPart
from mmsr1.tools.guard import CallPolicy, Guarded
from mmsr1.tools.ledger import Ledger, read_totals
from mmsr1.tools.locks import only_process
from mmsr1.tools.store import Store

forked = multiprocessing.get_context("fork")


def test_one_coroutine_at_a_time_holds_a_lock_and_others_hold_others(tmp_path):
    inside: list[int] = []

    async def hold(number: int) -> None:
        async with only_process(tmp_path / "lock", number, 60.0):
            assert number not in inside
            inside.append(number)
            await asyncio.sleep(0.01)
            inside.remove(number)

    async def crowd() -> None:
        async with only_process(tmp_path / "lock", 2**60, 60.0):  # of these nobody waits for it
            await asyncio.gather(*(hold(number % 5) for number in range(15)))

    before = len(os.listdir("/dev/fd"))
    asyncio.run(crowd())
    assert inside == [] and len(os.listdir("/dev/fd")) <= before + 1


def try_it(path: Path, answers) -> None:
    async def hold() -> None:
        async with only_process(path, 7, 60.0):
            return

    try:
        asyncio.run(asyncio.wait_for(hold(), 0.1))
        answers.put("held")
    except TimeoutError:
        answers.put("waited")


def test_a_forked_process_has_no_lock_of_its_parent_and_frees_none(tmp_path):
    answers = forked.Queue()

    def child() -> str:
        process = forked.Process(target=try_it, args=(tmp_path / "lock", answers))
        process.start()
        said = answers.get(timeout=20)
        process.join(20)
        return said

    async def parent() -> list[str]:
        async with only_process(tmp_path / "lock", 7, 60.0):
            said = [child(), child()]
        return [*said, child()]

    assert asyncio.run(parent()) == ["waited", "waited", "held"]


def test_a_folder_that_was_removed_has_locks_again(tmp_path):
    answers = forked.Queue()
    lock = tmp_path / "lock"
    try_it(lock, answers)
    lock.unlink()

    async def parent() -> None:
        async with only_process(lock, 7, 60.0):
            process = forked.Process(target=try_it, args=(lock, answers))
            process.start()
            process.join(20)

    asyncio.run(parent())
    assert [answers.get(timeout=20) for _ in range(2)] == ["held", "waited"]


class OneLock(Store):
    """A store in which the locks of all keys lie in one file."""

    def lock_path(self, key: str) -> Path:
        return super().lock_path("0" * 64)


def test_a_page_whose_two_keys_share_a_lock_file_does_not_wait_for_itself(store):
    """Two pages too, each of which could have what the other wants."""
    raw = ScriptedPart("reader", lambda query: ok(query, 0.01), 0.01, wait=lambda query: 20)
    shared = OneLock(store.directory)
    inner = CachedPart(raw, shared, TEXT)
    outer = CachedPart(ScriptedOver(inner), shared, TEXT)

    async def pages() -> list[str]:
        found = await asyncio.wait_for(asyncio.gather(*(outer(f"page {n}") for n in range(10))), 20)
        return [page.status for page in found]

    assert asyncio.run(pages()) == ["ok"] * 10 and len(raw.asked) == 10


class ScriptedOver:
    """A part that asks another one, under a name of its own."""

    def __init__(self, inner: CachedPart) -> None:
        self.name, self.backend, self.price_usd, self._inner = "page", "page:v1", 0.0, inner

    async def __call__(self, query):
        return await self._inner(query)


class Slow:
    """A back end that takes its time, and writes down what it is asked."""

    name, backend, price_usd = "slow", "v1", 0.01

    def __init__(self, log: Path, seconds: float) -> None:
        self.log, self.seconds = log, seconds

    async def ask(self, query: str) -> Answer[str]:
        with self.log.open("a") as log:
            log.write(f"{query}\n")
        await asyncio.sleep(self.seconds)
        return Answer(query, 0.01)


def reader(folder: Path, writer: str, seconds: float, **policy) -> CachedPart[str, str]:
    """Both layers of the cache around a paid back end, as pages have them."""
    allowed = CallPolicy(**({"attempts": 1, "timeout_s": 30, "deadline_s": 60, "rate_per_s": 1e5} | policy))
    guarded = Guarded(Slow(folder / "log", seconds), allowed, Breaker())
    budget = Budget(BudgetLimits(calls_per_run=10**6), folder / "run", folder / "days")
    store = Store(folder / "cache")
    paid = Paid(guarded, budget, Ledger(folder / "ledger", writer))
    inner = CachedPart(paid, store, TEXT, lock_wait_s=0.05)
    return CachedPart(ScriptedOver(inner), store, TEXT, lock_wait_s=0.05)


def in_a_long_line(folder: Path, writer: str, gate, answers) -> None:
    async def ask() -> list[bool]:
        part = reader(folder, writer, 0.03, concurrent=1)
        gate.wait(20)
        return [(await call).status == "ok" for call in asyncio.as_completed([part(f"q{n}") for n in range(40)])]

    answers.put(all(asyncio.run(ask())))


def test_processes_with_long_lines_never_pay_twice(tmp_path):
    """The last of each line waits twenty times as long as it takes to warn about it."""
    gate, answers = forked.Barrier(2), forked.Queue()
    workers = [
        forked.Process(target=in_a_long_line, args=(tmp_path, f"rank{rank}", gate, answers)) for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    assert [answers.get(timeout=60) for _ in workers] == [True, True]
    for worker in workers:
        worker.join(30)
    asked = (tmp_path / "log").read_text().splitlines()
    assert len(asked) == 40 == len(set(asked)) == read_totals(tmp_path / "ledger").answered


CROWD = """
import asyncio, resource, sys
from pathlib import Path
sys.path.insert(0, {here!r})
import test_tool_locks
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
part = test_tool_locks.reader(Path({folder!r}), "rank0", 0.001, concurrent=16)

async def pages():
    return [page.status for page in await asyncio.gather(*(part(f"page {{n}}") for n in range(400)))]

assert asyncio.run(pages()) == ["ok"] * 400
assert part.counters.unwritten == 0
assert asyncio.run(pages()) == ["ok"] * 400 and part.counters.hits == 400
"""


def test_many_pages_under_way_need_few_descriptors(tmp_path):
    script = CROWD.format(here=str(Path(__file__).parent), folder=str(tmp_path))
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and "without the lock" not in run.stderr, run.stderr[-2000:]
    asked = (tmp_path / "log").read_text().splitlines()
    assert len(asked) == 400 == len(set(asked))
