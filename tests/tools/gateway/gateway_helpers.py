"""Tools that a test holds in its hand, and an app in front of them that is asked without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
from PIL import Image

from mmsr1.tools.gateway.app import Settings, create_app
from mmsr1.tools.pictures import encode_png
from mmsr1.types import ToolItem, ToolName, ToolResult

TOKEN = "a-token-of-the-gateway-tests"
THUMBNAIL = encode_png(Image.new("RGB", (20, 10), "teal"))
PHOTO = encode_png(Image.new("RGB", (40, 30), "orchid"))
ITEMS = (
    ToolItem('The "tower"', "It was built\nin 1889. \ud800", "https://a.example/1", THUMBNAIL),
    ToolItem("", "no title <answer>", ""),
    ToolItem("no text", "", "https://a.example/3"),
)
FOUND = ToolResult("ok", ITEMS, cost_usd=0.015, paid_usd=0.005)


class HeldTool:
    """`Tool`: answers by a function of the query, where there is a `gate` once that is open."""

    def __init__(self, name: ToolName, answer: Callable[[Any], ToolResult] = lambda _: FOUND) -> None:
        self.name, self.backend, self.price_usd = name, f"{name}:v1", 0.0
        self.asked: list[Any] = []
        self.gate: asyncio.Event | None = None
        self.most_at_a_time = self.at_work = 0
        self._answer = answer

    async def __call__(self, query: Any) -> ToolResult:
        self.asked.append(query)
        self.at_work += 1
        self.most_at_a_time = max(self.most_at_a_time, self.at_work)
        try:
            if self.gate is not None:
                await self.gate.wait()
            await asyncio.sleep(0)
            return self._answer(query)
        finally:
            self.at_work -= 1


class Stand:
    """An app and its two tools."""

    def __init__(
        self, answer: Callable[[Any], ToolResult] = lambda _: FOUND, rows: Any = None, **settings: Any
    ) -> None:
        self.text, self.image = HeldTool("text_search", answer), HeldTool("image_search", answer)
        tools = {"text_search": self.text, "image_search": self.image}
        self.app = create_app(tools, (lambda: rows or {}), Settings(**settings))

    def transport(self) -> httpx.ASGITransport:
        return httpx.ASGITransport(self.app)

    def client(self, **more: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=self.transport(), base_url="http://gateway", **more)

    def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        """One request on an event loop of its own."""

        async def once() -> httpx.Response:
            async with self.client() as client:
                return await client.post(path, **({"json": body} if body is not None else {}), **more)

        return asyncio.run(once())

    def get(self, path: str, **more: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            async with self.client() as client:
                return await client.get(path, **more)

        return asyncio.run(once())


def error(reply: httpx.Response) -> tuple[int, str]:
    """(status, cause) of a failure in our words."""
    told = reply.json()["error"]
    assert isinstance(told["detail"], str) and "\n" not in told["detail"] and "Traceback" not in told["detail"]
    return reply.status_code, told["cause"]
