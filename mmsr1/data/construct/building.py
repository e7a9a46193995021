"""The whole way from concepts to candidates, stage by stage; every stage can be read from disk and gone on with.

seeds -> sources -> pictures -> questions -> filtered -> checked -> labelled -> candidates.parquet
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsr1.data.construct.checks import Checking, Labelling
from mmsr1.data.construct.filters import NewPictures, NewQuestions
from mmsr1.data.construct.items import Dropped, Labelled, Question, Seed, Source
from mmsr1.data.construct.journal import Journal
from mmsr1.data.construct.photos import Shelf
from mmsr1.data.construct.sourcing import Sourcing
from mmsr1.data.construct.stages import Desk, Stage, run_stage, stage_file
from mmsr1.data.construct.writing import Writing
from mmsr1.types import Example, Notes

STAGES = ("seeds", "sources", "pictures", "questions", "filtered", "checked", "labelled")
DROPPED = "dropped.jsonl"


@dataclass(frozen=True)
class Works:
    """What is done in each stage."""

    sources: Sourcing
    pictures: NewPictures
    questions: Writing
    filtered: NewQuestions
    checked: Checking
    labelled: Labelling


async def build(seeds: Sequence[Seed], works: Works, desk: Desk, concurrent: int) -> list[Labelled] | None:
    """What passes all stages, in the order of the seeds; None if a stage could not be finished (`desk.left`)."""
    stages: tuple[Stage[Any, Any], ...] = (
        Stage("sources", Source, works.sources, concurrent),
        Stage("pictures", Source, works.pictures, known=works.pictures.known),
        Stage("questions", Question, works.questions, concurrent),
        Stage("filtered", Question, works.filtered, known=works.filtered.known),
        Stage("checked", Question, works.checked, concurrent),
        Stage("labelled", Labelled, works.labelled, concurrent),
    )
    rows: Sequence[Any] | None = seeds
    for number, stage in enumerate(stages, 2):
        rows = await run_stage(stage, number, rows, desk)
        if rows is None:
            return None
    return list(rows)


def plan(folder: Path, found: Iterable[Seed | Dropped], drops: Journal[Dropped]) -> list[Seed]:
    """The seeds, on disk as a whole or not at all: what is planned once stays the plan."""
    path = stage_file(folder, 1, "seeds")
    if not path.exists():
        scratch = path.with_suffix(".new")
        scratch.unlink(missing_ok=True)
        journal = Journal(scratch, Seed)
        for one in found:
            if isinstance(one, Dropped):
                if one.id not in drops.ids:
                    drops.add(one)
            elif one.id in journal.ids:
                drops.add(Dropped(f"{one.id}-again{len(drops.ids)}", "seeds", "bad_row", f"the id {one.id} twice"))
            else:
                journal.add(one)
        journal.close()
        scratch.replace(path)
    journal = Journal(path, Seed)
    journal.close()
    return journal.rows


def examples(rows: Iterable[Labelled], shelf: Shelf) -> Iterator[Example]:
    """Examples for the files of data sets; what search they need nobody knows yet."""
    for row in rows:
        pictures = tuple(shelf.get(name) for name in row.pictures)
        notes = Notes(taxonomy=row.taxonomy, licence=row.licence, evidence=row.evidence)
        yield Example(row.id, row.question, pictures, row.answer, row.aliases, "unknown", row.source, notes)
