"""Accuracy against what it takes: `python -m mmsr1.report.frontier OUT.png FOLDER [FOLDER ...] [--cost]`.

One point is one run below the folders: an evaluation, or the final validation of a training run. Questions differ
between benchmarks, so that each has a panel of its own, and with it a frontier: the runs that no other run beats, being
at least as accurate for at most the calls. The line is drawn through the points alone; the bars, 95 % intervals of the
accuracy, say how sure they are.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from mmsr1.assembly.collected import Variant, configuration, told_apart, variant_of, without_figures
from mmsr1.cli import CommandParser, refuse
from mmsr1.files import replaced
from mmsr1.report.evaluation_page import interval_of
from mmsr1.report.labels import place_labels
from mmsr1.report.outcomes import OKABE_ITO
from mmsr1.report.settings import Settings
from mmsr1.report.style import COLOURS, STYLE
from mmsr1.report.text import one_line

_MARKERS = {"direct": "o", "rag": "s", "on_demand": "^"}
_KINDS = (".png", ".svg")
_LONGEST = 40  # characters of a policy's name; of a longer one the end tells runs apart
_TOGETHER = 4  # names in the label of one place
# x axes: the figure, and what it is called.
_CALLS = ("calls_per_question", "searches a question")
_COST = ("cost_usd_per_question", "USD a question, nothing cached")


@dataclass(frozen=True)
class Point:
    """One run; `run` is its folder, below the one that was given. `panel` is what it was asked; `costs` are its figures
    for the x axes, as far as they are known."""

    run: str
    panel: str
    policy: str
    workflow: str
    accuracy: float
    interval: tuple[float, float] | None
    costs: Mapping[str, float]


def on_frontier(costs: Sequence[float], accuracies: Sequence[float]) -> list[bool]:
    """Of each run whether none beats it: at most as dear, at least as accurate, and better in one of the two.

    >>> on_frontier([0, 1, 2, 2], [0.5, 0.9, 0.9, 0.95])
    [True, True, False, True]
    """
    runs = list(zip(costs, accuracies, strict=True))
    return [
        not any(cost <= own and accuracy >= reached and (cost, accuracy) != (own, reached) for cost, accuracy in runs)
        for own, reached in runs
    ]


def frontier_line(costs: Sequence[float], accuracies: Sequence[float], end: float) -> list[tuple[float, float]]:
    """Its corners, as far as `end`: more calls can buy no less, so that it goes on to the right of the last point.

    >>> frontier_line([0, 1, 2], [0.5, 0.9, 0.9], 3)
    [(0, 0.5), (1, 0.5), (1, 0.9), (3, 0.9)]
    """
    spots = zip(costs, accuracies, strict=True)
    reached = on_frontier(costs, accuracies)
    first, *rest = sorted({spot for spot, best in zip(spots, reached, strict=True) if best})
    line = [first]
    for x, y in rest:
        line += [(x, line[-1][1]), (x, y)]
    return [*line, (end, line[-1][1])]


def read_points(folders: Sequence[Path], score: str = "accuracy") -> tuple[list[Point], list[str]]:
    """The runs below the folders, each once, and which were left out and why, one line each.

    Raises FileNotFoundError for a folder that is not there.
    """
    places: dict[Path, str] = {}
    for folder in folders:
        for run in _runs(folder):
            inside = run.relative_to(folder) if run != folder and len(folders) == 1 else run
            places.setdefault(run.resolve(), one_line(str(inside)))
    found: list[tuple[Point, Variant]] = []
    remarks: list[str] = []
    for run, place in places.items():
        try:
            found.append(_point(run, place, json.loads((run / "summary.json").read_bytes()), score))
        except (ValueError, KeyError, TypeError, AttributeError, OSError, yaml.YAMLError) as error:
            remarks.append(f"{place}: left out, {' '.join(str(error).split())[:200]}")
    differing = told_apart([variant for _, variant in found])
    named = zip(found, differing, strict=True)
    return [replace(point, policy=one_line(point.policy + differs)) for (point, _), differs in named], remarks


def _runs(folder: Path) -> Iterator[Path]:
    """Folders with a summary.json, in order; what lies inside of one belongs to it."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give a run, or a folder that holds runs")
    for path, below, files in os.walk(folder):
        below.sort()
        if "summary.json" in files:
            below.clear()
            yield Path(path)


