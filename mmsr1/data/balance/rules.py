"""What a question needs of a policy, judged by what the policy did: the paper's rule and the counterfactual one.

Pure functions of counts. The paper's rule (MMSearch-R1, section 3.1) looks at free rollouts: what was right is what was
needed. A policy that always searches never shows that it need not; so the counterfactual rule lets it answer in every
way, forced, and takes the cheapest of those that are as good as the best.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from mmsr1.rollout.protocol import ActionName
from mmsr1.types import SearchNeed

Branch = Literal["none", "image", "text", "both"]
ORDER: tuple[Branch, ...] = get_args(Branch)  # the first wins among branches that tie in all
# What a branch forces, turn by turn.
BRANCHES: Mapping[Branch, tuple[ActionName, ...]] = {
    "none": ("answer",),
    "image": ("image_search", "answer"),
    "text": ("text_search", "answer"),
    "both": ("image_search", "text_search", "answer"),
}
CALLS: Mapping[Branch, int] = {branch: len(BRANCHES[branch]) - 1 for branch in ORDER}
NEED: Mapping[Branch, SearchNeed] = {"none": "free", "image": "image", "text": "text", "both": "both"}
DRAWS = 1000


@dataclass(frozen=True)
class Count:
    """How many of the `tried` rollouts were right. Those that infrastructure cut short are not among them."""

    right: int
    tried: int

    @property
    def rate(self) -> float:
        return self.right / self.tried if self.tried else 0.0


@dataclass(frozen=True)
class Verdict:
    """What a question needs, None if it is to be dropped: nothing got it right often enough.

    `confidence` is the chance that the rule would say the same of the true rates (0 to 1).
    """

    need: SearchNeed | None
    confidence: float


def branch_of(tools: Iterable[str]) -> Branch:
    """The branch that a free rollout took, by the tools that it called."""
    used = set(tools)
    if len(used) == 2:
        return "both"
    if not used:
        return "none"
    return "image" if "image_search" in used else "text"


def paper_rule(free: Mapping[Branch, Count]) -> SearchNeed | None:
    """By free rollouts, counted by what they did: all wrong: drop; any right without a search: free; else the only kind
    of search that was right. Where several kinds were, which the paper leaves open, the one with fewest calls.

    >>> paper_rule({"none": Count(0, 3), "text": Count(2, 4), "both": Count(1, 1)})
    'text'
    """
    right: list[Branch] = [branch for branch in ORDER if branch in free and free[branch].right]
    return NEED[right[0]] if right else None


def counterfactual_rule(
    forced: Mapping[Branch, Count], id: str, tolerance: float = 0.25, least: float = 0.25
) -> Verdict:
    """By forced rollouts: among the branches that are right at least (1 - `tolerance`) times as often as the best one,
    that with the fewest calls (of two with as many, the better one). Drop if the best rate is below `least`.

    The reward compares in the same way: a direct answer pays where p > (1 - penalty) x accuracy with search.

    The confidence comes from rates drawn from what the counts leave open (Beta(1 + right, 1 + wrong), independent),
    judged by the same rule; `id` seeds the draws. Raises ValueError if a branch was not tried.
    """
    untried = [branch for branch in ORDER if branch not in forced or not forced[branch].tried]
    if untried:
        raise ValueError(f"branches without a rollout: {', '.join(untried)}")
    counts = [forced[branch] for branch in ORDER]
    need = _cheapest(np.array([[count.rate for count in counts]]), tolerance, least)[0]
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big"))
    right, wrong = (np.array(values) for values in zip(*((c.right, c.tried - c.right) for c in counts), strict=True))
    drawn = _cheapest(rng.beta(1 + right, 1 + wrong, size=(DRAWS, len(counts))), tolerance, least)
    return Verdict(None if need < 0 else NEED[ORDER[need]], float(np.mean(drawn == need)))


def _cheapest(rates: np.ndarray, tolerance: float, least: float) -> np.ndarray:
    """The place of the chosen branch in each row [N, branches] of rates, -1 to drop."""
    best = rates.max(axis=1, keepdims=True)
    ties = rates >= best * (1 - tolerance) - 1e-9
    # Fewest calls first; of as many calls the higher rate, which adds less than a call; of equal ones the first.
    cost = np.array([CALLS[branch] for branch in ORDER]) - rates / 2
    chosen = np.where(ties, cost, np.inf).argmin(axis=1)
    return np.where(best[:, 0] >= least, chosen, -1)
