"""How a local index lies on disk: one directory, complete or absent, with a manifest that identifies its content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

MANIFEST = "manifest.json"
Hit = TypeVar("Hit")


@dataclass(frozen=True)
class Manifest:
    """`kind` and `version` say which code can read the directory, `content` is the sha256 of what was indexed."""

    kind: str
    version: int
    count: int
    content: str

    def write(self, directory: Path) -> None:
        (directory / MANIFEST).write_text(json.dumps(vars(self), indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_manifest(directory: Path, kind: str, version: int) -> Manifest:
    """Raises FileNotFoundError if no index is there, ValueError if it is of another kind or version."""
    path = directory / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"no search index in {directory}: build one with build_{kind}_index")
    manifest = Manifest(**json.loads(path.read_text(encoding="utf-8")))
    if (manifest.kind, manifest.version) != (kind, version):
        raise ValueError(
            f"{directory} holds a {manifest.kind} index of version {manifest.version}, "
            f"this code reads {kind} version {version}: delete the directory and build it again"
        )
    return manifest


@contextmanager
def building(directory: Path) -> Iterator[Path]:
    """A temporary sibling directory that takes the final name when the block ends, or vanishes if it raises.

    Raises FileExistsError if `directory` exists, also when another process finishes the same index first.
    """
    if directory.exists():
        raise FileExistsError(f"{directory} exists: an index is never changed, delete it to build another")
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        yield scratch
        scratch.chmod(0o755)  # mkdtemp makes it private; an index is meant to be read by others
        try:
            os.rename(scratch, directory)
        except OSError as error:
            raise FileExistsError(f"{directory} appeared while it was being built") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class ContentHash:
    """A running sha256 over records of text fields, in the order given."""

    def __init__(self, *header: str) -> None:
        self._hash = hashlib.sha256()
        self.add(*header)

    def add(self, *fields: str) -> None:
        self._hash.update(json.dumps(fields).encode("ascii") + b"\n")

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def best(
    fetch: Callable[[int], list[tuple[float, str, Hit]]],
    topk: int,
) -> list[Hit]:
    """The `topk` best of (score, id, hit), equal scores in order of id.

    A search library cuts its list anywhere within a run of equal scores, so `fetch(limit)` is asked for more until the
    run at the cut is complete. Scores within 1e-4 of each other in print are equal: 32-bit sums depend on their order.
    """
    limit = 2 * topk
    while True:
        hits = [(round(score, 4), identity, hit) for score, identity, hit in fetch(limit)]
        if len(hits) < limit or hits[-1][0] < hits[topk - 1][0]:
            break
        limit *= 8
    hits.sort(key=lambda item: (-item[0], item[1]))
    return [hit for _, _, hit in hits[:topk]]
