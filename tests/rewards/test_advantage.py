"""Group-relative advantages against hand-computed numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr1.rewards.advantage import group_advantages, make_group
from mmsr1.types import Episode, Example, Reward, Timings

rewards_and_flags = st.lists(st.tuples(st.floats(0, 1).map(lambda r: round(r, 3)), st.booleans()), max_size=10)


def test_std_divides_by_the_sample_deviation() -> None:
    # Mean 0.5; squares 0.25 * 4 = 1, over n - 1 = 3: std = sqrt(1/3); 0.5 / sqrt(1/3) = 0.8660...
    expected = 0.5 / (math.sqrt(1 / 3) + 1e-6)
    assert group_advantages([1.0, 0.0, 0.0, 1.0], [True] * 4, "std") == pytest.approx(
        (expected, -expected, -expected, expected), abs=1e-12
    )
    assert expected == pytest.approx(0.866, abs=1e-3)


def test_none_only_subtracts_the_mean() -> None:
    # Mean of 1, 0.91, 0.1, 0.1 is 2.11 / 4 = 0.5275.
    advantages = group_advantages([1.0, 0.91, 0.1, 0.1], [True] * 4, "none")
    assert advantages == pytest.approx((0.4725, 0.3825, -0.4275, -0.4275))


def test_untrained_rollouts_neither_count_nor_learn() -> None:
    # The third would pull the mean to 0.34; without it the mean is 0.51 and the std |1 - 0.02| / sqrt(2).
    advantages = group_advantages([1.0, 0.02, 0.0], [True, True, False], "std", eps=0.0)
    assert advantages == pytest.approx((1 / math.sqrt(2), -1 / math.sqrt(2), 0.0))


@pytest.mark.parametrize("normalise", ["std", "none"])
@pytest.mark.parametrize(
    ("rewards", "trained"),
    [
        ([], []),
        ([1.0], [True]),
        ([1.0, 0.0], [True, False]),
        ([1.0, 0.0], [False, False]),
        ([0.91, 0.91, 0.91], [True, True, True]),
        ([0.91, 0.91, 0.1], [True, True, False]),
        ([0.3, 0.1 + 0.2], [True, True]),  # differ in the last bit only; divided by eps they would not be small
        ([0.5, 0.5 + 9e-9], [True, True]),
    ],
)
def test_no_contrast_no_advantage(rewards: list[float], trained: list[bool], normalise: str) -> None:
    assert group_advantages(rewards, trained, normalise) == (0.0,) * len(rewards)


@given(rewards_and_flags, st.sampled_from(["std", "none"]))
def test_advantages_sum_to_zero_keep_the_order_and_ignore_a_shift(rows: list, normalise: str) -> None:
    rewards, trained = [r for r, _ in rows], [t for _, t in rows]
    advantages = group_advantages(rewards, trained, normalise)
    assert sum(advantages) == pytest.approx(0.0, abs=1e-9)
    assert group_advantages([r + 2.0 for r in rewards], trained, normalise) == pytest.approx(advantages, abs=1e-6)
    ranked = sorted((r, a) for r, a, t in zip(rewards, advantages, trained, strict=True) if t)
    assert [a for _, a in ranked] == sorted(a for _, a in ranked)
    assert all(a == 0.0 for a, t in zip(advantages, trained, strict=True) if not t)


def test_wrong_arguments_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="^trained: 1 flags received for 2 rewards"):
        group_advantages([1.0, 0.0], [True], "std")
    # With the jaxtyping import hook on, the type checker refuses the literal before the function does.
    with pytest.raises((ValueError, TypeError), match="normalise"):
        group_advantages([1.0, 0.0], [True, True], "l2")


def test_make_group_keeps_order_and_flags() -> None:
    example = Example("q1", "Which county?", (), "Kent", (), "free", "test")
    episodes = [Episode("q1", i, (), (), (), "answered", 0, Timings(0.0, 0.0, 0.0)) for i in range(3)]
    rewards = [Reward(total, {}) for total in (1.0, 0.0, 0.7)]
    group = make_group(example, episodes, rewards, [True, True, False], "none")
    assert group.example is example
    assert [e.rollout for e in group.episodes_G] == [0, 1, 2]
    assert [r.total for r in group.rewards_G] == [1.0, 0.0, 0.7]
    assert group.advantages_G == (0.5, -0.5, 0.0)
    assert group.trained_G == (True, True, False)
    assert not group.all_equal
    assert make_group(example, episodes, rewards, [True, False, False], "none").all_equal
    with pytest.raises(ValueError, match="^rewards: 2 received for 3 episodes"):
        make_group(example, episodes, rewards[:2], [True, True, False], "none")
