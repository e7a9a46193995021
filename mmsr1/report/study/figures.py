"""The figures of a study, each of all its arms; an arm has the same colour, marker and line in every one. Here those of
training and of the boundary; those of its end are in `endings`."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from mmsr1.report.boundary import Boundary, Estimate
from mmsr1.report.curves import series
from mmsr1.report.study.runs import Arm, StudyRun
from mmsr1.report.style import INK, STYLE, Mark, mark
from mmsr1.report.text import one_line

Floats = NDArray[np.float64]
Marks = Mapping[str, Mark]
WIDTH = 9.0  # inches: at the page's 900 pixels letters of 9 points are 12.5 pixels high
# Figure, title, whether it is a share, and whether all of the scale is shown.
DYNAMICS = (
    ("reward", "reward", False, False),
    ("accuracy", "accuracy", True, False),
    ("search_ratio", "search ratio", True, True),
    ("search_ratio_free", "search ratio where none is needed", True, True),
)
_LONGEST = 30  # characters of an arm's name in a figure


def marks_of(arms: Sequence[Arm]) -> dict[str, Mark]:
    return {arm.name: mark(number) for number, arm in enumerate(arms)}


def pictures(figure: Figure) -> dict[str, bytes]:
    """The figure as PNG and SVG; the same figure gives the same bytes."""
    found = {}
    settle(figure)
    for kind in ("png", "svg"):
        stream = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(stream, format=kind, dpi=160, facecolor="white", metadata=metadata)
        found[kind] = stream.getvalue()
    return found


def settle(figure: Figure) -> None:
    """Lay it out, once for all."""
    with matplotlib.rc_context(STYLE):
        if figure.get_layout_engine() is not None:
            figure.draw_without_rendering()
            figure.set_layout_engine("none")


def shown(name: str) -> str:
    """The name of an arm as one short line. A leading underscore would hide it from legends."""
    line = one_line(name)
    line = line if len(line) <= _LONGEST else f"{line[: _LONGEST - 12]}...{line[-9:]}"
    return f" {line}" if line.startswith("_") else line


def percent(axis: Axis) -> None:
    """As many digits as the ticks need."""
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}%"))


# ---- dynamics


def window(steps: int) -> int:
    """Over how many neighbouring steps curves of so many are averaged: odd, about a tenth, at most 9."""
    return min(9, 2 * (steps // 20) + 1)


def smoothed(values: Floats, width: int) -> Floats:
    """The mean of each value and its neighbours; NaN counts nowhere.

    At the start, where curves are steep, of as many on either side: it begins with the first value. At the end of those
    that there are: a last value that stood alone would look like a turn.
    """
    known = ~np.isnan(values)
    half, filled = width // 2, np.where(known, values, 0.0)
    found = np.full(len(values), math.nan)
    for i in np.flatnonzero(known):
        reach = min(half, i)
        here = slice(i - reach, i + reach + 1)
        found[i] = filled[here].sum() / known[here].sum()
    return found


def dynamics_of(runs: Sequence[StudyRun], key: str) -> tuple[Floats, Floats, bool]:
    """Steps [S] and values [seed, S] at the steps that every run has, and whether they are of training: an arm whose
    training has no such figure (supervised) shows its validations."""
    for split in ("train", "val"):
        curves = [dict(zip(*series(run.metrics, split, key), strict=True)) for run in runs]
        steps = sorted(set.intersection(*map(set, curves)))
        if steps:
            values = np.array([[curve[step] for step in steps] for curve in curves], dtype=np.float64)
            return np.array(steps, dtype=np.float64), values, split == "train"
    return np.empty(0), np.empty((len(runs), 0)), True


def draw_dynamics(arms: Sequence[Arm], marks: Marks) -> Figure:
    with matplotlib.rc_context(STYLE):
        rows = _legend_rows(arms)
        figure = Figure(figsize=(WIDTH, 6.2 + 0.2 * rows), layout="constrained")
        for axes, (key, title, share, whole) in zip(figure.subplots(2, 2).flat, DYNAMICS, strict=True):
            for arm in arms:
                _draw_curve(axes, arm, key, marks[arm.name])
            axes.set_title(title, loc="left")
            axes.set_xlabel("training step")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.15)
            if whole:
                axes.set_ylim(-0.03, 1.03)
            if share:
                percent(axes.yaxis)
        _legend(figure, arms, marks)
    return figure


def _draw_curve(axes: Axes, arm: Arm, key: str, look: Mark) -> None:
    steps, values, training = dynamics_of(arm.runs, key)
    if not len(steps) or np.isnan(values).all():
        return
    width = window(len(steps)) if training else 1
    curves = np.array([smoothed(row, width) for row in values])
    kept = ~np.isnan(curves).any(axis=0)
    steps, curves = steps[kept], curves[:, kept]
    every = max(1, len(steps) // 6)
    axes.plot(
        steps, curves.mean(axis=0), linestyle=look.line, color=look.colour, linewidth=1.6, marker=look.marker,
        markersize=5, markevery=every, markerfacecolor=look.colour if training else "white", zorder=2 + look.above,
    )  # fmt: skip
    if len(curves) > 1:
        axes.fill_between(steps, curves.min(axis=0), curves.max(axis=0), color=look.colour, alpha=0.13, linewidth=0)


def _legend_rows(arms: Sequence[Arm]) -> int:
    return math.ceil(len(arms) / _columns([shown(arm.name) for arm in arms]))


def _columns(names: Sequence[str]) -> int:
    """As many as fit the width with the longest name."""
    return max(1, min(len(names), int(WIDTH * 72 / (5.2 * max(map(len, names)) + 52))))


def _legend(figure: Figure, arms: Sequence[Arm], marks: Marks) -> None:
    lines = [
        Line2D([], [], color=look.colour, linestyle=look.line, marker=look.marker, markersize=5, linewidth=1.6)
        for look in (marks[arm.name] for arm in arms)
    ]
    names = [shown(arm.name) for arm in arms]
    figure.legend(lines, names, loc="outside upper left", ncols=_columns(names), handlelength=3.4)


# ---- the boundary


def draw_boundary(found: Mapping[str, Boundary], marks: Marks) -> Figure:
    """Left the curves, right where each crosses 1/2 beside where the reward says that it should."""
    with matplotlib.rc_context(STYLE):
        names = [shown(name) for name in found]
        figure = Figure(figsize=(WIDTH, max(4.4, 1.8 + 0.36 * len(found))), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        left.axhline(0.5, color=INK, linewidth=0.8, alpha=0.5)
        for name, one in found.items():
            _draw_switching(left, one, marks[name])
        for row, (name, one) in enumerate(found.items()):
            _draw_switch(right, one.learned, row - 0.13, marks[name].colour, marks[name].marker, True)
            if one.predicted is not None:
                _draw_switch(right, one.predicted, row + 0.17, INK, "|", False)
        left.set(xlim=(-0.02, 1.02), ylim=(-0.03, 1.03), xlabel="p: right when answering directly", ylabel="P(search)")
        left.grid(alpha=0.15)
        right.set(xlim=(-0.04, 1.04), ylim=(len(found) - 0.5, -0.5), xlabel="p at which searching stops")
        right.set_yticks(range(len(found)), names)
        right.tick_params(axis="y", length=0)
        right.grid(axis="x", alpha=0.2)
        for axis in (left.xaxis, left.yaxis, right.xaxis):
            percent(axis)
        looks = [marks[name] for name in found]
        lines: list[Any] = [
            Line2D([], [], color=look.colour, linestyle=look.line, marker=look.marker, markersize=5) for look in looks
        ]
        lines.append(Line2D([], [], color=INK, marker="|", markersize=11, markeredgewidth=2, linestyle=""))
        labels = [*names, "predicted by the reward"]
        figure.legend(lines, labels, loc="outside upper left", ncols=_columns(labels), handlelength=3.2)
    return figure


def _draw_switching(axes: Axes, one: Boundary, look: Mark) -> None:
    low, high = one.spread
    inside = (one.p >= low - 1e-9) & (one.p <= high + 1e-9)
    axes.plot(
        one.p[inside], one.curve[inside], linestyle=look.line, color=look.colour, linewidth=1.6, zorder=2 + look.above
    )
    axes.fill_between(
        one.p[inside], one.band[0][inside], one.band[1][inside], color=look.colour, alpha=0.12, linewidth=0
    )
    for each in one.bins:
        ends = (each.searched.low, each.searched.high)
        axes.plot((each.p, each.p), ends, color=look.colour, linewidth=1.1, alpha=0.6)
        axes.plot(
            each.p, each.searched.value, look.marker, color=look.colour, markersize=5.5, markeredgecolor="white",
            markeredgewidth=0.5,
        )  # fmt: skip


def _draw_switch(axes: Axes, found: Estimate, y: float, colour: str, marker: str, filled: bool) -> None:
    axes.plot((found.low, found.high), (y, y), color=colour, linewidth=1.5, alpha=1.0 if filled else 0.7)
    size, edge = (6.5, 0.6) if filled else (12, 2.2)
    axes.plot(
        found.value, y, marker, color=colour, markersize=size, markeredgewidth=edge,
        markeredgecolor="white" if filled else colour,
    )  # fmt: skip
