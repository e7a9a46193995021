"""Concept lists and existing sets become seeds; what is none is dropped with a reason, never in silence."""

from pathlib import Path

import pytest
from construct_material import photo

from mmsr1.data.construct.building import plan
from mmsr1.data.construct.items import Dropped, Seed
from mmsr1.data.construct.journal import Journal
from mmsr1.data.construct.photos import Shelf
from mmsr1.data.construct.seeds import concept_seeds, row_seeds
from mmsr1.data.rows import BadRow
from mmsr1.types import Evidence, Example, Notes


def listed(tmp_path: Path, text: str, head: int | None = None, tail: int | None = None) -> list[Seed | Dropped]:
    path = tmp_path / "list.txt"
    path.write_bytes(text.encode())
    return list(concept_seeds(path, head, tail))


def subjects(found: list[Seed | Dropped]) -> list[str]:
    return [one.subject for one in found if isinstance(one, Seed)]


def test_head_and_tail_are_the_most_and_the_least_frequent(tmp_path: Path) -> None:
    counted = "rare\t2\nfirst\t900\nmiddle\t50\nsecond\t800\nrarest\t1\n"
    assert subjects(listed(tmp_path, counted, 2, 1)) == ["first", "second", "rarest"]
    assert subjects(listed(tmp_path, "a\nb\nc\nd\n", 1, 2)) == ["a", "c", "d"]
    assert subjects(listed(tmp_path, "a\nb\nc\n", tail=1)) == ["c"]
    assert subjects(listed(tmp_path, "a\nb\nc\n", 2, 2)) == ["a", "b", "c"], "none is taken twice"
    assert subjects(listed(tmp_path, "a\nb\n")) == ["a", "b"]


def test_lines_that_hold_no_concept_are_dropped_with_their_place(tmp_path: Path) -> None:
    found = listed(tmp_path, "\ufeffTower\n\n---\nTOWER\n to  wer\nx\tmany\n" + "y" * 201 + "\nz\x07\n")
    assert subjects(found) == ["Tower", "to wer"]
    drops = {one.id: one.reason for one in found if isinstance(one, Dropped)}
    assert drops == {
        "list.txt-line3": "bad_line",
        "list.txt-line4": "duplicate_concept",
        "list.txt-line6": "bad_line",
        "list.txt-line7": "bad_line",
        "list.txt-line8": "bad_line",
    }


def test_an_id_follows_from_the_concept_alone(tmp_path: Path) -> None:
    (one,) = listed(tmp_path, "Tower\n")
    two = listed(tmp_path, "Bridge\ntower\n")[1]
    assert one.id == two.id


def test_a_list_in_another_encoding_is_one_clear_mistake(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("Düren".encode("latin-1"))
    with pytest.raises(ValueError, match="list.txt: cannot be read as UTF-8 text"):
        list(concept_seeds(path, None, None))


def test_rows_bring_their_question_picture_and_notes(tmp_path: Path) -> None:
    notes = Notes(licence="CC0", evidence=(Evidence("t"),))
    row = Example("7", "Who?", (photo(1),), "Ilsa", ("I.",), "required", "infoseek", notes)
    rows = [BadRow(3, "7", "the answer is empty"), row, Example("8", "Where?", (), "There", (), "free", "x")]
    shelf = Shelf(tmp_path)
    bad, found = row_seeds("mini", rows, shelf, 1)
    assert isinstance(bad, Dropped) and (bad.id, bad.reason) == ("mini-row3", "bad_row") and "empty" in bad.detail
    assert isinstance(found, Seed) and found.id == "txt-mini-7" and found.given is not None
    assert (found.given.question, found.given.answer, found.given.aliases) == ("Who?", "Ilsa", ("I.",))
    assert (found.licence, found.evidence) == ("CC0", notes.evidence)
    assert shelf.get(found.pictures[0]) == row.images[0]


def test_the_plan_is_made_once_and_counts_ids_that_come_twice(tmp_path: Path) -> None:
    drops = Journal(tmp_path / "dropped.jsonl", Dropped)
    seeds = [Seed(id=id, origin="auto-vc", subject=id, source="s") for id in ("a", "b", "a")]
    first = plan(tmp_path, iter(seeds), drops)
    assert [one.id for one in first] == ["a", "b"] and [one.reason for one in drops.rows] == ["bad_row"]
    assert plan(tmp_path, iter([]), drops) == first and len(drops.rows) == 1
