"""What falls by its words alone, what was there before, and what leaks from a test set."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from construct_material import photo, question, source

from mmsr1.data.construct.filters import Limits, NewPictures, NewQuestions, Others, wrong
from mmsr1.data.construct.items import No, Question
from mmsr1.data.construct.language import in_script
from mmsr1.data.construct.photos import Shelf
from mmsr1.data.rows import BadRow
from mmsr1.types import Example, Picture

LIMITS = Limits()


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("question_long", {"question": "Who " + "really " * 40 + "built it?"}),
        ("answer_long", {"answer": "nine words are one more than a short answer has"}),
        ("wrong_language", {"question": "誰がこの塔を建てましたか。"}),
        ("answer_in_question", {"question": "Did ilsa morrow or another build the tower shown?"}),
        ("answer_in_question", {"question": "Was it I. Morrow who built this tower?"}),
        ("names_subject", {"question": "Who built the Vardel Tower?"}),
        ("answer_in_title", {"titles": ("Vardel Tower, a work of Ilsa Morrow",)}),
    ],
)
def test_a_question_falls_by_its_words(reason: str, fields: dict[str, Any]) -> None:
    found = wrong(question(**fields), LIMITS)
    assert found is not None and found.reason == reason


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"subject": "dog", "question": "Which breed is this dog?"},
        {"answer": "1889", "aliases": (), "question": "In which of the years 18890 was this built?"},
        {"titles": ("Morrow's tower",)},
    ],
)
def test_a_sound_question_stays(fields: dict[str, Any]) -> None:
    assert wrong(question(**fields), LIMITS) is None


def test_a_title_may_name_what_is_shown_unless_all_leaks_count() -> None:
    named = question(question="What is the name of this building?", answer="Vardel Tower", aliases=())
    fact = question(titles=("by Ilsa Morrow",))
    for mode, names_it, states_it in (("facts", None, "answer_in_title"), ("all", *["answer_in_title"] * 2)):
        found = [wrong(one, Limits(title_leak=mode)) for one in (named, fact)]
        assert [one and one.reason for one in found] == [names_it, states_it]
    assert wrong(fact, Limits(title_leak="none")) is None


def test_the_script_of_a_language() -> None:
    assert in_script("Кто построил эту башню?", "ru") and not in_script("Кто построил эту башню?", "en")
    assert in_script("この塔は Vardel Tower ですか。", "ja") and in_script("이 탑은 누가 지었습니까?", "ko")
    assert in_script("Wer hat diesen Turm gebaut?", "de") and not in_script("1889?", "en")


def judged(work: NewQuestions, *questions: Question) -> list[str]:
    async def all_of_them() -> list[Any]:
        return [await work(one) for one in questions]

    return [one.reason if isinstance(one, No) else "kept" for one in asyncio.run(all_of_them())]


def test_nearly_the_same_question_with_an_answer_in_common_is_dropped() -> None:
    work = NewQuestions(LIMITS, Others(0.7))
    variants = [
        question("a"),
        question("b", question="Who built the tower that is in this picture?"),
        question("c", answer="Hal Brook", aliases=("Morrow", "I. Morrow")),
        question("d", answer="Hal Brook", aliases=()),
        question("e", question="Which woman designed the bell inside?"),
    ]
    assert judged(work, *variants) == ["kept", "duplicate_question", "duplicate_question", "kept", "kept"]


def test_scripts_without_spaces_are_compared_by_pairs() -> None:
    work = NewQuestions(Limits(language="zh"), Others(0.7))
    first, second = "这座塔楼位于哪一座城市的市中心?", "这座塔楼位于哪座城市的市中心?"
    fields = {"answer": "杜尔门", "aliases": (), "titles": ()}
    assert judged(work, question("a", question=first, **fields), question("b", question=second, **fields)) == [
        "kept",
        "duplicate_question",
    ]


def bench(tmp_path: Path, *rows: Any) -> Others:
    others = Others(0.7)
    others.read("bench.parquet", rows)
    return others


def test_a_question_of_a_test_set_is_kept_out_and_told_with_its_place(tmp_path: Path) -> None:
    row = Example("t7", "Who built the tower shown in the picture?", (), "ilsa morrow", (), "unknown", "x")
    others = bench(tmp_path, row, BadRow(1, "t8", "no image"))
    found = asyncio.run(NewQuestions(LIMITS, others)(question()))
    assert found == No("test_question", "bench.parquet: t7")
    assert (others.files[0].rows, others.files[0].unusable) == (1, 1)


def pictures(shelf: Shelf, work: NewPictures, *found: Picture) -> list[str]:
    async def all_of_them() -> list[Any]:
        return [await work(source(shelf, f"vc-{n}", one)) for n, one in enumerate(found)]

    return [f"{one.reason} {one.detail}" if isinstance(one, No) else "kept" for one in asyncio.run(all_of_them())]


def test_copies_of_a_picture_are_dropped_however_they_are_encoded(tmp_path: Path) -> None:
    copies = photo(1, quality=30), photo(1, size=(200, 150)), photo(2), photo(3), photo(2, size=(640, 480))
    told = pictures(Shelf(tmp_path), NewPictures(Shelf(tmp_path), Others(0.7), 1), photo(1), *copies)
    assert told == ["kept", *["duplicate_picture as vc-0"] * 2, "kept", "kept", "duplicate_picture as vc-3"]


def test_a_picture_may_serve_more_than_once_if_that_is_wanted(tmp_path: Path) -> None:
    work = NewPictures(Shelf(tmp_path), Others(0.7), 2)
    assert pictures(Shelf(tmp_path), work, photo(1), photo(1, quality=40), photo(1, quality=50)) == [
        "kept",
        "kept",
        "duplicate_picture as vc-0",
    ]


def test_pictures_of_a_test_set_are_kept_out(tmp_path: Path) -> None:
    others = bench(tmp_path, Example("t1", "Who?", (photo(2, size=(400, 300)),), "x", (), "unknown", "x"))
    told = pictures(Shelf(tmp_path), NewPictures(Shelf(tmp_path), others, 1), photo(1), photo(2))
    assert told == ["kept", "test_picture bench.parquet: t1"]
