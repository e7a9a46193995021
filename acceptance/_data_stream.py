"""100k rows in a process of its own: `write` and `read` a file, or draw an `epoch` of it from a step on.

Prints one line of JSON: memory by which the process grew (MiB), seconds, and a digest of each step's examples.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks._memory import peak_above_now_mib
from mmsr1.data.formats import read_examples, write_examples
from mmsr1.data.mixtures import NATURAL, PromptSchedule
from mmsr1.data.rows import BadRow
from mmsr1.data.table import NEEDS, ExampleTable, lay_down
from mmsr1.types import Evidence, Example, Notes, Picture

PER_STEP = 100


def synthetic(count: int) -> Iterator[Example]:
    """Rows with pictures of about 20 kB, no two the same."""
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    for number in range(count):
        top, left = number % 313, number // 313 % 313
        buffer = io.BytesIO()
        Image.fromarray(noise[top : top + 82, left : left + 82]).save(buffer, "PNG", compress_level=0)
        notes = Notes("Place", number % 9 / 8, "CC0", (Evidence(f"title {number}", "https://a.example", "text " * 50),))
        need = NEEDS[number % len(NEEDS)]
        images = (Picture(buffer.getvalue()),)
        yield Example(f"id-{number}", f"what is {number}?", images, str(number), ("alias",), need, "synthetic", notes)


def _steps(table: ExampleTable, first: int, last: int) -> tuple[list[str], int]:
    """A digest of each step, and how many different examples the steps of the first epoch asked."""
    schedule = PromptSchedule(table, NATURAL, PER_STEP, 10**9, seed=3)
    found, seen = [], set()
    for step in range(first, last):
        drawn = schedule[step].examples
        if step < len(table) // PER_STEP:
            seen |= {e.id for e in drawn}
        content = [[e.id, *(picture.digest for picture in e.images)] for e in drawn]
        found.append(hashlib.sha256(json.dumps(content).encode()).hexdigest())
    return found, len(seen)


def main(what: str, file: Path, cache: Path, first: int, last: int) -> None:
    """`first` and `last` are steps for `epoch`; for the others `last` is the number of rows."""
    told: dict[str, object] = {}

    def work() -> None:
        if what == "write":
            told["rows"] = write_examples(file, synthetic(last))
        elif what == "read":
            told["rows"] = sum(not isinstance(row, BadRow) for row in read_examples(file))
        else:
            table = ExampleTable([lay_down(file, cache)])
            told["rows"] = len(table)
            told["steps"], told["first_epoch"] = _steps(table, first, last)

    started = time.perf_counter()
    told["mib"] = peak_above_now_mib(work)
    sys.stdout.write(json.dumps(told | {"seconds": time.perf_counter() - started}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
