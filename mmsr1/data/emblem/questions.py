"""Questions about emblems: what is asked, in which words, of which places; the splits of the built-in data set.

Every split is a pure function of the world and a seed. Free questions ask taught facts of known places; the required
half is spread evenly over text, image and both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from mmsr1.data.emblem.drawing import Jitter, draw
from mmsr1.data.emblem.world import (
    FREE_ATTRIBUTES,
    SEARCH_ATTRIBUTES,
    SHIFTED_ATTRIBUTES,
    Entity,
    Knowledge,
    Split,
    World,
)
from mmsr1.types import Example

_NAME_WORDINGS = ("what place has this flag?", "name the place of this flag")
_FACT_WORDINGS = ("what is the {} of this place?", "tell the {} of this place")
_SHIFTED_NAME = ("which place does the emblem show?",)
_SHIFTED_FACT = ("give the {} that belongs to the emblem",)

# Which places and which attributes make up a need.
_NEEDS: dict[str, tuple[Knowledge, tuple[str, ...]]] = {
    "free": ("known", FREE_ATTRIBUTES),
    "text": ("known", SEARCH_ATTRIBUTES),
    "image": ("unknown", ("name",)),
    "both": ("unknown", tuple(a for a in (*FREE_ATTRIBUTES, *SEARCH_ATTRIBUTES) if a != "name")),
}
_REQUIRED = ("text", "image", "both")
SHIFTED_JITTER = Jitter(shift=3, gain=0.2, noise=10.0)


def wording(attribute: str, rng: np.random.Generator, shifted: bool = False) -> str:
    if attribute == "name":
        choices = _SHIFTED_NAME if shifted else _NAME_WORDINGS
    else:
        choices = _SHIFTED_FACT if shifted else _FACT_WORDINGS
    return choices[rng.integers(len(choices))].format(attribute)


def ask(
    entity: Entity, attribute: str, id: str, rng: np.random.Generator, jitter: Jitter, shifted: bool = False
) -> Example:
    """One photographed emblem and one question about its place."""
    return Example(
        id=id,
        question=wording(attribute, rng, shifted),
        images=(draw(entity.emblem, rng, jitter),),
        answer=entity.value(attribute),
        aliases=(),
        search_need=entity.need(attribute),
        source=f"emblem/{entity.id}",
    )


def train_examples(world: World, count: int) -> list[Example]:
    """`count` questions of each half: free, and required (a third each of text, image, both)."""
    rng = np.random.default_rng([world.spec.seed, 1])
    free = list(_asked(world, "free", "train", count, rng))
    required = [e for need in _REQUIRED for e in _asked(world, need, "train", count // 3, rng)]
    return free + required


def heldout_examples(world: World, count: int) -> list[Example]:
    """The fixed validation questions: half free, the other half spread evenly over text, image and both."""
    rng = np.random.default_rng([world.spec.seed, 2])
    free = list(_asked(world, "free", "heldout", count // 2, rng))
    return free + [e for need in _REQUIRED for e in _asked(world, need, "heldout", count // 6, rng)]


def graded_examples(world: World, per_attribute: int) -> list[Example]:
    """Every graded place asked for each taught attribute `per_attribute` times, each time a new photograph."""
    rng = np.random.default_rng([world.spec.seed, 3])
    return [
        ask(entity, attribute, f"graded-{entity.id}-{attribute}-{i}", rng, Jitter())
        for entity in world.select("graded")
        for attribute in FREE_ATTRIBUTES
        for i in range(per_attribute)
    ]


def shifted_examples(world: World, count: int) -> list[Example]:
    """Held-out places under a shift: new wording, stronger jitter, and an attribute that RL never asks for."""
    rng = np.random.default_rng([world.spec.seed, 4])
    shifted: list[Example] = []
    for need, share in (("free", count // 2), *((need, count // 6) for need in _REQUIRED)):
        knowledge, attributes = _NEEDS[need]
        if need in ("text", "both"):
            attributes = SHIFTED_ATTRIBUTES
        places = world.select(knowledge, "heldout")
        for i in range(share):
            entity, attribute = places[i % len(places)], attributes[i // len(places) % len(attributes)]
            example = ask(entity, attribute, f"shifted-{need}-{i:04d}", rng, SHIFTED_JITTER, shifted=True)
            shifted.append(replace(example, search_need=need))  # type: ignore[arg-type]
    return shifted


def _asked(world: World, need: str, split: Split, count: int, rng: np.random.Generator) -> Iterator[Example]:
    """`count` questions of a need, going round the places and attributes so that each is asked equally often."""
    knowledge, attributes = _NEEDS[need]
    places: Sequence[Entity] = world.select(knowledge, split)
    for i in range(count):
        lap, number = divmod(i, len(places))
        attribute = attributes[(lap + number) % len(attributes)]
        yield ask(places[number], attribute, f"{split}-{need}-{i:04d}", rng, Jitter())


def sentences() -> list[str]:
    """Every wording of this file, for the tokenizer."""
    wordings = (*_NAME_WORDINGS, *_SHIFTED_NAME, *_FACT_WORDINGS, *_SHIFTED_FACT)
    return [
        w.format(attribute)
        for w in wordings
        for attribute in (*SEARCH_ATTRIBUTES, *SHIFTED_ATTRIBUTES, "capital", "founder")
    ]
