"""Server spans without the SDK: a record a request, encoded to OTLP in batches on a thread of its own.

The SDK takes 30 to 60 µs for a span, and so does Envoy's tracer with what surrounds it; a record takes 3. That is
cheap enough for a span of every request that failed, sampled or not.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from struct import pack
from typing import NamedTuple

from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from treadle.observability.telemetry.otlp import encode_attributes

FLUSH_SECONDS = 0.5
"""Spans leave after this long at most."""
MAX_UNSAMPLED = 2048
"""Spans of unsampled requests that wait for one flush; those beyond are lost, and counted."""
_MAX_QUEUED = 32_768
_SPANS_PER_EXPORT = 512
_MAX_TEMPLATES = 1024
_MAX_TEXT = 1024
# Tags of the fields of opentelemetry.proto.trace.v1: field number * 8 + wire type.
_REQUEST_RESOURCE_SPANS, _RESOURCE_SPANS_RESOURCE, _RESOURCE_SPANS_SCOPE_SPANS = b"\x0a", b"\x0a", b"\x12"
_SCOPE_SPANS_SCOPE, _SCOPE_SPANS_SPAN = b"\x0a", b"\x12"
_TRACE_ID, _SPAN_ID, _PARENT_ID, _START, _END, _ATTRIBUTE = (
    b"\x0a\x10",
    b"\x12\x08",
    b"\x22\x08",
    b"\x39",
    b"\x41",
    b"\x4a",
)
_KEY, _VALUE, _STRING, _BOOL, _INT, _DOUBLE = b"\x0a", b"\x12", b"\x0a", b"\x10", b"\x18", b"\x21"
_INT64_MASK = (1 << 64) - 1


class RequestSpan(NamedTuple):
    """A finished server span."""

    name: str
    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    parent_id: str
    """16 hexadecimal digits; empty for a request that begins its trace."""
    start_nanos: int
    """Nanoseconds since 1970."""
    end_nanos: int
    failed: bool
    sampled: bool
    """False for a span that is there because the request failed or was degraded."""
    fixed: tuple[tuple[str, str | bool | int], ...]
    """Attributes that many spans have alike, such as the method and the status code."""
    attributes: Mapping[str, object]
    """Attributes of this request."""


class RequestSpanRecorder:
    """Takes spans on the event loop and hands encoded batches to `send` on a thread of its own."""

    def __init__(
        self,
        send: Callable[[bytes, int], bool],
        resource: Mapping[str, object],
        *,
        allows: Callable[[str], bool],
        on_lost: Callable[[int], None],
    ) -> None:
        """`send` gets an `ExportTraceServiceRequest` and its number of spans, may block, and returns whether they
        arrived; `allows` says whether an attribute may leave the process; `on_lost` hears how many spans found no place
        in the queue."""
        self._send = send
        self._on_lost = on_lost
        self._encoder = SpanEncoder(resource, allows)
        self._queue: deque[RequestSpan] = deque()
        self._unsampled = 0
        self._lost = 0
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def record(self, span: RequestSpan) -> None:
        """Queues a span. Called by one thread, the event loop's."""
        if not span.sampled:
            if self._unsampled >= MAX_UNSAMPLED:
                self._lost += 1
                return
            self._unsampled += 1
        elif len(self._queue) >= _MAX_QUEUED:
            self._lost += 1
            return
        self._queue.append(span)
        if self._thread is None:  # a process without requests has no thread
            self._thread = threading.Thread(target=self._run, name="request-spans", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Sends what is queued and stops. Blocks for as long as the exports take."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(FLUSH_SECONDS):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        self._unsampled = 0
        lost, self._lost = self._lost, 0
        if lost:
            self._on_lost(lost)
        for _ in range(0, len(self._queue), _SPANS_PER_EXPORT):
            batch = [self._queue.popleft() for _ in range(min(_SPANS_PER_EXPORT, len(self._queue)))]
            if not self._send(self._encoder.encode(batch), len(batch)) and self._closing.is_set():
                return  # a process that ends does not wait for a collector that is away


class SpanEncoder:
    """`RequestSpan`s to the bytes of an OTLP request.

    A protobuf message may be put together from encoded parts in any order. What many spans share is encoded once.
    """

    def __init__(self, resource: Mapping[str, object], allows: Callable[[str], bool]) -> None:
        self._resource = Resource(attributes=encode_attributes(resource)).SerializeToString()
        self._scope = InstrumentationScope(name="treadle").SerializeToString()
        self._allows = allows
        self._templates: dict[tuple[object, ...], bytes] = {}

    def encode(self, spans: Sequence[RequestSpan]) -> bytes:
        """The request that carries `spans`."""
        fields = [_field(_SCOPE_SPANS_SPAN, self._span(span)) for span in spans]
        scope_spans = b"".join((_field(_SCOPE_SPANS_SCOPE, self._scope), *fields))
        resource_spans = _field(_RESOURCE_SPANS_RESOURCE, self._resource) + _field(
            _RESOURCE_SPANS_SCOPE_SPANS, scope_spans
        )
        return _field(_REQUEST_RESOURCE_SPANS, resource_spans)

    def _span(self, span: RequestSpan) -> bytes:
        parts = [
            _TRACE_ID, bytes.fromhex(span.trace_id), _SPAN_ID, bytes.fromhex(span.span_id),
            _START, span.start_nanos.to_bytes(8, "little"), _END, span.end_nanos.to_bytes(8, "little"),
            self._template(span),
        ]  # fmt: skip
        if span.parent_id:
            parts += (_PARENT_ID, bytes.fromhex(span.parent_id))
        parts += [
            _field(_ATTRIBUTE, _attribute(key, value)) for key, value in span.attributes.items() if self._allows(key)
        ]
        return b"".join(parts)

    def _template(self, span: RequestSpan) -> bytes:
        """Name, kind, status and fixed attributes."""
        key = (span.name, span.failed, span.fixed)
        template = self._templates.get(key)
        if template is None:
            if len(self._templates) >= _MAX_TEMPLATES:  # names of methods that nobody offers come from callers
                self._templates.clear()
            template = self._templates[key] = Span(
                name=span.name,
                kind=Span.SPAN_KIND_SERVER,
                status=Status(code=Status.STATUS_CODE_ERROR if span.failed else Status.STATUS_CODE_UNSET),
                attributes=encode_attributes({name: value for name, value in span.fixed if self._allows(name)}),
            ).SerializeToString()
        return template


def _attribute(key: str, value: object) -> bytes:
    """A `KeyValue`; text is cut at 1,024 characters, as the SDK's."""
    if isinstance(value, bool):
        encoded = _BOOL + (b"\1" if value else b"\0")
    elif isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        encoded = _INT + _varint(value & _INT64_MASK)
    elif isinstance(value, float):
        encoded = _DOUBLE + pack("<d", value)
    else:
        encoded = _field(_STRING, str(value)[:_MAX_TEXT].encode("utf-8", "replace"))
    return _field(_KEY, key.encode()) + _field(_VALUE, encoded)


def _field(tag: bytes, content: bytes) -> bytes:
    return b"".join((tag, _varint(len(content)), content))


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
