"""The figures of a knowledge edit: each group of questions before, after, and what changed; their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from mmsr1.evaluation.edit.facts import GROUPS, group_of
from mmsr1.evaluation.outcome import Outcome
from mmsr1.evaluation.paired import compare
from mmsr1.evaluation.scorecard import figures_with_intervals

_TITLES = {
    "taught": "the taught facts",
    "same_places": "else about their places",
    "unknown_places": "other unknown places",
    "known_places": "known places",
}
_CHANGES = {"accuracy": "accuracy", "search ratio": "search_ratio"}  # as `compare` and scorecards call them


def grouped(outcomes: Sequence[Outcome], calls_allowed: int) -> dict[str, dict[str, Any]]:
    """The figures of each group that was asked, with their 95 % intervals, clustered by place."""
    return {
        group: figures_with_intervals(ones, calls_allowed)
        for group in GROUPS
        if (ones := [one for one in outcomes if group_of(one.id) == group])
    }


def changes(before: Sequence[Outcome], after: Sequence[Outcome], seed: int) -> dict[str, dict[str, Any]]:
    """After less before, paired by question, with the interval and p of "no change"; nothing for a group of which one
    side was lost to infrastructure."""
    found: dict[str, dict[str, Any]] = {}
    for group in GROUPS:
        was, now = ([one for one in side if group_of(one.id) == group] for side in (before, after))
        try:
            rows = compare(was, now, seed=seed).differences
        except ValueError:
            found[group] = {}
            continue
        found[group] = {
            key: value
            for row in rows
            if (name := _CHANGES.get(row.name))
            for key, value in ((name, row.difference), (f"{name}_ci95", list(row.interval)), (f"{name}_p", row.p))
        }
    return found


def table(summary: Mapping[str, Any]) -> Table:
    """For people: a line a group."""
    facts, steps = len(summary["facts"]), summary["steps"]
    columns = ("", "accuracy", "right, not searched", "search ratio", "change", "95 % interval")
    shown = Table(*columns, title=f"{facts} facts taught to {summary['policy']} in {steps} steps: before, after")
    for group in summary["before"]:
        sides = summary["before"][group], summary["after"][group]
        shares = (
            " to ".join(f"{side[key]:.1%}" if key in side else "-" for side in sides)
            for key in ("accuracy", "right_direct", "search_ratio")
        )
        change = summary["change"][group]
        ends = [f"{end:+.1%}" for end in change.get("search_ratio_ci95", ())]
        by = f"{change['search_ratio']:+.1%}" if change else "-"
        shown.add_row(_TITLES[group], *shares, by, f"[{', '.join(ends)}]" if ends else "-")
    return shown
