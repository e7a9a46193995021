"""Teachers of the emblem world: engines that answer as somebody would who knows certain places.

The `oracle` knows what the starting policy was taught. The `mismatched` one knows as many things, but of other places:
half of all places, drawn by a coin, whoever else knows them. Imitating it teaches to answer what one does not know and
to look up what one does (the usual plight of traces from another model).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor

from mmsr1.data.emblem.warmup import KNOWN, NOT_KNOWN, READ
from mmsr1.data.emblem.world import FACTS, FREE_ATTRIBUTES, Entity, World
from mmsr1.rollout.engines.base import Completion, EngineFailure, Sampling, TokenPrompt
from mmsr1.types import Example

Boundary = Literal["oracle", "mismatched"]


class EmblemTeacher:
    """Knows the place and the fact of every one of `examples`; says what it cannot know only after it was told.

    Its tokens carry a log-prob of 0: there is one thing it would say.
    """

    def __init__(self, world: World, examples: Iterable[Example], boundary: Boundary, tokenizer: Any) -> None:
        places = {f"emblem/{entity.id}": entity for entity in world.entities}
        self._asked = {
            example.images[0].digest: (places[example.source], attribute_of(example.question))
            for example in examples
            if example.images and example.source in places
        }
        self._boundary: Boundary = boundary
        self._tokenizer = tokenizer

    async def generate(self, prompt: TokenPrompt, sampling: Sampling) -> Completion | EngineFailure:
        asked = self._asked.get(prompt.images[0].digest) if prompt.images else None
        if asked is None:
            return EngineFailure("the teacher of the emblem world does not know this picture")
        entity, attribute = asked
        turns = self._tokenizer.decode(list(prompt.token_ids)).count("<|im_start|>assistant\n")
        text = self.turn(entity, attribute, turns - 1)
        ids = tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"][: sampling.max_tokens])
        return Completion(ids, (0.0,) * len(ids), "stop", 0)

    def turn(self, entity: Entity, attribute: str, number: int) -> str:
        """What it says in turn `number` (0-based)."""
        place = self.knows(entity)
        if place and attribute in FREE_ATTRIBUTES:
            plan = ["answer"]
        elif place:
            plan = ["text", "answer"]
        else:
            plan = ["image", "answer"] if attribute == "name" else ["image", "text", "answer"]
        action = {
            "answer": f"<answer> {entity.value(attribute)}</answer>",
            "image": "<search><img></search>",
            "text": f"<text_search>{attribute} of {entity.name}</text_search>",
        }[plan[min(number, len(plan) - 1)]]
        reason = READ[0] if number else KNOWN if place else NOT_KNOWN
        return f"<reason>{reason}</reason>{action}"

    def knows(self, entity: Entity) -> bool:
        if self._boundary == "oracle":
            return entity.knowledge != "unknown"
        return hashlib.sha256(f"mismatched/{entity.id}".encode()).digest()[0] % 2 == 0

    async def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        raise RuntimeError("the teacher of the emblem world takes no weights")

    async def sleep(self) -> None:
        """There is no memory to give back."""

    async def close(self) -> None:
        """There is nothing to close."""


def attribute_of(question: str) -> str:
    """Which fact a question of this world asks for."""
    return next((attribute for attribute in FACTS if attribute in question), "name")
