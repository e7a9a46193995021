"""The published FVQA parquet format, in and out (columns as in the data card of lmms-lab/FVQA).

A row that cannot be used is data too: it is skipped, counted and named with its cause.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from mmsr1.tools.pictures import BadPicture, decode
from mmsr1.types import Example, Picture, SearchNeed

# The published set knows search_free and search_required; the others are ours, for sets labelled by kind.
_CATEGORIES: dict[str, SearchNeed] = {f"search_{need}": need for need in get_args(SearchNeed) if need != "unknown"}
_LONGEST = 200  # Qwen2.5-VL's image processor takes no longer shape
_SCHEMA = pa.schema(
    [
        ("prompt", pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        (
            "reward_model",
            pa.struct([("candidate_answers", pa.string()), ("ground_truth", pa.string()), ("style", pa.string())]),
        ),
        ("data_source", pa.string()),
        ("image_urls", pa.null()),
        ("data_id", pa.string()),
        ("category", pa.string()),
    ]
)
_SHAPES: dict[str, type] = {"prompt": list, "images": list, "reward_model": dict}


@dataclass(frozen=True)
class BadRow:
    """A skipped row: its position in the file, its id, and what is wrong with it."""

    row: int
    id: str
    cause: str


def read_fvqa(path: Path) -> Iterator[Example | BadRow]:
    """Stream the rows of a parquet file in constant memory. Raises ValueError, in one line, if it is no such file."""
    position = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=16):
                for row in batch.to_pylist():
                    yield _example(row, position, path)
                    position += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from error


def load_fvqa(path: Path) -> tuple[list[Example], list[BadRow]]:
    """All usable rows and all skipped ones. Raises ValueError if none is usable, naming the first cause."""
    rows = list(read_fvqa(path))
    examples = [row for row in rows if isinstance(row, Example)]
    bad = [row for row in rows if isinstance(row, BadRow)]
    if not examples:
        cause = f"; row 0: {bad[0].cause}" if bad else ""
        raise ValueError(f"{path}: none of {len(rows)} rows can be used{cause}")
    return examples, bad


def write_fvqa(path: Path, examples: Iterable[Example], rows_per_group: int = 64) -> int:
    """Write examples as published parquet; returns their number. The file appears complete or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    count = 0
    with pq.ParquetWriter(temporary, _SCHEMA) as writer:
        pending: list[dict[str, Any]] = []
        for example in examples:
            pending.append(_row(example))
            count += 1
            if len(pending) == rows_per_group:
                writer.write_table(pa.Table.from_pylist(pending, _SCHEMA))
                pending = []
        if pending:
            writer.write_table(pa.Table.from_pylist(pending, _SCHEMA))
    temporary.replace(path)
    return count


def _example(row: dict[str, Any], position: int, path: Path) -> Example | BadRow:
    id = str(row.get("data_id") or f"{path.stem}_{position}")
    for column, shape in _SHAPES.items():
        value = row.get(column)
        if not value:
            return BadRow(position, id, f"column {column} is missing or empty")
        parts = value if shape is list else [value]
        if not isinstance(value, shape) or not all(isinstance(part, dict) for part in parts):
            return BadRow(position, id, f"column {column} is not of the published type, {_SCHEMA.field(column).type}")
    question = str(row["prompt"][-1].get("content") or "").strip()
    answer = str(row["reward_model"].get("ground_truth") or "").strip()
    if not question or not answer:
        return BadRow(position, id, "the question is empty" if not question else "the answer is empty")
    pictures = tuple(Picture(image.get("bytes") or b"") for image in row["images"])
    try:
        for picture in pictures:
            width, height = decode(picture).size
            if max(width, height) > _LONGEST * min(width, height):
                return BadRow(position, id, f"broken image: {width}x{height} is longer than {_LONGEST}:1")
        aliases = _aliases(row["reward_model"].get("candidate_answers"))
    except BadPicture as error:
        return BadRow(position, id, f"broken image: {error}")
    except ValueError as error:
        return BadRow(position, id, f"candidate_answers: {error}")
    need = _CATEGORIES.get(str(row.get("category")), "unknown")
    return Example(id, question, pictures, answer, aliases, need, str(row.get("data_source") or path.stem))


def _aliases(value: object) -> tuple[str, ...]:
    """`candidate_answers` is a JSON list inside a string; absent and empty mean none."""
    if not value:
        return ()
    parsed = json.loads(value) if isinstance(value, str) else value
    if not isinstance(parsed, list):
        raise ValueError(f"a list was expected, not {type(parsed).__name__}")
    return tuple(str(alias) for alias in parsed)


def _row(example: Example) -> dict[str, Any]:
    return {
        "prompt": [{"content": example.question, "role": "user"}],
        "images": [{"bytes": picture.data, "path": None} for picture in example.images],
        "reward_model": {
            "candidate_answers": json.dumps(list(example.aliases)),
            "ground_truth": example.answer,
            "style": "rule",
        },
        "data_source": example.source,
        "image_urls": None,
        "data_id": example.id,
        "category": f"search_{example.search_need}",
    }
