"""A sorted table on disk: values in one file, one after another, and where each lies in another.

An index record is 76 bytes: key (32), sha256 of the value (32), offset (8), length (4), big-endian, in order of the
keys. Whoever trusts the index can trust every value, for it is checked when it is read; nothing is read before.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

_RECORD = struct.Struct(">32s32sQI")


class Damaged(ValueError):
    """A bundle is not what it says it is: changed, cut, or put together by hand."""


class TableWriter:
    """Values in order of their keys into `data` and `index`. Raises ValueError if a key is not above the one before."""

    def __init__(self, data: Path, index: Path) -> None:
        self._data, self._index = data.open("wb"), index.open("wb")
        self._last, self._offset = b"", 0
        self.count = 0

    def add(self, key: bytes, value: bytes) -> None:
        if key <= self._last:
            raise ValueError("keys must ascend")
        self._data.write(value)
        self._index.write(_RECORD.pack(key, hashlib.sha256(value).digest(), self._offset, len(value)))
        self._last, self._offset, self.count = key, self._offset + len(value), self.count + 1

    def close(self) -> None:
        """Everything is on disk when this returns; nothing more to do the second time."""
        for file in (self._data, self._index):
            if file.closed:
                continue
            file.flush()
            os.fsync(file.fileno())
            file.close()


class Table:
    """Reads what `TableWriter` wrote, from any thread. No value may have more than `most` bytes.

    The constructor raises Damaged for an index of a wrong size, OSError if a file is not there.
    """

    def __init__(self, data: Path, index: Path, most: int) -> None:
        self.name, self._most = data.name, most
        self._data = os.open(data, os.O_RDONLY | os.O_NOFOLLOW)
        self.bytes = os.fstat(self._data).st_size
        with open(os.open(index, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size % _RECORD.size:
                raise Damaged(f"{index.name} has {size} bytes, which is no number of records")
            # An empty file cannot be mapped.
            self._index: bytes | mmap.mmap = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        self.count = size // _RECORD.size

    def get(self, key: bytes) -> bytes | None:
        """The value, or None if there is none. Raises Damaged."""
        place = bisect_left(_Keys(self._index, self.count), key)
        if place == self.count:
            return None
        found, digest, offset, length = _RECORD.unpack_from(self._index, place * _RECORD.size)
        return self._read(digest, offset, length) if found == key else None

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All keys and values, checked, in order. Raises Damaged, also where values leave gaps or overlap."""
        last, end = b"", 0
        for place in range(self.count):
            key, digest, offset, length = _RECORD.unpack_from(self._index, place * _RECORD.size)
            if key <= last or offset != end:
                raise Damaged(f"record {place} of the index of {self.name} is out of order")
            yield key, self._read(digest, offset, length)
            last, end = key, offset + length
        if end != self.bytes:
            raise Damaged(f"{self.name} has {self.bytes} bytes, its index names {end}")

    def close(self) -> None:
        os.close(self._data)
        if isinstance(self._index, mmap.mmap):
            self._index.close()

    def _read(self, digest: bytes, offset: int, length: int) -> bytes:
        if length > self._most:
            raise Damaged(f"{self.name} holds {length} bytes under one key, more than the {self._most} that are read")
        value = os.pread(self._data, length, offset) if offset + length <= self.bytes else b""
        if len(value) != length or hashlib.sha256(value).digest() != digest:
            raise Damaged(f"{self.name} was changed or cut at byte {offset}")
        return value


class _Keys(Sequence[bytes]):
    """The keys of an index, for bisection."""

    def __init__(self, index: bytes | mmap.mmap, count: int) -> None:
        self._index, self._count = index, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[bytes]: ...
    def __getitem__(self, place: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(self._count))]
        return self._index[place * _RECORD.size : place * _RECORD.size + 32]
