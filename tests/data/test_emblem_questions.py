"""The questions of each split: balanced, about the right places, answered by the world."""

from collections import Counter

import numpy as np
import pytest

from mmsr1.data.emblem.drawing import Jitter
from mmsr1.data.emblem.questions import (
    ask,
    graded_examples,
    heldout_examples,
    sentences,
    shifted_examples,
    train_examples,
)
from mmsr1.data.emblem.world import FACTS, FREE_ATTRIBUTES, SHIFTED_ATTRIBUTES, World, WorldSpec
from mmsr1.types import Example


def place(example: Example) -> str:
    return example.source.removeprefix("emblem/")


def attribute(example: Example) -> str:
    return next((fact for fact in FACTS if f" {fact} " in example.question), "name")


def check_against(world: World, examples: list[Example]) -> None:
    entities = {entity.id: entity for entity in world.entities}
    assert len({example.id for example in examples}) == len(examples)
    for example in examples:
        entity, asked = entities[place(example)], attribute(example)
        assert example.answer == entity.value(asked) and example.aliases == ()
        assert example.search_need == entity.need(asked)
        assert len(example.images) == 1 and entity.name not in example.question


@pytest.fixture(scope="module")
def heldout(world: World) -> list[Example]:
    return heldout_examples(world, 480)


def test_held_out_questions_are_half_free_and_otherwise_even(world: World, heldout: list[Example]) -> None:
    assert Counter(example.search_need for example in heldout) == {"free": 240, "text": 80, "image": 80, "both": 80}
    assert [example.is_free for example in heldout] == [True] * 240 + [False] * 240
    check_against(world, heldout)


def test_every_held_out_place_is_asked_about_and_no_other(world: World, heldout: list[Example]) -> None:
    asked = {place(example) for example in heldout}
    assert asked == {e.id for kind in ("known", "unknown") for e in world.select(kind, "heldout")}
    per_place = Counter(place(example) for example in heldout if example.search_need == "free")
    assert set(per_place.values()) == {5}, "one misread emblem costs the same whichever it is"


def test_the_same_world_asks_the_same_questions(world: World, heldout: list[Example]) -> None:
    assert heldout_examples(World(world.spec), 480) == heldout


def test_training_questions_ask_training_places_only(small: World) -> None:
    examples = train_examples(small, 60)
    assert Counter(example.search_need for example in examples) == {"free": 60, "text": 20, "image": 20, "both": 20}
    check_against(small, examples)
    assert {place(example) for example in examples} == {
        e.id for kind in ("known", "unknown") for e in small.select(kind, "train")
    }
    assert len({example.images[0].digest for example in examples}) == len(examples), "no photograph twice"


@pytest.mark.parametrize("places", [3, 4, 5, 8])
def test_all_attributes_of_a_place_come_up_whatever_the_number_of_places(places: int) -> None:
    world = World(WorldSpec(known_train=places, known_heldout=1, unknown_train=places, unknown_heldout=1, graded=0))
    asked = Counter((place(e), attribute(e)) for e in train_examples(world, 12 * places))
    attributes = {"known": ("name", "capital", "founder", "river", "anthem"), "unknown": FACTS[:4]}
    for entity in world.select("known", "train") + world.select("unknown", "train"):
        counts = {asked[entity.id, attribute] for attribute in attributes[entity.knowledge]}
        assert min(counts) > 0
    free = [asked[entity.id, attribute] for entity in world.select("known", "train") for attribute in FREE_ATTRIBUTES]
    assert set(free) == {4}, "twelve free questions a place, evenly"


def test_graded_questions_ask_each_taught_fact_with_a_new_photograph(small: World) -> None:
    examples = graded_examples(small, per_attribute=2)
    check_against(small, examples)
    asked = Counter((place(e), attribute(e)) for e in examples)
    assert asked == {(e.id, attribute): 2 for e in small.select("graded") for attribute in FREE_ATTRIBUTES}
    assert len({e.images[0].digest for e in examples}) == len(examples)


def test_shifted_questions_shift_words_photographs_and_attributes(world: World, heldout: list[Example]) -> None:
    examples = shifted_examples(world, 480)
    check_against(world, examples)
    assert Counter(e.search_need for e in examples) == {"free": 240, "text": 80, "image": 80, "both": 80}
    assert {place(e) for e in examples} <= {place(e) for e in heldout}
    assert not {e.question for e in examples} & {e.question for e in heldout}
    assert {attribute(e) for e in examples if e.search_need in ("text", "both")} == set(SHIFTED_ATTRIBUTES)
    assert not {attribute(e) for e in heldout} & set(SHIFTED_ATTRIBUTES)


def test_every_question_is_among_the_tokenizers_sentences(heldout: list[Example]) -> None:
    assert {example.question for example in heldout} <= set(sentences())


def test_a_question_shows_a_photograph_of_its_place(small: World) -> None:
    first, second = (ask(small.entities[0], "capital", "q", np.random.default_rng(n), Jitter()) for n in (1, 2))
    assert first.images != second.images and first.answer == second.answer == small.entities[0].facts["capital"]
