"""What a review page shows and takes: the examples of a file one at a time, and the decisions of one reviewer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from mmsr1.data.review.decisions import STATES, Decision, DecisionLog, Stale, State, content_of
from mmsr1.types import Example

LONGEST_ANSWER, LONGEST_NOTE, MOST_ALIASES = 1_000, 4_000, 200


@runtime_checkable
class Rows(Protocol):
    """Examples that are read one at a time; `ids` of all of them without reading any."""

    @property
    def ids(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> Example: ...


@dataclass(frozen=True)
class Verdict:
    """What the page sends for an example; None for an answer and for aliases that stay as they are in the file.

    Raises ValueError, in one line, for what cannot stand in a data set.
    """

    state: State
    answer: str | None = None
    aliases: tuple[str, ...] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"state {self.state!r}: must be one of {', '.join(STATES)}")
        if self.answer is not None and not self.answer.strip():
            raise ValueError("the answer is empty: reject the question if it has none")
        aliases = self.aliases or ()
        if len(aliases) > MOST_ALIASES:
            raise ValueError(f"{len(aliases)} aliases: at most {MOST_ALIASES}")
        for name, text, most in (
            ("answer", self.answer or "", LONGEST_ANSWER),
            ("note", self.note, LONGEST_NOTE),
            *(("alias", alias, LONGEST_ANSWER) for alias in aliases),
        ):
            if len(text) > most:
                raise ValueError(f"{name}: {len(text)} characters, at most {most}")
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError(f"{name}: half a character (a lone surrogate) cannot be stored") from None


class Review:
    """Raises nothing of its own when made; on one thread.

    `others` are decisions of other reviewers by id, shown beside the example: only those rows are shown then. Decisions
    in the log about content that is not this row's any more count as none; `outdated` is their number.
    """

    def __init__(
        self, rows: Rows, log: DecisionLog, others: Mapping[str, Mapping[str, Decision]] | None = None
    ) -> None:
        self._rows, self._log, self._others = rows, log, others
        ids = rows.ids
        self._shown = [at for at, id in enumerate(ids) if others is None or id in others]
        self._position = {ids[at]: position for position, at in enumerate(self._shown)}
        self._states: list[State] = ["open"] * len(self._shown)
        self._outdated: set[str] = set()
        for id, decision in log.latest.items():
            if (position := self._position.get(id)) is None:
                continue
            if decision.content == content_of(self._example(position)):
                self._states[position] = decision.state
            else:
                self._outdated.add(id)

    def __len__(self) -> int:
        return len(self._shown)

    @property
    def outdated(self) -> int:
        return len(self._outdated)

    @property
    def counts(self) -> dict[State, int]:
        counted = Counter(self._states)
        return {state: counted[state] for state in STATES}

    def overview(self) -> dict[str, Any]:
        """How far the review is, and the number of the decision that can be taken back (None if there is none here)."""
        undoable = self._log.undoable
        here = undoable is not None and undoable.decision.id in self._position
        return {"total": len(self), "counts": self.counts, "undo": undoable.number if undoable and here else None}

    def picture(self, position: int, number: int) -> bytes:
        """Encoded as in the file. Raises IndexError."""
        if not 0 <= position < len(self):
            raise IndexError(f"row {position} of {len(self)}")
        return self._example(position).images[number].data

    def row(self, position: int) -> dict[str, Any]:
        """An example with what was decided about it, as JSON. Raises IndexError."""
        if not 0 <= position < len(self):
            raise IndexError(f"row {position} of {len(self)}")
        example = self._example(position)
        decision, notes = self._decision(example), example.notes
        return {
            "position": position,
            "id": example.id,
            "question": example.question,
            "answer": example.answer,
            "aliases": list(example.aliases),
            "edited": _edits(decision),
            "pictures": [picture.digest for picture in example.images],
            "facts": {
                "Class": notes.taxonomy,
                "Search need": "" if example.search_need == "unknown" else example.search_need,
                "Difficulty": "" if notes.difficulty is None else f"{notes.difficulty:.0%} of rollouts failed",
                "Source": example.source,
                "Licence": notes.licence,
            },
            "evidence": [vars(evidence) for evidence in notes.evidence],
            "content": content_of(example),
            "state": decision.state,
            "note": decision.note,
            "seen": self._number(example.id),
            "outdated": example.id in self._outdated,
            "others": [
                {"reviewer": name, "state": said.state, "edited": _edits(said), "note": said.note}
                for name, said in (self._others or {}).get(example.id, {}).items()
            ],
        }

    def find(self, at: int, by: int, wanted: State | None) -> int | None:
        """The next position after (`by` 1) or before (-1) `at` in that state, also round the end; None if there is
        none. Without a state: the neighbour, None beyond the ends."""
        if wanted is None:
            return at + by if 0 <= at + by < len(self) else None
        for step in range(1, len(self) + 1):
            position = (at + by * step) % len(self)
            if self._states[position] == wanted:
                return position
        return None

    def decide(self, position: int, verdict: Verdict, content: str, seen: int) -> None:
        """`content` and `seen` as `row` gave them. On disk when this returns. Raises IndexError, Stale or OSError."""
        if not 0 <= position < len(self):
            raise IndexError(f"row {position} of {len(self)}")
        example = self._example(position)
        if content != content_of(example):
            raise Stale("the file has changed since this row was shown")
        answer, aliases = verdict.answer, verdict.aliases
        if answer is not None:
            answer = " ".join(answer.split())
        if aliases is not None:
            aliases = _cleaned(aliases)
        decision = Decision(
            example.id,
            content,
            verdict.state,
            None if answer == example.answer else answer,
            None if aliases == _cleaned(example.aliases) else aliases,
            verdict.note.strip(),
        )
        self._log.decide(decision, seen)
        self._states[position] = verdict.state
        self._outdated.discard(example.id)

    def undo(self, number: int) -> int:
        """Take that decision back; the position of its example. Raises Stale or OSError."""
        decision = self._log.undo(number).decision
        position = self._position.get(decision.id, 0)
        if decision.id not in self._position:  # about a row that this file has no more
            return position
        known = decision.content == content_of(self._example(position))
        self._states[position] = decision.state if known else "open"
        if not known:
            self._outdated.add(decision.id)
        return position

    def _example(self, position: int) -> Example:
        return self._rows[self._shown[position]]

    def _number(self, id: str) -> int:
        last = self._log.last(id)
        return last.number if last else 0

    def _decision(self, example: Example) -> Decision:
        last = self._log.last(example.id)
        if last is None or example.id in self._outdated:
            return Decision(example.id, content_of(example))
        return last.decision


def applied(example: Example, decision: Decision) -> Example:
    """The example with the edits of a decision."""
    answer = example.answer if decision.answer is None else decision.answer
    aliases = example.aliases if decision.aliases is None else decision.aliases
    return replace(example, answer=answer, aliases=aliases)


def _edits(decision: Decision) -> dict[str, Any]:
    return {"answer": decision.answer, "aliases": None if decision.aliases is None else list(decision.aliases)}


def _cleaned(aliases: Sequence[str]) -> tuple[str, ...]:
    """In order, each once, without line breaks."""
    return tuple(dict.fromkeys(alias for one in aliases if (alias := " ".join(one.split()))))
