"""Where questions come from: the head and the tail of a concept list, and the rows of existing question sets.

A list has one concept a line, the most frequent first; or, after a tab, how often each was counted, in any order.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mmsr1.data.construct.items import Dropped, Given, Seed
from mmsr1.data.construct.photos import Shelf
from mmsr1.types import Example

CHARACTERS = 200  # of a concept
STAGE = "seeds"
_NUMBER = re.compile(r"\d{1,18}(?:\.\d{1,18})?")


@dataclass(frozen=True)
class _Counted:
    concept: str
    count: float


def concept_seeds(path: Path, head: int | None, tail: int | None) -> Iterator[Seed | Dropped]:
    """A seed for each concept of the head and tail (both None: of all), and what is dropped of the list.

    Raises ValueError, in one line, for a file that cannot be read as text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as UTF-8 text ({str(error).splitlines()[0]})") from None
    known: set[str] = set()
    found: list[_Counted] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        counted, why = _counted(line)
        if counted is None:
            yield Dropped(f"{path.name}-line{number}", STAGE, "bad_line", why, line[:80])
        elif (key := concept_key(counted.concept)) in known:
            yield Dropped(f"{path.name}-line{number}", STAGE, "duplicate_concept", "", counted.concept)
        else:
            known.add(key)
            found.append(counted)
    found.sort(key=lambda one: -one.count)  # stable: without counts the order of the file is that of frequency
    for one in _ends(found, head, tail):
        name = hashlib.sha256(concept_key(one.concept).encode()).hexdigest()[:12]
        yield Seed(id=f"vc-{name}", origin="auto-vc", subject=one.concept, source=f"auto-vc/{path.stem}")


def row_seeds(name: str, rows: Iterable[object], shelf: Shelf, limit: int | None) -> Iterator[Seed | Dropped]:
    """A seed for each of the first `limit` usable rows of a set that is called `name`; its pictures go onto the shelf.

    `rows` are examples, and for those that cannot be used something with `row`, `id` and `cause`.
    """
    taken = 0
    for row in rows:
        if limit is not None and taken == limit:
            return
        if not isinstance(row, Example):
            told = f"{getattr(row, 'id', '')}: {getattr(row, 'cause', row)}"
            yield Dropped(f"{name}-row{getattr(row, 'row', '')}", STAGE, "bad_row", told)
            continue
        taken += 1
        yield Seed(
            id=f"txt-{name}-{row.id}",
            origin="auto-txt",
            subject="",
            source=f"auto-txt/{row.source}",
            given=Given(row.question, row.answer, row.aliases),
            pictures=tuple(shelf.put(picture) for picture in row.images),
            licence=row.notes.licence,
            evidence=row.notes.evidence,
        )


def concept_key(concept: str) -> str:
    """What two spellings of one concept have in common.

    >>> concept_key(" Eiffel  tower") == concept_key("eiffel Tower")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", concept).casefold().split())


def _counted(line: str) -> tuple[_Counted | None, str]:
    """The concept of a line, or why there is none."""
    concept, tab, count = line.partition("\t")
    concept = " ".join(concept.split())
    if not any(character.isalnum() for character in concept):
        return None, "no letter and no digit"
    if len(concept) > CHARACTERS or not concept.isprintable():
        return None, f"more than {CHARACTERS} characters, or some that cannot be printed"
    if tab and not _NUMBER.fullmatch(count.strip()):
        return None, "what stands after the tab is no count"
    return _Counted(concept, float(count) if tab else 0.0), ""


def _ends(found: list[_Counted], head: int | None, tail: int | None) -> list[_Counted]:
    if head is None and tail is None:
        return found
    first = found[: head or 0]
    return [*first, *found[max(len(first), len(found) - (tail or 0)) :]]
