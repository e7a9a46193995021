"""The groups of each training step: rolled out when they are asked for, or ahead, while the step before trains."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import lru_cache

from pydantic import ConfigDict, TypeAdapter

from mmsr1.models.ranks import Ranks
from mmsr1.rollout.engines.base import Sampling
from mmsr1.rollout.stream import Place, Places, RolloutStream, StreamSpec, StreamState, left_over
from mmsr1.rollout.worker import OnEpisode, Prompt, RolloutWorker, first_rollouts
from mmsr1.types import Episode, Example, Group

Judge = Callable[[Example, Sequence[Episode], int], Group]

# Exact both ways: numbers as their shortest round-tripping text, pictures as base64; unlike a pickle it runs nothing.
_STATE = TypeAdapter(
    tuple[StreamState],  # in a tuple, because a data class would not take the settings
    config=ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants"),
)


@dataclass(frozen=True)
class SupplySpec:
    """`stream` is that of all ranks together: groups a step, and so on. `steps` is where the order of prompts ends."""

    stream: StreamSpec
    group_size: int
    steps: int

    def share(self, ranks: Ranks) -> StreamSpec:
        """What falls to one rank."""
        whole = self.stream
        quota, extra, refills = (len(ranks.mine(range(n))) for n in (whole.quota, whole.extra, whole.max_refills))
        return replace(whole, quota=quota, extra=extra, max_refills=refills)


class GroupSupply:
    """One rank's part in the groups of all steps. Collectives are named; other calls concern this rank alone.

    `prompts` gives all examples of a step (0-based), `judge` makes a group of the episodes of an example and the
    number of its step (1-based), on the worker's thread. `saved` holds what all ranks of an earlier process had under
    way (see `state`); without it the supply begins at `first_step`.
    """

    def __init__(
        self,
        worker: RolloutWorker,
        prompts: Callable[[int], Sequence[Example]],
        judge: Judge,
        sampling: Sampling,
        spec: SupplySpec,
        ranks: Ranks,
        on_episode: OnEpisode,
        first_step: int = 0,
        saved: Sequence[bytes] = (),
    ) -> None:
        self._worker, self._judge, self._sampling, self._spec = worker, judge, sampling, spec
        self._on_episode, self._ranks = on_episode, ranks
        self._prompts = lru_cache(maxsize=4)(lambda step: _numbered(prompts(step), spec.group_size))
        states = [state for one in saved for state in _STATE.validate_json(one)]
        per_step, steps = spec.stream.quota, None if spec.stream.refill else spec.steps
        first, left = left_over(states, per_step) if states else (first_step, [])
        self._stream = RolloutStream(
            self._launch,
            Places(per_step, steps, ranks.rank, ranks.size, first, left),
            spec.share(ranks),
            ready=ranks.mine([one for state in states for one in state.ready]),
            dropped=ranks.mine([one for state in states for one in state.dropped]),
        )
        self._preparing: tuple[int, Future[float]] | None = None

    @property
    def expected(self) -> int:
        """Episodes that a step of this rank takes, refills apart."""
        return self._spec.share(self._ranks).quota * self._spec.group_size

    def begin(self, step: int, version: int) -> None:
        """Start what `step` (0-based) still lacks; the engine has the weights of `version`."""
        self._preparing = (step, self._worker.submit(self._prepare(step, version)))

    def settle(self) -> None:
        """Wait until nothing is on its way."""
        if self._preparing is not None:
            self._worker.wait(self._preparing[1])

    def finish(self, step: int, version: int) -> tuple[list[Group], float]:
        """The step's groups of all ranks, and the seconds that this rank's rollouts took. A collective.

        They are begun here if that has not happened before.
        """
        if self._preparing is None or self._preparing[0] != step:
            self.begin(step, version)
        assert self._preparing is not None
        seconds = self._worker.wait(self._preparing[1])
        self._preparing = None
        return self._ranks.interleave(self._worker.call(self._take())), seconds

    def state(self) -> bytes:
        """What this rank has under way, as bytes. Groups that are not complete yet will have to be rolled out again."""
        return self._worker.call(self._state())

    async def _prepare(self, step: int, version: int) -> float:
        start = time.perf_counter()
        await self._stream.prepare(step, version)
        return time.perf_counter() - start

    async def _take(self) -> list[Group]:
        return self._stream.take()

    async def _state(self) -> bytes:
        return _STATE.dump_json((self._stream.state(),))

    def _launch(self, places: Sequence[Place]) -> list[asyncio.Task[Group]]:
        prompts = [self._prompts(place.step)[place.index] for place in places]
        started = [
            Prompt(example, first, place.step + 1) for (example, first), place in zip(prompts, places, strict=True)
        ]
        size = self._spec.group_size
        rolling = self._worker.launch(started, size, self._sampling, "train", self._on_episode)

        async def judged(prompt: Prompt, episodes: asyncio.Task[tuple[Episode, ...]]) -> Group:
            return self._judge(prompt.example, await episodes, prompt.step)

        loop = asyncio.get_running_loop()
        return [loop.create_task(judged(prompt, task)) for prompt, task in zip(started, rolling, strict=True)]


def _numbered(examples: Sequence[Example], group_size: int) -> list[tuple[Example, int]]:
    return list(zip(examples, first_rollouts(examples, group_size), strict=True))
