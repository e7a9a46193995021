"""A part whose answers are results already, as a tool."""

from __future__ import annotations

from typing import Generic, TypeVar

from mmsr1.tools.base import Part
from mmsr1.tools.pipeline import Bill, settled
from mmsr1.types import Picture, ToolItem, ToolName, ToolResult

QueryT = TypeVar("QueryT", str, Picture)


class ItemsTool(Generic[QueryT]):
    """`Tool` of a part that returns items in rank order; what it says of calls and costs is the part's."""

    def __init__(self, name: ToolName, part: Part[QueryT, tuple[ToolItem, ...]]) -> None:
        self.name: ToolName = name
        self._part = part
        self.backend, self.price_usd = part.backend, part.price_usd

    async def __call__(self, query: QueryT) -> ToolResult:
        return await settled(lambda bill: self._find(query, bill))

    async def _find(self, query: QueryT, bill: Bill) -> ToolResult:
        found = await bill.ask(self._part, query)
        if found.status != "ok" or found.value is None:
            return bill.total(found.status, detail=found.detail)
        return bill.result(found.value)
