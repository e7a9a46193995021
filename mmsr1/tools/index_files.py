"""How a local index lies on disk: a directory whose manifest, replaced last and at once, says what belongs to it.

Files only grow, or are written under a new name; so whoever has opened an index keeps its view while others append.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

MANIFEST = "manifest.json"
JOURNAL = "journal.json"  # of a build that has not ended; see index/journal.py
VERSION = 2
READABLE = (1, 2)
IndexKind = Literal["text", "image"]
TIES = 20_000  # equally good hits among which the first are looked for
Place = TypeVar("Place")
Opened = TypeVar("Opened")


@dataclass(frozen=True)
class Manifest:
    """`kind` and `version` say which code can read the directory, `content` identifies what was indexed and how.

    `settings` decide results (analyzer, descriptor, embedding) and are part of `content`; `parts` are the names of what
    is replaced as a whole; `sizes` how many bytes of each growing file count; `made` is for people: when, by what.
    Version 1 knows the first four fields only.
    """

    kind: str
    version: int
    count: int
    content: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        write_json(directory / MANIFEST, asdict(self))


def write_json(path: Path, value: Any) -> None:
    """Replace the file at once: a reader, also one after a crash, sees the old or the new."""
    scratch = scratch_of(path)
    with scratch.open("w", encoding="utf-8") as out:
        json.dump(value, out, indent=1, sort_keys=True)
        out.write("\n")
        out.flush()
        os.fsync(out.fileno())
    os.replace(scratch, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def scratch_of(path: Path) -> Path:
    """What a crash may leave behind of a file that was to be replaced."""
    return path.with_name(f".{path.name}.new")


def read_manifest(directory: Path, kind: str | None = None) -> Manifest:
    """Raises FileNotFoundError if no index is there, ValueError if it is damaged, or of another kind or version."""
    path = directory / MANIFEST
    if not path.is_file():
        if (directory / JOURNAL).is_file():
            raise FileNotFoundError(f"{directory}: its build has not ended, run the same build command again")
        how = f"build_{kind}_index, or " if kind else ""
        raise FileNotFoundError(f"no search index in {directory}: make one with {how}python -m mmsr1.tools.index build")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        known = {name.name for name in fields(Manifest)}
        manifest = Manifest(**{key: value for key, value in found.items() if key in known})
    except (ValueError, TypeError, AttributeError) as error:
        remedy = "if it was one, delete the directory, build it again"
        raise ValueError(f"{path}: no manifest of an index ({error}); {remedy}") from None
    if manifest.kind != (kind or manifest.kind) or manifest.version not in READABLE:
        wanted = " or ".join(map(str, READABLE))
        raise ValueError(
            f"{directory} holds a {manifest.kind} index of version {manifest.version}, "
            f"this code reads {kind or manifest.kind} version {wanted}: delete the directory and build it again"
        )
    return manifest


def opened(directory: Path, kind: str, make: Callable[[Manifest], Opened]) -> Opened:
    """What `make` opens, tried again if somebody replaced a part of the index meanwhile. Raises as `read_manifest`."""
    while True:
        manifest = read_manifest(directory, kind)
        try:
            return make(manifest)
        except (OSError, ValueError, RuntimeError) as error:
            if read_manifest(directory, kind) == manifest:
                raise ValueError(f"{directory}: {' '.join(str(error).split())[:300]}: build it again") from error


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


class Chain:
    """A hash over records of text fields, in the order given, that can be gone on with from its own digest.

    What was built at once and what was appended to have the same digest.
    """

    def __init__(self, *header: str, digest: str = "") -> None:
        self.digest = digest
        if header:
            self.add(*header)

    def add(self, *fields: str) -> None:
        self.digest = hashlib.sha256(f"{self.digest}{json.dumps(fields)}".encode("ascii")).hexdigest()


def best(
    fetch: Callable[[int], Sequence[tuple[float, Place]]],
    rank: Callable[[Sequence[Place]], Sequence[Any]],
    topk: int,
    count: int,
) -> list[tuple[float, Place]]:
    """The `topk` best of `count`, as (score, place), equal scores in the order of what `rank` gives for their places.

    A search library cuts its list anywhere within a run of equal scores, so `fetch(limit)` is asked for more until the
    run at the cut is complete. Of a run beyond `TIES` the first ones that `fetch` gives are taken: always the same
    while the index is. Scores within 1e-4 of each other in print are equal: 32-bit sums depend on their order.
    """
    limit = min(2 * topk, count)
    while True:
        found = [(round(score, 4), score, place) for score, place in fetch(limit)]
        if len(found) < limit or limit >= min(count, TIES) or found[-1][0] < found[topk - 1][0]:
            break
        limit = min(8 * limit, count, TIES)
    least = found[:topk][-1][0] if found else 0.0
    wanted = [one for one in found if one[0] >= least]
    keys = rank([place for _, _, place in wanted])
    order = sorted(range(len(wanted)), key=lambda at: (-wanted[at][0], keys[at]))
    return [wanted[at][1:] for at in order[:topk]]
