"""How results lie in the store: canonical JSON text under a sha256 key, large values as blobs under their digest.

An entry names the key it belongs to, so a row that was moved is refused; a blob is checked against its digest.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mmsr1.tools.base import Outcome
from mmsr1.tools.meter import ANSWERS
from mmsr1.tools.store import CorruptEntry, Store
from mmsr1.types import Picture, ToolItem, ToolName, ToolResult

SCHEMA = 1
LARGE = 16 * 2**10  # characters from which a text is a blob: reading it as JSON costs more than the rest of a hit

Json = Any  # what `json.dumps` takes
Q = TypeVar("Q")
V = TypeVar("V")
T = TypeVar("T")

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


@dataclass(frozen=True)
class Codec(Generic[Q, V]):
    """How a part's queries are named and its values written.

    `asked` is all that decides the answer in a query. `dump` may put blobs into the store; `load` takes what it
    returned and raises ValueError, TypeError or KeyError for anything else.
    """

    asked: Callable[[Q], Json]
    dump: Callable[[V, Store], Json]
    load: Callable[[Json, Store], V]


def cache_key(name: ToolName, backend: str, query: str | Picture) -> str:
    """sha256 in hex of everything that decides the result of a tool."""
    return _digest([SCHEMA, name, backend, asked(query)])


def part_key(name: str, backend: str, query: Json) -> str:
    """The same for a part, whose codec has told what decides the answer."""
    return _digest([SCHEMA, "part", name, backend, query])


def asked(query: str | Picture) -> Json:
    """White space in a text decides nothing; a picture counts by its content."""
    return {"image": query.digest} if isinstance(query, Picture) else {"text": " ".join(query.split())}


def tool_entry(key: str, result: ToolResult, store: Store) -> str:
    """The entry of a tool's result; thumbnails are put into the store."""
    items = [
        {
            "title": item.title,
            "text": item.text,
            "url": item.url,
            "thumbnail": None if item.thumbnail is None else _put_picture(item.thumbnail, store),
        }
        for item in result.items
    ]
    return canonical(
        {"cost_usd": result.cost_usd, "detail": result.detail, "items": items, "key": key, "status": result.status}
    )


def tool_result(key: str, text: object, store: Store) -> ToolResult:
    """The result that `tool_entry` wrote under this very key. Raises CorruptEntry for anything else."""
    try:
        entry, cost = _opened(key, text)
        items = tuple(
            ToolItem(
                typed(item["title"], str),
                typed(item["text"], str),
                typed(item["url"], str),
                None if item["thumbnail"] is None else _get_picture(item["thumbnail"], store),
            )
            for item in entry["items"]
        )
        return ToolResult(entry["status"], items, cost, 0.0, True, typed(entry["detail"], str))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptEntry(f"{type(error).__name__}: {error}"[:200]) from error


def part_entry(key: str, outcome: Outcome[V], codec: Codec[Any, V], store: Store) -> str:
    """The entry of a part's outcome; blobs of its value are put into the store."""
    value = None if outcome.value is None else codec.dump(outcome.value, store)
    return canonical(
        {"cost_usd": outcome.cost_usd, "detail": outcome.detail, "key": key, "status": outcome.status, "value": value}
    )


def part_outcome(key: str, text: object, codec: Codec[Any, V], store: Store) -> Outcome[V]:
    """The outcome that `part_entry` wrote under this very key. Raises CorruptEntry for anything else."""
    try:
        entry, cost = _opened(key, text)
        value = codec.load(entry["value"], store) if entry["status"] == "ok" else None
        return Outcome(entry["status"], value, cost, 0.0, True, typed(entry["detail"], str))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptEntry(f"{type(error).__name__}: {error}"[:200]) from error


def typed(value: object, kind: type[T]) -> T:
    """The value, if it is of this very type. Raises TypeError."""
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, found {type(value).__name__}")
    return value


def _opened(key: str, text: object) -> tuple[dict[str, Any], float]:
    """An entry and its cost, with what all entries have in common checked."""
    entry = typed(json.loads(typed(text, str)), dict)
    cost = float(entry["cost_usd"])
    if entry["key"] != key or entry["status"] not in ANSWERS or not (math.isfinite(cost) and cost >= 0):
        raise ValueError("key, status or cost is not one that is stored here")
    return entry, cost


def _put_blob(data: bytes, store: Store) -> str:
    digest = hashlib.sha256(data).hexdigest()
    store.put(f"blob:{digest}", data)
    return digest


def _get_blob(digest: object, store: Store) -> bytes:
    data = typed(store.get(f"blob:{digest}"), bytes)
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"blob {digest} holds something else")
    return data


def _put_picture(picture: Picture, store: Store) -> Json:
    return _put_blob(picture.data, store)


def _get_picture(digest: Json, store: Store) -> Picture:
    return Picture(_get_blob(digest, store))


def _put_text(text: str, store: Store) -> Json:
    return text if len(text) < LARGE else {"blob": _put_blob(text.encode("utf-8", "surrogatepass"), store)}


def _get_text(value: Json, store: Store) -> str:
    if isinstance(value, dict):
        return _get_blob(value["blob"], store).decode("utf-8", "surrogatepass")
    return typed(value, str)


def canonical(value: object) -> str:
    """JSON of which there is one form only: ASCII, sorted keys, no spaces."""
    return _ENCODER.encode(value)


def _digest(value: object) -> str:
    return hashlib.sha256(canonical(value).encode("ascii")).hexdigest()


TEXT: Codec[Any, str] = Codec(asked, _put_text, _get_text)
PICTURE: Codec[Any, Picture] = Codec(asked, _put_picture, _get_picture)
