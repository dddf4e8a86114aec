"""W3C trace context in gRPC metadata and HTTP headers, faster than the general propagators of the SDK.

Server: `parent = extract(metadata)`; `tracer.start_span(name, context=parent, kind=SpanKind.SERVER)`.
Client: `metadata = [*metadata, *inject(span)]`.
"""

from collections.abc import Iterable

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TraceFlags, TraceState

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

_HEX = frozenset("0123456789abcdef")
_MAX_HEADER_CHARACTERS = 8192
_KNOWN_FLAGS = 0b11  # sampled, and random trace id
_EMPTY = Context()


def extract(metadata: Iterable[tuple[str, str | bytes]], *, is_remote: bool = True) -> Context:
    """The context with the caller's span; an empty context without a header or with a malformed one.

    Names must be lower case, as gRPC and ASGI provide them. `is_remote` says whether the caller is another process.
    """
    parent = state = ""
    for key, value in metadata:
        if key == TRACEPARENT:
            parent = _text(value)
        elif key == TRACESTATE:
            state = _text(value)
    context = parse_traceparent(parent, state, is_remote=is_remote) if parent else None
    return trace.set_span_in_context(NonRecordingSpan(context), _EMPTY) if context else _EMPTY


def parse_traceparent(header: str, state: str = "", *, is_remote: bool = True) -> SpanContext | None:
    """`00-<32 hex>-<16 hex>-<2 hex>` as a span context; None if it is malformed or all zeros."""
    parts = header.split("-")
    if len(parts) < 4 or [len(part) for part in parts[:4]] != [2, 32, 16, 2] or not _HEX.issuperset("".join(parts[:4])):
        return None
    version, trace_id, span_id, flags = parts[:4]
    if version == "ff" or (version == "00" and len(parts) != 4):
        return None
    context = SpanContext(
        int(trace_id, 16),
        int(span_id, 16),
        is_remote=is_remote,
        trace_flags=TraceFlags(int(flags, 16) & _KNOWN_FLAGS),
        trace_state=TraceState.from_header([state]) if 0 < len(state) <= _MAX_HEADER_CHARACTERS else None,
    )
    return context if context.is_valid else None


def span_of(traceparent: str) -> Span:
    """This process's span that a well-formed header names, as a non-recording span; else the invalid span."""
    context = parse_traceparent(traceparent, is_remote=False)
    return trace.INVALID_SPAN if context is None else NonRecordingSpan(context)


def inject(span: Span) -> list[tuple[str, str]]:
    """The metadata that makes `span` the parent of the spans of the callee; empty without a valid span."""
    context = span.get_span_context()
    if not context.is_valid:
        return []
    pairs = [(TRACEPARENT, f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}")]
    if context.trace_state:
        pairs.append((TRACESTATE, context.trace_state.to_header()))
    return pairs


def trace_id_of(span: Span) -> str:
    """The trace id as 32 hexadecimal digits, "" without a valid span."""
    context = span.get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""


def _text(value: str | bytes) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value
