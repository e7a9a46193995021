"""Training curves as inline SVG: one panel a question that a reader of a run asks, empty panels left out.

The panels about engine and trainer are in `report.drift`.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmsr1.report.outcomes import OKABE_ITO
from mmsr1.report.style import STYLE

Row = Mapping[str, Any]

# Text and axes are drawn in a colour that nothing else has, then handed to the page as `currentColor`.
_INK = "#010203"
_STYLE: dict[Any, Any] = {
    **STYLE,
    "svg.fonttype": "none",
    "font.size": 9.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.grid": True,
    "grid.color": _INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.6,
}


@dataclass(frozen=True)
class Curve:
    """One metric of one split; markers set validation apart from training, dashes one figure from another."""

    split: str
    name: str
    label: str
    colour: str
    style: str = "-"


@dataclass(frozen=True)
class Panel:
    """A plot: `kind` is linear, share (0 to 1), log or stacked; a `limited` one shows `algorithm.gap_limit`."""

    title: str
    curves: tuple[Curve, ...]
    kind: str = "linear"
    limited: bool = False


PANELS = (
    Panel(
        "Accuracy",
        (Curve("train", "accuracy", "train", "blue"), Curve("val", "accuracy", "held out", "blue", "o-")),
        "share",
    ),
    Panel(
        "Search ratio (share of questions with any search)",
        (
            Curve("train", "search_ratio_required", "needed, train", "blue"),
            Curve("val", "search_ratio_required", "needed, held out", "blue", "o-"),
            Curve("train", "search_ratio_free", "not needed, train", "vermilion", "--"),
            Curve("val", "search_ratio_free", "not needed, held out", "vermilion", "s--"),
        ),
        "share",
    ),
    Panel("Reward", (Curve("train", "reward", "train", "blue"), Curve("val", "reward", "held out", "blue", "o-"))),
    Panel(
        "Calls per question",
        (
            Curve("train", "calls_per_question", "train", "blue"),
            Curve("val", "calls_per_question", "held out", "blue", "o-"),
        ),
    ),
    Panel(
        "Well-formed answers; failed tool calls",
        (
            Curve("train", "format", "format, train", "blue"),
            Curve("val", "format", "format, held out", "blue", "o-"),
            Curve("train", "tool_failure_rate", "tool failures", "vermilion", "--"),
        ),
        "share",
    ),
    Panel("Loss", (Curve("train", "loss", "loss", "green"),)),
    Panel("KL to the reference policy", (Curve("train", "kl", "KL", "purple"),)),
    Panel("Entropy of the sampled tokens", (Curve("train", "entropy", "entropy", "green"),)),
    Panel("Clipped tokens (share)", (Curve("train", "clip_fraction", "clip fraction", "orange"),)),
    Panel("Gradient norm", (Curve("train", "grad_norm", "gradient norm", "blue"),)),
    Panel("Groups without advantage", (Curve("train", "zero_advantage_groups", "groups", "grey"),)),
    Panel(
        "Seconds a step, stacked by phase",
        (
            Curve("train", "seconds_waited", "waiting for rollouts", "blue"),
            Curve("train", "seconds_train", "training", "orange"),
            Curve("train", "seconds_sync", "weight sync", "green"),
            Curve("train", "seconds_rollout", "rollouts of this step", "vermilion", ":"),
            Curve("train", "seconds_tools_critical", "tools (within rollouts)", "purple", "--"),
        ),
        "stacked",
    ),
)


def draw_panels(
    rows: Sequence[Row], panels: Sequence[Panel] = PANELS, limit: float | None = None
) -> Iterator[tuple[str, str]]:
    """(title, SVG) of every panel that has a point; `limit` is drawn in those that show it. The SVG takes its ink and
    colours from the page."""
    for panel in panels:
        found = [(curve, *series(rows, curve.split, curve.name)) for curve in panel.curves]
        found = [(curve, steps, values) for curve, steps, values in found if any(map(math.isfinite, values))]
        if found:
            with matplotlib.rc_context(_STYLE):
                figure = Figure(figsize=(4.5, 2.6), layout="constrained")
                axes = figure.add_subplot()
                _draw(axes, panel.kind, found)
                if panel.limited and limit is not None:
                    axes.axhline(limit, color=_INK, linestyle=(0, (1, 1)), label=f"limit {limit:g}, of fresh tokens")
                lines = len(axes.get_legend_handles_labels()[1])
                figure.legend(loc="outside upper left", ncols=min(lines, 2), handlelength=2.4)
                svg = _inline_svg(figure, panel.title)
            yield panel.title, svg


def series(rows: Sequence[Row], split: str, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric; a value that was not finite is NaN, which leaves a gap in the line."""
    points = [(row["step"], row[name]) for row in rows if row["split"] == split and name in row]
    return [step for step, _ in points], [math.nan if value is None else value for _, value in points]


def _draw(axes: Axes, kind: str, found: Sequence[tuple[Curve, list[int], list[float]]]) -> None:
    shown_in_val = {curve.name for curve, _, _ in found if curve.split == "val"}
    base = found[0][1]
    floor = [0.0] * len(base)
    for curve, steps, values in found:
        colour = OKABE_ITO[curve.colour]
        # A phase that was not logged at the same steps cannot stand on the others; it becomes a line.
        if kind == "stacked" and curve.style == "-" and steps == base and len(base) > 1:
            top = [low + (value if math.isfinite(value) else 0.0) for low, value in zip(floor, values, strict=True)]
            axes.fill_between(steps, floor, top, color=colour, alpha=0.75, linewidth=0, label=curve.label)
            floor = top
        else:
            # A line through a single point would be invisible.
            style = curve.style if len(values) > 1 else "o"
            paired = curve.split == "train" and curve.name in shown_in_val
            width, alpha = (1.2, 0.5) if paired else (1.6, 1.0)
            axes.plot(steps, values, style, color=colour, alpha=alpha, label=curve.label, linewidth=width, markersize=4)
    if kind == "share":
        axes.set_ylim(-0.03, 1.03)
    elif kind == "log" and any(value > 0 for _, _, values in found for value in values):
        axes.set_yscale("log")
    elif kind == "stacked":
        axes.set_ylim(bottom=0)
    if kind == "linear":
        axes.ticklabel_format(useOffset=False)  # weights near 1 by their value, not as 1 plus something
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("rollout step")


def _inline_svg(figure: Figure, title: str) -> str:
    """The figure's `<svg>` element: scalable, with ids that no other plot has, in the page's colours."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{title}">', svg, count=1
    )
    # Ids of clip paths and markers come from their content, so that plots share some; a page may have each once.
    prefix = re.sub(r"\W", "", title)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for name, value in OKABE_ITO.items():
        svg = svg.replace(value, f"var(--{name})")
    return svg.replace(_INK, "currentColor")
