"""What a model version tells about itself: counters, metrics, and one span for each batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import time_ns

from opentelemetry import trace
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, StatusCode, Tracer

from treadle.inference.batch import Answer, Batch
from treadle.inference.models import ModelKey
from treadle.observability.metrics import SIZE_BUCKETS, Meters

_LABELS = ("model", "version")


@dataclass(slots=True)
class Total:
    """How often, and nanoseconds in sum."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        """Once more, for so long."""
        self.count += 1
        self.ns += int(seconds * 1e9)


@dataclass(slots=True)
class BatchTotals:
    """Batches of one size, in rows."""

    compute_input: Total = field(default_factory=Total)
    compute_infer: Total = field(default_factory=Total)


@dataclass(slots=True)
class Statistics:
    """What Triton's ModelStatistics asks for. Written by the worker (batches) and the loop (requests)."""

    last_inference_ms: int = 0
    rows: int = 0
    batches: int = 0
    success: Total = field(default_factory=Total)
    fail: Total = field(default_factory=Total)
    queue: Total = field(default_factory=Total)
    compute_input: Total = field(default_factory=Total)
    compute_infer: Total = field(default_factory=Total)
    compute_output: Total = field(default_factory=Total)
    by_size: dict[int, BatchTotals] = field(default_factory=dict)


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
    """Watches one model version."""

    def __init__(self, key: ModelKey, tracer: Tracer, meters: ModelMeters) -> None:
        self.statistics = Statistics()
        self._key = key
        self._tracer = tracer
        self._meters = meters
        self._labels = {"model": key.name, "version": str(key.version)}

    @contextmanager
    def batch(self, batch: Batch) -> Iterator[None]:
        """Around one batch, on the worker's thread. Code of the backend finds the batch's span as the current one."""
        with self._span(batch):
            yield
        self._count(batch)

    @contextmanager
    def _span(self, batch: Batch) -> Iterator[None]:
        """One span, linked to every sampled request in the batch and a child of the first: recorded if that one is."""
        requests = [
            job.context
            for job in batch.jobs
            if isinstance(job.context, SpanContext) and job.context.trace_flags.sampled
        ]
        if not requests:
            yield
            return
        with self._tracer.start_as_current_span(
            "treadle.batch",
            context=trace.set_span_in_context(NonRecordingSpan(requests[0])),
            links=[Link(request) for request in requests],
            attributes={
                "treadle.model": self._key.name,
                "treadle.version": self._key.version,
                "treadle.batch.id": batch.id,
                "treadle.batch.size": batch.rows,
                "treadle.batch.queue_ms": (batch.started_at - batch.jobs[0].queued_at) * 1e3,
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

    def _count(self, batch: Batch) -> None:
        totals = self.statistics
        totals.batches += 1
        totals.rows += batch.rows
        totals.last_inference_ms = time_ns() // 1_000_000
        size = totals.by_size.setdefault(batch.rows, BatchTotals())
        size.compute_input.add(batch.input_seconds)
        size.compute_infer.add(batch.infer_seconds)
        self._meters.inference.observe(batch.infer_seconds, **self._labels)
        self._meters.batch_rows.observe(batch.rows, **self._labels)
        self._meters.rows.add(batch.rows, **self._labels)

    def answered(self, answer: Answer, seconds: float, output_seconds: float) -> None:
        """One request succeeded: `seconds` in all, `output_seconds` of them to encode the answer."""
        totals = self.statistics
        totals.success.add(seconds)
        totals.queue.add(answer.queue_seconds)
        totals.compute_input.add(answer.batch.input_seconds)
        totals.compute_infer.add(answer.batch.infer_seconds)
        totals.compute_output.add(output_seconds)
        self._meters.queue.observe(answer.queue_seconds, **self._labels)
        self._meters.requests.add(1, code="OK", **self._labels)

    def failed(self, code: str, seconds: float) -> None:
        """One request failed."""
        self.statistics.fail.add(seconds)
        self._meters.requests.add(1, code=code, **self._labels)
