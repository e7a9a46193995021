"""Reading pages in threads: a slow one stands in the way of no other, nor of the loop, nor of the interpreter's end."""

import asyncio
import subprocess
import sys
import threading

import pytest

from mmsr1.tools.base import CallFailed
from mmsr1.tools.providers.threads import ParserThreads

ENDS = """
import asyncio, time
from mmsr1.tools.base import CallFailed
from mmsr1.tools.providers.threads import ParserThreads
try:
    asyncio.run(ParserThreads(patience_s=0.01).run(lambda: time.sleep(3600)))
except CallFailed as error:
    print(error.cause)
"""


def test_work_is_done_beside_the_loop_and_its_errors_come_back() -> None:
    threads = ParserThreads()

    def wrong() -> None:
        raise CallFailed("broken", "no")

    for _ in range(2):  # on one event loop after the other
        assert asyncio.run(threads.run(threading.current_thread)) is not threading.current_thread()
        with pytest.raises(CallFailed, match="broken: no"):
            asyncio.run(threads.run(wrong))


def test_slow_pages_are_given_up_and_the_next_are_read() -> None:
    threads, hold = ParserThreads(at_a_time=2, patience_s=0.05, given_up=2), threading.Event()

    async def several() -> list[object]:
        slow = [threads.run(lambda: hold.wait(60)) for _ in range(2)]
        return await asyncio.gather(*slow, threads.run(lambda: "read"), return_exceptions=True)

    first, second, read = asyncio.run(several())
    assert read == "read"
    assert all(isinstance(one, CallFailed) and one.cause == "blocked" for one in (first, second))
    hold.set()


def test_threads_that_hang_are_bounded_and_come_back() -> None:
    threads, hold, begun = ParserThreads(at_a_time=1, patience_s=0.02, given_up=1), threading.Event(), []

    def hang() -> None:
        begun.append(1)
        hold.wait(60)

    async def causes(count: int) -> list[str]:
        found = []
        for _ in range(count):
            try:
                await threads.run(hang)
                found.append("read")
            except CallFailed as error:
                found.append(error.cause)
        return found

    assert asyncio.run(causes(4)) == ["blocked", "blocked", "transient", "transient"] and len(begun) == 2
    hold.set()
    for thread in threading.enumerate():
        if thread.name == "parser":
            thread.join(10)
    assert asyncio.run(causes(1)) == ["read"]


def test_no_more_are_at_work_than_allowed() -> None:
    threads, at_work, most = ParserThreads(at_a_time=2), [], []

    def work() -> None:
        at_work.append(1)
        most.append(len(at_work))
        threading.Event().wait(0.005)
        at_work.pop()

    async def many() -> None:
        await asyncio.gather(*(threads.run(work) for _ in range(12)))

    asyncio.run(many())
    assert len(most) == 12 and max(most) <= 2


def test_whoever_is_cut_is_let_go_and_frees_the_place() -> None:
    threads, hold = ParserThreads(at_a_time=1, patience_s=60.0), threading.Event()

    async def cut() -> str:
        task = asyncio.create_task(threads.run(lambda: hold.wait(60)))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await threads.run(lambda: "read")

    assert asyncio.run(cut()) == "read"
    hold.set()


def test_the_interpreter_does_not_wait_for_a_page() -> None:
    ended = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout.strip()) == (0, "blocked"), ended.stderr
