"""Telemetry of a model version: statistics, metrics, and one span for each batch.

Recording the metrics of a batch costs more than a batch of a small model. They are therefore collected and flushed to
the metrics library ten times a second.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from time import time_ns

from opentelemetry import trace
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, StatusCode, Tracer

from treadle.core.model_ref import ModelRef
from treadle.inference.batching.batch import InferenceBatch
from treadle.observability.telemetry.metrics import SIZE_BUCKETS, Meters

_LABELS = ("model", "version")
_NO_SPAN = nullcontext()
FLUSH_INTERVAL_SECONDS = 0.1


@dataclass(slots=True)
class DurationTotal:
    """A count, and a sum of durations in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, count: int, seconds: float) -> None:
        """Adds `count` events that took `seconds` in total."""
        self.count += count
        self.ns += int(seconds * 1e9)


@dataclass(slots=True)
class BatchTotals:
    """Durations of the batches of one size (in rows)."""

    compute_input: DurationTotal = field(default_factory=DurationTotal)
    compute_infer: DurationTotal = field(default_factory=DurationTotal)


@dataclass(slots=True)
class Statistics:
    """The values of Triton's ModelStatistics."""

    last_inference_ms: int = 0
    rows: int = 0
    batches: int = 0
    success: DurationTotal = field(default_factory=DurationTotal)
    fail: DurationTotal = field(default_factory=DurationTotal)
    queue: DurationTotal = field(default_factory=DurationTotal)
    compute_input: DurationTotal = field(default_factory=DurationTotal)
    compute_infer: DurationTotal = field(default_factory=DurationTotal)
    compute_output: DurationTotal = field(default_factory=DurationTotal)
    by_size: dict[int, BatchTotals] = field(default_factory=dict)


@dataclass(slots=True)
class _PendingMetrics:
    """Measurements that have not been flushed to the metrics library."""

    inference: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)


class ModelMeters:
    """The metrics that all models share, labelled by model and version."""

    def __init__(self, meters: Meters) -> None:
        self.inference = meters.histogram(
            "treadle_model_inference_seconds", "Time of one batch inside the model.", _LABELS
        )
        self.queue = meters.histogram("treadle_model_queue_seconds", "Time a request waited for its batch.", _LABELS)
        self.batch_rows = meters.histogram("treadle_model_batch_rows", "Rows of one batch.", _LABELS, SIZE_BUCKETS)
        self.rows = meters.counter("treadle_model_rows_total", "Rows computed.", _LABELS)
        self.requests = meters.counter(
            "treadle_model_requests_total", "Requests answered, by status code.", (*_LABELS, "code")
        )


class ModelObserver:
    """Records the telemetry of one model version."""

    def __init__(self, key: ModelRef, tracer: Tracer, meters: ModelMeters) -> None:
        self.statistics = Statistics()
        self._key = key
        self._tracer = tracer
        self._meters = meters
        self._labels = {"model": key.model, "version": str(key.version)}
        self._pending = _PendingMetrics()
        self._flush_timer: asyncio.TimerHandle | None = None

    def around_batch(self, batch: InferenceBatch) -> AbstractContextManager[object]:
        """The span of one batch, as current span on the thread that runs it: linked to every sampled request in the
        batch, and a child of the first of them. No span without sampled requests."""
        contexts = [request.context for request in batch.requests if isinstance(request.context, SpanContext)]
        return self._span(batch, contexts) if contexts else _NO_SPAN

    @contextmanager
    def _span(self, batch: InferenceBatch, contexts: Sequence[SpanContext]) -> Iterator[None]:
        with self._tracer.start_as_current_span(
            "treadle.batch",
            context=trace.set_span_in_context(NonRecordingSpan(contexts[0])),
            links=[Link(context) for context in contexts],
            attributes={
                "treadle.model": self._key.model,
                "treadle.version": self._key.version,
                "treadle.batch.id": batch.id,
                "treadle.batch.size": batch.rows,
                "treadle.batch.queue_ms": (batch.started_at - batch.requests[0].queued_at) * 1e3,
            },
            record_exception=False,  # its text may hold values
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except BaseException as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(StatusCode.ERROR)
                raise

    def batch_completed(self, batch: InferenceBatch, now: float) -> None:
        """Records a successful batch and its requests; `now` is the completion time on the batcher's clock."""
        began, count = batch.started_at, len(batch.requests)
        waited = [began - request.queued_at for request in batch.requests]
        queue_seconds = sum(waited)
        totals = self.statistics
        totals.batches += 1
        totals.rows += batch.rows
        totals.last_inference_ms = time_ns() // 1_000_000
        size = totals.by_size.get(batch.rows)
        if size is None:
            size = totals.by_size[batch.rows] = BatchTotals()
        size.compute_input.add(1, batch.input_seconds)
        size.compute_infer.add(1, batch.infer_seconds)
        totals.success.add(count, queue_seconds + count * (now - began))
        totals.queue.add(count, queue_seconds)
        totals.compute_input.add(count, count * batch.input_seconds)
        totals.compute_infer.add(count, count * batch.infer_seconds)
        totals.compute_output.add(count, count * max(0.0, now - began - batch.input_seconds - batch.infer_seconds))
        pending = self._pending
        pending.inference.append(batch.infer_seconds)
        pending.rows.append(batch.rows)
        pending.waited += waited
        self._count("OK", count)

    def request_failed(self, code: str, seconds: float) -> None:
        """Records a failed request with the name of its status code."""
        self.statistics.fail.add(1, seconds)
        self._count(code, 1)

    def _count(self, code: str, requests: int) -> None:
        codes = self._pending.codes
        codes[code] = codes.get(code, 0) + requests
        if self._flush_timer is None:
            self._flush_timer = asyncio.get_running_loop().call_later(FLUSH_INTERVAL_SECONDS, self.flush)

    def flush(self) -> None:
        """Writes all pending measurements to the metrics library."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        pending, self._pending = self._pending, _PendingMetrics()
        meters, labels = self._meters, self._labels
        meters.inference.observe_many(pending.inference, **labels)
        meters.batch_rows.observe_many(pending.rows, **labels)
        meters.queue.observe_many(pending.waited, **labels)
        meters.rows.add(sum(pending.rows), **labels)
        for code, requests in pending.codes.items():
            meters.requests.add(requests, code=code, **labels)
