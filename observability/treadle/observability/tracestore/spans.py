"""The data of the trace store: spans, traces and summaries, with times in nanoseconds and ids in hexadecimal."""

from collections.abc import Mapping
from dataclasses import dataclass, field

Value = str | int | float | bool | list["Value"]

KINDS = ("", "internal", "server", "client", "producer", "consumer")
"""The names, indexed by the numbers of OTLP."""

STATUSES = ("unset", "ok", "error")
"""The names, indexed by the numbers of OTLP."""


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """An event within a span."""

    name: str
    offset_nanos: int
    """Time after the start of the span."""
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
    """Nanoseconds since 1970, by the clock of the service."""
    duration_nanos: int
    kind: str = "internal"
    """One of KINDS."""
    status: str = "unset"
    """One of STATUSES."""
    attributes: Mapping[str, Value] = field(default_factory=dict)
    links: tuple[tuple[str, str], ...] = ()
    """Trace and span ids of the linked spans: a batch links the requests that it computes."""
    events: tuple[SpanEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace, and the spans of other traces that link to it (batches, with their child spans)."""

    trace_id: str
    spans: tuple[SpanRecord, ...]
    """Sorted by start time."""
    linked: tuple[SpanRecord, ...] = ()
    """Sorted by start time."""


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """A line in the list of slow traces: the measured span, and totals of its trace."""

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
