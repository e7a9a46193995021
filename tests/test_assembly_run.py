"""What a run says and sums up about its searches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmsr1.assembly.run import price_remarks, run_record
from mmsr1.report.searches import tool_table
from mmsr1.run_directory import RunDirectory
from mmsr1.tools.meter import Meter
from mmsr1.tools.metered import Metered
from mmsr1.types import ToolResult
from tests.rollout.conversation import MemoryTool
from tests.test_config import shipped

WEB = ("tools=web", "tools.summarizer.url=http://h:1")


@pytest.mark.parametrize(
    ("overrides", "remarked"),
    [
        (("tools.summarizer.key_env=MY_KEY",), 1),
        (("tools.summarizer.key_env=MY_KEY", "tools.summarizer.price_usd=0.001"), 0),
        (("tools.summarizer.key_env=MY_KEY", "tools.budget.usd_per_run=null"), 0),
        ((), 0),
    ],
)
def test_summaries_that_no_limit_sees_are_remarked_on(overrides: Sequence[str], remarked: int) -> None:
    lines = [*price_remarks(shipped(*WEB, *overrides))]
    assert len(lines) == remarked and all(line.startswith("tools.summarizer.price_usd=null: ") for line in lines)


@pytest.mark.parametrize(
    ("result", "hits"),
    [
        (ToolResult("ok", cost_usd=0.01, paid_usd=0.0, complete=False), 1),  # a free thumbnail was asked for, in vain
        (ToolResult("ok", cost_usd=0.02, paid_usd=0.01), 0),
        (ToolResult("ok"), 0),  # nothing has a price here: what counts is whether anybody was asked
        (ToolResult("ok", cached=True), 1),
        (ToolResult("infrastructure_error", cost_usd=0.01), 0),
    ],
)
def test_a_hit_of_a_tool_paid_nothing_for_what_has_a_price(result: ToolResult, hits: int) -> None:
    meter = Meter()
    asyncio.run(Metered(MemoryTool("image_search", result), meter)("query"))
    row = meter.rows()["image_search"]
    assert (row["calls"], row["hits"]) == (1, hits)


def test_what_a_rehearsal_made_go_wrong_stands_in_the_tools_own_row(tmp_path: Path) -> None:
    record = run_record(shipped(), RunDirectory(tmp_path), Progress())
    record.tools = {
        "image_search": {"calls": 5, "hits": 5, "failures": 1, "failures/infrastructure_error": 1},
        "text_search": {"calls": 3},
        "image_search_rehearsal": {"attempts": 9, "retries": 4, "failures/transient": 3, "failures/throttled": 2},
        "serpapi": {"calls": 2, "attempts": 3, "failures/transient": 1, "failures/over_budget": 1},
    }
    table = tool_table(record.tools)
    assert [table["image_search"][key] for key in ("calls", "failures", "attempts", "retries", "faults")] == [
        5,
        1,
        9,
        4,
        5,
    ]
    assert [table["text_search"][key] for key in ("attempts", "faults")] == [0, 0]
    assert [table["serpapi"][key] for key in ("attempts", "faults")] == [3, 1]


class Progress:
    def begin(self, phase: str, total: int) -> None: ...
    def advance(self) -> None: ...
    def show(self, split: str, step: int, figures: Any) -> None: ...
    def say(self, text: str) -> None: ...
