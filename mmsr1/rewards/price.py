"""A requested number of calls per question: what a search must cost for the policy to make that many.

The penalty of the paper multiplies what a right answer is worth, so it never makes a search worse than a wrong answer:
where a question cannot be answered without, any penalty below 1 leaves searching worth its while. Here each call costs
a price that is charged on right and wrong answers alike, and may be negative. The price is set by a controller on the
calls that were measured, step by step: a proportional and an integral term, as in PID Lagrangian methods (Stooke et
al., arXiv 2007.03964), for a target that is met from both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from mmsr1.types import REACHED_TOOL, Episode, Group, Reward


@dataclass(frozen=True)
class PriceSpec:
    """`target` calls per question. The price is `proportional` times the calls above it plus `integral` times their
    sum over the steps so far, both in reward per call. Raises ValueError for values out of range."""

    target: float
    proportional: float
    integral: float

    def __post_init__(self) -> None:
        for key in ("target", "proportional", "integral"):
            if not getattr(self, key) >= 0.0:
                raise ValueError(f"{key}: {getattr(self, key)!r} received; give 0 or more")


class SearchPrice:
    """The controller: `value` is the price of a call now. The same calls give the same prices, on every rank."""

    def __init__(self, spec: PriceSpec, total: float = 0.0, value: float = 0.0) -> None:
        """`total` and `value` are those of `state`, for a run that goes on."""
        self.spec, self.total, self.value = spec, total, value

    def heed(self, groups: Sequence[Group]) -> None:
        """Set the price by the calls of a step. Episodes that infrastructure lost say nothing; without others the
        price stays."""
        kept = [
            calls_of(episode)
            for group in groups
            for episode, trained in zip(group.episodes_G, group.trained_G, strict=True)
            if trained
        ]
        if kept:
            above = fmean(kept) - self.spec.target
            self.total += above
            self.value = self.spec.proportional * above + self.spec.integral * self.total

    def state(self) -> dict[str, float]:
        return {"total": self.total, "value": self.value}


def calls_of(episode: Episode) -> int:
    """The calls that reached their tool."""
    return sum(made.result.status in REACHED_TOOL for made in episode.calls)


def charged(reward: Reward, episode: Episode, price: float) -> Reward:
    """The reward less the price of the episode's calls, which becomes its part `charged`."""
    charge = price * calls_of(episode)
    return Reward(reward.total - charge, {**reward.parts, "charged": charge})
