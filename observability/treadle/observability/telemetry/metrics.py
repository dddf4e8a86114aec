"""Prometheus metrics on a private registry, with a limit on the number of label sets.

Without it, a label with values from requests would let any caller fill the memory of the process and of Prometheus.
Over the limit, every label of a new set becomes "other" and the overflow is counted.
"""

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import prometheus_client
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

LATENCY_BUCKETS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
"""Seconds: from a lookup in memory to a call that should raise an alert."""

SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384)
"""Rows of batches and requests."""

OTHER = "other"

_M = TypeVar("_M", bound=MetricWrapperBase)
_L = TypeVar("_L", bound="_Labelled[Any]")


class _Labelled(Generic[_M]):
    """A metric with its children by label values."""

    def __init__(self, metric: _M, labels: Sequence[str], limit: int, overflow: prometheus_client.Counter) -> None:
        self._metric = metric
        self._labels = tuple(labels)
        self._limit = limit
        self._overflow = overflow
        self._children: dict[tuple[object, ...], _M] = {} if labels else {(): metric}

    def _child(self, labels: Mapping[str, object]) -> _M:
        if len(labels) == len(self._labels):
            try:
                key = tuple([labels[name] for name in self._labels])
            except KeyError:
                key = None
            if key is not None:
                return self._children.get(key) or self._new_child(key)
        raise TypeError(f"metric labels must be {list(self._labels)}, not {sorted(labels)}")

    def _new_child(self, key: tuple[object, ...]) -> _M:
        if len(self._children) >= self._limit:
            self._overflow.inc()
            key = (OTHER,) * len(self._labels)
        child = self._metric.labels(*map(str, key))
        self._children[key] = child
        return child


class Counter(_Labelled[prometheus_client.Counter]):
    """A counter."""

    def add(self, amount: float = 1, **labels: object) -> None:
        """Adds `amount` ≥ 0. The labels are exactly the declared ones."""
        self._child(labels).inc(amount)

    def bound(self, **labels: object) -> Callable[[float], None]:
        """`add` for one set of labels, looked up once, for counts on the request path."""
        return self._child(labels).inc


class Gauge(_Labelled[prometheus_client.Gauge]):
    """A gauge."""

    def set(self, value: float, **labels: object) -> None:
        """Replaces the value. The labels are exactly the declared ones."""
        self._child(labels).set(value)

    def add(self, amount: float, **labels: object) -> None:
        """Changes the value by `amount`, which may be negative."""
        self._child(labels).inc(amount)


class Histogram(_Labelled[prometheus_client.Histogram]):
    """A histogram of seconds or rows."""

    def observe(self, value: float, /, exemplar: str = "", **labels: object) -> None:
        """Records one value. `exemplar` is the id of a sampled trace that shows it (OpenMetrics scrapes carry it)."""
        self.bound(**labels)(value, exemplar)

    def observe_many(self, values: Sequence[float], /, **labels: object) -> None:
        """Records several values, for about the time of one."""
        child = self._child(labels)
        bounds, buckets = child._upper_bounds, child._buckets  # noqa: SLF001  # the library has no public method for several values
        child._sum.inc(sum(values))  # noqa: SLF001
        for place, count in Counts(bisect_left(bounds, value) for value in values).items():
            buckets[place].inc(count)

    def bound(self, **labels: object) -> Callable[[float, str], None]:
        """`observe` for one set of labels, looked up once, for measurements on the request path."""
        child = self._child(labels)

        def observe(value: float, exemplar: str = "") -> None:
            child.observe(value, {"trace_id": exemplar} if exemplar else None)

        return observe


class Meters:
    """Creates the metrics of a process. A second call for the same metric returns the same object.

    ValueError for a metric of another kind or other labels under the same name.
    """

    def __init__(self, *, label_sets: int = 200) -> None:
        self.registry = CollectorRegistry()
        self._limit = label_sets
        self._made: dict[str, tuple[tuple[str, ...], _Labelled[Any]]] = {}
        self._overflow = prometheus_client.Counter(
            "treadle_metrics_overflow_total",
            "Observations whose labels were replaced by 'other' because the metric had too many label sets.",
            ["metric"],
            registry=self.registry,
        )

    def counter(self, name: str, help: str, labels: Sequence[str] = ()) -> Counter:  # noqa: A002 - the name Prometheus uses
        """A counter; `name` ends in `_total`."""
        return self._make(
            Counter, name, labels, lambda: prometheus_client.Counter(name, help, labels, registry=self.registry)
        )

    def gauge(self, name: str, help: str, labels: Sequence[str] = ()) -> Gauge:  # noqa: A002 - the name Prometheus uses
        """A gauge."""
        return self._make(
            Gauge, name, labels, lambda: prometheus_client.Gauge(name, help, labels, registry=self.registry)
        )

    def histogram(
        self,
        name: str,
        help: str,  # noqa: A002 - the name Prometheus uses
        labels: Sequence[str] = (),
        buckets: Sequence[float] = LATENCY_BUCKETS,
    ) -> Histogram:
        """A histogram with these upper bounds; `name` ends in its unit."""
        return self._make(
            Histogram,
            name,
            labels,
            lambda: prometheus_client.Histogram(name, help, labels, registry=self.registry, buckets=tuple(buckets)),
        )

    def _make(self, kind: type[_L], name: str, labels: Sequence[str], build: Callable[[], Any]) -> _L:
        made = self._made.get(name)
        if made is None:
            made = tuple(labels), kind(build(), labels, self._limit, self._overflow.labels(name))
            self._made[name] = made
        declared, metric = made
        if declared != tuple(labels) or not isinstance(metric, kind):
            raise ValueError(f"metric {name!r} is already a {type(metric).__name__} with labels {list(declared)}")
        return metric


class MetricsServer:
    """The endpoint that Prometheus scrapes, in its own thread: any path, plain or OpenMetrics text."""

    def __init__(self, meters: Meters, host: str, port: int) -> None:
        server, thread = prometheus_client.start_http_server(port, addr=host, registry=meters.registry)
        self._server = server
        self._thread = thread
        self.port: int = server.server_port
        """The bound port, also if the configured port is 0."""

    def close(self) -> None:
        """Stops the endpoint and frees its port. May be called more than once."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve_metrics(meters: Meters, host: str = "127.0.0.1", port: int = 0) -> MetricsServer:
    """Starts the endpoint. OSError if the port is taken."""
    return MetricsServer(meters, host, port)
