"""The scorecard against a hand count."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from mmsr1.evaluation.scorecard import Scored, calls_made, figures, figures_with_intervals, scored
from mmsr1.evaluation.statistics import clustered_interval
from mmsr1.types import (
    Episode,
    Example,
    Exchange,
    Group,
    Picture,
    Reward,
    SearchNeed,
    Timings,
    ToolCall,
    ToolResult,
    ToolStatus,
)


def outcome(
    need: SearchNeed,
    correct: bool,
    *calls: ToolStatus,
    total: float = 0.0,
    form: float = 1.0,
    id: str = "q",
    source: str = "web",
    image: bytes | None = None,
) -> Scored:
    images = (Picture(image),) if image is not None else ()
    made = tuple(Exchange(0, ToolCall("text_search", "x"), ToolResult(status)) for status in calls)
    example = Example(id, "what?", images, "a", (), need, source)
    episode = Episode(id, 0, (), ("said",), made, "answered", 0, Timings(0.0, 0.0, 0.0))
    return Scored(example, episode, Reward(total, {"accuracy": float(correct), "format": form}))


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
            "tool_failure_rate": 1 / 7,
        }
    )


def test_only_calls_that_reached_a_tool_count():
    everything = outcome("both", True, "ok", "empty", "infrastructure_error", "malformed_call", "over_budget")
    assert calls_made(everything.episode) == 3


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
    assert len(figures(outcomes, 2)) == 11 - len(absent)


def test_every_rollout_of_every_group_is_an_outcome():
    first, second = MIXED[0], MIXED[3]
    groups = [
        Group(one.example, (one.episode,) * n, (one.reward,) * n, (0.0,) * n, (True,) * n)
        for n, one in ((2, first), (3, second))
    ]
    assert scored(groups) == [first] * 2 + [second] * 3


def test_every_mean_has_its_interval_around_it():
    outcomes = [outcome("free" if i % 2 else "text", i % 3 == 0, *OK[: i % 2], id=f"q{i}") for i in range(60)]
    found = figures_with_intervals(outcomes, 2)
    means = figures(outcomes, 2)
    assert means.items() <= found.items()
    assert found.keys() - means.keys() == {f"{name}_ci95" for name in means if name != "tool_failure_rate"}
    for name in means.keys() - {"tool_failure_rate"}:
        low, high = found[f"{name}_ci95"]
        assert low <= means[name] <= high
    low, high = found["accuracy_ci95"]
    assert 0.1 < high - low < 0.4


def width(outcomes: Sequence[Scored]) -> float:
    low, high = figures_with_intervals(outcomes, 2)["accuracy_ci95"]
    return high - low


@pytest.mark.parametrize("kind", ["image", "emblem"])
def test_questions_about_the_same_thing_are_one_cluster(kind):
    """60 questions about 12 things, each answered always or never: as uncertain as 12 questions."""

    def ask(thing: int, number: int, about: int) -> Scored:
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


def test_the_interval_covers_the_mean_as_often_as_it_says():
    """200 samples of 30 clusters that share their chance of success: about 95 % of the intervals hold the mean 0.5."""
    rng = np.random.default_rng(7)
    clusters = np.repeat(np.arange(30), 6)
    covered = naive = 0
    for trial in range(200):
        chance = rng.choice([0.1, 0.9], size=30)
        values = (rng.random(180) < chance[clusters]).astype(np.float64)
        low, high = clustered_interval(values, clusters.tolist(), seed=trial, resamples=400)
        covered += low <= 0.5 <= high
        low, high = clustered_interval(values, range(180), seed=trial, resamples=400)
        naive += low <= 0.5 <= high
    assert 0.88 <= covered / 200 <= 0.99
    assert naive / 200 < 0.8
