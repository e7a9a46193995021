"""The rollout worker: one background event-loop thread that owns engine and tools for the whole run."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from torch import Tensor

from mmsr1.rollout.engines.base import Engine, Sampling
from mmsr1.rollout.engines.lockstep import Lockstep
from mmsr1.rollout.episode import Limits, Tools, run_episode
from mmsr1.rollout.renderer import Renderer
from mmsr1.types import Episode, Example

T = TypeVar("T")
Job = tuple[Example, int]


class RolloutWorker:
    """Runs episodes, one coroutine each, and hands new weights to the engine.

    `concurrent` bounds the episodes in flight (each may hold decoded images). With `deterministic` the engine's batch
    composition is a function of the seed alone: all episodes of a call move in waves (see `engines.lockstep`).
    """

    def __init__(
        self,
        engine: Engine,
        tools: Tools,
        renderer: Renderer,
        limits: Limits,
        seed: int,
        concurrent: int = 512,
        deterministic: bool = False,
    ) -> None:
        self.engine, self.tools, self.renderer, self.limits = engine, tools, renderer, limits
        self.seed, self.concurrent, self.deterministic = seed, concurrent, deterministic
        self._batches: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollouts", daemon=True)
        self._thread.start()

    def rollout(
        self,
        examples: Sequence[Example],
        group_size: int,
        sampling: Sampling,
        split: str,
        step: int,
        on_episode: Callable[[Episode], None] = lambda episode: None,
        first: Sequence[int] | None = None,
    ) -> list[tuple[Episode, ...]]:
        """`group_size` episodes of every example, in order. `on_episode` is called on the loop's thread.

        `first` numbers the first rollout of each example, if these examples are only a share of the step's (see
        `first_rollouts`).
        """
        starts = first_rollouts(examples, group_size) if first is None else first
        jobs = [
            (example, start + rollout)
            for example, start in zip(examples, starts, strict=True)
            for rollout in range(group_size)
        ]
        episodes = self._wait(self._gather(jobs, sampling, split, step, on_episode))
        return [tuple(episodes[i : i + group_size]) for i in range(0, len(episodes), group_size)]

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        self._wait(self.engine.load_weights(tensors, version))

    def sleep(self) -> None:
        """Let the engine give its memory to the trainer until the next `load_weights`."""
        self._wait(self.engine.sleep())

    def close(self) -> None:
        """Stop the engine and the thread; episodes in flight are cancelled, and so is whoever waits for them."""
        if self._loop.is_closed():
            return
        try:
            self._wait(self._stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C on the waiting thread: nothing may go on behind its back
            future.cancel()
            raise

    async def _stop(self) -> None:
        await _cancel(self._batches)
        await self.engine.close()
        await _cancel(asyncio.all_tasks() - {asyncio.current_task()})  # searches that outlive their episodes

    async def _gather(
        self,
        jobs: Sequence[Job],
        sampling: Sampling,
        split: str,
        step: int,
        on_episode: Callable[[Episode], None],
    ) -> list[Episode]:
        batch = asyncio.current_task()
        assert batch is not None
        self._batches.add(batch)
        batch.add_done_callback(self._batches.discard)
        size = len(jobs) if self.deterministic else self.concurrent
        places = asyncio.Semaphore(max(1, size))
        handles = Lockstep(self.engine).open(len(jobs)) if self.deterministic else [None] * len(jobs)

        async def one(job: Job, handle: Any) -> Episode:
            example, rollout = job
            async with places:
                seed = (self.seed, split, step)
                try:
                    episode = await run_episode(
                        example, handle or self.engine, self.tools, self.renderer, self.limits, sampling, seed, rollout
                    )
                finally:
                    if handle is not None:
                        handle.leave()
            on_episode(episode)
            return episode

        async with asyncio.TaskGroup() as group:  # a bug in one episode cancels the others and surfaces at once
            tasks = [group.create_task(one(job, handle)) for job, handle in zip(jobs, handles, strict=True)]
        return [task.result() for task in tasks]


def first_rollouts(examples: Sequence[Example], group_size: int) -> list[int]:
    """The number of each example's first rollout: one that is there more than once is numbered on, so that its
    rollouts draw differently."""
    before: Counter[str] = Counter()
    starts = []
    for example in examples:
        starts.append(before[example.id])
        before[example.id] += group_size
    return starts


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel the tasks and wait until they have ended."""
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)
