"""The one look of all figures: matplotlib's settings, and what tells the arms of a study apart, in grey too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmsr1.report.outcomes import OKABE_ITO

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
    "text.parse_math": False,  # names of arms and runs are text
    "svg.hashsalt": "mmsr1",
}
INK = "#444444"
COLOURS = ("blue", "vermilion", "green", "orange", "purple", "grey")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h")
_LINES = ("-", (0, (5, 1.6)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))


@dataclass(frozen=True)
class Mark:
    colour: str
    marker: str
    line: Any


def mark(number: int) -> Mark:
    """Of the arm with this number, counted from 0. Colours repeat after six arms, then with another line and marker."""
    line = _LINES[(number + number // len(COLOURS)) % len(_LINES)]
    return Mark(OKABE_ITO[COLOURS[number % len(COLOURS)]], _MARKERS[number % len(_MARKERS)], line)
