"""What a build notes down as it goes, so that after a kill the same command goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mmsr1.tools.index_files import JOURNAL, write_json

TOLD = 5  # rows left out that are told with their place


@dataclass(frozen=True)
class Progress:
    """A moment at which everything before it is on the disk.

    `source` and `token` are where reading goes on: which input, and its own mark in it. `count` and `content` are those
    of a manifest written now, `sizes` those of the growing files. `skipped` rows were left out, `told` are the first.
    """

    source: int = 0
    token: int = 0
    count: int = 0
    content: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)
    skipped: int = 0
    told: tuple[str, ...] = ()

    def leaving_out(self, why: str) -> Progress:
        return replace(self, skipped=self.skipped + 1, told=(*self.told, why)[:TOLD])


@dataclass(frozen=True)
class Journal:
    """`task` is what was asked for; `done` is safe, `next` perhaps (the index itself knows, by its count).

    `opened` False: the folder is taken, and what a writer begins with may be half made.
    """

    task: Mapping[str, Any]
    done: Progress
    next: Progress | None = None
    finished: bool = False
    opened: bool = True

    def write(self, directory: Path) -> None:
        write_json(directory / JOURNAL, asdict(self))


def read_journal(directory: Path) -> Journal | None:
    """That of an unfinished build, None if there is none. Raises ValueError if it cannot be read."""
    path = directory / JOURNAL
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        done, following = _progress(found["done"]), found["next"]
        after = None if following is None else _progress(following)
        return Journal(dict(found["task"]), done, after, found["finished"], found.get("opened", True))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: no journal of an index ({error}): give another --out, or take it away") from None


def _progress(found: Mapping[str, Any]) -> Progress:
    known = {name.name: found[name.name] for name in fields(Progress)}
    return Progress(**{**known, "told": tuple(known["told"])})
