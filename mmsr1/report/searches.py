"""The table of searches: what each tool, and each part that it is made of, was asked, what failed, cost, and took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from rich import box
from rich.table import Column, Table

from mmsr1.tools import meter
from mmsr1.tools.bundle.replay import MISSED
from mmsr1.tools.faults import rehearsal_of
from mmsr1.types import ToolStatus

HEADINGS = ("", "calls", "hits", "failed", "tries", "faults", "paid USD", "uncached USD", "p50 s", "p99 s")
TOOLS = ("image_search", "text_search")  # what episodes ask; the other rows are the parts behind them
_COUNTS = ("calls", "hits", "failures", "attempts", "faults")
_DOLLARS = ("paid_usd", "cost_usd")

Rows = Mapping[str, Mapping[str, Any]]


def tool_table(rows: Mapping[str, meter.Row]) -> dict[str, dict[str, Any]]:
    """What each tool and part did, of their rows of figures; latencies in seconds.

    `faults` are attempts that failed. The attempts that a rehearsal made at a tool count in the tool's own row too.
    """
    return {name: _tool_figures(row, rows.get(rehearsal_of(name), {})) for name, row in rows.items()}


def _tool_figures(own: meter.Row, rehearsed: meter.Row) -> dict[str, Any]:
    tried = {key: own.get(key, 0) + rehearsed.get(key, 0) for key in ("attempts", "retries")}
    faults = sum(
        count
        for row in (own, rehearsed)
        for key, count in row.items()
        if key.startswith("failures/") and key.removeprefix("failures/") not in (*get_args(ToolStatus), MISSED)
    )
    row = {**own, **tried, "faults": faults}
    sums = {key: value for key, value in row.items() if not key.startswith("latency")}
    latency = {"mean": meter.mean(row), "p50": meter.quantile(row, 0.5), "p99": meter.quantile(row, 0.99)}
    return {**sums, "latency_s": latency}


def search_rows(tools: Rows) -> list[tuple[str, ...]]:
    """The rows of summary.json's `tools` under `HEADINGS`, as text; those that were never called are left out. Where
    both tools were, the last one is their total: what they cost is what their parts cost, and counts once."""
    rows = [_row(name, figures) for name, figures in tools.items() if figures.get("calls")]
    called = [tools[name] for name in TOOLS if tools.get(name, {}).get("calls")]
    if len(called) > 1:
        sums = {key: sum(figures.get(key) or 0 for figures in called) for key in (*_COUNTS, *_DOLLARS)}
        # Tools that are made of parts ask nobody themselves.
        again = set(map(rehearsal_of, TOOLS))  # what they tried stands in the tools' own rows too
        asking = [figures for name, figures in tools.items() if name not in again]
        sums |= {key: sum(figures.get(key) or 0 for figures in asking) for key in ("attempts", "faults")}
        rows.append(_row("total", sums))
    return rows


def search_table(tools: Rows) -> Table | None:
    """The same for a terminal of 80 columns; None if nobody searched."""
    rows = search_rows(tools)
    if not rows:
        return None
    # Units below, a space between, and long names fold between words, never numbers.
    units = [Column(text.replace(" ", "\n"), justify="right", no_wrap=True) for text in HEADINGS[1:]]
    table = Table(Column("search", min_width=12), *units, box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for row in rows:
        table.add_row(*row)
    return table


def search_remarks(tools: Rows) -> Iterator[str]:
    """What the table alone does not make plain."""
    for name in TOOLS:
        row = tools.get(f"{name}_bundle", {})
        if missed := row.get(f"failures/{MISSED}"):
            yield f"{missed:.0f} of {row['calls']:.0f} calls of {name} were not in the bundle, and found nothing"
    thumbnails = tools.get("thumbnail", {})
    tried, failed = thumbnails.get("calls") or 0, thumbnails.get("failures") or 0
    if tried and failed == tried:
        yield (
            f"no thumbnail could be had: {failed:.0f} of {tried:.0f} failed; tools.thumbnail_hosts names the hosts "
            "that are asked, tools.thumbnails=0 asks for none"
        )


def _row(name: str, figures: Mapping[str, Any]) -> tuple[str, ...]:
    counts = (f"{figures.get(key) or 0:.0f}" for key in _COUNTS)
    dollars = (f"{figures.get(key) or 0:.4f}".rstrip("0").rstrip(".") for key in _DOLLARS)
    seconds = (_seconds(figures.get("latency_s", {}).get(key)) for key in ("p50", "p99"))
    return (name.replace("_", " "), *counts, *dollars, *seconds)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"
