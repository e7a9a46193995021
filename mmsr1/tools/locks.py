"""Locks between processes, one for each key, that cost no descriptor of their own.

A lock is a byte of a file, locked as POSIX records are: any number of them on one descriptor, gone with the process
that holds them, never inherited by a fork. Two things of theirs are mended here. They do not keep the coroutines of
one process apart, so what this process holds is remembered. And closing a file once frees all locks that the process
has in it, so a file is opened once and never closed.

Not for network file systems without record locks.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

logger = logging.getLogger(__name__)

SHORTEST_S, LONGEST_S = 0.002, 0.05  # between two looks at a lock that another holds


class _Held:
    """The open files by device and inode, and the bytes in them that this process has locked."""

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        self.files: dict[tuple[int, int], int] = {}
        self.bytes: set[tuple[int, int]] = set()

    def forked(self) -> None:
        """A child has the files, but none of the locks."""
        self.mutex = threading.Lock()
        self.bytes.clear()


_HELD = _Held()
os.register_at_fork(after_in_child=_HELD.forked)


@asynccontextmanager
async def only_process(path: Path, number: int, warn_s: float) -> AsyncIterator[None]:
    """Hold byte `number` (below 2^63) of the file `path`, alone among all coroutines, threads and processes.

    Waits as long as somebody holds it, and says so in the log every `warn_s` seconds. It is polled, so that waiting
    blocks neither the event loop nor a thread. Raises OSError if the file cannot be opened or locked.
    """
    taken = _try(path, number)
    start, pause, warned = monotonic(), SHORTEST_S, 1
    while taken is None:
        if monotonic() > start + warned * warn_s:
            logger.warning("waiting for %.0f s for the same call in another process: %s", warned * warn_s, path)
            warned += 1
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_S)
        taken = _try(path, number)
    try:
        yield
    finally:
        _free(*taken)


def _try(path: Path, number: int) -> tuple[int, int] | None:
    """File and byte if the lock is ours now, None if somebody else has it. Raises OSError."""
    with _HELD.mutex:
        lock = _file(path), number
        if lock in _HELD.bytes:
            return None
        try:
            fcntl.lockf(lock[0], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as the system likes
            return None
        _HELD.bytes.add(lock)
        return lock


def _free(file: int, number: int) -> None:
    with _HELD.mutex:
        if (file, number) in _HELD.bytes:  # not in a child that was forked meanwhile
            _HELD.bytes.remove((file, number))
            fcntl.lockf(file, fcntl.LOCK_UN, 1, number)


def _file(path: Path) -> int:
    """The descriptor of the file that lies at `path` now, opened at the first use."""
    try:
        there = os.stat(path)
        known = _HELD.files.get((there.st_dev, there.st_ino))
        if known is not None:
            return known
    except FileNotFoundError:
        pass  # made below
    opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    there = os.fstat(opened)
    return _HELD.files.setdefault((there.st_dev, there.st_ino), opened)
