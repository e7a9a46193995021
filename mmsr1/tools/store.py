"""A persistent key-value store on diskcache that cannot be made to run code.

diskcache pickles what it does not know and unpickles what a row *says* is a pickle, so whoever can write the directory
runs code in every process that reads it (CVE-2025-69872; the package is unmaintained, and its `JSONDisk` unpickles a
tampered row all the same). A row also names the file that holds a large value, and diskcache opens, or on overwriting
deletes, whatever path stands there. `PlainDisk` closes these doors: text and bytes only, own file names only.

Not for network file systems: SQLite's locks and flock do not hold there.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard, cast

from diskcache import UNKNOWN, Disk, FanoutCache, Timeout
from diskcache.core import MODE_BINARY, MODE_RAW, MODE_TEXT

logger = logging.getLogger(__name__)

_KEY = re.compile(r"(?:blob:|seen:)?[0-9a-f]{64}")
_FILE = re.compile(r"[0-9a-f]{2}/[0-9a-f]{2}/[0-9a-f]{28}\.val")
# Nothing is evicted: a result was paid for, and a repeated experiment must find it again.
_NO_LIMIT = 2**60
_SHARDS = 8
_PAGES = 1024  # of 4 KiB that each thread keeps of each shard; diskcache's own 8192 come to 256 MiB a thread
_SELECT = "SELECT mode, filename, value FROM Cache WHERE key = ? AND raw = 1"
_KEYS = "SELECT key FROM Cache WHERE raw = 1 AND key > ? AND key < ? ORDER BY key LIMIT 1000"
_FILES = 1  # hex digits of the key that name its lock file: 16 files, empty, never removed
_BYTE = 15  # hex digits that follow and name the byte in it: no two keys share one


class CorruptEntry(ValueError):
    """What lies under a key is not what this code stores there: damaged or tampered with."""


class PlainDisk(Disk):
    """diskcache's serialisation, cut down to sha256 keys, `str` and `bytes`. Violations raise `CorruptEntry`."""

    def __init__(self, directory: str, min_file_size: int = 0, pickle_protocol: int = 0) -> None:
        super().__init__(directory, min_file_size=min_file_size, pickle_protocol=pickle_protocol)
        self._last = threading.local()  # the file of the value that this thread has stored last, if it has one

    def put(self, key: object) -> tuple[str, bool]:
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise CorruptEntry(f"a key is a sha256 in hex, perhaps after 'blob:' or 'seen:', not {key!r}")
        return key, True

    def get(self, key: object, raw: bool) -> str:
        if not raw:
            raise CorruptEntry("a key in the store claims to be a pickle")
        return self.put(key)[0]

    def store(self, value: object, read: bool, key: Any = UNKNOWN) -> tuple:
        if read or type(value) not in (str, bytes):
            raise CorruptEntry(f"only str and bytes are stored, not {type(value).__name__}")
        self._last.file = None
        row = super().store(value, False, key)
        self._last.file = row[2]
        return row

    def discard(self) -> None:
        """Remove the file of a value whose row could not be written after it."""
        if getattr(self._last, "file", None) is not None:
            self.remove(self._last.file)

    def fetch(self, mode: int, filename: str | None, value: object, read: bool) -> str | bytes:
        if mode == MODE_RAW and filename is None and isinstance(value, str | bytes):
            return value
        if mode in (MODE_BINARY, MODE_TEXT) and self._is_ours(filename):
            data = Path(self._directory, filename).read_bytes()  # the inherited reader would turn "\r\n" into "\n"
            return data if mode == MODE_BINARY else data.decode("utf-8")
        raise CorruptEntry(f"refused a row of mode {mode!r} with file {filename!r}")

    def remove(self, file_path: object) -> None:
        """Called when a row is overwritten: the name comes from the old row, so it is checked as well."""
        if self._is_ours(file_path):
            super().remove(file_path)
        else:
            logger.warning("cache row named the file %r: left alone", file_path)

    def _is_ours(self, filename: object) -> TypeGuard[str]:
        """True for a name that `filename()` makes and that leads over no link, so to a place inside the directory."""
        if not isinstance(filename, str) or not _FILE.fullmatch(filename):
            return False
        return not any(os.path.islink(os.path.join(self._directory, filename[:end])) for end in (2, 5, None))

    def _write(self, full_path: str, iterator: Any, mode: str, encoding: str | None = None) -> int:
        """A disk that fills up leaves no half file."""
        try:
            return cast(int, super()._write(full_path, iterator, mode, encoding))
        except OSError:
            Path(full_path).unlink(missing_ok=True)
            raise


