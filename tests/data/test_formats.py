"""Both formats hold the same: what is written comes back with its notes, and no path leads out of a file's folder."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmsr1.data.formats import load_examples, read_examples, row_count, write_examples
from mmsr1.data.fvqa import write_fvqa
from mmsr1.data.rows import BadRow
from mmsr1.tools.pictures import encode_png
from mmsr1.types import Evidence, Example, Notes, Picture

NOTES = Notes(
    "Place", 0.25, "CC BY 4.0", (Evidence("Zürich", "https://a.example/?a=1", " a page\n“text”\t"), Evidence("b"))
)
SUFFIXES = pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])


def picture(shade: int) -> Picture:
    return encode_png(Image.new("RGB", (28, 28), (shade, 0, 0)))


def examples() -> list[Example]:
    one = Example("a/1", "what is “it”?", (picture(1), picture(2)), "Zürich", ("Zurich", '"Z"'), "both", "mine", NOTES)
    return [
        one,
        Example("2", "q", (picture(1),), "a", (), "unknown", "mine"),
        Example("3", "q", (picture(3),), "a", (), "free", "mine", Notes(difficulty=0.0)),
    ]


@SUFFIXES
def test_what_is_written_comes_back_with_its_notes(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / "new" / f"rows{suffix}"
    assert write_examples(file, iter(examples())) == 3 and row_count(file) == 3
    assert load_examples(file) == (examples(), [])
    write_examples(file, (row for row in read_examples(file) if isinstance(row, Example)))  # over what is being read
    assert load_examples(file) == (examples(), [])
    assert not [name for name in os.listdir(file.parent) if name.startswith(".")]


def test_another_suffix_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows.csv: the name of a data file ends with .parquet or .jsonl"):
        write_examples(tmp_path / "rows.csv", examples())


@SUFFIXES
def test_a_write_that_breaks_off_leaves_the_old_file_and_nothing_half(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"rows{suffix}"
    write_examples(file, examples())

    def broken():
        yield examples()[0]
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        write_examples(file, broken())
    assert load_examples(file) == (examples(), [])
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@SUFFIXES
def test_half_characters_as_json_can_spell_them_are_left_out(tmp_path: Path, suffix: str) -> None:
    spoilt = Example("1", "what\ud800?", (picture(1),), "a", ("b\udfff",), "free", "s", Notes(taxonomy="P\ud800"))
    write_examples(tmp_path / f"rows{suffix}", [spoilt])
    whole = Example("1", "what?", (picture(1),), "a", ("b",), "free", "s", Notes(taxonomy="P"))
    assert load_examples(tmp_path / f"rows{suffix}") == ([whole], [])


def test_notes_of_parquet_are_one_json_object_and_null_where_there_are_none(tmp_path: Path) -> None:
    write_examples(tmp_path / "rows.parquet", examples())
    extra = pq.read_table(tmp_path / "rows.parquet")["extra_info"].to_pylist()
    assert extra[1] is None and json.loads(extra[0])["mmsr1"]["evidence"][0]["title"] == "Zürich"
    assert json.loads(extra[2]) == {"mmsr1": {"taxonomy": "", "difficulty": 0.0, "licence": "", "evidence": []}}


def test_extra_info_of_other_tools_is_left_alone(tmp_path: Path) -> None:
    """Files of the same family hold a struct there, a text, or an object, with fields that may be named as ours."""
    write_fvqa(tmp_path / "rows.parquet", examples()[:2])
    table = pq.read_table(tmp_path / "rows.parquet")
    structs = [{"index": 1, "split": "train", "difficulty": 3.5}, {"index": 2, "split": "train", "difficulty": None}]
    for given in (structs, [json.dumps(one) for one in structs], ["train", '{"difficulty": "hard"}']):
        pq.write_table(table.set_column(table.num_columns - 1, "extra_info", [given]), tmp_path / "other.parquet")
        found, bad = load_examples(tmp_path / "other.parquet")
        assert [e.notes for e in found] == [Notes(), Notes()] and bad == []


def test_a_published_file_without_the_column_has_no_notes(tmp_path: Path) -> None:
    write_fvqa(tmp_path / "rows.parquet", examples())
    pq.write_table(pq.read_table(tmp_path / "rows.parquet").drop_columns("extra_info"), tmp_path / "published.parquet")
    assert [e.notes for e in load_examples(tmp_path / "published.parquet")[0]] == [Notes()] * 3


def test_row_groups_end_early_where_pictures_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsr1.data.fvqa._GROUP_BYTES", len(picture(1).data))
    write_fvqa(tmp_path / "rows.parquet", examples())
    assert pq.read_metadata(tmp_path / "rows.parquet").num_row_groups == 2
    assert load_examples(tmp_path / "rows.parquet") == (examples(), [])


def test_jsonl_is_readable_by_people_and_holds_each_picture_once(tmp_path: Path) -> None:
    write_examples(tmp_path / "rows.jsonl", examples())
    first, second, _ = map(json.loads, (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines())
    assert first["id"] == "a/1" and first["answer"] == "Zürich" and first["search_need"] == "both"
    assert first["images"][0] == second["images"][0] == f"rows_images/{picture(1).digest}.png"
    assert (tmp_path / first["images"][0]).read_bytes() == picture(1).data
    assert len(os.listdir(tmp_path / "rows_images")) == 3 and "notes" not in second


def lines(tmp_path: Path, *rows: object) -> Path:
    write_examples(tmp_path / "pictures.jsonl", examples())
    file = tmp_path / "rows.jsonl"
    plain = {"question": "q", "answer": "a", "images": [f"pictures_images/{picture(1).digest}.png"]}
    file.write_text("\n".join(json.dumps(plain | row) if isinstance(row, dict) else str(row) for row in rows))
    return file


def test_a_line_needs_only_question_answer_and_images(tmp_path: Path) -> None:
    (one, two), bad = load_examples(lines(tmp_path, {}, "", {"id": 7}))
    assert one == Example("rows_0", "q", (picture(1),), "a", (), "unknown", "rows") and bad == []
    assert two.id == "7", "a blank line is no row"


def test_lines_are_numbered_as_an_editor_does_from_0(tmp_path: Path) -> None:
    _, bad = load_examples(lines(tmp_path, {"id": "x"}, "", "nothing", {"id": "x"}))
    assert [(row.row, row.id) for row in bad] == [(2, "rows_2"), (3, "x")]
    assert bad[1].cause == "duplicate id, first in row 0"


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    file = lines(tmp_path, {})
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(load_examples(file)[0]) == 1


def test_a_file_without_line_ends_is_told_and_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsr1.data.jsonl._LONGEST_LINE", 300)
    file = lines(tmp_path, {}, {"answer": "x" * 1000}, {"answer": "b"})
    (_, one, _) = read_examples(file)
    assert isinstance(one, BadRow) and one.row == 1 and one.cause == "a line of more than 300 bytes"


@pytest.mark.parametrize("name", ["inside/../../secret.png", "../rows/../secret.png", "/secret.png", "up/secret.png"])
def test_a_path_that_leaves_the_folder_is_never_opened(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "inside").mkdir()
    os.mkfifo(tmp_path / "secret.png")  # whoever opens it waits for ever
    (folder / "up").symlink_to(tmp_path)
    absolute = str(tmp_path / "secret.png") if name.startswith("/") else name
    (bad,) = read_examples(lines(folder, {"images": [absolute]}))
    assert isinstance(bad, BadRow) and bad.cause.endswith("lies outside the folder of the file")


@pytest.mark.parametrize("name", ["inside/x.png", "./x.png", "inside/../x.png", "link.png"])
def test_a_path_that_stays_in_the_folder_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "inside").mkdir()
    for path in (tmp_path / "x.png", tmp_path / "inside" / "x.png"):
        path.write_bytes(picture(9).data)
    (tmp_path / "link.png").symlink_to(tmp_path / "x.png")
    (one,) = read_examples(lines(tmp_path, {"images": [name]}))
    assert isinstance(one, Example) and one.images == (picture(9),)


@pytest.mark.parametrize("name", ["a\x00b", "x" * 5000, "pictures_images", "loop", 7])
def test_a_path_that_names_no_picture_is_told_in_one_line(tmp_path: Path, name: object) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (bad,) = read_examples(lines(tmp_path, {"images": [name]}))
    assert isinstance(bad, BadRow) and "image" in bad.cause and "\n" not in bad.cause and len(bad.cause) < 200


@pytest.mark.parametrize(
    ("notes", "cause"),
    [
        ([], "notes are of type list"),
        ({"difficulty": True}, "difficulty is 'True'"),
        ({"difficulty": float("nan")}, "difficulty is 'nan'"),
        ({"evidence": {"title": "x"}}, "evidence is not a list"),
        ({"evidence": ["x"]}, "evidence is not a list"),
        ({"evidence": [{"title": ["x"]}]}, "title is of type list"),
        ({"taxonomy": {}}, "taxonomy is of type dict"),
    ],
)
def test_notes_of_another_shape_are_told(tmp_path: Path, notes: object, cause: str) -> None:
    (bad,) = read_examples(lines(tmp_path, {"notes": notes}))
    assert isinstance(bad, BadRow) and bad.cause.startswith(cause)
