"""Group-relative advantages: an episode is judged against the other rollouts of the same question.

GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1.2): A_i = (r_i - mean(r)) / std(r). Without the division it is the
estimator of Dr. GRPO (arXiv 2503.20783).
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Literal

from mmsr1.rewards.price import calls_of
from mmsr1.types import Episode, Example, Group, Reward

Normalise = Literal["std", "none"]

_EQUAL_SPREAD = 1e-8


def group_advantages(
    rewards: Sequence[float], trained: Sequence[bool], normalise: Normalise, eps: float = 1e-6
) -> tuple[float, ...]:
    """One advantage per rollout; mean and spread are those of the trained rollouts, the others get 0.

    `std` divides by the sample standard deviation (n - 1 in its denominator: the papers leave it open, veRL and TRL
    take this one) plus `eps`. All zeros if fewer than two are trained or if their rewards are equal (spread below
    1e-8): float dust divided by eps would otherwise become an advantage. Raises ValueError for lengths that differ
    or an unknown `normalise`.

    >>> group_advantages([1.0, 0.0, 0.5], [True, True, False], "none")
    (0.5, -0.5, 0.0)
    """
    if len(rewards) != len(trained):
        raise ValueError(f"trained: {len(trained)} flags received for {len(rewards)} rewards; give one for each")
    if normalise not in ("std", "none"):
        raise ValueError(f"normalise: {normalise!r} received; choose one of std, none")
    counted = [r for r, t in zip(rewards, trained, strict=True) if t]
    if len(counted) < 2 or max(counted) - min(counted) < _EQUAL_SPREAD:
        return (0.0,) * len(rewards)
    mean = fmean(counted)
    scale = stdev(counted) + eps if normalise == "std" else 1.0
    return tuple((r - mean) / scale if t else 0.0 for r, t in zip(rewards, trained, strict=True))


def efficiency_advantages(calls: Sequence[int], right: Sequence[bool], normalise: Normalise) -> tuple[float, ...]:
    """How much fewer calls each right answer took than the other right ones of its group; 0 for all others.

    A channel of its own beside the reward, as in HDPO: wrong answers neither gain nor lose by their searches, nor do
    they move what right ones are compared with.

    >>> efficiency_advantages([0, 2, 0], [True, True, False], "none")
    (1.0, -1.0, 0.0)
    """
    return group_advantages([-float(count) for count in calls], right, normalise)


def make_group(
    example: Example,
    episodes: Sequence[Episode],
    rewards: Sequence[Reward],
    trained: Sequence[bool],
    normalise: Normalise,
    efficiency: float = 0.0,
) -> Group:
    """The rollouts of one example with their advantages, to which `efficiency` times those of `efficiency_advantages`
    are added. Raises ValueError for lengths that differ."""
    if len(episodes) != len(rewards):
        raise ValueError(f"rewards: {len(rewards)} received for {len(episodes)} episodes; give one for each")
    advantages = group_advantages([reward.total for reward in rewards], trained, normalise)
    if efficiency:
        right = [t and reward.parts["accuracy"] >= 0.5 for reward, t in zip(rewards, trained, strict=True)]
        fewer = efficiency_advantages([calls_of(episode) for episode in episodes], right, normalise)
        advantages = tuple(a + efficiency * b for a, b in zip(advantages, fewer, strict=True))
    return Group(example, tuple(episodes), tuple(rewards), advantages, tuple(trained))
