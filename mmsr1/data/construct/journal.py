"""Files that only grow, one JSON object a line: what is in them survives any kill, and is never done again.

A line counts from its newline on; what a kill left unfinished is cut off when the file is opened.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

R = TypeVar("R")


class Journal(Generic[R]):
    """The rows of `path`, each a `kind` (a frozen dataclass with an `id`), in the order in which they were added.

    Opening raises ValueError, in one line, for a line that is no such row; OSError if the file cannot be opened.
    """

    def __init__(self, path: Path, kind: type[R]) -> None:
        self.path = path
        self._adapter: TypeAdapter[R] = TypeAdapter(kind)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self.rows = self._read()
        self.ids = {row.id for row in self.rows}  # type: ignore[attr-defined]

    def add(self, row: R) -> None:
        """Append a row, whole or not at all. Raises OSError if the disk is full."""
        line = self._adapter.dump_json(row) + b"\n"
        size = os.fstat(self._file).st_size
        written = os.write(self._file, line)
        if written < len(line):
            os.ftruncate(self._file, size)
            raise OSError(f"{self.path}: {written} of {len(line)} bytes written; is the disk full?")
        self.rows.append(row)
        self.ids.add(row.id)  # type: ignore[attr-defined]

    def close(self) -> None:
        os.close(self._file)

    def _read(self) -> list[R]:
        *lines, unfinished = self.path.read_bytes().split(b"\n")
        if unfinished:
            os.ftruncate(self._file, os.fstat(self._file).st_size - len(unfinished))
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                rows.append(self._adapter.validate_json(line))
            except ValidationError as error:
                why = error.errors()[0]["msg"]
                raise ValueError(f"{self.path}: line {number} is damaged ({why}); remove it and run again") from None
        return rows
