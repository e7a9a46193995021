"""The plan of a step: the same mini-batches for any number of ranks, every episode on exactly one of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr1.models.plan_step import plan_step
from mmsr1.models.ranks import Ranks, padded, share_out
from mmsr1.types import Episode, Example, Group, Reward, Sampled, Segment, Timings


def episode(example: str, rollout: int, tokens: int) -> Episode:
    said = Segment("sampled", (7,) * tokens, trusted=False, sampled=Sampled((-1.0,) * tokens, 0))
    return Episode(example, rollout, (said,), ("",), (), "answered", 0, Timings(0.0, 0.0, 0.0))


def group(name: str, lengths: list[int], useful: bool = True, trained: list[bool] | None = None) -> Group:
    size = len(lengths)
    advantages = tuple(1.0 if useful and i == 0 else -0.5 if useful else 0.0 for i in range(size))
    episodes = tuple(episode(name, i, n) for i, n in enumerate(lengths))
    rewards = tuple(Reward(0.0, {}) for _ in lengths)
    example = Example(name, "q", (), "a", (), "free", "s")
    return Group(example, episodes, rewards, advantages, tuple(trained or [True] * size))


def tokens(one: Episode) -> int:
    return one.sampled_tokens


@given(
    lengths=st.lists(st.lists(st.integers(1, 50), min_size=2, max_size=4), min_size=1, max_size=9),
    ranks=st.integers(1, 4),
    minis=st.integers(1, 3),
)
def test_every_trained_episode_is_on_one_rank_and_the_size_is_that_of_all(lengths, ranks, minis) -> None:
    groups = [group(f"g{i}", sizes) for i, sizes in enumerate(lengths)]
    plans = [plan_step(groups, minis, 64, rank, ranks, tokens) for rank in range(ranks)]
    alone = plan_step(groups, minis, 64, 0, 1, tokens)
    assert {len(plan) for plan in plans} == {len(alone)}
    for number, whole in enumerate(alone):
        parts = [plan[number] for plan in plans]
        assert {part.size for part in parts} == {whole.size}
        assert {part.count for part in parts} == {max(len(part.micro_batches) for part in parts)}
        spread = sorted((w.episode.example_id, w.episode.rollout) for p in parts for b in p.micro_batches for w in b)
        assert spread == sorted((w.episode.example_id, w.episode.rollout) for b in whole.micro_batches for w in b)
        assert whole.size.tokens == sum(w.length for b in whole.micro_batches for w in b)
        owners = [{w.episode.example_id for b in p.micro_batches for w in b} for p in parts]
        assert sum(map(len, owners)) == len(set().union(*owners))  # a group stays whole on one rank


def test_groups_without_gradient_and_untrained_episodes_are_left_out() -> None:
    groups = [group("a", [3, 3]), group("b", [9, 9], useful=False), group("c", [5, 5, 5], trained=[True, True, False])]
    (plan,) = plan_step(groups, 1, 100, 0, 1, tokens)
    assert [(w.episode.example_id, w.episode.rollout) for b in plan.micro_batches for w in b] == [
        ("a", 0),
        ("a", 1),
        ("c", 0),
        ("c", 1),
    ]
    assert (plan.size.tokens, plan.size.sequences) == (16, 4)
    assert plan_step([groups[1]], 2, 100, 0, 1, tokens) == []


def test_a_rank_without_a_group_still_makes_as_many_micro_batches() -> None:
    plans = [plan_step([group("a", [30, 30, 30])], 1, 30, rank, 2, tokens)[0] for rank in range(2)]
    assert [len(plan.micro_batches) for plan in plans] == [3, 0]
    assert [plan.count for plan in plans] == [3, 3]
    assert padded(["x"], 3, lambda: "blank") == ["x", "blank", "blank"]


@given(st.lists(st.integers(0, 1000), max_size=40), st.integers(1, 8))
def test_shares_are_a_partition_and_balanced(costs: list[int], size: int) -> None:
    shares = share_out(costs, size)
    assert sorted(index for share in shares for index in share) == list(range(len(costs)))
    loads = [sum(costs[index] for index in share) for share in shares]
    assert max(loads) - min(loads) <= max(costs, default=0)  # greedy: no two ranks differ by more than one item


def test_one_process_talks_to_nobody() -> None:
    alone = Ranks()
    assert alone.mine([1, 2, 3]) == [1, 2, 3]
    assert alone.gather("x") == ["x"]
    assert alone.interleave([1, 2]) == [1, 2]
    assert alone.sum({"a": 2.0}) == {"a": 2.0}


def test_ranks_take_turns_and_find_their_order_again(monkeypatch: pytest.MonkeyPatch) -> None:
    items = list(range(7))
    parts = [list(Ranks(rank, 3).mine(items)) for rank in range(3)]
    assert parts == [[0, 3, 6], [1, 4], [2, 5]]
    monkeypatch.setattr(Ranks, "gather", lambda self, item: parts)
    assert Ranks(0, 3).interleave(parts[0]) == items
