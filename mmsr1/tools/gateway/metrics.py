"""What Prometheus is told: the requests of the gateway, and the figures of the tools behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client import Counter as Counts
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from mmsr1.tools.meter import Row, quantile

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
# Figures of `Meter.rows` and what they are here.
_FIGURES = {
    "calls": "calls",
    "hits": "calls that asked nobody",
    "backend_calls": "calls that asked a back end",
    "attempts": "attempts at a back end",
    "retries": "attempts that were not the first of their call",
    "corrupt_entries": "cache entries that were refused and replaced",
    "unwritten": "answers that the cache could not write",
    "cost_usd": "what the calls cost without a cache, in USD",
    "paid_usd": "what the calls did cost, in USD",
    "latency_s": "seconds that the calls took, all together",
}
_NAMES = {"latency_s": "seconds"}
QUANTILES = (0.5, 0.99)


class Metrics:
    """The figures of one app, in a registry of their own, so that two in a process are two."""

    def __init__(self, rows: Callable[[], Mapping[str, Row]], at_work: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self.answered: Counter[int] = Counter()  # by status
        self.inside = 0  # requests
        seconds = "seconds from a request's first byte to its answer's last"
        self._requests = Counts(
            "mmsr1_gateway_requests", "requests answered", ("route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "mmsr1_gateway_request_seconds", seconds, ("route",), buckets=BUCKETS_S, registry=self._registry
        )
        self._refused = Counts(
            "mmsr1_gateway_refused", "requests refused because too many were at work", registry=self._registry
        )
        searches = Gauge("mmsr1_gateway_searches_in_flight", "searches at work", registry=self._registry)
        searches.set_function(at_work)
        requests = Gauge("mmsr1_gateway_requests_in_flight", "requests not answered yet", registry=self._registry)
        requests.set_function(lambda: self.inside)
        self._registry.register(_Tools(rows))

    def count(self, route: str, status: int, seconds: float) -> None:
        """A request that has ended."""
        self.answered[status] += 1
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if status == 429:
            self._refused.inc()

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class _Tools(Collector):
    """The table of the tools and their parts, read when somebody asks."""

    def __init__(self, rows: Callable[[], Mapping[str, Row]]) -> None:
        self._rows = rows

    def collect(self) -> Iterator[Metric]:
        rows = self._rows()
        for figure, what in _FIGURES.items():
            family = CounterMetricFamily(f"mmsr1_tool_{_NAMES.get(figure, figure)}", what, labels=("part",))
            for part, row in rows.items():
                family.add_metric((part,), row.get(figure, 0))
            yield family
        failures = CounterMetricFamily(
            "mmsr1_tool_failures", "calls by status and attempts by cause that failed", labels=("part", "kind")
        )
        latency = GaugeMetricFamily(
            "mmsr1_tool_latency_seconds", "latency of calls since the start", labels=("part", "quantile")
        )
        for part, row in rows.items():
            for key, count in row.items():
                if key.startswith("failures/"):
                    failures.add_metric((part, key.removeprefix("failures/")), count)
            for q in QUANTILES:
                latency.add_metric((part, str(q)), quantile(row, q))
        yield failures
        yield latency