def _point(run: Path, place: str, summary: Mapping[str, Any], score: str) -> tuple[Point, Variant]:
    """The run, called `place`, and what tells it apart from others of its name. Raises ValueError, saying what is
    missing, for a run without the figures."""
    final = summary.get("final") or {}
    key = "accuracy" if score == "accuracy" else f"score_{score}"
    accuracy, calls = _number(final, key), _number(final, _CALLS[0])
    if accuracy is None or calls is None:
        lacking = f"summary.json has no {key if accuracy is None else _CALLS[0]} in its final figures"
        raise ValueError(without_figures(final) or lacking)
    cost = _number(final, _COST[0])
    if "benchmark" in summary:
        title, workflow = str(summary.get("title")), str(summary.get("workflow"))
        # Another number is another selection of the questions.
        panel = f"{title}, {final.get('questions', 'some')} questions"
        variant = variant_of(summary, configuration(run), (panel, workflow))
    else:
        panel, workflow = _validation(run), "on_demand"
        variant = Variant(f"{run.parent.name}/{run.name}", str(run), (panel, workflow), {})
    point = Point(
        run=place,
        panel=one_line(panel),
        policy=_short(one_line(variant.name)),
        workflow=one_line(workflow),
        accuracy=accuracy,
        interval=interval_of(final, key),
        costs={_CALLS[0]: calls} | ({_COST[0]: cost} if cost is not None else {}),
    )
    return point, variant


def _validation(run: Path) -> str:
    """Runs that name the same held-out questions stand in one panel."""
    file = run / "config.yaml"
    settings = Settings(file.read_text(encoding="utf-8") if file.is_file() else "")
    asked = settings.get("data.val_path") or settings.get("data.kind") or "questions not known"
    return f"Validation of training: {asked}"


def _number(figures: Mapping[str, Any], key: str) -> float | None:
    value = figures.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"...{name[3 - _LONGEST :]}"


# ---- drawing


def draw_frontier(points: Sequence[Point], out: Path, cost: bool = False, score: str = "accuracy") -> None:
    """Draw the points to `out`, a row a benchmark; with `cost` also against money. Raises ValueError if there are
    none."""
    if not points:
        raise ValueError("no run with figures to draw below the folders; python evaluate.py makes one")
    panels = list(dict.fromkeys(point.panel for point in points))
    policies = list(dict.fromkeys(point.policy for point in points))
    colours = {policy: OKABE_ITO[COLOURS[i % len(COLOURS)]] for i, policy in enumerate(policies)}
    axes_names = (_CALLS, _COST) if cost else (_CALLS,)
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(6.4 * len(axes_names), 4.6 * len(panels) + 0.4), facecolor="white", layout="constrained"
        )
        grid = figure.subplots(len(panels), len(axes_names), squeeze=False)
        drawn = []
        for row, panel in enumerate(panels):
            for column, (name, label) in enumerate(axes_names):
                axes, some = grid[row, column], [one for one in points if one.panel == panel and name in one.costs]
                axes.set_title(panel, loc="left", parse_math=False)
                if some:
                    line = _draw(axes, some, name, colours)
                    axes.set(xlabel=label, ylabel="accuracy" if score == "accuracy" else f"accuracy ({score})")
                    drawn.append((axes, some, name, line))
                else:
                    axes.set_axis_off()
                    axes.text(0.5, 0.5, f"{label}: not known of these runs", transform=axes.transAxes, ha="center")
        _draw_legend(figure, dict.fromkeys(point.workflow for point in points))
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # labels are placed where the axes now are
        for axes, some, name, line in drawn:
            _label(axes, some, name, line, colours)
        with replaced(out) as temporary:
            metadata = {"Date": None} if out.suffix.lower() == ".svg" else None
            figure.savefig(temporary, dpi=160, format=out.suffix.lower()[1:], metadata=metadata)


