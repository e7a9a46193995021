"""Warm-up demonstrations: what is learned from them, what is not, and that rollouts would look the same."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from mmsr1.data.emblem.tokenizer import build_tokenizer
from mmsr1.data.emblem.warmup import KNOWN, NOT_KNOWN, Demonstration, Demonstrator, WarmupSpec, warmup_sentences
from mmsr1.data.emblem.world import FREE_ATTRIBUTES, World
from mmsr1.rollout.prompts import load_prompts
from mmsr1.rollout.protocol import Answer, parse_turn, searches, well_formed
from mmsr1.rollout.renderer import Renderer
from mmsr1.types import Segment

REPLY = "<|im_start|>assistant\n"


class RecordingRenderer(Renderer):
    """Keeps every segment that it made."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.made: list[Segment] = []

    def _keep(self, segments: list[Segment]) -> list[Segment]:
        self.made += segments
        return segments

    def first(self, *args: Any) -> list[Segment]:
        return self._keep(super().first(*args))

    def results(self, *args: Any, **kwargs: Any) -> list[Segment]:
        return self._keep(super().results(*args, **kwargs))

    def policy_turn(self, text: str) -> Segment:
        return self._keep([super().policy_turn(text)])[0]


@dataclass(frozen=True)
class Reading:
    """A demonstration as text: the policy's turns, and of each its pieces with their loss weights."""

    demonstration: Demonstration
    text: str
    turns: list[str]
    pieces: list[list[tuple[str, set[float]]]] = field(default_factory=list)


@pytest.fixture(scope="module")
def renderer() -> RecordingRenderer:
    return RecordingRenderer(build_tokenizer(warmup_sentences()), load_prompts("emblem"), lambda picture: 1)


def read(renderer: Renderer, demonstration: Demonstration) -> Reading:
    """Turns are told from the rest by having weights; a new one starts after everything that has none."""
    pieces: list[list[tuple[str, set[float]]]] = []
    text, spoke = "", False
    for segment, weights in zip(demonstration.segments, demonstration.weights, strict=True):
        spelt = renderer.tokenizer.decode(segment.token_ids)
        if weights is not None:
            assert len(weights) == len(segment.token_ids)
            pieces += [] if spoke else [[]]
            pieces[-1].append((spelt, set(weights)))
        spoke = weights is not None
        text += spelt
    return Reading(demonstration, text, ["".join(spelt for spelt, _ in turn) for turn in pieces], pieces)


def draw(world: World, renderer: Renderer, spec: WarmupSpec, count: int, seed: int = 0, **more: Any) -> list[Reading]:
    options = {"image_items": 3, "thumbnails": 0, "text_items": 3, "edge": 28} | more
    demonstrator, rng = Demonstrator(world, renderer, spec, **options), np.random.default_rng(seed)
    return [read(renderer, demonstrator.one(rng)) for _ in range(count)]


FACTS_ONLY = WarmupSpec(facts=1.0, plans_known=0.0)
KNOWN_ONLY = WarmupSpec(facts=0.0, plans_known=1.0)
UNKNOWN_ONLY = WarmupSpec(facts=0.0, plans_known=0.0)
CASES = {"facts": FACTS_ONLY, "known": KNOWN_ONLY, "unknown": UNKNOWN_ONLY}


@pytest.fixture(scope="module")
def drawn(small: World, renderer: Renderer) -> dict[str, list[Reading]]:
    return {name: draw(small, renderer, spec, 100) for name, spec in CASES.items()}


def content(pieces: list[tuple[str, set[float]]]) -> tuple[str, set[float]]:
    """What stands between the action's tags, its last piece: the answer, or the name in a query."""
    return pieces[-2]


def taught_values(world: World) -> set[str]:
    places = world.select("known") + world.select("graded")
    return {place.value(attribute) for place in places for attribute in FREE_ATTRIBUTES}


