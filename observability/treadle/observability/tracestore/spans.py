"""A span, a trace and a summary as the trace store knows them: plain data, in nanoseconds, ids in hexadecimal."""

from collections.abc import Mapping
from dataclasses import dataclass, field

Value = str | int | float | bool | list["Value"]

KINDS = ("", "internal", "server", "client", "producer", "consumer")
"""By the numbers of OTLP."""

STATUSES = ("unset", "ok", "error")
"""By the numbers of OTLP."""


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """Something that happened within a span."""

    name: str
    offset_nanos: int
    """After the start of the span."""
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """One finished span."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    parent_id: str
    """16 hexadecimal digits; "" for a root. The parent need not be stored."""
    service: str
    """Bare name, such as "gateway"."""
    name: str
    start_nanos: int
    """Since 1970, by the clock of that service."""
    duration_nanos: int
    kind: str = "internal"
    """One of KINDS."""
    status: str = "unset"
    """One of STATUSES."""
    attributes: Mapping[str, Value] = field(default_factory=dict)
    links: tuple[tuple[str, str], ...] = ()
    """Trace and span ids of the spans that this one worked for."""
    events: tuple[SpanEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace, and the spans of other traces that worked for it (batches, with what ran below them)."""

    trace_id: str
    spans: tuple[SpanRecord, ...]
    """In order of start."""
    linked: tuple[SpanRecord, ...] = ()
    """In order of start."""


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """A line in the list of slow traces: the span that was measured, and what its whole trace came to."""

    trace_id: str
    service: str
    name: str
    start_nanos: int
    duration_nanos: int
    spans: int
    errors: int
    services: tuple[str, ...] = ()
    deployment: str = ""
    degraded_reason: str = ""
