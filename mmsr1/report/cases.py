"""The answers of an evaluation to look at: where it searched for nothing, did not search though it had to, or was
wrong.

Whether a question needs a search is said by its label, or, where it has none, by the ways that the policy was forced
into (`mmsr1.evaluation.counterfactual`). The lines are read one by one, and only those that are shown are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsr1.data.balance.rules import ORDER
from mmsr1.evaluation import counterfactual
from mmsr1.evaluation.contamination import flags
from mmsr1.evaluation.lines import BRANCHES_FILE, SPLIT, UNREADABLE, Latest
from mmsr1.files import scan_lines
from mmsr1.report.film import clip, reply_of
from mmsr1.report.outcomes import DIRECT, DIRECT_WRONG, FAILED, SEARCHED, SEARCHED_WRONG, Outcome, outcome_of
from mmsr1.report.trajectories import NEEDS, Sample, choose_samples
from mmsr1.run_directory import RunDirectory

SHOWN = 25  # of each kind: a page of 2,000 questions stays one that a browser opens at once
PICTURES = 4  # of one question: a document can have dozens of pages
BEHAVIOURS = (DIRECT, SEARCHED, DIRECT_WRONG, SEARCHED_WRONG, FAILED)
_WAYS = {"none": "no search", "image": "image search", "text": "text search", "both": "both"}


@dataclass(frozen=True)
class Kind:
    """A list of the page."""

    key: str
    heading: str
    note: str


KINDS = (
    Kind("over", "Searched for nothing", "No search was needed, and one was made."),
    Kind("under", "Failed to search", "A search was needed, and none was made."),
    Kind("wrong", "Wrong", "Whether it searched or not; those of the lists above are here again."),
    Kind("lost", "Cut off", "A tool or the engine failed, or the money was spent: not the policy's doing."),
)


@dataclass(frozen=True)
class Forced:
    """A question whose ways were forced: `judged` by the rule of balancing, `told` the counts for people."""

    judged: counterfactual.Judged
    told: str


@dataclass(frozen=True)
class Case:
    """One answer with its whole trajectory, the only take of `sample`. `line` is its place in the file, from 1;
    `need` says who says so; `hidden` counts the pictures that are not among `pictures`."""

    id: str
    line: int
    need: str
    said: str
    verdict: str
    doubts: tuple[str, ...]
    forced: str
    sample: Sample
    pictures: tuple[str, ...]
    hidden: int


@dataclass(frozen=True)
class Survey:
    """`counts` of the answers by need (free, required, unknown) and by the key of their outcome; `found` how many of
    each kind there are, `cases` those that are shown; `bad` lines could not be read."""

    counts: Mapping[str, Mapping[str, int]]
    found: Mapping[str, int]
    cases: Mapping[str, tuple[Case, ...]]
    bad: int


@dataclass(frozen=True)
class _Entry:
    """A line of the file: where it stands, and what it is an example of."""

    line: int
    offset: int
    group: str
    outcome: Outcome
    kinds: tuple[str, ...]
    order: tuple[bool, str, int]


def read_forced(run: Path) -> tuple[dict[str, Forced], int]:
    """The questions whose ways were forced, by id, and how many lines could not be read."""
    found, bad = {}, 0
    for _, line in _lines(run / BRANCHES_FILE):
        try:
            judged = counterfactual.judged(line, counterfactual.Price(0.0))  # prices decide the regret alone
            found[judged.id] = Forced(judged, _told(line))
        except (*UNREADABLE, ZeroDivisionError):
            bad += 1
    return found, bad


def survey(directory: RunDirectory, forced: Mapping[str, Forced], shown: int = SHOWN) -> Survey:
    """Every answer of the evaluation counted, at most `shown` of each kind with their trajectories: those first that
    were also wrong, by the judge if there is one."""
    file = directory.path / "episodes" / f"{SPLIT}-0.jsonl"
    latest, bad = Latest[_Entry](), 0
    for number, (offset, record) in enumerate(_lines(file), 1):
        try:
            latest.take(record, _entry(record, number, offset, forced))
        except UNREADABLE:
            bad += 1
    ordered = sorted(latest.found.values(), key=lambda entry: entry.order)
    counts = {
        group: {outcome.key: sum(e.group == group and e.outcome == outcome for e in ordered) for outcome in BEHAVIOURS}
        for group in ("free", "required", "unknown")
    }
    of_kind = {kind.key: [entry for entry in ordered if kind.key in entry.kinds] for kind in KINDS}
    cases = {key: tuple(_cases(file, some[:shown], forced)) for key, some in of_kind.items()}
    return Survey(counts, {key: len(some) for key, some in of_kind.items()}, cases, bad)


def _lines(file: Path) -> Iterator[tuple[int, Any]]:
    if file.is_file():
        with file.open("rb") as stream:
            yield from scan_lines(stream)


def _entry(record: Mapping[str, Any], line: int, offset: int, forced: Mapping[str, Forced]) -> _Entry:
    need, _ = _need(record, forced)
    group = need if need in ("free", "unknown") else "required"
    outcome = outcome_of(record) if record["trained"] else FAILED
    searched, right = outcome in (SEARCHED, SEARCHED_WRONG), outcome in (DIRECT, SEARCHED)
    if outcome == FAILED:
        kinds = ["lost"]
    else:
        is_of = {"over": group == "free" and searched, "under": group == "required" and not searched}
        kinds = [key for key, holds in (is_of | {"wrong": not right}).items() if holds]
    judge = record["reward"]["parts"].get("judge")
    order = (right if judge is None else judge >= 0.5, record["example_id"], record["rollout"])
    return _Entry(line, offset, group, outcome, tuple(kinds), order)


def _need(record: Mapping[str, Any], forced: Mapping[str, Forced]) -> tuple[str, str]:
    """What the question needs, "unknown" if nobody can say, and who says so."""
    if record["search_need"] != "unknown":
        return record["search_need"], "by its label"
    one = forced.get(record["example_id"])
    return (one.judged.need, "by the forced ways") if one and one.judged.need else ("unknown", "")


def _cases(file: Path, entries: Sequence[_Entry], forced: Mapping[str, Forced]) -> Iterator[Case]:
    if not entries:
        return
    with file.open("rb") as lines:
        for entry in entries:
            lines.seek(entry.offset)
            record = json.loads(lines.readline())
            yield _case(record, entry.line, forced)


def _case(record: Mapping[str, Any], line: int, forced: Mapping[str, Forced]) -> Case:
    need, by = _need(record, forced)
    (sample,) = choose_samples({0: [record]})
    verdict, one = record.get("verdict") or {}, forced.get(record["example_id"])
    raised = flags(record)
    doubts = {"answer_in_title": "the answer stands in a result's title", "mirror": "a result from a data set's mirror"}
    return Case(
        id=record["example_id"],
        line=line,
        need=f"{NEEDS[need]}, {by}" if by else NEEDS[need],
        said=reply_of(record),
        verdict=clip(": ".join(filter(None, (verdict.get("status", "").replace("_", " "), verdict.get("detail"))))),
        doubts=tuple(said for name, said in doubts.items() if raised[name]),
        forced=one.told if one else "",
        sample=sample,
        pictures=tuple(record["images"][:PICTURES]),
        hidden=max(0, len(record["images"]) - PICTURES),
    )


def _told(line: Mapping[str, Any]) -> str:
    free = ", ".join(f"{_WAYS[way]} {right} of {tried} right" for way, (right, tried) in line["free"].items())
    ways = ", ".join(f"{_WAYS[way]} {line['forced'][way][0]} of {line['forced'][way][1]} right" for way in ORDER)
    return f"forced: {ways}; left free: {free}"
