"""Hits per second of the tool cache beside bare diskcache, on the same answers, taking turns.

Ours is a whole `CachedTool` call: key, look-up, decoding, checks, counters. Bare diskcache is the `get` of a
`FanoutCache` with its defaults, which unpickles the very same answers: what one would use without the safe layer. Two
kinds of answers: five summaries, and five hits with a thumbnail each. `first` are hits of a process that has not seen
the answers yet; later ones find them decoded in memory if the entry on disk has not changed, as the rollouts of a group
do. `text` is a bare `get` of our own entry as a string, neither decoded nor checked: no layer can be faster.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from diskcache import FanoutCache

from mmsr1.tools.cache import CachedTool, cache_key
from mmsr1.tools.store import Store
from mmsr1.types import Picture, ToolItem, ToolName, ToolResult

QUESTIONS, ROUNDS = 400, 15
SENTENCE = "the river rises in the hills, passes three old towns and reaches the sea beyond the harbour. "
THUMBNAIL_BYTES = 2500  # of a PNG of 28 x 28 pixels, as in the default experiment


class Answers:
    """`Tool[str]` with a fixed kind of answer."""

    name: ToolName = "text_search"
    price_usd = 0.0

    def __init__(self, backend: str, thumbnails: bool) -> None:
        self.backend, self._thumbnails = backend, thumbnails

    async def __call__(self, query: str) -> ToolResult:
        return ToolResult("ok", tuple(self._item(query, rank) for rank in range(5)), cost_usd=0.01)

    def _item(self, query: str, rank: int) -> ToolItem:
        title, url = f"{query}, hit {rank}", f"https://example.org/{query}/{rank}"
        if self._thumbnails:
            return ToolItem(title, url=url, thumbnail=Picture(os.urandom(THUMBNAIL_BYTES)))
        return ToolItem(title, 6 * SENTENCE, url)


def measure() -> dict[str, Any]:
    """Figures of both kinds, and `ratio`, the lower of ours over bare."""
    rows = [_compared(kind, kind == "thumbnails") for kind in ("summaries", "thumbnails")]
    return {"answers": rows, "ratio": min(row["ours_over_bare"] for row in rows)}


def _compared(kind: str, thumbnails: bool) -> dict[str, Any]:
    queries = [f"question {number}" for number in range(QUESTIONS)]
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        store = Store(folder / "ours")
        backend = Answers(kind, thumbnails)
        tool = CachedTool(backend, store)
        answers = asyncio.run(_ask(tool, queries))
        keys = [cache_key(tool.name, tool.backend, query) for query in queries]
        bare = FanoutCache(str(folder / "bare"), shards=8)
        for key, answer in zip(keys, answers, strict=True):
            bare[key], bare[f"text {key}"] = answer, store.get(key)
        rates: dict[str, list[float]] = {"first": [], "ours": [], "bare": [], "text": []}
        for _ in range(ROUNDS):
            fresh = CachedTool(backend, store)
            for name, hits in (
                ("first", lambda tool=fresh: asyncio.run(_ask(tool, queries))),
                ("ours", lambda tool=fresh: asyncio.run(_ask(tool, queries))),
                ("bare", lambda: [bare[key] for key in keys]),
                ("text", lambda: [bare[f"text {key}"] for key in keys]),
            ):
                rates[name].append(QUESTIONS / _seconds(hits))
            if fresh.counters.hits != 2 * QUESTIONS:
                raise RuntimeError(f"{fresh.counters.hits} hits of {2 * QUESTIONS} calls")
        bare.close()
        store.close()
    # Neighbours in time are compared, so that a disturbance hits both.
    over = {
        name: median(ours / bare for ours, bare in zip(rates[name], rates["bare"], strict=True))
        for name in ("ours", "first", "text")
    }
    return {
        "kind": kind,
        **{f"{name}_hits_per_s": median(found) for name, found in rates.items()},
        **{f"{name}_over_bare": ratio for name, ratio in over.items()},
    }


async def _ask(tool: CachedTool[str], queries: Sequence[str]) -> list[ToolResult]:
    return [await tool(query) for query in queries]


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
