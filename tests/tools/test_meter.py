"""Counters add up over ranks and runs, and the quantiles of latencies are near the true ones."""

import random

import pytest

from mmsr1.tools.meter import BUCKETS, Meter, PartCounters, bucket, mean, merge, quantile


def filled(seconds: list[float]) -> PartCounters:
    counters = PartCounters()
    for s in seconds:
        counters.record("ok", False, 0.5, 0.25, s)
    return counters


def test_a_call_is_counted_by_what_it_says():
    meter = Meter()
    part = meter.part("serpapi")
    part.record("ok", False, 0.5, 0.5, 0.1)
    part.record("empty", True, 0.5, 0.0, 0.1)
    part.record("infrastructure_error", True, 0.0, 0.25, 0.1)  # nobody was asked, but it is no hit
    part.record("over_budget", False, 0.0, 0.0, 0.1)
    assert meter.part("serpapi") is part and (part.calls, part.hits, part.cost_usd, part.paid_usd) == (4, 1, 1.0, 0.75)
    row = meter.rows()["serpapi"]
    assert row["failures"] == 2 and row["failures/infrastructure_error"] == row["failures/over_budget"] == 1
    assert row["latency_s"] == pytest.approx(0.4) and mean(row) == pytest.approx(0.1)


def test_causes_of_attempts_are_no_failed_calls():
    part = Meter().part("x")
    part.failures["transient"] += 3
    assert part.row()["failures"] == 0 and part.row()["failures/transient"] == 3


def test_merged_rows_are_those_of_one_meter():
    draws = random.Random(0)
    times = [draws.lognormvariate(-1, 1) for _ in range(600)]
    ranks = [{"a": filled(times[n::3]).row()} for n in range(3)]
    whole = filled(times).row()
    merged = merge(*ranks, {"b": {"calls": 1}}, {})
    assert merged["a"] == pytest.approx(whole) and merged["b"] == {"calls": 1}
    assert ranks[0]["a"]["calls"] == 200  # what was merged is unchanged


@pytest.mark.parametrize("q", [0.0, 0.01, 0.5, 0.9, 0.99, 1.0])
def test_quantiles_are_within_ten_percent(q):
    draws = random.Random(1)
    times = sorted(draws.lognormvariate(-2, 2) for _ in range(3000))
    truth = times[min(len(times) - 1, max(0, round(q * len(times)) - 1))]
    assert quantile(filled(times).row(), q) == pytest.approx(truth, rel=0.1)


def test_any_latency_has_a_bucket_and_their_number_is_bounded():
    counters = filled([0.0, -1.0, 1e-9, 1e9, float("inf"), float("nan")] + [1.001**n for n in range(-9000, 9000)])
    assert len(counters.latencies) <= BUCKETS and min(counters.latencies) == 0
    assert bucket(1e9) == BUCKETS - 1 and bucket(float("nan")) == 0


def test_a_row_without_calls_has_no_latency():
    assert quantile(PartCounters().row(), 0.5) == mean(PartCounters().row()) == mean({}) == 0.0
