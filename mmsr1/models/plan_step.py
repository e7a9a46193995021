"""Who trains on what in one step: groups to mini-batches, mini-batches to ranks, a rank's episodes to micro-batches.

Every rank holds all groups of the step, so each computes the whole plan alone and they agree without a word. The
mini-batches and their sizes do not depend on the number of ranks; that makes the gradient of two processes the
gradient of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mmsr1.models.grpo import MiniBatchSize
from mmsr1.models.packing import by_token_budget
from mmsr1.models.ranks import share_out
from mmsr1.types import Episode, Group


@dataclass(frozen=True)
class Work:
    """An episode to train on; `length` in tokens, images expanded."""

    episode: Episode
    advantage: float
    length: int


@dataclass(frozen=True)
class MiniBatchPlan:
    """One optimiser step as one rank sees it: its micro-batches, how many every rank makes, and the global size."""

    micro_batches: Sequence[Sequence[Work]]
    count: int
    size: MiniBatchSize


def plan_step(
    groups: Sequence[Group],
    mini_batches: int,
    token_budget: int,
    rank: int,
    ranks: int,
    length: Callable[[Episode], int],
    keep_equal: bool = False,
) -> list[MiniBatchPlan]:
    """The optimiser steps of one training step; none if no group carries a gradient.

    Groups without advantages are left out, unless `keep_equal`: their tokens then count in the means, and in the KL.

    Groups stay whole on one rank, so that their images are encoded once; among the ranks they are balanced by tokens.
    """
    useful = [group for group in groups if any(group.trained_G) and (keep_equal or not group.all_equal)]
    count = min(mini_batches, len(useful))
    ends = [-(-len(useful) * i // count) for i in range(count + 1)] if count else []
    return [_plan_one(useful[start:end], token_budget, rank, ranks, length) for start, end in pairwise(ends)]


def _plan_one(
    groups: Sequence[Group], token_budget: int, rank: int, ranks: int, length: Callable[[Episode], int]
) -> MiniBatchPlan:
    work = [_work_of(group, length) for group in groups]
    shares = share_out([sum(one.length for one in group) for group in work], ranks)
    bins = [
        by_token_budget([one for index in share for one in work[index]], lambda one: one.length, token_budget)
        for share in shares
    ]
    sampled = [one.episode.sampled_tokens for group in work for one in group]
    size = MiniBatchSize(tokens=sum(sampled), sequences=sum(tokens > 0 for tokens in sampled))
    return MiniBatchPlan(bins[rank], max(len(rank_bins) for rank_bins in bins), size)


def _work_of(group: Group, length: Callable[[Episode], int]) -> list[Work]:
    rollouts = zip(group.episodes_G, group.advantages_G, group.trained_G, strict=True)
    return [Work(episode, advantage, length(episode)) for episode, advantage, trained in rollouts if trained]
