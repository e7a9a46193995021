"""Every question freely and with each way of searching forced: what an evaluation and the end of a training run ask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmsr1.assembly.rollout import reward_spec, sampling
from mmsr1.config import Config
from mmsr1.data.balance.records import record
from mmsr1.data.balance.rules import BRANCHES
from mmsr1.data.review.decisions import content_of
from mmsr1.evaluation.counterfactual import Price
from mmsr1.evaluation.outcome import cluster_of
from mmsr1.rewards.reward import score
from mmsr1.rollout.protocol import ActionName
from mmsr1.rollout.record import refusal
from mmsr1.rollout.worker import Job, Prompt, RolloutWorker
from mmsr1.types import Episode, Example, Reward

WAYS: Mapping[str, tuple[ActionName, ...]] = {"free": (), **BRANCHES}
_SPLIT = "branch_"  # begins the splits that the draws of ways belong to


@dataclass(frozen=True)
class Scored:
    """One judged episode."""

    example: Example
    episode: Episode
    reward: Reward


@dataclass(frozen=True)
class Branches:
    """`size` sampled rollouts of each way (greedy ones would all be the same). `spent` says why nothing more is to be
    asked, None while it may be; `advance` is called for every episode that ended."""

    config: Config
    worker: RolloutWorker
    size: int
    spent: Callable[[], str | None]
    advance: Callable[[], None] = lambda: None

    def roll(self, examples: Iterable[Example], keep: Callable[[dict[str, Any]], None]) -> None:
        """`keep` gets the line of each question (see `mmsr1.evaluation.counterfactual`) as soon as all its ways were
        gone, on the worker's thread; a question of which infrastructure or money lost too many gets none."""
        spec, found, refused = reward_spec(self.config), dict[str, dict[str, list[Scored]]](), set[str]()

        async def judged(job: Job, episodes: tuple[Episode, ...]) -> None:
            example = job.prompt.example
            ways = found.setdefault(example.id, {})
            scored = [Scored(example, episode, score(example, episode, spec)) for episode in episodes]
            ways[job.split.removeprefix(_SPLIT)] = scored
            for episode in episodes:
                self.advance()
                if refusal(episode, self.worker.limits.searches) is not None:
                    refused.add(example.id)  # what lacks its searches for want of money says nothing about them
            if len(ways) == len(WAYS):
                del found[example.id]
                useless = self.spent() or example.id in refused
                line = None if useless else record(example, ways.pop("free"), ways)  # type: ignore[arg-type]
                if line is not None:
                    about = {"id": example.id, "content": content_of(example), "cluster": cluster_of(example)}
                    keep({**about, **line})

        self.worker.flow(self._jobs(examples), judged)

    def _jobs(self, examples: Iterable[Example]) -> Iterator[Job]:
        plain = sampling(self.config)
        drawn = replace(plain, temperature=plain.temperature or 1.0)
        for example in examples:
            if self.spent() is not None:
                return
            for way, actions in WAYS.items():
                limits = replace(self.worker.limits, actions=actions)
                yield Job(Prompt(example, 0, 0), self.size, f"{_SPLIT}{way}", drawn, limits)


def price(config: Config) -> Price:
    """What the rewards of the configuration charge for a search."""
    return Price(config.rewards.search_penalty, config.rewards.penalty_mode)  # type: ignore[arg-type]


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` of them, evenly spread over their order, which is often by need."""
    if count >= len(examples):
        return list(examples)
    return [examples[i * len(examples) // count] for i in range(count)]
