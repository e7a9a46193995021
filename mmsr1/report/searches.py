"""The table of searches: what each tool, and each part that it is made of, was asked, what failed, cost, and took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEADINGS = ("", "calls", "hits", "failures", "retries", "paid USD", "uncached USD", "mean s", "p50 s", "p99 s")


def search_rows(tools: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The rows of summary.json's `tools` under `HEADINGS`, as text; those that were never called are left out."""
    return [_row(name, figures) for name, figures in tools.items() if figures.get("calls")]


def _row(name: str, figures: Mapping[str, Any]) -> tuple[str, ...]:
    counts = (f"{figures.get(key) or 0:.0f}" for key in ("calls", "hits", "failures", "retries"))
    dollars = (f"{figures.get(key) or 0:.4f}".rstrip("0").rstrip(".") for key in ("paid_usd", "cost_usd"))
    seconds = (_seconds(figures.get("latency_s", {}).get(key)) for key in ("mean", "p50", "p99"))
    return (name.replace("_", " "), *counts, *dollars, *seconds)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"
