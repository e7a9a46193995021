"""The lockstep gate: what shares a wave depends on the episodes, not on the clock, and nobody waits for ever."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from mmsr1.rollout.engines.base import Completion, EngineFailure, Sampling, TokenPrompt
from mmsr1.rollout.engines.lockstep import Handle, Lockstep

SAMPLING = Sampling(1.0, 1.0, 4, 0)


class Recorder:
    """An engine with random delays that notes which requests are with it at the same time."""

    def __init__(self, seed: int) -> None:
        self.waves: list[list[int]] = []
        self.inside = 0
        self.cancelled = 0
        self._delays = random.Random(seed)

    async def generate(self, prompt: TokenPrompt, sampling: Sampling) -> Completion | EngineFailure:
        if self.inside == 0:
            self.waves.append([])
        self.waves[-1].append(prompt.token_ids[0])
        self.inside += 1
        try:
            await asyncio.sleep(self._delays.uniform(0, 0.004))
            if prompt.token_ids[0] == 666:
                raise ValueError("a fault of the engine")
            return Completion((1,), (-1.0,), "stop", 0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.inside -= 1

    async def load_weights(self, tensors, version): ...

    async def sleep(self): ...

    async def close(self): ...


async def episode(handle: Handle, turns: int, delays: random.Random) -> None:
    with handle:
        for _ in range(turns):
            await handle.generate(TokenPrompt((handle.rank,), ()), SAMPLING)
            await asyncio.sleep(delays.uniform(0, 0.004))  # a tool


def run(seed: int, play: Callable[[list[Handle], random.Random], Awaitable[object]], episodes: int) -> Recorder:
    engine, delays = Recorder(seed), random.Random(seed)

    async def main() -> None:
        async with asyncio.timeout(5):
            await play(Lockstep(engine).open(episodes), delays)

    asyncio.run(main())
    return engine


@pytest.mark.parametrize("seed", range(5))
def test_waves_are_the_same_whatever_the_delays(seed):
    turns = [3, 1, 4, 2, 1]

    async def play(handles, delays):
        tasks = [episode(handle, count, delays) for handle, count in zip(handles, turns, strict=True)]
        delays.shuffle(tasks)
        await asyncio.gather(*tasks)

    assert run(seed, play, 5).waves == [[0, 1, 2, 3, 4], [0, 2, 3], [0, 2], [2]]


def test_an_episode_that_leaves_before_its_first_turn_is_not_waited_for():
    async def play(handles, delays):
        handles[1].leave()
        handles[1].leave()
        await asyncio.gather(episode(handles[0], 2, delays), episode(handles[2], 1, delays))

    assert run(0, play, 3).waves == [[0, 2], [0]]


def test_a_failing_episode_lets_the_others_go_on():
    async def fail(handle):
        with handle:
            await handle.generate(TokenPrompt((handle.rank,), ()), SAMPLING)
            raise KeyError("a fault of the episode")

    async def play(handles, delays):
        results = await asyncio.gather(fail(handles[0]), episode(handles[1], 3, delays), return_exceptions=True)
        assert isinstance(results[0], KeyError) and results[1] is None

    assert run(0, play, 2).waves == [[0, 1], [1], [1]]


def test_an_exception_of_the_engine_reaches_its_own_episode_alone():
    async def doomed(handle):
        with handle:
            await handle.generate(TokenPrompt((666,), ()), SAMPLING)

    async def play(handles, delays):
        results = await asyncio.gather(doomed(handles[0]), episode(handles[1], 2, delays), return_exceptions=True)
        assert isinstance(results[0], ValueError) and results[1] is None

    assert run(0, play, 2).waves == [[666, 1], [1]]


def test_cancelling_an_episode_that_waits_for_its_wave_starts_the_wave_without_it():
    async def play(handles, delays):
        first = asyncio.create_task(handles[0].generate(TokenPrompt((0,), ()), SAMPLING))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, episode(handles[1], 2, delays), return_exceptions=True)
        with pytest.raises(RuntimeError, match="has left"):
            await handles[0].generate(TokenPrompt((0,), ()), SAMPLING)

    assert run(0, play, 2).waves == [[1], [1]]


def test_cancelling_an_episode_within_a_wave_cancels_its_request():
    engine = Recorder(0)

    async def main():
        handles = Lockstep(engine).open(2)
        first = asyncio.create_task(handles[0].generate(TokenPrompt((0,), ()), SAMPLING))
        second = asyncio.create_task(episode(handles[1], 2, random.Random(0)))
        async with asyncio.timeout(5):
            while engine.inside < 2:
                await asyncio.sleep(0)
            first.cancel()
            await second
        assert first.cancelled()

    asyncio.run(main())
    assert engine.waves == [[0, 1], [1]] and engine.cancelled == 1


def test_a_second_batch_opens_only_after_the_first_has_left():
    gate = Lockstep(Recorder(0))
    handles = gate.open(2)
    with pytest.raises(RuntimeError, match="2 episodes"):
        gate.open(1)

    async def main():
        for handle in handles:
            handle.leave()
        (fresh,) = gate.open(1)
        handles[0].leave()  # of the old batch: must not touch the new one
        await fresh.generate(TokenPrompt((5,), ()), SAMPLING)
        fresh.leave()

    asyncio.run(main())


def test_an_episode_has_one_turn_at_a_time():
    async def play(handles, delays):
        first = asyncio.create_task(handles[0].generate(TokenPrompt((0,), ()), SAMPLING))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already waits"):
            await handles[0].generate(TokenPrompt((0,), ()), SAMPLING)
        handles[1].leave()
        await first

    assert run(0, play, 2).waves == [[0]]
