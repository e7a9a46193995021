"""Small conversations for the tests of renderer, episodes and worker: pictures, questions, tools in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from PIL import Image

from mmsr1.rollout.engines.base import Completion, EngineFailure, Sampling, TokenPrompt
from mmsr1.rollout.prompts import load_prompts
from mmsr1.rollout.protocol import STOP_STRINGS
from mmsr1.rollout.renderer import Renderer
from mmsr1.tools.pictures import decode, encode_png
from mmsr1.types import Example, Picture, Segment, ToolItem, ToolName, ToolResult

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=64, seed=0, stop=STOP_STRINGS)


def picture(number: int, edge: int = 56) -> Picture:
    return encode_png(Image.new("RGB", (edge, edge), (number % 256, number // 256, 99)))


def image_tokens(shown: Picture) -> int:
    """As Qwen2.5-VL counts: one token for each 28 x 28 pixels."""
    width, height = decode(shown).size
    return width * height // 28**2


def example(name: str = "q", images: Sequence[Picture] = (picture(0),), question: str = "what place has this flag?"):
    return Example(name, question, tuple(images), "Dulmen", (), "image", "test")


def make_renderer(tokenizer: Any, prompts: str = "emblem") -> Renderer:
    return Renderer(tokenizer, load_prompts(prompts), image_tokens)


def ids_of(segments: Sequence[Segment]) -> list[int]:
    return [token for segment in segments for token in segment.token_ids]


def text_of(tokenizer: Any, segments: Sequence[Segment]) -> str:
    """Everything as the model sees it, control tokens spelled out."""
    return tokenizer.decode(ids_of(segments), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def titled(*titles: str, thumbnails: int = 0) -> ToolResult:
    """A result with one item for each title, the first few with a thumbnail."""
    return ToolResult(
        "ok",
        tuple(
            ToolItem(
                title, f"text of {title}", f"https://{n}.example", picture(500 + n, 28) if n < thumbnails else None
            )
            for n, title in enumerate(titles)
        ),
    )


class MemoryTool:
    """A tool that answers from memory, keeps what it was asked, and can wait before it answers."""

    backend = "memory"
    price_usd = 0.0

    def __init__(
        self,
        name: ToolName,
        answer: ToolResult | Callable[[Any], ToolResult],
        wait: Callable[[Any], Awaitable[object]] = lambda query: asyncio.sleep(0),
    ) -> None:
        self.name: ToolName = name
        self.asked: list[Any] = []
        self._answer, self._wait = answer, wait

    async def __call__(self, query: Any) -> ToolResult:
        self.asked.append(query)
        await self._wait(query)
        return self._answer(query) if callable(self._answer) else self._answer


class TokenEngine:
    """Says the turns it is given, token by token, and stops as vLLM does.

    A turn is tokenised once, as a model would sample it. A call gives its next tokens: up to the first one that
    completes a stop string, the end-of-turn token, `max_tokens` or the turn's end. A prompt that ends with what was
    given last asks for more of the same turn, any other for the next one.
    """

    def __init__(self, tokenizer: Any, turns: Sequence[str]) -> None:
        self.turns = [tokenizer(turn, add_special_tokens=False)["input_ids"] for turn in turns]
        self.given: list[tuple[int, ...]] = []
        self.calls: list[tuple[TokenPrompt, Sampling]] = []
        self._tokenizer, self._waiting = tokenizer, iter(self.turns)
        self._rest: list[int] = []

    async def generate(self, prompt: TokenPrompt, sampling: Sampling) -> Completion | EngineFailure:
        self.calls.append((prompt, sampling))
        if not self.given or prompt.token_ids[-len(self.given[-1]) :] != self.given[-1]:
            self._rest = list(next(self._waiting))
        said: list[int] = []
        finish = "length"
        while self._rest and len(said) < sampling.max_tokens:
            said.append(self._rest.pop(0))
            text = self._tokenizer.decode(said, clean_up_tokenization_spaces=False)
            if any(stop in text for stop in sampling.stop) or said[-1] == self._tokenizer.eos_token_id:
                finish = "stop"
                break
        self.given.append(tuple(said))
        return Completion(tuple(said), tuple(-0.5 for _ in said), finish, 7)

    async def load_weights(self, tensors: Any, version: int) -> None: ...

    async def sleep(self) -> None: ...

    async def close(self) -> None: ...
