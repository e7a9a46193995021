"""Bundles out of runs and caches, and out of other bundles.

Rows are read twice: once to see what there is, which is all that is kept in memory, and once to write them in order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from heapq import merge as merge_sorted
from itertools import groupby
from pathlib import Path

import yaml

from mmsr1.tools.bundle.format import Bundle, Manifest, short_name, written
from mmsr1.tools.bundle.record import FOLDER, PREFIX, seen_by
from mmsr1.tools.bundle.rows import Row, read_row
from mmsr1.tools.store import CorruptEntry, Store

Advance = Callable[[int], None]


class Unexportable(ValueError):
    """What was named cannot be exported; the text says what is to be done."""


@dataclass
class Exported:
    """What came of an export or merge; `lost` rows were named but are damaged or not in the cache any more, `replaced`
    ones gave way to another row for the same call."""

    manifest: Manifest
    lost: int = 0
    replaced: int = 0


@dataclass(slots=True)
class _Found:
    """Where the row of a call lies, and what decides between several of them."""

    key: str
    answered: bool
    at: int


@dataclass
class _Calls:
    """One row for each call: an answer rather than a failure, then the one that was recorded last."""

    by_key: dict[bytes, _Found] = field(default_factory=dict)
    lost: int = 0
    replaced: int = 0

    def add(self, key: str, row: Row) -> None:
        found = _Found(key, row.answered, row.at or 0)
        known = self.by_key.get(row.key)
        self.replaced += known is not None
        if known is None or (found.answered, found.at) > (known.answered, known.at):
            self.by_key[row.key] = found


def export(
    source: Path,
    out: Path,
    cache: Path | None = None,
    backends: Sequence[str] = (),
    advance: Advance = lambda rows: None,
) -> Exported:
    """Write what a run has seen, or all that a cache holds, as a bundle to `out`.

    `cache` is the run's, if it does not lie where the run's configuration says. `backends` keeps to those whose full
    names begin with one of these, or whose short names are. `advance` is told of rows done, each counted twice.
    Raises Unexportable, FileExistsError if `out` exists, ValueError or OSError for a cache that cannot be read.
    """
    folder = cache or source
    if is_run(source):
        folder = cache or _cache_of(source)
        keys: Iterator[str] = seen_by(source)
    elif not (source / "locks").is_dir():
        replayed = (source / "run.json").is_file() and '"bundle"' in (source / "run.json").read_text(encoding="utf-8")
        also = "; it was replayed, and records nothing: its bundle is that of config.yaml" if replayed else ""
        raise Unexportable(f"{source}: neither a run (a folder with {FOLDER}) nor a cache of searches{also}")
    else:
        keys = iter(())
    if not (folder / "locks").is_dir():
        raise Unexportable(f"{folder}: the run's cache is not there; say with --cache where it lies now")
    store = Store(folder)
    try:
        calls = _survey(store, keys if is_run(source) else store.keys(PREFIX), backends, advance)
        with written(out, lambda digest: _blob(store, digest)) as writer:
            for key in sorted(calls.by_key):
                row = _row(store, calls.by_key[key].key)
                if row is None:  # it was there a moment ago
                    raise Unexportable(f"{folder} was changed meanwhile; export again")
                writer.add(row, row.backend)
                advance(1)
        return Exported(writer.manifest, calls.lost, calls.replaced)
    finally:
        store.close()


def is_run(source: Path) -> bool:
    return (source / FOLDER).is_dir()


def _survey(store: Store, keys: Iterator[str], backends: Sequence[str], advance: Advance) -> _Calls:
    """Raises Unexportable if two back ends have answered for one tool, and nobody says which is meant."""
    calls, seen = _Calls(), Counter[tuple[str, str]]()
    for key in keys:
        row = _row(store, key)
        advance(1)
        if row is None:
            calls.lost += 1
        elif not backends or any(row.backend.startswith(one) or short_name(row.backend) == one for one in backends):
            seen[row.tool, row.backend] += 1
            calls.add(key, row)
    for tool in sorted({tool for tool, _ in seen}):
        rivals = [(name, count) for (of, name), count in seen.items() if of == tool]
        if len(rivals) > 1:
            told = "; ".join(f"{short_name(name)} ({count} rows, {_ends(name)})" for name, count in rivals)
            raise Unexportable(f"{tool} was answered by {len(rivals)} back ends: choose with --backend: {told}")
    if not calls.by_key and backends:
        raise Unexportable(f"--backend={' '.join(backends)}: nothing there was answered by it")
    if not calls.by_key:
        raise Unexportable("nothing recorded there: only runs of this version with search tools leave something")
    return calls


def merge(sources: Sequence[Path], out: Path, advance: Advance = lambda rows: None) -> Exported:
    """One bundle of several: for a call that more than one has, an answer rather than a failure, then the first's.

    `advance` is told of every row written. Raises Unexportable or Damaged for a bundle that cannot be used.
    """
    with ExitStack() as opened:
        bundles: list[Bundle] = []
        for source in sources:
            try:
                bundles.append(Bundle(source))
            except (OSError, ValueError) as error:
                raise Unexportable(f"{source}: {error}") from error
            opened.callback(bundles[-1].close)

        def ranked(place: int) -> Iterator[tuple[bytes, bool, int, Row]]:
            return ((row.key, not row.answered, place, row) for row in bundles[place].rows())

        def blob(digest: str) -> bytes:
            return bundles[owners[digest]].blob(digest)

        owners: dict[str, int] = {}
        replaced = 0
        streams = [ranked(place) for place in range(len(bundles))]
        ordered = merge_sorted(*streams, key=lambda one: one[:3])
        with written(out, blob) as writer:
            for _, rows in groupby(ordered, key=lambda one: one[0]):
                (_, _, place, row), *others = rows
                writer.add(row, bundles[place].manifest.backends[row.backend])
                owners.update(dict.fromkeys(row.thumbnails, place))
                replaced += sum(other.said() != row.said() for *_, other in others)
                advance(1)
        return Exported(writer.manifest, replaced=replaced)


def _ends(name: str) -> str:
    """What tells one back end from another may stand at its end."""
    return name if len(name) <= 90 else f"{name[:40]} ... {name[-45:]}"


def _row(store: Store, key: str) -> Row | None:
    try:
        text = store.get(key)
        return None if text is None else read_row(text)
    except ValueError:  # CorruptEntry is one
        return None


def _blob(store: Store, digest: str) -> bytes:
    data = store.get(f"blob:{digest}")
    if not isinstance(data, bytes):
        raise CorruptEntry(f"thumbnail {digest} is not in the cache any more")
    return data


def _cache_of(run: Path) -> Path:
    """Where the run's configuration says its cache is; a relative path counts from here, as for the run."""
    try:
        return Path(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["tools"]["cache_dir"])
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise Unexportable(f"{run}/config.yaml does not say where its cache is; give --cache") from error


def totals(source: Path) -> int | None:
    """How many rows an export will read, for a progress bar; None if that is not known beforehand."""
    if not is_run(source):
        return None
    return sum(file.read_bytes().count(b"\n") for file in (source / FOLDER).glob("*.jsonl"))
