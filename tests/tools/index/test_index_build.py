"""What goes into an index, what is left out and told, who may write, and what readers see meanwhile."""

import gzip
import json
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from index_helpers import folder, picture, rows, run, task, written

from mmsr1.tools.image_search.local import LocalImageSearch
from mmsr1.tools.index import vectors
from mmsr1.tools.index.building import Task
from mmsr1.tools.index.folder import LOCK
from mmsr1.tools.index.ids import Ids
from mmsr1.tools.index.inputs import sources
from mmsr1.tools.index.rows import Columns
from mmsr1.tools.index_files import read_manifest
from mmsr1.tools.pictures import encode_png
from mmsr1.tools.text_search.local import LocalTextSearch
from mmsr1.tools.text_search.writing import TextWriter
from mmsr1.types import Picture


def names(tool, query):
    return [hit.id for hit in tool.find(query)]


def test_lines_packed_lines_and_parquet_are_one_corpus(tmp_path):
    lines = rows(60)
    plain = written(tmp_path / "a.jsonl", lines[:20])
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines[20:40]).encode()))
    table = tmp_path / "c.parquet"
    pq.write_table(pa.Table.from_pylist(lines[40:]), table, row_group_size=7)
    several, _ = run(task(tmp_path / "several", "text", plain, packed, table))
    one, _ = run(task(tmp_path / "one", "text", written(tmp_path / "all.jsonl", lines)))
    assert (several.content, several.count) == (one.content, 60)
    assert names(LocalTextSearch(tmp_path / "several"), "n45") == ["p45"]


def test_every_source_goes_on_from_any_of_its_tokens(tmp_path):
    lines = rows(25)
    packed, table = tmp_path / "b.jsonl.gz", tmp_path / "c.parquet"
    packed.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    pq.write_table(pa.Table.from_pylist(lines), table, row_group_size=4)
    for source in sources("text", [written(tmp_path / "a.jsonl", lines), packed, table], Columns()):
        whole = list(source.read(0))
        assert len(whole) == 25
        for at in (0, 3, 4, 24):
            assert [row.value for row in source.read(whole[at].token)] == [row.value for row in whole[at + 1 :]]


def test_bad_rows_are_left_out_and_told_with_their_place(tmp_path):
    bad = ["{", "[1]", {"id": "a"}, {"text": "no id"}, {"id": 7, "text": "a number"}, {"id": "7", "text": "again"}]
    bad += [
        {"id": "t", "title": ["3"], "text": "x"},
        {"id": "b", "text": "  "},
        {"id": "s\ud800", "text": "half \ud800 fine"},
        "",
        "\x00",
    ]
    manifest, done = run(task(tmp_path / "index", "text", written(tmp_path / "a.jsonl", bad)))
    assert (manifest.count, done.skipped, manifest.made["skipped"]) == (2, 8, 8)
    assert done.told[0] == "a.jsonl at byte 0: not a JSON object: give one object a line"
    assert "not a JSON object" in done.told[1]
    assert done.told[4] == "a.jsonl at byte 66: the id '7' is there already"
    assert names(LocalTextSearch(tmp_path / "index"), "number") == ["7"]
    assert names(LocalTextSearch(tmp_path / "index"), "fine") == ["s?"]


def test_search_r1_contents_and_other_columns(tmp_path):
    file = written(tmp_path / "a.jsonl", [{"key": 0, "contents": '"Evan Morris"\nEvan was a lobbyist.'}])
    run(Task(tmp_path / "index", "text", sources("text", [file], Columns(id="key")), TextWriter.settings()))
    (hit,) = LocalTextSearch(tmp_path / "index").find("lobbyist")
    assert (hit.id, hit.item.title, hit.item.text) == ("0", "Evan Morris", "Evan was a lobbyist.")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "no such file"),
        ("a.csv", "x", "give .jsonl"),
        ("a.parquet", "x", "no Parquet file"),
        ("empty.jsonl", "", "no passages in what was given"),
        ("cut.jsonl.gz", b"\x1f\x8b\x08\x00abc", "damaged compression"),
        ("bad.jsonl.gz", gzip.compress(b"x" * 99, mtime=0)[:10] + b"\xff" * 30, "damaged compression"),
        ("array.json", '[\n{"id": "a", "text": "b"},\n]', "give one object a line"),
        ("short.json", '[{"id": "a", "text": "b"}]', "give one object a line"),
    ],
)
def test_inputs_that_are_none_are_told_in_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as told:
        run(task(tmp_path / "index", "text", tmp_path / name))
    assert "\n" not in str(told.value)


