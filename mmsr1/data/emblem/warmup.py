"""Warm-up demonstrations: what makes a policy from nothing that knows some places and can search, but not when to.

Two kinds. *Facts*: a taught fact of a known place, answered directly; the loss of the decision itself (the action tag)
is left out, so that teaching facts does not teach answering. *Plans*: a whole conversation whose first action is drawn
at random and only weakly tied to what is known; contents that nobody could know (guesses) carry no loss.
In both the first reason says truthfully whether the place is known: that is the signal which RL later acts on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmsr1.data.emblem.drawing import Jitter, draw
from mmsr1.data.emblem.questions import ask, sentences
from mmsr1.data.emblem.world import (
    FACTS,
    FREE_ATTRIBUTES,
    SEARCH_ATTRIBUTES,
    SHIFTED_ATTRIBUTES,
    Entity,
    World,
    draw_emblem,
    draw_word,
    image_title,
    passages,
)
from mmsr1.rollout.renderer import Renderer
from mmsr1.types import Example, Segment, ToolCall, ToolItem, ToolName, ToolResult

KNOWN, NOT_KNOWN = "I know this flag", "I do not know this flag"
Part = tuple[str, float]  # text and the loss weight of its tokens

# Loss weights. What is thought of the flag and what is done are single choices among many certain tokens, so they count
# more; in fact demonstrations, all of known places, the thought counts less: it would teach that places are known.
_TEMPLATE, _VALUE, _CHOICE, _FACT_THOUGHT, _NOTHING = 1.0, 2.0, 3.0, 0.3, 0.0
READ: Part = ("I read the results", _TEMPLATE)


@dataclass(frozen=True)
class Demonstration:
    """A conversation to imitate: `weights[i]` are the loss weights of segment i's tokens, None if none is learned."""

    segments: tuple[Segment, ...]
    weights: tuple[tuple[float, ...] | None, ...]


@dataclass(frozen=True)
class WarmupSpec:
    """Shares of the demonstrations and chances of a plan's first action."""

    facts: float = 0.58  # short conversations: over half of them, a quarter of the tokens
    plans_known: float = 0.17
    direct_known: float = 0.45
    direct_unknown: float = 0.12
    image_first_known: float = 0.3
    image_first_unknown: float = 0.7


def warmup_sentences() -> list[str]:
    """All words of the warm-up but the names, for the tokenizer."""
    queries = [f"{attribute} of" for attribute in FACTS]
    items = [f"the {attribute} of" for attribute in FACTS] + ["the flag of", "a picture of", "flag of", " flag", " is"]
    replies = [
        KNOWN,
        NOT_KNOWN,
        READ[0],
        "No results",
        "Search failed",
        "No more searches",
        "Bad call",
        "Too long.",
        " Answer now.",
    ]
    return [*sentences(), *queries, *items, *replies, "user\n", "assistant\n", *"12345"]


