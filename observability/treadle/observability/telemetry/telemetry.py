"""One object that holds what a process emits: a tracer, meters and a logger.

`setup` makes it for a service; `Telemetry.off()` is silent and free, `Telemetry.recording()` keeps finished spans
where a test can read them. Nothing here is global: two services in one process have two of them.
"""

import asyncio
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler
from opentelemetry.trace import NoOpTracer, SpanContext, SpanKind, Status, StatusCode, TraceFlags, Tracer
from structlog.typing import FilteringBoundLogger

from treadle.observability.telemetry.logs import capture_stdlib, make_logger
from treadle.observability.telemetry.metrics import Counter, Meters
from treadle.observability.telemetry.otlp import OtlpExporter
from treadle.observability.telemetry.redaction import GuardedExporter, Redactor, SpanGuard
from treadle.observability.telemetry.request_spans import RequestSpan, RequestSpanRecorder
from treadle.observability.telemetry.sampling import (
    TRACES_PER_SECOND,
    AdaptiveSampler,
    RatioSampler,
    RequestSampler,
    SpanSampler,
    TraceBudget,
)

MAX_LINKS = 4096
"""A batch span links every request in it; the SDK's default would cut at 128."""

_LIMITS = SpanLimits(
    max_span_attributes=64,
    max_events=32,
    max_links=MAX_LINKS,
    max_event_attributes=16,
    max_link_attributes=8,
    max_span_attribute_length=1024,
    max_attribute_length=1024,
)


@dataclass(frozen=True)
class Telemetry:
    """What a process emits. Made once in its composition root and handed down."""

    service: str
    """Bare name, such as "gateway"; spans carry it as service.name "treadle-gateway"."""
    tracer: Tracer
    meters: Meters
    log: FilteringBoundLogger
    redactor: Redactor = field(default_factory=Redactor)
    """Tell it the names of sensitive columns: `telemetry.redactor.add("income")`."""
    sampler: RequestSampler | None = None
    """Decides which requests are traced; None where no span is recorded."""
    record: Callable[[RequestSpan], None] | None = None
    """Takes the server spans that are not the SDK's; None where no span is recorded."""
    _provider: TracerProvider | None = None
    _recorder: RequestSpanRecorder | None = None
    _finished: Callable[[], tuple[ReadableSpan, ...]] = tuple

    @classmethod
    def off(cls, service: str = "test") -> "Telemetry":
        """Records no spans and logs nothing below critical. A caller's trace context still passes through."""
        redactor = Redactor()
        return cls(service, NoOpTracer(), Meters(), make_logger(service, redactor, level="critical"), redactor)

    @classmethod
    def recording(cls, service: str = "test", *, redactor: Redactor | None = None) -> "Telemetry":
        """Keeps finished spans, as a collector would get them, in `spans`. For tests."""
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        redactor = redactor or Redactor()
        memory = InMemorySpanExporter()
        sampler = RatioSampler(1.0)
        provider, exporter = _provider(service, SpanSampler(sampler)), GuardedExporter(SpanGuard(redactor), memory)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        log = make_logger(service, redactor, level="critical")

        def record(span: RequestSpan) -> None:
            exporter.export([_as_sdk_span(span, provider.resource)])

        return cls(
            service,
            provider.get_tracer("treadle"),
            Meters(),
            log,
            redactor,
            sampler,
            record,
            _provider=provider,
            _finished=memory.get_finished_spans,
        )

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        """Finished spans in order of ending; empty unless made by `recording`."""
        return self._finished()

    def close(self) -> None:
        """Sends what is queued and stops. Blocks for as long as one export may take: 5 s if no collector answers."""
        if self._recorder is not None:
            self._recorder.close()
        if self._provider is not None:
            self._provider.shutdown()

    async def aclose(self) -> None:
        """`close` without blocking the event loop."""
        await asyncio.to_thread(self.close)


def setup(
    service: str,
    *,
    otlp_endpoint: str | None = None,
    sampler: RequestSampler | None = None,
    log_json: bool = True,
    log_level: str = "info",
) -> Telemetry:
    """The telemetry of a real process.

    Without an endpoint no span is recorded, but trace ids are still made and passed on. Without a `sampler` at most
    TRACES_PER_SECOND traces are. ValueError for an unknown level or a bad endpoint.
    """
    if service == "traces":  # exporting would make new spans of every export, for ever
        otlp_endpoint = None
    redactor = Redactor()
    log = make_logger(service, redactor, json=log_json, level=log_level)
    capture_stdlib(log, level=log_level)
    meters = Meters()
    if not otlp_endpoint:
        provider = _provider(service, ALWAYS_OFF)
        return Telemetry(service, provider.get_tracer("treadle"), meters, log, redactor, _provider=provider)
    sampler = sampler or AdaptiveSampler(TraceBudget(TRACES_PER_SECOND))
    provider, guard = _provider(service, SpanSampler(sampler)), SpanGuard(redactor)
    lost = meters.counter("treadle_spans_lost_total", "Spans that no collector accepted, or that no queue held.")
    exporter = _exporter(otlp_endpoint, lost, log)
    provider.add_span_processor(
        BatchSpanProcessor(
            GuardedExporter(guard, exporter),
            max_queue_size=16_384,
            max_export_batch_size=512,
            schedule_delay_millis=1_000,
        )
    )
    recorder = RequestSpanRecorder(exporter.send, provider.resource.attributes, allows=guard.allows, on_lost=lost.add)
    tracer = provider.get_tracer("treadle")
    return Telemetry(
        service, tracer, meters, log, redactor, sampler, recorder.record, _provider=provider, _recorder=recorder
    )


def _provider(service: str, sampler: Sampler) -> TracerProvider:
    resource = Resource(
        {
            "service.name": f"treadle-{service}",
            "service.version": metadata.version("treadle"),
            "service.instance.id": uuid.uuid4().hex,
            "process.pid": os.getpid(),
        }
    )
    return TracerProvider(sampler=sampler, resource=resource, span_limits=_LIMITS, shutdown_on_exit=False)


def _exporter(endpoint: str, lost: Counter, log: FilteringBoundLogger) -> OtlpExporter:
    def changed(error: str) -> None:
        if error:
            log.warning("traces cannot be exported; spans are dropped until they can", endpoint=endpoint, error=error)
        else:
            log.info("traces are exported again", endpoint=endpoint)

    return OtlpExporter(endpoint, on_lost=lost.add, on_change=changed)


def _as_sdk_span(span: RequestSpan, resource: Resource) -> ReadableSpan:
    trace_id, flags = int(span.trace_id, 16), TraceFlags(TraceFlags.SAMPLED)
    parent = SpanContext(trace_id, int(span.parent_id, 16), is_remote=True) if span.parent_id else None
    return ReadableSpan(
        span.name,
        SpanContext(trace_id, int(span.span_id, 16), is_remote=False, trace_flags=flags),
        parent,
        resource,
        {**dict(span.fixed), **span.attributes},  # type: ignore[dict-item]  # services set values that spans can hold
        kind=SpanKind.SERVER,
        status=Status(StatusCode.ERROR if span.failed else StatusCode.UNSET),
        start_time=span.start_nanos,
        end_time=span.end_nanos,
    )
