"""What Prometheus reads at /metrics."""

import collections
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from drnet_runtime import AdaptiveModel, Result

CLASSIFY = "/classify"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_PICTURES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counts of one server. For one event loop.

    Args:
      model: that is served.

    Attributes:
      decode_seconds: of pictures.
      unreadable: pictures that could not be read.
    """

    def __init__(self, model: AdaptiveModel) -> None:
        self._model = model
        self._num_arrived = 0
        self._statuses: collections.Counter[int] = collections.Counter()
        # Not the library's own, which is one of the process.
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        self._requests = Counter(
            "drnet_requests", "Requests by path and status.", ["path", "status"], registry=registry
        )
        self._pictures = Counter(
            "drnet_pictures", "Classified pictures.", ["resolution"], registry=registry
        )
        self._second_looks = Counter(
            "drnet_second_looks", "Pictures that took a second look.", registry=registry
        )
        self.unreadable = Counter(
            "drnet_unreadable_pictures", "Pictures that could not be read.", registry=registry
        )
        self._spent = Counter("drnet_macs_spent", "Multiply-adds spent.", registry=registry)
        self._largest = Counter(
            "drnet_macs_at_largest",
            "Multiply-adds that the largest resolution alone would have spent.",
            registry=registry,
        )
        # Of few pictures it may be below zero, which no counter may.
        self._saved = Gauge(
            "drnet_macs_saved", "Multiply-adds saved against the largest one.", registry=registry
        )
        self._request_seconds = self._histogram(
            "request_seconds", "From a request's head to its answer."
        )
        self.decode_seconds = self._histogram("decode_seconds", "Of decoding a picture.")
        self._wait_seconds = self._histogram(
            "wait_seconds", "That a picture waited for its model call."
        )
        self._model_seconds = self._histogram("model_seconds", "Of a model call.")
        self._batch = Histogram(
            "drnet_batch_pictures",
            "Pictures of a model call.",
            buckets=_PICTURES,
            registry=registry,
        )
        for resolution in model.resolutions:
            self._pictures.labels(resolution)

    def _histogram(self, name: str, help: str) -> Histogram:
        return Histogram(f"drnet_{name}", help, buckets=_SECONDS, registry=self._registry)

    def watch(self, name: str, help: str, value: Callable[[], float]) -> None:
        """Adds a gauge, whose value is asked for whenever the metrics are."""
        Gauge(f"drnet_{name}", help, registry=self._registry).set_function(value)

    def answered(self, result: Result, index: int) -> None:
        """Counts a classified picture, the one at `index` of a result."""
        self._pictures.labels(int(result.resolutions[index])).inc()
        if result.looks[index] == 2:
            self._second_looks.inc()
        spent, largest = int(result.macs[index]), self._model.largest_macs
        self._spent.inc(spent)
        self._largest.inc(largest)
        self._saved.inc(largest - spent)

    def called(self, pictures: int, waited: list[float], seconds: float) -> None:
        """Counts a model call: see `batching.Observe`."""
        self._batch.observe(pictures)
        self._model_seconds.observe(seconds)
        for wait in waited:
            self._wait_seconds.observe(wait)

    def arrived(self, path: str) -> None:
        """Counts a request as its head is there."""
        if path == CLASSIFY:
            self._num_arrived += 1

    def responded(self, path: str, status: int, seconds: float) -> None:
        """Counts a request, and the seconds of one at /classify."""
        self._requests.labels(path, status).inc()
        if path == CLASSIFY:
            self._statuses[status] += 1
            self._request_seconds.observe(seconds)

    def summary(self) -> str:
        """In words, for the log: what was asked at /classify, and how it ended."""
        statuses = ", ".join(f"{n} with {status}" for status, n in sorted(self._statuses.items()))
        ended = self._statuses.total()
        return f"{self._num_arrived} requests at {CLASSIFY}, {ended} ended" + (
            f" ({statuses})" if statuses else ""
        )

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)
