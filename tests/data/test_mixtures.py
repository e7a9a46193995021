"""Which prompts a step trains on: as many as asked of each kind, all in an epoch, by seed and step alone."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr1.data.mixtures import NATURAL, Mix, PromptSchedule, apportioned
from mmsr1.data.table import ExampleTable, Labels
from mmsr1.types import Example, Notes, SearchNeed

BALANCED = Mix("balanced", {"free": 0.5, "required": 0.5})
SEARCHING = Mix("search_required_only", {"required": 1.0})
BY_NEED = Mix("by_need", {"free": 0.5, "text": 0.2, "image": 0.1, "both": 0.2})


def pool(free: int = 0, required: int = 0, unlabelled: int = 0) -> list[Example]:
    kinds: tuple[SearchNeed, ...] = ("text", "image", "both", "required")
    needs: list[SearchNeed] = [kinds[i % 4] for i in range(required)]
    needs = [*("free" for _ in range(free)), *needs, *("unknown" for _ in range(unlabelled))]
    return [Example(f"{need}-{i}", "what?", (), "x", (), need, "test") for i, need in enumerate(needs)]


def ids(schedule: PromptSchedule, steps: range | None = None) -> list[list[str]]:
    return [[e.id for e in schedule[step].examples] for step in steps or range(len(schedule))]


@pytest.mark.parametrize(
    ("mix", "per_step", "seed", "rows"),
    [
        (BALANCED, 6, 0, {0: [3, 0, 10, 5, 4, 6], 1: [2, 7, 11, 1, 3, 8], 5: [6, 10, 11, 1, 3, 0]}),
        (BALANCED, 4, 12345, {0: [2, 7, 11, 3], 1: [9, 6, 0, 4], 5: [3, 9, 10, 0], 100: [10, 7, 1, 3]}),
        (SEARCHING, 5, 1, {0: [9, 10, 8, 11, 6], 1: [5, 7, 10, 5, 6], 5: [7, 11, 9, 5, 6], 100: [9, 8, 10, 11, 5]}),
        (NATURAL, 4, 7, {0: [14, 3, 2, 8], 1: [9, 7, 1, 13], 5: [7, 6, 0, 8], 100: [8, 3, 11, 13]}),
    ],
)
def test_the_order_is_that_of_earlier_runs(mix: Mix, per_step: int, seed: int, rows: dict[int, list[int]]) -> None:
    """Frozen as it was before there were mixes by need: a run that is repeated sees the same prompts."""
    schedule = PromptSchedule(pool(5, 7, 3), mix, per_step, 12, seed)
    assert {step: schedule.rows(step) for step in rows} == rows


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 8), st.integers(0, 5))
def test_every_balanced_step_is_half_free(free: int, required: int, half: int, seed: int) -> None:
    schedule = PromptSchedule(pool(free, required), BALANCED, 2 * half, 5, seed)
    for step in range(5):
        drawn = schedule[step]
        assert drawn.step == step
        assert Counter(e.is_free for e in drawn.examples) == {True: half, False: half}


def test_an_odd_step_gives_the_extra_place_to_search_and_the_next_one_to_free() -> None:
    schedule = PromptSchedule(pool(9, 9), BALANCED, 5, 4, 0)
    assert [sum(bool(e.is_free) for e in schedule[step].examples) for step in range(4)] == [2, 3, 2, 3]


@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 3), st.sampled_from([NATURAL, SEARCHING]))
def test_no_example_comes_again_before_all_have_come(size: int, per_step: int, seed: int, mix: Mix) -> None:
    counts = Counter({example.id: 0 for example in pool(required=size)})
    for step in ids(PromptSchedule(pool(required=size), mix, per_step, 3 * size, seed)):
        counts.update(step)
        assert len(counts) == size and max(counts.values()) - min(counts.values()) <= 1
    assert sum(counts.values()) == 3 * size * per_step


def test_both_halves_go_through_their_own_pool() -> None:
    schedule = PromptSchedule(pool(4, 8), BALANCED, 4, 8, 0)
    counts = Counter(sum(ids(schedule), []))
    assert {count for id, count in counts.items() if id.startswith("free")} == {4}
    assert {count for id, count in counts.items() if not id.startswith("free")} == {2}


def test_each_epoch_and_each_step_has_an_order_of_its_own() -> None:
    schedule = PromptSchedule(pool(required=40), NATURAL, 40, 4, 0)
    orders = ids(schedule)
    assert len({tuple(order) for order in orders}) == 4 and len({frozenset(order) for order in orders}) == 1
    mixed = PromptSchedule(pool(50, 50), BALANCED, 20, 3, 0)
    assert all([e.is_free for e in mixed[step].examples] != [True] * 10 + [False] * 10 for step in range(3))


EASY = replace(BY_NEED, curriculum="easy_first", curriculum_steps=6)


@pytest.mark.parametrize("mix", [BALANCED, BY_NEED, EASY], ids=["balanced", "by need", "curriculum"])
def test_seed_and_step_decide_alone(mix: Mix) -> None:
    examples = pool(20, 20)
    one, same, other = (PromptSchedule(examples, mix, 8, 10, seed) for seed in (1, 1, 2))
    backwards = [[e.id for e in same[step].examples] for step in reversed(range(10))]
    assert ids(one) == backwards[::-1] and ids(one) != ids(other)
    assert ids(PromptSchedule(examples, mix, 8, 99, 1), range(10)) == ids(one), "the run's length has no part"


def test_required_only_never_asks_a_free_or_unlabelled_question() -> None:
    schedule = PromptSchedule(pool(9, 3, 9), SEARCHING, 6, 5, 0)
    assert {e.is_free for step in range(5) for e in schedule[step].examples} == {False}


def test_natural_takes_all_as_they_come() -> None:
    schedule = PromptSchedule(pool(2, 2, 2), NATURAL, 6, 1, 0)
    assert Counter(e.is_free for e in schedule[0].examples) == {True: 2, False: 2, None: 2}


def test_by_need_keeps_its_shares_over_the_steps_and_nearly_in_each() -> None:
    schedule = PromptSchedule(pool(40, 40), BY_NEED, 7, 20, 0)
    steps = [Counter(e.search_need for e in schedule[step].examples) for step in range(20)]
    assert sum(steps, Counter()) == {"free": 70, "text": 28, "image": 14, "both": 28}
    for need, share in BY_NEED.shares.items():
        assert all(abs(step[need] - 7 * share) < 2 for step in steps)  # type: ignore[index]
    assert {step.total() for step in steps} == {7}


def test_only_the_proportions_of_shares_count() -> None:
    tenfold = Mix("x", {pool: 10 * share for pool, share in BY_NEED.shares.items()} | {"required": 0.0})
    examples = pool(20, 20)
    assert ids(PromptSchedule(examples, tenfold, 8, 9, 3)) == ids(PromptSchedule(examples, BY_NEED, 8, 9, 3))


@given(st.lists(st.floats(0.001, 5), min_size=1, max_size=7), st.integers(0, 400))
def test_a_larger_total_takes_from_no_one(shares: list[float], total: int) -> None:
    fewer, more = apportioned(shares, total), apportioned(shares, total + 1)
    assert sum(fewer) == total and sum(more) == total + 1
    assert all(a <= b for a, b in zip(fewer, more, strict=True))
    assert max(abs(a - total * s / sum(shares)) for a, s in zip(fewer, shares, strict=True)) < 2


def files(*examples: list[Example]) -> Sequence[Example]:
    """Examples of several files, as a table has them."""

    class InMemory(ExampleTable):
        def __init__(self) -> None:
            self._rows = sum(examples, [])
            labels = Labels.of(self._rows)
            self.labels = replace(labels, file=np.repeat(np.arange(len(examples)), [len(e) for e in examples]))

        def __len__(self) -> int:
            return len(self._rows)

        def __getitem__(self, index):  # type: ignore[no-untyped-def, override]
            return self._rows[index]

    return InMemory()


def test_each_file_has_its_share_of_every_pool() -> None:
    small, large = pool(4, 4), [replace(e, id=f"large {e.id}") for e in pool(40, 40)]
    schedule = PromptSchedule(files(small, large), BALANCED, 6, 10, 0, weights=[2.0, 1.0])
    counts = Counter((e.id.startswith("large"), e.is_free) for step in range(10) for e in schedule[step].examples)
    assert counts == {(False, True): 20, (False, False): 20, (True, True): 10, (True, False): 10}
    of_small = Counter(e.id for step in range(10) for e in schedule[step].examples if not e.id.startswith("large"))
    assert set(of_small.values()) == {5}, "each file is gone through on its own"


def test_a_file_without_examples_for_a_pool_leaves_its_share_to_the_others() -> None:
    schedule = PromptSchedule(files(pool(4, 0), pool(0, 4)), BALANCED, 4, 5, 0, weights=[1.0, 9.0])
    assert all(Counter(e.is_free for e in schedule[s].examples) == {True: 2, False: 2} for s in range(5))


def graded(count: int) -> list[Example]:
    """Difficulty rises with the number in the id, which is not the order of the rows; a few were never tried."""
    order = np.random.default_rng(0).permutation(count)
    notes = [Notes(difficulty=None if i == count // 2 else float(i / (count - 1))) for i in order]
    return [Example(str(i), "what?", (), "x", (), "free", "test", note) for i, note in zip(order, notes, strict=True)]


@pytest.mark.parametrize("curriculum", ["easy_first", "hard_first"])
def test_a_curriculum_opens_the_pool_step_by_step(curriculum) -> None:
    mix = replace(NATURAL, curriculum=curriculum, curriculum_steps=5)
    schedule = PromptSchedule(graded(101), mix, 10, 20, 0)
    for step in range(5):
        numbers = [int(e.id) for e in schedule[step].examples]
        place = numbers if curriculum == "easy_first" else [100 - n for n in numbers]
        assert len(set(place)) == 10 and max(place) < 101 * (step + 1) / 5 + 1
    later = Counter(e.id for step in range(5, 15) for e in schedule[step].examples)
    assert len(later) == 100 and set(later.values()) == {1}, "then it is gone through as a whole"


def test_a_curriculum_never_allows_fewer_than_a_step_takes() -> None:
    mix = replace(NATURAL, curriculum="easy_first", curriculum_steps=1000)
    schedule = PromptSchedule(graded(11), mix, 8, 3, 0)
    assert {e.id for e in schedule[0].examples} == {str(i) for i in range(8)}
    assert Counter(e.id for e in PromptSchedule(graded(3), mix, 6, 1, 0)[0].examples) == {"0": 2, "1": 2, "2": 2}


def test_examples_that_nobody_tried_are_in_the_middle_and_in_no_order_of_the_file() -> None:
    mix = replace(NATURAL, curriculum="easy_first", curriculum_steps=10)
    drawn = {e.id for e in PromptSchedule(pool(free=100), mix, 10, 1, 0)[0].examples}
    assert len(drawn) == 10 and drawn != {e.id for e in pool(free=10)}


@pytest.mark.parametrize(
    ("mix", "examples", "missing"),
    [
        (BALANCED, pool(5, 0), "required"),
        (BALANCED, pool(0, 5), "free"),
        (BALANCED, pool(unlabelled=5), "free"),
        (SEARCHING, pool(5, 0, 5), "required"),
        (BY_NEED, pool(9, 1), "image"),
        (NATURAL, [], "all"),
    ],
)
def test_a_mix_without_its_examples_is_refused(mix: Mix, examples: list[Example], missing: str) -> None:
    with pytest.raises(ValueError, match=f"data/mix={mix.name}: data.mix.shares.{missing}=") as caught:
        PromptSchedule(examples, mix, 4, 1, 0)
    assert f"of {len(examples)} examples" in str(caught.value) and "\n" not in str(caught.value)


def test_every_need_has_a_pool() -> None:
    for need in get_args(SearchNeed):
        examples = [Example("x", "what?", (), "x", (), need, "test")]
        name = "all" if need == "unknown" else need
        assert PromptSchedule(examples, Mix("one", {name: 1.0}), 1, 1, 0)[0].examples == tuple(examples)


def test_it_ends_with_the_run() -> None:
    schedule = PromptSchedule(pool(2, 2), BALANCED, 2, 3, 0)
    assert len(schedule) == 3 and len([prompts.step for prompts in schedule]) == 3  # type: ignore[attr-defined]
    for step in (-1, 3):
        with pytest.raises(IndexError):
            schedule[step]
