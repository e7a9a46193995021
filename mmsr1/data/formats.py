"""Examples in and out of files: parquet in the published FVQA format, or JSON lines (`.jsonl`) with pictures beside.

for row in read_examples(Path("train.parquet")):
    ...                                  # an Example, or a BadRow with its cause
write_examples(Path("train.jsonl"), examples)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mmsr1.data.fvqa import count_rows, read_fvqa, write_fvqa
from mmsr1.data.jsonl import count_lines, read_jsonl, write_jsonl
from mmsr1.data.rows import BadRow
from mmsr1.types import Example

_READERS = {".parquet": read_fvqa, ".jsonl": read_jsonl}
_WRITERS = {".parquet": write_fvqa, ".jsonl": write_jsonl}


def read_examples(path: Path) -> Iterator[Example | BadRow]:
    """Stream the rows of a file in constant memory (but for their ids). Raises ValueError, in one line, if it is none.

    A file of another suffix is taken for parquet. Of rows with the same id the first usable one stays.
    """
    return _READERS.get(path.suffix.lower(), read_fvqa)(path)


def row_count(path: Path) -> int:
    """About how many rows the file has, for a progress bar. Raises ValueError if it cannot be read."""
    return count_lines(path) if path.suffix.lower() == ".jsonl" else count_rows(path)


def load_examples(path: Path) -> tuple[list[Example], list[BadRow]]:
    """All usable rows and all skipped ones, in memory. Raises ValueError if none is usable, naming the first cause."""
    rows = list(read_examples(path))
    examples = [row for row in rows if isinstance(row, Example)]
    bad = [row for row in rows if isinstance(row, BadRow)]
    if not examples:
        raise ValueError(none_usable(path, len(bad), bad))
    return examples, bad


def none_usable(path: Path, rows: int, bad: Sequence[BadRow]) -> str:
    cause = f"; row {bad[0].row}: {bad[0].cause}" if bad else ""
    return f"{path}: none of {rows} rows can be used{cause}"


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Write examples by the suffix of `path`; returns their number. The file appears complete or not at all.

    Raises ValueError for another suffix than .parquet and .jsonl.
    """
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise ValueError(f"{path}: the name of a data file ends with .parquet or .jsonl")
    return write(path, examples)
