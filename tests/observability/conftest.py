"""Spans made up for the tests of the store and of the waterfall."""

from typing import Any

from treadle.observability.tracestore.spans import SpanRecord


def span(number: int, *, trace: int = 1, parent: int = 0, start: int = 0, ms: float = 1.0, **rest: Any) -> SpanRecord:
    """Span `number` of trace `trace`; `start` in microseconds after a fixed instant, `ms` long."""
    fields: dict[str, Any] = {"service": "gateway", "name": "work"} | rest
    return SpanRecord(
        trace_id=f"{trace:032x}",
        span_id=f"{number:016x}",
        parent_id=f"{parent:016x}" if parent else "",
        start_nanos=1_700_000_000_000_000_000 + start * 1000,
        duration_nanos=int(ms * 1e6),
        **fields,
    )
