"""Data files as people have them on a bad day: three good rows and one that is not, or no data file at all."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mmsr1.data.formats import write_examples
from mmsr1.types import Example, Picture

GOOD = ("first", "second", "third")
AT = 2  # where the bad row stands


@dataclass(frozen=True)
class Case:
    """`make` writes into an empty folder and returns the data file. `told` is part of the one line about it.

    `bad` is the number of rows that are skipped while the good ones stay; 0 if the file as a whole is refused.
    """

    name: str
    make: Callable[[Path], Path]
    told: str
    bad: int = 1


def picture(size: tuple[int, int] = (64, 48), kind: str = "PNG", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind)
    return buffer.getvalue()


def _row(id: str, **changed: Any) -> dict[str, Any]:
    return {
        "prompt": [{"content": "what is it?", "role": "user"}],
        "images": [{"bytes": picture(), "path": None}],
        "reward_model": {"candidate_answers": "[]", "ground_truth": "a", "style": "rule"},
        "data_source": "mine",
        "data_id": id,
    } | changed


def _parquet(*rows: dict[str, Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        pq.write_table(pa.Table.from_pylist(list(rows)), folder / "rows.parquet")
        return folder / "rows.parquet"

    return make


def _with(**changed: Any) -> Callable[[Path], Path]:
    """Good rows and one with these columns changed."""
    nothing_more = dict.fromkeys(changed.keys() - _row("").keys())  # a column is there in every row
    first, second, third = (_row(id, **nothing_more) for id in GOOD)
    return _parquet(first, second, _row("bad") | changed, third)


def _image(data: bytes | None) -> Callable[[Path], Path]:
    return _with(images=[{"bytes": data, "path": "http://127.0.0.1/picture.jpg"}])


def _answer(**changed: Any) -> Callable[[Path], Path]:
    return _with(reward_model={"candidate_answers": "[]", "ground_truth": "a", "style": "rule"} | changed)


def _not_utf8(column: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        rows = [_row(id) for id in ("first", "second", "bad", "third")]
        table = pa.Table.from_pylist(rows)
        wrong = pa.array([b"first", b"second", b"caf\xe9", b"third"]).cast(pa.string(), safe=False)
        if column == "prompt":
            messages = pa.StructArray.from_arrays([wrong, pa.array(["user"] * 4)], ["content", "role"])
            wrong = pa.ListArray.from_arrays(pa.array(range(5), pa.int32()), messages)
        table = table.set_column(table.column_names.index(column), column, wrong)
        pq.write_table(table, folder / "rows.parquet")
        return folder / "rows.parquet"

    return make


def _written(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _damaged(spoil: Callable[[bytearray, pq.FileMetaData], bytes]) -> Callable[[Path], Path]:
    """A file of four row groups, one row each, of which `spoil` changes the bytes."""

    def make(folder: Path) -> Path:
        file = folder / "rows.parquet"
        pq.write_table(pa.Table.from_pylist([_row(id) for id in (*GOOD[:2], "bad", "third")]), file, row_group_size=1)
        file.write_bytes(spoil(bytearray(file.read_bytes()), pq.read_metadata(file)))
        return file

    return make


def _hole(content: bytearray, about: pq.FileMetaData) -> bytes:
    start = about.row_group(AT).column(0).dictionary_page_offset or about.row_group(AT).column(0).data_page_offset
    content[start : start + 40] = bytes(40)
    return bytes(content)


def _lines(line: bytes | dict[str, Any], prepare: Callable[[Path], object] = lambda folder: None) -> Callable:
    """A JSONL file of good rows, and one line more; `prepare` does what else is to be in the folder."""

    def make(folder: Path) -> Path:
        file = folder / "inside" / "rows.jsonl"
        write_examples(file, [Example(id, "what?", (Picture(picture()),), "a", (), "free", "mine") for id in GOOD])
        prepare(folder / "inside")
        lines = file.read_bytes().splitlines()
        good = json.loads(lines[0])
        added = line if isinstance(line, bytes) else json.dumps(good | {"id": "bad"} | line).encode()
        file.write_bytes(b"\n".join([*lines[:AT], added, *lines[AT:]]) + b"\n")
        return file

    return make


def _outside(folder: Path) -> None:
    (folder.parent / "secret.png").write_bytes(picture())


def _link_out(folder: Path) -> None:
    _outside(folder)
    (folder / "link.png").symlink_to(folder.parent / "secret.png")


CASES = [
    Case("columns of another format", _parquet({"id": 1, "q": "?", "a": "!"}), "column prompt is missing", 0),
    Case("no rows", _parquet(_row("x", images=[])), "column images is missing or empty", 0),
    Case("truncated", _damaged(lambda content, _: bytes(content[:-50])), "not a readable parquet file", 0),
    Case("no bytes at all", _written("rows.parquet", b""), "give a parquet file", 0),
    Case("CSV named parquet", _written("rows.parquet", b"id,question\n1,what?\n"), "give a parquet file", 0),
    Case("pickle named parquet", _written("rows.parquet", b"\x80\x04\x95\x0b\x00"), "give a parquet file", 0),
    Case("a folder", lambda folder: folder, "no such file", 0),
    Case("a hole in one row group", _damaged(_hole), "its part of the file is damaged"),
    Case("prompt is a text", _parquet(_row("x", prompt="what?")), "column prompt is not of the published type", 0),
    Case("images are bare bytes", _parquet(_row("x", images=[b"\xff"])), "column images is not of the published", 0),
    Case("no reward_model", _with(reward_model=None), "column reward_model is missing or empty"),
    Case("image of 0 bytes", _image(b""), "it has no bytes"),
    Case("image by its address only", _image(None), "it has no bytes"),
    Case("image of 100 megapixels", _image(picture((10_000, 10_000), mode="1")), "10000x10000 pixels, more than"),
    Case("truncated image", _image(picture((300, 300), "JPEG")[:400]), "broken image"),
    Case("a web page for an image", _image(b"<html>404"), "no JPEG, PNG or WebP"),
    Case("GIF", _image(picture(kind="GIF")), "no JPEG, PNG or WebP"),
    Case("one pixel high", _image(picture((900, 1))), "900x1 is longer than 200:1"),
    Case("question in Latin-1", _not_utf8("prompt"), "text that is not UTF-8"),
    Case("id in Latin-1", _not_utf8("data_id"), "text that is not UTF-8"),
    Case("empty answer", _answer(ground_truth=""), "the answer is empty"),
    Case("null answer", _answer(ground_truth=None), "the answer is empty"),
    Case("blank question", _with(prompt=[{"content": " \n", "role": "user"}]), "the question is empty"),
    Case("duplicate id", _with(data_id="second"), "duplicate id, first in row 1"),
    Case("aliases cut off", _answer(candidate_answers='["b'), "candidate_answers: "),
    Case("aliases as an object", _answer(candidate_answers='{"b": 1}'), "a list was expected"),
    Case("notes that are none", _with(extra_info='{"mmsr1": 3}'), "extra_info: notes are of type int"),
    Case("difficulty of 7", _with(extra_info='{"mmsr1": {"difficulty": 7}}'), "extra_info: difficulty is '7'"),
    Case("CSV named jsonl", _written("rows.jsonl", b"id,question\n1,what?\n"), "no JSON", 0),
    Case("a line cut off", _lines(b'{"id": "bad", "question": "wh'), "no JSON"),
    Case("a line in Latin-1", _lines(b'{"id": "caf\xe9"}'), "text that is not UTF-8"),
    Case("a line that is a list", _lines(b"[1, 2]"), "a JSON object was expected"),
    Case("an image above the folder", _lines({"images": ["../secret.png"]}, _outside), "outside the folder"),
    Case("an absolute path", _lines({"images": ["/etc/hostname"]}), "outside the folder"),
    Case("a link that leads out", _lines({"images": ["link.png"]}, _link_out), "outside the folder"),
    Case("a pipe", _lines({"images": ["pipe"]}, lambda folder: os.mkfifo(folder / "pipe")), "is not a file"),
    Case("an image that is not there", _lines({"images": ["rows_images/gone.png"]}), "is not there"),
    Case("no images", _lines({"images": []}), "images is missing"),
    Case("a need nobody knows", _lines({"search_need": "maybe"}), "search_need is 'maybe'"),
    Case("duplicate id in JSONL", _lines({"id": "first"}), "duplicate id, first in row 0"),
]