def test_each_is_a_conversation_in_the_protocol(drawn: dict[str, list[Reading]]) -> None:
    for reading in (reading for readings in drawn.values() for reading in readings):
        assert all(well_formed(turn) for turn in reading.turns) and len(reading.turns) <= 3
        assert isinstance(parse_turn(reading.turns[-1]), Answer)
        assert len(searches(reading.turns)) == len(reading.turns) - 1
        assert searches(reading.turns).count("image_search") <= 1
        assert all(REPLY + turn in reading.text for turn in reading.turns)
        assert reading.text.endswith(reading.turns[-1])


def test_the_first_thought_says_whether_the_place_is_known(drawn: dict[str, list[Reading]]) -> None:
    for kind, thought in (("facts", KNOWN), ("known", KNOWN), ("unknown", NOT_KNOWN)):
        for reading in drawn[kind]:
            assert reading.turns[0].startswith(f"<reason>{thought}</reason>")
            assert not any(KNOWN in turn or NOT_KNOWN in turn for turn in reading.turns[1:])


def test_facts_teach_the_answer_but_not_the_decision_to_answer(
    drawn: dict[str, list[Reading]], small: World, renderer: Renderer
) -> None:
    values = taught_values(small)
    for reading in drawn["facts"]:
        (turn,) = reading.pieces
        weights = dict(turn)
        assert weights["<answer>"] == {0.0}
        value, weight = content(turn)
        assert value.startswith(" ") and value.strip() in values and weight == {2.0}
        assert len(renderer.tokenizer.encode(value)) == 2
        assert 0.0 not in set().union(*(w for spelt, w in turn if spelt not in ("<answer>", "<reason>", KNOWN)))


def test_plans_teach_their_decisions(drawn: dict[str, list[Reading]]) -> None:
    for reading in drawn["known"] + drawn["unknown"]:
        for turn in reading.pieces:
            decision = next(w for spelt, w in turn if spelt in ("<answer>", "<search>", "<text_search>"))
            assert min(decision) > 0


def test_what_is_learned_with_double_weight_can_be_known_or_copied(
    drawn: dict[str, list[Reading]], small: World
) -> None:
    values = taught_values(small)
    names = {place.name for place in small.select("known")}
    for reading in drawn["known"] + drawn["unknown"]:
        for turn, pieces in zip(reading.turns, reading.pieces, strict=True):
            word, weights = content(pieces)
            if word == "<img>":
                continue
            before = reading.text[: reading.text.index(REPLY + turn)]
            knows = reading in drawn["known"]
            possible = f"{word}\n" in before or f"{word} flag" in before
            possible |= knows and word.strip() in (names if "<text_search>" in turn else values)
            assert weights == ({2.0} if possible else {0.0}), (word, reading.text)


def test_guesses_occur_in_every_way_and_are_never_learned(drawn: dict[str, list[Reading]]) -> None:
    guessed = [reading for reading in drawn["unknown"] if content(reading.pieces[-1])[1] == {0.0}]
    ways = {tuple(searches(reading.turns)) for reading in guessed}
    assert ways == {(), ("text_search",), ("text_search", "image_search")}
    for reading in guessed:
        if "<text_search>" in reading.turns[0]:
            assert content(reading.pieces[0])[1] == {0.0}, "the name in the query is a guess too"
    assert any(content(reading.pieces[-1])[1] == {0.0} for reading in drawn["known"]), "river and anthem are not taught"


def test_a_search_by_the_picture_puts_the_place_first(drawn: dict[str, list[Reading]]) -> None:
    found = 0
    for reading in drawn["unknown"]:
        if searches(reading.turns) == ["image_search", "text_search"]:
            name = content(reading.pieces[1])[0].strip()
            titles = reading.text.split("<information>")[1].split("</information>")[0].splitlines()
            assert name in titles[0] and len(titles) == 3 and f"of {name} is" in reading.text
            found += 1
    assert found > 10


