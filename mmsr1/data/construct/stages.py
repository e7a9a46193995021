"""A stage: many items through one piece of work, each result on disk as soon as it is there.

An item that a service fails for waits and is tried again once the others are through. If it fails again it is dropped
where it is one of few and the service has worked for others meanwhile; else the service is to blame, and the stage is
left as it is for the next time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

from mmsr1.data.construct.items import Dropped, In, No, Out, Waiting, Work
from mmsr1.data.construct.journal import Journal

PASSES = 2
FEW = 0.1  # share of a stage's items that may be dropped because a service failed for them


@dataclass(frozen=True)
class Stage(Generic[In, Out]):
    """`kind` is the type of its rows. `concurrent` items are worked on at a time; 1 keeps their order. `known` is told
    of rows that an earlier process has written, before any work begins."""

    name: str
    kind: type[Out]
    work: Work[In, Out]
    concurrent: int = 1
    known: Callable[[Out], None] | None = None


@dataclass
class Desk:
    """What all stages write to, ask, and tell. `stop` says why nothing more is to be begun, None while it may be.
    `give_up`: items that wait for a service are dropped, whatever is wrong with it."""

    folder: Path
    drops: Journal[Dropped]
    stop: Callable[[], str | None] = lambda: None
    watch: Callable[[str, int, int], None] = lambda stage, done, of: None
    give_up: bool = False
    left: str | None = field(default=None, init=False)  # why a stage was left unfinished


def stage_file(folder: Path, number: int, name: str) -> Path:
    return folder / f"{number}_{name}.jsonl"


async def run_stage(stage: Stage[Any, Out], number: int, items: Sequence[Any], desk: Desk) -> list[Out] | None:
    """The rows that pass, in the order of `items`; None if the stage could not be finished, and `desk.left` says why.

    Raises ValueError for a file that is damaged, OSError for one that cannot be written.
    """
    journal = Journal(stage_file(desk.folder, number, stage.name), stage.kind)
    try:
        if stage.known is not None:
            for row in journal.rows:
                await asyncio.to_thread(stage.known, row)
        pass_ = _Pass(stage, journal, desk, len(items))
        todo = [item for item in items if item.id not in journal.ids and item.id not in desk.drops.ids]
        for _ in range(PASSES):
            todo = await pass_.over(todo)
            if desk.left is not None:
                return None
        if todo and not pass_.given_up(todo):
            return None
        rows = {row.id: row for row in journal.rows}  # type: ignore[attr-defined]
        return [rows[item.id] for item in items if item.id in rows]
    finally:
        journal.close()


class _Pass:
    """One way through the items that are left."""

    def __init__(self, stage: Stage[Any, Any], journal: Journal[Any], desk: Desk, total: int) -> None:
        self._stage, self._journal, self._desk, self._total = stage, journal, desk, total
        self._waiting: dict[str, Waiting] = {}
        self._passed, self._failed_at = 0, dict[str, int]()  # items that passed, in all and when one first failed

    async def over(self, items: Sequence[Any]) -> list[Any]:
        """Work on each; those that wait for a service come back. Begins nothing more once `desk.left` is set."""
        ahead, again = iter(items), []
        self._desk.watch(self._stage.name, self._total - len(items), self._total)
        left = len(items)

        async def worker() -> None:
            nonlocal left
            for item in ahead:
                if self._desk.left is None:
                    self._desk.left = self._desk.stop()
                if self._desk.left is not None:
                    return
                result = await self._stage.work(item)
                if isinstance(result, Waiting):
                    again.append(item)
                    self._wait(item, result)
                else:
                    self._write(item, result)
                    left -= 1
                self._desk.watch(self._stage.name, self._total - left, self._total)

        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(min(self._stage.concurrent, len(items))):
                    workers.create_task(worker())
        except ExceptionGroup as errors:  # the others were cancelled for it
            raise errors.exceptions[0] from None
        return again

    def given_up(self, items: Sequence[Any]) -> bool:
        """Drop those that still wait if they are few, and others passed after their first failure; else the service is
        what is wrong, and `desk.left` says so."""
        few = len(items) <= max(1, FEW * self._total)
        worked = all(self._passed > self._failed_at[item.id] for item in items)
        if not (self._desk.give_up or (few and worked)):
            why = self._waiting[items[-1].id].detail
            self._desk.left = f"{len(items)} of {self._total} items wait at the stage {self._stage.name}: {why}"
            return False
        for item in items:
            self._write(item, No("service_failed", self._waiting[item.id].detail))
        return True

    def _wait(self, item: Any, result: Waiting) -> None:
        self._waiting[item.id] = result
        self._failed_at.setdefault(item.id, self._passed)
        if result.final and self._desk.left is None:
            self._desk.left = self._desk.stop() or result.detail

    def _write(self, item: Any, result: Any) -> None:
        if isinstance(result, No):
            about = getattr(item, "question", "") or item.subject or (item.given.question if item.given else "")
            self._desk.drops.add(Dropped(item.id, self._stage.name, result.reason, result.detail, about))
        else:
            self._passed += 1
            self._journal.add(result)
