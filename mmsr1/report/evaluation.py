"""An evaluation for people: its table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmsr1.report.searches import search_remarks, search_table

# key, label, whether it is a share (printed in percent)
FINAL = (
    ("accuracy", "accuracy", True),
    ("accuracy_free", "  where no search is needed", True),
    ("accuracy_required", "  where a search is needed", True),
    ("score_judge", "accuracy by the judge", True),
    ("search_ratio", "search ratio", True),
    ("search_ratio_free", "  where no search is needed", True),
    ("search_ratio_required", "  where a search is needed", True),
    ("calls_per_question", "calls per question", False),
    ("calls_per_allowed", "calls per call allowed (the paper's SR)", True),
    ("image_only", "image search alone", True),
    ("text_only", "text search alone", True),
    ("mixed", "both", True),
    ("right_searched", "right, searched", True),
    ("right_direct", "right, not searched", True),
    ("wrong_searched", "wrong, searched", True),
    ("wrong_direct", "wrong, not searched", True),
    ("reward", "reward", False),
    ("cost_usd_per_question", "USD of searches a question, nothing cached", False),
    ("tokens_per_question", "tokens a question", False),
    ("seconds_median", "seconds a question, median", False),
    ("seconds_p95", "seconds a question, 95th percentile", False),
    ("tool_failure_rate", "searches that failed", True),
    ("failed_share", "episodes lost", True),
)
BRANCHES = (
    ("over_search", "over-search: searched where no search is needed", True),
    ("under_search", "under-search: did not where one is needed", True),
    ("search_auc", "how well searching follows need (AUC)", False),
    ("search_value", "what the best search adds", True),
    ("regret", "regret against the best way of each question", False),
    ("label_agreement", "agreement with the true need", True),
)


def show(summary: Mapping[str, Any], run: Path) -> None:
    """The scorecard, and where everything is; to standard error, as progress is."""
    console = Console(stderr=True)
    title = f"{summary['title']}, {summary['workflow']}, {summary['policy']}"
    table = Table("", "", "95 % interval", title=Text(title))
    for row in (*rows(summary["final"], FINAL), *rows(summary["counterfactual"], BRANCHES)):
        table.add_row(*row)
    console.print(table)
    if (searched := search_table(summary["tools"])) is not None:
        console.print(searched)
    for line in (*search_remarks(summary["tools"]), *remarks(summary)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    said = f"evaluation: {run}\nreport: {run}/report.html\nscorecard: {run}/summary.json"
    console.print(said, highlight=False, markup=False, soft_wrap=True)


def rows(figures: Mapping[str, Any], names: tuple[tuple[str, str, bool], ...]) -> list[tuple[str, str, str]]:
    """Label, figure and interval of what is there."""
    found = []
    for key, label, share in names:
        if (value := figures.get(key)) is not None:
            ends = [_text(end, share) for end in figures.get(f"{key}_ci95") or () if end is not None]
            found.append((label, _text(value, share), f"[{', '.join(ends)}]" if ends else ""))
    return found


def remarks(summary: Mapping[str, Any]) -> list[str]:
    """What is missing, and how it is had."""
    found = []
    if (missing := summary["asked"] - summary["answered"]) > 0:
        found.append(f"{missing} of {summary['asked']} questions have no answer that counts; resume= asks them again")
    final = summary["final"]
    if final.get("episodes") and not final["questions"]:
        found.append("no episode counts, so that nothing can be said about the policy")
    if missing := summary.get("branches_missing"):
        found.append(f"{missing} of {summary['asked']} questions have no forced ways that count")
    if aside := summary.get("set_aside"):
        why = "are damaged, or of rows that were changed since"
        found.append(f"{aside} lines of earlier answers {why}: they are in eval.before.jsonl and count nowhere")
    if outage := summary["judge"].get("judge_outage_rate"):
        told = f"the judge could not be asked about {outage:.1%} of the answers"
        found.append(f"{told}; its figures wait for resume=, which asks it again")
    return found


def _text(value: float, share: bool) -> str:
    return f"{value:.1%}" if share else f"{value:.3g}"
