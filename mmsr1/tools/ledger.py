"""The write-ahead ledger: what was asked of back ends and what it cost, known even after a kill.

    {"id", "state": "started", "tool", "key", "time", "cost_usd": price}     before the back end is asked
    {"id", "state": "answered" or "failed", "cost_usd": what it cost}        once the answer is kept, or there is none

A start without an end is a call in flight, or one whose process died: its outcome is `unknown` and it counts as spent
at its price. So a kill, a lost end line or a full disk can overstate what was spent, never understate it.

JSON lines, one file per writing process, so that ranks that share a file system never share a file. A line counts from
its newline on; what a kill left unfinished is ignored by readers and cut off before the next line. The file holds cache
keys, never queries.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import re
import threading
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

logger = logging.getLogger(__name__)

EndState = Literal["answered", "failed"]

_WRITER = re.compile(r"[a-z0-9_-]+")


@dataclass(frozen=True)
class LedgerTotals:
    """Back-end calls: `started` = `answered` + `failed` + `unknown` (no end was recorded, or not yet).

    `spent_usd`: what answered and failed calls cost, and the full price of each unknown one.
    """

    started: int = 0
    answered: int = 0
    failed: int = 0
    unknown: int = 0
    spent_usd: float = 0.0


class Ledger:
    """Appends to `<folder>/<writer>.jsonl`; a resumed process goes on with the file of its predecessor.

    One process at a time may use a `writer`; within it any number of threads and coroutines.
    The constructor raises ValueError for a writer that is no plain file name, OSError if the file cannot be opened.
    """

    def __init__(self, folder: Path, writer: str) -> None:
        if not _WRITER.fullmatch(writer):
            raise ValueError(f"writer {writer!r}: use lower-case letters, digits, _ and - (it becomes a file name)")
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._path = self.folder / f"{writer}.jsonl"
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._lock = threading.Lock()
        self._whole = False  # whether the file surely ends with a newline
        self._name_synced = False

    async def start(self, tool: str, key: str, price_usd: float) -> str | None:
        """Record that a call of at most `price_usd` is about to be made; returns the id to `end` it with.

        A paid call is on disk when this returns (milliseconds, off the event loop). Raises OSError if that fails: the
        call must not be made then. A free call is written without waiting for the disk (tens of microseconds); if even
        that fails there is a warning and None. Raises ValueError for a price that is no amount.
        """
        if not _is_amount(price_usd):
            raise ValueError(f"the price of {tool} is {price_usd!r}: need a finite number of USD >= 0")
        call = uuid.uuid4().hex  # unique over restarts; takes nothing from the random states that training uses
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        row = {"id": call, "state": "started", "tool": tool, "key": key, "time": now, "cost_usd": price_usd}
        try:
            self._append(row)
            if price_usd > 0:
                await self._synced(call)
        except OSError as error:
            if price_usd > 0:
                raise OSError(f"paid call not made, for the ledger cannot record it: {error}") from error
            logger.warning("free call of %s not recorded in the ledger: %s", tool, error)
            return None
        return call

    def end(self, call: str, state: EndState, cost_usd: float) -> None:
        """Record how a call ended and what it cost.

        Never raises: an end that cannot be written, or a cost that is no amount, leaves the call unknown, so at its
        price. For the same reason nothing waits for the disk here.
        """
        if not _is_amount(cost_usd):
            logger.warning("call %s claims to have cost %r USD: counted at its price", call, cost_usd)
            return
        try:
            self._append({"id": call, "state": state, "cost_usd": cost_usd})
        except OSError as error:
            logger.warning("end of call %s not recorded in the ledger, counted at its price: %s", call, error)

    def totals(self) -> LedgerTotals:
        """Totals over all writers of the folder, with their calls in flight; raises as `read_totals` does."""
        return read_totals(self.folder)

    def close(self) -> None:
        os.close(self._file)

    async def _synced(self, call: str) -> None:
        """Wait until the disk has what was written. If it fails or is cancelled the call ends here, for nothing."""
        try:
            await asyncio.to_thread(self._sync)
        except BaseException:
            self.end(call, "failed", 0.0)
            raise

    def _sync(self) -> None:
        os.fsync(self._file)
        if not self._name_synced:  # a power failure could take a new file with its synced lines
            _sync_folder(self.folder)
            self._name_synced = True

    def _append(self, row: Mapping[str, object]) -> None:
        line = (json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n").encode("ascii")
        with self._lock:
            if not self._whole:
                self._cut_unfinished_line()
            self._whole = False
            written = os.write(self._file, line)
            if written < len(line):  # what a disk does that fills up just now
                raise OSError(f"{written} of {len(line)} bytes written to {self._path}")
            self._whole = True

    def _cut_unfinished_line(self) -> None:
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.ftruncate(self._file, self._path.read_bytes().rfind(b"\n") + 1)


@dataclass
class Record:
    """How a call on record has ended. What is left as it is counts as failed at the full price."""

    cost_usd: float
    state: EndState = "failed"


@asynccontextmanager
async def on_record(ledger: Ledger | None, tool: str, key: str, price_usd: float) -> AsyncIterator[Record]:
    """The call that is made inside, known to the ledger before and after; raises as `Ledger.start` does.

    A call that says nothing of its end, because it raised or was cut, counts as spent at its price.
    """
    record = Record(price_usd)
    call = None if ledger is None else await ledger.start(tool, key, price_usd)
    try:
        yield record
    finally:
        if ledger is not None and call is not None:
            ledger.end(call, record.state, record.cost_usd)


def read_totals(folder: Path) -> LedgerTotals:
    """Totals over all ledgers in `folder` (zeros if there is none), also while they are written; about 5 us a line.

    Raises ValueError if a whole line is not what `Ledger` writes: it cannot be said then what was spent.
    """
    states: Counter[str] = Counter()
    costs: list[float] = []
    for file in sorted(Path(folder).glob("*.jsonl")):
        in_flight: dict[str, float] = {}
        *lines, _unfinished = file.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                state, cost = row["state"], row["cost_usd"]
                if state not in ("started", "answered", "failed") or not _is_amount(cost):
                    raise ValueError(f"state {state!r} at {cost!r} USD")
                if state == "started":
                    in_flight[row["id"]] = cost
                else:
                    del in_flight[row["id"]]
                    costs.append(cost)
            except (ValueError, TypeError, KeyError) as error:
                why = f"{type(error).__name__}: {error}"[:200]
                raise ValueError(f"line {number} of {file} is damaged, what was spent is not known: {why}") from error
            states[state] += 1
        costs += in_flight.values()
    answered, failed, started = states["answered"], states["failed"], states["started"]
    return LedgerTotals(started, answered, failed, started - answered - failed, math.fsum(costs))


def _is_amount(usd: object) -> bool:
    return isinstance(usd, int | float) and math.isfinite(usd) and usd >= 0


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
