"""The span of the present call, whether the OpenTelemetry SDK makes it or the server when the call ends."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import Token
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue

from treadle.observability.telemetry.propagation import TRACEPARENT, inject
from treadle.observability.telemetry.request_spans import RequestSpan
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc import context as call_context
from treadle.rpc.context import RequestContext


def attach(span: Span) -> Token[Any]:
    """Makes `span` the current one, until `detach`."""
    return otel_context._RUNTIME_CONTEXT.attach(trace.set_span_in_context(span))  # noqa: SLF001  # see `detach`


def detach(token: Token[Any]) -> None:
    """Undoes `attach`.

    Unlike OpenTelemetry's own, which logs an error, it does not mind being called in another context, as happens when
    an abandoned async generator is closed.
    """
    with suppress(ValueError):
        otel_context._RUNTIME_CONTEXT.detach(token)  # noqa: SLF001  # as above


@contextmanager
def active(span: Span) -> Iterator[None]:
    """Makes `span` the current one for a block."""
    token = attach(span)
    try:
        yield
    finally:
        detach(token)


def is_recording() -> bool:
    """Whether the present call is sampled, so that attributes are worth computing."""
    return call_context.current().sampled or trace.get_current_span().is_recording()


def annotate(attributes: Mapping[str, AttributeValue]) -> None:
    """Adds attributes to the span of the present call. An unsampled call keeps them for the span of its failure."""
    span = trace.get_current_span()
    if span.is_recording():
        span.set_attributes(attributes)
    else:
        call = call_context.current()
        if call.trace_id:  # outside of any call there is nothing to add to
            call.attributes.update(attributes)


def keep_span(attributes: Mapping[str, AttributeValue], request: RequestContext | None = None) -> None:
    """Makes a request leave a span with these attributes though it is not sampled and succeeds, as degraded ones do.

    `request` is the present call by default. Its span is that of the server; attributes of a traced request are added
    to it as by `annotate`.
    """
    call = request or call_context.current()
    if call.trace_id:
        call.keep_span = True
        call.attributes.update(attributes)


def record_unsampled(
    telemetry: Telemetry,
    span: Span,
    caller: Context,
    request: RequestContext,
    *,
    name: str,
    failed: bool,
    start_nanos: int,
    fixed: tuple[tuple[str, str | bool | int], ...],
) -> None:
    """Records the server span of a request that has ended, though the SDK's sampler dropped `span`.

    `caller` is the context that the request came with; `fixed` are attributes that many requests have alike.
    """
    if telemetry.record is None:
        return
    parent = trace.get_current_span(caller).get_span_context()
    telemetry.record(
        RequestSpan(
            name=name,
            trace_id=request.trace_id,
            span_id=f"{span.get_span_context().span_id:016x}",
            parent_id=f"{parent.span_id:016x}" if parent.is_valid else "",
            start_nanos=start_nanos,
            end_nanos=max(start_nanos, time.time_ns()),
            failed=failed,
            sampled=False,
            fixed=fixed,
            attributes=request.attributes,
        )
    )


def traceparent() -> str:
    """The span of the present call as a W3C header; empty where there is none."""
    return call_context.current().traceparent or dict(inject(trace.get_current_span())).get(TRACEPARENT, "")
