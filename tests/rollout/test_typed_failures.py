"""What goes wrong around a call, down to the gradient: advantages worked out by hand.

A group of four: right without a search (1.0), right after one (0.91), wrong (0.1), and one to which something happens.
"""

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest

from mmsr1.rewards.advantage import make_group
from mmsr1.rewards.reward import RewardSpec, score
from mmsr1.rollout.engines.scripted import ScriptedEngine
from mmsr1.rollout.episode import Limits, run_episode
from mmsr1.types import INFRASTRUCTURE_STOPS, Episode, Group, ToolResult
from tests.rollout.conversation import SAMPLING, MemoryTool, example, make_renderer, titled

RIGHT = "<reason>I know</reason><answer>Dulmen</answer>"
WRONG = "<reason>I know</reason><answer>Zanzol</answer>"
SEARCH = "<reason>I look</reason><search><img></search>"
BAD_CALL = "<reason>I look</reason><search>the flag</search>"
LIMITS = Limits(turns=4, turn_tokens=64, episode_tokens=1024)
FAILED = ToolResult("infrastructure_error", detail="transient: no answer")
SPENT = ToolResult("over_budget", detail="tools.budget.usd_per_run=50: spent")


def episode(tokenizer: Any, turns: list[str], answer: ToolResult, limits: Limits = LIMITS) -> Episode:
    tools = {"image_search": MemoryTool("image_search", answer)}
    engine = ScriptedEngine(turns, tokenizer)
    return asyncio.run(run_episode(example(), engine, tools, make_renderer(tokenizer), limits, SAMPLING, (0,)))


def group(tokenizer: Any, fourth: Episode) -> Group:
    """As the callback makes it: an episode that infrastructure ended is not trained on."""
    found = titled("flag of Dulmen")
    others = [episode(tokenizer, turns, found) for turns in ([RIGHT], [SEARCH, RIGHT], [WRONG])]
    episodes = [*others, fourth]
    rewards = [score(example(), one, RewardSpec()) for one in episodes]
    trained = [one.stop not in INFRASTRUCTURE_STOPS for one in episodes]
    return make_group(example(), episodes, rewards, trained, "none")


def masked() -> tuple[float, ...]:
    """The mean of 1, 0.91 and 0.1 is 0.67; the fourth neither counts nor learns."""
    return (0.33, 0.24, -0.57, 0.0)


def counted(reward: float) -> tuple[float, ...]:
    mean = (1.0 + 0.91 + 0.1 + reward) / 4
    return (1.0 - mean, 0.91 - mean, 0.1 - mean, reward - mean)


def test_a_search_that_infrastructure_lost_is_neutral(tiny: Any) -> None:
    lost = episode(tiny, [SEARCH, RIGHT], FAILED)
    made = group(tiny, lost)
    assert lost.stop == "tool_failure" and made.trained_G == (True, True, True, False)
    assert made.advantages_G == pytest.approx(masked())


def test_divided_by_the_spread_it_is_that_of_those_who_are_trained(tiny: Any) -> None:
    made = group(tiny, episode(tiny, [SEARCH, RIGHT], FAILED))
    totals = [reward.total for reward in made.rewards_G]
    spread = make_group(made.example, made.episodes_G, made.rewards_G, made.trained_G, "std").advantages_G
    # Squares of 0.33, 0.24, 0.57: 0.1089 + 0.0576 + 0.3249 = 0.4914, over n - 1 = 2: 0.2457.
    assert totals[:3] == pytest.approx([1.0, 0.91, 0.1])
    assert spread == pytest.approx([a / math.sqrt(0.2457) for a in masked()], abs=1e-4)


def test_a_malformed_call_is_the_models_fault_and_counts(tiny: Any) -> None:
    fourth = episode(tiny, [BAD_CALL, RIGHT], titled("flag of Dulmen"))
    made = group(tiny, fourth)
    assert fourth.stop == "answered" and fourth.calls[0].result.status == "malformed_call" and all(made.trained_G)
    # Right, no search made, no format: 0.9 * 1 * 1 + 0.
    assert made.advantages_G == pytest.approx(counted(0.9))


def test_a_query_that_the_provider_does_not_accept_counts_too(tiny: Any) -> None:
    fourth = episode(tiny, [SEARCH, RIGHT], ToolResult("malformed_call", detail="invalid: HTTP 400"))
    assert fourth.stop == "answered" and group(tiny, fourth).advantages_G == pytest.approx(counted(0.91))


def test_a_search_beyond_the_episodes_own_limit_is_told_and_counts_whatever_the_run_does(tiny: Any) -> None:
    for ending in ("tell", "stop"):
        limits = replace(LIMITS, searches={"image_search": 1}, on_over_budget=ending)
        fourth = episode(tiny, [SEARCH, SEARCH, RIGHT], titled("flag of Dulmen"), limits)
        assert [made.result.status for made in fourth.calls] == ["ok", "over_budget"] and fourth.stop == "answered"
        # Right after a search, in an order that is not legal: 0.9 * 1 * 0.9 + 0.
        assert group(tiny, fourth).advantages_G == pytest.approx(counted(0.81))


def test_a_spent_budget_of_the_run_is_told_and_counts(tiny: Any) -> None:
    fourth = episode(tiny, [SEARCH, RIGHT], SPENT, replace(LIMITS, on_over_budget="tell"))
    made = group(tiny, fourth)
    assert fourth.stop == "answered" and fourth.calls[0].result.status == "over_budget" and all(made.trained_G)
    assert made.advantages_G == pytest.approx(counted(0.91))
    assert LIMITS.on_over_budget == "tell"


def test_a_spent_budget_of_the_run_can_end_the_episode_which_is_then_neutral(tiny: Any) -> None:
    fourth = episode(tiny, [SEARCH, RIGHT], SPENT, replace(LIMITS, on_over_budget="stop"))
    made = group(tiny, fourth)
    assert fourth.stop == "tool_failure" and fourth.turns == (SEARCH,) and fourth.calls[0].result == SPENT
    assert made.trained_G == (True, True, True, False) and made.advantages_G == pytest.approx(masked())


def test_results_that_are_not_complete_are_shown_and_count(tiny: Any) -> None:
    partial = replace(titled("flag of Dulmen"), complete=False, detail="reader: transient")
    assert group(tiny, episode(tiny, [SEARCH, RIGHT], partial)).advantages_G == pytest.approx(counted(0.91))


def test_what_comes_from_a_cache_is_rewarded_as_if_it_were_fresh(tiny: Any) -> None:
    fresh = replace(titled("flag of Dulmen"), cost_usd=0.01, paid_usd=0.01)
    cached = replace(fresh, cached=True, paid_usd=0.0)
    rewards = [score(example(), episode(tiny, [SEARCH, RIGHT], found), RewardSpec()) for found in (fresh, cached)]
    assert rewards[0] == rewards[1] and rewards[0].total == pytest.approx(0.91)
