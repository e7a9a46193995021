"""What an index is made of: JSON lines, Parquet files and folders of pictures, read in order and from anywhere on.

A row that cannot be used is a `Bad` one with its place. Every row carries a `token`, with which reading goes on after
it: the next byte of a file of lines, the number of the next row otherwise.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow.parquet as pq

from mmsr1.tools.image_search.writing import ImageEntry
from mmsr1.tools.text_search.writing import Passage
from mmsr1.types import Picture

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
METADATA = "metadata.jsonl"
_LINES, _PACKED = (".jsonl", ".ndjson", ".json"), ".gz"


@dataclass(frozen=True)
class Row:
    place: str
    value: Any
    token: int


@dataclass(frozen=True)
class Bad:
    place: str
    why: str
    token: int


class Unusable(ValueError):
    """A row lacks something, in one line."""


@dataclass(frozen=True)
class Columns:
    """Which field of a row is what."""

    id: str = "id"
    title: str = "title"
    text: str = "text"
    url: str = "url"
    image: str = "image"

    def passage(self, fields: Mapping[str, Any]) -> Passage:
        """`contents` of Search-R1's corpora, whose first line is the title, stand in for a text that is not there."""
        title, text, contents = _text(fields, self.title), _text(fields, self.text), _text(fields, "contents")
        if not text and contents:
            first, _, rest = contents.partition("\n")
            title, text = (title, contents) if title or not rest.strip() else (first.strip().strip('"'), rest)
        if not text.strip():
            raise Unusable(f"no {self.text}")
        return Passage(_name(fields, self.id), title, text, _text(fields, self.url))

    def entry(self, fields: Mapping[str, Any], folder: Path) -> ImageEntry:
        """A picture in the row itself, or the path of one beside the file."""
        name = _name(fields, self.id)
        found = fields.get(self.image)
        found = found[0] if isinstance(found, list) and found else found
        if isinstance(found, dict):
            found = found.get("bytes") or found.get("path")
        if isinstance(found, str) and found:
            found = _file(folder / found)
        if not isinstance(found, bytes) or not found:
            raise Unusable(f"no {self.image}")
        return ImageEntry(name, _text(fields, self.title), _text(fields, self.url), Picture(found))


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
                raise Unusable("not a JSON object")
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
                        yield Bad(place, "no JSON", token)
                        continue
                    yield self._row(place, fields, token)
            except (EOFError, gzip.BadGzipFile, OSError) as error:
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
        wanted = [columns.id, columns.image] if kind == "image" else [columns.id]
        if missing := [name for name in wanted if name not in there]:
            raise ValueError(
                f"{path}: no column {missing[0]!r}; there are: {', '.join(there)}; say which with --id-column and so on"
            )
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


class PictureFolder:
    """All pictures below a folder in order of their paths, which are their ids.

    Titles and addresses stand in `metadata.jsonl` (`file_name`, `title`, `url`), as Hugging Face's image folders have
    them; without, the title is the file's name. Raises ValueError if that file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._names = sorted(_pictures(path))
        self.size: int | None = len(self._names)
        self._about = _metadata(path / METADATA)

    def identity(self) -> list[Any]:
        about = json.dumps(sorted(self._about.items()))
        digest = hashlib.sha256(json.dumps([self._names, about]).encode()).hexdigest()
        return [str(self.path.resolve()), len(self._names), digest]

    def read(self, start: int) -> Iterator[Row | Bad]:
        for number, name in enumerate(self._names[start:], start + 1):
            title, url = self._about.get(name, (Path(name).stem, ""))
            place = str(self.path / name)
            try:
                picture = Picture(_file(self.path / name))
            except Unusable as error:
                yield Bad(place, str(error), number)
                continue
            yield Row(place, ImageEntry(_clean(name), title, url, picture), number)


def _pictures(folder: Path) -> Iterable[str]:
    for inside, _, files in os.walk(folder):
        for file in files:
            if Path(file).suffix.lower() in PICTURES:
                yield Path(inside, file).relative_to(folder).as_posix()


def _metadata(path: Path) -> dict[str, tuple[str, str]]:
    """Title and address by the name of the file."""
    if not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                fields = json.loads(line)
                name = _text(fields, "file_name")
                found[name] = (_text(fields, "title") or Path(name).stem, _text(fields, "url"))
            except (ValueError, AttributeError, RecursionError) as error:
                raise ValueError(f"{path} line {number}: cannot be read ({error})") from None
    return found


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise Unusable(f"{path.name} cannot be read ({type(error).__name__})") from None


def _name(fields: Mapping[str, Any], column: str) -> str:
    found = fields.get(column)
    name = str(found) if isinstance(found, int) and not isinstance(found, bool) else _text(fields, column)
    if not name:
        raise Unusable(f"no {column}")
    return name


def _text(fields: Mapping[str, Any], column: str) -> str:
    """A field that may be missing; JSON can spell lone surrogates, which no index can hold."""
    found = fields.get(column)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise Unusable(f"{column} is of type {type(found).__name__}, not text")
    return _clean(found)


def _clean(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "ignore").decode()
