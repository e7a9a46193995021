"""The scorecard against a hand count."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest

from mmsr1.evaluation.outcome import Outcome, outcome_of, outcomes_of
from mmsr1.evaluation.outcome import outcome as judged
from mmsr1.evaluation.scorecard import figures, figures_with_intervals, scorecard
from mmsr1.run_directory import episode_record
from mmsr1.types import (
    Episode,
    Example,
    Exchange,
    Group,
    Picture,
    Reward,
    Sampled,
    SearchNeed,
    Segment,
    Stop,
    Timings,
    ToolCall,
    ToolName,
    ToolResult,
    ToolStatus,
)


def episode(
    need: SearchNeed,
    correct: bool,
    *calls: ToolStatus,
    total: float = 0.0,
    form: float = 1.0,
    id: str = "q",
    source: str = "web",
    image: bytes | None = None,
    tool: ToolName = "text_search",
    stop: Stop = "answered",
) -> tuple[Example, Episode, Reward]:
    images = (Picture(image),) if image is not None else ()
    made = tuple(Exchange(0, ToolCall(tool, "x"), ToolResult(status, cost_usd=0.5, paid_usd=0.25)) for status in calls)
    example = Example(id, "what?", images, "a", ("b",), need, source)
    sampled = Segment("sampled", (1, 2, 3), False, sampled=Sampled((0.0,) * 3, 0))
    said = "<reason>so</reason><answer>a</answer>"
    found = Episode(id, 0, (sampled,), (said,), made, stop, 0, Timings(2.0, 0.0, 0.0))
    return example, found, Reward(total, {"accuracy": float(correct), "format": form})


def outcome(need: SearchNeed, correct: bool, *calls: ToolStatus, **more: Any) -> Outcome:
    return judged(*episode(need, correct, *calls, **more))


OK: list[ToolStatus] = ["ok"]
MIXED = [
    outcome("free", True, total=1.0),
    outcome("free", False, "ok", total=0.1),
    outcome("free", True, "malformed_call", total=0.9),  # reached no tool
    outcome("text", True, "ok", "empty", total=0.82),
    outcome("image", False, "infrastructure_error", form=0.0),
    outcome("both", True, "ok", "over_budget", total=0.91),
    outcome("required", False, form=0.0),
    outcome("unknown", True, "ok", "ok", total=0.5),
]


def test_figures_equal_the_hand_count():
    assert figures(MIXED, calls_allowed=2) == pytest.approx(
        {
            "accuracy": 5 / 8,
            "reward": (1.0 + 0.1 + 0.9 + 0.82 + 0.91 + 0.5) / 8,
            "format": 6 / 8,
            "search_ratio": 5 / 8,
            "calls_per_question": 7 / 8,
            "calls_per_allowed": 7 / 16,
            "accuracy_free": 2 / 3,
            "search_ratio_free": 1 / 3,
            "accuracy_required": 2 / 4,
            "search_ratio_required": 3 / 4,
            "right_searched": 2 / 8 + 1 / 8,
            "right_direct": 2 / 8,
            "wrong_searched": 2 / 8,
            "wrong_direct": 1 / 8,
            "tool_failure_rate": 1 / 7,
            "failed_share": 0.0,
        }
    )


def test_only_calls_that_reached_a_tool_count():
    everything = outcome("both", True, "ok", "empty", "infrastructure_error", "malformed_call", "over_budget")
    assert everything.calls == 3 and everything.failed_calls == 1


def test_refused_calls_do_not_make_a_failing_tool_look_better():
    refused: list[ToolStatus] = ["over_budget", "malformed_call"] * 5
    assert figures([outcome("text", False, "infrastructure_error", *refused)], 2)["tool_failure_rate"] == 1.0


@pytest.mark.parametrize(
    ("needs", "absent"),
    [
        (["free"], {"accuracy_required", "search_ratio_required"}),
        (["text", "both"], {"accuracy_free", "search_ratio_free"}),
        (["unknown"], {"accuracy_free", "search_ratio_free", "accuracy_required", "search_ratio_required"}),
    ],
)
def test_a_need_that_is_absent_has_no_figure(needs: Sequence[SearchNeed], absent: set[str]):
    outcomes = [outcome(need, True, "ok", id=need) for need in needs]
    for found in (figures(outcomes, 2), figures_with_intervals(outcomes, 2)):
        assert not [name for name in found if name.removesuffix("_ci95") in absent]
        values = [v for value in found.values() for v in (value if isinstance(value, list) else [value])]
        assert values and not any(math.isnan(value) for value in values)
    assert len(figures(outcomes, 2)) == 16 - len(absent)


def test_every_rollout_of_every_group_is_an_outcome():
    first, second = episode("free", True), episode("text", False, "ok")
    groups = [
        Group(example, (one,) * n, (reward,) * n, (0.0,) * n, (True,) * (n - 1) + (False,))
        for n, (example, one, reward) in ((2, first), (3, second))
    ]
    found = outcomes_of(groups)
    assert [one.lost for one in found] == [False, True, False, False, True]
    assert found[0] == judged(*first) and found[2] == judged(*second)


def test_a_line_on_disk_says_the_same_as_the_episode():
    example, one, reward = episode("both", True, "ok", "infrastructure_error", "over_budget", image=b"x", total=0.9)
    record = json.loads(json.dumps(episode_record(example, one, reward)))
    found = outcome_of(record)
    assert found == judged(example, one, reward)
    assert (found.said, found.truths, found.tokens, found.seconds) == ("a", ("a", "b"), 3, 2.0)
    assert (found.cost_usd, found.paid_usd, found.cluster) == (1.5, 0.75, example.images[0].digest)
    record["reward"]["parts"]["judge"] = None  # an outage
    assert "judge" not in outcome_of(record).scores


def test_questions_that_are_drawn_again_have_a_pass_at_k():
    drawn = [outcome("free", right, id=id) for id, right in (("a", True), ("a", False), ("b", False), ("b", False))]
    found = scorecard(drawn, 2)
    assert found["pass_at_2"] == 0.5 and found["accuracy"] == 0.25 and len(found["pass_at_2_ci95"]) == 2
    assert scorecard([*drawn, outcome("free", True, id="c")], 2)["pass_at_2"] == 0.5, "one draw of c was lost"
    assert "pass_at_1" not in scorecard(drawn[::2], 2)


def test_lost_episodes_say_nothing_about_the_policy_and_are_counted():
    lost = outcome("free", False, "infrastructure_error", stop="tool_failure")
    found = figures([outcome("free", True), lost], 2)
    assert (found["accuracy"], found["search_ratio"], found["failed_share"]) == (1.0, 0.0, 0.5)
    assert found["tool_failure_rate"] == 1.0
    assert figures([lost], 2) == {"tool_failure_rate": 1.0, "failed_share": 1.0}, "no figure, rather than a zero"
    told = scorecard([lost, lost], 2)
    assert told == figures([lost, lost], 2) | {"questions": 0, "episodes": 2}


def test_the_evaluation_adds_tools_scores_cost_and_time():
    example, one, reward = episode("free", True, "ok")
    text = judged(example, one, Reward(1.0, {**reward.parts, "judge": 1.0}))
    image, direct = outcome("image", False, "ok", tool="image_search"), outcome("free", True)
    found = scorecard([text, image, direct, direct], 2)
    assert (found["image_only"], found["text_only"], found["mixed"]) == (0.25, 0.25, 0.0)
    assert found["score_judge"] == 1.0, "of those that the judge judged"
    assert (found["cost_usd_per_question"], found["tokens_per_question"]) == (0.25, 3.0)
    assert (found["seconds_median"], found["episodes"], found["questions"]) == (2.0, 4, 1)


def test_every_mean_has_its_interval_around_it():
    outcomes = [outcome("free" if i % 2 else "text", i % 3 == 0, *OK[: i % 2], id=f"q{i}") for i in range(60)]
    found = figures_with_intervals(outcomes, 2)
    means, shares = figures(outcomes, 2), {"tool_failure_rate", "failed_share"}
    assert means.items() <= found.items()
    assert found.keys() - means.keys() == {f"{name}_ci95" for name in means.keys() - shares}
    for name in means.keys() - shares:
        low, high = found[f"{name}_ci95"]
        assert low <= means[name] <= high
    low, high = found["accuracy_ci95"]
    assert 0.1 < high - low < 0.4


def width(outcomes: Sequence[Outcome]) -> float:
    low, high = figures_with_intervals(outcomes, 2)["accuracy_ci95"]
    return high - low


@pytest.mark.parametrize("kind", ["image", "emblem"])
def test_questions_about_the_same_thing_are_one_cluster(kind):
    """60 questions about 12 things, each answered always or never: as uncertain as 12 questions."""

    def ask(thing: int, number: int, about: int) -> Outcome:
        if kind == "image":
            return outcome("free", thing % 2 == 0, id=f"q{thing}-{number}", image=b"%d" % about)
        # Every photograph of the place is another; the source names the place.
        photo = b"%d %d" % (thing, number)
        return outcome("free", thing % 2 == 0, id=f"q{thing}-{number}", source=f"emblem/{about}", image=photo)

    clustered = [ask(thing, number, thing) for thing in range(12) for number in range(5)]
    apart = [ask(thing, number, 5 * thing + number) for thing in range(12) for number in range(5)]
    assert width(clustered) > 1.8 * width(apart)


def test_questions_without_a_picture_stand_alone():
    outcomes = [outcome("free", i % 2 == 0, id=f"q{i}") for i in range(40)]
    assert 0.15 < width(outcomes) < 0.45
