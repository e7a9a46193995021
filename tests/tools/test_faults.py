"""Faults on purpose: the share that was asked for, the same in every run, and never an answer that is none."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from PIL import Image

from mmsr1.tools.base import CallFailed, Outcome
from mmsr1.tools.breaker import Breaker
from mmsr1.tools.faults import KINDS, Asked, FaultSpec, Faulty, Rehearsed, checked
from mmsr1.tools.guard import CallPolicy, Guarded
from mmsr1.tools.pictures import encode_png
from mmsr1.types import Picture, ToolItem, ToolName, ToolResult

THUMBNAIL = encode_png(Image.new("RGB", (40, 30), "teal"))
FOUND = ToolResult("ok", (ToolItem("a title", "text", "https://a.example", THUMBNAIL),), cost_usd=0.01)


class Steady:
    """A tool that always answers alike."""

    name: ToolName = "text_search"
    backend = "steady"
    price_usd = 0.01

    def __init__(self, result: Any = FOUND) -> None:
        self.result, self.asked = result, 0

    async def __call__(self, query: str) -> ToolResult:
        self.asked += 1
        return self.result


def attempts(spec: FaultSpec, queries: int, each: int = 4, seed: int = 0, result: Any = FOUND) -> list[str]:
    """What becomes of `each` attempts at every query: "ok" or the cause of the failure with its detail."""

    async def run() -> list[str]:
        faulty, said = Faulty(Steady(result), spec, seed), []
        for number in range(queries):
            asked = Asked(f"query {number}")
            for _ in range(each):
                try:
                    answer = await faulty.ask(asked)
                    assert answer.value == result
                    said.append("ok")
                except CallFailed as failure:
                    said.append(str(failure))
        return said

    return asyncio.run(run())


def test_the_share_of_the_attempts_fails_in_all_the_ways_there_are() -> None:
    said = Counter(attempts(FaultSpec(share=0.3, timeout_s=0.0), queries=1000))
    assert abs(1 - said["ok"] / 4000 - 0.3) < 0.03
    del said["ok"]
    ways = {name: sum(n for text, n in said.items() if mark in text) for name, mark in WAYS.items()}
    assert ways.keys() == set(KINDS) and sum(ways.values()) == said.total()
    assert all(n / said.total() > 0.1 for n in ways.values()), ways


WAYS = {
    "timeout": "timeout",
    "lost": "lost",
    "unavailable": "unavailable",
    "throttled": "throttled",
    "garbage": "of type str",
    "truncated": "thumbnail that cannot be decoded",
}


def test_what_fails_depends_on_seed_query_and_attempt_only() -> None:
    spec = FaultSpec(share=0.5, timeout_s=0.0)
    first = attempts(spec, queries=50)
    assert attempts(spec, queries=50) == first
    assert attempts(spec, queries=50, seed=1) != first
    tries = [tuple(first[4 * i : 4 * i + 4]) for i in range(50)]
    assert len(set(tries)) > 20 and any(len(set(four)) > 1 for four in tries)


def test_a_throttled_attempt_says_how_long_to_wait() -> None:
    async def run() -> list[float | None]:
        faulty, waits = Faulty(Steady(), FaultSpec(share=1.0, timeout_s=0.001), 0), []
        for number in range(60):
            with pytest.raises(CallFailed) as caught:
                await faulty.ask(Asked(str(number)))
            if caught.value.cause == "throttled":
                waits.append(caught.value.retry_after_s)
        return waits

    waits = asyncio.run(run())
    assert waits and set(waits) == {0.001}


def rehearsed(tool: Steady, spec: FaultSpec, attempts: int = 4) -> Rehearsed[str]:
    policy = CallPolicy(attempts, timeout_s=10, deadline_s=60, rate_per_s=1e6, concurrent=1000, backoff_s=0.0)
    return Rehearsed(tool, spec, 0, lambda backend: Guarded(backend, policy, Breaker(20)))


def test_retries_get_through_a_bad_day() -> None:
    async def run() -> list[ToolResult]:
        tool = rehearsed(Steady(), FaultSpec(share=0.3, timeout_s=0.0))
        return [await tool(f"query {number}") for number in range(300)]

    said = Counter(result.status for result in asyncio.run(run()))
    assert said.keys() <= {"ok", "infrastructure_error"}
    assert said["infrastructure_error"] <= 9  # 0.3^4 of 300 are 2.4


def test_the_rollouts_of_a_question_do_not_all_fail_alike() -> None:
    async def run() -> list[ToolResult]:
        tool = rehearsed(Steady(), FaultSpec(share=0.5, timeout_s=0.0), attempts=1)
        return [await tool("the same") for _ in range(40)]

    statuses = [[result.status for result in asyncio.run(run())] for _ in range(2)]
    assert statuses[0] == statuses[1] and 8 < statuses[0].count("ok") < 32


def test_in_an_outage_every_call_fails_and_nobody_is_asked() -> None:
    steady = Steady()

    async def run() -> list[ToolResult]:
        tool = rehearsed(steady, FaultSpec(outage=True, timeout_s=0.0))
        return await asyncio.gather(*(tool(f"query {number}") for number in range(30)))

    for result in asyncio.run(run()):
        assert (result.status, result.items, result.cost_usd) == ("infrastructure_error", (), 0.0)
    assert steady.asked == 0


@pytest.mark.parametrize("status", ["infrastructure_error", "empty", "malformed_call", "over_budget"])
def test_what_the_tool_says_itself_comes_through(status: Any) -> None:
    steady = Steady(ToolResult(status, cost_usd=0.5, detail="its own"))
    result = asyncio.run(rehearsed(steady, FaultSpec(latency_s=1e-6))("query"))
    assert (result.status, result.cost_usd, result.detail) == (status, 0.5, "its own")
    assert steady.asked == 1 and result.latency_s > 0


def test_a_rehearsed_tool_is_the_tool_to_whoever_names_or_prices_it() -> None:
    tool, inner = rehearsed(Steady(), FaultSpec(share=0.3)), Steady()
    assert (tool.name, tool.backend, tool.price_usd) == (inner.name, inner.backend, inner.price_usd)


class Looks:
    """Like a result to whoever does not look closely."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


@pytest.mark.parametrize("answer", [None, "text", {"status": "ok"}, Looks(status="ok", items=())])
def test_what_is_no_result_is_broken(answer: object) -> None:
    with pytest.raises(CallFailed, match="broken"):
        checked(answer)


def test_a_thumbnail_that_is_cut_short_is_broken_and_a_whole_one_is_not() -> None:
    cut = Picture(THUMBNAIL.data[:-30])
    assert checked(FOUND) is FOUND
    with pytest.raises(CallFailed, match="broken: a thumbnail"):
        checked(ToolResult("ok", (ToolItem("a title", thumbnail=cut),)))


def test_an_unexpected_outcome_of_the_guard_keeps_its_status() -> None:
    class OverBudget:
        name, backend, price_usd = "x", "x", 0.0

        async def __call__(self, query: Any) -> Outcome[ToolResult]:
            return Outcome("over_budget", detail="spent")

    tool: Rehearsed[str] = Rehearsed(Steady(), FaultSpec(share=0.1), 0, lambda backend: OverBudget())
    result = asyncio.run(tool("query"))
    assert (result.status, result.detail) == ("over_budget", "spent")
