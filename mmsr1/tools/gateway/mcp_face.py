"""The same searches as tools of the Model Context Protocol, for agents that speak it: streamable HTTP at /mcp.

What comes back goes straight to a model, so it is neutralised here. A search that failed is an error of the tool, never
an empty result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from starlette.routing import BaseRoute

from mmsr1.tools.gateway.service import Service
from mmsr1.tools.gateway.wire import Refused, refusal
from mmsr1.tools.sanitize import neutralise, one_line
from mmsr1.types import ToolItem, ToolResult


@dataclass(frozen=True)
class Face:
    """`routes` belong into an app, `running` around its life."""

    routes: Sequence[BaseRoute]
    running: Callable[[], AbstractAsyncContextManager[None]]


def mcp_face(service: Service, host: str, max_body: int, version: str) -> Face:
    """Without sessions: every call is a request of its own. Raises ValueError if the package `mcp` is not there.

    A server on loopback answers only requests that name loopback as their host, against pages in a browser.
    """
    try:
        from mcp.server.mcpserver import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
    except ImportError:
        raise ValueError("--mcp: needs the package mcp, which is not installed: pip install 'mcp==2.3.0'") from None
    server = MCPServer("mmsr1", version=version, log_level="WARNING")

    def told(result: ToolResult) -> str:
        refused = refusal(result)
        if refused is not None:
            raise ToolError(f"{refused.cause}: {refused.detail}")
        return listed(result.items)

    async def text_search(query: Annotated[str, Field(description="what to look for", min_length=1)]) -> str:
        """Search for text: passages or summaries of pages, best first, with titles and links."""
        if not query.strip():
            raise ToolError("invalid: the query is empty")
        try:
            return told((await service.search("text_search", [query]))[0])
        except Refused as refused:
            raise ToolError(f"{refused.cause}: {refused.detail}") from None

    async def image_search(image: Annotated[str, Field(description="base64 of a JPEG, PNG or WebP file")]) -> str:
        """Search by a picture: titles and links of pages that show it or something like it, best first."""
        try:
            return told((await service.search("image_search", [await service.picture(image)]))[0])
        except Refused as refused:
            raise ToolError(f"{refused.cause}: {refused.detail}") from None

    for tool in (text_search, image_search):
        server.add_tool(tool, structured_output=False)
    mounted = server.streamable_http_app(
        stateless_http=True, json_response=True, host=host, max_request_body_size=max_body
    )
    return Face(mounted.routes, server.session_manager.run)


def listed(items: Sequence[ToolItem]) -> str:
    """The hits as numbered text without control tokens or tags."""
    if not items:
        return "Nothing was found."
    return "\n\n".join(_entry(number, item) for number, item in enumerate(items, 1))


def _entry(number: int, item: ToolItem) -> str:
    lines = (f"{number}. {one_line(item.title)}", one_line(item.url), one_line(item.text))
    return neutralise("\n".join(line for line in lines if line))
