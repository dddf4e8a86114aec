"""Export of spans to a collector over OTLP and gRPC.

The exporter of the SDK retries with sleeps, logs each attempt and imports an HTTP stack. An unreachable collector must
cost nothing and be logged once. So this exporter makes one attempt a batch, counts lost spans, and logs once an outage.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

EXPORT_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_TIMEOUT_SECONDS = 5.0


def encode(spans: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
    """The export request with `spans`, grouped by resource (in practice there is one)."""
    groups = [
        ResourceSpans(
            resource=Resource(attributes=encode_attributes(group[0].resource.attributes)),
            scope_spans=[ScopeSpans(scope=InstrumentationScope(name="treadle"), spans=[_span(span) for span in group])],
        )
        for group in (list(spans) for _, spans in itertools.groupby(spans, key=lambda span: id(span.resource)))
    ]
    return ExportTraceServiceRequest(resource_spans=groups)


def _span(span: ReadableSpan) -> Span:
    context = span.context
    return Span(
        trace_id=context.trace_id.to_bytes(16, "big"),
        span_id=context.span_id.to_bytes(8, "big"),
        trace_state=context.trace_state.to_header(),
        parent_span_id=span.parent.span_id.to_bytes(8, "big") if span.parent else b"",
        name=span.name,
        kind=Span.SpanKind.ValueType(span.kind.value + 1),
        start_time_unix_nano=span.start_time or 0,
        end_time_unix_nano=span.end_time or 0,
        attributes=encode_attributes(span.attributes),
        events=[
            Span.Event(name=event.name, time_unix_nano=event.timestamp, attributes=encode_attributes(event.attributes))
            for event in span.events
        ],
        links=[
            Span.Link(
                trace_id=link.context.trace_id.to_bytes(16, "big"),
                span_id=link.context.span_id.to_bytes(8, "big"),
                attributes=encode_attributes(link.attributes),
            )
            for link in span.links
        ],
        status=Status(code=Status.StatusCode.ValueType(span.status.status_code.value)),
    )


def encode_attributes(attributes: Mapping[str, object] | None) -> list[KeyValue]:
    """Attributes as OTLP has them; a value of a type that it does not know becomes text."""
    return [KeyValue(key=key, value=_value(value)) for key, value in attributes.items()] if attributes else []


def _value(value: object) -> AnyValue:
    match value:
        case bool():  # before int: bool is one
            return AnyValue(bool_value=value)
        case str():
            return AnyValue(string_value=value)
        case int() if -(2**63) <= value < 2**63:
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case bytes():
            return AnyValue(bytes_value=value)
        case list() | tuple():
            return AnyValue(array_value=ArrayValue(values=[_value(item) for item in value]))
    return AnyValue(string_value=str(value))


class OtlpExporter(SpanExporter):
    """Sends batches of spans to a collector.

    `on_change(error)` is called with the first error of an outage, and with "" at its end; `on_lost(spans)` with the
    number of lost spans.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        on_lost: Callable[[int], None] = lambda spans: None,
        on_change: Callable[[str], None] = lambda error: None,
    ) -> None:
        self._target, self._secure = _target(endpoint)
        self._on_lost = on_lost
        self._on_change = on_change
        self._channel: grpc.Channel | None = None
        self._call: grpc.UnaryUnaryMultiCallable[bytes, ExportTraceServiceResponse] | None = None
        self._down = False
        self._closed = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._closed:
            return SpanExportResult.FAILURE
        sent = self.send(encode(spans).SerializeToString(), len(spans))
        return SpanExportResult.SUCCESS if sent else SpanExportResult.FAILURE

    def send(self, request: bytes, spans: int) -> bool:
        """Sends an encoded `ExportTraceServiceRequest` with this many spans; False if they are lost."""
        try:
            self._connect()(request, timeout=_TIMEOUT_SECONDS)
        except (grpc.RpcError, ValueError) as error:  # ValueError: the channel was closed under the call
            self._on_lost(spans)
            self._set_down(_reason(error))
            return False
        self._set_down("")
        return True

    def shutdown(self) -> None:
        self._closed = True
        if self._channel is not None:
            self._channel.close()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True  # export() does not buffer

    def _connect(self) -> "grpc.UnaryUnaryMultiCallable[bytes, ExportTraceServiceResponse]":
        if self._call is None:  # on the exporting thread, at the first export
            # A collector that is reachable again is used within two seconds.
            options = [("grpc.max_reconnect_backoff_ms", 2_000), ("grpc.initial_reconnect_backoff_ms", 200)]
            self._channel = (
                grpc.secure_channel(self._target, grpc.ssl_channel_credentials(), options)
                if self._secure
                else grpc.insecure_channel(self._target, options)
            )
            self._call = self._channel.unary_unary(
                EXPORT_METHOD,
                response_deserializer=ExportTraceServiceResponse.FromString,
            )
        return self._call

    def _set_down(self, error: str) -> None:
        if bool(error) != self._down:
            self._down = bool(error)
            self._on_change(error)


def _target(endpoint: str) -> tuple[str, bool]:
    """`host:port`, and whether to use TLS, from `http://host:port`, `https://host:port` or `host:port`."""
    scheme, separator, rest = endpoint.rpartition("://")
    if (separator and scheme not in ("http", "https", "grpc")) or not rest.strip("/"):
        raise ValueError(f"OTLP endpoint {endpoint!r}: want http://host:port or https://host:port")
    return rest.rstrip("/"), scheme == "https"


def _reason(error: Exception) -> str:
    code = error.code() if isinstance(error, grpc.Call) else None
    return code.name if code is not None else type(error).__name__
