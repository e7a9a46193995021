"""A bundle on disk: a folder of five files that is complete or absent (docs/frozen-web.md).

    manifest.json           what is in it, and the sha256 of every other file; its own sha256 names the bundle
    rows.jsonl, rows.idx    one search a line (`rows.py`), in order of its key; where each line lies (`table.py`)
    blobs.bin, blobs.idx    thumbnails, one after another, by their sha256

There are no paths, no pickles and no programs in it. Opening checks manifest and indexes; a row or thumbnail is checked
when it is read; `verify` checks everything.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from mmsr1.tools.bundle.rows import DIGEST, LATEST, RECORDED, Row, read_row
from mmsr1.tools.bundle.table import Damaged, Table, TableWriter
from mmsr1.tools.codecs import canonical, typed
from mmsr1.tools.index_files import building
from mmsr1.tools.pictures import BadPicture, decode
from mmsr1.types import Picture, ToolName

FORMAT, VERSION = "mmsr1-bundle", 1
MANIFEST = "manifest.json"
FILES = ("rows.jsonl", "rows.idx", "blobs.bin", "blobs.idx")
THUMBNAIL_PIXELS = 4_000_000
ROW_BYTES, BLOB_BYTES, MANIFEST_BYTES = 4 * 2**20, 8 * 2**20, 16 * 2**20
_CHUNK = 2**20
SHORT = re.compile(r"[0-9a-f]{16}")
TOOLS, STATUSES = (re.compile("|".join(names)) for names in (get_args(ToolName), RECORDED))


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself. `as_of` are the first and last second (since 1970) at which a row was recorded,
    null if none says so; `backends` the full names of the back ends, providers and parser versions among them, by the
    short names in the rows; `tools` the number of rows by tool and status.
    """

    rows: int
    blobs: int
    as_of: tuple[int, int] | None
    backends: Mapping[str, str]
    tools: Mapping[str, Mapping[str, int]]
    files: Mapping[str, str]

    def text(self) -> str:
        """One form only, so that no byte of it can change unseen."""
        content = {**vars(self), "format": FORMAT, "version": VERSION}
        return canonical({**content, "hash": self.hash}) + "\n"

    @property
    def hash(self) -> str:
        """The bundle's name: sha256 of all that the manifest says, and so of all that is in the bundle."""
        return hashlib.sha256(canonical({**vars(self), "format": FORMAT, "version": VERSION}).encode()).hexdigest()

    @property
    def dates(self) -> str:
        if self.as_of is None:
            return "at an unknown date"
        first, last = (datetime.fromtimestamp(second, UTC).date().isoformat() for second in self.as_of)
        return first if first == last else f"{first} to {last}"


