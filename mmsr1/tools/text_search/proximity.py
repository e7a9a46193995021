"""Words that stand together in the query should stand together in the passage, which BM25 does not look at.

The best passages by BM25 are sorted anew with a bonus for each two neighbouring words of the query that are near each
other in the passage. It needs nothing in the index, and costs some milliseconds a query for reading 32 passages again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

CANDIDATES = 32
CHARACTERS = 4_000  # of a passage that are read again
_WEIGHT = 0.5
_REACH = 2  # how far apart two words of the query may be: next to each other, or one between
_NEAR = 4  # how far apart they may be in the passage


def bonus(query: Sequence[str], passage: Sequence[str], rarity: Mapping[str, float]) -> float:
    """For each pair, what its words weigh by `rarity` (their inverse document frequency), divided by their distance."""
    places: dict[str, list[int]] = {}
    for place, word in enumerate(passage):
        if word in rarity:
            places.setdefault(word, []).append(place)
    total = 0.0
    for first, word in enumerate(query):
        for other in query[first + 1 : first + 1 + _REACH]:
            if word != other and word in places and other in places:
                distance = _distance(places[word], places[other])
                if distance <= _NEAR:
                    total += _WEIGHT * (rarity[word] + rarity[other]) / distance
    return total


def _distance(one: Sequence[int], other: Sequence[int]) -> int:
    """The least between two rising lists."""
    here = there = 0
    least = abs(one[0] - other[0])
    while here < len(one) and there < len(other):
        least = min(least, abs(one[here] - other[there]))
        if one[here] < other[there]:
            here += 1
        else:
            there += 1
    return least
