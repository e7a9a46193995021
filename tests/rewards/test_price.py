"""The price of a search that a controller sets, by hand-computed numbers."""

from __future__ import annotations

import pytest

from mmsr1.rewards.advantage import make_group
from mmsr1.rewards.price import PriceSpec, SearchPrice, calls_of, charged
from mmsr1.types import Episode, Example, Exchange, Group, Reward, Timings, ToolCall, ToolResult

EXAMPLE = Example("e", "what?", (), "Kent", (), "free", "made")


def episode(*statuses: str) -> Episode:
    calls = tuple(
        Exchange(i, ToolCall("text_search", "x", None), ToolResult(status))  # type: ignore[arg-type]
        for i, status in enumerate(statuses)
    )
    return Episode("e", 0, (), ("<answer>Kent</answer>",), calls, "answered", 0, Timings(1.0, 0.0, 0.0))


def group(*calls: int, trained: bool = True) -> Group:
    episodes = tuple(episode(*["ok"] * count) for count in calls)
    rewards = tuple(Reward(1.0, {"accuracy": 1.0}) for _ in calls)
    return make_group(EXAMPLE, episodes, rewards, [trained] * len(calls), "none")


def test_the_price_follows_the_calls_above_the_target_and_their_sum() -> None:
    price = SearchPrice(PriceSpec(target=0.5, proportional=0.2, integral=0.1))
    assert price.value == 0.0, "the first step is free"
    price.heed([group(0, 1), group(2, 1)])  # 1.0 calls a question: 0.5 above
    assert price.value == pytest.approx(0.2 * 0.5 + 0.1 * 0.5)
    price.heed([group(0, 0)])  # 0.5 below: the sum is 0 again
    assert price.value == pytest.approx(-0.1), "it pays for searches where there are too few"
    again = SearchPrice(price.spec, **price.state())
    for one in (price, again):
        one.heed([group(1, 1)])
    assert again.value == price.value == pytest.approx(0.2 * 0.5 + 0.1 * 0.5)


def test_lost_episodes_move_no_price() -> None:
    price = SearchPrice(PriceSpec(0.0, 1.0, 1.0), total=1.0, value=0.25)
    price.heed([group(2, 2, trained=False)])
    assert price.state() == {"total": 1.0, "value": 0.25}


def test_right_and_wrong_answers_pay_the_same_for_calls_that_reached_a_tool() -> None:
    made = episode("ok", "empty", "over_budget", "malformed_call")
    assert calls_of(made) == 2
    for total in (1.0, 0.1):
        paid = charged(Reward(total, {"accuracy": total}), made, 0.3)
        assert paid.total == pytest.approx(total - 0.6) and paid.parts == {"accuracy": total, "charged": 0.6}
    assert charged(Reward(0.1, {}), made, -0.2).total == pytest.approx(0.5)


@pytest.mark.parametrize("key", ["target", "proportional", "integral"])
def test_values_below_0_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=f"{key}: -1 received"):
        PriceSpec(**{"target": 1.0, "proportional": 1.0, "integral": 1.0, key: -1})


def test_fewer_calls_are_an_advantage_among_right_answers_alone() -> None:
    """Two right answers, with 0 and 2 calls, and a wrong one with none: -0, -2 about their mean -1."""
    episodes = [episode(), episode("ok", "ok"), episode()]
    rewards = [Reward(1.0, {"accuracy": 1.0}), Reward(1.0, {"accuracy": 1.0}), Reward(0.1, {"accuracy": 0.0})]
    plain = make_group(EXAMPLE, episodes, rewards, [True] * 3, "none")
    both = make_group(EXAMPLE, episodes, rewards, [True] * 3, "none", efficiency=0.5)
    assert plain.advantages_G == pytest.approx((0.3, 0.3, -0.6))
    assert both.advantages_G == pytest.approx((0.8, -0.2, -0.6))
    lost = make_group(EXAMPLE, episodes, rewards, [True, False, True], "none", efficiency=0.5)
    assert lost.advantages_G == pytest.approx((0.45, 0.0, -0.45)), "one right answer alone has nothing to compare with"
