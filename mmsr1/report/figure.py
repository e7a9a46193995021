"""The picture of a run: `python -m mmsr1.report.figure RUN_DIR --out learned.png`.

Left, accuracy and search ratio over training; right, the first and the last frame of the boundary film.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from mmsr1.report.curves import series
from mmsr1.report.film import Cell, Film, build_film, read_validation
from mmsr1.report.outcomes import OKABE_ITO, Outcome
from mmsr1.report.pictures import small_picture
from mmsr1.report.style import STYLE
from mmsr1.run_directory import RunDirectory

_COLUMNS = 12
_TITLES = {
    "entity": {"free": "the policy was taught these", "required": "it cannot know these", "unknown": "not labelled"},
    "question": {"free": "no search needed", "required": "search needed", "unknown": "not labelled"},
}


def draw_figure(run_dir: Path, out: Path) -> Path:
    """Draw the run to `out`, whose ending says how (.png, .svg), and return it.

    Raises ValueError if the run has no validation episodes: there would be no frame to show.
    """
    directory = RunDirectory(run_dir)
    film = build_film(read_validation(directory))
    if film is None:
        raise ValueError(f"{run_dir}: no episodes/val-<step>.jsonl; the figure needs at least one validation")
    out.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 5.3), facecolor="white")
        _draw_dynamics(figure.add_axes((0.045, 0.1, 0.27, 0.68)), directory)
        for x, position in ((0.345, 0), (0.675, len(film.steps) - 1)):
            _draw_frame(figure.add_axes((x, 0.08, 0.32, 0.86)), directory, film, position)
        _draw_legend(figure.add_axes((0.348, 0.01, 0.65, 0.055)), film)
        figure.savefig(out, dpi=160)
    return out


def _draw_dynamics(axes: Axes, directory: RunDirectory) -> None:
    rows = directory.read_metrics()
    curves = (
        ("accuracy", "accuracy", "green", "-", "o"),
        ("search_ratio_required", "searches where it must", "blue", "-", "s"),
        ("search_ratio_free", "searches where it need not", "vermilion", "--", "^"),
    )
    for name, label, colour, line, marker in curves:
        steps, values = series(rows, "train", name)
        axes.plot(steps, values, line, color=OKABE_ITO[colour], alpha=0.35, linewidth=1)
        steps, values = series(rows, "val", name)
        axes.plot(steps, values, line, marker=marker, color=OKABE_ITO[colour], label=label, linewidth=1.8, markersize=5)
    axes.set(ylim=(-0.03, 1.03), xlabel="rollout step", ylabel="share of questions")
    axes.grid(alpha=0.15)
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), title="held-out questions (faint: training)", alignment="left"
    )


def _draw_frame(axes: Axes, directory: RunDirectory, film: Film, position: int) -> None:
    """One step of the film: a row of headings and cells per group, y downward, one unit a cell."""
    y = 0.0
    for group, cells in film.groups.items():
        axes.text(0, y + 0.55, _TITLES[film.unit][group], va="center")
        y += 1
        for number, cell in enumerate(cells):
            row, column = divmod(number, _COLUMNS)
            _draw_cell(axes, directory, cell, cell.outcomes[position], column, y + row)
        y += 1 + (len(cells) - 1) // _COLUMNS + 0.2
    axes.set(xlim=(-0.1, _COLUMNS + 0.1), ylim=(y, -0.1), aspect="equal", anchor="NW")
    axes.set_axis_off()
    axes.set_title(f"step {film.steps[position]}", loc="left", fontweight="bold")


def _draw_cell(axes: Axes, directory: RunDirectory, cell: Cell, outcome: Outcome, x: float, y: float) -> None:
    picture = small_picture(directory, cell.picture) if cell.picture else None
    style = "-" if outcome.key in ("direct", "searched") else (0, (2, 1))
    frame = FancyBboxPatch(
        (x + 0.1, y + 0.1), 0.8, 0.8, "round,pad=0.02,rounding_size=0.1", fill=False,
        edgecolor=OKABE_ITO[outcome.colour], linewidth=1.8, linestyle=style,
    )  # fmt: skip
    axes.add_patch(frame)
    if picture is not None:
        half = 0.33 * np.array(picture.size) / max(picture.size)
        extent = (x + 0.5 - half[0], x + 0.5 + half[0], y + 0.5 + half[1], y + 0.5 - half[1])
        axes.imshow(np.asarray(picture), extent=extent, interpolation="antialiased")
    _draw_badge(axes, outcome, x + 0.6, y + 0.6, 0.36)


def _draw_badge(axes: Axes, outcome: Outcome, x: float, y: float, edge: float) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x, y), edge, edge, "round,pad=0,rounding_size=0.08",
            facecolor=OKABE_ITO[outcome.colour], edgecolor="white", linewidth=0.6, zorder=3,
        )
    )  # fmt: skip
    for stroke in outcome.strokes:
        points = np.array(stroke) * edge / 16
        axes.plot(x + points[:, 0], y + points[:, 1], color=outcome.ink, linewidth=0.9, zorder=4)


def _draw_legend(axes: Axes, film: Film) -> None:
    axes.set(xlim=(0, 34), ylim=(1, 0), aspect="equal", anchor="W")
    axes.set_axis_off()
    x = 0.0
    for outcome in film.outcomes_met:
        _draw_badge(axes, outcome, x, 0.1, 0.8)
        axes.text(x + 1.1, 0.5, outcome.label, va="center")
        x += 2.2 + 0.255 * len(outcome.label)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw a run: its dynamics beside the first and last film frame.")
    parser.add_argument("run_dir", type=Path, help="folder of one run (it holds run.json)")
    parser.add_argument("--out", type=Path, required=True, help="file to write; .png or .svg")
    options = parser.parse_args(arguments)
    try:
        target = draw_figure(options.run_dir, options.out)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    sys.stdout.write(f"{target}\n")


if __name__ == "__main__":
    main()
