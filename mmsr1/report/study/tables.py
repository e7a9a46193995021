"""The tables of a study, as rows of text: the page and the Markdown show the same; and its two files of numbers."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmsr1.report.boundary import Boundary, Estimate
from mmsr1.report.page import duration
from mmsr1.report.study import compared
from mmsr1.report.study.compared import UNBOUNDED, Test, estimate
from mmsr1.report.study.runs import Arm, Gap, Study
from mmsr1.report.text import one_line

FINAL = (
    ("reward", "reward"),
    ("accuracy", "accuracy"),
    ("search_ratio", "search ratio"),
    ("search_ratio_free", "where none is needed"),
    ("search_ratio_required", "where one is needed"),
    ("calls_per_question", "calls a question"),
)
BEHAVIOUR = (
    ("right_direct", "right, not searched"),
    ("right_searched", "right, searched"),
    ("wrong_searched", "wrong, searched"),
    ("wrong_direct", "wrong, not searched"),
)
DYNAMICS = (
    *("reward", "accuracy", "search_ratio", "search_ratio_free", "search_ratio_required"),
    *("calls_per_question", "format"),
)


# What Markdown would read as more than text; names like penalty_0.1 and intervals stay readable.
_MARKUP = re.compile(r"[\\\\|`*<&~$]|](?=[(\[:])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


@dataclass(frozen=True)
class Table:
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def final(arms: Sequence[Arm], names: Sequence[tuple[str, str]] = FINAL) -> Table:
    headings = ("arm", "seeds", *(label for _, label in names))
    rows = ((arm.name, f"{len(arm.runs)} of {arm.jobs}", *(_cell(arm, key) for key, _ in names)) for arm in arms)
    return Table(headings, tuple(rows))


def _cell(arm: Arm, key: str) -> str:
    found = estimate(arm, key)
    if found is None:
        return "-"
    text = figure(found.value, key)
    if found.interval is None:
        return text
    ends = [figure(end, key).removesuffix(" %") for end in found.interval]
    return f"{text} [{ends[0]}, {ends[1]}]" + ("" if found.over_seeds else " (one run)")


def figure(value: float, key: str) -> str:
    return f"{value:.3f}" if key in UNBOUNDED else f"{100 * value:.1f} %"


def tests(found: Sequence[Test]) -> Table:
    headings = ("arm", "figure", "difference", "95 % over seeds", "p", "p, Holm", "seeds", "questions")
    rows = (
        (
            one.arm, one.figure, f"{one.difference:+.3f}",
            f"[{one.interval[0]:+.3f}, {one.interval[1]:+.3f}]" if one.interval else "-",
            _p(one.p), _p(one.p_holm), str(one.seeds), str(one.questions),
        )
        for one in found
    )  # fmt: skip
    return Table(headings, tuple(rows))


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def differing(study: Study) -> Table:
    return Table(
        ("key", *(arm.name for arm in study.arms)), tuple((key, *row) for key, row in compared.differing(study))
    )


def spent(arms: Sequence[Arm]) -> Table:
    headings = ("arm", "runs", "wall time", "wall time a run", "paid, USD", "USD with nothing cached")
    rows = []
    for arm in arms:
        sums, runs = compared.spent(arm), len(arm.runs)
        seconds = sums["wall_seconds"]
        times = ("not known",) * 2 if seconds is None else (duration(seconds), duration(seconds / runs))
        costs = ("not known" if c is None else f"{c:.2f}" for c in (sums["cost_usd"], sums["cost_usd_uncached"]))
        rows.append((arm.name, str(runs), *times, *costs))
    return Table(headings, tuple(rows))


def gaps(found: Sequence[Gap]) -> Table:
    rows = ((gap.arm, _seed(gap.seed), gap.status, gap.reason, gap.folder.name) for gap in found)
    return Table(("arm", "seed", "status", "reason", "folder"), tuple(rows))


def _seed(seed: int | None) -> str:
    return "-" if seed is None else str(seed)


def boundary(found: Mapping[str, Boundary]) -> Table:
    headings = ("arm", "predicted switch", "learned switch", "learned less predicted", "of each seed", "questions")
    rows = []
    for name, one in found.items():
        learned = _estimate(one.learned, "") + (" (hardly depends on p)" if one.flat else "")
        predicted = _estimate(one.predicted, "") if one.predicted else "no fixed price"
        apart = f"{_bound(one.learned.value)}{_estimate(one.difference, '+')}" if one.difference else "-"
        asked = f"{one.questions} ({one.places} places, {len(one.by_seed)} seeds)"
        rows.append((name, predicted, learned, apart, ", ".join(map(_switch, one.by_seed)), asked))
    return Table(headings, tuple(rows))


def _estimate(found: Estimate, sign: str) -> str:
    if sign:
        return f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
    return f"{_switch(found.value)} [{_switch(found.low)}, {_switch(found.high)}]"


def _switch(value: float) -> str:
    return f"{_bound(value)}{value:.0f}" if _bound(value) else f"{value:.2f}"


def _bound(switch: float) -> str:
    """Of policies that always, or never, search at any p nothing but a limit is known."""
    return ">= " if switch >= 1 else "<= " if switch <= 0 else ""


# ---- files


def results_csv(study: Study) -> bytes:
    """A line a run, gaps too."""
    keys = dict.fromkeys(key for key, _ in (*FINAL, *BEHAVIOUR))
    keys |= dict.fromkeys(("accuracy_free", "accuracy_required", "format", "calls_per_allowed"))
    head = [part for key in keys for part in (key, f"{key}_low", f"{key}_high")]
    more = ("steps", "wall_seconds", "cost_usd", "cost_usd_uncached", "git_commit")
    lines: list[Sequence[Any]] = [("arm", "seed", "status", *head, *more)]
    for run in study.runs:
        figures = [part for key in keys for part in (run.final.get(key), *_ends(run.final.get(f"{key}_ci95")))]
        told = [run.summary.get("steps"), run.run.get("wall_seconds")]
        told += [run.summary.get("cost_usd"), run.summary.get("cost_usd_uncached"), compared.commit_of(run)]
        lines.append((run.arm, run.seed, "finished", *figures, *told))
    lines += [(gap.arm, gap.seed, gap.status, *[""] * (len(head) + len(more))) for gap in study.gaps]
    return _csv(lines)


def _ends(interval: Any) -> tuple[Any, Any]:
    return (interval[0], interval[1]) if isinstance(interval, list) and len(interval) == 2 else (None, None)


def dynamics_csv(study: Study) -> bytes:
    lines: list[Sequence[Any]] = [("arm", "seed", "split", "step", *DYNAMICS)]
    for run in study.runs:
        shown = (row for row in run.metrics if any(key in row for key in DYNAMICS))
        lines += [(run.arm, run.seed, row["split"], row["step"], *(row.get(key) for key in DYNAMICS)) for row in shown]
    return _csv(lines)


def _csv(lines: Iterable[Sequence[Any]]) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for line in lines:
        writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in line])
    return stream.getvalue().encode("utf-8", "replace")


def markdown(table: Table) -> str:
    lines = [table.headings, ("---",) * len(table.headings), *table.rows]
    return "\n".join("| " + " | ".join(map(plain, line)) + " |" for line in lines) + "\n"


def plain(text: str) -> str:
    """In one line, as text: nothing in it becomes a cell, a tag, a link or emphasis."""
    return _MARKUP.sub(r"\\\g<0>", one_line(text))


def paragraph(text: str) -> str:
    """The same where a line begins, which makes headings and lists of some characters."""
    return re.sub(r"^(?=[#>+=-])|^(\d+)(?=[.)]\s)", r"\1\\", plain(text))
