"""A back end that counts its calls, and somebody with write access to the cache directory."""

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

from mmsr1.tools.cache import CachedTool
from mmsr1.types import Picture, ToolItem, ToolName, ToolResult

THUMBNAIL = Picture(b"\x89PNG thumbnail")
RESULT = ToolResult(
    "ok",
    (ToolItem("title", "text", "url", THUMBNAIL), ToolItem("tïtle \ud800", "<answer>", "")),
    cost_usd=0.01,
    latency_s=9.0,
    detail="note",
)


class Backend:
    """A back end that counts its calls, in a file so that processes share the count."""

    name: ToolName = "text_search"

    def __init__(
        self,
        log: Path,
        result: ToolResult = RESULT,
        seconds: float = 0.0,
        backend: str = "b1",
        price_usd: float = 0.0,
    ) -> None:
        self.log, self.result, self.seconds, self.backend, self.price_usd = log, result, seconds, backend, price_usd

    async def __call__(self, query: str) -> ToolResult:
        with self.log.open("a") as log:
            log.write("call\n")
        await asyncio.sleep(self.seconds)
        return self.result

    @property
    def calls(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


def ask(tool: CachedTool[str], query: str = "q") -> ToolResult:
    return asyncio.run(tool(query))


def rows(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for database in directory.glob("*/cache.db"):
        connection = sqlite3.connect(database)
        found |= dict(connection.execute("SELECT key, value FROM Cache").fetchall())
        connection.close()
    return found


class Opens:
    """Unpickling this creates a file: the canary of every attack below."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def tamper(directory: Path, key: str, **columns: object) -> None:
    """Change the row of `key` behind the store's back, as somebody with write access can."""
    changed = 0
    for database in directory.glob("*/cache.db"):
        connection = sqlite3.connect(database)
        with connection:
            assignments = ", ".join(f"{name} = ?" for name in columns)
            update = f"UPDATE Cache SET {assignments} WHERE key = ?"
            changed += connection.execute(update, (*columns.values(), key)).rowcount
        connection.close()
    assert changed == 1
