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
COLOURS = ("blue", "vermilion", "green", "orange", "purple", "sky")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h")
# With how far up each lies: where curves coincide, the ones below are seen through the gaps of those above.
_LINES = (("-", 0), ((0, (5, 1.6)), 2), ((0, (1, 1.2)), 3), ((0, (6, 1.5, 1, 1.5)), 1))


@dataclass(frozen=True)
class Mark:
    colour: str
    marker: str
    line: Any
    above: float = 0.0  # added to the zorder of its curve


def mark(number: int) -> Mark:
    """Of the arm with this number, counted from 0. Colours repeat after six arms, then with another line and marker."""
    line, above = _LINES[(number + number // len(COLOURS)) % len(_LINES)]
    return Mark(OKABE_ITO[COLOURS[number % len(COLOURS)]], _MARKERS[number % len(_MARKERS)], line, 0.1 * above)
