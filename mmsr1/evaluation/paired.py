"""Two policies on the same questions: what differs, how certainly, and which answers flipped.

Everything is paired by question, so that hard questions, which both get wrong, do not blur the difference.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmsr1.evaluation.outcome import Outcome
from mmsr1.evaluation.statistics import holm, mean_interval, sign_flip_test

# What is compared beside the score that was asked for, per question.
_FIGURES: Mapping[str, Callable[[Outcome], float]] = {
    "accuracy": lambda one: one.accuracy,
    "reward": lambda one: one.reward,
    "search ratio": lambda one: float(one.searched),
    "calls": lambda one: float(one.calls),
    "cost, USD": lambda one: one.cost_usd,
}
RIGHT = 0.5  # an answer, or the mean of several to a question, that scores as much is right


@dataclass(frozen=True)
class Difference:
    """Of one figure: the means of both sides over the `questions` that both have it on, B less A with its 95 %
    interval (clustered by image), p of "no difference" (sign flips of whole clusters), and p once all figures of the
    table are looked at (Holm)."""

    name: str
    a: float
    b: float
    difference: float
    interval: tuple[float, float]
    p: float
    p_holm: float
    questions: int


@dataclass(frozen=True)
class Flip:
    """A question that one side gets right and the other wrong, with an answer of each that shows it; `won`: B is the
    one that is right."""

    a: Outcome
    b: Outcome
    won: bool


@dataclass(frozen=True)
class Comparison:
    """`differences` begin with the score that decides what is right. `only_a` and `only_b` are ids that the other side
    lacks; `changed` those under which the two ask something else; `unanswered` those of which a side lost every
    episode to infrastructure. None of these is compared. `lost_a` and `lost_b` count all lost episodes."""

    differences: tuple[Difference, ...]
    flips: tuple[Flip, ...]
    questions: int
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    changed: tuple[str, ...]
    unanswered: tuple[str, ...]
    lost_a: int
    lost_b: int

    @property
    def score(self) -> Difference:
        return self.differences[0]

    def remarks(self, a: str = "A", b: str = "B") -> list[str]:
        """What was left out, one line each."""
        left_out = (
            (self.only_a, f"are not in {b}"),
            (self.only_b, f"are not in {a}"),
            (self.changed, "are asked differently (another question, answer or picture)"),
            (self.unanswered, "have no episode that was not lost to tools or engine on one side"),
        )
        said = [f"{len(ids)} questions {why}: left out ({_named(ids)})" for ids, why in left_out if ids]
        if self.lost_a or self.lost_b:
            said.append(f"episodes lost to tools or engine, not counted: {self.lost_a} of {a}, {self.lost_b} of {b}")
        if self.score.questions < self.questions:
            unscored = self.questions - self.score.questions
            said.append(f"{unscored} questions have no score {self.score.name!r} on one side: not in its line")
        return said


def compare(
    outcomes_a: Sequence[Outcome], outcomes_b: Sequence[Outcome], score: str = "accuracy", seed: int = 0
) -> Comparison:
    """B against A on the questions of both; several rollouts of a question are averaged. `score` is one of the
    episodes' scores. Raises ValueError if the two share no question, or none that has this score."""
    sides = _by_question(outcomes_a), _by_question(outcomes_b)
    only_a, only_b = ([id for id in mine if id not in other] for mine, other in (sides, sides[::-1]))
    both = [id for id in sides[0] if id in sides[1]]
    changed = {id: None for id in both if _asked(sides[0][id][0]) != _asked(sides[1][id][0])}  # a set in their order
    kept = [{id: [one for one in side[id] if not one.lost] for id in both if id not in changed} for side in sides]
    answered = [id for id in kept[0] if kept[0][id] and kept[1][id]]
    if not answered:
        raise ValueError(_nothing(sides, len(both), len(changed), kept))
    a, b = ({id: side[id] for id in answered} for side in kept)
    figures: dict[str, Callable[[Outcome], float]] = {score: lambda one: one.scores.get(score, math.nan)}
    found = [_difference(name, a, b, of, seed) for name, of in {**_FIGURES, **figures}.items()]
    found.sort(key=lambda one: one.name != score)
    if not found[0].questions:
        known = sorted({name for side in (a, b) for ones in side.values() for one in ones for name in one.scores})
        raise ValueError(
            f"score: {score!r} received, which no question has on both sides; there are {', '.join(known)}"
        )
    adjusted = holm([one.p for one in found])
    return Comparison(
        differences=tuple(replace(one, p_holm=p) for one, p in zip(found, adjusted, strict=True) if one.questions),
        flips=tuple(_flips(a, b, figures[score])),
        questions=len(answered),
        only_a=tuple(only_a),
        only_b=tuple(only_b),
        changed=tuple(changed),
        unanswered=tuple(id for id in kept[0] if id not in a),
        lost_a=sum(one.lost for one in outcomes_a),
        lost_b=sum(one.lost for one in outcomes_b),
    )


