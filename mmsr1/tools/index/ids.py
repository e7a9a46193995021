"""Which ids an index has, in eight bytes each: tens of millions fit where a set of strings would not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

FILE = "ids.u64"
_RUN = 65_536  # ids that wait in a set before they are sorted into an array


def fingerprint(name: str) -> int:
    """64 bits. Among 50 million ids the chance that any two share theirs, so that one is refused, is below 1e-4."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8"), digest_size=8).digest(), "little")


class Ids:
    """A growing set of fingerprints: sorted arrays, each at least twice as long as the next, and a short Python set."""

    def __init__(self, known: np.ndarray) -> None:
        self._runs = [np.sort(known)] if len(known) else []
        self._fresh: set[int] = set()

    def new(self, names: Sequence[str]) -> list[int | None]:
        """The fingerprint of each name that has not been there before, None for the others; all are known from now."""
        marks = [fingerprint(name) for name in names]
        asked = np.array(marks, dtype=np.uint64)
        known = np.zeros(len(marks), dtype=bool)
        for run in self._runs:
            places = np.minimum(np.searchsorted(run, asked), len(run) - 1)
            known |= run[places] == asked
        found: list[int | None] = []
        for mark, old in zip(marks, known, strict=True):
            found.append(None if old or mark in self._fresh else mark)
            self._fresh.add(mark)
        if len(self._fresh) >= _RUN:
            self._settle()
        return found

    def _settle(self) -> None:
        run = np.sort(np.fromiter(self._fresh, dtype=np.uint64, count=len(self._fresh)))
        self._fresh = set()
        while self._runs and len(self._runs[-1]) < 2 * len(run):
            run = np.union1d(self._runs.pop(), run)
        self._runs.append(run)
