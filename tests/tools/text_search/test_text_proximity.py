"""Words that stand together: passages of the same words, in another order."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr1.tools.index.building import build_at_once
from mmsr1.tools.text_search.local import LocalTextSearch, Passage
from mmsr1.tools.text_search.proximity import _distance, bonus
from mmsr1.tools.text_search.writing import TextWriter

SENTENCE = "Rollo led the Norse raiders of Denmark who agreed to swear fealty to King Charles of West Francia"
RARITY = {"king": 2.0, "charl": 3.0, "west": 1.0}


@pytest.mark.parametrize("proximity", [True, False])
def test_the_passage_that_says_it_comes_before_those_that_only_have_the_words(tmp_path, proximity):
    draw = random.Random(0)
    filling = [f"other{n}" for n in range(80)]
    words = [*SENTENCE.split(), *filling]
    shuffled = [" ".join(draw.sample(words, len(words))) for _ in range(30)]
    passages = [Passage(f"a{n}", "", text, "") for n, text in enumerate(shuffled)]
    passages.insert(
        17, Passage("z", "", " ".join([*filling[:40], SENTENCE, *filling[40:]]), "")
    )  # the last of equals in order of id
    settings = TextWriter.settings(proximity=proximity)
    build_at_once(tmp_path / "index", lambda scratch: TextWriter(scratch, settings, None, False), settings, passages)
    tool = LocalTextSearch(tmp_path / "index", topk=1)
    assert (tool.find("Norse raiders swear fealty to King Charles")[0].id == "z") is proximity


def test_the_bonus_falls_with_distance_and_counts_pairs_of_neighbours_only():
    query = ["king", "charl"]
    near = bonus(query, ["king", "charl"], RARITY)
    assert near == pytest.approx(0.5 * (2 + 3))
    assert bonus(query, ["charl", "x", "king"], RARITY) == pytest.approx(near / 2)
    assert bonus(query, ["king", *"abcd", "charl"], RARITY) == 0
    assert bonus(["king", "a", "b", "charl"], ["king", "charl"], RARITY) == 0
    assert bonus(["king", "king"], ["king", "king"], RARITY) == 0
    assert bonus([], [], {}) == 0


ORDERED = st.lists(st.integers(0, 200), min_size=1, max_size=20, unique=True).map(sorted)


@given(one=ORDERED, other=ORDERED)
def test_the_distance_is_the_least_of_all(one, other):
    assert _distance(one, other) == min(abs(a - b) for a in one for b in other)