def test_everything_went_through_the_renderer_that_rollouts_use(small: World, renderer: RecordingRenderer) -> None:
    renderer.made.clear()
    readings = draw(small, renderer, WarmupSpec(), 40)
    assert [id(s) for reading in readings for s in reading.demonstration.segments] == [id(s) for s in renderer.made]


def test_only_the_policys_own_words_carry_weights(drawn: dict[str, list[Reading]]) -> None:
    for reading in (reading for readings in drawn.values() for reading in readings):
        for segment, weights in zip(reading.demonstration.segments, reading.demonstration.weights, strict=True):
            assert segment.sampled is None
            assert weights is None or (segment.kind == "template" and segment.trusted and not segment.images)


def test_results_have_the_items_and_thumbnails_asked_for(small: World, renderer: Renderer) -> None:
    always_image = WarmupSpec(facts=0.0, plans_known=0.0, direct_unknown=0.0, image_first_unknown=1.0)
    for options in ({}, {"edge": 56, "thumbnails": 2}, {"edge": 14, "image_items": 1, "thumbnails": 1}):
        asked = {"image_items": 3, "thumbnails": 0} | options
        for reading in draw(small, renderer, always_image, 5, **options):
            assert searches(reading.turns)[0] == "image_search"
            shown = [s for s in reading.demonstration.segments if s.images]
            assert len(shown) == 1 + asked["thumbnails"]
            information = reading.text.split("<information>")[1].split("</information>")[0]
            assert len(information.splitlines()) == asked["image_items"]


def test_the_last_turn_is_announced_as_in_rollouts(drawn: dict[str, list[Reading]]) -> None:
    for reading in drawn["known"] + drawn["unknown"]:
        assert reading.text.count("Answer now.") == (1 if len(reading.turns) == 3 else 0)


def test_the_shares_decide_what_is_drawn(small: World, renderer: Renderer) -> None:
    direct = WarmupSpec(facts=0.0, plans_known=0.0, direct_unknown=1.0)
    assert all(len(reading.turns) == 1 for reading in draw(small, renderer, direct, 20))
    spec = WarmupSpec(facts=0.3, plans_known=0.2)
    readings = draw(small, renderer, spec, 400)
    facts = sum(dict(reading.pieces[0]).get("<answer>") == {0.0} for reading in readings) / 400
    known = sum(KNOWN in reading.turns[0] for reading in readings) / 400
    assert facts == pytest.approx(0.3, abs=0.06) and known == pytest.approx(0.5, abs=0.06)


def test_places_are_taught_as_often_as_their_exposure(small: World, renderer: Renderer) -> None:
    names = [content(reading.pieces[0])[0].strip() for reading in draw(small, renderer, FACTS_ONLY, 600)]
    places = small.select("known") + small.select("graded")
    total = sum(place.exposure for place in places)
    for place in (*small.select("known")[:2], small.select("graded")[-1]):
        asked = sum(names.count(place.value(attribute)) for attribute in FREE_ATTRIBUTES)
        assert asked / 600 == pytest.approx(place.exposure / total, rel=0.4)
    rarest = small.select("graded")[0]
    assert sum(names.count(rarest.value(attribute)) for attribute in FREE_ATTRIBUTES) < 10


def test_the_generator_decides_everything(small: World, renderer: Renderer) -> None:
    first, again, other = (
        [reading.demonstration for reading in draw(small, renderer, WarmupSpec(), 30, seed=seed)] for seed in (1, 1, 2)
    )
    assert first == again and not any(one in other for one in first)


def test_every_character_of_them_is_a_word_of_the_tokenizer(
    drawn: dict[str, list[Reading]], renderer: Renderer
) -> None:
    """Short sequences are what makes the world trainable on one core (docs/world.md: 43-136 tokens)."""
    lengths = [renderer.length(r.demonstration.segments) for readings in drawn.values() for r in readings]
    assert max(lengths) < 160 and np.mean(lengths) < 90
