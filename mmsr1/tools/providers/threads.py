"""Threads in which the pages of strangers are read: a hostile one takes as long as it likes, and nobody waits for it.

They are daemons, so that the interpreter does not wait for them either, and not those that the cache writes in.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from mmsr1.tools.base import CallFailed

T = TypeVar("T")

AT_A_TIME = 4
PATIENCE_S = 10.0
GIVEN_UP = 16  # threads that may still be at work on pages that took too long; they cannot be stopped


class ParserThreads:
    """Runs work in threads, on any event loop: `at_a_time` on each, `patience_s` from when a piece of work begins."""

    def __init__(self, at_a_time: int = AT_A_TIME, patience_s: float = PATIENCE_S, given_up: int = GIVEN_UP) -> None:
        self._at_a_time, self._patience_s, self._most = at_a_time, patience_s, at_a_time + given_up
        self._places: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        self._free = threading.BoundedSemaphore(self._most)

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises. Raises CallFailed: blocked if it takes too long, whatever becomes of it then,
        and transient while too many are at work that did."""
        loop = asyncio.get_running_loop()
        async with self._places.setdefault(loop, asyncio.Semaphore(self._at_a_time)):
            if not self._free.acquire(blocking=False):
                raise CallFailed("transient", f"{self._most} pages are being read that take too long")
            done: asyncio.Future[T] = loop.create_future()
            try:
                threading.Thread(target=self._work, args=(work, loop, done), name="parser", daemon=True).start()
            except BaseException:
                self._free.release()
                raise
            patience = asyncio.timeout(self._patience_s)
            try:
                async with patience:
                    return await done
            except TimeoutError:
                if not patience.expired():
                    raise
                raise CallFailed("blocked", f"the page takes more than {self._patience_s:g} s to read") from None

    def _work(self, work: Callable[[], Any], loop: asyncio.AbstractEventLoop, done: asyncio.Future[Any]) -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as caught:
            error = caught
        finally:
            self._free.release()
        with suppress(RuntimeError):  # the loop has ended, and with it whoever asked
            loop.call_soon_threadsafe(_settle, done, result, error)


def _settle(done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)


_THREADS = ParserThreads()


async def in_parser(work: Callable[[], T]) -> T:
    """As `ParserThreads.run`, in the threads that all providers share."""
    return await _THREADS.run(work)
