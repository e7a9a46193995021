"""What searching may cost: limits in calls and USD, for a run and for a day, exact over threads and processes.

What a call can cost is taken from the budget before it is made and corrected afterwards. A process that is killed in
between leaves it taken, so a kill can overstate what was spent, never understate it. The figures stand in a small file
in the run's folder, which a resumed run goes on with, and in one for each UTC day in a folder that runs share. They are
whole nano-dollars, so that no rounding adds up, and are replaced as a whole, so that no reader sees half a file.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, TypeVar

from filelock import FileLock

from mmsr1.tools.base import AroundPart, Outcome, Part
from mmsr1.tools.codecs import typed
from mmsr1.tools.guard import Begin, Guarded
from mmsr1.tools.ledger import Ledger, Record, on_record
from mmsr1.tools.meter import ANSWERS

logger = logging.getLogger(__name__)

Q = TypeVar("Q")
V = TypeVar("V")
T = TypeVar("T")
Keep = Callable[[Outcome[V]], Awaitable[None]]

NANO = 10**9
LOCK_WAIT_S = 20.0
KINDS = ("run", "day")


@dataclass(frozen=True)
class BudgetLimits:
    """The most that may be spent; None is no limit. Raises ValueError for an amount below 0."""

    calls_per_run: int | None = None
    usd_per_run: float | None = None
    calls_per_day: int | None = None
    usd_per_day: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"tools.budget.{name}={value}: must be 0 or more, or null for no limit")

    def of(self, kind: str) -> tuple[int | None, int | None]:
        """Limits of a `run` or a `day`: calls, nano-dollars."""
        usd = getattr(self, f"usd_per_{kind}")
        return getattr(self, f"calls_per_{kind}"), None if usd is None else round(usd * NANO)


@dataclass(frozen=True)
class Reservation:
    """One call and the nano-dollars that were taken for it, and the files that say so."""

    nano: int
    files: tuple[Path, ...]


@dataclass(frozen=True)
class _Spent:
    calls: int = 0
    nano: int = 0


class Budget:
    """What is left under `limits`. `run_folder` belongs to the run, `shared_folder` to all that share a day's limits.

    The constructor raises ValueError for a file that cannot be read, OSError if a folder cannot be written. Later on
    such a file lets no call pass. Without limits no file is touched. Not for network file systems (file locks).
    """

    def __init__(self, limits: BudgetLimits, run_folder: Path, shared_folder: Path) -> None:
        self._limits = limits
        self._folders = {
            kind: Path(folder)
            for kind, folder in zip(KINDS, (run_folder, shared_folder), strict=True)
            if limits.of(kind) != (None, None)
        }
        self._mutex = threading.Lock()  # between threads; the file lock is between processes
        self._refused = False  # whether a call found too little left
        self._wanted = 0  # nano-dollars of the dearest call that found too little left
        for folder in self._folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        for file in self._files().values():
            _read(file)

    @property
    def limited(self) -> bool:
        """Whether there is any limit; if not, nothing here touches a file."""
        return bool(self._folders)

    def reserve(self, price_usd: float) -> Reservation | None:
        """Take a call at its price from all budgets, or nothing and None if one has too little left (about 1 ms)."""
        nano = _nano(price_usd)
        if not self.limited:
            return Reservation(nano, ())
        try:
            return self._taken(nano)
        except (OSError, ValueError) as error:
            logger.warning("no call is made, for the budget cannot be kept: %s", error)
            return None

    def settle(self, reservation: Reservation, cost_usd: float, made: bool = True) -> None:
        """Correct a reservation to what the call has cost; one for a call that was not `made` is given back.

        Never raises: what cannot be corrected stays spent at its price.
        """
        known = math.isfinite(cost_usd) and cost_usd >= 0
        excess = round(cost_usd * NANO) - reservation.nano if known else 0
        if not reservation.files or (excess == 0 and made):
            return
        try:
            with self._held(reservation.files):
                for file in reservation.files:
                    spent = _read(file)
                    _write(file, _Spent(spent.calls - (not made), spent.nano + excess))
        except (OSError, ValueError) as error:
            logger.warning("a call stays counted at its price: %s", error)

    def spent(self) -> dict[str, float]:
        """Calls and USD so far by name of the limit (`calls_per_run`, ...), of limited periods only.

        Calls under way count at their price. Raises ValueError for a file that cannot be read.
        """
        found: dict[str, float] = {}
        for kind, file in self._files().items():
            spent = _read(file)
            found |= {f"calls_per_{kind}": spent.calls, f"usd_per_{kind}": spent.nano / NANO}
        return found

    @property
    def left(self) -> str | None:
        """None while there is something left for a call such as those that were asked for; else a line that says which
        limit is reached."""
        return self.reached()

    def reached(self, price_usd: float = 0.0) -> str | None:
        """As `left`, also for a call at this price; a limit of 0 says that the cache alone is to answer."""
        try:
            for kind, file in self._files().items():
                spent = _read(file)
                calls, nano = self._limits.of(kind)
                said = f"{spent.calls} calls and {spent.nano / NANO:.4f} USD are spent"
                if calls is not None and spent.calls >= calls and (calls or self._refused):
                    return f"tools.budget.calls_per_{kind}={calls} is reached: {said}; raise it to go on"
                if nano is None:
                    continue
                wanted = max(self._wanted, _nano(price_usd) if nano else 0)
                if nano > spent.nano and spent.nano + wanted > nano:
                    need = f"too little for a call of {wanted / NANO:g} USD"
                    return f"tools.budget.usd_per_{kind}={nano / NANO:g} leaves {need}: {said}; raise it to go on"
                if spent.nano >= nano > 0 or spent.nano + wanted > nano:
                    return f"tools.budget.usd_per_{kind}={nano / NANO:g} is reached: {said}; raise it to go on"
        except ValueError as error:
            return str(error)
        return None

    def _taken(self, nano: int) -> Reservation | None:
        files = self._files()
        with self._held(files.values()):
            before = {kind: _read(file) for kind, file in files.items()}
            if not all(self._fits(kind, spent, nano) for kind, spent in before.items()):
                self._refused, self._wanted = True, max(self._wanted, nano)
                return None
            for kind, file in files.items():
                _write(file, _Spent(before[kind].calls + 1, before[kind].nano + nano))
        return Reservation(nano, tuple(files.values()))

    @contextmanager
    def _held(self, files: Iterable[Path]) -> Iterator[None]:
        """Keep all other threads and processes out of the files; always locked in the same order. Raises OSError."""
        with self._mutex, ExitStack() as locks:
            for file in files:
                lock = FileLock(file.with_suffix(".lock"), timeout=LOCK_WAIT_S, poll_interval=0.002)
                locks.enter_context(lock)  # Timeout is an OSError
            yield

    def _fits(self, kind: str, spent: _Spent, nano: int) -> bool:
        calls, most = self._limits.of(kind)
        return (calls is None or spent.calls < calls) and (most is None or nano == 0 or spent.nano + nano <= most)

    def _files(self) -> dict[str, Path]:
        names = {"run": "budget.json", "day": f"{datetime.now(UTC).date().isoformat()}.json"}
        return {kind: folder / names[kind] for kind, folder in self._folders.items()}


class Paid(AroundPart, Generic[Q, V]):
    """A part that asks the budget first, and whose calls stand in the ledger. What it is asked is always paid for: put
    a cache around it, not into it.

    `key` names a query in the ledger; a cache around this gives its own.
    """

    def __init__(
        self,
        part: Part[Q, V],
        budget: Budget,
        ledger: Ledger | None = None,
        key: Callable[[Q], str] | None = None,
    ) -> None:
        self._part, self._budget, self._ledger, self._key = part, budget, ledger, key

    async def __call__(self, query: Q) -> Outcome[V]:
        return await self.ask(query, "" if self._key is None else self._key(query))

    async def ask(self, query: Q, key: str, keep: Keep[V] | None = None) -> Outcome[V]:
        """Reserve, record, ask, `keep` the outcome, record the end, settle.

        The end is recorded once the outcome is kept, so that after a kill no answered call is made again. Of a guarded
        part the beginning is recorded once the call's turn has come, so one that is never made is not on record.
        """
        reservation = await self._aside(lambda: self._budget.reserve(self.price_usd))
        if reservation is None:
            return Outcome("over_budget", cached=True, detail=self._budget.left or "too little is left for this call")
        paid_usd, made = self.price_usd, False
        record: Record | None = None

        async def begin() -> str | None:
            nonlocal made, record
            try:
                entry = on_record(self._ledger, self.name, key, self.price_usd)
                record = await entries.enter_async_context(entry)
            except OSError as error:  # the call must not be made
                return str(error)
            made = True
            return None

        try:
            async with AsyncExitStack() as entries:
                outcome = await self._begun(query, begin)
                paid_usd, made = outcome.paid_usd, not outcome.cached
                if keep is not None:
                    await keep(outcome)
                if record is not None:
                    record.cost_usd, record.state = paid_usd, "answered" if outcome.status in ANSWERS else "failed"
                return outcome
        finally:
            await self._aside(lambda: self._budget.settle(reservation, paid_usd if made else 0.0, made))

    async def _begun(self, query: Q, begin: Begin) -> Outcome[V]:
        """The outcome of the part, with `begin` before it asks anybody."""
        if isinstance(self._part, Guarded):
            return await self._part.ask(query, begin)
        why = await begin()
        if why is not None:
            return Outcome("infrastructure_error", cached=True, detail=why)
        return await self._part(query)

    async def _aside(self, work: Callable[[], T]) -> T:
        """Files off the event loop; without limits there are none, and nothing to wait for."""
        return await asyncio.to_thread(work) if self._budget.limited else work()


def _nano(price_usd: float) -> int:
    return math.ceil(price_usd * NANO - 1e-3)  # never less than the price, but for the noise of its last digit


def _read(file: Path) -> _Spent:
    """Raises ValueError if the file does not say what was spent; one that is not there says nothing was."""
    try:
        row = json.loads(file.read_bytes())
        calls, nano = typed(row["calls"], int), typed(row["nano_usd"], int)
        if min(calls, nano) < 0:
            raise ValueError("less than nothing")
        return _Spent(calls, nano)
    except FileNotFoundError:
        return _Spent()
    except (OSError, ValueError, TypeError, KeyError) as error:
        why = f"{type(error).__name__}: {error}"[:120]
        raise ValueError(f"{file} does not say what was spent ({why}): repair or remove it") from error


def _write(file: Path, spent: _Spent) -> None:
    scratch = file.with_suffix(".new")  # one is enough: whoever writes holds the lock
    scratch.write_text(json.dumps({"calls": spent.calls, "nano_usd": spent.nano}))
    os.replace(scratch, file)
