"""Recording: a layer around a tool that notes what it answered, so that any run can be exported afterwards.

The rows lie in the cache, beside what they are made of; the run's folder names those that the run has seen.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from mmsr1.tools.base import AroundTool, Tool
from mmsr1.tools.bundle.rows import RECORDED, Row, read_row, row_of
from mmsr1.tools.cache import PICTURE
from mmsr1.tools.codecs import canonical
from mmsr1.tools.meter import ANSWERS, PartCounters
from mmsr1.tools.store import Store
from mmsr1.types import Picture, ToolResult

logger = logging.getLogger(__name__)

FOLDER, PREFIX = "searches", "seen:"
QueryT = TypeVar("QueryT", str, Picture)


def seen_key(row: Row) -> str:
    """The key of a row in the store, where several back ends may have answered the same call."""
    call = canonical([row.tool, row.backend, row.asked])
    return PREFIX + hashlib.sha256(call.encode("ascii")).hexdigest()


class Recorder:
    """Writes the rows of one process of a run. `file` names them, in `<run>/searches/`; a resumed run goes on in it.

    An answer replaces a failure, here and in the store, never the other way round. Use it from any thread.
    """

    def __init__(self, store: Store, file: Path, clock: Callable[[], float] = time.time) -> None:
        self._store, self._file, self._clock = store, file, clock
        self._noted: dict[str, bool] = {}  # key in the store: whether it was an answer
        self._mutex = threading.Lock()

    async def note(self, tool: Tool[QueryT], query: QueryT, result: ToolResult) -> None:
        """Write a result that this process has not seen before. Raises OSError, sqlite3.Error or ValueError if it
        cannot be written."""
        if result.status not in RECORDED:
            return
        row = row_of(tool.name, tool.backend, query, result, int(self._clock()))
        key = seen_key(row)
        if self._noted.get(key, False) or (key in self._noted and not row.answered):
            return
        before, self._noted[key] = self._noted.get(key), row.answered
        try:
            await asyncio.to_thread(self._write, key, row, result, before is None)
        except Exception:
            self._noted.pop(key, None)
            raise

    def _write(self, key: str, row: Row, result: ToolResult, new: bool) -> None:
        known = self._known(key)
        if known is None or (known.said() != row.said() and (row.answered or not known.answered)):
            for item in result.items:
                if item.thumbnail is not None:
                    PICTURE.dump(item.thumbnail, self._store)
            self._store.put(key, row.text())
        if new:
            line = json.dumps({"key": key, "tool": row.tool}) + "\n"
            with self._mutex:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._file.open("a", encoding="ascii") as lines:  # one write, so a kill leaves no two halves
                    lines.write(line)

    def _known(self, key: str) -> Row | None:
        try:
            text = self._store.get(key)
            return None if text is None else read_row(text)
        except ValueError:  # damaged: what is known now takes its place
            return None


class Recorded(AroundTool, Generic[QueryT]):
    """A tool whose results are noted by `recorder`. One that cannot be is told once and counted as `unwritten`."""

    def __init__(self, tool: Tool[QueryT], recorder: Recorder, counters: PartCounters) -> None:
        self._tool, self._recorder, self._counters = tool, recorder, counters
        self._told = False

    async def __call__(self, query: QueryT) -> ToolResult:
        result = await self._tool(query)
        try:
            await self._recorder.note(self._tool, query, result)
        except Exception as error:  # a full disk costs the recording, not the run
            self._counters.unwritten += result.status in ANSWERS
            if not self._told:
                logger.warning("searches of this run are not recorded: %s: %s", type(error).__name__, error)
            self._told = True
        return result


def seen_by(run: Path) -> Iterator[str]:
    """Keys of all rows that a run has seen, on all ranks, each once. A last line that a kill has cut is left out."""
    known: set[str] = set()
    for file in sorted((run / FOLDER).glob("*.jsonl")):
        with file.open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                try:
                    key = json.loads(line)["key"]
                except (ValueError, TypeError, KeyError):
                    continue
                if isinstance(key, str) and key not in known:
                    known.add(key)
                    yield key
