"""Which prompts each step trains on: a pure function of the examples, the mix, the seed and the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch.utils.data import Dataset

from mmsr1.data.table import NEEDS, Labels
from mmsr1.types import Example, SearchNeed, StepPrompts

Curriculum = Literal["easy_first", "hard_first"]
_SEARCHING: tuple[SearchNeed, ...] = ("required", "image", "text", "both")
# The needs whose examples a pool holds, in the order in which pools are drawn from.
POOLS: dict[str, tuple[SearchNeed, ...]] = {
    "free": ("free",),
    "required": _SEARCHING,
    "image": ("image",),
    "text": ("text",),
    "both": ("both",),
    "all": NEEDS,
}
_UNTRIED = 0.5  # the difficulty of a question that nobody tried


@dataclass(frozen=True)
class Mix:
    """What share of the prompts comes from each pool (only their proportions count).

    With a curriculum, a pool is limited to its easiest (or hardest) part over the first `curriculum_steps` steps; the
    part grows evenly until it is all of it.
    """

    name: str
    shares: Mapping[str, float]
    curriculum: Curriculum | None = None
    curriculum_steps: int = 0

    @property
    def limited_steps(self) -> int:
        return self.curriculum_steps if self.curriculum else 0


NATURAL = Mix("natural", {"all": 1.0})


@dataclass(frozen=True)
class _Part:
    """The rows of one pool in one file, under a number of its own; with a curriculum the first to be asked first."""

    number: int
    rows: np.ndarray


class PromptSchedule(Dataset[StepPrompts]):
    """A map-style data set with one item a rollout step.

    Each pool of the mix is shuffled anew for every pass; of examples from several files each file has its share of each
    pool by `weights`. How many a step takes from where is rounded such that the sum over all steps is right, not each
    step. No example is loaded before it is drawn. Raises ValueError if a pool that the mix needs is empty.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        mix: Mix,
        per_step: int,
        steps: int,
        seed: int,
        weights: Sequence[float] = (1.0,),
    ) -> None:
        self._examples, self._mix, self._per_step, self._steps, self._seed = examples, mix, per_step, steps, seed
        labels = Labels.of(examples)
        self._shares: list[float] = []
        self._pools: list[tuple[list[_Part], list[float]]] = []
        number = 0
        for name, needs in POOLS.items():
            if not (share := mix.shares.get(name, 0.0)):
                continue
            inside = np.isin(labels.need, [NEEDS.index(need) for need in needs])
            by_file = [(np.flatnonzero(inside & (labels.file == file)), weight) for file, weight in enumerate(weights)]
            filled = [(rows, weight) for rows, weight in by_file if len(rows)]
            if not filled:
                raise ValueError(_missing(mix, name, labels))
            parts = [_Part(number + k, self._ordered(rows, number + k, labels)) for k, (rows, _) in enumerate(filled)]
            number += len(parts)
            self._shares.append(share)
            self._pools.append((parts, [weight for _, weight in filled]))
        self._shuffled: dict[int, tuple[int, np.ndarray]] = {}

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> StepPrompts:
        if not 0 <= step < self._steps:
            raise IndexError(step)
        return StepPrompts(step, self.prompts(step))

    def prompts(self, step: int) -> tuple[Example, ...]:
        """The examples of any step, also beyond the last: refilled groups are drawn ahead of their time."""
        return tuple(self._examples[row] for row in self.rows(step))

    def rows(self, step: int) -> list[int]:
        """The places of a step's examples."""
        limited = self._mix.limited_steps
        before, after, fresh = self._taken(step), self._taken(step + 1), self._taken(min(limited, step))
        drawn: list[int] = []
        for part, first, last, start in zip(self._parts(), before, after, fresh, strict=True):
            if step < limited:
                drawn += self._limited(part, step, last - first)
            else:
                drawn += [self._draw(part, position - start) for position in range(first, last)]
        order = np.random.default_rng([self._seed, 11, step]).permutation(len(drawn))
        return [drawn[i] for i in order]

    def _parts(self) -> list[_Part]:
        return [part for parts, _ in self._pools for part in parts]

    def _taken(self, steps: int) -> list[int]:
        """How many prompts the first so many steps take from each part."""
        by_pool = apportioned(self._shares, self._per_step * steps)
        return [
            count
            for (_, weights), total in zip(self._pools, by_pool, strict=True)
            for count in apportioned(weights, total)
        ]

    def _draw(self, part: _Part, position: int) -> int:
        """The row that comes after `position` others."""
        epoch, place = divmod(position, len(part.rows))
        known = self._shuffled.get(part.number)
        if known is None or known[0] != epoch:
            rng = np.random.default_rng([self._seed, 7, part.number, epoch])
            known = self._shuffled[part.number] = (epoch, rng.permutation(len(part.rows)))
        return int(part.rows[known[1][place]])

    def _limited(self, part: _Part, step: int, count: int) -> list[int]:
        """Some of the rows that the curriculum allows now, none twice if they are enough."""
        size = len(part.rows)
        allowed = min(size, max(count, -(-size * (step + 1) // self._mix.curriculum_steps)))
        order = np.random.default_rng([self._seed, 17, part.number, step]).permutation(allowed)
        return [int(part.rows[order[i % allowed]]) for i in range(count)]

    def _ordered(self, rows: np.ndarray, number: int, labels: Labels) -> np.ndarray:
        if self._mix.curriculum is None:
            return rows
        difficulty = np.nan_to_num(labels.difficulty[rows], nan=_UNTRIED)
        ties = np.random.default_rng([self._seed, 19, number]).permutation(len(rows))
        return rows[np.lexsort((ties, difficulty if self._mix.curriculum == "easy_first" else -difficulty))]


def apportioned(shares: Sequence[float], total: int) -> list[int]:
    """`total` in whole numbers in proportion to the shares, by Webster's method: a larger total takes from no one.

    >>> apportioned([0.5, 0.2, 0.3], 4), apportioned([0.5, 0.2, 0.3], 5)
    ([2, 1, 1], [3, 1, 1])
    """
    part = [share / sum(shares) for share in shares]
    # Nobody ends below this; the last few go one by one to whose turn it is, of several the last.
    found = [max(0, int(p * (total - len(part) / 2) - 1)) for p in part]
    for _ in range(total - sum(found)):
        turn = max(range(len(part)), key=lambda k: (part[k] / (2 * found[k] + 1), k))
        found[turn] += 1
    return found


def _missing(mix: Mix, pool: str, labels: Labels) -> str:
    counts = {need: int(np.sum(labels.need == code)) for code, need in enumerate(NEEDS)}
    told = ", ".join(f"{count} {need}" for need, count in counts.items() if count) or "none at all"
    return (
        f"data/mix={mix.name}: data.mix.shares.{pool}={mix.shares[pool]:g}, but of {len(labels.need)} examples "
        f"({told}) none is in that pool; label them, or use data/mix=natural"
    )
