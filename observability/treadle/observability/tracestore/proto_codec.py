"""Conversion of traces to the messages of `treadle/v1/traces.proto` and back, for the service and the command line."""

from collections.abc import Mapping
from typing import Any, cast

from google.protobuf.struct_pb2 import Struct

from treadle.observability.tracestore.spans import KINDS, STATUSES, SpanEvent, SpanRecord, Trace, TraceSummary, Value
from treadle.v1 import traces_pb2 as pb


def trace_to_proto(trace: Trace) -> pb.Trace:
    """The message that carries `trace`."""
    return pb.Trace(
        trace_id=trace.trace_id,
        spans=[_span_to_proto(span) for span in trace.spans],
        linked=[_span_to_proto(span) for span in trace.linked],
    )


def trace_from_proto(message: pb.Trace) -> Trace:
    """The trace of a message of `trace_to_proto`."""
    return Trace(
        message.trace_id,
        tuple(_span_from_proto(span) for span in message.spans),
        tuple(_span_from_proto(span) for span in message.linked),
    )


def summary_to_proto(summary: TraceSummary) -> pb.TraceSummary:
    """The message that carries `summary`."""
    return pb.TraceSummary(
        trace_id=summary.trace_id,
        service=summary.service,
        name=summary.name,
        start_unix_nanos=summary.start_nanos,
        duration_nanos=summary.duration_nanos,
        spans=summary.spans,
        errors=summary.errors,
        services=summary.services,
        deployment=summary.deployment,
        degraded_reason=summary.degraded_reason,
    )


def summary_from_proto(message: pb.TraceSummary) -> TraceSummary:
    """The summary of a message of `summary_to_proto`."""
    return TraceSummary(
        message.trace_id,
        message.service,
        message.name,
        message.start_unix_nanos,
        message.duration_nanos,
        message.spans,
        message.errors,
        tuple(message.services),
        message.deployment,
        message.degraded_reason,
    )


def _span_to_proto(span: SpanRecord) -> pb.Span:
    return pb.Span(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_id,
        service=span.service,
        name=span.name,
        kind=pb.Span.Kind.ValueType(KINDS.index(span.kind)),
        status=pb.Span.Status.ValueType(STATUSES.index(span.status)),
        start_unix_nanos=span.start_nanos,
        duration_nanos=span.duration_nanos,
        attributes=_struct(span.attributes),
        links=[pb.SpanLink(trace_id=trace_id, span_id=span_id) for trace_id, span_id in span.links],
        events=[
            pb.SpanEvent(name=event.name, offset_nanos=event.offset_nanos, attributes=_struct(event.attributes))
            for event in span.events
        ],
    )


def _span_from_proto(message: pb.Span) -> SpanRecord:
    return SpanRecord(
        message.trace_id,
        message.span_id,
        message.parent_span_id,
        message.service,
        message.name,
        message.start_unix_nanos,
        message.duration_nanos,
        KINDS[message.kind] if message.kind < len(KINDS) else "internal",
        STATUSES[message.status] if message.status < len(STATUSES) else "unset",
        _mapping(message.attributes),
        tuple((link.trace_id, link.span_id) for link in message.links),
        tuple(SpanEvent(event.name, event.offset_nanos, _mapping(event.attributes)) for event in message.events),
    )


def _struct(attributes: Mapping[str, Value]) -> Struct:
    struct = Struct()
    struct.update(cast("dict[str, Any]", dict(attributes)))
    return struct


def _mapping(struct: Struct) -> dict[str, Value]:
    return {key: _from_json_value(value) for key, value in struct.items()}


def _from_json_value(value: Any) -> Value:
    """The value of a struct, whose numbers are doubles: whole numbers become integers."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    return [_from_json_value(item) for item in value] if not isinstance(value, str | bool) else value
