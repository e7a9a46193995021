"""The paper's Table 1 with our evaluations beside the published rows: `python -m mmsr1.evaluation.table FOLDER`.

Collects the `summary.json` of every evaluation below FOLDER and writes FOLDER/table1.md. A row is one policy in one
workflow by one metric: figures by a judge and by exact match never stand in the same row, evaluations of one policy
that differ in seed, tools, judge or the like have rows of their own, and nothing is averaged over fewer than the five
benchmarks.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmsr1.assembly.collected import Variant, configuration, told_apart, variant_of, without_figures
from mmsr1.cli import CommandParser, refuse
from mmsr1.data.card import cell
from mmsr1.evaluation import benchmarks
from mmsr1.files import write_whole
from mmsr1.run_directory import RunDirectory

FILE = "table1.md"
BENCHMARKS = ("fvqa_test", "infoseek", "mmsearch", "simplevqa", "livevqa")
_WORKFLOWS = ("direct", "rag", "on_demand")
# Metrics of their own, by how their figures begin; a row of the second table each.
_OWN = ("mmsearch_", "slidevqa_", "mmlongbench_")
_NO_SCORES = ("_ci95", "_attempted")
_LEGEND = """Acc in percent with its 95 % interval and the number of questions, as far as known; SR: calls made in
percent of those allowed. "judge": share that a judge calls right; "em", "subem": exact and substring match, aliases
counted. Compare only rows of one metric, and judges only where they are the same. Rows in bold are ours."""


@dataclass(frozen=True)
class Cell:
    """Shares from 0 to 1; `search_ratio` is calls by calls allowed. None and 0 `questions`: not known."""

    accuracy: float
    search_ratio: float | None = None
    interval: tuple[float, float] | None = None
    questions: int = 0


@dataclass(frozen=True)
class Row:
    """`cells` by the name of the benchmark; a published row has its printed average under `avg`."""

    workflow: str
    policy: str
    metric: str
    cells: Mapping[str, Cell]
    ours: bool = True


def published() -> tuple[list[Row], list[Row]]:
    """The rows of Table 1, and those of further benchmarks."""
    said = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text())
    rows, further = ([_published(row, said["metric"]) for row in said[part]] for part in ("rows", "further"))
    return rows, further


def _published(row: Mapping[str, Any], metric: str) -> Row:
    ratios = row.get("sr")
    ratio = ratios.get if isinstance(ratios, dict) else lambda _: ratios
    cells = {name: Cell(acc / 100, _share(ratio(name))) for name, acc in row["acc"].items()}
    return Row(row["workflow"], row["policy"], row.get("metric", metric), cells, ours=False)


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def table1(ours: Sequence[Row] = ()) -> str:
    """Markdown: the layout of Table 1, then everything that it has no place for, one line a figure."""
    rows, further = published()
    rows = [row for row in [*rows, *ours] if row.cells.keys() & set(BENCHMARKS) and not row.metric.startswith(_OWN)]
    headings = ["Workflow", "Model", "Metric", "Average", *map(_title, BENCHMARKS)]
    lines = [_line([*headings[:3], *(text for name in headings[3:] for text in (name, "SR"))])]
    lines.append(_line(["---"] * 3 + ["---:"] * (2 * len(headings) - 6)))
    for row in sorted(rows, key=_place):
        of_all = [_average(row), *(row.cells.get(name) for name in BENCHMARKS)]
        lines.append(_line([*_whose(row), *(text for one in of_all for text in (_accuracy(one), _ratio(one)))]))
    rest = [
        (name, row, one)
        for row in [*further, *ours]
        for name, one in row.cells.items()
        if name not in BENCHMARKS or row.metric.startswith(_OWN)
    ]
    if rest:
        lines += ["", "## Further benchmarks and metrics", "", _line(["Benchmark", *headings[:3], "Figure", "SR"])]
        lines.append(_line(["---"] * 4 + ["---:"] * 2))
        for name, row, one in sorted(rest, key=lambda found: (found[0], _place(found[1]))):
            lines.append(_line([_title(name), *_whose(row), _accuracy(one), _ratio(one)]))
    return "\n".join(["# Table 1", "", _LEGEND, "", *lines, ""])


def _title(benchmark: str) -> str:
    """As its authors write it, where it is one of the published."""
    known = benchmarks.BENCHMARKS.get(benchmark)
    return cell(known.title if known else benchmark)


def _place(row: Row) -> tuple[int, str, bool]:
    """By workflow as in the paper, published rows first, otherwise as they come."""
    known = row.workflow in _WORKFLOWS
    return (_WORKFLOWS.index(row.workflow) if known else len(_WORKFLOWS), "" if known else row.workflow, row.ours)


def _whose(row: Row) -> list[str]:
    named = f"**{cell(row.policy)}** (ours)" if row.ours else cell(row.policy)
    return [cell(row.workflow), named, cell(row.metric)]


def _average(row: Row) -> Cell | None:
    """As printed, or over all five; the intervals of the five do not make one of their average."""
    if "avg" in row.cells:
        return row.cells["avg"]
    found = [row.cells[name] for name in BENCHMARKS if name in row.cells]
    if len(found) < len(BENCHMARKS):
        return None
    ratios = [one.search_ratio for one in found if one.search_ratio is not None]
    ratio = sum(ratios) / len(ratios) if len(ratios) == len(found) else None
    return Cell(sum(one.accuracy for one in found) / len(found), ratio)


def _accuracy(one: Cell | None) -> str:
    if one is None:
        return "-"
    interval = "" if one.interval is None else " [{:.1f}, {:.1f}]".format(*(100 * end for end in one.interval))
    return f"{100 * one.accuracy:.1f}{interval}" + (f" ({one.questions})" if one.questions else "")


def _ratio(one: Cell | None) -> str:
    return "-" if one is None or one.search_ratio is None else f"{100 * one.search_ratio:.1f}"


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


# ---- evaluations on disk


@dataclass(frozen=True)
class _Found:
    """One evaluation on disk: its cells by metric, what tells it apart, and what a reader of its rows should know."""

    where: str
    workflow: str
    benchmark: str
    cells: Mapping[str, Cell]
    variant: Variant
    doubts: Sequence[str]


def collect(folder: Path) -> tuple[list[Row], list[str]]:
    """The rows of every evaluation below the folder, and what was left out and why, one line each.

    Evaluations of one policy with other settings are rows of their own, which say what differs; of two with the same
    settings the one that was started last counts.
    """
    found: list[_Found] = []
    remarks: list[str] = []
    for file in sorted(folder.rglob("summary.json"), key=_started):
        where = file.parent.relative_to(folder).as_posix()
        try:
            one = _read(file, where)
            found += [] if one is None else [one]
        except (ValueError, KeyError, TypeError, AttributeError, OSError, yaml.YAMLError) as error:
            kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
            remarks.append(f"{where}: left out, {kind}{str(error)[:200]}")
    cells: dict[tuple[str, str, str, str], dict[str, Cell]] = defaultdict(dict)
    for one, differs in zip(found, told_apart([one.variant for one in found]), strict=True):
        key = one.workflow, one.variant.whose, one.variant.name + differs
        remarks += [f"{one.where}: {doubt}" for doubt in one.doubts]
        replaced = [metric for metric in one.cells if one.benchmark in cells[*key, metric]]
        if replaced:
            remarks.append(f"{one.where}: takes the place of an earlier evaluation ({', '.join(replaced)})")
        for metric, figures in one.cells.items():
            cells[*key, metric][one.benchmark] = figures
    return [Row(workflow, policy, metric, those) for (workflow, _, policy, metric), those in cells.items()], remarks


def _read(file: Path, where: str) -> _Found | None:
    """The evaluation of this summary.json; None for a training run. Raises ValueError for one without figures, and
    whatever a damaged file leads to."""
    summary = json.loads(file.read_bytes())
    if "benchmark" not in summary:
        return None
    config = configuration(file.parent)
    match = _match(config)
    workflow, benchmark, cells = str(summary["workflow"]), str(summary["benchmark"]), _cells(summary, match)
    if not cells:
        raise ValueError(without_figures(summary["final"]) or "no question was answered")
    variant = variant_of(summary, config, (workflow, benchmark, match))
    return _Found(where, workflow, benchmark, cells, variant, _doubts(summary))


def _doubts(summary: Mapping[str, Any]) -> list[str]:
    """What a reader of its row should know."""
    said = []
    if summary.get("answered") != summary.get("asked"):
        said.append(f"{summary.get('answered')} of {summary.get('asked')} questions are answered")
    judge = summary.get("judge") or {}
    if judge:
        said.append(f"judged by {judge.get('model')}, prompt {str(judge.get('prompt_hash'))[:12]}")
    for name, what in (("outage", "could not be asked about"), ("unparsed", "said nothing readable of")):
        if rate := judge.get(f"judge_{name}_rate"):
            said.append(f"the judge {what} {100 * rate:.1f} % of the answers: not in its figures")
    return said


def write_table(folder: Path) -> Path:
    """Write `table1.md` into the folder; what was left out stands below the table.

    Raises FileNotFoundError if the folder is not there or holds no evaluation.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give one that holds evaluations")
    rows, remarks = collect(folder)
    if not rows and not remarks:
        raise FileNotFoundError(f"{folder}: no evaluation below it; python evaluate.py makes one")
    notes = "".join(f"- {cell(remark)}\n" for remark in remarks)
    target = folder / FILE
    write_whole(target, (table1(rows) + (f"\n## Remarks\n\n{notes}" if notes else "")).encode("utf-8", "replace"))
    return target


