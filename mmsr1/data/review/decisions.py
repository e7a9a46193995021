"""What a reviewer decided: a file of JSON lines beside the examples, on disk before anybody is told so.

Lines are only ever added, and the last one about an example counts: whatever was decided before can still be read
there. A decision names the content that was judged, so that it is not taken for one about other content under the same
id.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from mmsr1.tools.codecs import canonical
from mmsr1.types import Example

State = Literal["open", "accepted", "rejected", "flagged"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class Decision:
    """About one example; `answer` and `aliases` are None where they stay as they are, `content` is what was judged.

    `open` with an answer is an edit that was kept without a verdict.
    """

    id: str
    content: str
    state: State = "open"
    answer: str | None = None
    aliases: tuple[str, ...] | None = None
    note: str = ""

    @property
    def judged(self) -> bool:
        """Whether it is a verdict, which agreement can be measured on."""
        return self.state in ("accepted", "rejected")


@dataclass(frozen=True)
class Entry:
    """A line of the file: its number (1-based), and the number of the line that it takes back, if it does so."""

    number: int
    decision: Decision
    undoes: int | None = None


class Stale(Exception):
    """Something was decided meanwhile, in another tab; nothing was written."""


def content_of(example: Example) -> str:
    """A digest of what a reviewer judges: id, question, answer, aliases and pictures."""
    judged = [example.id, example.question, example.answer, list(example.aliases), [p.digest for p in example.images]]
    return hashlib.sha256(canonical(judged).encode()).hexdigest()[:16]


class DecisionLog:
    """The decisions of one reviewer about one file, for one process at a time (the lock goes with the process).

    The constructor raises ValueError if another process has the file open, OSError if it cannot be opened. A last line
    that was cut by a kill is removed: nobody was told that it was saved. `bad` are lines that cannot be read; they stay
    in the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            remedy = "end that one, or give another --reviewer"
            raise ValueError(f"{path}: another review page has it open; {remedy}") from None
        entries, self.bad, size = _parsed(path)
        os.ftruncate(self._file, size)
        self._size, self._lines = size, len(entries) + len(self.bad)
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            self._write(b"\n")
        _sync_folder(path.parent)
        self._of: dict[str, list[Entry]] = {}
        self._undoable: list[Entry] = []
        for entry in entries:
            self._take(entry)

    def last(self, id: str) -> Entry | None:
        """What counts for an example; None if nothing was decided."""
        return self._of[id][-1] if id in self._of else None

    @property
    def latest(self) -> Mapping[str, Decision]:
        return {id: entries[-1].decision for id, entries in self._of.items()}

    @property
    def undoable(self) -> Entry | None:
        """The decision that `undo` would take back."""
        return self._undoable[-1] if self._undoable else None

    def decide(self, decision: Decision, seen: int) -> Entry:
        """Append; `seen` is the number of the last entry about this example that the reviewer saw, 0 for none.

        On disk when this returns. Raises Stale if there is a newer one, OSError if it could not be written.
        """
        last = self.last(decision.id)
        if seen != (last.number if last else 0):
            raise Stale("it was decided in another tab meanwhile")
        return self._append(Entry(self._lines + 1, decision))

    def undo(self, number: int) -> Entry:
        """Append what counted before the decision `number`, which must be the last one that was not taken back.

        Raises Stale if it is not, OSError if it could not be written.
        """
        if self.undoable is None or self.undoable.number != number:
            raise Stale("another tab decided something meanwhile")
        taken = self.undoable.decision
        before = [entry.decision for entry in self._of[taken.id] if entry.number < number]
        return self._append(Entry(self._lines + 1, before[-1] if before else Decision(taken.id, taken.content), number))

    def close(self) -> None:
        os.close(self._file)

    def _append(self, entry: Entry) -> Entry:
        row = vars(entry.decision) | {"time": datetime.now(UTC).isoformat(timespec="seconds")}
        if entry.undoes is not None:
            row["undoes"] = entry.undoes
        self._write((json.dumps(row) + "\n").encode("ascii"))
        self._lines += 1
        self._take(entry)
        return entry

    def _write(self, line: bytes) -> None:
        """All of it, on disk, or nothing. Raises OSError."""
        try:
            if os.write(self._file, line) < len(line):  # what a disk does that fills up just now
                raise OSError("the disk is full")
            os.fsync(self._file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(line)

    def _take(self, entry: Entry) -> None:
        self._of.setdefault(entry.decision.id, []).append(entry)
        if entry.undoes is None:
            self._undoable.append(entry)
        elif self.undoable is not None and self.undoable.number == entry.undoes:
            self._undoable.pop()


def read_decisions(path: Path) -> tuple[dict[str, Decision], list[str]]:
    """The last decision of each id, and what is wrong with lines that cannot be read; also while they are written.

    Raises OSError if the file cannot be read.
    """
    entries, bad, _ = _parsed(path)
    return {entry.decision.id: entry.decision for entry in entries}, bad


def reviewer_of(path: Path) -> str:
    """Who decided, by the name of the file; the whole name where it is no other."""
    return path.stem.rpartition(".review.")[2] or path.stem


def _parsed(path: Path) -> tuple[list[Entry], list[str], int]:
    """Entries, bad lines, and the bytes up to the end of the last line that is whole (or may lack its newline)."""
    data = path.read_bytes()
    *lines, rest = data.split(b"\n")
    size = len(data) - len(rest)
    entries: list[Entry] = []
    bad: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(_entry(number, line))
        except (ValueError, TypeError, KeyError) as error:
            bad.append(f"{path.name}: line {number} is no decision ({type(error).__name__}: {error})"[:300])
    try:
        entries.append(_entry(len(lines) + 1, rest))  # an editor may have left out the last newline
        size = len(data)
    except (ValueError, TypeError, KeyError):
        pass  # cut while it was written
    return entries, bad, size


def _entry(number: int, line: bytes) -> Entry:
    """Raises ValueError, TypeError or KeyError for what is no decision."""
    row: dict[str, Any] = json.loads(line)
    if not isinstance(row, dict):
        raise TypeError("an object was expected")
    aliases = row.get("aliases")
    if aliases is not None and not isinstance(aliases, list):
        raise TypeError("aliases are a list or null")
    decision = Decision(
        row["id"],
        row["content"],
        row["state"],
        row.get("answer"),
        None if aliases is None else tuple(aliases),
        row.get("note", ""),
    )
    if decision.state not in STATES:
        raise ValueError(f"state {decision.state!r}, not one of {', '.join(STATES)}")
    if decision.answer is not None and not (isinstance(decision.answer, str) and decision.answer.strip()):
        raise ValueError("the answer is empty")
    texts: Iterable[object] = (decision.id, decision.content, decision.note, *(decision.aliases or ()))
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("id, content, note and aliases are texts")
    return Entry(number, decision, row.get("undoes"))


def _sync_folder(folder: Path) -> None:
    """A power failure could take a new file with its synced lines."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
