"""The lines that an evaluation leaves in its run directory: one an episode, one a question whose ways were forced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from mmsr1.evaluation.counterfactual import Price, judged
from mmsr1.evaluation.outcome import Outcome, outcome_of
from mmsr1.files import read_lines, scan_lines, set_aside
from mmsr1.run_directory import RunDirectory
from mmsr1.types import Picture

SPLIT = "eval"
BRANCHES_FILE = "counterfactual.jsonl"
ASIDE = "eval.before.jsonl"
UNREADABLE = (KeyError, TypeError, AttributeError, ValueError)  # what a line that is no judged episode raises

T = TypeVar("T")


class Latest(Generic[T]):
    """What is wanted of the lines that count, by question and rollout: the last of each episode, but a lost one never
    takes the place of one that says something."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, int], T] = {}
        self._telling: set[tuple[str, int]] = set()

    def take(self, line: Mapping[str, Any], value: T) -> None:
        """Lines come in the order of the file."""
        key = line["example_id"], line["rollout"]
        if line["trained"]:
            self._telling.add(key)
        elif key in self._telling:
            return
        self.found[key] = value


class Lines:
    """The lines of an evaluation on disk. Light in memory: no tokens.

    `contents` are digests of the questions that are asked, by id (`mmsr1.data.review.decisions.content_of`): lines of
    other questions, or of rows that were changed since, are moved to `eval.before.jsonl`, damaged ones too, so that
    whoever reads the run sees what counts. `aside` is their number, those of forced ways included.
    """

    def __init__(self, run: RunDirectory, contents: Mapping[str, str]) -> None:
        self.run, self.contents = run, contents
        self._file, aside = run.path / "episodes" / f"{SPLIT}-0.jsonl", run.path / ASIDE
        self.aside = set_aside(self._file, self._counts, aside)
        self.aside += set_aside(run.path / BRANCHES_FILE, self._branch_counts, aside)
        self._latest = Latest[tuple[int, Outcome]]()
        self._count = 0
        for line in self._read():
            self._take(line, outcome_of(line))

    @property
    def outcomes(self) -> dict[tuple[str, int], Outcome]:
        return {key: found for key, (_, found) in self._latest.found.items()}

    def missing(self, id: str, repeats: int) -> list[int]:
        """The rollouts of the question that are not there, or say nothing."""
        found = (self._latest.found.get((id, rollout)) for rollout in range(repeats))
        return [rollout for rollout, one in enumerate(found) if one is None or one[1].lost]

    def add(self, line: dict[str, Any], found: Outcome, pictures: Iterable[Picture]) -> None:
        self.run.append_episode(SPLIT, 0, line, pictures)
        self._take(line, found)

    def branches(self) -> dict[str, dict[str, Any]]:
        """The lines of forced ways, by question."""
        return {line["id"]: line for line in read_lines(self.run.path / BRANCHES_FILE)}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The lines that count, in the order of the file."""
        counting = {number for number, _ in self._latest.found.values()}
        return (line for number, line in enumerate(self._read()) if number in counting)

    def _take(self, line: Mapping[str, Any], found: Outcome) -> None:
        self._latest.take(line, (self._count, found))
        self._count += 1

    def _read(self) -> Iterator[Any]:
        if self._file.is_file():
            with self._file.open("rb") as stream:
                yield from (line for _, line in scan_lines(stream))

    def _counts(self, line: Any) -> bool:
        try:
            return self.contents.get(outcome_of(line).id) == line["content"]
        except UNREADABLE:
            return False

    def _branch_counts(self, line: Any) -> bool:
        try:
            return self.contents.get(judged(line, Price(0.0)).id) == line["content"]
        except (*UNREADABLE, ZeroDivisionError):
            return False
