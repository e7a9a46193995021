"""Any example of a file that need not fit in memory: read once, opened later, told again what was skipped."""

import json
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmsr1.data.formats import load_examples, write_examples
from mmsr1.data.mixtures import NATURAL, PromptSchedule
from mmsr1.data.table import ExampleTable, Labels, lay_down
from mmsr1.tools.pictures import encode_png
from mmsr1.types import Evidence, Example, Notes, SearchNeed

NEEDS: tuple[SearchNeed, ...] = ("free", "both", "unknown")


def examples(count: int, name: str = "id") -> list[Example]:
    image = encode_png(Image.new("RGB", (28, 28), (1, 2, 3)))
    notes = (Notes(), Notes("Place", 0.5, "CC0", (Evidence("é", "https://a.example", "x"),)))
    return [
        Example(
            f"{name}-{i}",
            f"what is {i}?",
            (image,) * (1 + i % 2),
            "é",
            ("b",) * (i % 3),
            NEEDS[i % 3],
            "s",
            notes[i % 2],
        )
        for i in range(count)
    ]


def opened(tmp_path: Path, *files: Path) -> ExampleTable:
    return ExampleTable([lay_down(file, tmp_path / "cache") for file in files])


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_it_holds_what_the_file_holds(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"rows{suffix}"
    write_examples(file, examples(20))
    table = opened(tmp_path, file)
    assert list(table) == examples(20) and len(table) == 20 and table.bad == ()
    assert table[-1] == examples(20)[-1] and table[3:5] == examples(20)[3:5]
    assert table.ids == [e.id for e in examples(20)]
    for index in (20, -21):
        with pytest.raises(IndexError):
            table[index]


def test_labels_say_what_decides_the_order_without_loading_a_picture(tmp_path: Path) -> None:
    write_examples(tmp_path / "a.parquet", examples(4))
    write_examples(tmp_path / "b.jsonl", examples(3, "other"))
    table = opened(tmp_path, tmp_path / "a.parquet", tmp_path / "b.jsonl")
    assert table.labels.file.tolist() == [0, 0, 0, 0, 1, 1, 1]
    first, plain = table.labels, Labels.of(examples(4))
    assert first.need[:4].tolist() == plain.need.tolist()
    np.testing.assert_array_equal(first.difficulty[:4], plain.difficulty)
    assert table.ids[4] == table[4].id == "other-0" and not table.labels.unlabelled and not table.labels.untried


def test_the_file_is_read_once_and_again_when_it_was_changed(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    write_examples(file, examples(3))
    before = lay_down(file, tmp_path / "cache")
    marked = before / "bad.jsonl"
    marked.write_text(json.dumps({"row": 9, "id": "kept", "cause": "it was not read again", "file": "rows.parquet"}))
    assert lay_down(file, tmp_path / "cache") == before
    assert [row.id for row in opened(tmp_path, file).bad] == ["kept"]
    write_examples(file, examples(4))
    assert len(opened(tmp_path, file)) == 4 and lay_down(file, tmp_path / "cache") != before


def test_a_picture_that_was_mended_beside_a_jsonl_file_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    write_examples(file, examples(3)[:1] + [e for e in examples(3)[1:]])
    picture = next((tmp_path / "rows_images").iterdir())
    whole = picture.read_bytes()
    file.write_text(file.read_text().replace(f"{picture.name}", "mended.png", 1))
    assert [row.row for row in opened(tmp_path, file).bad] == [0]
    (tmp_path / "rows_images" / "mended.png").write_bytes(whole)
    assert opened(tmp_path, file).bad == ()


def test_skipped_rows_are_told_at_every_start(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    rows = examples(4)
    write_examples(file, [*rows, rows[1]])
    for _ in range(2):
        (bad,) = opened(tmp_path, file).bad
        assert (bad.row, bad.id, bad.file) == (4, "id-1", "rows.parquet") and "first in row 1" in bad.cause


def test_a_file_without_usable_rows_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    write_examples(tmp_path / "rows.parquet", [])
    with pytest.raises(ValueError, match="none of 0 rows can be used"):
        opened(tmp_path, tmp_path / "rows.parquet")
    assert not [name for name in os.listdir(tmp_path / "cache") if not name.endswith(".lock")]


def test_what_a_killed_process_left_is_written_anew(tmp_path: Path) -> None:
    write_examples(tmp_path / "rows.parquet", examples(2))
    target = lay_down(tmp_path / "rows.parquet", tmp_path / "cache")
    target.rename(target.with_name(f".{target.name}.building"))
    (target.with_name(f".{target.name}.building") / "rows.arrow").write_bytes(b"half")
    assert list(opened(tmp_path, tmp_path / "rows.parquet")) == examples(2)


def test_a_damaged_cache_is_told_in_one_line(tmp_path: Path) -> None:
    write_examples(tmp_path / "rows.parquet", examples(2))
    folder = lay_down(tmp_path / "rows.parquet", tmp_path / "cache")
    (folder / "rows.arrow").write_bytes(b"half")
    with pytest.raises(ValueError, match="damaged, delete it") as caught:
        ExampleTable([folder])
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_several_processes_may_ask_at_once(tmp_path: Path) -> None:
    write_examples(tmp_path / "rows.parquet", examples(30))
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(lay_down(tmp_path / "rows.parquet", tmp_path / "cache")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1 and len(ExampleTable(found[:1])) == 30


def test_the_reading_of_a_new_file_is_shown(tmp_path: Path) -> None:
    class Seen:
        phases: list[tuple[str, int]] = []
        count = 0

        def begin(self, phase: str, total: int) -> None:
            self.phases.append((phase, total))

        def advance(self) -> None:
            self.count += 1

    write_examples(tmp_path / "rows.jsonl", examples(5))
    watch = Seen()
    for _ in range(2):
        lay_down(tmp_path / "rows.jsonl", tmp_path / "cache", watch)
    assert watch.phases == [("reading rows.jsonl", 5)] and watch.count == 5


def test_copies_in_other_processes_draw_the_same(tmp_path: Path) -> None:
    write_examples(tmp_path / "rows.parquet", examples(12))
    table = opened(tmp_path, tmp_path / "rows.parquet")
    schedule = PromptSchedule(table, NATURAL, 4, 3, 0)
    here = [schedule[step].examples for step in range(3)]
    assert [pickle.loads(pickle.dumps(schedule))[step].examples for step in range(3)] == here
    assert len(pickle.dumps(table)) < 1000
    assert load_examples(tmp_path / "rows.parquet") == (list(table), [])
