"""Files of an index that only grow: a reader uses the part that its manifest counts while more is written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np


class Growing:
    """Append-only files of one directory, cut to what is known to be good when they are opened.

    `sizes` are the good bytes of each; a file that is not named there starts empty. Raises ValueError if one is shorter
    than that: what was promised is lost.
    """

    def __init__(self, directory: Path, names: Sequence[str], sizes: Mapping[str, int]) -> None:
        self._files: dict[str, IO[bytes]] = {}
        self.sizes: dict[str, int] = {}
        for name in names:
            file = (directory / name).open("ab")
            self._files[name] = file
            good = sizes.get(name, 0)
            if os.fstat(file.fileno()).st_size < good:
                raise ValueError(f"{directory / name}: shorter than the {good} bytes that were written to it")
            file.truncate(good)
            self.sizes[name] = good

    def write(self, name: str, data: bytes) -> int:
        """Append; returns where it begins."""
        start = self.sizes[name]
        self._files[name].write(data)
        self.sizes[name] += len(data)
        return start

    def sync(self) -> dict[str, int]:
        """Put all on the disk; returns the sizes."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return dict(self.sizes)

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def array(path: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The first rows of a growing file, mapped, not read. Raises ValueError if it holds fewer."""
    if 0 in shape:
        return np.empty(shape, dtype)
    if path.stat().st_size < int(np.prod(shape)) * np.dtype(dtype).itemsize:
        raise ValueError(f"{path.name} is shorter than the manifest says")
    return np.memmap(path, dtype=dtype, mode="r", shape=shape)
