"""The boundary film: the same held-out questions at every validation, one cell an entity.

Pure functions of episode records (`mmsr1.run_directory.episode_record`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from mmsr1.report.outcomes import ABSENT, FAILED, OUTCOMES, Outcome, outcome_of
from mmsr1.rollout.protocol import Answer, parse_turn
from mmsr1.run_directory import RunDirectory

MAX_CELLS = 120
LONGEST_TEXT = 240
GROUPS = ("free", "required", "unknown")

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One held-out entity, followed by one question. `outcomes` and `replies` have one entry a step of the film."""

    example_id: str
    group: str
    question: str
    truth: str
    picture: str | None
    outcomes: tuple[Outcome, ...]
    replies: tuple[str, ...]


@dataclass(frozen=True)
class Film:
    """Cells in order of their group. A cell is an `entity` where the data name one, else a `question`.

    `total` counts the entities or questions that exist, shown or not.
    """

    steps: tuple[int, ...]
    cells: tuple[Cell, ...]
    unit: str
    total: int

    @property
    def groups(self) -> dict[str, list[Cell]]:
        """The cells of each group that has any."""
        held = {group: [cell for cell in self.cells if cell.group == group] for group in GROUPS}
        return {group: cells for group, cells in held.items() if cells}

    @property
    def outcomes_met(self) -> list[Outcome]:
        """The outcomes that the legend lists: the four usual ones, and the others where they occur."""
        met = {outcome for cell in self.cells for outcome in cell.outcomes}
        return [outcome for outcome in OUTCOMES if outcome in met or outcome not in (FAILED, ABSENT)]


def read_validation(directory: RunDirectory) -> dict[int, list[dict[str, Any]]]:
    """Step -> records of that validation, one rollout a question, without their tokens (which are large)."""
    validation = {}
    for step in directory.episode_steps("val"):
        records: dict[str, dict[str, Any]] = {}
        for record in directory.read_episodes("val", step):
            records.setdefault(record["example_id"], {k: v for k, v in record.items() if k != "segments"})
        if records:
            validation[step] = list(records.values())
    return validation


def build_film(validation: Mapping[int, Sequence[Record]]) -> Film | None:
    """The film of all validation steps, or None if there is no episode."""
    by_step = {step: {record["example_id"]: record for record in records} for step, records in validation.items()}
    if not by_step:
        return None
    examples: dict[str, Record] = {}
    for records in by_step.values():
        examples |= {name: record for name, record in records.items() if name not in examples}
    followed = _one_example_each(examples, by_step)
    cells = tuple(_cell(example, by_step) for example in _choose(followed))
    named = any(_names_entity(example) for example in examples.values())
    return Film(tuple(by_step), cells, "entity" if named else "question", len(followed))


def group_of(record: Record) -> str:
    need = record["search_need"]
    return need if need in ("free", "unknown") else "required"


def clip(text: str, length: int = LONGEST_TEXT) -> str:
    return text if len(text) <= length else text[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"


def reply_of(record: Record) -> str:
    """What the model answered last, or why there is no answer."""
    action = parse_turn(record["turns"][-1]) if record["turns"] else None
    return clip(action.text) if isinstance(action, Answer) else f"(no answer: {record['stop'].replace('_', ' ')})"


def _names_entity(example: Record) -> bool:
    """The emblem world names the entity in `source`; elsewhere each question stands for itself."""
    return example["source"].startswith("emblem/")


def _one_example_each(examples: Mapping[str, Record], by_step: Mapping[int, Mapping[str, Record]]) -> list[Record]:
    """For every entity the question to follow: one that was asked most often, and a free one if there is any."""
    entities: dict[str, list[Record]] = {}
    for example in examples.values():
        entity = example["source"] if _names_entity(example) else example["example_id"]
        entities.setdefault(entity, []).append(example)

    def rank(example: Record) -> tuple[int, bool]:
        return sum(example["example_id"] in records for records in by_step.values()), group_of(example) == "free"

    return [max(candidates, key=rank) for candidates in entities.values()]


def _choose(examples: Sequence[Record]) -> list[Record]:
    """At most MAX_CELLS, as even over the groups as they allow, in order of group and then of the file."""
    grouped = [[example for example in examples if group_of(example) == group] for group in GROUPS]
    in_turn = [example for row in zip_longest(*grouped) for example in row if example is not None]
    shown = in_turn[:MAX_CELLS]
    return [example for group in GROUPS for example in shown if group_of(example) == group]


def _cell(example: Record, by_step: Mapping[int, Mapping[str, Record]]) -> Cell:
    asked = [records.get(example["example_id"]) for records in by_step.values()]
    return Cell(
        example_id=example["example_id"],
        group=group_of(example),
        question=clip(example["question"]),
        truth=clip(example["answer"]),
        picture=example["images"][0] if example["images"] else None,
        outcomes=tuple(outcome_of(record) if record else ABSENT for record in asked),
        replies=tuple(reply_of(record) if record else "" for record in asked),
    )
