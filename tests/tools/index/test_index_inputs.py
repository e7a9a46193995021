"""What rows and folders of pictures may look like, and what is left out and told."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from index_helpers import folder, picture, run, task, written
from PIL import Image

from mmsr1.tools.image_search.local import LocalImageSearch
from mmsr1.tools.index.__main__ import passed
from mmsr1.tools.index.journal import Progress
from mmsr1.tools.index.rows import Columns, Unusable, beside
from mmsr1.tools.pictures import encode_png
from mmsr1.tools.text_search.local import LocalTextSearch


def test_numbers_and_contents_do_not_drop_a_row(tmp_path):
    lines = [
        {"id": "year", "title": 1984, "text": "a novel by Orwell"},
        {"id": "none", "title": float("nan"), "text": "a passage of some table"},
        {"id": "both", "text": "a tower", "contents": [2]},
        {"id": 7.5, "text": 1066},
        {"id": True, "text": "no id"},
    ]
    _, done = run(task(tmp_path / "index", "text", written(tmp_path / "a.jsonl", lines)))
    tool = LocalTextSearch(tmp_path / "index")
    assert [(hit.id, hit.item.title) for hit in tool.find("1984 orwell")] == [("year", "1984")]
    assert [(hit.id, hit.item.title) for hit in tool.find("table")] == [("none", "")]
    assert [hit.id for hit in tool.find("tower")] == ["both"] and [hit.id for hit in tool.find("1066")] == ["7.5"]
    assert done.told == ("a.jsonl at byte 200: id is of type bool, not text",)


def test_ids_are_short_enough_to_be_found_again(tmp_path):
    lines = [{"id": "a" * 512, "text": "stone"}, {"id": "\u00e4" * 300, "text": "stone"}]
    manifest, done = run(task(tmp_path / "index", "text", written(tmp_path / "a.jsonl", lines)))
    assert manifest.count == 1 and "an id of 600 bytes, more than 512" in done.told[0]


def test_accents_may_stand_alone(tmp_path):
    lines = [{"id": "nfd", "title": "Cafe\u0301", "text": "Du\u0308sseldorf"}, {"id": "nfc", "text": "a d\u00fcne"}]
    run(task(tmp_path / "index", "text", written(tmp_path / "a.jsonl", lines)))
    tool = LocalTextSearch(tmp_path / "index")
    for query in ("dusseldorf", "d\u00fcsseldorf", "du\u0308sseldorf", "caf\u00e9"):
        assert [hit.id for hit in tool.find(query)] == ["nfd"], query
    assert [hit.id for hit in tool.find("du\u0308ne")] == ["nfc"]


def test_a_picture_is_beside_its_row(tmp_path):
    home = tmp_path / "home"
    folder(home / "in", 2)
    folder(tmp_path / "out", 3)
    (home / "link").symlink_to(tmp_path / "out")
    os.mkfifo(home / "pipe.png")
    names = ["in/000.png", "link/002.png", "../out/001.png", str(tmp_path / "out" / "001.png"), "pipe.png", "/dev/zero"]
    file = written(
        home / "a.jsonl", [{"id": str(n), "image": name} for n, name in enumerate([*names, "\ud800", "a\0b"])]
    )
    manifest, done = run(task(tmp_path / "index", "image", file))
    assert (manifest.count, done.skipped) == (2, 6)
    assert ["leads out of the file's folder" in told for told in done.told] == [True, True, False, True, False]
    assert "pipe.png is not there, or is no file" in done.told[2]


def test_no_more_is_read_than_a_picture_may_have(tmp_path):
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(2**40)  # of which nothing is on the disk
    with pytest.raises(Unusable, match=r"huge\.png has more than the \d+ bytes allowed"):
        beside(tmp_path, "huge.png")


def test_a_folder_is_read_through_its_links_and_all_that_is_not_used_is_told(tmp_path):
    home = folder(tmp_path / "home", 1)
    folder(tmp_path / "else", 2)
    (home / "a-link").symlink_to(tmp_path / "else")
    (home / "b-link").symlink_to(home)
    (home / "z").mkdir()
    (home / "aa-link").symlink_to(home / "z")
    picture(7).save(home / "z" / "real.png")
    picture(8).save(home / "moving.gif")
    (home / "notes.txt").write_text("no picture")
    (home / ("n" * 200)).mkdir()
    (home / ("n" * 200) / ("o" * 200)).mkdir()
    picture(9).save(home / ("n" * 200) / ("o" * 200) / ("p" * 200 + ".png"))
    odd = os.fsdecode(b"odd\xff.png")
    picture(6).save(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", home / odd)
    manifest, done = run(task(tmp_path / "index", "image", home))
    assert (manifest.count, done.skipped) == (5, 2)
    assert "moving.gif: GIF is not read" in done.told[0] and "an id of 606 bytes" in done.told[1]
    found = [LocalImageSearch(tmp_path / "index").row(number) for number in range(5)]
    assert sorted(row.id for row in found) == ["000.png", "a-link/000.png", "a-link/001.png", "odd?.png", "z/real.png"]
    assert "odd?" in [row.title for row in found]


def test_a_folder_that_cannot_be_listed_is_told(tmp_path, monkeypatch):
    home = folder(tmp_path / "home", 1)
    folder(home / "shut", 1)
    real = os.scandir

    def scandir(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    manifest, done = run(task(tmp_path / "index", "image", home))
    assert (manifest.count, done.skipped) == (1, 1) and "shut: cannot be listed (PermissionError)" in done.told[0]


def test_a_line_of_pixels_is_found_but_not_shown(tmp_path):
    """The image processors of the models refuse a shape beyond 200 : 1."""
    home = folder(tmp_path / "home", 2)
    line = Image.new("RGB", (4000, 1), "teal")
    line.save(home / "line.png")
    run(task(tmp_path / "index", "image", home))
    tool = LocalImageSearch(tmp_path / "index", topk=3, thumbnails=3)
    items = tool._result(encode_png(line)).items
    assert [hit.row.thumbnail == "" for hit in tool.find(encode_png(line))] == [True, False, False]
    assert items[0].title == "line" and [item.thumbnail is None for item in items] == [True, False, False]


def test_parquet_with_contents_alone_will_do(tmp_path):
    pq.write_table(pa.table({"id": ["1"], "contents": ['"T"\nsome stone']}), tmp_path / "a.parquet")
    run(task(tmp_path / "index", "text", tmp_path / "a.parquet"))
    assert [hit.item.title for hit in LocalTextSearch(tmp_path / "index").find("stone")] == ["T"]


def test_a_missing_column_is_told_without_breaking_the_line():
    with pytest.raises(Unusable) as told:
        Columns().passage({"id": "1", "a\nb\ud800": "x", **{"c" * 300: 1}})
    assert "\n" not in str(told.value) and len(str(told.value)) < 300 and str(told.value).encode()


def test_inputs_have_equal_shares_of_the_progress():
    sizes = [1000, None, 4, 0]
    at = [Progress(source=source, token=token) for source, token in ((0, 500), (1, 10**9), (2, 1), (3, 0))]
    assert [passed(sizes, done) for done in at] == [0.5, 1.0, 2.25, 3.0]


def test_rows_come_in_the_order_of_the_input_where_they_are_equally_good(tmp_path):
    lines = [{"id": f"{(n * 7919) % 1000:04d}", "text": f"same words number{n}"} for n in range(1000)]
    run(task(tmp_path / "index", "text", written(tmp_path / "a.jsonl", lines)))
    tool = LocalTextSearch(tmp_path / "index", topk=40)
    assert {hit.row for hit in tool.find("words")} == set(range(40))
