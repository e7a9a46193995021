"""The published parquet format: what is written comes back, and a row that cannot be used is told with its cause."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmsr1.data.formats import load_examples
from mmsr1.data.fvqa import read_fvqa, write_fvqa
from mmsr1.data.rows import BadRow
from mmsr1.tools.pictures import decode, encode_png
from mmsr1.types import Example, Picture, SearchNeed

REAL = Path(__file__).parents[3] / "shared" / "data" / "infoseek_mini.parquet"
NEEDS: tuple[SearchNeed, ...] = ("free", "required", "image", "text", "both", "unknown")


def picture(shade: int = 0) -> Picture:
    return encode_png(Image.new("RGB", (28, 28), (shade, 0, 0)))


def examples(count: int = 6) -> list[Example]:
    return [
        Example(
            f"id-{i}",
            f"what is “{i}”?\nreally",
            tuple(picture(k) for k in range(1 + i % 2)),
            "Zürich",
            ("Zurich", '"ZRH"') if i % 3 else (),
            NEEDS[i % 6],
            "mmsearch_r1/fvqa_train",
        )
        for i in range(count)
    ]


def row(**changed: Any) -> dict[str, Any]:
    """A row as published; the value `...` drops the column."""
    plain = {
        "prompt": [{"content": "what is it?", "role": "user"}],
        "images": [{"bytes": picture().data, "path": None}],
        "reward_model": {"candidate_answers": '["b"]', "ground_truth": "a", "style": "rule"},
        "data_source": "mmsearch_r1/fvqa_test",
        "image_urls": None,
        "data_id": "fvqa_test_7",
    } | changed
    return {name: value for name, value in plain.items() if value is not ...}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


@pytest.mark.parametrize("rows_per_group", [1, 4, 64])
def test_what_is_written_comes_back(tmp_path: Path, rows_per_group: int) -> None:
    file = tmp_path / "a.parquet"
    assert write_fvqa(file, iter(examples(20)), rows_per_group) == 20
    assert load_examples(file) == (examples(20), [])
    assert [f.name for f in tmp_path.iterdir()] == ["a.parquet"]


def test_the_file_is_in_the_published_format(tmp_path: Path) -> None:
    write_fvqa(tmp_path / "a.parquet", examples(2))
    first = pq.read_table(tmp_path / "a.parquet").to_pylist()[0]
    assert first["prompt"] == [{"content": "what is “0”?\nreally", "role": "user"}]
    assert first["images"] == [{"bytes": picture().data, "path": None}]
    assert first["reward_model"] == {"candidate_answers": "[]", "ground_truth": "Zürich", "style": "rule"}
    assert (first["data_source"], first["data_id"]) == ("mmsearch_r1/fvqa_train", "id-0")
    assert first["category"] == "search_free" and first["image_urls"] is None


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write_fvqa(file, examples(2))

    def broken() -> Any:
        yield from examples(1)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        write_fvqa(file, broken())
    assert load_examples(file) == (examples(2), [])


@pytest.mark.parametrize("category", ["search_free", "search_required", None, "", "something else", ...])
def test_the_published_categories_are_read(tmp_path: Path, category: Any) -> None:
    (example,), bad = load_examples(write(tmp_path / "a.parquet", row(category=category)))
    assert bad == []
    assert example.search_need == {"search_free": "free", "search_required": "required"}.get(category, "unknown")


def test_a_test_row_without_id_category_and_aliases_is_usable(tmp_path: Path) -> None:
    bare = row(data_id=..., data_source=..., reward_model={"ground_truth": " a ", "style": "rule"})
    (one, two), bad = load_examples(write(tmp_path / "mini.parquet", bare, bare))
    assert bad == [] and (one.id, two.id) == ("mini_0", "mini_1")
    assert one == Example("mini_0", "what is it?", (picture(),), "a", (), "unknown", "mini")


@pytest.mark.parametrize("given", [["b", "c"], '["b", "c"]'])
def test_aliases_are_a_list_or_one_spelt_in_json(tmp_path: Path, given: Any) -> None:
    file = write(tmp_path / "a.parquet", row(reward_model={"candidate_answers": given, "ground_truth": "a"}))
    assert load_examples(file)[0][0].aliases == ("b", "c")


def with_answer(**changed: Any) -> dict[str, Any]:
    return {"reward_model": {"candidate_answers": "[]", "ground_truth": "a", "style": "rule"} | changed}


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({"images": [{"bytes": b"\xff\xd8 no picture", "path": None}]}, "broken image"),
        ({"images": [{"bytes": None, "path": "http://x"}]}, "broken image"),
        ({"images": [{"bytes": picture().data, "path": None}, {"bytes": b"x", "path": None}]}, "broken image"),
        ({"images": []}, "column images is missing or empty"),
        ({"images": None}, "column images is missing or empty"),
        ({"images": ...}, "column images is missing or empty"),
        ({"prompt": ...}, "column prompt is missing or empty"),
        ({"prompt": []}, "column prompt is missing or empty"),
        ({"reward_model": ...}, "column reward_model is missing or empty"),
        ({"prompt": [{"content": "  ", "role": "user"}]}, "the question is empty"),
        ({"prompt": [{"content": None, "role": "user"}]}, "the question is empty"),
        (with_answer(ground_truth=""), "the answer is empty"),
        (with_answer(ground_truth=None), "the answer is empty"),
        (with_answer(candidate_answers='["b"'), "candidate_answers"),
        (with_answer(candidate_answers='{"b": 1}'), "candidate_answers: a list was expected"),
        (with_answer(candidate_answers="b"), "candidate_answers"),
        # Columns of another type than published.
        ({"prompt": "what is it?"}, "column prompt"),
        ({"images": [picture().data]}, "column images"),
        ({"images": [None]}, "column images"),
        ({"reward_model": "a"}, "column reward_model"),
    ],
)
def test_a_row_that_cannot_be_used_is_told_with_its_cause(tmp_path: Path, changed: dict[str, Any], cause: str) -> None:
    file = write(tmp_path / "a.parquet", row(**changed))
    (bad,) = read_fvqa(file)
    assert isinstance(bad, BadRow) and (bad.row, bad.id) == (0, "fvqa_test_7")
    assert bad.cause.startswith(cause) and "\n" not in bad.cause
    with pytest.raises(ValueError, match=f"none of 1 rows can be used; row 0: {cause}"):
        load_examples(file)


def test_bad_rows_are_skipped_and_counted_where_they_stand(tmp_path: Path) -> None:
    broken = row(images=[{"bytes": b"x", "path": None}], data_id="broken")
    rows = [broken if i in (0, 17, 39) else row(data_id=f"good_{i}") for i in range(40)]
    good, bad = load_examples(write(tmp_path / "a.parquet", *rows))
    assert [(one.row, one.id) for one in bad] == [(0, "broken"), (17, "broken"), (39, "broken")]
    assert [e.id for e in good] == [f"good_{i}" for i in range(40) if i not in (0, 17, 39)]


def truncated(path: Path) -> None:
    write_fvqa(path, examples(6))
    path.write_bytes(path.read_bytes()[:-9])


def damaged_inside(path: Path) -> None:
    write_fvqa(path, examples(6))
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("id,question\n1,what?\n"),
        lambda path: path.mkdir(),
        lambda path: None,
        truncated,
        damaged_inside,
    ],
)
def test_a_file_that_cannot_be_read_is_told_in_one_line(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    file = tmp_path / "a.parquet"
    spoil(file)
    with pytest.raises(ValueError) as caught:
        load_examples(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_without_rows_is_told(tmp_path: Path) -> None:
    write_fvqa(tmp_path / "a.parquet", [])
    with pytest.raises(ValueError, match="none of 0 rows can be used$"):
        load_examples(tmp_path / "a.parquet")


@pytest.mark.skipif(not REAL.is_file(), reason="the real rows lie in ../shared/data, which users do not have")
def test_real_rows_are_read_and_survive_a_round_trip(tmp_path: Path) -> None:
    good, bad = load_examples(REAL)
    assert len(good) == 5 and bad == []
    assert good[0].question == "What is the country of origin of this food?" and good[0].answer == "Spain"
    assert good[0].aliases == ("Kingdom of Spain", "ESP", "🇪🇸", "ES", "Spain")
    assert {e.search_need for e in good} == {"unknown"} and {e.source for e in good} == {
        "mmsearch_r1/infoseek_train_split"
    }
    assert all(min(decode(p).size) > 100 for e in good for p in e.images)
    write_fvqa(tmp_path / "again.parquet", good)
    assert load_examples(tmp_path / "again.parquet") == (good, [])
    published = pq.read_table(REAL).to_pylist()[0]["reward_model"]
    again = pq.read_table(tmp_path / "again.parquet").to_pylist()[0]["reward_model"]
    assert json.loads(again["candidate_answers"]) == json.loads(published["candidate_answers"])
