"""What became of everything: items by stage, reasons for what was dropped, calls and money, leakage."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Column, Table

from mmsr1.data.construct.building import STAGES
from mmsr1.data.construct.filters import Against
from mmsr1.data.construct.items import REASONS, Dropped, Labelled
from mmsr1.data.construct.stages import stage_file
from mmsr1.tools.ledger import read_totals


def report(
    folder: Path, drops: Sequence[Dropped], rows: Sequence[Labelled] | None, files: Sequence[Against], left: str | None
) -> dict[str, Any]:
    """Everything as JSON; `rows` None where the construction is not finished, and `left` says why."""
    kept = {name: _lines(stage_file(folder, number, name)) for number, name in enumerate(STAGES, 1)}
    dropped: dict[str, Counter[str]] = defaultdict(Counter)
    for one in drops:
        dropped[one.stage][one.reason] += 1
    return {
        "status": "unfinished" if rows is None else "finished",
        "left": left,
        "kept": kept,
        "dropped": {name: dict(dropped[name]) for name in STAGES if name in dropped},
        "questions": None if rows is None else len(rows),
        "origin": dict(Counter(row.origin for row in rows or ())),
        "taxonomy": dict(Counter(row.taxonomy or "none" for row in rows or ())),
        "leakage": leakage(drops, files),
        "costs": costs(folder / "ledger"),
    }


def leakage(drops: Iterable[Dropped], files: Sequence[Against]) -> list[dict[str, Any]]:
    """What of each file of `against` was met and kept out."""
    met = Counter((one.reason, file.path) for one in drops for file in files if one.detail.startswith(f"{file.path}: "))
    reasons = ("test_picture", "test_question")
    return [{**vars(file), **{reason: met[reason, file.path] for reason in reasons}} for file in files]


def costs(ledger: Path) -> dict[str, dict[str, float]]:
    """Calls and USD by part over all processes that worked here; a call whose end is not known costs its price.

    Raises ValueError for a ledger that is damaged.
    """
    read_totals(ledger)
    found: dict[str, dict[str, float]] = {}
    for file in sorted(ledger.glob("*.jsonl")):
        open_calls: dict[str, tuple[str, float]] = {}
        *lines, _unfinished = file.read_text(encoding="ascii").split("\n")
        for row in map(json.loads, lines):
            if row["state"] == "started":
                open_calls[row["id"]] = row["tool"], row["cost_usd"]
                continue
            tool, _ = open_calls.pop(row["id"])
            _add(found, tool, row["state"], row["cost_usd"])
        for tool, price_usd in open_calls.values():
            _add(found, tool, "unknown", price_usd)
    return found


def stage_table(told: Mapping[str, Any]) -> Table:
    """A line for each stage: how many items passed, and why how many did not."""
    table = Table(Column("stage"), Column("kept", justify="right"), Column("dropped"), box=box.SIMPLE_HEAD)
    for name in STAGES:
        reasons = told["dropped"].get(name, {})
        listed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items(), key=lambda one: -one[1]))
        table.add_row(name, str(told["kept"][name]), listed)
    return table


def card_facts(told: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What a data set card says of how the set was made."""
    reasons = Counter({reason: 0 for reason in REASONS})
    for by_reason in told["dropped"].values():
        reasons.update(by_reason)
    return {
        "made by": "python -m mmsr1.data.construct",
        **config,
        "dropped": {REASONS.get(reason, reason): count for reason, count in reasons.most_common() if count},
        "leakage": told["leakage"],
        "cost": {"usd": round(sum(part["usd"] for part in told["costs"].values()), 4), "by part": told["costs"]},
    }


def _lines(path: Path) -> int:
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(line.endswith(b"\n") for line in file)


def _add(found: dict[str, dict[str, float]], tool: str, state: str, usd: float) -> None:
    row = found.setdefault(tool, {"answered": 0, "failed": 0, "unknown": 0, "usd": 0.0})
    row[state] += 1
    row["usd"] += usd
