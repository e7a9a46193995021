"""Queries from a file against an index: one answer a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmsr1.tools.image_search.local import LocalImageSearch
from mmsr1.tools.index.rows import Unusable, beside
from mmsr1.tools.index_files import read_manifest
from mmsr1.tools.text_search.local import LocalTextSearch
from mmsr1.types import Picture

FIELDS = ("query", "question", "text")


def open_index(directory: Path, topk: int, model: str | None = None) -> LocalTextSearch | LocalImageSearch:
    """`model`: where its model lies now. Raises FileNotFoundError or ValueError for none that this code reads."""
    manifest = read_manifest(directory)
    if model is not None and "encoder" not in manifest.settings:
        raise ValueError(f"--model {model}: {directory} was made without a model; leave it out")
    return (LocalTextSearch if manifest.kind == "text" else LocalImageSearch)(directory, topk, model=model)


def answers(index: LocalTextSearch | LocalImageSearch, queries: Path) -> Iterator[dict[str, Any]]:
    """{"id", "hits": [{"id", "score"}]} for each query in its order; one that cannot be read has an `error` too.

    A query is a JSON object with `id` (else the number of its line) and `query`, `question` or `text`, or with `image`,
    the path of a picture in the file's folder. Raises FileNotFoundError if there is no such file.
    """
    with queries.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError):
                yield {"id": number, "hits": [], "error": "no JSON"}
                continue
            if not isinstance(fields, dict):
                yield {"id": number, "hits": [], "error": "not a JSON object"}
                continue
            yield {"id": fields.get("id", number), **_answer(index, fields, queries.parent)}


def _answer(index: LocalTextSearch | LocalImageSearch, fields: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    try:
        found = _hits(index, fields, folder)
    except (OSError, ValueError) as error:  # a picture that is none, a path that no file can have, no field to ask by
        return {"hits": [], "error": " ".join(str(error).split())}
    return {"hits": [{"id": hit.id, "score": round(hit.score, 6)} for hit in found]}


def _hits(index: LocalTextSearch | LocalImageSearch, fields: Mapping[str, Any], folder: Path) -> Any:
    if isinstance(index, LocalImageSearch):
        path = fields.get("image")
        if not isinstance(path, str) or not path:
            raise Unusable("no image: give the path of a picture")
        return index.find(Picture(beside(folder, path)))
    query = next((fields[name] for name in FIELDS if isinstance(fields.get(name), str)), None)
    if query is None:
        raise Unusable(f"no text to search for: give one of {', '.join(FIELDS)}")
    return index.find(query)
