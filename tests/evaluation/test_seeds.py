"""Intervals over seeds, against hand-computed ones."""

from __future__ import annotations

import math

import pytest

from mmsr1.evaluation.seeds import seed_interval


@pytest.mark.parametrize(
    ("values", "quantile", "deviation"),
    [
        ([1.0, 3.0], 12.7062, math.sqrt(2)),
        ([0.0, 1.0, 2.0], 4.30265, 1.0),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 2.77645, math.sqrt(2.5)),
    ],
)
def test_half_the_length_is_students_quantile_times_the_error_of_the_mean(
    values: list[float], quantile: float, deviation: float
) -> None:
    low, high = seed_interval(values)
    assert (low + high) / 2 == pytest.approx(sum(values) / len(values))
    assert (high - low) / 2 == pytest.approx(quantile * deviation / math.sqrt(len(values)), rel=1e-3)


def test_one_seed_says_nothing_and_equal_seeds_have_no_spread() -> None:
    assert all(math.isnan(end) for end in (*seed_interval([0.5]), *seed_interval([]), *seed_interval([0.5, math.nan])))
    assert seed_interval([0.25, 0.25, 0.25]) == (0.25, 0.25)
