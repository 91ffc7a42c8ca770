"""What Prometheus may read."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one service.

    Args:
        jobs: gives the number of prunings in each state.
    """

    def __init__(self, jobs: Callable[[], dict[str, int]]) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter("zeroout_requests", "Requests", ["method", "route", "status"], registry=self._registry)
        self.seconds = Histogram(
            "zeroout_request_seconds",
            "Time to the response's end",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.batches = Histogram(
            "zeroout_act_batch",
            "Observations that a controller saw at once",
            ["controller"],
            buckets=_BATCHES,
            registry=self._registry,
        )
        self._registry.register(_Jobs(jobs))

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class _Jobs(Collector):
    """Counts prunings when it is asked, so that the numbers outlive the process."""

    def __init__(self, jobs: Callable[[], dict[str, int]]) -> None:
        self._jobs = jobs

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("zeroout_prunings", "Prunings by state", labels=["state"])
        for state, count in self._jobs().items():
            family.add_metric([state], count)
        yield family
