"""OTLP requests to span records, trusting nothing: ids are checked, sizes cut, undeclared attributes dropped."""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from treadle.observability.telemetry.redaction import SpanGuard
from treadle.observability.tracestore.spans import KINDS, STATUSES, SpanEvent, SpanRecord, Value

MAX_SPANS = 10_000
"""Spans of a request."""
MAX_ATTRIBUTES = 64
MAX_EVENTS = 32
MAX_LINKS = 4096
MAX_TEXT = 1024
"""Characters of an attribute's value."""
MAX_NAME = 256
"""Characters of a name."""
MAX_ITEMS = 32
"""Elements of a list attribute."""
_MAX_NANOS = 2**63 - 1  # what the store's integers hold


@dataclass(frozen=True, slots=True)
class Intake:
    """What came out of one request."""

    spans: list[SpanRecord]
    rejected: int
    """Spans without valid ids, or of a time that no clock shows."""


def read_request(request: ExportTraceServiceRequest, guard: SpanGuard) -> Intake:
    """The spans of `request`. Spans past MAX_SPANS are rejected without being looked at."""
    total = sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans)
    spans: list[SpanRecord] = []
    for service, span in itertools.islice(_spans(request), MAX_SPANS):
        record = _record(service, span, guard)
        if record is not None:
            spans.append(record)
    return Intake(spans, total - len(spans))


def _spans(request: ExportTraceServiceRequest) -> Iterator[tuple[str, Span]]:
    """Every span with its service."""
    for resource in request.resource_spans:
        names = (item.value.string_value for item in resource.resource.attributes if item.key == "service.name")
        service = (next(names, "") or "unknown").removeprefix("treadle-")[:MAX_NAME]
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield service, span


def _record(service: str, span: Span, guard: SpanGuard) -> SpanRecord | None:
    if not _is_id(span.trace_id, 16) or not _is_id(span.span_id, 8):
        return None
    start, end = span.start_time_unix_nano, span.end_time_unix_nano
    if not 0 < start <= _MAX_NANOS or end > _MAX_NANOS:
        return None
    return SpanRecord(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex() if _is_id(span.parent_span_id, 8) else "",
        service=service,
        name=span.name[:MAX_NAME] or "?",
        start_nanos=start,
        duration_nanos=max(0, end - start),
        kind=KINDS[span.kind] if 0 < span.kind < len(KINDS) else "internal",
        status=STATUSES[span.status.code] if 0 <= span.status.code < len(STATUSES) else "unset",
        attributes=_attributes(span.attributes, guard),
        links=tuple(
            (link.trace_id.hex(), link.span_id.hex())
            for link in itertools.islice(span.links, MAX_LINKS)
            if _is_id(link.trace_id, 16) and _is_id(link.span_id, 8)
        ),
        events=tuple(
            SpanEvent(
                event.name[:MAX_NAME],
                max(0, min(event.time_unix_nano, _MAX_NANOS) - start),
                _attributes(event.attributes, guard),
            )
            for event in itertools.islice(span.events, MAX_EVENTS)
        ),
    )


def _is_id(value: bytes, length: int) -> bool:
    return len(value) == length and any(value)


def _attributes(pairs: Iterable[KeyValue], guard: SpanGuard) -> dict[str, Value]:
    allowed = (pair for pair in pairs if len(pair.key) <= MAX_NAME and guard.allows(pair.key))
    return {pair.key: _value(pair.value) for pair in itertools.islice(allowed, MAX_ATTRIBUTES)}


def _value(value: AnyValue) -> Value:
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value[:MAX_TEXT]
        case "bool_value":
            return value.bool_value
        case "int_value":
            return value.int_value
        case "double_value":
            number = value.double_value
            return number if math.isfinite(number) else str(number)  # JSON knows neither NaN nor infinity
        case "bytes_value":
            return f"<{len(value.bytes_value)} bytes>"
        case "array_value":  # of scalars, says the specification; deeper nesting is only named
            items = itertools.islice(value.array_value.values, MAX_ITEMS)
            return [_value(item) if item.WhichOneof("value") != "array_value" else "<list>" for item in items]
    return "<map>" if value.HasField("kvlist_value") else ""
