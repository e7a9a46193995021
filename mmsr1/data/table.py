"""Random access to the examples of files that may be larger than memory.

A file is read once, and its usable rows are laid down in a form that gives any of them at once:

    <cache folder>/<key of the file>/  rows.arrow (uncompressed, one row a batch)  index.arrow  bad.jsonl

Later starts only open it. The key holds path, size and time of change: a file that was changed is read anew. Nothing in
the cache is needed once no run uses it; delete it as you like.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, get_args, overload, runtime_checkable

import numpy as np
import pyarrow as pa
from filelock import FileLock

from mmsr1.data.formats import none_usable, read_examples, row_count
from mmsr1.data.jsonl import pictures_stamp
from mmsr1.data.rows import BadRow, notes_fields, notes_of
from mmsr1.types import Example, Picture, SearchNeed

NEEDS: tuple[SearchNeed, ...] = get_args(SearchNeed)
_LAYOUT = 1  # raise when what is written changes, or which rows are usable, so that old folders are left alone
_ROWS, _INDEX, _BAD = "rows.arrow", "index.arrow", "bad.jsonl"
_ROW = pa.schema(
    [
        ("id", pa.string()),
        ("question", pa.string()),
        ("images", pa.list_(pa.binary())),
        ("answer", pa.string()),
        ("aliases", pa.list_(pa.string())),
        ("search_need", pa.string()),
        ("source", pa.string()),
        ("notes", pa.string()),  # JSON
    ]
)
_LABELS = pa.schema([("id", pa.string()), ("need", pa.int8()), ("difficulty", pa.float32())])


@runtime_checkable
class Watch(Protocol):
    """Who shows how far the reading of a file is."""

    def begin(self, phase: str, total: int) -> None: ...

    def advance(self) -> None: ...


@dataclass(frozen=True)
class Labels:
    """What decides the order, of each row: its need (a place in `NEEDS`), its difficulty (NaN if nobody tried), and the
    number of its file. Arrays of one length."""

    need: np.ndarray
    difficulty: np.ndarray
    file: np.ndarray

    @staticmethod
    def of(examples: Sequence[Example]) -> Labels:
        """Those of a table are there already; others are looked through."""
        if isinstance(examples, ExampleTable):
            return examples.labels
        need = np.array([NEEDS.index(e.search_need) for e in examples], dtype=np.int8)
        difficulty = np.array([e.notes.difficulty for e in examples], dtype=np.float32)  # None becomes NaN
        return Labels(need, difficulty, np.zeros(len(need), dtype=np.int16))

    @property
    def unlabelled(self) -> bool:
        """Whether no row says if it needs a search."""
        return bool(np.all(self.need == NEEDS.index("unknown")))

    @property
    def untried(self) -> bool:
        """Whether no row says how difficult it is."""
        return bool(np.all(np.isnan(self.difficulty)))


class ExampleTable(Sequence[Example]):
    """The usable rows of one or several files, one after the other; `bad` are those that were skipped.

    In memory are the labels and ids only. It can be pickled: the copy opens the files again.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        """`folders` are what `lay_down` returned. Raises ValueError if one is damaged."""
        self._folders = tuple(folders)
        self._lock = threading.Lock()  # Arrow does not say that a reader may be shared
        try:
            self._files = [pa.ipc.open_file(pa.OSFile(str(folder / _ROWS))) for folder in folders]
            index = [pa.ipc.open_file(pa.OSFile(str(folder / _INDEX))).read_all() for folder in folders]
            told = [(folder / _BAD).read_text(encoding="utf-8") for folder in folders]
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{', '.join(map(str, folders))}: damaged, delete it ({str(error)[:200]})") from error
        self._ids = pa.chunked_array([table["id"] for table in index])
        counts = [table.num_rows for table in index]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self.labels = Labels(
            np.concatenate([table["need"].to_numpy() for table in index]),
            np.concatenate([table["difficulty"].to_numpy() for table in index]),
            np.repeat(np.arange(len(index), dtype=np.int16), counts),
        )
        self.bad = tuple(BadRow(**json.loads(line)) for text in told for line in text.splitlines())

    @property
    def ids(self) -> list[str]:
        return self._ids.to_pylist()

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(index)
        file = int(self.labels.file[row])
        with self._lock:
            batch = self._files[file].get_batch(row - int(self._starts[file]))
        return _example(batch.to_pylist()[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return ExampleTable, (self._folders,)


def lay_down(path: Path, cache: Path, watch: Watch | None = None) -> Path:
    """The folder of the file in the cache, written now if it is not there; several processes may ask at once.

    Raises ValueError, in one line, if the file cannot be read or has no usable row, OSError if the cache cannot be
    written.
    """
    target = cache / _key(path)
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{target.name}.lock"):
        if not target.exists():
            scratch = cache / f".{target.name}.building"
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            try:
                _write(path, scratch, watch)
            except BaseException:
                shutil.rmtree(scratch, ignore_errors=True)
                raise
            scratch.rename(target)
    return target


def _key(path: Path) -> str:
    try:
        about = path.stat()
    except OSError as error:
        raise ValueError(f"{path}: not a readable file ({error.strerror})") from error
    pictures = pictures_stamp(path) if path.suffix.lower() == ".jsonl" else ""
    key = json.dumps([_LAYOUT, str(path.resolve()), about.st_size, about.st_mtime_ns, pictures])
    return f"{path.stem[:40]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _write(path: Path, folder: Path, watch: Watch | None) -> None:
    if watch is not None:
        watch.begin(f"reading {path.name}", row_count(path))
    labels: list[dict[str, Any]] = []
    count_bad, first_bad = 0, []
    with (
        pa.ipc.new_file(str(folder / _ROWS), _ROW) as rows,
        (folder / _BAD).open("w", encoding="utf-8") as bad,
    ):
        for row in read_examples(path):
            if isinstance(row, BadRow):
                bad.write(json.dumps(asdict(replace(row, file=path.name))) + "\n")
                count_bad, first_bad = count_bad + 1, first_bad or [row]
            else:
                rows.write_batch(pa.RecordBatch.from_pylist([_row(row)], _ROW))
                need, difficulty = NEEDS.index(row.search_need), row.notes.difficulty
                labels.append({"id": row.id, "need": need, "difficulty": np.nan if difficulty is None else difficulty})
            if watch is not None:
                watch.advance()
    if not labels:
        raise ValueError(none_usable(path, count_bad, first_bad))
    with pa.ipc.new_file(str(folder / _INDEX), _LABELS) as index:
        index.write_table(pa.Table.from_pylist(labels, _LABELS))


def _row(example: Example) -> dict[str, Any]:
    notes = notes_fields(example.notes)
    return {
        **{name: getattr(example, name) for name in ("id", "question", "answer", "search_need", "source")},
        "images": [picture.data for picture in example.images],
        "aliases": list(example.aliases),
        "notes": None if notes is None else json.dumps(notes),
    }


def _example(row: dict[str, Any]) -> Example:
    notes = None if row["notes"] is None else json.loads(row["notes"])
    return Example(
        row["id"],
        row["question"],
        tuple(map(Picture, row["images"])),
        row["answer"],
        tuple(row["aliases"]),
        row["search_need"],
        row["source"],
        notes_of(notes),
    )
