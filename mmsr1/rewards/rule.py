"""The reward rule: r = (1 - a) * accuracy * penalty + a * format (MMSearch-R1, arXiv 2506.20670, eq. 1).

Text in, plain numbers out. The rule stands apart from `mmsr1.rewards.reward`, which wraps it in the stage types,
because those import torch and re-scoring recorded traces has to start at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from mmsr1.rewards.answer import exact_match, grade, substring_match
from mmsr1.rewards.format import format_score
from mmsr1.rollout.protocol import Answer, parse_turn, searches

Match = Literal["em", "subem", "graded"]
PenaltyMode = Literal["per_question", "per_call"]
_MATCHES: Mapping[Match, Callable[[str, Sequence[str]], float]] = {
    "em": exact_match,
    "subem": substring_match,
    "graded": grade,
}


@dataclass(frozen=True)
class RewardSpec:
    """The constants of the reward; the defaults are the paper's.

    `format_weight` is a, the share of the format; `search_penalty` is what a correct answer loses for searching, once
    (`per_question`) or for each call (`per_call`: (1 - penalty) ^ calls). `match` is exact, whole-word substring, or
    `graded`, where a partly right answer counts in part (see `mmsr1.rewards.answer.grade`); `aliases` says whether they
    count as truths. Over the first `penalty_warmup_steps` the penalty grows from 0. `crops`: an image search may name a
    part of the image (`Limits.crops`); without, such a call is malformed.
    Raises ValueError for a value out of range.
    """

    format_weight: float = 0.1
    search_penalty: float = 0.1
    match: Match = "em"
    aliases: bool = True
    penalty_mode: PenaltyMode = "per_question"
    penalty_warmup_steps: int = 0
    crops: bool = False

    def __post_init__(self) -> None:
        for key in ("format_weight", "search_penalty"):
            if not 0.0 <= getattr(self, key) <= 1.0:
                raise ValueError(f"{key}: {getattr(self, key)!r} received; give a number from 0 to 1")
        for key, choices in (("match", get_args(Match)), ("penalty_mode", get_args(PenaltyMode))):
            if getattr(self, key) not in choices:
                raise ValueError(f"{key}: {getattr(self, key)!r} received; choose one of {', '.join(choices)}")
        if self.penalty_warmup_steps < 0:
            raise ValueError(f"penalty_warmup_steps: {self.penalty_warmup_steps!r} received; give 0 or more steps")


def final_answer(turns: Sequence[str]) -> str | None:
    """The answer that the last turn gives; None for an unfinished episode."""
    action = parse_turn(turns[-1]) if turns else None
    return action.text if isinstance(action, Answer) else None


def penalty_factor(calls: int, spec: RewardSpec, step: int = 0) -> float:
    """What a correct answer's accuracy is multiplied by, from 0 to 1, after `calls` searches at rollout step `step`."""
    if step < 0:
        raise ValueError(f"step: {step} received; give the rollout step, 0 or more")
    warmed = min(1.0, step / spec.penalty_warmup_steps) if spec.penalty_warmup_steps else 1.0
    charged = calls if spec.penalty_mode == "per_call" else min(calls, 1)
    return (1.0 - spec.search_penalty * warmed) ** charged


def apply_rule(
    turns: Sequence[str], answer: str, aliases: Sequence[str], spec: RewardSpec, step: int = 0
) -> tuple[float, dict[str, float]]:
    """The reward and its parts.

    Parts: `accuracy` (by `spec`), `exact_match` (the answer alone), `alias_match` (exact, aliases counted), `format`,
    `penalty` (the factor applied; 1 for a wrong answer, which has nothing to lose) and `searches` (their number; a
    tag only mentioned in the reasoning is none).
    """
    said = final_answer(turns)
    calls = len(searches(turns, spec.crops))
    accepted = (answer, *aliases) if spec.aliases else (answer,)
    accuracy = 0.0 if said is None else float(_MATCHES[spec.match](said, accepted))
    well_formed = format_score(turns, spec.crops)
    penalty = penalty_factor(calls, spec, step) if accuracy else 1.0
    parts = {
        "accuracy": accuracy,
        "exact_match": float(said is not None and exact_match(said, (answer,))),
        "alias_match": float(said is not None and exact_match(said, (answer, *aliases))),
        "format": well_formed,
        "penalty": penalty,
        "searches": float(calls),
    }
    return (1.0 - spec.format_weight) * accuracy * penalty + spec.format_weight * well_formed, parts
