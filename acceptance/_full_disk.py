"""A disk that fills up under the cache: a small one in memory where mounting is allowed, elsewhere a limit on files."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from acceptance._cache import POLICY, Provider, fresh, inspect, text_of
from acceptance.lines import Check, at_most, holds
from mmsr1.tools.breaker import Breaker
from mmsr1.tools.cache import TEXT, CachedPart
from mmsr1.tools.guard import Guarded
from mmsr1.tools.store import Store

FULL_BYTES = 6 * 2**20
forked = multiprocessing.get_context("fork")


def full_disk() -> list[Check]:
    """Line 3, the part of it about a disk that fills up."""
    with _small_disk() as (folder, kind):
        results = forked.Queue()
        worker = forked.Process(target=_fill, args=(folder, kind, results))
        worker.start()
        kept, unwritten, wrong, messages = results.get(timeout=300)
        worker.join(60)
        opened = _opening(folder / "cache")
        _make_room(folder, kind)
        rows, corrupt = inspect(folder / "cache")
        named = set(_value_files(folder / "cache"))
        half = [file for file in (folder / "cache").glob("*/*/*/*.val") if file.name not in named]
        again = [asyncio.run(_part(folder)("afterwards")).cached for _ in range(2)] == [False, True]
    clear = bool(messages) and all("not written: " in message for message in messages)
    checks = [
        holds("3", f"disk full ({kind}): results not written | kept", unwritten > 0, f"{unwritten} | {kept}"),
        holds("3", "disk full: what is told", clear, messages[0][:110] if messages else "nothing"),
        holds("3", "disk full: what a start is told", "make room" in opened or kind != "tmpfs", opened[-90:]),
        at_most("3", "disk full: answers that were wrong or missing", wrong, 0),
        at_most("3", f"disk full: half entries ({rows} rows)", corrupt + len(half), 0),
    ]
    return [*checks, holds("3", "disk full: with room again, results are kept", again)]


def _part(folder: Path) -> CachedPart[str, str]:
    """Cached in the folder; what the provider was asked is written down beside it, where there is room."""
    backend = Provider(folder.with_name("asked"))
    return CachedPart(Guarded(backend, POLICY, Breaker()), Store(folder / "cache"), TEXT)


def _opening(cache: Path) -> str:
    try:
        Store(cache).close()
    except OSError as error:
        return str(error)
    return "opened"


def _make_room(folder: Path, kind: str) -> None:
    if kind == "tmpfs":
        subprocess.run(["mount", "-o", f"remount,size={2 * FULL_BYTES}", str(folder)], check=True)


def _value_files(cache: Path) -> Iterator[str]:
    """The names of the value files that rows refer to."""
    for database in cache.glob("*/cache.db"):
        connection = sqlite3.connect(database)
        for (name,) in connection.execute("SELECT filename FROM Cache WHERE filename IS NOT NULL").fetchall():
            yield Path(name).name
        connection.close()


def _fill(folder: Path, kind: str, results: Any) -> None:
    """Ask until the disk has refused a hundred times, then whether what was kept is still right."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("mmsr1.tools.cache").addHandler(handler)
    part = _part(folder)
    if kind != "tmpfs":  # the kernel lets no file grow beyond this
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_BYTES // 24, resource.RLIM_INFINITY))
    wrong = number = 0
    queries: list[str] = []
    while part.counters.unwritten < 100 and number < 5000:
        queries.append(f"question {number}")
        wrong += asyncio.run(part(queries[-1])).value != text_of(queries[-1])
        number += 1
    unwritten = part.counters.unwritten
    again = [(asyncio.run(part(query)), query) for query in queries]
    wrong += sum(outcome.value != text_of(query) for outcome, query in again)
    results.put((sum(outcome.cached for outcome, _ in again), unwritten, wrong, messages))


@contextmanager
def _small_disk() -> Iterator[tuple[Path, str]]:
    """A folder on a disk of 6 MiB where mounting is allowed, elsewhere one for files of bounded size."""
    folder = fresh("full")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={FULL_BYTES}", "tmpfs", str(folder)]
    mounted = shutil.which("mount") and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield folder, "tmpfs" if mounted else "file size limit"
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
