"""The one way in which an index comes about, whether at once or in steps that survive a kill."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from filelock import FileLock, Timeout

from mmsr1.tools.index import ids
from mmsr1.tools.index.folder import LOCK, check_free, clean, undo
from mmsr1.tools.index.growing import Growing, array
from mmsr1.tools.index.inputs import Source
from mmsr1.tools.index.journal import Journal, Progress, read_journal
from mmsr1.tools.index.rows import Bad, Row
from mmsr1.tools.index.writer import Writer
from mmsr1.tools.index_files import MANIFEST, VERSION, Chain, Manifest, building, read_manifest

BATCH = 256  # rows that are prepared together
BATCH_LEARNED = 32  # the same for a model, which needs much memory for each
COMMIT = 50_000  # rows after which an index of text is safe up to there
COMMIT_SLOW = 2_048  # the same where each row takes milliseconds: pictures, models


@dataclass(frozen=True)
class Task:
    """What is asked for: an index in `directory` of what the sources hold, new or on top of what is there."""

    directory: Path
    kind: str
    sources: Sequence[Source]
    settings: Mapping[str, Any]
    append: bool = False
    restart: bool = False  # throw away what an earlier, unfinished one has done

    def noted(self) -> dict[str, Any]:
        """What a command must share with the one that it goes on with."""
        inputs = [source.identity() for source in self.sources]
        return {"append": self.append, "kind": self.kind, "settings": dict(self.settings), "inputs": inputs}


MakeWriter = Callable[[Path, Mapping[str, Any], Manifest | None, bool], Writer]  # the flag: an earlier process began
Watch = Callable[[Progress], None]


def build_at_once(
    directory: Path, make: Callable[[Path], Writer], settings: Mapping[str, Any], values: Iterable[Any]
) -> Manifest:
    """An index that appears complete or not at all. Raises as `building`; ValueError for a row that cannot be used,
    a repeated id, or no rows."""
    with building(directory) as scratch:
        writer, seen = make(scratch), set[str]()
        try:
            writer.open({})
            content = Chain(writer.kind, str(VERSION), _settled(settings))
            for value in values:
                prepared = writer.prepare(value)
                name, *rest = writer.identify(prepared)
                if name in seen:
                    raise ValueError(f"{writer.kind} id {name!r} occurs twice: ids must be unique")
                writer.add([prepared], len(seen))
                seen.add(name)
                content.add(name, *rest)
            if not seen:
                raise ValueError(f"no {_ROWS[writer.kind]}: an empty index would answer nothing")
            sizes = writer.sync()
            writer.commit()
            parts = writer.finish(len(seen))
        finally:
            writer.close()
        # Without the time, so that equal content makes equal folders.
        manifest = Manifest(writer.kind, VERSION, len(seen), content.digest, settings, parts, sizes)
        manifest.write(scratch)
    return manifest


def run(task: Task, make: MakeWriter, watch: Watch = lambda progress: None) -> tuple[Manifest, Progress]:
    """Do the task, or go on with it. `watch` is called after every batch.

    Returns the manifest and what was read. Raises ValueError in one line: another process is writing, there is another
    unfinished task, the folder is used for something else, nothing can be indexed; FileExistsError or FileNotFoundError
    if the index is there or is not. If it fails before anything is safe, it leaves nothing behind.
    """
    if task.append:
        read_manifest(task.directory, task.kind)  # which says what is missing
    else:
        check_free(task.directory)
    was_there = task.directory.exists()
    task.directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(task.directory / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{task.directory}: another process is writing to this index; wait for it to end") from None
    work = _Run(task, make, watch)
    try:
        return work()
    except Exception:
        if work.undoable:
            undo(task.directory, work.base, was_there)
        raise
    finally:
        lock.release()


class _Run:
    """One process at work on a task, alone. `undoable`: it has begun, and nothing of the task is safe."""

    def __init__(self, task: Task, make: MakeWriter, watch: Watch) -> None:
        self.task, self.make, self.watch = task, make, watch
        self.folder = task.directory
        self.base: Manifest | None = None
        self.undoable = False
        self.started = time.monotonic()

    def __call__(self) -> tuple[Manifest, Progress]:
        base, journal = self._before()
        if journal is not None and journal.finished and base is not None and base.content == journal.done.content:
            clean(self.folder, base)  # it was killed between its manifest and this
            return base, journal.done
        start = self._start(base)
        if journal is None or not journal.opened:
            journal = None
            Journal(self.task.noted(), start, opened=False).write(self.folder)  # from now on the folder is this task's
        self.base, self.undoable = base, journal is None or journal.done.count == start.count
        writer = self.make(self.folder, self.task.settings, base, journal is not None)
        try:
            done = self._begin(start, journal, writer)
            writer.open(done.sizes)
            done = self._read(writer, done)
            if not done.count:
                self._nothing(done)
            parts = writer.finish(done.count)
        finally:
            writer.close()
        return self._publish(base, done, parts), done

    def _nothing(self, done: Progress) -> NoReturn:
        why = f": {done.told[0]}" if done.told else ""
        raise ValueError(
            f"no {_ROWS[self.task.kind]} in what was given ({done.skipped} left out{why}): nothing to index"
        )

    def _before(self) -> tuple[Manifest | None, Journal | None]:
        """What is there. An unfinished task of another command is refused, or forgotten if so asked."""
        there = (self.folder / MANIFEST).is_file()
        base = read_manifest(self.folder, self.task.kind) if there else None
        journal = read_journal(self.folder)
        journal = None if self.task.restart else journal
        if journal is not None and dict(journal.task) != self.task.noted():
            what = "append" if journal.task.get("append") else "build"
            raise ValueError(
                f"{self.folder}: an unfinished {what} of other inputs or settings is there; run that one again, or "
                "give --restart to throw it away"
            )
        if base is not None and not self.task.append and journal is None:
            raise FileExistsError(f"{self.folder} holds an index already: append to it, or give another --out")
        if base is not None and ids.FILE not in base.sizes:
            raise ValueError(f"{self.folder}: was not made by this command and is only read: build it again")
        return base, journal

    def _start(self, base: Manifest | None) -> Progress:
        """Where a task begins that nobody has begun."""
        if base is not None:
            return Progress(count=base.count, content=base.content, sizes=base.sizes)
        return Progress(content=Chain(self.task.kind, str(VERSION), _settled(self.task.settings)).digest)

    def _begin(self, start: Progress, journal: Journal | None, writer: Writer) -> Progress:
        """Where to go on."""
        if journal is None:
            Journal(self.task.noted(), start).write(self.folder)
            return start
        safe = writer.committed()
        found = [one for one in (journal.next, journal.done) if one is not None and safe in (None, one.count)]
        if not found:
            raise ValueError(f"{self.folder}: {safe} rows found where none or more were noted: give --restart")
        return found[0]

    def _read(self, writer: Writer, done: Progress) -> Progress:
        """Index what is left of the sources."""
        content = Chain(digest=done.content)
        have = ids.Ids(np.asarray(array(self.folder / ids.FILE, (done.count,), "<u8")))
        rows = _rest(self.task.sources, done)
        learned = "encoder" in self.task.settings
        each, since = (COMMIT_SLOW if learned or self.task.kind == "image" else COMMIT), 0
        size = min(BATCH, BATCH_LEARNED) if learned else BATCH
        now, known = done, Growing(self.folder, [ids.FILE], done.sizes)
        try:
            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                while batch := list(islice(rows, min(size, each - since))):
                    since += len(batch)
                    now = self._batch(batch, writer, known, have, content, now, pool)
                    if since >= each:
                        done, since = self._commit(writer, known, done, now), 0
                        now = done
                    self.watch(now)
            return self._commit(writer, known, done, now)
        finally:
            known.close()

    def _batch(
        self,
        batch: Sequence[tuple[int, Row | Bad]],
        writer: Writer,
        known: Growing,
        have: ids.Ids,
        content: Chain,
        now: Progress,
        pool: ThreadPoolExecutor,
    ) -> Progress:
        """Add what can be added of some rows."""
        prepared: list[Row | Bad] = list(pool.map(lambda one: _prepared(writer, one[1]), batch))
        good = [one for one in prepared if isinstance(one, Row)]
        marks = iter(have.new([writer.identify(row.value)[0] for row in good]))
        fresh = []
        for one in prepared:
            mark = None if isinstance(one, Bad) else next(marks)
            if isinstance(one, Row) and mark is not None:
                fresh.append(one.value)
                known.write(ids.FILE, mark.to_bytes(8, "little"))
                content.add(*writer.identify(one.value))
            elif isinstance(one, Bad):
                now = now.leaving_out(f"{one.place}: {one.why}")
            else:
                name = writer.identify(one.value)[0]
                now = now.leaving_out(f"{one.place}: the id {name[:80]!r} is there already")
        writer.add(fresh, now.count)
        source, last = batch[-1]
        return replace(now, source=source, token=last.token, count=now.count + len(fresh), content=content.digest)

    def _commit(self, writer: Writer, known: Growing, done: Progress, now: Progress) -> Progress:
        """Two lines in the journal around the moment at which the index itself is safe."""
        now = replace(now, sizes={**writer.sync(), **known.sync()})
        task = self.task.noted()
        self.undoable = self.undoable and now.count == done.count
        if writer.committed() is not None and now.count != done.count:
            Journal(task, done, now).write(self.folder)
            writer.commit()
        Journal(task, now).write(self.folder)
        return now

    def _publish(self, base: Manifest | None, done: Progress, parts: Mapping[str, str]) -> Manifest:
        Journal(self.task.noted(), done, finished=True).write(self.folder)
        made = _made(done.skipped, time.monotonic() - self.started)
        if base is not None:
            made = {**made, "skipped": done.skipped + base.made.get("skipped", 0)}
        settings = self.task.settings
        manifest = Manifest(self.task.kind, VERSION, done.count, done.content, settings, parts, done.sizes, made)
        manifest.write(self.folder)
        clean(self.folder, manifest)
        return manifest


_ROWS = {"text": "passages", "image": "image entries"}


def _rest(sources: Sequence[Source], done: Progress) -> Iterator[tuple[int, Row | Bad]]:
    """The rows that are left, with the number of their source."""
    for number, source in enumerate(sources[done.source :], done.source):
        for row in source.read(done.token if number == done.source else 0):
            yield number, row


def _prepared(writer: Writer, row: Row | Bad) -> Row | Bad:
    if isinstance(row, Bad):
        return row
    try:
        return replace(row, value=writer.prepare(row.value))
    except ValueError as error:
        return Bad(row.place, str(error), row.token)


def _settled(settings: Mapping[str, Any]) -> str:
    return json.dumps(dict(settings), sort_keys=True)


def _made(skipped: int, seconds: float) -> dict[str, Any]:
    """For people."""
    libraries = {name: version(name) for name in ("tantivy", "faiss-cpu", "pillow")}
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"when": when, "seconds": round(seconds, 1), "skipped": skipped, "with": libraries}
