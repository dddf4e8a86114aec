"""What a model version tells about itself: counters, metrics, and one span for each batch.

Metrics of a batch cost more than the batch of a small model. So they are gathered, and told to the library ten times a
second.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from time import time_ns

from opentelemetry import trace
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, StatusCode, Tracer

from treadle.core.model_ref import ModelRef
from treadle.inference.batching.batch import Batch
from treadle.observability.telemetry.metrics import SIZE_BUCKETS, Meters

_LABELS = ("model", "version")
_NOTHING = nullcontext()
TOLD_EACH_SECONDS = 0.1


@dataclass(slots=True)
class Total:
    """How often, and nanoseconds in sum."""

    count: int = 0
    ns: int = 0

    def add(self, count: int, seconds: float) -> None:
        """So many more, which took so long in sum."""
        self.count += count
        self.ns += int(seconds * 1e9)


@dataclass(slots=True)
class BatchTotals:
    """Batches of one size, in rows."""

    compute_input: Total = field(default_factory=Total)
    compute_infer: Total = field(default_factory=Total)


@dataclass(slots=True)
class Statistics:
    """What Triton's ModelStatistics asks for."""

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


@dataclass(slots=True)
class _Fresh:
    """What the metrics have not been told yet."""

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
    """Watches one model version."""

    def __init__(self, key: ModelRef, tracer: Tracer, meters: ModelMeters) -> None:
        self.statistics = Statistics()
        self._key = key
        self._tracer = tracer
        self._meters = meters
        self._labels = {"model": key.model, "version": str(key.version)}
        self._fresh = _Fresh()
        self._telling: asyncio.TimerHandle | None = None

    def batch(self, batch: Batch) -> AbstractContextManager[object]:
        """Around one batch, on the thread that runs it. Code of the backend finds the batch's span as the current one:
        linked to every request in the batch that is sampled, and a child of the first of them."""
        requests = [job.context for job in batch.jobs if isinstance(job.context, SpanContext)]
        return self._span(batch, requests) if requests else _NOTHING

    @contextmanager
    def _span(self, batch: Batch, requests: Sequence[SpanContext]) -> Iterator[None]:
        with self._tracer.start_as_current_span(
            "treadle.batch",
            context=trace.set_span_in_context(NonRecordingSpan(requests[0])),
            links=[Link(request) for request in requests],
            attributes={
                "treadle.model": self._key.model,
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

    def answered(self, batch: Batch, now: float) -> None:
        """The requests of a batch succeeded. All that is counted of them is counted here, once for the batch."""
        began, requests = batch.started_at, len(batch.jobs)
        waited = [began - job.queued_at for job in batch.jobs]
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
        totals.success.add(requests, queue_seconds + requests * (now - began))
        totals.queue.add(requests, queue_seconds)
        totals.compute_input.add(requests, requests * batch.input_seconds)
        totals.compute_infer.add(requests, requests * batch.infer_seconds)
        totals.compute_output.add(
            requests, requests * max(0.0, now - began - batch.input_seconds - batch.infer_seconds)
        )
        fresh = self._fresh
        fresh.inference.append(batch.infer_seconds)
        fresh.rows.append(batch.rows)
        fresh.waited += waited
        self._count("OK", requests)

    def failed(self, code: str, seconds: float) -> None:
        """One request failed."""
        self.statistics.fail.add(1, seconds)
        self._count(code, 1)

    def _count(self, code: str, requests: int) -> None:
        codes = self._fresh.codes
        codes[code] = codes.get(code, 0) + requests
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(TOLD_EACH_SECONDS, self.tell)

    def tell(self) -> None:
        """Brings the metrics up to now."""
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        fresh, self._fresh = self._fresh, _Fresh()
        meters, labels = self._meters, self._labels
        meters.inference.observe_many(fresh.inference, **labels)
        meters.batch_rows.observe_many(fresh.rows, **labels)
        meters.queue.observe_many(fresh.waited, **labels)
        meters.rows.add(sum(fresh.rows), **labels)
        for code, requests in fresh.codes.items():
            meters.requests.add(requests, code=code, **labels)
