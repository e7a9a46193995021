"""What every engine must do, whichever it is: sample from the given weights, and from the new ones after each sync.

One conversation has three turns and up to five pictures. The suite holds the engine against a forward pass of the
transformers library over the whole conversation, with the weights that the engine should have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmsr1.rollout.engines.base import Completion, EngineFailure, Sampling, TokenPrompt
from mmsr1.tools.pictures import decode
from tests.rollout.engines.talks import Tiny, followed_by, picture, question
from tests.tiny_model import perturb

GAP_LIMIT = (
    1e-4  # nats, float32: what positions, caches or weights that are out of step cost is at least a hundred times this
)
TIE = 1e-4  # two tokens this close may be chosen either way
Turns = list[tuple[TokenPrompt, Completion]]


class Violation(AssertionError):
    """What an engine did that it must not."""


@dataclass(frozen=True)
class Conformance:
    """The largest log-prob gap (nats) with each set of weights, the greedy tokens of all turns, and of these how many
    lie within a tie of the library's own choice."""

    gaps: tuple[float, ...]
    greedy: tuple[tuple[int, ...], ...]
    ties: int


async def check(engine: Any, tiny: Tiny, conversations: int) -> Conformance:
    """Greedy conversations, then sampled ones with the weights at the start, after an update of everything, and after
    one that leaves the vision tower alone. The pictures are the same throughout. Raises Violation."""
    greedy = await converse_all(engine, tiny, conversations, temperature=0.0)
    ties = sum(_check_greedy(tiny, *turn) for turn in greedy)
    gaps = [await _gap(engine, tiny, conversations, version=0)]
    for version, frozen in ((1, False), (2, True)):
        update(tiny, seed=version, frozen_vision=frozen)
        await engine.load_weights(weights(tiny), version)
        gaps.append(await _gap(engine, tiny, conversations, version))
    return Conformance(tuple(gaps), tuple(completion.token_ids for _, completion in greedy), ties)


def update(tiny: Tiny, seed: int, frozen_vision: bool) -> None:
    """Move the weights as a few training steps would; a head that is not tied moves on its own."""
    visual = {name: p.detach().clone() for name, p in tiny.model.named_parameters() if ".visual." in name}
    perturb(tiny.model, seed, scale=0.03)
    if frozen_vision:
        for name, parameter in tiny.model.named_parameters():
            if name in visual:
                parameter.data.copy_(visual[name])


def weights(tiny: Tiny) -> Iterator[tuple[str, Tensor]]:
    return ((name, parameter.detach()) for name, parameter in tiny.model.named_parameters())


async def converse_all(engine: Any, tiny: Tiny, count: int, temperature: float) -> Turns:
    """All turns of `count` concurrent conversations, in order."""
    talks = await asyncio.gather(*(_converse(engine, tiny, number, temperature) for number in range(count)))
    return [turn for talk in talks for turn in talk]


async def _converse(engine: Any, tiny: Tiny, number: int, temperature: float) -> Turns:
    prompt = question(tiny, number, *(picture(number * 10 + i) for i in range(number % 3)))
    turns: Turns = []
    for turn in range(3):
        draw = Sampling(temperature, top_p=1.0, max_tokens=12, seed=100 * number + turn)
        answer = await engine.generate(prompt, draw)
        if not isinstance(answer, Completion):
            raise Violation(f"conversation {number}, turn {turn}: {answer.reason}")
        turns.append((prompt, answer))
        prompt = followed_by(tiny, prompt, answer, f"and {turn}?", picture(1000 + number + turn, 56 + 28 * turn, 84))
    return turns


async def _gap(engine: Any, tiny: Tiny, conversations: int, version: int) -> float:
    turns = await converse_all(engine, tiny, conversations, temperature=1.0)
    gap = max(tiny.gap(prompt, completion) for prompt, completion in turns)
    if not gap <= GAP_LIMIT:
        raise Violation(f"weights {version}: log-probs differ by {gap:.2g} nats from the library's")
    wrong = {completion.weight_version for _, completion in turns} - {version}
    if wrong:
        raise Violation(f"tokens of weights {version} are said to be of {wrong}")
    return gap


def _check_greedy(tiny: Tiny, prompt: TokenPrompt, completion: Completion) -> int:
    """How many tokens are not the likeliest but lie within a tie of it. Raises Violation for any other."""
    scores = tiny.scores(prompt, completion.token_ids)
    config = tiny.model.config
    banned = [getattr(config, f"{name}_token_id") for name in ("image", "video", "vision_start", "vision_end")]
    scores[:, banned] = -torch.inf
    chosen = scores.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
    behind = scores.max(1).values - chosen
    if not behind.max() <= TIE:
        raise Violation(f"a greedy token is {behind.max():.2g} nats behind the likeliest")
    return int((behind > 0).sum())


class ExpandsPlaceholders:
    """A planted fault: the engine is sent one placeholder for every patch of an image, as the trainer needs them."""

    def __init__(self, engine: Any, tiny: Tiny) -> None:
        self._engine, self._tiny = engine, tiny
        self.load_weights: Callable[..., Any] = engine.load_weights

    async def generate(self, prompt: TokenPrompt, sampling: Sampling) -> Completion | EngineFailure:
        sizes = iter([decode(image).size for image in prompt.images])
        pad, ids = self._tiny.model.config.image_token_id, []
        for token in prompt.token_ids:
            width, height = next(sizes) if token == pad else (28, 28)
            ids += [token] * (width // 28 * (height // 28))
        return await self._engine.generate(replace(prompt, token_ids=tuple(ids)), sampling)


class KeepsOneTensor:
    """A planted fault: a sync in which one tensor arrives with its old content."""

    def __init__(self, engine: Any, tiny: Tiny, name: str) -> None:
        self.generate: Callable[..., Any] = engine.generate
        self._engine, self._name = engine, name
        self._old = dict(tiny.model.named_parameters())[name].detach().clone()

    async def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        stale = ((name, self._old if name == self._name else tensor) for name, tensor in tensors)
        await self._engine.load_weights(stale, version)


# One of the vision tower, one of the language model that is fused inside vLLM, and the embedding (with its tied head).
TENSORS = (
    "model.visual.blocks.0.attn.qkv.weight",
    "model.language_model.layers.0.self_attn.k_proj.weight",
    "model.language_model.embed_tokens.weight",
)