def test_a_column_that_is_not_there_is_named(tmp_path):
    pq.write_table(pa.table({"key": ["1"], "text": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no 'id'; there are: key, text; say which with --id-column"):
        task(tmp_path / "index", "text", tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["1"], "body": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="no 'text'; there are: id, body; say which with --text-column"):
        task(tmp_path / "index", "text", tmp_path / "b.parquet")
    lines = written(tmp_path / "c.jsonl", [{"id": "1", "body": "x"}])
    with pytest.raises(ValueError, match="no 'text'; there are: id, body; say which with --text-column"):
        run(task(tmp_path / "index", "text", lines))


def test_ids_are_unique_over_appends_and_in_many_runs(tmp_path):
    run(task(tmp_path / "index", "text", written(tmp_path / "a.jsonl", rows(40))))
    manifest, done = run(task(tmp_path / "index", "text", written(tmp_path / "b.jsonl", rows(50)), append=True))
    assert (manifest.count, done.skipped) == (50, 40)
    known = Ids(np.array([], dtype=np.uint64))
    for start in range(0, 300_000, 1_000):  # beyond what waits unsorted
        assert None not in known.new([str(number) for number in range(start, start + 1_000)])
    assert known.new(["0", "299999", "new", "new"])[:2] == [None, None]
    assert known.new(["150000", "new"]) == [None, None]


def test_an_appended_index_answers_as_one_built_at_once(tmp_path):
    one, two = written(tmp_path / "a.jsonl", rows(90)), written(tmp_path / "b.jsonl", rows(40, 90))
    run(task(tmp_path / "grown", "text", one))
    grown, _ = run(task(tmp_path / "grown", "text", two, append=True))
    once, _ = run(task(tmp_path / "once", "text", one, two))
    assert grown.content == once.content
    for query in ("n100", "king stone", "winter salt paper"):
        hits = [
            [(h.id, round(h.score, 3)) for h in LocalTextSearch(tmp_path / n).find(query)] for n in ("grown", "once")
        ]
        assert hits[0] == hits[1]


def test_a_reader_keeps_what_it_opened_and_a_new_one_sees_all(tmp_path):
    run(task(tmp_path / "index", "text", written(tmp_path / "a.jsonl", rows(50))))
    old = LocalTextSearch(tmp_path / "index")
    seen = []

    def read_on():
        for _ in range(30):
            tool = LocalTextSearch(tmp_path / "index")
            seen.append((tool.manifest.count, len(names(tool, "n60"))))

    reader = threading.Thread(target=read_on)
    reader.start()
    for number in range(4):
        run(
            task(
                tmp_path / "index",
                "text",
                written(tmp_path / f"{number}.jsonl", rows(20, 50 + 20 * number)),
                append=True,
            )
        )
    reader.join()
    assert names(old, "n10") == ["p10"] and names(old, "n60") == []
    assert {(count, hits) for count, hits in seen} <= {(50, 0), (70, 1), (90, 1), (110, 1), (130, 1)}
    assert names(LocalTextSearch(tmp_path / "index"), "n120") == ["p120"]
    assert len(list((tmp_path / "index").glob("tantivy-*"))) == 1


def test_one_writer_at_a_time(tmp_path):
    file = written(tmp_path / "a.jsonl", rows(5))
    (tmp_path / "index").mkdir()
    with FileLock(tmp_path / "index" / LOCK), pytest.raises(ValueError, match="another process is writing"):
        run(task(tmp_path / "index", "text", file))
    run(task(tmp_path / "index", "text", file))
    with pytest.raises(FileExistsError, match="append to it"):
        run(task(tmp_path / "index", "text", file))


def test_scripts_without_spaces_are_found(tmp_path):
    texts = {
        "zh": "北京是中华人民共和国的首都",
        "ja": "東京は日本の首都で、猫が多い",
        "ko": "서울은 대한민국의 수도이다",
        "th": "กรุงเทพมหานครเป็นเมืองหลวง",
        "ru": "Москва столица России",
        "en": "Paris is the capital of France",
    }
    file = written(tmp_path / "a.jsonl", [{"id": k, "title": "", "text": v} for k, v in texts.items()])
    run(task(tmp_path / "index", "text", file))
    tool = LocalTextSearch(tmp_path / "index", topk=1)
    for query, wanted in (
        ("中国的首都北京", "zh"),
        ("日本", "ja"),
        ("猫", "ja"),
        ("서울", "ko"),
        ("เมืองหลวง", "th"),
        ("Москва", "ru"),
    ):
        assert names(tool, query) == [wanted], query


def test_folders_of_pictures_with_their_metadata(tmp_path):
    pictures = folder(tmp_path / "pictures", 3)
    (pictures / "deep").mkdir()
    picture(9).save(pictures / "deep" / "x.jpg")
    (pictures / "notes.txt").write_text("not a picture")
    (pictures / "broken.png").write_bytes(b"\x89PNG")
    written(
        pictures / "metadata.jsonl", [{"file_name": "deep/x.jpg", "title": "A tower", "url": "https://a.example/x"}]
    )
    manifest, done = run(task(tmp_path / "index", "image", pictures))
    assert (manifest.count, done.skipped) == (4, 1) and "broken.png: cannot be decoded" in done.told[0]
    tool = LocalImageSearch(tmp_path / "index", topk=1, thumbnails=1)
    (hit,) = tool.find(encode_png(picture(9)))
    assert (hit.id, hit.row.title, hit.row.url) == ("deep/x.jpg", "A tower", "https://a.example/x")
    (hit,) = tool.find(encode_png(picture(1)))
    assert (hit.id, hit.row.title) == ("001.png", "001")


def test_pictures_in_parquet_and_beside_lines(tmp_path):
    data = [encode_png(picture(number)).data for number in range(3)]
    table = pa.table({"id": ["a", "b", "c"], "image": [{"bytes": data[0]}, {"bytes": data[1]}, {"bytes": None}]})
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "c.png").write_bytes(data[2])
    lines = written(tmp_path / "b.jsonl", [{"id": "d", "image": "c.png"}, {"id": "e", "image": "none.png"}])
    manifest, done = run(task(tmp_path / "index", "image", tmp_path / "a.parquet", lines))
    assert (manifest.count, done.skipped) == (3, 2)
    assert LocalImageSearch(tmp_path / "index", topk=1).find(Picture(data[2]))[0].id == "d"


def test_an_image_index_grows_under_its_readers(tmp_path):
    pictures = folder(tmp_path / "some", 12)
    run(task(tmp_path / "index", "image", pictures))
    old = LocalImageSearch(tmp_path / "index", topk=1, thumbnails=1)
    more = tmp_path / "more"
    more.mkdir()
    picture(77).save(more / "new.png")
    run(task(tmp_path / "index", "image", more, append=True))
    query = encode_png(picture(77))
    assert old.find(query)[0].id != "new.png" and old.manifest.count == 12
    assert LocalImageSearch(tmp_path / "index", topk=1).find(query)[0].id == "new.png"


def test_many_vectors_are_searched_by_a_graph(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "EXACT", 40)
    pictures = folder(tmp_path / "some", 60)
    manifest, _ = run(task(tmp_path / "index", "image", pictures))
    assert manifest.parts == {"graph": "graph-60.faiss"}
    tool = LocalImageSearch(tmp_path / "index", topk=1)
    found = [tool.find(Picture(path.read_bytes()))[0].id for path in sorted(pictures.iterdir())]
    assert found == [f"{number:03d}.png" for number in range(60)]


def test_damage_is_told(tmp_path):
    run(task(tmp_path / "index", "image", folder(tmp_path / "some", 5)))
    with (tmp_path / "index" / "vectors.f32").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match="shorter than the manifest says: build it again"):
        LocalImageSearch(tmp_path / "index")
    (tmp_path / "index" / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match="no manifest of an index"):
        read_manifest(tmp_path / "index")