def _cells(summary: Mapping[str, Any], match: str) -> dict[str, Cell]:
    """By metric: what training compares by, the judge, and the benchmark's own figures."""
    final = summary["final"]
    questions = int(final.get("questions", 0))

    def found(key: str) -> Cell | None:
        value, interval = final.get(key), final.get(f"{key}_ci95")
        if not isinstance(value, int | float) or not math.isfinite(value):
            return None
        known = isinstance(interval, list) and len(interval) == 2 and None not in interval
        ends = (float(interval[0]), float(interval[1])) if known else None
        return Cell(float(value), final.get("calls_per_allowed"), ends, questions)

    names = {match: "accuracy", "judge": "score_judge"}
    for key in final:
        name = key.removeprefix("score_")
        if name.startswith(_OWN) and not name.endswith(_NO_SCORES):
            names[name] = f"score_{name}" if f"score_{name}" in final else name  # the former has an interval
    return {name: one for name, key in names.items() if (one := found(key)) is not None}


def _match(config: Mapping[str, Any]) -> str:
    """How the run compares answers as text, by its configuration."""
    return str(config.get("rewards.match", "em")) + ("" if config.get("rewards.aliases", True) else ", no aliases")


def _started(file: Path) -> tuple[str, str]:
    try:
        started = str(RunDirectory(file.parent).read_run().get("started", ""))
    except ValueError:
        started = ""
    return started, str(file)


def main(arguments: Sequence[str]) -> int:
    parser = CommandParser(prog="python -m mmsr1.evaluation.table", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="evaluations below it are collected")
    try:
        target = write_table(parser.parse_args(arguments).folder)
    except OSError as error:
        refuse(str(error))
    sys.stdout.write(f"{target}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
