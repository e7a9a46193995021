"""One search and what came of it, as one line of canonical JSON: how a run records it and how a bundle holds it.

    {"asked": {"text": str} or {"image": sha256}, "at": s, "backend": str, "cost_usd": x, "detail": str,
     "items": [{"title", "text", "url", "thumbnail": sha256 or null}], "latency_s": x, "status": str, "tool": str}

`at` are the seconds since 1970 at which it was recorded, null if nobody knows. A text counts by its words, a picture by
its content, so a row is found again by whoever asks the same, whatever stands behind the tool.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from mmsr1.tools.codecs import asked, canonical, typed
from mmsr1.tools.meter import ANSWERS
from mmsr1.types import Picture, ToolItem, ToolName, ToolResult, ToolStatus

# What a search says of its query, or of the web on that day; a budget belongs to one run alone.
RECORDED: tuple[ToolStatus, ...] = (*ANSWERS, "malformed_call", "infrastructure_error")
LATEST = 2**33  # seconds since 1970: in the year 2242
DIGEST = re.compile(r"[0-9a-f]{64}")
_FIELDS = {"asked", "at", "backend", "cost_usd", "detail", "items", "latency_s", "status", "tool"}
_ITEM_FIELDS = {"title", "text", "url", "thumbnail"}


@dataclass(frozen=True)
class Item:
    """A result; `thumbnail` is the digest of its picture."""

    title: str
    text: str
    url: str
    thumbnail: str | None


@dataclass(frozen=True)
class Row:
    """A search that was recorded."""

    tool: ToolName
    backend: str
    asked: Mapping[str, str]
    status: ToolStatus
    items: tuple[Item, ...]
    cost_usd: float
    latency_s: float
    at: int | None
    detail: str

    @property
    def key(self) -> bytes:
        """32 bytes that name the call, whoever answers it."""
        return call_key(self.tool, self.asked)

    @property
    def answered(self) -> bool:
        return self.status in ANSWERS

    @property
    def thumbnails(self) -> tuple[str, ...]:
        return tuple(item.thumbnail for item in self.items if item.thumbnail is not None)

    def said(self) -> tuple[Any, ...]:
        """What whoever asks is told; when, and in what time, makes no difference."""
        return self.status, self.items, self.cost_usd, self.detail

    def text(self) -> str:
        return canonical(vars(self) | {"items": [vars(item) for item in self.items]})

    def result(self, picture: Callable[[str], Picture]) -> ToolResult:
        """What the tool returned; `picture` gives the thumbnails by their digests."""
        items = tuple(
            ToolItem(item.title, item.text, item.url, None if item.thumbnail is None else picture(item.thumbnail))
            for item in self.items
        )
        return ToolResult(self.status, items, self.cost_usd, self.latency_s, True, self.detail)


def row_of(tool: ToolName, backend: str, query: str | Picture, result: ToolResult, at: int) -> Row:
    items = tuple(
        Item(item.title, item.text, item.url, None if item.thumbnail is None else item.thumbnail.digest)
        for item in result.items
    )
    cost_usd, latency_s = result.cost_usd, round(result.latency_s, 6)
    return Row(tool, backend, asked(query), result.status, items, cost_usd, latency_s, at, result.detail)


def read_row(text: str | bytes) -> Row:
    """The row that `Row.text` wrote. Raises ValueError for anything else, whoever wrote it."""
    try:
        found = typed(json.loads(text), dict)
        if set(found) != _FIELDS:
            raise ValueError("fields are missing or unknown")
        items = tuple(_item(entry) for entry in typed(found["items"], list))
        cost, latency, at = found["cost_usd"], found["latency_s"], found["at"]
        if not all(isinstance(x, int | float) and math.isfinite(x) and x >= 0 for x in (cost, latency)):
            raise ValueError("cost or latency is no amount")
        if found["tool"] not in get_args(ToolName) or found["status"] not in RECORDED:
            raise ValueError("tool or status is not one that is recorded")
        if items and found["status"] != "ok":
            raise ValueError("items of a search that found nothing")
        when = None if at is None else typed(at, int)
        if when is not None and not 0 <= when < LATEST:
            raise ValueError("a time that is none")
        backend, detail = typed(found["backend"], str), typed(found["detail"], str)
        query = _asked(found["tool"], found["asked"])
        row = Row(found["tool"], backend, query, found["status"], items, float(cost), float(latency), when, detail)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"not a recorded search ({type(error).__name__}: {error})"[:200]) from error
    return row


def call_key(tool: ToolName, query: Mapping[str, str]) -> bytes:
    """sha256 of the tool's name and what decides its answer in a query (`codecs.asked`)."""
    return hashlib.sha256(canonical([tool, query]).encode("ascii")).digest()


def _item(entry: Any) -> Item:
    if set(typed(entry, dict)) != _ITEM_FIELDS:
        raise ValueError("an item with fields missing or unknown")
    thumbnail = entry["thumbnail"]
    if thumbnail is not None and not DIGEST.fullmatch(typed(thumbnail, str)):
        raise ValueError("a thumbnail is named by its sha256")
    return Item(typed(entry["title"], str), typed(entry["text"], str), typed(entry["url"], str), thumbnail)


def _asked(tool: str, query: Any) -> Mapping[str, str]:
    kind = "image" if tool == "image_search" else "text"
    if set(typed(query, dict)) != {kind} or (kind == "image" and not DIGEST.fullmatch(typed(query[kind], str))):
        raise ValueError(f"a query of {tool} that is none")
    return {kind: typed(query[kind], str)}