class Store:
    """Text and bytes by sha256 key, on disk, shared by threads and processes; opening takes about 10 ms.

    Eight SQLite shards, so that writers rarely meet. A read costs about 10 us and never waits for a writer; a write
    costs about 0.1 ms but waits while another process writes to the same shard: call `put` off the event loop.
    The constructor raises OSError if the directory cannot be made private (mode 0700), or a database in it cannot be
    opened: the disk is full, or it is damaged.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self._locks = self.directory / "locks"
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory.chmod(0o700)  # also one that was there before
        self._locks.mkdir(exist_ok=True)
        try:
            self._cache = FanoutCache(
                str(self.directory),
                shards=_SHARDS,
                timeout=60,
                disk=PlainDisk,
                eviction_policy="none",
                cull_limit=0,
                size_limit=_NO_LIMIT,
                sqlite_mmap_size=0,
                sqlite_cache_size=_PAGES,
            )
        except sqlite3.Error as error:
            why = f"the cache in {self.directory} cannot be opened ({error})"
            raise OSError(f"{why}: make room on its disk, or move it away if it is damaged") from error

    def get(self, key: str) -> str | bytes | None:
        """The value, or None if there is none. Raises CorruptEntry for anything that `put` did not write."""
        try:
            return self._read(key)
        except CorruptEntry:
            raise
        except Exception as error:  # sqlite3.DatabaseError, UnicodeDecodeError, ...: damage takes any form
            raise CorruptEntry(f"unreadable row: {type(error).__name__}: {error}") from error

    def put(self, key: str, value: str | bytes) -> None:
        """Raises CorruptEntry for a key or value of the wrong type, sqlite3.Error or OSError if the disk refuses."""
        shard = self._shard(key)
        try:
            shard.set(key, value)  # with diskcache's `retry`, what can never be written would be tried for ever
        except Timeout:  # it has removed the file
            why = "it is locked, read-only or its disk full"
            raise OSError(f"the cache in {self.directory} cannot be written: {why}") from None
        except (sqlite3.Error, OSError):
            if shard._con.in_transaction:  # a failed COMMIT leaves it open
                shard._con.rollback()
            shard._disk.discard()
            raise

    def keys(self, prefix: str) -> Iterator[str]:
        """All keys that begin with `prefix` ("blob:", "seen:"), in no order; one that is put meanwhile may be missing.

        Raises CorruptEntry for a key that `put` would not take, or a database that cannot be read.
        """
        for shard in cast(Any, self._cache)._shards:
            last = prefix
            while True:  # by pieces, so that no writer waits for a reader that takes its time
                try:
                    rows = shard._sql(_KEYS, (last, f"{prefix}~")).fetchall()
                except sqlite3.Error as error:
                    raise CorruptEntry(f"the cache in {self.directory} cannot be read: {error}") from error
                if not rows:
                    break
                for (key,) in rows:
                    yield shard._disk.put(key)[0]
                last = rows[-1][0]

    def _read(self, key: str) -> str | bytes | None:
        """What `FanoutCache.get` does for an entry that never expires, in two thirds of its time."""
        shard = self._shard(key)
        row = shard._sql(_SELECT, (key,)).fetchone()
        try:
            return None if row is None else shard._disk.fetch(*row, False)
        except FileNotFoundError:
            return None

    def _shard(self, key: str) -> Any:
        return cast(Any, self._cache)._shards[self._cache._hash(key) % _SHARDS]

    def lock_path(self, key: str) -> Path:
        """The file in which to lock the byte `lock_byte` while the value of `key` is being made."""
        return self._locks / f"{key[:_FILES]}.lock"

    @staticmethod
    def lock_byte(key: str) -> int:
        """Where in its file a key is locked; unrelated keys differ."""
        return int(key[_FILES : _FILES + _BYTE], 16)

    def close(self) -> None:
        """Close this thread's connections; the others close with their threads."""
        self._cache.close()
