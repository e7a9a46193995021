"""What an index is made of: JSON lines, Parquet files and folders of pictures, read in order and from anywhere on.

A row that cannot be used is a `Bad` one with its place. Every row carries a `token`, with which reading goes on after
it: the next byte of a file of lines, the number of the next row otherwise.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow.parquet as pq

from mmsr1.tools.index.folders import PictureFolder
from mmsr1.tools.index.rows import Bad, Columns, Row, Unusable, no_column

_LINES, _PACKED = (".jsonl", ".ndjson", ".json"), ".gz"
_WHOLE = "not a JSON object: give one object a line"


@runtime_checkable
class Source(Protocol):
    """One input. `size` is what the tokens run to, None if that is not known beforehand."""

    path: Path
    size: int | None

    def identity(self) -> list[Any]:
        """By which a resumed build knows that the input is the same, as JSON."""
        ...

    def read(self, start: int) -> Iterator[Row | Bad]: ...


def sources(kind: str, paths: Sequence[Path], columns: Columns) -> list[Source]:
    """Raises ValueError in one line for an input that is not there or of no known sort."""
    if not paths:
        raise ValueError("no input: give JSON lines, Parquet files or folders of pictures")
    return [_source(kind, path, columns) for path in paths]


def _source(kind: str, path: Path, columns: Columns) -> Source:
    if path.is_dir() and kind == "image":
        return PictureFolder(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file" + ("; a folder holds pictures" if path.is_dir() else ""))
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".parquet"]:
        return Parquet(path, kind, columns)
    if suffixes[-1:] == [_PACKED] or suffixes[-1:] and suffixes[-1] in _LINES:
        return Lines(path, kind, columns)
    raise ValueError(f"{path}: not known; give .jsonl (or .jsonl.gz), .parquet" + " or a folder" * (kind == "image"))


class _File:
    """What inputs of one file share."""

    def __init__(self, path: Path, kind: str, columns: Columns) -> None:
        self.path, self.kind, self.columns = path, kind, columns
        self.size: int | None = None

    def identity(self) -> list[Any]:
        found = self.path.stat()
        return [str(self.path.resolve()), found.st_size, found.st_mtime_ns, sorted(vars(self.columns).items())]

    def _row(self, place: str, fields: object, token: int) -> Row | Bad:
        try:
            if not isinstance(fields, Mapping):
                raise Unusable(_WHOLE if isinstance(fields, list) else "not a JSON object")
            columns = self.columns
            value = columns.passage(fields) if self.kind == "text" else columns.entry(fields, self.path.parent)
        except Unusable as error:
            return Bad(place, str(error), token)
        return Row(place, value, token)


class Lines(_File):
    """One JSON object a line, packed by gzip or not."""

    def __init__(self, path: Path, kind: str, columns: Columns) -> None:
        super().__init__(path, kind, columns)
        self.packed = path.suffix.lower() == _PACKED
        self.size = None if self.packed else path.stat().st_size

    def identity(self) -> list[Any]:
        return json.loads(json.dumps(super().identity()))

    def read(self, start: int) -> Iterator[Row | Bad]:
        token = start
        with gzip.open(self.path) if self.packed else self.path.open("rb") as file:
            try:
                file.seek(start)
                for line in file:
                    place = f"{self.path.name} at byte {token}"
                    token += len(line)
                    if not line.strip():
                        continue
                    try:
                        fields = json.loads(line)
                    except (ValueError, RecursionError):
                        whole = line.strip() in (b"[", b"{")  # of a document that was written over many lines
                        yield Bad(place, _WHOLE if whole else "no JSON", token)
                        continue
                    yield self._row(place, fields, token)
            except (EOFError, zlib.error, OSError) as error:
                if not self.packed:
                    raise
                raise ValueError(f"{self.path}: damaged compression ({type(error).__name__})") from error


class Parquet(_File):
    """Read by row group, so that a file larger than memory will do."""

    def __init__(self, path: Path, kind: str, columns: Columns) -> None:
        super().__init__(path, kind, columns)
        try:
            with pq.ParquetFile(path) as file:
                self.size = file.metadata.num_rows
                there = file.schema_arrow.names
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: no Parquet file ({type(error).__name__})") from None
        for wanted in ("id", kind):
            column = getattr(columns, wanted)
            if column not in there and not (wanted == "text" and "contents" in there):
                raise ValueError(f"{path}: {no_column(column, wanted, there)}")
        asked = (
            {columns.id, columns.title, columns.url, columns.image}
            if kind == "image"
            else {columns.id, columns.title, columns.url, columns.text, "contents"}
        )
        self._columns = [name for name in there if name in asked]

    def identity(self) -> list[Any]:
        return json.loads(json.dumps(super().identity()))

    def read(self, start: int) -> Iterator[Row | Bad]:
        with pq.ParquetFile(self.path) as file:
            first = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if first + rows > start:
                    yield from self._group(file, group, first, start)
                first += rows

    def _group(self, file: pq.ParquetFile, group: int, first: int, start: int) -> Iterator[Row | Bad]:
        number = first
        for batch in file.iter_batches(256, row_groups=[group], columns=self._columns):
            for fields in batch.to_pylist():
                if number >= start:
                    yield self._row(f"{self.path.name} row {number}", fields, number + 1)
                number += 1
