"""The clustered bootstrap at its edges."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmsr1.evaluation.statistics import clustered_interval


def test_values_that_are_all_equal_leave_no_doubt():
    assert clustered_interval(np.full(8, 0.25), range(8), seed=0) == (0.25, 0.25)


def test_one_cluster_is_one_observation():
    low, high = clustered_interval(np.array([0.0, 1.0, 1.0]), ["a", "a", "a"], seed=0)
    assert low == high == pytest.approx(2 / 3)


def test_values_that_do_not_apply_are_left_out_with_their_clusters():
    values = np.array([1.0, 0.0, np.nan, np.nan, 1.0])
    clusters = ["a", "b", "b", "gone", "c"]
    kept = clustered_interval(np.array([1.0, 0.0, 1.0]), ["a", "b", "c"], seed=3)
    assert clustered_interval(values, clusters, seed=3) == kept


@pytest.mark.parametrize("values", [[], [np.nan, np.nan]])
def test_without_a_value_there_is_no_interval(values):
    ends = clustered_interval(np.array(values, dtype=np.float64), range(len(values)), seed=0)
    assert all(math.isnan(end) for end in ends)


def test_large_clusters_weigh_by_their_size():
    values = np.array([1.0] * 9 + [0.0])
    low, high = clustered_interval(values, ["big"] * 9 + ["small"], seed=0)
    assert (low, high) == (0.0, 1.0)  # either cluster may be drawn twice
    wide = clustered_interval(values, range(10), seed=0)
    assert wide[0] >= 0.6 and wide[1] == 1.0


def test_the_same_seed_gives_the_same_interval_and_a_lower_level_a_narrower_one():
    values = np.random.default_rng(0).random(50)
    wide = clustered_interval(values, range(50), seed=1)
    assert clustered_interval(values, range(50), seed=1) == wide
    low, high = clustered_interval(values, range(50), seed=1, level=0.5)
    assert wide[0] < low < high < wide[1]
