"""The places of the emblem world: a function of the spec, distinct from each other, and never met by accident."""

from collections import Counter

import numpy as np
import pytest

from mmsr1.data.emblem.world import (
    FACTS,
    FREE_ATTRIBUTES,
    SEARCH_ATTRIBUTES,
    SHIFTED_ATTRIBUTES,
    World,
    WorldSpec,
    image_title,
    passages,
)


def test_a_world_is_a_function_of_its_spec(small: World) -> None:
    assert World(small.spec).entities == small.entities
    other = World(WorldSpec(**{**vars(small.spec), "seed": 4}))
    assert {e.name for e in other.entities} != {e.name for e in small.entities}


def test_the_splits_have_their_sizes_and_share_no_place(world: World) -> None:
    sizes = Counter((e.knowledge, e.split) for e in world.entities)
    assert sizes == {
        ("known", "train"): 48,
        ("known", "heldout"): 48,
        ("unknown", "train"): 960,
        ("unknown", "heldout"): 64,
        ("graded", "heldout"): 48,
    }
    for distinct in ("id", "name", "emblem"):
        assert len({getattr(e, distinct) for e in world.entities}) == len(world.entities) == 1168
    assert world.select("known") == world.select("known", "train") + world.select("known", "heldout")


def test_needs_follow_from_what_is_taught(world: World) -> None:
    known, unknown, graded = (world.select(kind)[0] for kind in ("known", "unknown", "graded"))
    for attribute in (*FREE_ATTRIBUTES, *SEARCH_ATTRIBUTES, *SHIFTED_ATTRIBUTES):
        taught = attribute in FREE_ATTRIBUTES
        assert known.need(attribute) == graded.need(attribute) == ("free" if taught else "text")
        assert unknown.need(attribute) == ("image" if attribute == "name" else "both")


def test_only_known_and_graded_places_are_seen_in_the_warm_up(world: World) -> None:
    assert {e.exposure for e in world.select("known")} == {1.0}
    assert {e.exposure for e in world.select("unknown")} == {0.0}
    graded = [e.exposure for e in world.select("graded")]
    assert graded == sorted(graded) and len(set(graded)) == 48 and 0 < graded[0] < 0.1 and 0.5 < graded[-1] < 1


def test_values_are_words_of_two_syllables_and_have_all_facts(world: World) -> None:
    for entity in world.entities:
        assert set(entity.facts) == set(FACTS)
        for attribute in ("name", *FACTS):
            value = entity.value(attribute)
            assert value.isalpha() and len(value) == 6 and value.istitle()


def test_fresh_places_collide_with_none_of_the_world(world: World) -> None:
    rng, again = np.random.default_rng(1), np.random.default_rng(1)
    fresh = [world.fresh(rng) for _ in range(2000)]
    assert {e.name for e in fresh}.isdisjoint(e.name for e in world.entities)
    assert {e.emblem for e in fresh}.isdisjoint(e.emblem for e in world.entities)
    assert fresh == [world.fresh(again) for _ in range(2000)]
    assert len({e.name for e in fresh}) > 300


def test_passages_state_each_fact_once_and_titles_name_the_place(small: World) -> None:
    rows = [row for entity in small.entities for row in passages(entity)]
    assert len({id for id, *_ in rows}) == len(rows) == len(small.entities) * len(FACTS)
    entity = small.entities[0]
    for (_, title, text, url), attribute in zip(passages(entity), FACTS, strict=True):
        assert title == entity.name and url.startswith("https://")
        assert text == f"the {attribute} of {entity.name} is {entity.facts[attribute]}"
    assert all(entity.name in image_title(entity) for entity in small.entities)
    assert len({image_title(e).replace(e.name, "X") for e in small.entities}) == 3


def test_more_places_than_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.world: 1228 places .* at most 1200"):
        WorldSpec(unknown_train=1020)
