"""From an episode to its reward: the rule of `mmsr1.rewards.rule` in the stage types."""

from __future__ import annotations

from collections.abc import Sequence

from mmsr1.rewards.rule import RewardSpec, apply_rule
from mmsr1.types import Episode, Example, Reward

__all__ = ["RewardSpec", "score", "score_turns"]


def score_turns(turns: Sequence[str], answer: str, aliases: Sequence[str], spec: RewardSpec, step: int = 0) -> Reward:
    """Reward of the model's turns; `step` is the rollout step (it matters only to a penalty that warms up).

    >>> score_turns(["<reason>I know it.</reason><answer>Kent</answer>"], "Kent", (), RewardSpec()).total
    1.0
    """
    total, parts = apply_rule(turns, answer, aliases, spec, step)
    return Reward(total, parts)


def score(example: Example, episode: Episode, spec: RewardSpec, step: int = 0) -> Reward:
    """Reward of an episode about `example`. Raises ValueError if the episode is about another one."""
    if episode.example_id != example.id:
        raise ValueError(f"example: {example.id!r} received for an episode of {episode.example_id!r}; pair them by id")
    return score_turns(episode.turns, example.answer, example.aliases, spec, step)
