"""Which prompts a step trains on: balanced, complete over an epoch, and a function of seed and step alone."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr1.data.mixtures import Mixture, PromptSchedule
from mmsr1.types import Example, SearchNeed


def pool(free: int = 0, required: int = 0, unlabelled: int = 0) -> list[Example]:
    kinds: tuple[SearchNeed, ...] = ("text", "image", "both", "required")
    needs: list[SearchNeed] = [kinds[i % 4] for i in range(required)]
    needs = [*("free" for _ in range(free)), *needs, *("unknown" for _ in range(unlabelled))]
    return [Example(f"{need}-{i}", "what?", (), "x", (), need, "test") for i, need in enumerate(needs)]


def ids(schedule: PromptSchedule, steps: range | None = None) -> list[list[str]]:
    return [[e.id for e in schedule[step].examples] for step in steps or range(len(schedule))]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 8), st.integers(0, 5))
def test_every_balanced_step_is_half_free(free: int, required: int, half: int, seed: int) -> None:
    schedule = PromptSchedule(pool(free, required), "balanced", 2 * half, 5, seed)
    for step in range(5):
        drawn = schedule[step]
        assert drawn.step == step
        assert Counter(e.is_free for e in drawn.examples) == {True: half, False: half}


def test_an_odd_step_gives_the_extra_place_to_search() -> None:
    schedule = PromptSchedule(pool(9, 9), "balanced", 5, 1, 0)
    assert Counter(e.is_free for e in schedule[0].examples) == {True: 2, False: 3}


@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 3), st.sampled_from(["natural", "required_only"]))
def test_no_example_comes_again_before_all_have_come(size: int, per_step: int, seed: int, mixture: Mixture) -> None:
    counts = Counter({example.id: 0 for example in pool(required=size)})
    for step in ids(PromptSchedule(pool(required=size), mixture, per_step, 3 * size, seed)):
        counts.update(step)
        assert len(counts) == size and max(counts.values()) - min(counts.values()) <= 1
    assert sum(counts.values()) == 3 * size * per_step


def test_both_halves_go_through_their_own_pool() -> None:
    schedule = PromptSchedule(pool(4, 8), "balanced", 4, 8, 0)
    counts = Counter(sum(ids(schedule), []))
    assert {count for id, count in counts.items() if id.startswith("free")} == {4}
    assert {count for id, count in counts.items() if not id.startswith("free")} == {2}


def test_each_epoch_and_each_step_has_an_order_of_its_own() -> None:
    schedule = PromptSchedule(pool(required=40), "natural", 40, 4, 0)
    orders = ids(schedule)
    assert len({tuple(order) for order in orders}) == 4 and len({frozenset(order) for order in orders}) == 1
    mixed = PromptSchedule(pool(50, 50), "balanced", 20, 3, 0)
    assert all([e.is_free for e in mixed[step].examples] != [True] * 10 + [False] * 10 for step in range(3))


def test_seed_and_step_decide_alone() -> None:
    examples = pool(20, 20)
    one, same, other = (PromptSchedule(examples, "balanced", 8, 10, seed) for seed in (1, 1, 2))
    backwards = [[e.id for e in same[step].examples] for step in reversed(range(10))]
    assert ids(one) == backwards[::-1] and ids(one) != ids(other)
    assert ids(PromptSchedule(examples, "balanced", 8, 99, 1), range(10)) == ids(one), "the run's length has no part"


def test_required_only_never_asks_a_free_or_unlabelled_question() -> None:
    schedule = PromptSchedule(pool(9, 3, 9), "required_only", 6, 5, 0)
    assert {e.is_free for step in range(5) for e in schedule[step].examples} == {False}


def test_natural_takes_all_as_they_come() -> None:
    schedule = PromptSchedule(pool(2, 2, 2), "natural", 6, 1, 0)
    assert Counter(e.is_free for e in schedule[0].examples) == {True: 2, False: 2, None: 2}


@pytest.mark.parametrize(
    ("mixture", "examples"),
    [
        ("balanced", pool(5, 0)),
        ("balanced", pool(0, 5)),
        ("balanced", pool(unlabelled=5)),
        ("required_only", pool(5, 0, 5)),
        ("natural", []),
    ],
)
def test_a_mixture_without_its_examples_is_refused(mixture: Mixture, examples: list[Example]) -> None:
    with pytest.raises(ValueError, match=f"data.mixture={mixture}: of {len(examples)} examples") as caught:
        PromptSchedule(examples, mixture, 4, 1, 0)
    assert "\n" not in str(caught.value)


def test_it_ends_with_the_run() -> None:
    schedule = PromptSchedule(pool(2, 2), "balanced", 2, 3, 0)
    assert len(schedule) == 3 and len([prompts.step for prompts in schedule]) == 3  # type: ignore[attr-defined]
    for step in (-1, 3):
        with pytest.raises(IndexError):
            schedule[step]