Side = Mapping[str, Sequence[Outcome]]


def _nothing(sides: Sequence[Side], both: int, changed: int, kept: Sequence[Side]) -> str:
    """Why no question can be compared; `kept` are the episodes that count to those that both were asked."""
    if both == changed:
        return (
            f"nothing to compare: {both} of {len(sides[0])} and {len(sides[1])} questions are in both, "
            f"{changed} of them asked differently; give two runs on the same questions"
        )
    again = "an evaluation asks again what was lost: python evaluate.py resume="
    gone = [
        name for name, side in zip("AB", sides, strict=True) if all(one.lost for ones in side.values() for one in ones)
    ]
    if gone:
        return f"every episode of {' and '.join(gone)} was lost to tools or engine; {again}{gone[0]}"
    lost = [sum(not ones for ones in side.values()) for side in kept]
    return (
        f"of each of the {both - changed} questions in both, every episode of A ({lost[0]} questions) or of B "
        f"({lost[1]}) was lost to tools or engine; {again}A, resume=B"
    )


def _difference(name: str, a: Side, b: Side, of: Callable[[Outcome], float], seed: int) -> Difference:
    pairs = [(_mean(a[id], of), _mean(b[id], of), a[id][0].cluster) for id in a]
    pairs = [(left, right, cluster) for left, right, cluster in pairs if not math.isnan(left + right)]
    left, right = (np.array([pair[side] for pair in pairs], dtype=np.float64) for side in (0, 1))
    clusters, apart = [cluster for _, _, cluster in pairs], right - left
    p = sign_flip_test(apart, clusters, seed)
    before, after = (float(column.mean()) if pairs else math.nan for column in (left, right))
    return Difference(name, before, after, after - before, mean_interval(apart, clusters), p, p, len(pairs))


def _flips(a: Side, b: Side, of: Callable[[Outcome], float]) -> list[Flip]:
    """B's gains first."""
    found = []
    for id in a:
        left, right = _mean(a[id], of), _mean(b[id], of)
        if math.isnan(left + right) or (left >= RIGHT) == (right >= RIGHT):
            continue
        found.append(Flip(_typical(a[id], of, left >= RIGHT), _typical(b[id], of, right >= RIGHT), right >= RIGHT))
    return sorted(found, key=lambda flip: not flip.won)


def _typical(ones: Sequence[Outcome], of: Callable[[Outcome], float], right: bool) -> Outcome:
    """The first that is as the mean is; there is always one."""
    return next(one for one in ones if not math.isnan(of(one)) and (of(one) >= RIGHT) == right)


def _mean(ones: Sequence[Outcome], of: Callable[[Outcome], float]) -> float:
    values = [value for one in ones if not math.isnan(value := of(one))]
    return sum(values) / len(values) if values else math.nan


def _by_question(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = defaultdict(list)
    for one in outcomes:
        found[one.id].append(one)
    return found


def _asked(one: Outcome) -> tuple[str, tuple[str, ...], str]:
    return one.question, one.truths, one.cluster


def _named(ids: Sequence[str]) -> str:
    return ", ".join([*ids[:3], *(["..."] if len(ids) > 3 else [])])
