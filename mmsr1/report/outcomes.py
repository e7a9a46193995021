"""How an episode ended, in the five ways that reports tell apart, each with a colour and a mark of its own.

Colours are Okabe and Ito's, which people with any common colour blindness can tell apart. Marks are polylines on a
16 x 16 grid, y downward, drawn as SVG by the page and as paths by the figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmsr1.types import INFRASTRUCTURE_STOPS, REACHED_TOOL

Stroke = tuple[tuple[float, float], ...]

OKABE_ITO = {
    "green": "#009e73",
    "blue": "#0072b2",
    "vermilion": "#d55e00",
    "orange": "#e69f00",
    "purple": "#cc79a7",
    "sky": "#56b4e9",
    "grey": "#8a8a8a",
}


@dataclass(frozen=True)
class Outcome:
    """`colour` names an entry of OKABE_ITO; `ink` is the mark's colour on it; `strokes` draw the mark."""

    key: str
    label: str
    colour: str
    ink: str
    strokes: tuple[Stroke, ...]


_RING: Stroke = tuple((math.cos(k * math.pi / 8), math.sin(k * math.pi / 8)) for k in range(17))
_CHECK: tuple[Stroke, ...] = (((3.6, 8.4), (6.8, 11.6), (12.6, 4.8)),)
_CROSS: tuple[Stroke, ...] = (((4.4, 4.4), (11.6, 11.6)), ((11.6, 4.4), (4.4, 11.6)))
_LENS: tuple[Stroke, ...] = (tuple((7 + 3.8 * x, 7 + 3.8 * y) for x, y in _RING), ((9.9, 9.9), (13.2, 13.2)))
# A lens whose handle ends in a cross.
_LENS_CROSS: tuple[Stroke, ...] = (
    tuple((5.8 + 3.2 * x, 5.8 + 3.2 * y) for x, y in _RING),
    ((8.3, 8.3), (13.6, 13.6)),
    ((13.6, 8.8), (8.8, 13.6)),
)
_BAR: tuple[Stroke, ...] = (((4, 8), (12, 8)),)

DIRECT = Outcome("direct", "answered directly, right", "green", "#fff", _CHECK)
SEARCHED = Outcome("searched", "searched, right", "blue", "#fff", _LENS)
DIRECT_WRONG = Outcome("direct-wrong", "answered directly, wrong", "vermilion", "#fff", _CROSS)
SEARCHED_WRONG = Outcome("searched-wrong", "searched, wrong", "orange", "#000", _LENS_CROSS)
FAILED = Outcome("failed", "cut off: a tool or the engine failed", "grey", "#fff", _BAR)
ABSENT = Outcome("absent", "not asked at this step", "grey", "#fff", ())
OUTCOMES = (DIRECT, SEARCHED, DIRECT_WRONG, SEARCHED_WRONG, FAILED, ABSENT)


def outcome_of(record: Mapping[str, Any]) -> Outcome:
    """The outcome of an `episode_record`; "searched", as in the search ratio, means that a call reached a tool."""
    if record["stop"] in INFRASTRUCTURE_STOPS:
        return FAILED
    right = (record["reward"]["parts"].get("accuracy") or 0.0) >= 0.5
    if any(call["status"] in REACHED_TOOL for call in record["calls"]):
        return SEARCHED if right else SEARCHED_WRONG
    return DIRECT if right else DIRECT_WRONG
