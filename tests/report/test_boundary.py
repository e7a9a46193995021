"""The learned boundary on simulated policies whose switch is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from made_study import graded_lines

from mmsr1.evaluation.counterfactual import Price
from mmsr1.report.boundary import asked_of, boundary
from mmsr1.report.study.tables import boundary as table_of

LINE = {
    "id": "q",
    "cluster": "emblem/1",
    "free": {"none": [1, 3], "text": [2, 4], "both": [1, 1]},
    "forced": {"none": [3, 8], "image": [0, 8], "text": [8, 8], "both": [8, 8]},
}


def test_a_line_gives_its_counts_and_what_its_best_search_is_worth() -> None:
    other = {**LINE, "id": "r", "cluster": "emblem/2"}
    asked = asked_of([[LINE, other], [LINE]], Price(0.1, "per_call"))
    assert asked.right.tolist() == [3, 3, 3] and asked.tried.tolist() == [8, 8, 8]
    assert asked.searched.tolist() == [5, 5, 5] and asked.free.tolist() == [8, 8, 8]
    assert asked.place.tolist() == [0, 1, 0] and asked.seed.tolist() == [0, 0, 1]
    # Text alone is always right and is charged one call; both would be charged two.
    assert asked.worth.tolist() == pytest.approx([0.9, 0.9, 0.9])
    only_both = {**LINE, "forced": {**LINE["forced"], "text": [0, 8]}}
    assert asked_of([[only_both]], Price(0.1, "per_call")).worth[0] == pytest.approx(0.81)
    assert asked_of([[only_both]], Price(0.1)).worth[0] == pytest.approx(0.9)
    assert math.isnan(asked_of([[LINE]], None).worth[0])


def test_the_best_of_several_rates_is_not_taken_for_skill() -> None:
    rng = np.random.default_rng(0)
    lines = [
        {**LINE, "forced": {way: [int(rng.binomial(8, 0.5)), 8] for way in ("none", "image", "text", "both")}}
        for _ in range(400)
    ]
    best = np.mean([max(line["forced"][way][0] / 8 for way in ("image", "text", "both")) for line in lines])
    assert best > 0.62  # what the largest of three rates would say
    assert asked_of([lines], Price(0.0)).worth.mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("damaged", [{}, {**LINE, "forced": {}}, {**LINE, "forced": {"none": [9, 8]}}])
def test_a_line_that_is_none_is_refused(damaged: dict[str, Any]) -> None:
    with pytest.raises((KeyError, ValueError)):
        asked_of([[damaged]], Price(0.1))


def test_the_switch_of_a_known_policy_is_found_and_its_interval_covers_it() -> None:
    rng, found = np.random.default_rng(5), []
    for _ in range(30):
        found.append(boundary(asked_of([graded_lines(rng, 0.65, each=3)], Price(0.1))))
    learned = np.array([one.learned.value for one in found])
    assert learned.mean() == pytest.approx(0.65, abs=0.015)
    assert sum(one.learned.low <= 0.65 <= one.learned.high for one in found) >= 26  # of 30, where 28.5 are expected
    assert np.mean([one.learned.high - one.learned.low for one in found]) < 0.15
    # Both is right in 9 of 10 and loses a tenth of that.
    assert np.mean([one.predicted.value for one in found if one.predicted]) == pytest.approx(0.81, abs=0.01)
    apart = [one.difference for one in found if one.difference]
    assert np.mean([one.value for one in apart]) == pytest.approx(0.65 - 0.81, abs=0.02)
    # Noise in p flattens what is drawn against the rate itself; here the slope is that of the policy, 12.
    assert 9 < np.median([one.slope for one in found]) < 16


def test_the_predicted_switch_is_where_p_is_what_searching_is_worth_there() -> None:
    """Worth 0.9 (0.9 - 0.3 p) = 0.81 - 0.27 p meets p at 0.81 / 1.27 = 0.638; its mean over the places is near 0.67."""
    rng = np.random.default_rng(9)
    found = [boundary(asked_of([graded_lines(rng, 0.6, each=3, falls=0.3)], Price(0.1))).predicted for _ in range(12)]
    assert np.mean([one.value for one in found if one]) == pytest.approx(0.81 / 1.27, abs=0.01)
    assert sum(one.low <= 0.81 / 1.27 <= one.high for one in found if one) >= 10


def test_points_stand_where_the_policy_is_and_not_at_the_rates_that_luck_made() -> None:
    found = boundary(asked_of([graded_lines(np.random.default_rng(1), 0.6, each=12)], Price(0.1)))
    assert [one.questions for one in found.bins] and sum(one.questions for one in found.bins) == 576
    assert found.bins[0].p > 0.1 and found.bins[-1].p < 0.93  # rates of 0 and 1 of 8 are among them
    inner = [one for one in found.bins if 0.25 < one.p < 0.8]
    # Averaged over what a bin leaves open, the curve passes near its point.
    for one in inner:
        assert one.searched.low - 0.1 < np.interp(one.p, found.p, found.curve) < one.searched.high + 0.1


def test_policies_that_always_or_never_search_have_a_limit_instead_of_a_switch() -> None:
    rng = np.random.default_rng(2)
    always = boundary(asked_of([graded_lines(rng, 3.0)], Price(0.0)))
    never = boundary(asked_of([graded_lines(rng, -2.0)], None))
    assert always.learned.value == 1.0 and never.learned.value == 0.0
    assert never.predicted is None and never.difference is None
    rows = table_of({"always": always, "never": never}).rows
    assert rows[0][2].startswith(">= 1 [>= 1, >= 1]") and rows[1][2].startswith("<= 0 [<= 0, <= 0]")
    assert rows[1][1:4:2] == ("no fixed price", "-")
    with pytest.raises(ValueError, match="no question"):
        boundary(asked_of([[]], None))


def test_seeds_that_learned_different_switches_widen_the_interval() -> None:
    rng = np.random.default_rng(3)
    alike = boundary(asked_of([graded_lines(rng, 0.6) for _ in range(3)], Price(0.1)))
    apart = boundary(asked_of([graded_lines(rng, switch) for switch in (0.5, 0.6, 0.7)], Price(0.1)))
    assert apart.by_seed == pytest.approx((0.5, 0.6, 0.7), abs=0.07)
    # Student's t of three seeds 0.1 apart: 4.30 x 0.1 / sqrt(3) to either side.
    assert apart.learned.high - apart.learned.low > 0.35 > 2 * (alike.learned.high - alike.learned.low)
