"""Issue F: from nothing to a search-balanced, reviewed set."""

from __future__ import annotations

from acceptance._balance import balancing, imitation
from acceptance._construct import construction
from acceptance._data_formats import formats, malformed
from acceptance._review import review_hostile, review_page, review_scale
from acceptance.lines import Line

LINES = (
    Line("formats", formats),
    Line("construction", construction),
    Line("balancing", balancing),
    Line("imitation", imitation),
    Line("review_page", review_page),
    Line("review_hostile", review_hostile),
    Line("review_scale", review_scale),
    Line("malformed", malformed),
)
