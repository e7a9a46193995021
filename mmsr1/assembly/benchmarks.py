"""The questions of an evaluation: of the emblem world, or of a file that a benchmark's authors publish."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from mmsr1.assembly.answering import drawn
from mmsr1.assembly.data import emblem_store
from mmsr1.config import ConfigError, one_of
from mmsr1.config.evaluate import EvaluateConfig
from mmsr1.data.formats import read_examples
from mmsr1.data.review.decisions import content_of
from mmsr1.data.rows import BadRow
from mmsr1.evaluation.benchmarks import BENCHMARKS, Question, check_count, lock, questions
from mmsr1.report.progress import episodes_bar

EMBLEM = "emblem"


@dataclass(frozen=True)
class Asked:
    """The questions to ask: `contents` are their digests (`mmsr1.data.review.decisions.content_of`) by id, in their
    order; `read` gives all of the file, one at a time. `remarks` are what people should know: rows that were skipped, a
    count or ids that are not those of before."""

    name: str
    title: str
    metric: str
    judged: bool
    contents: Mapping[str, str]
    skipped: int
    remarks: tuple[str, ...]
    read: Callable[[], Iterator[Question | BadRow]]

    @property
    def digest(self) -> str:
        """Of all that is asked, in whatever order."""
        return hashlib.sha256("".join(sorted(self.contents.values())).encode()).hexdigest()[:16]

    def questions(self, wanted: frozenset[str]) -> Iterator[Question]:
        """Those of the wanted ids, in order; nothing is read beyond the last of them."""
        left = len(wanted)
        rows = self.read() if wanted else iter(())
        for row in rows:
            if isinstance(row, Question) and row.example.id in wanted:
                left -= 1
                yield row
                if not left:
                    return


def asked(config: EvaluateConfig) -> Asked:
    """The benchmark of the configuration, read once for its ids. Raises ConfigError for a file that cannot be used."""
    chosen = config.benchmark
    if chosen.name == EMBLEM:
        path = emblem_store(config).split(chosen.split)
        read: Callable[[], Iterator[Question | BadRow]] = lambda: _emblem(path)  # noqa: E731
        rows: int | None = None
        name, title, metric, judged = f"{EMBLEM}_{chosen.split}", f"Emblem world ({chosen.split})", "em", False
    else:
        one_of("benchmark.name", chosen.name, EMBLEM, *BENCHMARKS)
        benchmark = BENCHMARKS[chosen.name]
        if chosen.path is None:
            raise ConfigError(f"benchmark.path=None: {benchmark.wanted}")
        file = Path(chosen.path)
        read = lambda: questions(benchmark, file, chosen.pages)  # noqa: E731
        name, title = benchmark.name, benchmark.title
        metric, judged, rows = benchmark.metric, benchmark.judged, benchmark.rows
    try:
        contents, bad = _contents(read(), rows)
    except (ValueError, OSError) as error:
        said = str(error).removeprefix(f"{chosen.path}: ")
        raise ConfigError(f"benchmark.path={chosen.path}: {said}") from error
    ids = list(contents)
    if not ids:
        raise ConfigError(f"benchmark.path={chosen.path}: no row of {len(bad)} can be used, first {_told(bad[:1])}")
    remarks = [f"skipped row {_told([row])}" for row in bad[:10]]
    remarks += [f"{len(bad)} rows skipped in all"] if bad else []
    if chosen.name != EMBLEM and (line := check_count(BENCHMARKS[chosen.name], len(ids))) is not None:
        remarks.append(line)
    if (line := lock(Path(chosen.lock), name, ids)) is not None:
        remarks.append(line)
    kept = {ids[i]: contents[ids[i]] for i in drawn(len(ids), config.limit, config.seed)}
    return Asked(name, title, metric, judged, kept, len(bad), tuple(remarks), read)


def _emblem(path: Path) -> Iterator[Question | BadRow]:
    for row in read_examples(path):
        yield row if isinstance(row, BadRow) else Question(row, {})


def _contents(found: Iterator[Question | BadRow], expected: int | None) -> tuple[dict[str, str], list[BadRow]]:
    """Digests by id, of a file that may be large: a bar shows how far it is."""
    contents: dict[str, str] = {}
    bad: list[BadRow] = []
    with episodes_bar("reading", expected or 1, "questions") if expected else nullcontext(lambda: None) as advance:
        for row in found:
            if isinstance(row, BadRow):
                bad.append(row)
            else:
                contents[row.example.id] = content_of(row.example)
                advance()
    return contents, bad


def _told(rows: list[BadRow]) -> str:
    return "; ".join(f"{row.row} ({row.id}): {row.cause}" for row in rows) or "none there"
