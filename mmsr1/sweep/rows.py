"""What the jobs of a sweep say of themselves, from whatever process or machine: lines of `<sweep>/jobs.jsonl`.

    {"call": id, "job": 2, "folder": "...", "event": "started", "told": "", "pid": 71, "by": 70, "host": "node3"}

One folder may see several calls of the same command, even at a time; `call` tells their lines apart.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmsr1.files import json_line, plain, scan_lines

FILE = "jobs.jsonl"
Event = Literal["started", "resumed", "skipped", "finished", "failed", "interrupted", "stop"]
UNDER_WAY = ("started", "resumed")
DONE = ("skipped", "finished")


@dataclass(frozen=True)
class Row:
    """`job` is Hydra's number; "stop" is said of all jobs. `told` is the cause of a failure; `log` the file that has a
    job's output, if its launcher gave it no terminal; `pid` the process of a job under way, `by` the one that waits
    for it."""

    call: str
    job: int
    folder: str
    event: Event
    told: str = ""
    log: str | None = None
    pid: int | None = None
    by: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)


def add(sweep: Path, row: Row) -> None:
    """One write at the end of the file, whoever else writes there."""
    file = os.open(sweep / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, json_line(plain(row)))
    finally:
        os.close(file)


def read(sweep: Path, call: str) -> list[Row]:
    """The lines of one call, in the order written; damaged ones left out."""
    try:
        with (sweep / FILE).open("rb") as file:
            found = [line for _, line in scan_lines(file)]
    except FileNotFoundError:
        return []
    return [Row(**line) for line in found if isinstance(line, dict) and line.get("call") == call]
