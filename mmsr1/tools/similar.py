"""Semantic single flight: near-duplicate queries of one group share a call.

The rollouts of a group ask about the same question, often in almost the same words; on the web each wording is a call.
Here the first one of a group is asked, and the others get its answer, at its cost as far as their own episode is
concerned: the reward does not know the difference, only the bill does.
"""

from __future__ import annotations

import asyncio
import re
import unicodedata
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

from mmsr1.tools.base import AroundTool, Tool
from mmsr1.tools.meter import ANSWERS
from mmsr1.types import ToolResult

_WORD = re.compile(r"\w+")
# Words that say nothing of what is wanted.
_STOP = frozenset(
    (
        "a",
        "an",
        "and",
        "are",
        "at",
        "by",
        "for",
        "from",
        "in",
        "is",
        "it",
        "of",
        "on",
        "or",
        "that",
        "the",
        "this",
        "to",
    )
    + ("was", "were", "what", "when", "where", "which", "who", "whom", "whose", "why", "how", "does", "did", "do")
)


class Group:
    """The rollouts that may share calls; one object for each group."""


# Which group the running coroutine belongs to; whoever starts the rollouts sets it.
GROUP: ContextVar[Group | None] = ContextVar("GROUP", default=None)


@dataclass(frozen=True)
class Wording:
    """What counts of a query: its words, and apart from them the numbers, which make another question of it."""

    words: frozenset[str]
    numbers: tuple[str, ...]

    @classmethod
    def of(cls, query: str) -> Wording:
        found = _WORD.findall(unicodedata.normalize("NFKC", query).casefold())
        numbers = tuple(sorted(word for word in found if any(letter.isdigit() for letter in word)))
        return cls(frozenset(found) - _STOP, numbers)

    def likeness(self, other: Wording) -> float:
        """Shared words over all words (Jaccard), 0 to 1; 0 where numbers differ or a query has no words.

        >>> Wording.of("The tower, built by whom?").likeness(Wording.of("who built the tower"))
        1.0
        >>> Wording.of("population of Rome 2019").likeness(Wording.of("population of Rome 2020"))
        0.0
        """
        if self.numbers != other.numbers or not (self.words and other.words):
            return 0.0
        return len(self.words & other.words) / len(self.words | other.words)


@dataclass
class _Flight:
    wording: Wording
    call: asyncio.Task[ToolResult]


@dataclass
class _Asked:
    flights: list[_Flight] = field(default_factory=list)


class Similar(AroundTool):
    """`Tool[str]` that takes the answer of the likest earlier query of the group, if it is at least `likeness` alike.

    Only answers are shared: whoever follows a call that fails makes its own. A call goes on when the episode that made
    it is cut, because others may wait for it. Outside of groups every call is its own. With several episodes at a time
    it depends on their speed who is first (not with rollout.deterministic).
    Raises ValueError if `likeness` is not above 0 and at most 1.
    """

    def __init__(self, tool: Tool[str], likeness: float) -> None:
        if not 0 < likeness <= 1:
            raise ValueError(f"likeness={likeness}: must be above 0, at most 1")
        self._tool, self._likeness = tool, likeness
        self._groups: WeakKeyDictionary[Group, _Asked] = WeakKeyDictionary()

    @property
    def backend(self) -> str:
        return f"{self._tool.backend}:similar={self._likeness:g}"

    async def __call__(self, query: str) -> ToolResult:
        group = GROUP.get()
        if group is None:
            return await self._tool(query)
        asked, wording = self._groups.setdefault(group, _Asked()), Wording.of(query)
        alike = [(flight.wording.likeness(wording), flight) for flight in asked.flights]
        near, leader = max(alike, key=lambda one: one[0], default=(0.0, None))
        if leader is not None and near >= self._likeness:
            result = await asyncio.shield(leader.call)
            if result.status in ANSWERS:
                return replace(result, cached=True, paid_usd=0.0)
        flight = _Flight(wording, asyncio.ensure_future(self._tool(query)))
        asked.flights.append(flight)
        return await asyncio.shield(flight.call)
