"""The learned boundary: how often a policy searches, against how often it would be right without.

A line is one question with its counts of [right, tried] (`mmsr1.evaluation.counterfactual`). The reward predicts where
to switch: answering directly pays where the chance p of being right so is above what the best search is worth. What is
measured of p is a rate of few rollouts, and noise in it flattens every curve that is drawn against it and moves where
that crosses 1/2. So p is treated as unknown:

- its distribution over the questions is estimated from the direct counts alone (a binomial mixture on a grid, by a few
  steps of EM; Laird 1978), and with it what the count of a question leaves open;
- searches are fitted to what a logistic curve in p expects of questions with such a count: E[P(search) | count]. Free
  and forced rollouts are drawn apart, so that this mean is right whatever else makes questions differ. (Regression
  calibration with the whole distribution in place of its mean: Carroll et al. 2006, chapter 4.)

Intervals come from resampling places as a whole. That leaves out how training varies: where there are several seeds, an
interval reaches at least as far as Student's t over their own estimates (resampling three seeds covers too little). The
accuracy with the best search is crossed: the way is chosen by one half of the rollouts and judged by
the other, for the best of several rates is luck in part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsr1.data.balance.rules import CALLS, ORDER, Branch
from mmsr1.evaluation.counterfactual import Price
from mmsr1.evaluation.seeds import seed_interval
from mmsr1.evaluation.statistics import clustered_interval

Floats = NDArray[np.float64]
_GRID = (np.arange(40) + 0.5) / 40  # of p
_EM_STEPS = 60  # more would fit the noise: the mixture then stands on a few points
_SLOPES = np.geomspace(0.7, 60.0, 14)
_BEYOND = np.array([0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0])
# Where P(search) is 1/2; outside of 0 to 1 policies that always, or never, search.
_SWITCHES = np.concatenate([-_BEYOND[::-1], np.linspace(-0.06, 1.06, 57), 1 + _BEYOND])
_DRAWS, _SPLITS, _AT_ONCE, _BINS = 400, 20, 50, 6
_STEEPEST, _NO_SPREAD = 0.9, 1e-6  # of worth in p: a line as steep as p itself crosses it nowhere


@dataclass(frozen=True)
class Asked:
    """Questions as arrays [Q]: counts of forced direct answers and of free rollouts, `place` and `seed` as numbers from
    0, `worth` of the best search (accuracy after its price; NaN where no price is known)."""

    right: NDArray[np.int64]
    tried: NDArray[np.int64]
    searched: NDArray[np.int64]
    free: NDArray[np.int64]
    place: NDArray[np.int64]
    seed: NDArray[np.int64]
    worth: Floats


@dataclass(frozen=True)
class Estimate:
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Bin:
    """Questions of similar direct counts: the mean of p that these leave, and how often they are searched for."""

    p: float
    searched: Estimate
    questions: int


@dataclass(frozen=True)
class Boundary:
    """Of one arm. `learned` is where P(search) crosses 1/2: 1 for a policy that searches more often than not at any p,
    0 for one that never does. `predicted` and `difference` (learned less predicted) are None where the reward has no
    fixed price. `curve` is P(search) with its band at each of `p`. `spread` are the 5 % and 95 % points of p among the
    questions: beyond these the curve is an extrapolation."""

    learned: Estimate
    by_seed: tuple[float, ...]
    predicted: Estimate | None
    difference: Estimate | None
    slope: float
    p: Floats
    curve: Floats
    band: tuple[Floats, Floats]
    bins: tuple[Bin, ...]
    spread: tuple[float, float]
    questions: int
    places: int

    @property
    def flat(self) -> bool:
        """Whether searching hardly depends on p, so that there is no switch to speak of where the curve crosses 1/2."""
        return self.slope <= float(_SLOPES[1]) and 0 < self.learned.value < 1


def asked_of(lines_by_seed: Sequence[Sequence[Mapping[str, Any]]], price: Price | None, draw: int = 0) -> Asked:
    """The lines of each seed as arrays. Raises KeyError, TypeError or ValueError for a line that is none."""
    rng = np.random.default_rng(draw)
    places: dict[str, int] = {}
    rows = [
        (*_counts(line), places.setdefault(str(line["cluster"]), len(places)), seed)
        for seed, lines in enumerate(lines_by_seed)
        for line in lines
    ]
    worth = [_worth(line["forced"], price, rng) if price else math.nan for lines in lines_by_seed for line in lines]
    columns = np.array(rows, dtype=np.int64).reshape(-1, 6).T
    return Asked(*columns, worth=np.array(worth, dtype=np.float64))


def _counts(line: Mapping[str, Any]) -> tuple[int, int, int, int]:
    right, tried = map(int, line["forced"]["none"])
    made: Mapping[Branch, Sequence[int]] = line["free"]
    searched = sum(int(count) for branch, (_, count) in made.items() if CALLS[branch])
    free = sum(int(count) for _, count in made.values())
    if not (0 <= right <= tried and tried and free):
        raise ValueError(f"{line['id']}: {right} right of {tried} direct answers, {free} free rollouts")
    return right, tried, searched, free


def _worth(forced: Mapping[str, Sequence[int]], price: Price, rng: np.random.Generator) -> float:
    """Of the best search, in accuracy after its price: chosen on one half of the rollouts, judged on the other."""
    ways: list[Branch] = [branch for branch in ORDER if CALLS[branch]]
    right, tried = np.array([forced[branch] for branch in ways], dtype=np.int64).T
    factor, half = np.array([price.worth(CALLS[branch]) for branch in ways]), tried // 2
    if not half.all():
        return math.nan  # a single rollout cannot be halved
    first = rng.hypergeometric(right, tried - right, half, size=(_SPLITS, len(ways)))
    rates = factor * first / half, factor * (right - first) / (tried - half)
    every = np.arange(_SPLITS)
    return float(np.mean([judge[every, choose.argmax(axis=1)] for choose, judge in (rates, rates[::-1])]))


def boundary(asked: Asked, seed: int = 0) -> Boundary:
    """The fit with its intervals; the same questions and `seed` give the same. Raises ValueError for no question."""
    if not len(asked.right):
        raise ValueError("no question whose ways were forced")
    rng = np.random.default_rng(seed)
    seeds = np.array([asked.seed == number for number in np.unique(asked.seed)], dtype=np.float64)
    weights = np.vstack([np.ones(len(asked.right)), seeds, _resampled(asked, rng)])
    prior, switch, slope = _fits(asked, weights)
    learned, drawn = np.clip(switch, 0.0, 1.0), slice(1 + len(seeds), None)
    curves = _logistic(switch[drawn, None], slope[drawn, None], _GRID)
    predicted = difference = None
    if (weights @ ~np.isnan(asked.worth)).all():
        crossed = _crossed(asked, weights, prior)
        predicted, difference = _estimate(crossed, len(seeds)), _estimate(learned - crossed, len(seeds), -1.0)
    cumulated = np.cumsum(prior[0])
    return Boundary(
        learned=_estimate(learned, len(seeds)),
        by_seed=tuple(map(float, learned[1 : 1 + len(seeds)])),
        predicted=predicted,
        difference=difference,
        slope=float(slope[0]),
        p=_GRID,
        curve=_logistic(switch[0], slope[0], _GRID),
        band=(np.quantile(curves, 0.025, axis=0), np.quantile(curves, 0.975, axis=0)),
        bins=tuple(_bins(asked, prior[0])),
        spread=(float(_GRID[np.searchsorted(cumulated, 0.05)]), float(_GRID[np.searchsorted(cumulated, 0.95)])),
        questions=len(asked.right),
        places=len(np.unique(asked.place)),
    )


def _estimate(values: Floats, seeds: int, least: float = 0.0) -> Estimate:
    """Of the estimate from all questions, those of each seed alone, and those of the draws, in this order; on a scale
    from `least` to 1."""
    value, own, drawn = float(values[0]), values[1 : 1 + seeds], values[1 + seeds :]
    ends = [value, *map(float, np.quantile(drawn, (0.025, 0.975)))]
    if seeds > 1:
        ends += seed_interval(own.tolist())
    return Estimate(value, max(least, min(ends)), min(1.0, max(ends)))


def _resampled(asked: Asked, rng: np.random.Generator) -> Floats:
    """[draws, Q]: how often each question is in a draw of as many places."""
    places = int(asked.place.max()) + 1
    return rng.multinomial(places, np.full(places, 1 / places), _DRAWS)[:, asked.place].astype(np.float64)


def _logistic(switch: Floats | np.float64, slope: Floats | np.float64, p: Floats) -> Floats:
    return 1 / (1 + np.exp(np.clip(slope * (p - switch), -40, 40)))


def _fits(asked: Asked, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """For each row of weights: the distribution of p on the grid, the switch and the slope. All questions with the same
    direct count are alike to the fit, so sums over those are all it needs."""
    kinds, code = np.unique(np.column_stack([asked.right, asked.tried]), axis=0, return_inverse=True)
    member = np.eye(len(kinds))[code.reshape(-1)]  # [Q, kinds]
    right, tried = kinds.T.astype(np.float64)
    chance = _GRID ** right[:, None] * (1 - _GRID) ** (tried - right)[:, None]  # [kinds, grid], up to a constant
    many, yes, made = ((weights * column) @ member for column in (1.0, asked.searched, asked.free))
    prior = _mixture(chance, many)
    columns = np.meshgrid(_SWITCHES, _SLOPES, indexing="ij")
    switches, slopes = (column.reshape(-1) for column in columns)
    model = _logistic(switches[:, None], slopes[:, None], _GRID).T  # [grid, fits]
    best = np.empty(len(weights), dtype=np.int64)
    for start in range(0, len(weights), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        expected = np.clip(_left_open(chance, prior[rows]) @ model, 1e-6, 1 - 1e-6)  # [rows, kinds, fits]
        score = yes[rows, :, None] * np.log(expected) + (made - yes)[rows, :, None] * np.log1p(-expected)
        best[rows] = score.sum(axis=1).argmax(axis=1)
    return prior, switches[best], slopes[best]


def _crossed(asked: Asked, weights: Floats, prior: Floats) -> Floats:
    """For each row of weights: where p is what the best search is worth. That worth differs with p (places that the
    policy knows less well are often those that it searches better), so a line in p is fitted to it, and p = worth(p)
    solved. Counts tell of worth through p alone, so the mean that they leave of p stands for it."""
    known = ~np.isnan(asked.worth)
    chance = _GRID ** asked.right[known, None] * (1 - _GRID) ** (asked.tried - asked.right)[known, None]
    worth, found = asked.worth[known], np.empty(len(weights))
    for row, (counted, over) in enumerate(zip(weights[:, known], prior, strict=True)):
        joint = chance * over
        p = joint @ _GRID / joint.sum(axis=1)
        p_mean, worth_mean = (np.average(column, weights=counted) for column in (p, worth))
        spread = np.average((p - p_mean) ** 2, weights=counted)
        together = np.average((p - p_mean) * (worth - worth_mean), weights=counted)
        slope = min(_STEEPEST, together / spread) if spread > _NO_SPREAD else 0.0
        found[row] = (worth_mean - slope * p_mean) / (1 - slope)
    return np.clip(found, 0.0, 1.0)


def _mixture(chance: Floats, many: Floats) -> Floats:
    """[rows, grid]: the distribution of p that makes the counts likely, from a flat one by EM."""
    prior = np.full((len(many), len(_GRID)), 1 / len(_GRID))
    share = many / many.sum(axis=1, keepdims=True)
    for _ in range(_EM_STEPS):
        prior = prior * ((share / (prior @ chance.T)) @ chance)
    return prior


def _left_open(chance: Floats, prior: Floats) -> Floats:
    """[rows, kinds, grid]: the distribution of p after a direct count."""
    joint = chance * prior[:, None, :]
    return joint / joint.sum(axis=2, keepdims=True)


def _bins(asked: Asked, prior: Floats) -> list[Bin]:
    """By the observed rate; p is the mean that the counts leave open, which luck has not pushed to the ends."""
    chance = _GRID ** asked.right[:, None] * (1 - _GRID) ** (asked.tried - asked.right)[:, None]
    p = _left_open(chance, prior[None])[0] @ _GRID
    number = np.minimum((asked.right / asked.tried * _BINS).astype(np.int64), _BINS - 1)
    found = []
    for here in (number == one for one in np.unique(number)):
        shares = asked.searched[here] / asked.free[here]
        ends = clustered_interval(shares, asked.place[here].tolist())
        found.append(Bin(float(p[here].mean()), Estimate(float(shares.mean()), *ends), int(here.sum())))
    return found
