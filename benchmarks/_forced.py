"""Episodes that go as they are told, on a real engine: the tokens are sampled, then replaced by those of a script.

A random policy would never search. So the engine samples exactly as many tokens as the script's turn has, with the
conversation so far as its prompt, and hands them over as the script's: time and load are those of a policy that says
this. (The next turn's prompt holds the script, so the engine reads that turn again instead of finding it in its cache.)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor

from mmsr1.rollout.engines.base import Completion, Engine, EngineFailure, Sampling, TokenPrompt
from mmsr1.types import ToolItem, ToolName, ToolResult


class ForcedEngine:
    """The Engine protocol over `engine`. `turns` holds the ids to say, by the seed of the request."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.turns: Mapping[int, tuple[int, ...]] = {}

    async def generate(self, prompt: TokenPrompt, sampling: Sampling) -> Completion | EngineFailure:
        """Raises RuntimeError if the engine sampled another number of tokens."""
        said = self.turns[sampling.seed]
        completion = await self.engine.generate(prompt, replace(sampling, max_tokens=len(said)))
        if isinstance(completion, EngineFailure):
            return completion
        if len(completion.token_ids) != len(said):
            raise RuntimeError(f"{len(completion.token_ids)} tokens sampled where the script has {len(said)}")
        return replace(completion, token_ids=said, finish="stop")

    async def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        await self.engine.load_weights(tensors, version)

    async def sleep(self) -> None:
        await self.engine.sleep()

    async def close(self) -> None:
        await self.engine.close()


class SlowSearch:
    """A text search that takes the seconds that `seconds` has for its query, and finds the same passage every time."""

    name: ToolName = "text_search"
    backend = "slow"
    price_usd = 0.0

    def __init__(self, passage: str) -> None:
        self.seconds: Mapping[str, float] = {}
        self._items = (ToolItem("", passage),)

    async def __call__(self, query: str) -> ToolResult:
        start = time.perf_counter()
        await asyncio.sleep(self.seconds[query])
        return ToolResult("ok", self._items, latency_s=time.perf_counter() - start)
