"""Deterministic rollouts: which requests share a batch depends on the episodes alone, never on timing.

The sum of a matrix product depends on the batch it is computed in, so a slow tool that lets one episode miss a batch
can change the last bits of another's log-probs. Here the engine works in waves. A wave starts when every episode that
is still there waits for the engine; its requests go in together, in the order of the episodes' ranks, and no other
is admitted before all of them are answered. The price is that each wave waits for its slowest tool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from mmsr1.rollout.engines.base import Completion, Engine, EngineFailure, Sampling, TokenPrompt


@dataclass(frozen=True)
class Turn:
    """A request that waits for its wave, or for its answer."""

    prompt: TokenPrompt
    sampling: Sampling
    answer: asyncio.Future[Completion | EngineFailure] = field(repr=False)


class Lockstep:
    """A gate in front of `engine`; `open` it once per batch of episodes.

    One batch at a time: `open` raises RuntimeError while an episode of an earlier one has not left.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._present: set[Handle] = set()
        self._turns: dict[Handle, Turn] = {}
        self._wave: asyncio.Task[None] | None = None

    def open(self, episodes: int) -> list[Handle]:
        """One engine per episode; the place in the list is the rank. Every one of them must `leave` in the end."""
        if self._present:
            raise RuntimeError(f"{len(self._present)} episodes of the last batch have not left the gate")
        handles = [Handle(self, rank) for rank in range(episodes)]
        self._present = set(handles)
        return handles

    async def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        await self._engine.load_weights(tensors, version)

    async def sleep(self) -> None:
        await self._engine.sleep()

    async def close(self) -> None:
        await self._engine.close()

    async def _generate(self, handle: Handle, prompt: TokenPrompt, sampling: Sampling) -> Completion | EngineFailure:
        if handle not in self._present:
            raise RuntimeError(f"episode {handle.rank} has left the gate and cannot generate")
        if handle in self._turns:
            raise RuntimeError(f"episode {handle.rank} already waits for its wave; an episode has one turn at a time")
        turn = self._turns[handle] = Turn(prompt, sampling, asyncio.get_running_loop().create_future())
        self._start_wave()
        try:
            return await turn.answer
        except asyncio.CancelledError:
            self._turns.pop(handle, None)
            self._leave(handle)
            raise

    def _leave(self, handle: Handle) -> None:
        self._present.discard(handle)
        self._start_wave()

    def _start_wave(self) -> None:
        """Start a wave if none runs and every episode still present waits for one."""
        if self._wave is None and self._turns and self._turns.keys() >= self._present:
            turns = [self._turns[handle] for handle in sorted(self._turns, key=lambda handle: handle.rank)]
            self._turns = {}
            self._wave = asyncio.get_running_loop().create_task(self._run_wave(turns))

    async def _run_wave(self, turns: list[Turn]) -> None:
        requests = [asyncio.ensure_future(self._engine.generate(turn.prompt, turn.sampling)) for turn in turns]
        for turn, request in zip(turns, requests, strict=True):
            turn.answer.add_done_callback(lambda answer, request=request: answer.cancelled() and request.cancel())
        try:
            results = await asyncio.gather(*requests, return_exceptions=True)
        finally:
            self._wave = None
        for turn, result in zip(turns, results, strict=True):
            if turn.answer.done():
                continue  # its episode was cancelled meanwhile
            if isinstance(result, BaseException):
                turn.answer.set_exception(result)
            else:
                turn.answer.set_result(result)
        self._start_wave()


class Handle:
    """The engine of one episode. Use it in a `with` block, or call `leave`, so that the others need not wait for it.

    A call of `generate` that is cancelled leaves the gate by itself.
    """

    def __init__(self, gate: Lockstep, rank: int) -> None:
        self._gate = gate
        self.rank = rank

    async def generate(self, prompt: TokenPrompt, sampling: Sampling) -> Completion | EngineFailure:
        """Wait for this episode's wave and its answer; what the engine raises for this request is raised here.

        Raises RuntimeError if the episode has left, or already waits for its wave.
        """
        return await self._gate._generate(self, prompt, sampling)

    def leave(self) -> None:
        """This episode generates no more; leaving twice does nothing."""
        self._gate._leave(self)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    async def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        raise RuntimeError("an episode does not load weights; call load_weights of the gate between two batches")

    async def sleep(self) -> None:
        raise RuntimeError("an episode does not put the engine to sleep; call sleep of the gate between two batches")

    async def close(self) -> None:
        self.leave()
