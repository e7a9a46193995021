"""What searches over several parts share: the costs and failures of all parts become one result."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from mmsr1.tools.base import Outcome, Part
from mmsr1.tools.guard import describe_bug
from mmsr1.types import ToolItem, ToolResult, ToolStatus

logger = logging.getLogger(__name__)

V = TypeVar("V")
TITLE_CHARACTERS = 300


class Bill:
    """What the parts said in one call of a tool: what it cost, and what kept the result from being whole.

    `lost` and `over_budget` are the first reason of that kind, empty if there is none.
    """

    def __init__(self) -> None:
        self.lost = self.over_budget = ""
        self._cost_usd: list[float] = []
        self._paid_usd: list[float] = []
        self._cached = True

    async def ask(self, part: Part[Any, V], query: Any) -> Outcome[V]:
        """The part's outcome, put on the bill; failed calls cost as well."""
        outcome = await part(query)
        self._cost_usd.append(outcome.cost_usd)
        self._paid_usd.append(outcome.paid_usd)
        self._cached = self._cached and outcome.cached
        if outcome.status == "infrastructure_error":
            self.lost = self.lost or f"{part.name}: {outcome.detail}"
        elif outcome.status == "over_budget":
            self.over_budget = self.over_budget or f"{part.name}: {outcome.detail}"
        return outcome

    def total(self, status: ToolStatus, items: Sequence[ToolItem] = (), detail: str = "") -> ToolResult:
        """The result of that status, with all costs so far."""
        # Parts end in any order; the exact sum does not depend on it.
        cost, paid = math.fsum(self._cost_usd), math.fsum(self._paid_usd)
        whole = not (self.lost or self.over_budget)
        return ToolResult(status, tuple(items), cost, 0.0, self._cached, detail[:200], paid, complete=whole)

    def result(self, items: Sequence[ToolItem]) -> ToolResult:
        """What was found, be it not all that there is. Nothing at all for want of money, or because of infrastructure,
        is no answer."""
        if items:
            return self.total("ok", items, self.over_budget or self.lost)
        if self.over_budget:
            return self.total("over_budget", detail=self.over_budget)
        return self.total("infrastructure_error" if self.lost else "empty", detail=self.lost)


async def settled(search: Callable[[Bill], Coroutine[Any, Any, ToolResult]]) -> ToolResult:
    """The result of a search with its latency; a bug in it becomes a status, and what it had paid stays on the bill."""
    start, bill = time.perf_counter(), Bill()
    try:
        result = await search(bill)
    except Exception as error:
        detail = describe_bug(error)
        logger.warning("search failed: %s", detail)
        bill.lost = bill.lost or detail
        result = bill.total("infrastructure_error", detail=detail)
    return replace(result, latency_s=time.perf_counter() - start)


def is_web(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def shortened(text: str, longest: int) -> str:
    """The text with single spaces, cut to `longest` characters, after a whole word where there is one.

    >>> shortened("a  tower of iron", 9)
    'a tower ...'
    """
    text = text.strip()
    plain = " ".join(text[: 4 * longest].split())  # of a long page no more is split than can be needed
    if len(plain) <= longest and len(text) <= 4 * longest:
        return plain
    cut = plain[: longest + 1].rfind(" ")
    return f"{plain[: cut if cut > longest // 2 else longest]} ..."
