"""The figures of where each arm ended: final figures, behaviour, and accuracy against calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from mmsr1.report.frontier import frontier_line, on_frontier
from mmsr1.report.labels import place_labels
from mmsr1.report.outcomes import DIRECT, DIRECT_WRONG, OKABE_ITO, SEARCHED, SEARCHED_WRONG
from mmsr1.report.study.compared import Estimate, estimate
from mmsr1.report.study.figures import WIDTH, Marks, percent, settle, shown
from mmsr1.report.study.runs import Arm
from mmsr1.report.style import INK, STYLE, Mark

_BESIDE = "#8c8c8c"
_Bar = tuple[tuple[float, float], tuple[float, float]]

_FINAL = (
    ("accuracy", "accuracy", "o", 0.0),
    ("search_ratio_free", "no search needed", "s", 0.24),
    ("search_ratio", "all questions", "o", 0.0),
    ("search_ratio_required", "search needed", "^", -0.24),
)
_BEHAVIOURS = (
    ("right_direct", DIRECT, ""),
    ("right_searched", SEARCHED, "//"),
    ("wrong_searched", SEARCHED_WRONG, "\\\\"),
    ("wrong_direct", DIRECT_WRONG, ".."),
)


def _rows(arms: Sequence[Arm], panels: int, height: float, ratios: Sequence[float]) -> tuple[Figure, Any]:
    """A row an arm, the first on top."""
    figure = Figure(figsize=(WIDTH, 1.3 + height * len(arms)), layout="constrained")
    grid = figure.subplots(1, panels, sharey=True, squeeze=False, width_ratios=list(ratios))[0]
    grid[0].set_yticks(range(len(arms)), [shown(arm.name) for arm in arms])
    grid[0].set_ylim(len(arms) - 0.5, -0.5)
    for axes in grid:
        axes.tick_params(axis="y", length=0)
        percent(axes.xaxis)
    return figure, grid


def draw_final(arms: Sequence[Arm], marks: Marks) -> Figure:
    with matplotlib.rc_context(STYLE):
        figure, (left, right) = _rows(arms, 2, 0.42, (2, 3))
        for key, label, marker, up in _FINAL:
            axes = left if key == "accuracy" else right
            for row, arm in enumerate(arms):
                _draw_estimate(axes, arm, key, row - up, marker, marks[arm.name].colour)
            if axes is right:
                axes.plot([], [], marker, color=INK, markersize=6, linestyle="", label=label)
        ends = [end for arm in arms if (found := estimate(arm, "accuracy")) for end in _ends(found)]
        low, high = min(ends, default=0.0), max(ends, default=1.0)
        left.set(xlim=(max(-0.02, low - 0.05), min(1.03, high + 0.05)))
        right.set(xlim=(-0.03, 1.03))
        for axes, title in ((left, "accuracy"), (right, "search ratio")):
            axes.set_title(title, loc="left")
            axes.set_xticks([tick for tick in axes.get_xticks() if -1e-9 <= tick <= 1 + 1e-9])
            axes.grid(axis="x", alpha=0.2)
            for row in range(len(arms) - 1):
                axes.axhline(row + 0.5, color=INK, alpha=0.12, linewidth=0.8)
        figure.legend(*right.get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return figure


def _ends(found: Any) -> tuple[float, ...]:
    return (*(found.interval or ()), *found.values)


def _draw_estimate(axes: Axes, arm: Arm, key: str, y: float, marker: str, colour: str) -> None:
    found = estimate(arm, key)
    if found is None:
        return
    if len(found.values) > 1:
        axes.plot(found.values, [y] * len(found.values), "|", color=colour, markersize=7, markeredgewidth=1)
    if found.interval:
        axes.plot(found.interval, (y, y), color=colour, linewidth=1.5, solid_capstyle="butt")
    axes.plot(found.value, y, marker, color=colour, markersize=6.5, markeredgecolor="white", markeredgewidth=0.6)


def draw_behaviour(arms: Sequence[Arm]) -> Figure:
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = _rows(arms, 1, 0.36, (1,))
        left = np.zeros(len(arms))
        for key, outcome, hatch in _BEHAVIOURS:
            found = [estimate(arm, key) for arm in arms]
            widths = np.array([one.value if one else 0.0 for one in found])
            colour = OKABE_ITO[outcome.colour]
            axes.barh(
                range(len(arms)), widths, 0.66, left, color=colour, hatch=hatch, edgecolor="white", linewidth=0.8,
                label=outcome.label,
            )  # fmt: skip
            for row, width in enumerate(widths):
                if width >= 0.055:
                    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "linewidth": 0, "alpha": 0.85}
                    axes.text(left[row] + width / 2, row, f"{width:.0%}", ha="center", va="center", bbox=box)
            left += widths
        axes.set_xlim(0, 1)
        axes.spines["left"].set_visible(False)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4, handlelength=1.6)
    return figure


def draw_frontier(arms: Sequence[Arm], marks: Marks, beside: Sequence[Arm] = ()) -> Figure:
    """Accuracy against calls: every seed faint, the mean of each arm with both intervals. The frontier is that of
    `arms`; those `beside` are grey."""
    own, others = ([place for arm in some if (place := _place(arm))] for some in (arms, beside))
    looks = [*(marks[place.arm.name] for place in own), *(Mark(_BESIDE, "X", "") for _ in others)]
    places = [*own, *others]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 5.4), layout="constrained")
        axes = figure.add_subplot(xlabel="searches a question", ylabel="accuracy")
        spots = [place.spot for place in places]
        # No more room than what the points and most of the bars need: bars over few seeds may be long.
        _limits(axes.set_xlim, [x for x, _ in spots], [end for place in places for end in _ends(place.calls)])
        _limits(axes.set_ylim, [y for _, y in spots], [end for place in places for end in _ends(place.accuracy)], 1.02)
        costs, accuracies = zip(*spots[: len(own)], strict=True)
        best, line = on_frontier(costs, accuracies), frontier_line(costs, accuracies, axes.get_xlim()[1])
        axes.plot(*zip(*line, strict=True), color=INK, linewidth=1.2, linestyle=(0, (4, 2)), zorder=1)
        bars = []
        filled = [*best, *(True for _ in others)]
        for drawn in reversed(list(zip(places, looks, filled, strict=True))):  # the arms over those beside them
            bars += _draw_place(axes, *drawn)
        axes.set_yticks(
            [tick for tick in axes.get_yticks() if axes.get_ylim()[0] <= tick <= min(1 + 1e-9, axes.get_ylim()[1])]
        )
        percent(axes.yaxis)
        axes.grid(alpha=0.15)
        settle(figure)  # labels are placed where the axes now are
        names = [shown(place.arm.name) for place in places]
        place_labels(axes, spots, names, [look.colour for look in looks], [*bars, *pairwise(line)])
        for text in axes.texts:  # between crossing bars there is not room for all
            text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    return figure


@dataclass(frozen=True)
class _Place:
    """Where an arm stands, on average."""

    arm: Arm
    calls: Estimate
    accuracy: Estimate

    @property
    def spot(self) -> tuple[float, float]:
        return self.calls.value, self.accuracy.value


def _place(arm: Arm) -> _Place | None:
    calls, accuracy = estimate(arm, "calls_per_question"), estimate(arm, "accuracy")
    return _Place(arm, calls, accuracy) if calls and accuracy else None


def _draw_place(axes: Axes, place: _Place, look: Mark, filled: bool) -> list[_Bar]:
    """The bars it has drawn."""
    (x, y), calls, accuracy = place.spot, place.calls, place.accuracy
    axes.plot(calls.values, accuracy.values, look.marker, color=look.colour, alpha=0.3, markersize=4, zorder=2)
    (bottom, top), (left, right) = accuracy.interval or (y, y), calls.interval or (x, x)
    bars = [((x, bottom), (x, top)), ((left, y), (right, y))]
    for bar in bars:
        axes.plot(*zip(*bar, strict=True), color=look.colour, linewidth=1.2, alpha=0.6, zorder=2)
    axes.plot(
        x, y, look.marker, color=look.colour, markersize=8, markeredgewidth=1.6,
        markerfacecolor=look.colour if filled else "white", zorder=3,
    )  # fmt: skip
    return bars


def _limits(
    set_limits: Callable[[float, float], Any], spots: Sequence[float], ends: Sequence[float], most: float = math.inf
) -> None:
    low, high = min(spots), max(spots)
    room = max(0.35 * (high - low), 0.08)
    low, high = max(min(ends) - 0.02, low - room), min(max(ends) + 0.02, high + room, most)
    set_limits(low - 0.04 * (high - low), high + 0.04 * (high - low))
