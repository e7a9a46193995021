"""What a tool looks like to the episodes that ask it: the outermost layer, which only counts."""

from __future__ import annotations

import time
from typing import Generic, TypeVar

from mmsr1.tools.base import AroundTool, Tool
from mmsr1.tools.meter import Meter
from mmsr1.types import Picture, ToolResult

QueryT = TypeVar("QueryT", str, Picture)


class Metered(AroundTool, Generic[QueryT]):
    """`Tool` whose calls are counted under its name; what it is made of counts for itself.

    A hit is a call that asked nobody, or paid nothing for what has a price: a page or thumbnail that cannot be fetched,
    and so is tried again each time, makes no miss of it. A back-end call is one that is no hit. A call that is cut is
    not counted.
    """

    def __init__(self, tool: Tool[QueryT], meter: Meter) -> None:
        self._tool, self._counters = tool, meter.part(tool.name)

    async def __call__(self, query: QueryT) -> ToolResult:
        start = time.perf_counter()
        result = await self._tool(query)
        seconds = time.perf_counter() - start
        hit = result.cached or (result.cost_usd > 0 and result.paid_usd == 0)
        self._counters.record(result.status, hit, result.cost_usd, result.paid_usd, seconds)
        self._counters.backend_calls += not hit
        return result