def _draw(axes: Axes, points: Sequence[Point], name: str, colours: Mapping[str, str]) -> list[tuple[float, float]]:
    """The points with their intervals, and the corners of the frontier's line, which it returns."""
    costs, accuracies = [point.costs[name] for point in points], [point.accuracy for point in points]
    best = on_frontier(costs, accuracies)
    ends = [end for point in points for end in (point.interval or (point.accuracy,))]
    middle, widest = (min(ends) + max(ends)) / 2, max(costs) or 1.0
    room = 0.62 * max(max(ends) - min(ends), 0.2)
    axes.set(xlim=(-0.06 * widest, 1.12 * widest), ylim=(middle - room, middle + room))
    line = frontier_line(costs, accuracies, 1.12 * widest)
    axes.plot(*zip(*line, strict=True), color="#444444", linewidth=1.2, linestyle=(0, (4, 2)), zorder=1)
    for point, x, reached in zip(points, costs, best, strict=True):
        colour = colours[point.policy]
        if point.interval:
            axes.plot((x, x), point.interval, color=colour, linewidth=1.2, alpha=0.55, zorder=2)
        axes.plot(
            x, point.accuracy, _MARKERS.get(point.workflow, "D"), color=colour, markersize=8,
            markerfacecolor=colour if reached else "white", markeredgewidth=1.6, zorder=3,
        )  # fmt: skip
    axes.set_yticks([tick for tick in axes.get_yticks() if -1e-9 <= tick <= 1 + 1e-9 and abs(tick - middle) <= room])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(alpha=0.15)
    return line


def _label(
    axes: Axes, points: Sequence[Point], name: str, line: Sequence[tuple[float, float]], colours: Mapping[str, str]
) -> None:
    """One label a place: runs that agree in both figures share it."""
    places: dict[tuple[float, float], list[Point]] = defaultdict(list)
    called: dict[tuple[float, float], list[str]] = defaultdict(list)
    for point, text in zip(points, _names(points, ", "), strict=True):
        places[point.costs[name], point.accuracy].append(point)
        called[point.costs[name], point.accuracy].append(text)
    texts = []
    for names in called.values():
        more = [f"and {len(names) - _TOGETHER} more"] if len(names) > _TOGETHER else []
        texts.append("\n".join(names[:_TOGETHER] + more))
    bars = [((p.costs[name], p.interval[0]), (p.costs[name], p.interval[1])) for p in points if p.interval]
    own = [colours[some[0].policy] for some in places.values()]
    place_labels(axes, list(places), texts, own, [*bars, *pairwise(line)])


def _names(points: Sequence[Point], between: str) -> list[str]:
    """What each is called; repeats of the same settings by their folders too."""
    repeated = Counter((point.policy, point.workflow) for point in points)
    return [
        between.join([p.policy, p.workflow, *([_short(p.run)] if repeated[p.policy, p.workflow] > 1 else [])])
        for p in points
    ]


def _draw_legend(figure: Figure, workflows: Iterable[str]) -> None:
    marks = [
        Line2D([], [], color="#444444", marker=_MARKERS.get(w, "D"), linestyle="", mfc="white", label=w)
        for w in workflows
    ]
    full = Line2D([], [], color="#444444", marker="o", linestyle="", label="on the frontier")
    bar = Line2D([], [], color="#444444", linewidth=1.2, alpha=0.55, label="95 % interval")
    legend = figure.legend(handles=[*marks, full, bar], loc="outside lower left", ncols=len(marks) + 2)
    for text in legend.get_texts():
        text.set_parse_math(False)


def main(arguments: Sequence[str]) -> int:
    parser = CommandParser(prog="python -m mmsr1.report.frontier", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="the picture to write; .png or .svg")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="a run, or a folder that holds runs")
    parser.add_argument("--cost", action="store_true", help="also against USD a question, nothing cached")
    parser.add_argument("--score", default="accuracy", help="which score says what is right: accuracy, judge, ...")
    given = parser.parse_args(arguments)
    if given.out.suffix.lower() not in _KINDS:
        refuse(f"{given.out}: the name of the picture must end in {' or '.join(_KINDS)}")
    try:
        points, remarks = read_points(given.folders, given.score)
        for line in remarks:
            sys.stderr.write(f"{line}\n")
        draw_frontier(points, given.out, given.cost, given.score)
    except (ValueError, OSError) as error:
        refuse(str(error))
    for panel in dict.fromkeys(point.panel for point in points):
        some = [point for point in points if point.panel == panel]
        best = on_frontier([point.costs[_CALLS[0]] for point in some], [point.accuracy for point in some])
        names = [text for text, reached in zip(_names(some, " "), best, strict=True) if reached]
        sys.stderr.write(f"{panel}: {len(some)} runs, on the frontier: {'; '.join(names)}\n")
    sys.stdout.write(f"{given.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