class Demonstrator:
    """Draws demonstrations; `one(rng)` is a pure function of the generator's state."""

    def __init__(
        self,
        world: World,
        renderer: Renderer,
        spec: WarmupSpec,
        image_items: int,
        thumbnails: int,
        text_items: int,
        edge: int,
    ) -> None:
        self.world, self.renderer, self.spec = world, renderer, spec
        self.image_items, self.thumbnails, self.text_items = image_items, thumbnails, text_items
        self.taught = world.select("known") + world.select("graded")
        exposure = np.array([entity.exposure for entity in self.taught])
        self._taught_p = exposure / exposure.sum()
        self._known = world.select("known")
        rng = np.random.default_rng([world.spec.seed, 5])
        # Thumbnails are drawn once: they are 28 pixels of background to the model, and drawing is the slow part.
        self._pool = [draw(draw_emblem(rng), rng, Jitter(), edge) for _ in range(1024 if thumbnails else 0)]

    def one(self, rng: np.random.Generator) -> Demonstration:
        kind = rng.random()
        if kind < self.spec.facts:
            return self._fact(self.taught[rng.choice(len(self.taught), p=self._taught_p)], rng)
        if kind < self.spec.facts + self.spec.plans_known:
            attribute = str(rng.choice((*FREE_ATTRIBUTES, *SEARCH_ATTRIBUTES)))
            return self._plan(self._known[rng.integers(len(self._known))], attribute, True, rng)
        attribute = str(rng.choice((*FREE_ATTRIBUTES, *SEARCH_ATTRIBUTES, *SHIFTED_ATTRIBUTES, "name")))
        return self._plan(self.world.fresh(rng), attribute, False, rng)

    def _fact(self, entity: Entity, rng: np.random.Generator) -> Demonstration:
        attribute = str(rng.choice(FREE_ATTRIBUTES))
        talk = _Talk(self.renderer, ask(entity, attribute, "warmup", rng, Jitter()))
        value: Part = (f" {entity.value(attribute)}", _VALUE)
        talk.say((KNOWN, _FACT_THOUGHT), "answer", [value], decision=_NOTHING)
        return talk.demonstration()

    def _plan(self, entity: Entity, attribute: str, known: bool, rng: np.random.Generator) -> Demonstration:
        """Direct, image first or text first; then what follows sensibly from it."""
        taught = known and attribute in FREE_ATTRIBUTES
        talk = _Talk(self.renderer, ask(entity, attribute, "warmup", rng, Jitter()))
        reason: Part = (KNOWN if known else NOT_KNOWN, _CHOICE)
        value: Part = (f" {entity.value(attribute)}", _VALUE)
        guess: Part = (f" {draw_word(rng)}", _NOTHING)
        image_first = self.spec.image_first_known if known else self.spec.image_first_unknown
        if rng.random() < (self.spec.direct_known if taught else self.spec.direct_unknown):
            talk.say(reason, "answer", [value if taught else guess])
        elif attribute == "name" or rng.random() < image_first:
            self._by_image(talk, reason, entity, rng, last=False)
            if attribute == "name" or (taught and rng.random() < 0.5):
                talk.say(READ, "answer", [value])
            else:
                self._by_text(talk, READ, entity, attribute, (f" {entity.name}", _VALUE), rng, last=True)
                talk.say(READ, "answer", [value])
        elif known:
            self._by_text(talk, reason, entity, attribute, (f" {entity.name}", _VALUE), rng, last=False)
            talk.say(READ, "answer", [value])
        else:  # a text search about a place one cannot name: nothing useful comes back
            self._by_text(talk, reason, self.world.fresh(rng), attribute, guess, rng, last=False)
            if rng.random() < 0.5:
                self._by_image(talk, READ, entity, rng, last=True)
            talk.say(READ, "answer", [guess])
        return talk.demonstration()

    def _by_image(self, talk: _Talk, reason: Part, entity: Entity, rng: np.random.Generator, last: bool) -> None:
        talk.say(reason, "search", [("<img>", _TEMPLATE)])
        others = [self.world.fresh(rng) for _ in range(self.image_items - 1)]
        items = [
            ToolItem(image_title(place), thumbnail=self._thumbnail(rng) if i < self.thumbnails else None)
            for i, place in enumerate((entity, *others))
        ]
        talk.hear("image_search", items, last)

    def _by_text(
        self, talk: _Talk, reason: Part, place: Entity, attribute: str, name: Part, rng: np.random.Generator, last: bool
    ) -> None:
        talk.say(reason, "text_search", [(f"{attribute} of", _TEMPLATE), name])
        if name[1] == _NOTHING:  # a wrong name: what matches is the attribute, of other places
            pool = [
                p for _ in range(self.text_items) for p in passages(self.world.fresh(rng)) if p[0].endswith(attribute)
            ]
        else:
            pool = sorted(passages(place), key=lambda p: (not p[0].endswith(f"/{attribute}"), rng.random()))
        talk.hear("text_search", [ToolItem(title, text, url) for _, title, text, url in pool[: self.text_items]], last)

    def _thumbnail(self, rng: np.random.Generator):
        return self._pool[rng.integers(len(self._pool))]


class _Talk:
    """A conversation being written, through the renderer that rollouts use."""

    def __init__(self, renderer: Renderer, example: Example) -> None:
        self.renderer, self.question = renderer, example.question
        self.segments: list[Segment] = list(renderer.first(example))
        self.weights: list[tuple[float, ...] | None] = [None] * len(self.segments)

    def say(self, reason: Part, tag: str, content: Sequence[Part], decision: float = _CHOICE) -> None:
        parts = [
            ("<reason>", _TEMPLATE),
            reason,
            ("</reason>", _TEMPLATE),
            (f"<{tag}>", decision),
            *content,
            (f"</{tag}>", _TEMPLATE),
        ]
        for text, weight in parts:
            segment = self.renderer.policy_turn(text)
            self.segments.append(segment)
            self.weights.append((weight,) * len(segment.token_ids))

    def hear(self, tool: ToolName, items: Sequence[ToolItem], last: bool) -> None:
        result = ToolResult("ok", tuple(items))
        added = self.renderer.results(ToolCall(tool, ""), result, self.question, room=10**6, turn_open=True, last=last)
        self.segments += added
        self.weights += [None] * len(added)

    def demonstration(self) -> Demonstration:
        return Demonstration(tuple(self.segments), tuple(self.weights))
