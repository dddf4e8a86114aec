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
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import NoOpTracer, Tracer
from structlog.typing import FilteringBoundLogger

from treadle.observability.telemetry.logs import capture_stdlib, make_logger
from treadle.observability.telemetry.metrics import Meters
from treadle.observability.telemetry.otlp import OtlpExporter
from treadle.observability.telemetry.redaction import GuardedExporter, Redactor, SpanGuard

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
    _provider: TracerProvider | None = None
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
        provider = _provider(service, ParentBased(TraceIdRatioBased(1.0)))
        provider.add_span_processor(SimpleSpanProcessor(GuardedExporter(SpanGuard(redactor), memory)))
        log = make_logger(service, redactor, level="critical")
        return cls(
            service,
            provider.get_tracer("treadle"),
            Meters(),
            log,
            redactor,
            _provider=provider,
            _finished=memory.get_finished_spans,
        )

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        """Finished spans in order of ending; empty unless made by `recording`."""
        return self._finished()

    def close(self) -> None:
        """Sends what is queued and stops. Blocks for as long as one export may take: 5 s if no collector answers."""
        if self._provider is not None:
            self._provider.shutdown()

    async def aclose(self) -> None:
        """`close` without blocking the event loop."""
        await asyncio.to_thread(self.close)


def setup(
    service: str,
    *,
    otlp_endpoint: str | None = None,
    sample_ratio: float = 1.0,
    log_json: bool = True,
    log_level: str = "info",
) -> Telemetry:
    """The telemetry of a real process.

    Without an endpoint no span is recorded, but trace ids are still made and passed on. ValueError for an unknown
    level, a bad endpoint, or a ratio outside 0…1.
    """
    if service == "traces":  # exporting would make new spans of every export, for ever
        otlp_endpoint = None
    redactor = Redactor()
    log = make_logger(service, redactor, json=log_json, level=log_level)
    capture_stdlib(log, level=log_level)
    meters = Meters()
    sampler = ParentBased(TraceIdRatioBased(sample_ratio)) if otlp_endpoint else ALWAYS_OFF
    provider = _provider(service, sampler)
    if otlp_endpoint:
        provider.add_span_processor(_exporting(otlp_endpoint, meters, log, redactor))
    return Telemetry(service, provider.get_tracer("treadle"), meters, log, redactor, _provider=provider)


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


def _exporting(endpoint: str, meters: Meters, log: FilteringBoundLogger, redactor: Redactor) -> BatchSpanProcessor:
    lost = meters.counter("treadle_spans_lost_total", "Spans that no collector accepted.")

    def changed(error: str) -> None:
        if error:
            log.warning("traces cannot be exported; spans are dropped until they can", endpoint=endpoint, error=error)
        else:
            log.info("traces are exported again", endpoint=endpoint)

    exporter = OtlpExporter(endpoint, on_lost=lost.add, on_change=changed)
    return BatchSpanProcessor(
        GuardedExporter(SpanGuard(redactor), exporter),
        max_queue_size=16_384,
        max_export_batch_size=512,
        schedule_delay_millis=1_000,
    )
