"""A small recorded web: a tool that answers, a store, a recorder, a bundle of it all."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from mmsr1.tools.bundle.export import Exported, export
from mmsr1.tools.bundle.record import FOLDER, Recorded, Recorder
from mmsr1.tools.meter import PartCounters
from mmsr1.tools.pictures import encode_png
from mmsr1.tools.store import Store
from mmsr1.types import Picture, ToolItem, ToolResult


def picture(shade: int) -> Picture:
    return encode_png(Image.new("RGB", (8, 8), (shade, 255 - shade, 40)))


def found(text: str, thumbnail: Picture | None = None, cost: float = 0.01, seconds: float = 0.25) -> ToolResult:
    items = (ToolItem(f"About {text}", f"What is known of {text}.", "https://a.example/1", thumbnail),)
    return ToolResult("ok", items, cost, seconds, paid_usd=cost)


class Answers:
    """A tool that says what a dict says; the last of a list stays."""

    price_usd = 0.01

    def __init__(self, name: Any, answers: Mapping[Any, Any], backend: str = "web:v1") -> None:
        self.name, self.backend = name, backend
        self._answers = {query: [*said] if isinstance(said, list) else [said] for query, said in answers.items()}
        self.asked: list[Any] = []

    async def __call__(self, query: Any) -> ToolResult:
        self.asked.append(query)
        said = self._answers[query]
        return said.pop(0) if len(said) > 1 else said[0]


def recorded(run: Path, cache: Path, *tools: Answers, at: int = 1_790_000_000, rank: int = 0) -> PartCounters:
    """Ask every tool all that it knows, twice, as a process of the run would; the counters of all tools."""
    store, counters = Store(cache), PartCounters()
    recorder = Recorder(store, run / FOLDER / f"rank{rank}.jsonl", clock=lambda: at)

    async def ask() -> None:
        for tool in tools:
            layer = Recorded(tool, recorder, counters)
            for query in [*tool._answers, *tool._answers]:
                await layer(query)

    asyncio.run(ask())
    store.close()
    return counters


def bundled(folder: Path, *tools: Answers, **settings: Any) -> Exported:
    """A bundle at `folder`/bundle of a run of its own."""
    recorded(folder / "run", folder / "cache", *tools, **settings)
    return export(folder / "run", folder / "bundle", folder / "cache")


FLAG, MAP = picture(10), picture(200)


def web() -> tuple[Answers, Answers]:
    """Both tools, with an answer, an empty one, a failure and a refusal."""
    texts = {
        "Eiffel tower height": found("the tower", cost=0.02),
        "nothing there": ToolResult("empty", cost_usd=0.02),
        "down": ToolResult("infrastructure_error", detail="transient: HTTP 503"),
        "": ToolResult("malformed_call", detail="the query is empty"),
        "no money": ToolResult("over_budget", detail="spent"),
    }
    return Answers("image_search", {FLAG: found("a flag", MAP), MAP: found("a map", FLAG)}), Answers(
        "text_search", texts
    )