def read_manifest(folder: Path) -> Manifest:
    """Raises FileNotFoundError if no bundle is there, Damaged if it does not say what it must."""
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"no bundle there (a folder with {MANIFEST} and {', '.join(FILES)})")
    for name in (MANIFEST, *FILES):
        if (folder / name).is_symlink() or not (folder / name).is_file():
            raise Damaged(f"{name} is missing, or leads out of the bundle")
    if path.stat().st_size > MANIFEST_BYTES:
        raise Damaged(f"{MANIFEST} is too large")
    text = path.read_bytes()
    try:
        found = typed(json.loads(text), dict)
        if found["format"] != FORMAT or found["version"] != VERSION:
            raise ValueError(f"format {found['format']!r} {found['version']!r}; this code reads {FORMAT} {VERSION}")
        as_of, tools = found["as_of"], typed(found["tools"], dict)
        manifest = Manifest(
            _count(found["rows"]),
            _count(found["blobs"]),
            None if as_of is None else (_second(as_of[0]), _second(as_of[1])),
            {_known(short, SHORT): typed(name, str) for short, name in typed(found["backends"], dict).items()},
            {
                _known(tool, TOOLS): {_known(status, STATUSES): _count(n) for status, n in typed(counts, dict).items()}
                for tool, counts in tools.items()
            },
            typed(found["files"], dict),
        )
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise Damaged(f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"[:200]) from error
    if set(manifest.files) != set(FILES):
        raise Damaged(f"{MANIFEST} names files that no bundle has: {sorted(set(manifest.files) ^ set(FILES))}"[:200])
    if text != manifest.text().encode():
        raise Damaged(f"{MANIFEST} was changed: it is not what its hash says")
    return manifest


class Bundle:
    """An open bundle, for any number of threads. Raises FileNotFoundError, OSError or Damaged if it cannot be used."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        for name in ("rows.idx", "blobs.idx"):
            _check_file(self.folder / name, self.manifest.files[name])
        self._rows = Table(self.folder / "rows.jsonl", self.folder / "rows.idx", ROW_BYTES)
        self._blobs = Table(self.folder / "blobs.bin", self.folder / "blobs.idx", BLOB_BYTES)
        self._sound: set[str] = set()  # thumbnails that have been looked at
        if (self._rows.count, self._blobs.count) != (self.manifest.rows, self.manifest.blobs):
            raise Damaged(f"{self._rows.count} rows and {self._blobs.count} blobs, not what {MANIFEST} says")

    def find(self, key: bytes) -> Row | None:
        """The row of a call (`rows.call_key`). Raises Damaged."""
        line = self._rows.get(key)
        return None if line is None else self._row(key, line)

    def rows(self) -> Iterator[Row]:
        """All rows in order of their keys. Raises Damaged."""
        for key, line in self._rows.items():
            yield self._row(key, line)

    def blob(self, digest: str) -> bytes:
        """Raises Damaged if it is missing or is not what its name says."""
        data = self._blobs.get(bytes.fromhex(digest))
        if data is None or hashlib.sha256(data).hexdigest() != digest:
            raise Damaged(f"thumbnail {digest} is missing or was changed")
        return data

    def picture(self, digest: str) -> Picture:
        """A thumbnail that can be decoded. Raises Damaged."""
        picture = Picture(self.blob(digest))
        if digest not in self._sound:
            try:
                decode(picture, THUMBNAIL_PIXELS)
            except BadPicture as error:
                raise Damaged(f"thumbnail {digest} is none: {error}") from error
            self._sound.add(digest)
        return picture

    def blobs(self) -> Iterator[str]:
        """The names of all blobs, each checked against what it holds. Raises Damaged."""
        for digest, data in self._blobs.items():
            if hashlib.sha256(data).digest() != digest:
                raise Damaged(f"blob {digest.hex()} holds something else")
            yield digest.hex()

    def close(self) -> None:
        self._rows.close()
        self._blobs.close()

    def _row(self, key: bytes, line: bytes) -> Row:
        try:
            row = read_row(line)
        except ValueError as error:
            raise Damaged(str(error)) from error
        if row.key != key or f"{row.text()}\n".encode() != line or row.backend not in self.manifest.backends:
            raise Damaged(f"row {key.hex()} is not what its key says")
        return row


def verify(folder: Path, advance: Callable[[int], None] = lambda size: None) -> Manifest:
    """Check every byte. Raises FileNotFoundError, OSError, or Damaged with the first thing that is wrong.

    `advance` is told of every some bytes that are checked, of all in the folder twice. Memory does not grow with rows.
    """
    manifest = read_manifest(folder)
    others = sorted({path.name for path in folder.iterdir()} - {MANIFEST, *FILES})
    if others:
        raise Damaged(f"{', '.join(others)[:200]}: not part of a bundle")
    for name in FILES:
        _check_file(folder / name, manifest.files[name], advance)
    bundle, tally, wanted = Bundle(folder), _Tally(), Counter[bytes]()
    try:
        for row in bundle.rows():
            tally.add(row)
            wanted.update(bytes.fromhex(digest) for digest in row.thumbnails)
            advance(len(row.text()) + 1)
        for digest in bundle.blobs():
            wanted.pop(bytes.fromhex(digest), None)
            advance(len(bundle.picture(digest).data))
    finally:
        bundle.close()
    if wanted:
        raise Damaged(f"thumbnail {next(iter(wanted)).hex()} is missing")
    if (tally.rows, tally.tools, tally.as_of) != (manifest.rows, manifest.tools, manifest.as_of):
        raise Damaged(f"{MANIFEST} counts other rows than there are")
    return manifest


@contextmanager
def written(folder: Path, blob: Callable[[str], bytes]) -> Iterator[BundleWriter]:
    """A writer for a new bundle, which is there, whole, once the block ends, or not at all if it raises.

    `blob` gives the thumbnails by digest. Raises FileExistsError if `folder` exists.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it, or write the bundle to another folder")
    with building(Path(folder)) as scratch:
        writer = BundleWriter(scratch)
        try:
            yield writer
            writer.finish(blob)
        finally:
            writer.close()


class BundleWriter:
    """Takes rows in order of their keys; afterwards `manifest` says what was written."""

    manifest: Manifest

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._rows = TableWriter(scratch / "rows.jsonl", scratch / "rows.idx")
        self._blobs = TableWriter(scratch / "blobs.bin", scratch / "blobs.idx")
        self._wanted: set[bytes] = set()
        self._backends: dict[str, str] = {}
        self._tally = _Tally()

    def add(self, row: Row, backend: str) -> None:
        """`backend` is the full name of what answered. Raises ValueError for a row that is out of order or too large,
        or that names a thumbnail by no digest."""
        short = short_name(backend)
        self._backends[short] = backend
        row = replace(row, backend=short)
        line = f"{row.text()}\n".encode("ascii")
        if len(line) > ROW_BYTES or not all(DIGEST.fullmatch(digest) for digest in row.thumbnails):
            raise ValueError(f"a row of {len(line)} bytes (at most {ROW_BYTES}), or a thumbnail without a digest")
        self._rows.add(row.key, line)
        self._wanted.update(bytes.fromhex(digest) for digest in row.thumbnails)
        self._tally.add(row)

    def finish(self, blob: Callable[[str], bytes]) -> None:
        for digest in sorted(self._wanted):
            data = blob(digest.hex())
            if len(data) > BLOB_BYTES or hashlib.sha256(data).digest() != digest:
                raise ValueError(f"thumbnail {digest.hex()} has more than {BLOB_BYTES} bytes, or is another picture")
            self._blobs.add(digest, data)
        self.close()
        files = {name: _sha256(self._scratch / name) for name in FILES}
        tally = self._tally
        self.manifest = Manifest(
            tally.rows, len(self._wanted), tally.as_of, dict(sorted(self._backends.items())), tally.tools, files
        )
        (self._scratch / MANIFEST).write_text(self.manifest.text(), encoding="ascii")

    def close(self) -> None:
        for table in (self._rows, self._blobs):
            table.close()


class _Tally:
    """What a manifest counts of its rows."""

    def __init__(self) -> None:
        self.rows = 0
        self.as_of: tuple[int, int] | None = None
        self.tools: dict[str, dict[str, int]] = {}

    def add(self, row: Row) -> None:
        self.rows += 1
        counts = self.tools.setdefault(row.tool, {})
        counts[row.status] = counts.get(row.status, 0) + 1
        if row.at is not None:
            first, last = self.as_of or (row.at, row.at)
            self.as_of = min(first, row.at), max(last, row.at)


def short_name(backend: str) -> str:
    """What stands for a back end in rows: its own name may be long."""
    return hashlib.sha256(backend.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _known(value: object, form: re.Pattern[str]) -> str:
    if not form.fullmatch(typed(value, str)):
        raise ValueError("a name that no bundle has")
    return str(value)


def _count(value: object) -> int:
    if not 0 <= typed(value, int) < 2**40:
        raise ValueError("a number of things that is none")
    return typed(value, int)


def _second(value: object) -> int:
    if not 0 <= typed(value, int) < LATEST:
        raise ValueError("a time that is none")
    return typed(value, int)


def _check_file(path: Path, expected: Any, advance: Callable[[int], None] = lambda size: None) -> None:
    if _sha256(path, advance) != expected:
        raise Damaged(f"{path.name} was changed: it is not what {MANIFEST} says")


def _sha256(path: Path, advance: Callable[[int], None] = lambda size: None) -> str:
    digest = hashlib.sha256()
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()
