"""A part of which a test says what it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from mmsr1.tools.base import Outcome


class ScriptedPart:
    """`Part[Any, Any]`: answers by a function of the query, after as many turns of the event loop as `wait` says."""

    def __init__(
        self,
        name: str,
        answer: Callable[[Any], Outcome[Any]],
        price: float = 0.0,
        wait: Callable[[Any], int] = lambda _: 1,
    ) -> None:
        self.name, self.backend, self.price_usd = name, f"{name}:v1", price
        self.asked: list[Any] = []
        self.most_at_a_time = self._running = 0
        self._answer, self._wait = answer, wait

    async def __call__(self, query: Any) -> Outcome[Any]:
        self.asked.append(query)
        self._running += 1
        self.most_at_a_time = max(self.most_at_a_time, self._running)
        try:
            for _ in range(self._wait(query)):
                await asyncio.sleep(0)
            return self._answer(query)
        finally:
            self._running -= 1


def ok(value: Any, cost: float = 0.0, cached: bool = False) -> Outcome[Any]:
    return Outcome("ok", value, cost, 0.0 if cached else cost, cached)


def lost(cost: float = 0.0) -> Outcome[Any]:
    return Outcome("infrastructure_error", None, 0.0, cost, detail="transient: no answer")


def over() -> Outcome[Any]:
    return Outcome("over_budget", detail="tools.budget.usd_per_run=1: spent")
