"""A transformers engine for one test or one module, and questions to it. It starts in a tenth of a second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmsr1.rollout.engines.base import Completion, Sampling, TokenPrompt
from mmsr1.rollout.engines.transformers import TransformersEngine
from tests.rollout.engines.talks import Tiny

TOLERANCE = 1e-4
Asked = Sequence[tuple[TokenPrompt, Sampling]]


@contextmanager
def started(tiny: Tiny, loop: asyncio.Runner, **arguments: Any) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(tiny.folder, **{"max_model_len": 512, "max_batch": 16, **arguments})
    yield engine
    loop.run(engine.close())


def ask(loop: asyncio.Runner, engine: TransformersEngine, requests: Asked) -> list[Any]:
    """All answers to concurrent requests, in order."""

    async def main() -> list[Any]:
        return await asyncio.gather(*(engine.generate(*request) for request in requests))

    return loop.run(main())


def gap(tiny: Tiny, requests: Asked, answers: Sequence[Completion]) -> float:
    return max(tiny.gap(prompt, answer) for (prompt, _), answer in zip(requests, answers, strict=True))


def passes(module: Any) -> list[int]:
    """A list that grows by one entry at each forward pass of a module of an engine's model."""
    made: list[int] = []
    module.register_forward_hook(lambda *_: made.append(1))
    return made


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)
